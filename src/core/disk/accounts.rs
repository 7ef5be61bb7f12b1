//! The users and groups of this machine, as its lists in `/etc` name them. The statically linked
//! agent has no other directory of users.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;

use rustix::process::{getegid, geteuid, getgroups};
use serde_bytes::ByteBuf;

use crate::tree::accounts::{Accounts, OWNERS_MAX, Owners};
use crate::tree::attributes::is_acl;
use crate::tree::manifest::Manifest;
use crate::tree::metadata::NAME_BYTES_MAX;

/// Maximum length of a list, in bytes.
const LIST_BYTES_MAX: u64 = 16 << 20;

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// The accounts of this machine.
#[must_use]
pub fn accounts() -> Accounts {
    let groups = getgroups().unwrap_or_default();
    Accounts {
        // The first line of a name counts.
        users: parse(&read(USERS)).rev().collect(),
        groups: parse(&read(GROUPS)).rev().collect(),
        is_superuser: geteuid().is_root(),
        own_groups: groups.iter().chain([&getegid()]).map(|group| group.as_raw()).collect(),
        umask: umask(),
    }
}

/// The names of the users and groups of a tree, and of `root` besides it.
#[must_use]
pub fn owners_of(tree: &Manifest, root: Option<(u32, u32)>) -> Owners {
    let (mut users, mut groups) = (BTreeSet::new(), BTreeSet::new());
    let (user, group) = root.unzip();
    users.extend(user);
    groups.extend(group);
    for attributes in tree.attributes() {
        users.extend(attributes.user);
        groups.extend(attributes.group);
        for (_, acl) in attributes.xattrs.iter().filter(|(name, _)| is_acl(name)) {
            let (of_users, of_groups) = crate::tree::effective::ids_of_acl(acl);
            users.extend(of_users);
            groups.extend(of_groups);
        }
    }
    let named = |ids: &BTreeSet<u32>, list: &str| -> Vec<(u32, ByteBuf)> {
        let text = read(list);
        // The first line of an id counts.
        let names: HashMap<u32, Vec<u8>> = parse(&text).rev().map(|(name, id)| (id, name)).collect();
        let named = ids.iter().filter_map(|id| Some((*id, ByteBuf::from(names.get(id)?.clone()))));
        named.take(OWNERS_MAX).collect()
    };
    Owners { users: named(&users, USERS), groups: named(&groups, GROUPS) }
}

fn read(list: &str) -> Vec<u8> {
    let mut text = Vec::new();
    let read = File::open(list).and_then(|file| file.take(LIST_BYTES_MAX).read_to_end(&mut text));
    if read.is_ok() { text } else { Vec::new() }
}

/// The names of a list with their ids.
fn parse(text: &[u8]) -> impl DoubleEndedIterator<Item = (Vec<u8>, u32)> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| (1..=NAME_BYTES_MAX).contains(&name.len()))?;
        let id = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        Some((name.to_vec(), id))
    })
}

/// The umask of this process. Linux tells it without changing it.
#[cfg(target_os = "linux")]
#[must_use]
pub fn umask() -> u16 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u16::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

/// The umask of this process. Only setting it tells it.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn umask() -> u16 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.as_raw_mode() as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_up_to_their_damaged_lines() {
        let text = b"root:x:0:0::/root:\nbad\nme:x:1000:\n:x:5:\nhuge:x:99999999999:\n";
        let parsed: Vec<_> = parse(text).collect();
        assert_eq!(parsed, [(b"root".to_vec(), 0), (b"me".to_vec(), 1000)]);
    }

    #[test]
    fn accounts_name_the_superuser() {
        let accounts = accounts();
        assert_eq!(accounts.users.get(&b"root"[..]), Some(&0));
        assert!(accounts.own_groups.contains(&getegid().as_raw()) && accounts.umask <= 0o777);
    }
}
