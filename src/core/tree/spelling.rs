//! `Spelling`: names that the destination's filesystem takes for one name.
//!
//! Some filesystems fold names: for them `a` and `A` are one name (APFS, vfat, ext4 with casefold),
//! or the two Unicode forms of `é` (HFS+). Only the filesystem knows which names it folds. This
//! module finds the names that are worth a question, without access to the disk. Such a name is
//! wanted, is to be created, and has the same [`key`] as another name in its directory. From the
//! answers the module concludes:
//! - A present entry that the wanted name leads to, and that is not wanted itself, is the wanted
//!   entry in another spelling. It is compared under the wanted name, and renamed if the filesystem
//!   can show that spelling.
//! - Otherwise the two names are twins. The existing one stays, or else the first in order is made.
//!   The other one is excluded with everything below it, and reported.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use crate::tree::entry::EntryRef;
use crate::tree::manifest::{Builder, Manifest};
use crate::tree::path::TreePath;
use crate::tree::path_ref::PathRef;

/// The names with which a name can be folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variant {
    /// No other name.
    None,
    /// Names of other case; this is the name with the case of every letter swapped.
    Case(Vec<u8>),
    /// Names that cannot be computed without Unicode tables.
    Unknown,
}

/// A key that two names share if any filesystem may fold them. Names that no filesystem folds may
/// share one too. The agent carries no Unicode tables. So the key drops most characters that have a
/// decomposition, and the letters and marks that they are composed of.
#[must_use]
pub fn key(name: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(name) else { return name.to_ascii_lowercase() };
    let mut key = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_composed = characters.peek().copied().is_some_and(is_mark);
        if is_plain(character) && !is_composed {
            key.push(if is_upper(character) { swap_case(character) } else { character });
        } else if let Some(folded) = folds_to_ascii(character) {
            key.push_str(folded);
        }
    }
    // vfat drops these at the end of a name.
    key.truncate(key.trim_end_matches(['.', ' ']).len());
    key.into_bytes()
}

/// Computes the names with which `name` can be folded.
#[must_use]
pub fn variant(name: &[u8]) -> Variant {
    let swap_byte = |&byte: &u8| if byte.is_ascii_alphabetic() { byte ^ 0x20 } else { byte };
    let swapped = match std::str::from_utf8(name) {
        Ok(text) if text.chars().all(is_plain) => {
            text.chars().map(swap_case).collect::<String>().into_bytes()
        }
        Ok(_) => return Variant::Unknown,
        Err(_) => name.iter().map(swap_byte).collect(),
    };
    if swapped == name { Variant::None } else { Variant::Case(swapped) }
}

/// Swaps the case of a plain letter. The tables of the standard library would take 10 kB in the
/// agent.
fn swap_case(character: char) -> char {
    let offset = match character {
        'A'..='Z' | 'a'..='z' | '\u{410}'..='\u{44f}' => 0x20,
        _ => return character,
    };
    let code = u32::from(character);
    let swapped = if is_upper(character) { code + offset } else { code - offset };
    char::from_u32(swapped).unwrap_or(character)
}

fn is_upper(character: char) -> bool {
    matches!(character, 'A'..='Z' | '\u{410}'..='\u{42f}')
}

/// True if the character has no decomposition: ASCII, Cyrillic letters except `й`, Chinese
/// characters.
fn is_plain(character: char) -> bool {
    matches!(character, '\0'..='\u{7f}' | '\u{410}'..='\u{44f}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}')
        && !matches!(character, '\u{419}' | '\u{439}')
}

/// True for a mark that is composed with the character before it.
fn is_mark(character: char) -> bool {
    matches!(character, '\u{300}'..='\u{36f}')
}

/// The ASCII text to which a non-ASCII character is folded, if there is one.
fn folds_to_ascii(character: char) -> Option<&'static str> {
    Some(match character {
        '\u{17f}' => "s",
        '\u{212a}' => "k",
        '\u{37e}' => ";",
        '\u{1fef}' => "`",
        'ß' | 'ẞ' => "ss",
        '\u{fb00}' => "ff",
        '\u{fb01}' => "fi",
        '\u{fb02}' => "fl",
        '\u{fb03}' => "ffi",
        '\u{fb04}' => "ffl",
        '\u{fb05}' | '\u{fb06}' => "st",
        _ => return None,
    })
}

/// Wanted entries of one directory that may exist already under other names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspects {
    /// Their ids, in order, and paths.
    pub wanted: Vec<(u32, TreePath)>,
    /// Entries that they may be: positions in the present manifest, and paths.
    pub candidates: Vec<(u32, TreePath)>,
}

/// Questions to the destination's filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Questions {
    /// The question for each: which of the wanted names lead to candidates?
    pub suspects: Vec<Suspects>,
    /// New names of one directory. The question: does the filesystem fold any of them?
    pub groups: Vec<Vec<(u32, TreePath)>>,
}

impl Questions {
    /// The questions about the entries to be `created`, ids of the wanted manifest. The cost is a
    /// hash of each of their names and of the names beside them.
    #[must_use]
    pub fn of(wanted: &Manifest, present: &Manifest, created: impl Iterator<Item = u32>) -> Self {
        let number = |path: PathRef<'_>| number(path.directory(), &key(path.name()));
        let mut new: Vec<(u64, u32)> =
            created.filter_map(|id| Some((number(wanted.path(id)?), id))).collect();
        new.sort_unstable();
        let named = |&(_, id): &(u64, u32)| Some((id, wanted.path(id)?.to_path()));
        let of_one_key = || new.chunk_by(|one, other| one.0 == other.0);
        let groups = of_one_key().filter(|group| group.len() > 1);
        let groups = groups.map(|group| group.iter().filter_map(named).collect()).collect();
        let mut questions = Self { suspects: Vec::new(), groups };
        if present.is_empty() || new.is_empty() {
            return questions;
        }
        let mut directories: Vec<Option<&[u8]>> =
            new.iter().filter_map(|&(_, id)| Some(wanted.path(id)?.directory())).collect();
        directories.sort_unstable();
        directories.dedup();
        let is_asked_about = |directory| directories.binary_search(&directory).is_ok();
        let mut old: Vec<(u64, u32)> = Vec::new();
        // Neighbours share their directory.
        let (mut last, mut is_asked) = (None, is_asked_about(None));
        for (at, entry) in present.iter() {
            if entry.path.directory() != last {
                last = entry.path.directory();
                is_asked = is_asked_about(last);
            }
            if is_asked {
                let number = number(entry.path);
                let is_suspected = new.binary_search_by_key(&number, |&(number, _)| number).is_ok();
                old.extend(is_suspected.then_some((number, at)));
            }
        }
        old.sort_unstable();
        let suspects = of_one_key().filter_map(|group| {
            let number = group.first()?.0;
            let begin = old.partition_point(|&(other, _)| other < number);
            let same = old.iter().skip(begin).take_while(|&&(other, _)| other == number);
            let candidates = same.filter_map(|&(_, at)| Some((at, present.path(at)?.to_path())));
            let candidates: Vec<_> = candidates.collect();
            let is_suspected = !candidates.is_empty();
            is_suspected.then(|| Suspects { wanted: group.iter().filter_map(named).collect(), candidates })
        });
        questions.suspects = suspects.collect();
        questions
    }

    /// True if there is nothing to ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.suspects.is_empty() && self.groups.is_empty()
    }
}

fn number(directory: Option<&[u8]>, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (directory, key).hash(&mut hasher);
    hasher.finish()
}

/// A wanted name that leads to a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Respelled {
    /// The wanted entry.
    pub id: u32,
    /// The candidate.
    pub at: u32,
    /// True if the filesystem can show another spelling than the present one.
    pub is_shown: bool,
}

/// The answers of the destination's filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answers {
    /// Wanted names that lead to candidates, in the order of the questions.
    pub respelled: Vec<Respelled>,
    /// New names that are folded with an earlier one of their group: the two ids.
    pub twins: Vec<(u32, u32)>,
}

/// The conclusions, all in order. They are vectors, since each kind of map takes 5 kB in the agent.
#[derive(Debug, Default)]
pub struct Spelling {
    left_out: Vec<LeftOut>,
    /// Present entries whose wanted name is excluded because rules protect them under their own.
    protected: Vec<TreePath>,
    /// Wanted entries to rename from their present name, with that name.
    renamed: Vec<(u32, Box<[u8]>)>,
    /// Wanted entries that the filesystem always shows under other names.
    shown_otherwise: Vec<u32>,
    /// Positions of the present manifest's entries at the time of listing; empty if nothing moved.
    order: Vec<u32>,
}

/// A wanted entry that is excluded with everything below it.
#[derive(Debug)]
struct LeftOut {
    id: u32,
    /// One more than the last id below it.
    end: u32,
    /// The path of its twin; `None` if unknown.
    twin: Option<TreePath>,
}

impl Spelling {
    /// Draws conclusions. If some wanted names differ from the present ones, returns the present
    /// tree under the wanted names, and each entry's position in `present`. `is_kept` tells whether
    /// rules forbid an entry its new path.
    pub fn conclude(
        &mut self,
        answers: &Answers,
        wanted: &Manifest,
        present: &Manifest,
        is_kept: impl Fn(u32, &TreePath) -> bool,
    ) -> Option<(Manifest, Vec<u32>)> {
        // Positions in the present manifest, each with the first wanted entry that leads there.
        let mut taken: Vec<(u64, u32)> =
            answers.respelled.iter().map(|found| (u64::from(found.at), found.id)).collect();
        taken.sort_unstable();
        taken.dedup_by_key(|(at, _)| *at);
        let first = |at: u32| {
            let place = taken.binary_search_by_key(&u64::from(at), |&(at, _)| at).ok()?;
            taken.get(place).map(|&(_, id)| id)
        };
        let mut tops: Vec<(u64, u32)> = Vec::new();
        for &Respelled { id, at, is_shown } in &answers.respelled {
            let Some((new, old)) = wanted.path(id).zip(present.path(at)) else { continue };
            if wanted.position(old).is_some() {
                self.leave_out(id, Some(old), wanted);
            } else if let Some(first) = first(at).filter(|&first| first != id) {
                self.leave_out(id, wanted.path(first), wanted);
            } else if is_kept(at, &new.to_path()) {
                self.protected.push(old.to_path());
                self.leave_out(id, Some(old), wanted);
            } else {
                tops.push((u64::from(at), id));
                if is_shown {
                    let place = self.renamed.partition_point(|&(other, _)| other < id);
                    self.renamed.insert(place, (id, old.name().into()));
                } else {
                    self.shown_otherwise.push(id);
                }
            }
        }
        for &(id, first) in &answers.twins {
            if !self.leaves_out(id) && !self.leaves_out(first) {
                self.leave_out(id, wanted.path(first), wanted);
            }
        }
        if tops.is_empty() {
            return None;
        }
        tops.sort_unstable();
        let (manifest, order) = under_wanted_names(wanted, present, &tops)?;
        let listed = |at: u32| self.order.get(at as usize).copied().unwrap_or(at);
        self.order = order.iter().map(|&at| listed(at)).collect();
        Some((manifest, order))
    }

    /// Excludes a wanted entry whose counterpart at the destination is unknown.
    pub fn leave_unclear(&mut self, path: &TreePath, wanted: &Manifest) {
        wanted.position(path).into_iter().for_each(|id| self.leave_out(id, None, wanted));
    }

    fn leave_out(&mut self, id: u32, twin: Option<PathRef<'_>>, wanted: &Manifest) {
        let Some(top) = wanted.path(id) else { return };
        let below = wanted.entries_from(id + 1).take_while(|entry| entry.path.is_below(top)).count();
        let end = u32::try_from(below).map_or(u32::MAX, |below| id + 1 + below);
        let place = self.left_out.partition_point(|other| other.id < id);
        self.left_out.insert(place, LeftOut { id, end, twin: twin.map(PathRef::to_path) });
    }

    /// True if a wanted entry is excluded.
    #[must_use]
    pub fn leaves_out(&self, id: u32) -> bool {
        let next = self.left_out.partition_point(|other| other.id <= id);
        let before = next.checked_sub(1).and_then(|last| self.left_out.get(last));
        before.is_some_and(|before| id < before.end)
    }

    /// True if a present entry must not be removed, although no wanted entry has its name.
    #[must_use]
    pub fn protects(&self, path: &TreePath) -> bool {
        self.protected.iter().any(|top| top == path || path.is_below(top))
    }

    /// True if anything is excluded.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.left_out.is_empty()
    }

    /// The excluded twins, each with the path of the other one.
    pub fn twins(&self) -> impl Iterator<Item = (u32, &TreePath)> {
        self.left_out.iter().filter_map(|left_out| Some((left_out.id, left_out.twin.as_ref()?)))
    }

    /// Wanted entries that are renamed to the wanted spelling, in order.
    pub fn renamed(&self) -> impl Iterator<Item = u32> {
        self.renamed.iter().map(|&(id, _)| id)
    }

    /// The present name of such an entry.
    #[must_use]
    pub fn old_name(&self, id: u32) -> Option<&[u8]> {
        let place = self.renamed.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        self.renamed.get(place).map(|(_, name)| &**name)
    }

    /// Wanted entries that the filesystem always shows under other names.
    #[must_use]
    pub fn shown_otherwise(&self) -> &[u32] {
        &self.shown_otherwise
    }

    /// Positions of the present manifest's entries at the time of listing; empty if nothing moved.
    #[must_use]
    pub fn order(&self) -> &[u32] {
        &self.order
    }
}

/// Builds the present tree with the paths of wanted entries for `tops`: pairs of a position and an
/// id, in order, none below another. Also returns each entry's old position.
fn under_wanted_names(
    wanted: &Manifest,
    present: &Manifest,
    tops: &[(u64, u32)],
) -> Option<(Manifest, Vec<u32>)> {
    let mut paths: Vec<(TreePath, u32)> = Vec::with_capacity(present.len());
    let mut tops = tops.iter().peekable();
    let mut top: Option<(PathRef<'_>, TreePath)> = None;
    for (at, entry) in present.iter() {
        let path = if let Some(&(_, id)) = tops.next_if(|&&(top, _)| top == u64::from(at)) {
            let new = wanted.path(id)?.to_path();
            top = Some((entry.path, new.clone()));
            new
        } else if let Some((old, new)) = top.as_ref().filter(|(old, _)| entry.path.is_below(*old)) {
            new.join(entry.path.to_vec().get(old.len() + 1..)?).ok()?
        } else {
            entry.path.to_path()
        };
        paths.push((path, at));
    }
    paths.sort_unstable();
    let mut builder = Builder::default();
    for (path, at) in &paths {
        builder.add(EntryRef { path: path.into(), ..present.get(*at)? }).ok()?;
    }
    Some((builder.finish(), paths.into_iter().map(|(_, at)| at).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Entry, Kind, Time};

    /// A tree in a line; a trailing slash marks a directory.
    fn tree(text: &str) -> Manifest {
        let entries = text.split_whitespace().map(|word| {
            let (word, kind) = match word.strip_suffix('/') {
                Some(word) => (word, Kind::Directory),
                None => (word, Kind::File { size: 1, hash: None }),
            };
            let path = TreePath::new(word.as_bytes()).unwrap();
            Entry { path, kind, mode: 0o644, mtime: Time::new(1, 0).unwrap(), attributes: None }
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Manifest::new(entries).unwrap()
    }

    fn created(wanted: &Manifest, present: &Manifest) -> Vec<u32> {
        wanted.iter().filter(|(_, entry)| present.position(entry.path).is_none()).map(|(id, _)| id).collect()
    }

    /// The answers of a filesystem that folds case, or that does not.
    fn answers(questions: &Questions, folds: bool, is_shown: bool) -> Answers {
        let is_one = |one: &TreePath, other: &TreePath| {
            folds && one.display().to_lowercase() == other.display().to_lowercase()
        };
        let mut answers = Answers::default();
        for Suspects { wanted, candidates } in &questions.suspects {
            for &(id, ref path) in wanted {
                let found = candidates.iter().find(|(_, candidate)| is_one(path, candidate));
                answers.respelled.extend(found.map(|&(at, _)| Respelled { id, at, is_shown }));
            }
        }
        for group in &questions.groups {
            for (index, (id, path)) in group.iter().enumerate() {
                let first = group[..index].iter().find(|(_, earlier)| is_one(path, earlier));
                answers.twins.extend(first.map(|&(first, _)| (*id, first)));
            }
        }
        answers
    }

    fn shown(tree: &Manifest) -> String {
        let paths: Vec<String> = tree.entries().map(|entry| entry.path.to_path().to_string()).collect();
        paths.join(" ")
    }

    /// Asks until there are no new answers. Returns the present tree, the excluded twins and the
    /// renamed entries.
    fn settled(wanted: &str, present: &str, folds: bool) -> [String; 3] {
        let (wanted, mut present) = (tree(wanted), tree(present));
        let mut spelling = Spelling::default();
        loop {
            let created = created(&wanted, &present).into_iter().filter(|&id| !spelling.leaves_out(id));
            let questions = Questions::of(&wanted, &present, created);
            let answers = answers(&questions, folds, true);
            match spelling.conclude(&answers, &wanted, &present, |_, _| false) {
                Some((new, _)) => present = new,
                None => break,
            }
        }
        let name = |id| wanted.path(id).unwrap().to_path().to_string();
        let twins: Vec<String> = spelling.twins().map(|(id, twin)| format!("{}~{twin}", name(id))).collect();
        let renamed: Vec<String> = spelling.renamed().map(name).collect();
        [shown(&present), twins.join(" "), renamed.join(" ")]
    }

    #[test]
    fn names_that_some_filesystem_folds_share_a_key() {
        for (one, other) in [
            ("readme", "README"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("CAF\u{c9}", "cafe\u{301}"),
            ("\u{1ec7}", "e\u{323}\u{302}"),
            ("\u{1ec7}", "\u{ea}\u{323}"),
            ("\u{439}\u{442}", "\u{438}\u{306}\u{422}"),
            ("\u{ac00}", "\u{1100}\u{1161}"),
            ("\u{304c}", "\u{304b}\u{3099}"),
            ("\u{212a}", "k"),
            ("stra\u{df}e", "STRASSE"),
            ("a.", "a"),
        ] {
            assert_eq!(key(one.as_bytes()), key(other.as_bytes()), "{one} {other}");
        }
        for (one, other) in [("a", "b"), ("\u{6587}", "\u{4ef6}"), ("a.b", "ab"), ("\u{44f}", "\u{44e}")] {
            assert_ne!(key(one.as_bytes()), key(other.as_bytes()), "{one} {other}");
        }
        assert_eq!(key(b"A\xff"), key(b"a\xff"));
    }

    #[test]
    fn variant_is_known_where_no_table_is_needed() {
        assert_eq!(variant(b"ReadMe.1"), Variant::Case(b"rEADmE.1".to_vec()));
        assert_eq!(variant("\u{42f}".as_bytes()), Variant::Case("\u{44f}".as_bytes().to_vec()));
        assert_eq!(variant(b"123"), Variant::None);
        assert_eq!(variant(b"a\xff"), Variant::Case(b"A\xff".to_vec()));
        assert_eq!(variant("\u{6587}".as_bytes()), Variant::None);
        assert_eq!(variant("caf\u{e9}".as_bytes()), Variant::Unknown);
        assert_eq!(variant("e\u{301}".as_bytes()), Variant::Unknown);
    }

    #[test]
    fn only_names_that_may_be_one_are_asked_about() {
        let questions = |wanted: &str, present: &str| {
            let (wanted, present) = (tree(wanted), tree(present));
            Questions::of(&wanted, &present, created(&wanted, &present).into_iter())
        };
        assert!(questions("a b d/ d/A", "").is_empty());
        assert!(questions("a d/ d/a", "a d/ d/a D/ D/x").is_empty());
        assert!(questions("A d/", "d/ d/a b").is_empty(), "another directory");
        assert_eq!(questions("A b", "a b").suspects.len(), 1);
        assert_eq!(questions("A a b", "").groups.len(), 1);
    }

    #[test]
    fn entry_in_another_spelling_is_compared_and_renamed() {
        for (wanted, present, after, twins, renamed) in [
            ("A b", "a b", "A b", "", "A"),
            ("D/ D/F D/g", "d/ d/f d/g z", "D D/F D/g z", "", "D D/F"),
            ("a B c", "A b C", "B a c", "", "B a c"),
            // Twins: the existing one, or else the first.
            ("A a", "a", "a", "A~a", ""),
            ("A a", "A", "A", "a~A", ""),
            ("A a", "", "", "a~A", ""),
            ("AB Ab", "ab", "AB", "Ab~AB", "AB"),
            ("D/ D/x d/ d/y", "", "", "d~D", ""),
            ("D/ D/x d/ d/X", "d/ d/X", "d d/X", "D~d", ""),
        ] {
            let expected = [after, twins, renamed].map(str::to_owned);
            assert_eq!(settled(wanted, present, true), expected, "{wanted} | {present}");
            let [after, twins, renamed] = settled(wanted, present, false);
            assert_eq!([after, twins, renamed], [shown(&tree(present)), String::new(), String::new()]);
        }
    }

    #[test]
    fn everything_below_a_twin_is_excluded_and_positions_are_kept() {
        let (wanted, present) = (tree("D/ D/x d/ d/y d/z/ d/z/w e"), tree("a d0 D/ D/x e"));
        let mut spelling = Spelling::default();
        let questions = Questions::of(&wanted, &present, created(&wanted, &present).into_iter());
        spelling.conclude(&answers(&questions, true, true), &wanted, &present, |_, _| false);
        let left_out: Vec<u32> = (0..7).filter(|&id| spelling.leaves_out(id)).collect();
        assert_eq!(left_out, [2, 3, 4, 5]);

        let (wanted, present) = (tree("A e0"), tree("B/ B/x a e0"));
        let mut spelling = Spelling::default();
        let questions = Questions::of(&wanted, &present, created(&wanted, &present).into_iter());
        let moved = spelling.conclude(&answers(&questions, true, false), &wanted, &present, |_, _| false);
        assert_eq!(moved, Some((tree("A B/ B/x e0"), vec![2, 0, 1, 3])));
        assert_eq!((spelling.order(), spelling.renamed().count()), (&[2, 0, 1, 3][..], 0));
        assert_eq!(spelling.shown_otherwise(), [0]);
    }

    #[test]
    fn entry_that_rules_keep_is_not_renamed() {
        let (wanted, present) = (tree("A"), tree("a"));
        let mut spelling = Spelling::default();
        let questions = Questions::of(&wanted, &present, [0].into_iter());
        let answers = answers(&questions, true, true);
        assert_eq!(spelling.conclude(&answers, &wanted, &present, |_, _| true), None);
        assert!(spelling.leaves_out(0) && spelling.twins().count() == 1);
        assert!(spelling.protects(&TreePath::new(&b"a"[..]).unwrap()));
    }
}
