//! Lines of ignore files, in gitignore's dialect.

use crate::tree::pattern::{Dialect, Pattern};

/// UTF-8's byte order mark, which some editors put at the beginning of a text.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line of an ignore file that is ready to be compared.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) include: bool,
    pub(super) pattern: Pattern,
    /// The number of the line in its ignore file, from 1.
    pub(super) number: usize,
    /// The text as it was written.
    pub(super) text: Vec<u8>,
}

/// The lines of a file, without blanks and comments.
pub(super) fn lines(text: &[u8]) -> Vec<Line> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let lines = text.split(|&byte| byte == b'\n').zip(1..);
    lines.filter_map(|(text, number)| parse(text, number)).collect()
}

/// Parses one line of an ignore file. `None` for blanks and comments.
fn parse(text: &[u8], number: usize) -> Option<Line> {
    // For git a line ends at a NUL.
    let text = text.split(|&byte| byte == 0).next()?;
    let text = without_trailing_spaces(text.strip_suffix(b"\r").unwrap_or(text));
    if text.starts_with(b"#") {
        return None;
    }
    let (include, pattern) = text.strip_prefix(b"!").map_or((false, text), |rest| (true, rest));
    let pattern = Pattern::new(pattern, Dialect::Gitignore)?;
    Some(Line { include, pattern, number, text: text.to_vec() })
}

/// Strips the spaces at the end of a line, except one that follows a `\`.
fn without_trailing_spaces(line: &[u8]) -> &[u8] {
    let Some(end) = line.iter().rposition(|&byte| byte != b' ') else { return &[] };
    let escapes =
        line.get(..=end).unwrap_or_default().iter().rev().take_while(|&&byte| byte == b'\\').count();
    line.get(..(end + 1 + escapes % 2).min(line.len())).unwrap_or(line)
}
