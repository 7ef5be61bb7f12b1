//! Hard links: which wanted entries become further names of others.
//!
//! Entries with equal [`Attributes::link`](crate::tree::attributes::Attributes::link) are names of
//! one file, a group. One member, the leader, gets the content; preferably it has it already. The
//! others become further names of it, unless they are that in the destination. Present names of one
//! file that are not wanted as one group are split.

use std::collections::HashMap;

use crate::tree::compare::Change;
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::manifest::Manifest;

/// A comparison in which groups count.
#[derive(Debug, Default)]
pub struct Regrouped {
    /// All changes, in path order.
    pub changes: Vec<Change>,
    /// The leader of each entry that becomes a further name.
    pub leaders: HashMap<u32, u32>,
}

type Link = (u64, u64);

fn link_of(entry: EntryRef<'_>) -> Option<Link> {
    entry.attributes.and_then(|attributes| attributes.link)
}

/// Adds what groups need to the changes of a comparison. `takes_part` tells if a wanted entry is
/// neither excluded nor passed over.
#[must_use]
pub fn regroup(
    changes: Vec<Change>,
    wanted: &Manifest,
    present: &Manifest,
    takes_part: impl Fn(u32, EntryRef<'_>, Option<EntryRef<'_>>) -> bool,
) -> Regrouped {
    let by_id: HashMap<u32, Change> =
        changes.iter().filter_map(|change| Some((change.wanted()?, *change))).collect();
    let mut groups: HashMap<Link, Vec<Member>> = HashMap::new();
    // The wanted owner of each present file with several names.
    let mut owners: HashMap<Link, Owner> = HashMap::new();
    let mut added: HashMap<u32, Change> = HashMap::new();
    for (id, entry) in wanted.iter().filter(|(_, entry)| !entry.is_directory()) {
        let at = present.position(entry.path);
        let old = at.and_then(|at| present.get(at));
        let change = by_id.get(&id).copied();
        if matches!(change, Some(Change::Obstacle { .. })) || !takes_part(id, entry, old) {
            continue;
        }
        let link = link_of(entry);
        let mut member = Member { id, at, change, present: old.and_then(link_of) };
        // An entry that is made anew leaves the file whose name it was.
        let stays = matches!(change, None | Some(Change::Adjust { .. } | Change::Verify { .. }));
        if let (Some(of), Some(at), true) = (member.present, at, stays) {
            let own = link.map_or(Owner::Single(id), Owner::Group);
            if *owners.entry(of).or_insert(own) != own {
                let is_file = matches!(entry.kind, Kind::File { .. });
                let split = if is_file { Change::Update { id, at } } else { Change::Adjust { id, at } };
                (member.change, member.present) = (Some(split), None);
                added.insert(id, split);
            }
        }
        if let Some(link) = link {
            groups.entry(link).or_default().push(member);
        }
    }
    let mut leaders = HashMap::new();
    for members in groups.into_values().filter(|members| members.len() > 1) {
        // The first of the best ones.
        let Some(leader) = members.iter().min_by_key(|member| (member.rank(), member.id)).copied() else {
            continue;
        };
        for member in members.iter().filter(|member| member.id != leader.id) {
            let is_linked = leader.change.is_none() && member.change.is_none();
            if is_linked && member.present.is_some() && member.present == leader.present {
                continue;
            }
            leaders.insert(member.id, leader.id);
            let change = match (member.change, member.at) {
                (Some(change @ (Change::Create { .. } | Change::Replace { .. })), _) => change,
                (_, Some(at)) => Change::Update { id: member.id, at },
                (_, None) => Change::Create { id: member.id },
            };
            added.insert(member.id, change);
        }
    }
    Regrouped { changes: merged(changes, added), leaders }
}

/// The one that a present file is wanted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Group(Link),
    Single(u32),
}

#[derive(Debug, Clone, Copy)]
struct Member {
    id: u32,
    at: Option<u32>,
    change: Option<Change>,
    /// The present file, if it has several names.
    present: Option<Link>,
}

impl Member {
    /// The less, the less must be done to give this entry the content.
    fn rank(&self) -> u8 {
        match self.change {
            None => 0,
            Some(Change::Adjust { .. } | Change::Verify { .. }) => 1,
            Some(Change::Update { .. }) => 2,
            Some(_) => 3,
        }
    }
}

/// The changes with the added ones, which take the place of earlier ones about the same entries.
fn merged(changes: Vec<Change>, added: HashMap<u32, Change>) -> Vec<Change> {
    if added.is_empty() {
        return changes;
    }
    let mut added: Vec<(u32, Change)> = added.into_iter().collect();
    added.sort_unstable_by_key(|(id, _)| *id);
    let mut added = added.into_iter().peekable();
    let mut merged = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(id) = change.wanted() else {
            merged.push(change);
            continue;
        };
        while let Some((_, before)) = added.next_if(|(other, _)| *other < id) {
            merged.push(before);
        }
        merged.push(added.next_if(|(other, _)| *other == id).map_or(change, |(_, change)| change));
    }
    merged.extend(added.map(|(_, change)| change));
    merged
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tree::attributes::Attributes;
    use crate::tree::change::testing::file;
    use crate::tree::compare::{Rules, compare};
    use crate::tree::entry::Entry;
    use crate::tree::time_rule::TimeRule;

    /// `a:3#1` is a file of three bytes that is a name of file 1.
    fn tree(text: &str) -> Manifest {
        let entries = text.split_whitespace().map(|word| {
            let (word, link) = word.split_once('#').map_or((word, None), |(word, link)| (word, Some(link)));
            let (path, size) = word.split_once(':').unwrap();
            let link = link.map(|link| (1, link.parse().unwrap()));
            let attributes = link.map(|link| Arc::new(Attributes { link: Some(link), ..Default::default() }));
            Entry { attributes, ..file(path, size.parse().unwrap()) }
        });
        Manifest::new(entries.collect()).unwrap()
    }

    fn decisions(wanted: &str, present: &str) -> String {
        let (wanted, present) = (tree(wanted), tree(present));
        let rules = Rules { mode_mask: 0o7777, time_rule: TimeRule::Exact, ..Rules::default() };
        let changes = compare(&wanted, &present, rules, |_| false);
        let Regrouped { changes, leaders } = regroup(changes, &wanted, &present, |_, _, _| true);
        let name = |id| wanted.path(id).unwrap().to_path().to_string();
        let lines = changes.iter().map(|change| {
            let id = change.wanted().unwrap();
            let what = match change {
                Change::Create { .. } => "create",
                Change::Update { .. } => "update",
                _ => "other",
            };
            match leaders.get(&id) {
                Some(leader) => format!("{what} {} as {}", name(id), name(*leader)),
                None => format!("{what} {}", name(id)),
            }
        });
        lines.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn groups_of_the_source_become_groups_of_the_destination() {
        for (wanted, present, expected) in [
            ("a:1#1 b:1#1", "", "create a, create b as a"),
            ("a:1#1 b:1#1", "a:1#9 b:1#9", ""),
            ("a:1#1 b:1#1", "a:1 b:1", "update b as a"),
            ("a:1#1 b:1#1", "a:1#8 b:1#9", "update b as a"),
            ("a:1#1 b:1#1 c:1#1", "b:1#9 c:1#9", "create a as b"),
            ("a:2#1 b:2#1", "a:1#9 b:1#9", "update a, update b as a"),
            ("a:2#1 b:2#1", "a:1 b:2", "update a as b"),
            ("a:1#1 b:1", "a:1#9 b:1#9", "update b"),
            ("a:1 b:1", "a:1#9 b:1#9", "update b"),
            ("a:1#1 b:1#1 c:1#2 d:1#2", "a:1#9 b:1#9 c:1#9 d:1#9", "update c, update d as c"),
            ("a:1#1", "a:1#9 b:1#9", ""),
            ("a:1#1 b:1#1", "a:1#9 b:2#8", "update b as a"),
        ] {
            assert_eq!(decisions(wanted, present), expected, "{wanted} | {present}");
        }
    }
}
