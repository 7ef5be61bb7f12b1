//! Comparison of two manifests in lock step: the changes that make one tree a copy of the other.
//!
//! This is a pure decision table; nothing is read or written here. `wanted` is the tree after the
//! run, `present` the tree before it. Ids index into the one, positions into the other.
//!
//! | wanted | present | decision |
//! |---|---|---|
//! | directory | nothing | `Create` |
//! | directory | directory | `Adjust` if mode or time differ |
//! | directory | file, link | `Replace` (removed, then made) |
//! | file | nothing | `Create` |
//! | file | file, equal (see below) | `Adjust` if mode or time differ |
//! | file | file, equal by size and time alone, but doubted | `Verify` (its hash decides) |
//! | file | file that was lost | `Update` without basis |
//! | file | file, differing | `Update` (the old content serves as basis) |
//! | file, link | link, file | `Update` without basis (a rename replaces it) |
//! | link | link, same target | `Adjust` if the time differs |
//! | special file | the same | `Adjust` if mode or time differ |
//! | special file | anything else but a directory | `Update` |
//! | file, link | directory that may go (see below) | `Replace` |
//! | file, link | any other directory | `Obstacle` |
//! | nothing | anything | `Remove` if deleting is on, unless protected |
//!
//! Files are equal if size and time are, and hashes where both have one; with `checksum` the hash
//! decides. Attributes (owner, group, extended attributes) count like a mode. A directory may go if
//! it is empty, or if deleting is on and nothing in it is protected.
//! Transfer rules come first: an entry that they pass over gets no decision, and neither does what
//! is in its place.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::tree::attributes::{AttributesDiffer, Compared};
use crate::tree::doubt::{Doubt, Doubts};
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;
use crate::tree::time_rule::TimeRule;
use crate::tree::transfer_rules::{Proof, TransferRules};

/// Options of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Remove entries that are not wanted.
    pub delete: bool,
    /// Compare by hash instead of size and time (both manifests then hold hashes).
    pub checksum: bool,
    /// Mode bits that count; the others are neither compared nor set.
    pub mode_mask: u16,
    /// The extended attributes that count.
    pub attributes: Compared,
    /// Differences between times that do not count.
    pub time_rule: TimeRule,
    /// The entries to pass over.
    pub transfer: TransferRules,
    /// Removed files and links leave a backup in their directory, so that it must stay.
    pub backs_up_beside: bool,
}

impl Rules {
    /// True if an entry that equals the present one in everything needs no decision.
    fn believes_equal(&self) -> bool {
        !self.checksum && self.transfer == TransferRules::default()
    }
}

/// One decision. `id` is an index into the wanted manifest, `at` into the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing is in the place: make the entry.
    Create {
        /// The entry to make.
        id: u32,
    },
    /// A file or link is in the place: replace it by a new content or link.
    Update {
        /// The wanted entry.
        id: u32,
        /// The present entry.
        at: u32,
    },
    /// Content and type are right: set mode and time.
    Adjust {
        /// The wanted entry.
        id: u32,
        /// The present entry.
        at: u32,
    },
    /// Type, size and time are right, but the content may not be: check it.
    Verify {
        /// The wanted entry.
        id: u32,
        /// The present entry.
        at: u32,
        /// True if the mode differs.
        adjust: bool,
    },
    /// An entry of another type is in the place and must go first.
    Replace {
        /// The wanted entry.
        id: u32,
        /// The entry that must go, with everything below it.
        at: u32,
    },
    /// A directory whose content may not be deleted is in the place of another entry.
    Obstacle {
        /// The entry that cannot be made.
        id: u32,
        /// The directory.
        at: u32,
    },
    /// Not wanted: remove it. Directories come before their children.
    Remove {
        /// The entry to remove.
        at: u32,
    },
}

impl Change {
    /// The index into the wanted manifest.
    #[must_use]
    pub fn wanted(&self) -> Option<u32> {
        match *self {
            Self::Create { id }
            | Self::Update { id, .. }
            | Self::Adjust { id, .. }
            | Self::Verify { id, .. }
            | Self::Replace { id, .. }
            | Self::Obstacle { id, .. } => Some(id),
            Self::Remove { .. } => None,
        }
    }
}

/// Compares the trees. `protects` tells whether a present entry that is not wanted must stay,
/// because it is excluded. A directory that holds a protected entry stays too.
///
/// Decisions come in path order.
pub fn compare(
    wanted: &Manifest,
    present: &Manifest,
    rules: Rules,
    protects: impl Fn(EntryRef<'_>) -> bool,
) -> Vec<Change> {
    compare_doubting(wanted, present, &Doubts::default(), rules, &rules.transfer.pruned(wanted), protects)
}

/// Compares like [`compare`], but does not believe size and time of the doubted files. `pruned` are
/// the wanted directories that count as not offered.
pub fn compare_doubting(
    wanted: &Manifest,
    present: &Manifest,
    doubts: &Doubts,
    rules: Rules,
    pruned: &HashSet<u32>,
    protects: impl Fn(EntryRef<'_>) -> bool,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut lock_step = LockStep::new(wanted, present);
    // Without such rules and doubts, equal entries need no decision.
    let skips = rules.believes_equal() && doubts.is_empty();
    // A directory that goes, or stays, as a whole: present entries below it need no decision of
    // their own.
    let mut settled: Option<PathRef<'_>> = None;
    // A wanted directory that is passed over although something is in its place.
    let mut passed_over: Option<PathRef<'_>> = None;
    let passes_over = |entry, old| rules.transfer.passes_over(entry, old, rules.time_rule);
    let leaves_something =
        |entry| protects(entry) || rules.backs_up_beside && !EntryRef::is_directory(&entry);
    let may_remove = |at| {
        let mut below = below(present, at);
        if rules.delete {
            !present.get(at).is_some_and(&protects) && !below.any(leaves_something)
        } else {
            below.next().is_none() && !present.get(at).is_some_and(&protects)
        }
    };
    loop {
        if skips {
            lock_step.skip_equal();
        }
        let Some((mut offered, old)) = lock_step.next() else { break };
        offered.take_if(|(id, _)| pruned.contains(id));
        match (offered, old) {
            (Some((id, entry)), None) => {
                let is_below = passed_over.is_some_and(|directory| entry.path.is_below(directory));
                if !is_below && !passes_over(entry, None) {
                    changes.push(Change::Create { id });
                }
            }
            (Some((id, entry)), Some((at, old))) => {
                if old.is_directory() && !entry.is_directory() {
                    settled = Some(old.path);
                }
                if passes_over(entry, Some(old)) {
                    passed_over = Some(entry.path);
                } else {
                    changes.extend(decide((id, entry), (at, old), doubts.of(at), rules, || may_remove(at)));
                }
            }
            (None, Some((at, old))) => {
                let settled = settled.is_some_and(|directory| old.path.is_below(directory));
                if rules.delete && !settled {
                    changes.push(Change::Remove { at });
                }
            }
            (None, None) => {}
        }
    }
    if rules.delete { without_protected(changes, present, rules.backs_up_beside, protects) } else { changes }
}

fn decide(
    (id, entry): (u32, EntryRef<'_>),
    (at, old): (u32, EntryRef<'_>),
    doubt: Option<Doubt>,
    rules: Rules,
    may_remove: impl Fn() -> bool,
) -> Option<Change> {
    let adjust = |same: bool| (!same).then_some(Change::Adjust { id, at });
    let same_time = rules.time_rule.are_same(entry.mtime, old.mtime);
    let same_mode = (entry.mode ^ old.mode) & rules.mode_mask == 0
        && !differing_attributes(entry, old, rules.attributes).any();
    match (entry.kind, old.kind) {
        (Kind::Directory, Kind::Directory) => adjust(same_time && same_mode),
        (Kind::Directory, _) => Some(Change::Replace { id, at }),
        (_, Kind::Directory) if may_remove() => Some(Change::Replace { id, at }),
        (_, Kind::Directory) => Some(Change::Obstacle { id, at }),
        (Kind::File { hash, .. }, Kind::File { hash: old_hash, .. }) => {
            let same_content = is_same_content(entry, old, rules);
            // The content on disk has the wanted hash.
            let is_verified = hash.is_some() && hash == old_hash;
            match doubt {
                Some(Doubt::Lost) => Some(Change::Update { id, at }),
                Some(Doubt::Unverified) if same_content && same_time && !is_verified => {
                    Some(Change::Verify { id, at, adjust: !same_mode })
                }
                _ if same_content => adjust(same_time && same_mode),
                _ => Some(Change::Update { id, at }),
            }
        }
        (Kind::Symlink { .. }, Kind::Symlink { .. }) if entry.kind.is_special() => {
            let is_same = old.kind.is_special() && entry.special() == old.special();
            if is_same { adjust(same_time && same_mode) } else { Some(Change::Update { id, at }) }
        }
        (Kind::Symlink { target }, Kind::Symlink { target: old_target }) if target == old_target => {
            adjust(same_time && !differing_attributes(entry, old, rules.attributes).any())
        }
        (Kind::File { .. } | Kind::Symlink { .. }, _) => Some(Change::Update { id, at }),
    }
}

/// True if two files have the same content, as far as the rules compare it.
#[must_use]
pub fn is_same_content(entry: EntryRef<'_>, old: EntryRef<'_>, rules: Rules) -> bool {
    let (Kind::File { size, hash }, Kind::File { size: old_size, hash: old_hash }) = (entry.kind, old.kind)
    else {
        return false;
    };
    let same_hash = hash == old_hash;
    size == old_size
        && if rules.checksum {
            hash.is_some() && same_hash
        } else {
            match rules.transfer.proof {
                Proof::Time => {
                    rules.time_rule.are_same(entry.mtime, old.mtime)
                        && (same_hash || hash.is_none() || old_hash.is_none())
                }
                Proof::Size => true,
                Proof::None => false,
            }
        }
}

/// The attributes in which an entry differs from the one in its place.
#[must_use]
pub fn differing_attributes(entry: EntryRef<'_>, old: EntryRef<'_>, compared: Compared) -> AttributesDiffer {
    match (entry.attributes, old.attributes) {
        (None, None) => AttributesDiffer::default(),
        (wanted, old) => AttributesDiffer::of(wanted.map(|of| &**of), old.map(|of| &**of), compared),
    }
}

/// All present entries below the directory at `at`.
pub fn below(present: &Manifest, at: u32) -> impl Iterator<Item = EntryRef<'_>> {
    let directory = present.path(at);
    present
        .entries_from(at.saturating_add(1))
        .take_while(move |entry| directory.is_some_and(|directory| entry.path.is_below(directory)))
}

/// True if a present entry is neither wanted nor protected, and holds nothing protected.
pub fn has_more(wanted: &Manifest, present: &Manifest, protects: impl Fn(EntryRef<'_>) -> bool) -> bool {
    let mut lock_step = LockStep::new(wanted, present);
    let next = || {
        lock_step.skip_equal();
        lock_step.next()
    };
    std::iter::from_fn(next).any(|step| match step {
        (None, Some((at, old))) => !protects(old) && !below(present, at).any(&protects),
        _ => false,
    })
}

/// Cancels the removals of protected entries, of entries below them and of the directories above
/// them. If backups lie beside their originals, the directories above removed entries stay too.
fn without_protected(
    changes: Vec<Change>,
    present: &Manifest,
    backs_up_beside: bool,
    protects: impl Fn(EntryRef<'_>) -> bool,
) -> Vec<Change> {
    // Backwards, so that children come before their directory.
    let mut kept_below: Option<PathRef<'_>> = None;
    let mut kept: Vec<Change> = Vec::with_capacity(changes.len());
    for change in changes.into_iter().rev() {
        if let Change::Remove { at } = change
            && let Some(entry) = present.get(at)
        {
            let holds_kept = kept_below.is_some_and(|path| path.is_below(entry.path));
            let is_kept = holds_kept || protects(entry);
            if is_kept || backs_up_beside && !entry.is_directory() {
                kept_below = Some(entry.path);
            }
            if is_kept {
                continue;
            }
        }
        kept.push(change);
    }
    kept.reverse();
    kept
}

/// Walks two manifests together.
struct LockStep<'a> {
    wanted: &'a Manifest,
    present: &'a Manifest,
    /// The next entries.
    id: u32,
    at: u32,
}

type Indexed<'a> = (u32, EntryRef<'a>);

impl<'a> LockStep<'a> {
    fn new(wanted: &'a Manifest, present: &'a Manifest) -> Self {
        Self { wanted, present, id: 0, at: 0 }
    }

    /// Passes over the next entries as far as they are equal in everything. A tree of 82,000 equal
    /// entries took 5.7 ms one by one, and takes 0.3 ms so.
    fn skip_equal(&mut self) {
        let count = self.wanted.equal_run(self.id, self.present, self.at);
        (self.id, self.at) = (self.id + count, self.at + count);
    }

    /// The next path in either manifest, with its entries.
    fn next(&mut self) -> Option<(Option<Indexed<'a>>, Option<Indexed<'a>>)> {
        let order = match (self.wanted.path(self.id), self.present.path(self.at)) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(wanted), Some(present)) => wanted.cmp(&present),
        };
        let (mut wanted, mut present) = (None, None);
        if order.is_le() {
            wanted = Some((self.id, self.wanted.get(self.id)?));
            self.id += 1;
        }
        if order.is_ge() {
            present = Some((self.at, self.present.get(self.at)?));
            self.at += 1;
        }
        Some((wanted, present))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::tree::entry::{Entry, Time};
    use crate::tree::path::TreePath;

    const RULES: Rules = Rules {
        delete: false,
        checksum: false,
        mode_mask: 0o7777,
        attributes: Compared { xattrs: false, acls: false },
        time_rule: TimeRule::Exact,
        transfer: TransferRules {
            update: false,
            existing: false,
            ignore_existing: false,
            size_max: None,
            size_min: None,
            prune_empty: false,
            proof: Proof::Time,
            append: false,
        },
        backs_up_beside: false,
    };
    const DELETE: Rules = Rules { delete: true, ..RULES };

    /// A tree in a line: `d/` a directory, `l>t` a link to t, `f:3` a file of 3 bytes, `f:3@9` with
    /// time 9.
    fn tree(text: &str) -> Manifest {
        let entries = text.split_whitespace().map(|word| {
            let (word, seconds) = word.split_once('@').unwrap_or((word, "1"));
            let (path, kind) = if let Some(path) = word.strip_suffix('/') {
                (path, Kind::Directory)
            } else if let Some((path, target)) = word.split_once('>') {
                (path, Kind::Symlink { target: target.as_bytes().into() })
            } else {
                let (path, size) = word.split_once(':').unwrap();
                (path, Kind::File { size: size.parse().unwrap(), hash: None })
            };
            let mtime = Time::new(seconds.parse().unwrap(), 0).unwrap();
            let path = TreePath::new(path.as_bytes()).unwrap();
            Entry { path, kind, mode: 0o644, mtime, attributes: None }
        });
        Manifest::new(entries.collect()).unwrap()
    }

    fn decisions(wanted: &str, present: &str, rules: Rules) -> Vec<String> {
        let (wanted, present) = (tree(wanted), tree(present));
        let name = |manifest: &Manifest, at: u32| manifest.get(at).unwrap().path.to_string();
        compare(&wanted, &present, rules, |entry| entry.path.name().starts_with(b"keep"))
            .into_iter()
            .map(|change| match change {
                Change::Create { id } => format!("create {}", name(&wanted, id)),
                Change::Update { id, .. } => format!("update {}", name(&wanted, id)),
                Change::Adjust { id, .. } => format!("adjust {}", name(&wanted, id)),
                Change::Verify { id, .. } => format!("verify {}", name(&wanted, id)),
                Change::Replace { id, .. } => format!("replace {}", name(&wanted, id)),
                Change::Obstacle { id, .. } => format!("obstacle {}", name(&wanted, id)),
                Change::Remove { at } => format!("remove {}", name(&present, at)),
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

        #[test]
        fn runs_of_equal_entries_change_no_decision(
            wanted in proptest::collection::vec(0_u8..5, 12), other in proptest::collection::vec(0_u8..5, 12),
            edits in proptest::collection::vec(0_u8..8, 12), delete: bool,
        ) {
            // Directories `a` and `b` with the same names in them, so that only the parent differs.
            let word = |(at, kind): (usize, &u8)| {
                let (directory, name) = (["a", "b"][at / 6], at % 6);
                match kind {
                    0 => String::new(),
                    1 => format!("{directory}/{name}:1"),
                    2 => format!("{directory}/{name}:2@2"),
                    3 => format!("{directory}/{name}>t"),
                    _ => format!("{directory}/{name}/ {directory}/{name}/f:1"),
                }
            };
            let text = |kinds: &[u8]| {
                let (a, b) = kinds.split_at(6);
                let part = |kinds: &[u8], first| {
                    kinds.iter().enumerate().map(|(at, kind)| word((at + first, kind))).collect::<Vec<_>>().join(" ")
                };
                format!("a/ {} b/ {}", part(a, 0), part(b, 6))
            };
            let mostly_equal: Vec<u8> = wanted.iter().zip(&other).zip(&edits)
                .map(|((one, other), edit)| if *edit == 0 { *other } else { *one }).collect();
            let rules = if delete { DELETE } else { RULES };
            // Equal entries get a decision each, and the limit excludes none.
            let transfer = TransferRules { size_max: Some(u64::MAX), ..RULES.transfer };
            let (wanted, present) = (text(&wanted), text(&mostly_equal));
            prop_assert_eq!(
                decisions(&wanted, &present, rules),
                decisions(&wanted, &present, Rules { transfer, ..rules })
            );
        }
    }

    #[test]
    fn every_pair_of_kinds_has_its_decision() {
        let none: [&str; 0] = [];
        for (wanted, present, rules, expected) in [
            ("", "", DELETE, &none[..]),
            ("a/ a/f:1 l>t", "a/ a/f:1 l>t", DELETE, &[]),
            ("a/", "", RULES, &["create a"]),
            ("a:1", "", RULES, &["create a"]),
            ("a>t", "", RULES, &["create a"]),
            ("a/@2", "a/", RULES, &["adjust a"]),
            ("a:1@2", "a:1", RULES, &["update a"]),
            ("a:2", "a:1", RULES, &["update a"]),
            ("a>t@2", "a>t", RULES, &["adjust a"]),
            ("a>u", "a>t", RULES, &["update a"]),
            ("a>t", "a:1", RULES, &["update a"]),
            ("a:1", "a>t", RULES, &["update a"]),
            ("a/", "a:1", RULES, &["replace a"]),
            ("a/ a/f:1", "a>t", RULES, &["replace a", "create a/f"]),
            ("a:1", "a/", RULES, &["replace a"]),
            ("a:1", "a/ a/b:1", RULES, &["obstacle a"]),
            ("a:1", "a/ a/b:1", DELETE, &["replace a"]),
            ("a:1", "a/ a/b:1 a/keep:1", DELETE, &["obstacle a"]),
            ("b:1", "a:1 b:1 c/ c/d:1", RULES, &[]),
            ("b:1", "a:1 b:1 c/ c/d:1", DELETE, &["remove a", "remove c", "remove c/d"]),
        ] {
            assert_eq!(decisions(wanted, present, rules), expected, "{wanted} | {present}");
        }
    }

    #[test]
    fn entries_that_rules_pass_over_get_no_decision() {
        let none = TransferRules::default();
        let existing = TransferRules { existing: true, ..none };
        let ignore_existing = TransferRules { ignore_existing: true, ..none };
        let update = TransferRules { update: true, ..none };
        let short = TransferRules { size_max: Some(1), ..none };
        let prune = TransferRules { prune_empty: true, ..none };
        for (transfer, wanted, present, expected) in [
            (existing, "a:1 b/ b/c:1 d:2", "d:1", &["update d"][..]),
            (existing, "a/ a/b:1", "a:1", &["replace a"]),
            (ignore_existing, "a:1 b:2 d/@2 l>t", "b:1 d/ l>u", &["create a", "adjust d"]),
            (ignore_existing, "a/ a/b:1 c:1", "a>t", &["create c"]),
            (ignore_existing, "a:1", "a/ a/b:1", &[]),
            (
                update,
                "a:2@1 b:2@2 c:2@3 l>t@1",
                "a:1@2 b:1@2 c:1@2 l>u@2",
                &["update b", "update c", "update l"],
            ),
            (update, "a:1@1 b>t@1", "a>t@2 b:1@2", &["update a", "update b"]),
            (short, "a:2 b:1 c:2", "c/ c/d:1 e:1", &["create b", "remove e"]),
            (
                prune,
                "a/ a/b/ c/ c/d/ c/d/e:1 f/",
                "f/ f/g/ h:1",
                &["create c", "create c/d", "create c/d/e", "remove f", "remove f/g", "remove h"],
            ),
        ] {
            let rules = Rules { transfer, delete: transfer == short || transfer == prune, ..RULES };
            assert_eq!(decisions(wanted, present, rules), expected, "{transfer:?} {wanted} | {present}");
        }
    }

    #[test]
    fn proof_decides_if_equal_sizes_are_equal_files() {
        for (proof, wanted, expected) in [
            (Proof::Time, "a:1", &[][..]),
            (Proof::Time, "a:1@2", &["update a"]),
            (Proof::Size, "a:1@2", &["adjust a"]),
            (Proof::Size, "a:2", &["update a"]),
            (Proof::None, "a:1", &["update a"]),
        ] {
            let rules = Rules { transfer: TransferRules { proof, ..TransferRules::default() }, ..RULES };
            assert_eq!(decisions(wanted, "a:1", rules), expected, "{proof:?} {wanted}");
        }
    }

    #[test]
    fn protected_entries_stay_with_the_directories_above_them() {
        assert_eq!(
            decisions("z:1", "a/ a/b/ a/b/keep:1 a/c:1 keep/ z:1", DELETE),
            ["remove a/c"],
            "the directories hold something that stays"
        );
    }

    #[test]
    fn directories_stay_above_backups_beside_removed_entries() {
        let rules = Rules { backs_up_beside: true, ..DELETE };
        assert_eq!(
            decisions("z:1", "a/ a/b/ a/b/c:1 a/d/ e>t z:1", rules),
            ["remove a/b/c", "remove a/d", "remove e"],
            "a file below is backed up in its directory"
        );
        assert_eq!(decisions("a:1 b:1", "a/ a/b:1 b/ b/c/", rules), ["obstacle a", "replace b"]);
    }

    #[test]
    fn size_and_time_of_a_doubted_file_are_not_believed() {
        let (unverified, lost) = (Some(Doubt::Unverified), Some(Doubt::Lost));
        let verify = |adjust| vec![Change::Verify { id: 0, at: 0, adjust }];
        let update = vec![Change::Update { id: 0, at: 0 }];
        for (wanted, present, doubt, expected) in [
            ("a:1", "a:1", None, vec![]),
            ("a:1", "a:1", unverified, verify(false)),
            ("a:1", "a:1", lost, update.clone()),
            ("a:1@2", "a:1", unverified, update.clone()),
            ("a:2", "a:1", unverified, update.clone()),
            ("a>t", "a>t", unverified, vec![]),
            ("a/", "a/", unverified, vec![]),
        ] {
            let mut doubts = Doubts::default();
            doubt.into_iter().for_each(|doubt| doubts.push(0, doubt));
            let (wanted, present) = (tree(wanted), tree(present));
            let changes = compare_doubting(&wanted, &present, &doubts, RULES, &HashSet::new(), |_| false);
            assert_eq!(changes, expected, "{doubt:?}");
        }
    }

    #[test]
    fn checksum_decides_alone() {
        let hashed = |seconds, content: &[u8]| {
            let kind = Kind::File { size: 1, hash: Some(crate::content::hash::Hash::of(content)) };
            let path = TreePath::new(&b"a"[..]).unwrap();
            let mtime = Time::new(seconds, 0).unwrap();
            Manifest::new(vec![Entry { path, kind, mode: 0, mtime, attributes: None }]).unwrap()
        };
        let rules = Rules { checksum: true, ..RULES };
        let decide = |a: &Manifest, b: &Manifest| compare(a, b, rules, |_| false);
        assert_eq!(decide(&hashed(1, b"x"), &hashed(1, b"x")), []);
        assert_eq!(decide(&hashed(1, b"x"), &hashed(1, b"y")), [Change::Update { id: 0, at: 0 }]);
        assert_eq!(decide(&hashed(1, b"x"), &hashed(2, b"x")), [Change::Adjust { id: 0, at: 0 }]);
        let decide = |a: &Manifest, b: &Manifest| compare(a, b, RULES, |_| false);
        assert_eq!(decide(&hashed(1, b"x"), &hashed(1, b"y")), [Change::Update { id: 0, at: 0 }]);
        assert_eq!(decide(&hashed(1, b"x"), &tree("a:1")), [Change::Adjust { id: 0, at: 0 }], "its mode");
        assert_eq!(decide(&hashed(1, b"x"), &hashed(2, b"x")), [Change::Update { id: 0, at: 0 }]);
        // A hashed file needs no further check, unless the disk never wrote it.
        for (doubt, expected) in
            [(Doubt::Unverified, vec![]), (Doubt::Lost, vec![Change::Update { id: 0, at: 0 }])]
        {
            let mut doubts = Doubts::default();
            doubts.push(0, doubt);
            for rules in [rules, RULES] {
                let (wanted, present) = (hashed(1, b"x"), hashed(1, b"x"));
                assert_eq!(
                    compare_doubting(&wanted, &present, &doubts, rules, &HashSet::new(), |_| false),
                    expected
                );
            }
        }
    }
}
