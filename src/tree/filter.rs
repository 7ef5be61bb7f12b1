//! Which entries take part: `--exclude` and `--include` rules, then what `.ksyncignore` files say.
//!
//! The rules of the command line go first and the first match wins, as with rsync; where none matches, the
//! nearest `.ksyncignore` with an opinion decides, its last matching line first, as with git. An excluded
//! directory takes everything below it along.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::path::TreePath;
use crate::tree::pattern::{Dialect, Pattern};

/// The name of ignore files.
pub const IGNORE_FILE: &str = ".ksyncignore";

/// Longest ignore file that is honoured, in bytes.
pub const IGNORE_BYTES_MAX: usize = 64 << 10;

/// Most bytes of all ignore files of a tree.
pub const IGNORE_TOTAL_BYTES_MAX: usize = 4 << 20;

/// Most rules of a command line, and most ignore files of a tree.
pub const RULES_MAX: usize = 10_000;

/// A rule of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether what matches takes part.
    pub include: bool,
    /// The pattern in rsync's dialect.
    #[serde(with = "serde_bytes")]
    pub pattern: Vec<u8>,
}

/// An ignore file as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoreFile {
    /// Bytes of the directory that holds it; empty for the root.
    #[serde(with = "serde_bytes")]
    pub directory: Vec<u8>,
    /// Its text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// All rules of one run.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    rules: Vec<(bool, Pattern)>,
    ignores: BTreeMap<Vec<u8>, Vec<(bool, Pattern)>>,
    files: Vec<IgnoreFile>,
    files_bytes: usize,
}

impl Filter {
    /// A filter of the command line's rules. Rules with empty patterns are left out.
    #[must_use]
    pub fn new(rules: &[Rule]) -> Self {
        let compiled = rules
            .iter()
            .take(RULES_MAX)
            .filter_map(|rule| Some((rule.include, Pattern::new(&rule.pattern, Dialect::Rsync)?)));
        Self { rules: compiled.collect(), ..Self::default() }
    }

    /// Takes in an ignore file. What is longer than [`IGNORE_BYTES_MAX`], or more than all may have together, is not
    /// honoured: then the answer is `false`.
    pub fn add(&mut self, file: IgnoreFile) -> bool {
        self.files_bytes += file.text.len();
        if file.text.len() > IGNORE_BYTES_MAX
            || self.files_bytes > IGNORE_TOTAL_BYTES_MAX
            || self.files.len() == RULES_MAX
        {
            return false;
        }
        let lines = file.text.split(|&byte| byte == b'\n').filter_map(parse_line);
        self.ignores.insert(file.directory.clone(), lines.collect());
        self.files.push(file);
        true
    }

    /// The ignore files that were taken in, to be passed on to a peer.
    #[must_use]
    pub fn files(&self) -> &[IgnoreFile] {
        &self.files
    }

    /// Whether an entry is excluded, given that the directories above it are not.
    #[must_use]
    pub fn excludes(&self, path: &TreePath, is_directory: bool) -> bool {
        let bytes = path.as_bytes();
        if let Some((include, _)) =
            self.rules.iter().find(|(_, pattern)| pattern.matches(bytes, is_directory))
        {
            return !include;
        }
        if self.ignores.is_empty() {
            return false;
        }
        let slashes = bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(slash, _)| slash);
        // From the innermost directory outwards.
        let directories =
            slashes.rev().filter_map(|slash| Some((bytes.get(..slash)?, bytes.get(slash + 1..)?)));
        directories
            .chain(std::iter::once((&b""[..], bytes)))
            .find_map(|(directory, rest)| {
                let lines = self.ignores.get(directory)?;
                lines
                    .iter()
                    .rev()
                    .find(|(_, pattern)| pattern.matches(rest, is_directory))
                    .map(|(include, _)| !include)
            })
            .unwrap_or(false)
    }

    /// Whether an entry is excluded by itself or by a directory above it.
    #[must_use]
    pub fn excludes_within(&self, path: &TreePath, is_directory: bool) -> bool {
        let parents = std::iter::successors(path.parent(), TreePath::parent);
        self.excludes(path, is_directory) || parents.into_iter().any(|parent| self.excludes(&parent, true))
    }
}

/// One line of an ignore file: whether it includes, and the pattern; `None` for blanks and comments.
fn parse_line(line: &[u8]) -> Option<(bool, Pattern)> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut end = line.len();
    while line.get(..end).is_some_and(|head| head.ends_with(b" ") && !head.ends_with(b"\\ ")) {
        end -= 1;
    }
    let line = line.get(..end)?;
    if line.starts_with(b"#") {
        return None;
    }
    let (include, text) = line.strip_prefix(b"!").map_or((false, line), |rest| (true, rest));
    Some((include, Pattern::new(text, Dialect::Gitignore)?))
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
    fn the_first_matching_rule_wins() {
        let filter = filter(&["+ keep.o", "- *.o", "- tmp/"], &[]);
        assert!(filter.excludes(&path("d/a.o"), false));
        assert!(!filter.excludes(&path("d/keep.o"), false));
        assert!(filter.excludes(&path("tmp"), true));
        assert!(!filter.excludes(&path("tmp"), false));
    }

    #[test]
    fn the_nearest_ignore_file_and_its_last_line_win() {
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
    fn what_lies_in_an_excluded_directory_is_excluded() {
        let filter = filter(&[], &[("", "node_modules/")]);
        assert!(filter.excludes_within(&path("a/node_modules/b/c.js"), false));
        assert!(!filter.excludes_within(&path("a/modules/b/c.js"), false));
    }

    #[test]
    fn an_oversized_ignore_file_is_not_honoured() {
        let text = vec![b'a'; IGNORE_BYTES_MAX + 1];
        assert!(!Filter::default().add(IgnoreFile { directory: Vec::new(), text }));
    }
}
