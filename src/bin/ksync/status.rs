//! The status line: the last line of a terminal, which is drawn again and again.
//!
//! After each drawing the cursor returns to the beginning of the line. A terminal that becomes
//! narrower cuts the line or wraps it. Either way all of it is behind the cursor, where the next
//! drawing erases it.

use std::io::{Write, stderr};

use rustix::termios::tcgetwinsize;

/// Width of a terminal that does not tell it.
const COLUMNS: usize = 80;

/// Erases everything from the cursor to the end of the screen.
const ERASE: &str = "\x1b[J";

/// A line that is longer than the terminal is wide must not wrap: the terminal may have become
/// narrower a moment ago.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Shows that the program is alive.
const SPINNER: [&str; 4] = ["|", "/", "-", "\\"];

/// A status line on stderr.
#[derive(Debug, Default)]
pub(crate) struct StatusLine {
    /// The line on the screen, if there is one.
    shown: Option<String>,
    turns: usize,
}

impl StatusLine {
    /// Draws the line, which may be this many columns wide.
    pub(crate) fn draw(&mut self, line: impl FnOnce(usize) -> String) {
        let columns = tcgetwinsize(stderr()).map_or(0, |size| usize::from(size.ws_col));
        // The last column stays free: a cursor behind it is in different places on different
        // terminals.
        let line = line(if columns == 0 { COLUMNS } else { columns } - 1);
        write(&drawing(&line));
        self.shown = Some(line);
    }

    /// Draws a text behind a spinner.
    pub(crate) fn spin(&mut self, text: &str) {
        let spinner = SPINNER.get(self.turns % SPINNER.len()).unwrap_or(&" ");
        self.turns += 1;
        self.draw(|width| cut(&format!("{spinner} {text}"), width));
    }

    /// True if the line is on the screen.
    pub(crate) fn is_shown(&self) -> bool {
        self.shown.is_some()
    }

    /// Prints something above the line.
    pub(crate) fn above(&mut self, print: impl FnOnce()) {
        let shown = self.shown.take();
        if shown.is_some() {
            write(&format!("\r{ERASE}"));
        }
        print();
        if let Some(line) = shown {
            self.draw(|width| cut(&line, width));
        }
    }

    /// Removes the line.
    pub(crate) fn clear(&mut self) {
        if self.shown.take().is_some() {
            write(&format!("\r{ERASE}"));
        }
    }
}

fn drawing(line: &str) -> String {
    format!("\r{NO_WRAP}{line}{WRAP}{ERASE}\r")
}

/// Writes all at once, so that other output does not come in between.
fn write(text: &str) {
    let mut stderr = stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// Columns of a text on a terminal. A character that is not ASCII counts as two: it may be as wide.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(letter: char) -> usize {
    if letter.is_ascii() { 1 } else { 2 }
}

/// The beginning of a text, as much as fits.
pub(crate) fn cut(text: &str, width: usize) -> String {
    let mut used = 0;
    let fits = |letter: &char| {
        used += columns(*letter);
        used <= width
    };
    text.chars().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_the_width_of_its_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!((cut("äöü", 5).as_str(), width("äöü")), ("äö", 6));
    }

    #[test]
    fn a_drawn_line_leaves_the_cursor_at_its_beginning() {
        assert_eq!(drawing("x"), "\r\x1b[?7lx\x1b[?7h\x1b[J\r");
    }
}
