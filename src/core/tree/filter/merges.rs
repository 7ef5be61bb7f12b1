//! The merge files of a tree's directories, as rsync reads them.
//!
//! Each `dir-merge` rule has a list of rules that changes from directory to directory: the rules of
//! the directory's own merge file, and behind them those that it inherits. A merge file may hold
//! `dir-merge` rules of its own, which apply to its directory and to those below.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::tree::filter::compiled::{Base, Compiled};
use crate::tree::filter::lines::BYTE_ORDER_MARK;
use crate::tree::path::{TreePath, escape};
use crate::tree::rule::{CVS_PATTERNS, DEPTH_MAX, Parsed, Rule, RuleError, bits, parse, texts};

/// Longest ignore or merge file that is accepted, in bytes.
pub const IGNORE_BYTES_MAX: usize = 64 << 10;

/// Most bytes of all ignore files of a tree, and of all its merge files. Each name may be compared
/// with each of their lines.
pub const IGNORE_TOTAL_BYTES_MAX: usize = 1 << 20;

/// Most merge files, and most directories with one.
const FILES_MAX: usize = 10_000;

/// Most `dir-merge` rules that apply to one directory, those in merge files among them.
pub const MERGES_MAX: usize = 64;

/// A place in a list of rules.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Rule(Compiled),
    /// The rules of this `dir-merge` rule, in the current directory.
    Merge(u32),
}

/// Rules, and behind them those that the directory inherits.
#[derive(Debug)]
pub(super) struct List {
    pub(super) items: Vec<Item>,
    pub(super) inherited: Option<Arc<List>>,
}

/// A `dir-merge` rule in a directory.
#[derive(Debug, Clone)]
struct Active {
    id: u32,
    rule: Arc<Rule>,
    list: Option<Arc<List>>,
}

/// The `dir-merge` rules of one directory.
#[derive(Debug, Clone, Default)]
struct Level {
    active: Vec<Active>,
}

/// All merge files of a tree.
#[derive(Debug, Clone, Default)]
pub(super) struct Merges {
    /// The rules from the command line, with what the directories above the tree hold.
    base: Level,
    /// The directories that have a merge file.
    levels: BTreeMap<Vec<u8>, Level>,
    /// The names of all merge files.
    names: BTreeSet<Vec<u8>>,
    next_id: u32,
    bytes: usize,
    files: usize,
}

/// A failure to take in a merge file.
#[derive(Debug)]
pub enum MergeError<E> {
    /// The file cannot be read.
    Read(E),
    /// A line of the file, by its number, is no rule; the path is that of the file.
    Rule(Vec<u8>, usize, RuleError),
}

/// Settings for all merge files of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Setting {
    /// Rules without a side apply to the sender alone.
    pub(super) delete_excluded: bool,
    /// Rules end at a NUL, and not with their line.
    pub(super) nul_ended: bool,
}

impl Setting {
    /// The bits of a rule, where each has its sides.
    pub(super) fn sided(self, rule: &mut Rule) {
        if self.delete_excluded && rule.bits & (bits::SIDES | bits::ANY_MERGE) == 0 {
            rule.bits |= bits::SENDER;
        }
    }
}

/// The merge files that apply to the entries of one directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    level: &'a Level,
    /// True if the level is that of the directory itself, and not one above.
    is_own: bool,
}

impl<'a> View<'a> {
    /// The rules of a `dir-merge` rule.
    pub(super) fn list(&self, id: u32) -> Option<&'a List> {
        let active = self.level.active.iter().find(|active| active.id == id)?;
        let is_passed_on = self.is_own || !active.rule.has(bits::NO_INHERIT);
        active.list.as_deref().filter(|_| is_passed_on)
    }
}

/// Reads a merge file by its path in the tree; `None` if it does not exist.
pub(super) type Read<'a, E> = &'a mut dyn FnMut(&TreePath) -> Result<Option<Vec<u8>>, E>;

/// Reads a merge file above the tree by its absolute path; `None` if it does not exist.
pub(super) type ReadAbove<'a, E> = &'a mut dyn FnMut(&Path) -> Result<Option<Vec<u8>>, E>;

/// A merge file that is being read, or the files in it.
struct Reading<'a> {
    /// The path of the file, as it is shown.
    shown: Arc<[u8]>,
    /// The directory that its rules are anchored at.
    base: &'a Base,
    /// The directory that holds the file, if it is above the tree.
    above: Option<&'a Path>,
    depth: usize,
}

/// Rules that a merge file yields.
#[derive(Default)]
struct Yielded {
    items: Vec<Item>,
    /// True if the file drops what it would inherit.
    is_cleared: bool,
}

impl Merges {
    /// Adds a `dir-merge` rule of the command line. `None` if one with that name is there.
    pub(super) fn add(&mut self, rule: &Rule) -> Option<u32> {
        let mut base = std::mem::take(&mut self.base);
        let id = self.activate(&mut base, rule);
        self.base = base;
        id
    }

    fn activate(&mut self, level: &mut Level, rule: &Rule) -> Option<u32> {
        let name = rule.merge_name();
        if level.active.iter().any(|active| active.rule.merge_name() == name) {
            return None;
        }
        self.names.insert(name.to_vec());
        self.next_id += 1;
        level.active.push(Active { id: self.next_id, rule: Arc::new(rule.clone()), list: None });
        Some(self.next_id)
    }

    /// True if there are no `dir-merge` rules.
    pub(super) fn is_empty(&self) -> bool {
        self.base.active.is_empty()
    }

    /// True if a file with this name may hold rules.
    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.names.contains(name)
    }

    /// The merge files for the entries of a directory, which is empty for the root.
    pub(super) fn of(&self, directory: &[u8]) -> View<'_> {
        if let Some(level) = self.levels.get(directory) {
            return View { level, is_own: true };
        }
        self.above(directory)
    }

    /// The same, without the directory's own.
    fn above(&self, directory: &[u8]) -> View<'_> {
        let slashes = directory.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'/');
        let parents = slashes.filter_map(|(at, _)| directory.get(..at));
        let root = (!directory.is_empty()).then_some(&b""[..]);
        let level = parents.chain(root).find_map(|parent| self.levels.get(parent));
        View { level: level.unwrap_or(&self.base), is_own: false }
    }

    /// Reads the merge files of a directory, whose parents were read before.
    pub(super) fn enter<E>(
        &mut self,
        directory: Option<&TreePath>,
        setting: Setting,
        read: Read<'_, E>,
    ) -> Result<(), MergeError<E>> {
        let bytes = directory.map_or(&b""[..], |path| path.as_bytes());
        let base = Base::Directory(bytes.into());
        let view = self.above(bytes);
        let mut level = view.level.clone();
        level.active.iter_mut().filter(|active| active.rule.has(bits::NO_INHERIT)).for_each(|active| {
            active.list = None;
        });
        let mut has_file = false;
        // A merge file may add `dir-merge` rules.
        let mut at = 0;
        while let Some(active) = level.active.get(at).cloned() {
            at += 1;
            let name = active.rule.merge_name();
            let path = match directory {
                Some(directory) => directory.join(name),
                None => TreePath::new(name),
            };
            // A name that no entry of a tree can have.
            let Ok(path) = path else { continue };
            let Some(text) = read(&path).map_err(MergeError::Read)? else { continue };
            let mut yielded = Yielded::default();
            let reading = Reading { shown: path.as_bytes().into(), base: &base, above: None, depth: 0 };
            let mut nested = |rule: &Rule, merges: &mut Self| merges.nested(rule, bytes, read);
            self.take(&text, &active.rule, &reading, setting, &mut level, &mut yielded, &mut nested)?;
            Self::put(&mut level, active.id, yielded);
            has_file = true;
        }
        if has_file {
            if self.levels.len() == FILES_MAX {
                let told = directory.map_or(&b"."[..], |path| path.as_bytes());
                return Err(MergeError::Rule(told.to_vec(), 0, RuleError::Limit));
            }
            self.levels.insert(bytes.to_vec(), level);
        }
        Ok(())
    }

    /// Reads the merge files of the directories above the tree that the `dir-merge` rules name.
    /// `root` is the tree's absolute path.
    pub(super) fn enter_above<E>(
        &mut self,
        root: &Path,
        setting: Setting,
        read: ReadAbove<'_, E>,
    ) -> Result<(), MergeError<E>> {
        let mut level = std::mem::take(&mut self.base);
        let mut at = 0;
        while let Some(active) = level.active.get(at).cloned() {
            at += 1;
            let Some(first) = first_directory(&active.rule, root) else { continue };
            // From the outermost directory inwards.
            let mut above: Vec<&Path> =
                root.ancestors().skip(1).take_while(|above| above.starts_with(&first)).collect();
            above.reverse();
            for directory in above {
                let path = directory.join(OsStr::from_bytes(active.rule.merge_name()));
                let Some(text) = read(&path).map_err(MergeError::Read)? else { continue };
                let tree = root.strip_prefix(directory).unwrap_or(root);
                let base = Base::Above(tree.as_os_str().as_bytes().into());
                let shown: Arc<[u8]> = path.as_os_str().as_bytes().into();
                let reading = Reading { shown, base: &base, above: Some(directory), depth: 0 };
                let mut yielded = Yielded::default();
                let mut nested = |rule: &Rule, _: &mut Self| {
                    let path = directory.join(OsStr::from_bytes(&rule.pattern));
                    let shown = || escape(&rule.pattern).to_string();
                    let text = read(&path).map_err(Ok)?;
                    let text = text.ok_or_else(|| Err(RuleError::Missing(shown())))?;
                    Ok((path.as_os_str().as_bytes().into(), text))
                };
                self.take(&text, &active.rule, &reading, setting, &mut level, &mut yielded, &mut nested)?;
                Self::put(&mut level, active.id, yielded);
            }
        }
        self.base = level;
        Ok(())
    }

    /// Puts rules before those that the directory inherits.
    fn put(level: &mut Level, id: u32, yielded: Yielded) {
        if let Some(active) = level.active.iter_mut().find(|active| active.id == id) {
            let inherited = active.list.take().filter(|_| !yielded.is_cleared);
            active.list = Some(Arc::new(List { items: yielded.items, inherited }));
        }
    }

    /// Reads the file of a `merge` rule that stands in a merge file of `directory`.
    fn nested<E>(&mut self, rule: &Rule, directory: &[u8], read: Read<'_, E>) -> Nested<E> {
        let shown = || escape(&rule.pattern).to_string();
        // As rsync does: a name without a slash is in the root, and any other is relative.
        let from = if rule.pattern.contains(&b'/') { directory } else { b"" };
        let path = within(from, &rule.pattern).and_then(|path| TreePath::new(path).ok());
        let path = path.ok_or_else(|| Err(RuleError::Outside(shown())))?;
        self.names.insert(path.name().to_vec());
        let text = read(&path).map_err(Ok)?.ok_or_else(|| Err(RuleError::Missing(shown())))?;
        Ok((path.as_bytes().into(), text))
    }

    /// Takes in the text of a merge file.
    #[expect(clippy::too_many_arguments, reason = "each is another kind of state")]
    fn take<E>(
        &mut self,
        text: &[u8],
        of: &Rule,
        reading: &Reading<'_>,
        setting: Setting,
        level: &mut Level,
        yielded: &mut Yielded,
        nested: &mut dyn FnMut(&Rule, &mut Self) -> Nested<E>,
    ) -> Result<(), MergeError<E>> {
        let fail = |line, error| MergeError::Rule(reading.shown.to_vec(), line, error);
        self.bytes += text.len();
        self.files += 1;
        if text.len() > IGNORE_BYTES_MAX || self.bytes > IGNORE_TOTAL_BYTES_MAX || self.files > FILES_MAX {
            return Err(fail(0, RuleError::Limit));
        }
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        for (line, text) in texts(text, of.bits, setting.nul_ended) {
            let mut rule = match parse(text, of.bits).map_err(|error| fail(line, error))? {
                Parsed::Rule(rule) => rule,
                Parsed::Clear => {
                    let gone = yielded.items.drain(..).filter_map(|item| match item {
                        Item::Merge(id) => Some(id),
                        Item::Rule(_) => None,
                    });
                    let gone: Vec<u32> = gone.collect();
                    level.active.retain(|active| !gone.contains(&active.id));
                    yielded.is_cleared = true;
                    continue;
                }
            };
            let origin = || Some((Arc::clone(&reading.shown), line));
            if rule.has(bits::EXCLUDE_SELF) {
                rule.bits &= !bits::EXCLUDE_SELF;
                let own = Rule::new(false, rule.merge_name());
                yielded.items.extend(Compiled::new(&own, Base::Transfer, origin()).map(Item::Rule));
            }
            if rule.has(bits::DIRECTORY_MERGE) {
                // Only the command line may name directories.
                if rule.pattern.contains(&b'/') {
                    return Err(fail(line, RuleError::Outside(escape(text).to_string())));
                }
                if level.active.len() == MERGES_MAX {
                    return Err(fail(line, RuleError::Limit));
                }
                if let Some(above) = reading.above {
                    // Each directory from here down to the tree may have this file, too.
                    rule.pattern = above.join(OsStr::from_bytes(&rule.pattern)).into_os_string().into_vec();
                }
                yielded.items.extend(self.activate(level, &rule).map(Item::Merge));
            } else if rule.has(bits::MERGE) {
                if reading.depth == DEPTH_MAX {
                    return Err(fail(line, RuleError::Deep(escape(text).to_string())));
                }
                let (shown, inner) = nested(&rule, self).map_err(|error| match error {
                    Ok(error) => MergeError::Read(error),
                    Err(error) => fail(line, error),
                })?;
                let inner_reading = Reading { shown, depth: reading.depth + 1, ..*reading };
                self.take(&inner, &rule, &inner_reading, setting, level, yielded, nested)?;
            } else if rule.has(bits::CVS) {
                let rules = cvs_rules(rule.bits).map(|mut rule| {
                    setting.sided(&mut rule);
                    rule
                });
                let compiled = rules.filter_map(|rule| Compiled::new(&rule, Base::Transfer, origin()));
                yielded.items.extend(compiled.map(Item::Rule));
            } else {
                setting.sided(&mut rule);
                let compiled = Compiled::new(&rule, reading.base.clone(), origin());
                yielded.items.extend(compiled.map(Item::Rule));
            }
        }
        Ok(())
    }
}

/// A file that a merge file names: its path as shown, and its text. A failure to read it, or a rule
/// that does not hold.
type Nested<E> = Result<(Arc<[u8]>, Vec<u8>), Result<E, RuleError>>;

/// The rules that `-C` stands for. They do not protect what is in a directory that goes.
pub fn cvs_rules(bits: u16) -> impl Iterator<Item = Rule> {
    let bits = bits & (bits::SIDES | bits::INCLUDE | bits::ABSOLUTE | bits::NEGATED) | bits::PERISHABLE;
    CVS_PATTERNS.split_ascii_whitespace().map(move |pattern| Rule { bits, pattern: pattern.into() })
}

/// The outermost directory whose merge file counts, if the rule names one above the tree.
fn first_directory(rule: &Rule, root: &Path) -> Option<PathBuf> {
    if !rule.pattern.contains(&b'/') || rule.has(bits::NO_INHERIT) {
        return None;
    }
    let named = root.join(OsStr::from_bytes(&rule.pattern));
    let first = cleaned(named.parent()?);
    root.starts_with(&first).then_some(first)
}

/// An absolute path without `.` and `..`, by its text alone.
pub(super) fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// A relative path from a directory of the tree; `None` if it leads out of the tree.
fn within(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return None;
    }
    let mut names: Vec<&[u8]> = Vec::new();
    let parts = directory.split(|&byte| byte == b'/').chain(path.split(|&byte| byte == b'/'));
    for name in parts {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    (!names.is_empty()).then(|| names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::filter::{Filter, FilterSettings, Side};

    type Failure = MergeError<std::io::Error>;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        let rule = |text: &&str| match parse(text.as_bytes(), 0) {
            Ok(Parsed::Rule(rule)) => rule,
            other => panic!("{text}: {other:?}"),
        };
        texts.iter().map(rule).collect()
    }

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    /// A filter that has read these files, the first of each directory before those below it.
    fn filter(side: Side, texts: &[&str], files: &[(&str, &str)]) -> Result<Filter, Failure> {
        let mut filter =
            Filter::with(&rules(texts), b"", FilterSettings { side, ..FilterSettings::default() });
        let text = |name: &[u8]| {
            let file = files.iter().find(|(path, _)| path.as_bytes() == name);
            Ok(file.map(|(_, text)| text.as_bytes().to_vec()))
        };
        filter.begin(Path::new("/up/tree"), &mut |path| text(path.as_os_str().as_bytes()))?;
        let parents =
            files.iter().filter(|(file, _)| !file.starts_with('/')).map(|(file, _)| path(file).parent());
        let directories: BTreeSet<_> = parents.chain([None]).collect();
        for directory in directories {
            filter.enter(directory.as_ref(), &mut |path| text(path.as_bytes()))?;
        }
        Ok(filter)
    }

    #[track_caller]
    fn excludes(filter: &Filter, expected: &[(&str, bool)]) {
        for (name, is_excluded) in expected {
            assert_eq!(filter.excludes(&path(name), false), *is_excluded, "{name}");
        }
    }

    #[test]
    fn rules_of_a_directory_precede_those_that_it_inherits() {
        let files = [(".f", "- a\n- /b\n"), ("d/.f", "+ a\n"), ("e/.f", "!\n- c\n")];
        let filter = filter(Side::Sender, &[": .f"], &files).unwrap();
        excludes(&filter, &[("a", true), ("d/a", false), ("d/d/a", false), ("x/a", true)]);
        excludes(&filter, &[("b", true), ("d/b", false), ("e/a", false), ("e/c", true), ("c", false)]);
    }

    #[test]
    fn rules_that_are_not_inherited_end_with_their_directory() {
        let filter = filter(Side::Sender, &[":n- .f"], &[(".f", "a\n"), ("d/.f", "b\n")]).unwrap();
        excludes(&filter, &[("a", true), ("x/a", false), ("d/a", false), ("d/b", true), ("d/x/b", false)]);
    }

    #[test]
    fn merge_files_may_name_further_ones() {
        let files = [
            ("d/.f", ": .g\n. ./own\n. top\n"),
            ("d/.g", "- a\n"),
            ("d/e/.g", "+ a\n"),
            ("d/own", "- b\n"),
            ("top", "- c\n"),
            (".g", "- z\n"),
        ];
        let filter = filter(Side::Sender, &[": .f"], &files).unwrap();
        excludes(&filter, &[("d/a", true), ("d/e/a", false), ("a", false), ("z", false), ("x/a", false)]);
        excludes(&filter, &[("d/b", true), ("d/e/c", true), ("b", false)]);
        for name in [".f", ".g", "own", "top", ".ksyncignore"] {
            assert!(filter.is_rule_file(name.as_bytes()), "{name}");
        }
        assert!(!filter.is_rule_file(b"other"));
    }

    #[test]
    fn merge_files_above_the_tree_count_where_the_rule_names_them() {
        let files = [("/.f", "- a\n- /up/tree/b\n"), ("/up/.f", "- /tree/c\n+ x\n- x\n"), (".f", "- y\n")];
        let above = filter(Side::Sender, &[": /.f"], &files).unwrap();
        excludes(
            &above,
            &[("a", true), ("d/a", true), ("b", true), ("d/b", false), ("c", true), ("y", true)],
        );
        excludes(&filter(Side::Sender, &[": ../.f"], &files).unwrap(), &[("a", false), ("c", true)]);
        excludes(
            &filter(Side::Sender, &[": .f"], &files).unwrap(),
            &[("a", false), ("c", false), ("y", true)],
        );
    }

    #[test]
    fn each_side_sees_its_own_rules() {
        let texts = ["H a", "P b", "-p c", ": .f"];
        let files = [(".f", "hide d\nprotect e\n")];
        let sender = filter(Side::Sender, &texts, &files).unwrap();
        excludes(&sender, &[("a", true), ("b", false), ("c", true), ("d", true), ("e", false)]);
        let receiver = filter(Side::Receiver, &texts, &files).unwrap();
        excludes(&receiver, &[("a", false), ("b", true), ("c", true), ("d", false), ("e", true)]);
        let in_deleted = |name: &str| receiver.protects_in_deleted(&path(name), false);
        assert!(in_deleted("b") && !in_deleted("c"), "a perishable rule does not count there");
        for name in ["a", "b", "c", "e"] {
            assert!(!receiver.closes(&path(name), true), "{name} may be offered or deleted");
        }
        let first = filter(Side::Receiver, &["- z", "P b"], &[]).unwrap();
        assert!(first.closes(&path("z"), true) && !first.closes(&path("b"), true));
    }

    #[test]
    fn files_that_are_no_rules_are_told_with_their_line() {
        let told = |files: &[(&str, &str)]| match filter(Side::Sender, &[": .f"], files) {
            Err(MergeError::Rule(path, line, error)) => {
                format!("{}:{line}: {error}", String::from_utf8(path).unwrap())
            }
            other => panic!("{:?}", other.map(|_| ())),
        };
        for (files, expected) in [
            (
                &[("d/.f", "- a\n\nb c\n")][..],
                "d/.f:3: the rule \"b c\" begins with none of exclude, include",
            ),
            (&[(".f", ". ../x\n")], ".f:1: the rule \"../x\" merges a file that is not in the tree"),
            (&[(".f", ". /etc/x\n")], "merges a file that is not in the tree"),
            (&[("d/.f", ": ../.f\n")], "merges a file that is not in the tree"),
            (&[(".f", ". x\n")], ".f:1: the rule \"x\" merges a file that does not exist"),
            (&[(".f", ". ./.f\n")], "merges a file into a file for the 16th time"),
        ] {
            let told = told(files);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn a_hostile_tree_cannot_make_its_rules_grow() {
        let limit = |files: &[(String, String)]| {
            let files: Vec<_> = files.iter().map(|(path, text)| (&**path, &**text)).collect();
            filter(Side::Sender, &[": .f"], &files)
                .is_err_and(|error| matches!(error, MergeError::Rule(_, _, RuleError::Limit)))
        };
        let file = |number: usize, text: &str| (format!("d{number}/.f"), text.to_owned());
        let long = "- a\n".repeat(IGNORE_BYTES_MAX / 4);
        assert!(!limit(&[file(0, &long)]) && limit(&[file(0, &(long.clone() + "#"))]), "one file");
        let most = IGNORE_TOTAL_BYTES_MAX / long.len();
        let many = |count: usize| (0..count).map(|number| file(number, &long)).collect::<Vec<_>>();
        assert!(!limit(&many(most)) && limit(&many(most + 1)), "all files together");
        let nested = |count: usize| (0..count).map(|number| format!(": {number}\n")).collect::<String>();
        assert!(!limit(&[file(0, &nested(MERGES_MAX - 1))]) && limit(&[file(0, &nested(MERGES_MAX))]));
        // A file that is merged several times counts each time.
        let again = [(".f".to_owned(), ". ./x\n".repeat(most + 1)), ("x".to_owned(), long)];
        assert!(limit(&again));
    }
}
