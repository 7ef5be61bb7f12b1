//! Filters: they decide which entries take part, by the rules of the command line, by merge files
//! and by ignore files.
//!
//! The rules of the command line come first, and the first match wins, as with rsync. Among them
//! stand the rules of merge files, in the place of their `dir-merge` rule. If none matches, the
//! nearest ignore file with a matching line decides, and its last matching line wins, as with git.
//! An excluded directory excludes everything below it.
//!
//! Rules see an entry's path in the transfer root, as rsync's do. If several SOURCEs go into DEST
//! by name, that name is the path's first component. Ignore files see paths below their own
//! directory.
//!
//! A rule applies to the sender, to the receiver or to both: the one hides entries, the other
//! protects them from deletion. Each side reads the merge files of its own tree. Ignore files
//! belong to the source, and the offer brings them to the receiver.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tree::path::{TreePath, escape};
use crate::tree::pattern::Named;
pub use crate::tree::rule::Rule;
use crate::tree::rule::bits;
use compiled::{Base, Compiled, Seen};
pub use lines::BYTE_ORDER_MARK;
use lines::Line;
pub use merges::{IGNORE_BYTES_MAX, IGNORE_TOTAL_BYTES_MAX, MERGES_MAX, MergeError, cvs_rules};
use merges::{Item, List, Merges, Read, ReadAbove, Setting, View, cleaned};

mod compiled;
mod lines;
mod merges;

/// The name of ignore files.
pub const IGNORE_FILE: &str = ".ksyncignore";

/// The name of git's ignore files.
pub const GIT_IGNORE_FILE: &str = ".gitignore";

/// Most rules of a command line, and most ignore files of a tree.
pub const RULES_MAX: usize = 10_000;

/// Most bytes of a command line's patterns: they travel in one frame, and each name may be compared
/// with each of them.
pub const RULES_BYTES_MAX: usize = 1 << 20;

/// The text of an ignore file that stands for a directory that the sender did not enter: the
/// receiver keeps everything below it. The first line tells it from a user's file.
pub const UNENTERED: &[u8] = b"# Not entered by ksync.\n*\n";

/// An ignore file as found in the tree. A directory's `.gitignore` and `.ksyncignore` are one file,
/// in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoreFile {
    /// Bytes of the directory that holds it; empty for the root.
    #[serde(with = "serde_bytes")]
    pub directory: Vec<u8>,
    /// The file's text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// The side whose tree a filter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The filter hides entries of the source.
    #[default]
    Sender,
    /// The filter protects entries of the destination.
    Receiver,
}

/// Settings of a filter.
#[derive(Debug, Clone, Copy, Default)]
pub struct FilterSettings {
    /// The side.
    pub side: Side,
    /// Excluded entries are deleted: rules without a side apply to the sender alone, and ignore
    /// files have no effect on the receiver, except [`UNENTERED`].
    pub delete_excluded: bool,
    /// `.gitignore` files count.
    pub gitignore: bool,
    /// The rules of merge files end at a NUL, and not with their line.
    pub nul_ended: bool,
}

/// All rules of one run.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    settings: FilterSettings,
    items: Vec<Item>,
    /// True if sender and receiver may disagree about an entry.
    is_sided: bool,
    merges: Arc<Merges>,
    /// The tree's own path in the transfer root; empty if it is the transfer root.
    anchor: Vec<u8>,
    /// The tree's absolute path, without the first slash; empty if it is unknown.
    absolute: Vec<u8>,
    ignores: BTreeMap<Vec<u8>, Vec<Line>>,
    files: Vec<IgnoreFile>,
    files_bytes: usize,
}

/// The line that decides about an entry.
enum Deciding<'a> {
    Rule(&'a Compiled),
    /// A line of the ignore file in this directory.
    Line(&'a [u8], &'a Line),
}

impl Deciding<'_> {
    fn includes(&self) -> bool {
        match self {
            Self::Rule(rule) => rule.includes(),
            Self::Line(_, line) => line.include,
        }
    }
}

impl Filter {
    /// The sender's filter for a tree that is the transfer root. Rules with empty patterns are
    /// skipped.
    #[must_use]
    pub fn new(rules: &[Rule]) -> Self {
        Self::anchored(rules, b"")
    }

    /// The sender's filter for the tree at `anchor` in the transfer root.
    #[must_use]
    pub fn anchored(rules: &[Rule], anchor: &[u8]) -> Self {
        Self::with(rules, anchor, FilterSettings::default())
    }

    /// A filter of the command line's rules for the tree at `anchor` in the transfer root.
    #[must_use]
    pub fn with(rules: &[Rule], anchor: &[u8], settings: FilterSettings) -> Self {
        let mut filter = Self { settings, anchor: anchor.to_vec(), ..Self::default() };
        let mut merges = Merges::default();
        for rule in rules.iter().take(RULES_MAX) {
            if rule.has(bits::DIRECTORY_MERGE) {
                filter.is_sided = true;
                filter.items.extend(merges.add(rule).map(Item::Merge));
                continue;
            }
            let mut add = |mut rule: Rule| {
                filter.is_sided |= rule.bits & (bits::SIDES | bits::PERISHABLE) != 0;
                filter.setting().sided(&mut rule);
                filter.items.extend(Compiled::new(&rule, Base::Transfer, None).map(Item::Rule));
            };
            if rule.has(bits::CVS) { cvs_rules(rule.bits).for_each(add) } else { add(rule.clone()) }
        }
        filter.merges = Arc::new(merges);
        filter
    }

    fn setting(&self) -> Setting {
        let FilterSettings { delete_excluded, nul_ended, .. } = self.settings;
        Setting { delete_excluded, nul_ended }
    }

    /// True if the receiver keeps nothing because of ignore files.
    fn is_of_unentered(&self) -> bool {
        self.settings.delete_excluded && self.settings.side == Side::Receiver
    }

    /// Takes in an ignore file. Returns `false` and ignores the file if it is longer than
    /// [`IGNORE_BYTES_MAX`] allows, or exceeds the limit of all ignore files together.
    pub fn add(&mut self, file: IgnoreFile) -> bool {
        self.files_bytes += file.text.len();
        // A directory's two files are one, with a line's end between them.
        let length_max = if self.settings.gitignore { 2 * IGNORE_BYTES_MAX + 1 } else { IGNORE_BYTES_MAX };
        if file.text.len() > length_max
            || self.files_bytes > IGNORE_TOTAL_BYTES_MAX
            || self.files.len() == RULES_MAX
        {
            return false;
        }
        if !self.is_of_unentered() || file.text == UNENTERED {
            self.ignores.insert(file.directory.clone(), lines::lines(&file.text));
        }
        self.files.push(file);
        true
    }

    /// The names of ignore files that count, the weaker ones first.
    pub fn ignore_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        let git = self.settings.gitignore.then_some(GIT_IGNORE_FILE);
        git.into_iter().chain([IGNORE_FILE])
    }

    /// The accepted ignore files, to be sent to a peer.
    #[must_use]
    pub fn files(&self) -> &[IgnoreFile] {
        &self.files
    }

    /// True if directories may have merge files.
    #[must_use]
    pub fn has_merges(&self) -> bool {
        !self.merges.is_empty()
    }

    /// True if a file of this name may hold rules.
    #[must_use]
    pub fn is_rule_file(&self, name: &[u8]) -> bool {
        self.ignore_names().any(|ignore| ignore.as_bytes() == name) || self.merges.has_name(name)
    }

    /// Begins with the tree at an absolute path. Reads the merge files above it that the rules
    /// name.
    ///
    /// # Errors
    /// A file cannot be read, or holds no rules.
    pub fn begin<E>(&mut self, root: &Path, read: ReadAbove<'_, E>) -> Result<(), MergeError<E>> {
        use std::os::unix::ffi::OsStrExt;
        let (root, setting) = (cleaned(root), self.setting());
        let bytes = root.as_os_str().as_bytes();
        self.absolute = bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec();
        if self.has_merges() {
            Arc::make_mut(&mut self.merges).enter_above(&root, setting, read)
        } else {
            Ok(())
        }
    }

    /// Reads the merge files of a directory, whose parents were read before.
    ///
    /// # Errors
    /// A file cannot be read, or holds no rules.
    pub fn enter<E>(&mut self, directory: Option<&TreePath>, read: Read<'_, E>) -> Result<(), MergeError<E>> {
        let setting = self.setting();
        if self.has_merges() {
            Arc::make_mut(&mut self.merges).enter(directory, setting, read)
        } else {
            Ok(())
        }
    }

    /// Takes over the rules and merge files of a filter of the same tree, and keeps its own ignore
    /// files.
    pub fn take_rules(&mut self, other: &Self) {
        self.items.clone_from(&other.items);
        self.merges = Arc::clone(&other.merges);
        self.absolute.clone_from(&other.absolute);
    }

    /// True if sender and receiver may disagree about an entry.
    #[must_use]
    pub fn is_sided(&self) -> bool {
        self.is_sided
    }

    /// True if an entry is excluded, given that the directories above it are not.
    #[must_use]
    pub fn excludes(&self, path: &TreePath, is_directory: bool) -> bool {
        self.deciding(path, is_directory).is_some_and(|deciding| !deciding.includes())
    }

    /// True if an entry is protected that lies in a directory that is being deleted. Perishable
    /// rules do not count there.
    #[must_use]
    pub fn protects_in_deleted(&self, path: &TreePath, is_directory: bool) -> bool {
        let full = self.in_transfer_root(path.as_bytes());
        match self.first(&self.seen(path.as_bytes(), &full, is_directory), bits::PERISHABLE) {
            Some(rule) => !rule.includes(),
            None => self.line(path, is_directory).is_some_and(|(_, line)| !line.include),
        }
    }

    /// True if the sender and the receiver both exclude an entry, wherever it is: by a rule of the
    /// command line that stands before all that only one of them knows.
    #[must_use]
    pub fn closes(&self, path: &TreePath, is_directory: bool) -> bool {
        if !self.is_sided {
            return self.excludes(path, is_directory);
        }
        let full = self.in_transfer_root(path.as_bytes());
        let seen = self.seen(path.as_bytes(), &full, is_directory);
        let first = self.items.iter().find_map(|item| match item {
            Item::Rule(rule) => rule.matches(&seen).then_some(Some(rule)),
            Item::Merge(_) => Some(None),
        });
        let closes = |rule: &Compiled| rule.bits & (bits::SIDES | bits::PERISHABLE | bits::INCLUDE) == 0;
        first.flatten().is_some_and(closes)
    }

    /// The rule that decides about an entry, and its origin, for the log. The entry is in the tree,
    /// or it is the tree itself (`None`).
    #[must_use]
    pub fn reason(&self, path: Option<&TreePath>, is_directory: bool) -> Option<String> {
        let deciding = match path {
            Some(path) => self.deciding(path, is_directory)?,
            None => Deciding::Rule(self.of_tree()?),
        };
        Some(match deciding {
            Deciding::Rule(rule) => {
                let text = escape(&rule.text);
                match &rule.origin {
                    Some((file, line)) => format!("by={}:{line} rule={text}", escape(file)),
                    None => format!("by=command-line rule={text}"),
                }
            }
            Deciding::Line(directory, line) => {
                let file = if self.settings.gitignore { "ignore-file" } else { IGNORE_FILE };
                let slash = if directory.is_empty() { "" } else { "/" };
                let text = escape(&line.text);
                format!("by={}{slash}{file}:{} rule={text}", escape(directory), line.number)
            }
        })
    }

    /// The line that decides about an entry.
    fn deciding<'a>(&'a self, path: &'a TreePath, is_directory: bool) -> Option<Deciding<'a>> {
        // A scan asks about each entry, mostly without any rules.
        if !self.items.is_empty() {
            let full = self.in_transfer_root(path.as_bytes());
            if let Some(rule) = self.first(&self.seen(path.as_bytes(), &full, is_directory), 0) {
                return Some(Deciding::Rule(rule));
            }
        }
        self.line(path, is_directory).map(|(directory, line)| Deciding::Line(directory, line))
    }

    /// The line of an ignore file that decides about an entry, and the file's directory.
    fn line<'a>(&'a self, path: &'a TreePath, is_directory: bool) -> Option<(&'a [u8], &'a Line)> {
        if self.ignores.is_empty() {
            return None;
        }
        let bytes = path.as_bytes();
        let slashes = bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(slash, _)| slash);
        // From the innermost directory outwards.
        let directories =
            slashes.rev().filter_map(|slash| Some((bytes.get(..slash)?, bytes.get(slash + 1..)?)));
        directories.chain(std::iter::once((&b""[..], bytes))).find_map(|(directory, rest)| {
            let lines = self.ignores.get(directory)?;
            let named = Named::new(rest, is_directory);
            let line = lines.iter().rev().find(|line| line.pattern.matches(&named))?;
            Some((directory, line))
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
        self.of_tree().is_some_and(|rule| !rule.includes())
    }

    /// The rule about the tree itself, where its own name counts.
    fn of_tree(&self) -> Option<&Compiled> {
        if self.anchor.is_empty() {
            return None;
        }
        let seen = self.seen(b"", &self.anchor, true);
        // Merge files, that of the directory above the tree too, apply to what is in the tree.
        find(&self.items, None, &|rule| self.counts(rule) && rule.matches(&seen))
    }

    /// The first rule of this side that matches, except those with any of `ignored` bits.
    fn first<'a>(&'a self, seen: &Seen<'_>, ignored: u16) -> Option<&'a Compiled> {
        let view = self.has_merges().then(|| self.merges.of(directory_of(seen.path)));
        find(&self.items, view, &|rule| rule.bits & ignored == 0 && self.counts(rule) && rule.matches(seen))
    }

    /// True if a rule applies to this side.
    fn counts(&self, rule: &Compiled) -> bool {
        let other = match self.settings.side {
            Side::Sender => bits::RECEIVER,
            Side::Receiver => bits::SENDER,
        };
        rule.bits & bits::SIDES != other
    }

    /// An entry of the tree; `full` is its path in the transfer root.
    fn seen<'a>(&'a self, path: &'a [u8], full: &'a [u8], is_directory: bool) -> Seen<'a> {
        Seen { path, is_directory, transfer: Named::new(full, is_directory), absolute: &self.absolute }
    }

    fn in_transfer_root<'a>(&self, path: &'a [u8]) -> Cow<'a, [u8]> {
        if self.anchor.is_empty() { path.into() } else { [&self.anchor, &b"/"[..], path].concat().into() }
    }
}

/// The directory of an entry; empty for the root.
fn directory_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').and_then(|slash| path.get(..slash)).unwrap_or_default()
}

/// The first rule of a list that matches.
fn find<'a>(
    items: &'a [Item],
    view: Option<View<'a>>,
    matches: &dyn Fn(&Compiled) -> bool,
) -> Option<&'a Compiled> {
    items.iter().find_map(|item| match item {
        Item::Rule(rule) => matches(rule).then_some(rule),
        Item::Merge(id) => {
            let lists = std::iter::successors(view?.list(*id), |list| list.inherited.as_deref());
            lists.into_iter().find_map(|list: &List| find(&list.items, view, matches))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    fn filter(rules: &[&str], files: &[(&str, &str)]) -> Filter {
        let rules: Vec<_> =
            rules.iter().map(|rule| Rule::new(rule.starts_with('+'), &rule.as_bytes()[2..])).collect();
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
        let settings =
            FilterSettings { side: Side::Receiver, delete_excluded: true, ..FilterSettings::default() };
        let mut filter = Filter::with(&[], b"", settings);
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
        let rule = Rule::new(false, b"/a/");
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
        let rule = |pattern: &[u8]| Rule::new(false, pattern);
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
