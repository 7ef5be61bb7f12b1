//! `Accounts` of the receiver's machine and `Owners` of the offer: ids with their names, and the
//! map from the ones to the others.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::tree::metadata::{IdRule, MetadataOptions, NAME_BYTES_MAX, NewId};

/// Most named users, and most named groups, of an offer.
pub const OWNERS_MAX: usize = 1 << 13;

/// The users and groups of an offer that have names on the sender's machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owners {
    /// User ids with their names.
    pub users: Vec<(u32, ByteBuf)>,
    /// Group ids with their names.
    pub groups: Vec<(u32, ByteBuf)>,
}

impl Owners {
    /// True if the lists and names are as short as they must be.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let fits = |list: &[(u32, ByteBuf)]| {
            list.len() <= OWNERS_MAX && list.iter().all(|(_, name)| name.len() <= NAME_BYTES_MAX)
        };
        fits(&self.users) && fits(&self.groups)
    }
}

/// The users and groups of one machine, and the rights of this process there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// User ids by name.
    pub users: HashMap<Vec<u8>, u32>,
    /// Group ids by name.
    pub groups: HashMap<Vec<u8>, u32>,
    /// True if this process may set any owner and make devices.
    pub is_superuser: bool,
    /// The groups that this process may set.
    pub own_groups: Vec<u32>,
    /// The permission bits that new files do not get.
    pub umask: u16,
}

/// The ids of an offer and what they are on the receiver's machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    names: HashMap<u32, Vec<u8>>,
    rules: Vec<(IdRule, u32)>,
    ids: HashMap<Vec<u8>, u32>,
}

impl IdMap {
    fn new(owners: &[(u32, ByteBuf)], rules: &[IdRule], ids: &HashMap<Vec<u8>, u32>) -> Self {
        let names: HashMap<u32, Vec<u8>> = owners.iter().map(|(id, name)| (*id, name.to_vec())).collect();
        let target = |rule: &IdRule| match &rule.to {
            NewId::Number(id) => Some(*id),
            NewId::Name(name) => ids.get(name.as_slice()).copied(),
        };
        let rules = rules.iter().filter_map(|rule| Some((rule.clone(), target(rule)?))).collect();
        let wanted = names.values().filter_map(|name| Some((name.clone(), *ids.get(name)?)));
        Self { ids: wanted.collect(), rules, names }
    }

    /// The id on the receiver's machine. The superuser stays the superuser, as with rsync.
    #[must_use]
    pub fn get(&self, id: u32) -> u32 {
        let name = self.names.get(&id);
        let shown = name.map(Vec::as_slice).unwrap_or_default();
        if let Some((_, to)) = self.rules.iter().find(|(rule, _)| rule.matches(id, shown)) {
            return *to;
        }
        name.filter(|_| id != 0).and_then(|name| self.ids.get(name)).copied().unwrap_or(id)
    }
}

impl Accounts {
    /// The maps of users and of groups.
    #[must_use]
    pub fn maps(&self, owners: &Owners, options: &MetadataOptions) -> (IdMap, IdMap) {
        (
            IdMap::new(&owners.users, &options.users, &self.users),
            IdMap::new(&owners.groups, &options.groups, &self.groups),
        )
    }

    /// Names of the rules that no user or group here has, each with `user` or `group`.
    #[must_use]
    pub fn unknown(&self, options: &MetadataOptions) -> Vec<(&'static str, Vec<u8>)> {
        let unknown = |what, rules: &[IdRule], ids: &HashMap<Vec<u8>, u32>| {
            let names = rules.iter().filter_map(|rule| match &rule.to {
                NewId::Name(name) if !ids.contains_key(name.as_slice()) => Some(name.to_vec()),
                _ => None,
            });
            names.map(|name| (what, name)).collect::<Vec<_>>()
        };
        [unknown("user", &options.users, &self.users), unknown("group", &options.groups, &self.groups)]
            .concat()
    }

    /// True if this process may give a file this group.
    #[must_use]
    pub fn may_set_group(&self, group: u32) -> bool {
        self.is_superuser || self.own_groups.contains(&group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_over_numbers_and_rules_over_names() {
        let accounts =
            Accounts { users: [(b"me".to_vec(), 7), (b"root".to_vec(), 9)].into(), ..Accounts::default() };
        let named = |id, name: &str| (id, ByteBuf::from(name.as_bytes()));
        let owners = Owners {
            users: vec![named(1000, "me"), named(1001, "gone"), named(0, "root"), named(5, "web")],
            groups: Vec::new(),
        };
        let options = MetadataOptions {
            users: IdRule::parse_list("web:me,6-8:3,77:nobody-here").unwrap(),
            ..MetadataOptions::default()
        };
        let (users, _) = accounts.maps(&owners, &options);
        for (from, to) in [(1000, 7), (1001, 1001), (0, 0), (5, 7), (7, 3), (77, 77), (50, 50)] {
            assert_eq!(users.get(from), to, "{from}");
        }
        assert_eq!(accounts.unknown(&options), [("user", b"nobody-here".to_vec())]);
    }
}
