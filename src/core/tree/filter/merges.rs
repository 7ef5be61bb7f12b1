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
