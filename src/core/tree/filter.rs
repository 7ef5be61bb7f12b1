//! Filters: they decide which entries take part, by `--exclude` and `--include` rules and by
//! `.ksyncignore` files.
//!
//! The rules of the command line come first, and the first match wins, as with rsync. If none
//! matches, the nearest `.ksyncignore` with a matching line decides, and its last matching line
//! wins, as with git. An excluded directory excludes everything below it.
//!
//! Rules see an entry's path in the transfer root, as rsync's do. If several SOURCEs go into DEST
//! by name, that name is the path's first component. Ignore files see paths below their own
//! directory.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::path::{TreePath, escape};
use crate::tree::pattern::{Dialect, Named, Pattern};

/// The name of ignore files.
pub const IGNORE_FILE: &str = ".ksyncignore";

/// Longest ignore file that is accepted, in bytes.
pub const IGNORE_BYTES_MAX: usize = 64 << 10;

/// Most bytes of all ignore files of a tree. Each name may be compared with each of their lines.
pub const IGNORE_TOTAL_BYTES_MAX: usize = 1 << 20;

/// Most rules of a command line, and most ignore files of a tree.
pub const RULES_MAX: usize = 10_000;

/// Most bytes of a command line's patterns: they travel in one frame, and each name may be compared
/// with each of them.
pub const RULES_BYTES_MAX: usize = 1 << 20;

/// The text of an ignore file that stands for a directory that the sender did not enter: the
/// receiver keeps everything below it. The first line tells it from a user's file.
pub const UNENTERED: &[u8] = b"# Not entered by ksync.\n*\n";

/// UTF-8's byte order mark, which some editors put at the beginning of a text.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A rule of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// True if matching entries are included, false if they are excluded.
    pub include: bool,
    /// The pattern in rsync's dialect.
    #[serde(with = "serde_bytes")]
    pub pattern: Vec<u8>,
}

/// An ignore file as found in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoreFile {
    /// Bytes of the directory that holds it; empty for the root.
    #[serde(with = "serde_bytes")]
    pub directory: Vec<u8>,
    /// The file's text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// A rule, or a line of an ignore file, that is ready to be compared.
#[derive(Debug, Clone)]
struct Compiled {
    include: bool,
    pattern: Pattern,
    /// The number of the line in its ignore file, from 1; 0 for a rule of the command line.
    line: usize,
    /// The text as it was written.
    text: Vec<u8>,
}

/// All rules of one run.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    rules: Vec<Compiled>,
    /// The tree's own path in the transfer root; empty if it is the transfer root.
    anchor: Vec<u8>,
    ignores: BTreeMap<Vec<u8>, Vec<Compiled>>,
    files: Vec<IgnoreFile>,
    files_bytes: usize,
    /// Ignore files have no effect, except [`UNENTERED`].
    is_of_unentered: bool,
}

impl Filter {
    /// A filter of the command line's rules for a tree that is the transfer root. Rules with empty
    /// patterns are skipped.
    #[must_use]
    pub fn new(rules: &[Rule]) -> Self {
        Self::anchored(rules, b"")
    }

    /// A filter of the command line's rules for the tree at `anchor` in the transfer root.
    #[must_use]
    pub fn anchored(rules: &[Rule], anchor: &[u8]) -> Self {
        let compiled = rules.iter().take(RULES_MAX).filter_map(|rule| {
            let (include, text) = (rule.include, rule.pattern.clone());
            Some(Compiled { include, pattern: Pattern::new(&text, Dialect::Rsync)?, line: 0, text })
        });
        Self { rules: compiled.collect(), anchor: anchor.to_vec(), ..Self::default() }
    }

    /// A filter that excludes only what is below directories that the sender did not enter.
    #[must_use]
    pub fn of_unentered() -> Self {
        Self { is_of_unentered: true, ..Self::default() }
    }

    /// Takes in an ignore file. Returns `false` and ignores the file if it is longer than
    /// [`IGNORE_BYTES_MAX`], or exceeds the limit of all ignore files together.
    pub fn add(&mut self, file: IgnoreFile) -> bool {
        self.files_bytes += file.text.len();
        if file.text.len() > IGNORE_BYTES_MAX
            || self.files_bytes > IGNORE_TOTAL_BYTES_MAX
            || self.files.len() == RULES_MAX
        {
            return false;
        }
        if self.is_of_unentered && file.text != UNENTERED {
            self.files.push(file);
            return true;
        }
        let text = file.text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&file.text);
        let lines = text.split(|&byte| byte == b'\n').zip(1..);
        let lines = lines.filter_map(|(text, line)| parse_line(text, line));
        self.ignores.insert(file.directory.clone(), lines.collect());
        self.files.push(file);
        true
    }

    /// The accepted ignore files, to be sent to a peer.
    #[must_use]
    pub fn files(&self) -> &[IgnoreFile] {
        &self.files
    }

    /// True if an entry is excluded, given that the directories above it are not.
    #[must_use]
    pub fn excludes(&self, path: &TreePath, is_directory: bool) -> bool {
        self.deciding(path, is_directory).is_some_and(|(_, rule)| !rule.include)
    }

    /// The rule that decides about an entry, and its origin, for the log. The entry is in the tree,
    /// or it is the tree itself (`None`).
    #[must_use]
    pub fn reason(&self, path: Option<&TreePath>, is_directory: bool) -> Option<String> {
        let (directory, rule) = match path {
            Some(path) => self.deciding(path, is_directory)?,
            None => (None, self.ruled(&self.anchor, true)?),
        };
        let text = escape(&rule.text);
        Some(match directory {
            None => format!("by=command-line rule={text}"),
            Some(b"") => format!("by={IGNORE_FILE}:{} rule={text}", rule.line),
            Some(directory) => format!("by={}/{IGNORE_FILE}:{} rule={text}", escape(directory), rule.line),
        })
    }

    /// The rule that decides about an entry, and the directory of its ignore file.
    fn deciding<'a>(
        &'a self,
        path: &'a TreePath,
        is_directory: bool,
    ) -> Option<(Option<&'a [u8]>, &'a Compiled)> {
        let bytes = path.as_bytes();
        if let Some(rule) = self.ruled(&self.in_transfer_root(bytes), is_directory) {
            return Some((None, rule));
        }
        if self.ignores.is_empty() {
            return None;
        }
        let slashes = bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(slash, _)| slash);
        // From the innermost directory outwards.
        let directories =
            slashes.rev().filter_map(|slash| Some((bytes.get(..slash)?, bytes.get(slash + 1..)?)));
        directories.chain(std::iter::once((&b""[..], bytes))).find_map(|(directory, rest)| {
            let lines = self.ignores.get(directory)?;
            let named = Named::new(rest, is_directory);
            let line = lines.iter().rev().find(|line| line.pattern.matches(&named))?;
            Some((Some(directory), line))
        })
    }

    /// True if an entry is excluded by itself or by a directory above it.
    #[must_use]
    pub fn excludes_within(&self, path: &TreePath, is_directory: bool) -> bool {
        let parents = std::iter::successors(path.parent(), TreePath::parent);
        self.excludes(path, is_directory)
            || parents.into_iter().any(|parent| self.excludes(&parent, true))
            || self.excludes_tree()
    }

    /// True if the whole tree is excluded by its own name, where that counts.
    #[must_use]
    pub fn excludes_tree(&self) -> bool {
        !self.anchor.is_empty() && self.ruled(&self.anchor, true).is_some_and(|rule| !rule.include)
    }

    /// The first rule that matches a path of the transfer root.
    fn ruled(&self, path: &[u8], is_directory: bool) -> Option<&Compiled> {
        let named = Named::new(path, is_directory);
        self.rules.iter().find(|rule| rule.pattern.matches(&named))
    }

    fn in_transfer_root<'a>(&self, path: &'a [u8]) -> Cow<'a, [u8]> {
        if self.anchor.is_empty() { path.into() } else { [&self.anchor, &b"/"[..], path].concat().into() }
    }
}

/// Parses one line of an ignore file. `None` for blanks and comments.
fn parse_line(text: &[u8], line: usize) -> Option<Compiled> {
    // For git a line ends at a NUL.
    let text = text.split(|&byte| byte == 0).next()?;
    let text = without_trailing_spaces(text.strip_suffix(b"\r").unwrap_or(text));
    if text.starts_with(b"#") {
        return None;
    }
    let (include, pattern) = text.strip_prefix(b"!").map_or((false, text), |rest| (true, rest));
    let pattern = Pattern::new(pattern, Dialect::Gitignore)?;
    Some(Compiled { include, pattern, line, text: text.to_vec() })
}

/// Strips the spaces at the end of a line, except one that follows a `\`.
fn without_trailing_spaces(line: &[u8]) -> &[u8] {
    let Some(end) = line.iter().rposition(|&byte| byte != b' ') else { return &[] };
    let escapes =
        line.get(..=end).unwrap_or_default().iter().rev().take_while(|&&byte| byte == b'\\').count();
    line.get(..(end + 1 + escapes % 2).min(line.len())).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    fn filter(rules: &[&str], files: &[(&str, &str)]) -> Filter {
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| Rule { include: rule.starts_with('+'), pattern: rule.as_bytes()[2..].to_vec() })
            .collect();
        let mut filter = Filter::new(&rules);
        for (directory, text) in files {
            assert!(
                filter
                    .add(IgnoreFile { directory: directory.as_bytes().into(), text: text.as_bytes().into() })
            );
        }
        filter
    }

    #[test]
    fn without_other_protection_only_unentered_directories_stay() {
        let mut filter = Filter::of_unentered();
        for (directory, text) in [("", &b"*.o\n"[..]), ("m", UNENTERED), ("n", b"*\n")] {
            assert!(filter.add(IgnoreFile { directory: directory.into(), text: text.into() }));
        }
        let kept = ["a.o", "m/a", "m/b/c", "n/a"].map(|name| filter.excludes_within(&path(name), false));
        assert_eq!(kept, [false, true, true, false]);
        assert_eq!(filter.files().len(), 3, "they belong to the offer's digest");
    }

    #[test]
    fn first_matching_rule_wins() {
        let filter = filter(&["+ keep.o", "- *.o", "- tmp/"], &[]);
        assert!(filter.excludes(&path("d/a.o"), false));
        assert!(!filter.excludes(&path("d/keep.o"), false));
        assert!(filter.excludes(&path("tmp"), true));
        assert!(!filter.excludes(&path("tmp"), false));
    }

    #[test]
    fn nearest_ignore_file_and_its_last_line_win() {
        let filter =
            filter(&[], &[("", "# comment\n*.log\n/build\n\n!important.log\n"), ("d", "!*.log\nx.log\r\n")]);
        assert!(filter.excludes(&path("a.log"), false));
        assert!(!filter.excludes(&path("important.log"), false));
        assert!(!filter.excludes(&path("d/a.log"), false));
        assert!(filter.excludes(&path("d/x.log"), false));
        assert!(filter.excludes(&path("build"), true));
        assert!(!filter.excludes(&path("d/build"), true));
    }

    #[test]
    fn rules_of_the_command_line_come_before_ignore_files() {
        let filter = filter(&["+ a.log"], &[("", "*.log")]);
        assert!(!filter.excludes(&path("a.log"), false));
        assert!(filter.excludes(&path("b.log"), false));
    }

    #[test]
    fn reason_names_the_deciding_rule_and_its_origin() {
        let files = [("", "# comment\n\n*.log\n"), ("d", "!a.log\n/x y\r\n")];
        let filter = filter(&["- *.o", "+ keep"], &files);
        for (name, reason) in [
            ("d/a.o", Some("by=command-line rule=*.o")),
            ("keep", Some("by=command-line rule=keep")),
            ("a.log", Some("by=.ksyncignore:3 rule=*.log")),
            ("d/b.log", Some("by=.ksyncignore:3 rule=*.log")),
            ("d/a.log", Some("by=d/.ksyncignore:1 rule=!a.log")),
            ("d/x y", Some("by=d/.ksyncignore:2 rule=/x y")),
            ("other", None),
        ] {
            assert_eq!(filter.reason(Some(&path(name)), false).as_deref(), reason, "{name}");
        }
        let rule = Rule { include: false, pattern: b"/a/".to_vec() };
        let reason = Filter::anchored(&[rule], b"a").reason(None, true);
        assert_eq!(reason.as_deref(), Some("by=command-line rule=/a/"));
    }

    #[test]
    fn entry_in_an_excluded_directory_is_excluded() {
        let filter = filter(&[], &[("", "node_modules/")]);
        assert!(filter.excludes_within(&path("a/node_modules/b/c.js"), false));
        assert!(!filter.excludes_within(&path("a/modules/b/c.js"), false));
    }

    #[test]
    fn rules_see_the_path_in_the_transfer_root() {
        let rule = |pattern: &[u8]| Rule { include: false, pattern: pattern.to_vec() };
        let excludes = |pattern: &[u8], name: &str| {
            Filter::anchored(&[rule(pattern)], b"a").excludes_within(&path(name), false)
        };
        assert!(excludes(b"/a/foo", "foo") && excludes(b"a/foo", "foo") && excludes(b"foo", "b/foo"));
        assert!(!excludes(b"/foo", "foo") && !excludes(b"/a/foo", "b/foo"));
        assert!(excludes(b"a", "foo") && excludes(b"/a/", "foo") && !excludes(b"b", "foo"));
        assert!(Filter::anchored(&[rule(b"a/")], b"a").excludes_tree());
        assert!(!Filter::new(&[rule(b"*")]).excludes_tree());
        let mut ignoring = Filter::anchored(&[], b"a");
        assert!(ignoring.add(IgnoreFile { directory: Vec::new(), text: b"/foo".to_vec() }));
        assert!(ignoring.excludes(&path("foo"), false) && !ignoring.excludes(&path("a/foo"), false));
    }

    #[test]
    fn lines_of_ignore_files_are_read_as_git_reads_them() {
        for (text, excluded, kept) in [
            (&b"\xef\xbb\xbffoo"[..], "foo", "\u{feff}foo"),
            (b"foo \t", "foo \t", "foo"),
            (b"foo  \r\n", "foo", "foo  "),
            (b"foo\\ ", "foo ", "foo"),
            (b"foo\\  ", "foo ", "foo\\"),
            (b"foo\\\\ ", "foo\\", "foo\\ "),
            (b"\\#x", "#x", "\\#x"),
            (b"\\!x", "!x", "\\!x"),
            (b"x\n#x\n  \n!\n", "x", "#x"),
            (b"x\0y", "x", "y"),
            (b"[x\ny\\\nz", "z", "y\\"),
            (b"[x\nz", "z", "[x"),
        ] {
            let mut filter = Filter::default();
            assert!(filter.add(IgnoreFile { directory: Vec::new(), text: text.to_vec() }));
            assert!(filter.excludes(&path(excluded), false), "{} {excluded}", text.escape_ascii());
            assert!(!filter.excludes(&path(kept), false), "{} {kept}", text.escape_ascii());
        }
    }

    #[test]
    fn oversized_ignore_file_is_not_accepted() {
        let text = vec![b'a'; IGNORE_BYTES_MAX + 1];
        assert!(!Filter::default().add(IgnoreFile { directory: Vec::new(), text }));
    }
}
