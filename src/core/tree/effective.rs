//! The effective tree: an offered tree with the metadata that the receiver can and may set. Ids
//! become those of its machine, and modes what `--no-perms` leaves of them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::tree::accounts::{Accounts, IdMap, Owners};
use crate::tree::attributes::{Attributes, Xattr, is_acl};
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::manifest::{Builder, Manifest, ManifestError};
use crate::tree::metadata::MetadataOptions;

/// The bits of a mode that a new entry takes from its original without its permissions: none of the
/// set-id bits and the sticky bit.
const PERMISSIONS: u16 = 0o777;

/// Maps the attributes of an offer to the receiver's machine.
pub struct Mapping<'a> {
    options: &'a MetadataOptions,
    accounts: &'a Accounts,
    users: IdMap,
    groups: IdMap,
    /// Attributes that were mapped already.
    mapped: HashMap<Arc<Attributes>, Option<Arc<Attributes>>>,
    /// The last of them. A peer can give many entries the same attributes in a few bytes each, and
    /// hashing these for each entry would take minutes.
    last: Option<(Arc<Attributes>, Option<Arc<Attributes>>)>,
}

impl<'a> Mapping<'a> {
    /// Makes a mapping for an offer with these owners.
    #[must_use]
    pub fn new(options: &'a MetadataOptions, accounts: &'a Accounts, owners: &Owners) -> Self {
        let (users, groups) = accounts.maps(owners, options);
        Self { options, accounts, users, groups, mapped: HashMap::new(), last: None }
    }

    /// The attributes that an entry is to have here.
    pub fn attributes(&mut self, offered: &Arc<Attributes>) -> Option<Arc<Attributes>> {
        if let Some((last, mapped)) = &self.last
            && Arc::ptr_eq(last, offered)
        {
            return mapped.clone();
        }
        let mapped = self.mapped_once(offered);
        self.last = Some((Arc::clone(offered), mapped.clone()));
        mapped
    }

    fn mapped_once(&mut self, offered: &Arc<Attributes>) -> Option<Arc<Attributes>> {
        if let Some(mapped) = self.mapped.get(offered) {
            return mapped.clone();
        }
        let (options, accounts) = (self.options, self.accounts);
        let user = offered.user.filter(|_| options.owner && accounts.is_superuser);
        let group = offered.group.filter(|_| options.group).map(|group| self.groups.get(group));
        let mapped = Attributes {
            user: user.map(|user| self.users.get(user)),
            group: group.filter(|group| accounts.may_set_group(*group)),
            link: offered.link.filter(|_| options.hard_links),
            special: offered.special,
            xattrs: offered.xattrs.iter().filter_map(|xattr| self.xattr(xattr)).collect(),
        };
        let mapped = Some(mapped).filter(|mapped| !mapped.is_empty()).map(Arc::new);
        self.mapped.insert(Arc::clone(offered), mapped.clone());
        mapped
    }

    fn xattr(&self, (name, value): &Xattr) -> Option<Xattr> {
        if is_acl(name) {
            let value = acl_for(value, &self.users, &self.groups);
            return self.options.acls.then(|| (name.clone(), value.into()));
        }
        let is_copied =
            self.options.xattrs && is_allowed(name, self.accounts.is_superuser, self.options.owner);
        is_copied.then(|| (name.clone(), value.clone()))
    }

    /// The whole tree, with its effective metadata. `present` is the tree in its place.
    ///
    /// # Errors
    /// The attributes of all entries together are longer than a tree may have.
    pub fn tree(&mut self, offered: &Manifest, present: &Manifest) -> Result<Manifest, ManifestError> {
        let mut tree = Builder::default();
        for entry in offered.entries() {
            let attributes = entry.attributes.and_then(|attributes| self.attributes(attributes));
            let old = self.options.no_perms.then(|| present.position(entry.path)).flatten();
            let mode = self.mode(entry, old.and_then(|at| present.get(at)));
            tree.add(EntryRef { mode, attributes: attributes.as_ref(), ..entry })?;
        }
        Ok(tree.finish())
    }

    /// The mode of an entry, where `old` may be in its place.
    fn mode(&self, entry: EntryRef<'_>, old: Option<EntryRef<'_>>) -> u16 {
        let is_link = matches!(entry.kind, Kind::Symlink { .. }) && !entry.kind.is_special();
        if !self.options.no_perms || is_link {
            return entry.mode;
        }
        let is_file = matches!(entry.kind, Kind::File { .. });
        let is_same_kind = |old: &EntryRef<'_>| {
            is_file == matches!(old.kind, Kind::File { .. }) && entry.is_directory() == old.is_directory()
        };
        let Some(old) = old.filter(is_same_kind) else {
            return entry.mode & PERMISSIONS & !self.accounts.umask;
        };
        match (self.options.executability && is_file, entry.mode & 0o111 != 0) {
            (false, _) => old.mode,
            (true, false) => old.mode & !0o111,
            // As rsync: who may read may execute, unless somebody may already.
            (true, true) if old.mode & 0o111 != 0 => old.mode,
            (true, true) => old.mode | (old.mode & 0o444) >> 2,
        }
    }
}

/// True if an extended attribute that is no ACL may be copied. Only the superuser may see all
/// namespaces. A capability gives rights as a set-user-id bit does, so it needs the owner too.
#[must_use]
pub fn is_allowed(name: &[u8], is_superuser: bool, with_owner: bool) -> bool {
    // Notes of rsync about owners that it could not set, and of ksync about its own copies.
    let is_note = name.starts_with(b"user.rsync.%") || name.starts_with(b"user.ksync.");
    if is_note || name.starts_with(b"system.") {
        return false;
    }
    let is_security = name.starts_with(b"security.");
    name.starts_with(b"user.") || is_superuser && (with_owner || !is_security)
}

/// Bytes of an ACL's header and of each of its entries (`linux/posix_acl_xattr.h`).
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// Tags of the entries that name a user or a group.
const TAG_USER: [u8; 2] = [0x02, 0];
const TAG_GROUP: [u8; 2] = [0x08, 0];

/// The users and groups that an ACL names.
#[must_use]
pub fn ids_of_acl(acl: &[u8]) -> (Vec<u32>, Vec<u32>) {
    let (mut users, mut groups) = (Vec::new(), Vec::new());
    for entry in acl.get(HEADER_BYTES..).unwrap_or_default().chunks_exact(ENTRY_BYTES) {
        let (tag, id) = entry.split_at(ENTRY_BYTES / 2);
        let id = <[u8; 4]>::try_from(id).map(u32::from_le_bytes);
        match tag.first_chunk::<2>() {
            Some(&TAG_USER) => users.extend(id),
            Some(&TAG_GROUP) => groups.extend(id),
            _ => {}
        }
    }
    (users, groups)
}

/// The ACL with the ids of the receiver's machine. The kernel refuses what is none.
fn acl_for(acl: &[u8], users: &IdMap, groups: &IdMap) -> Vec<u8> {
    let mut acl = acl.to_vec();
    for entry in acl.get_mut(HEADER_BYTES..).unwrap_or_default().chunks_exact_mut(ENTRY_BYTES) {
        let (tag, id) = entry.split_at_mut(ENTRY_BYTES / 2);
        let map = match tag.first_chunk::<2>() {
            Some(&TAG_USER) => users,
            Some(&TAG_GROUP) => groups,
            _ => continue,
        };
        if let Ok(number) = <[u8; 4]>::try_from(&*id) {
            id.copy_from_slice(&map.get(u32::from_le_bytes(number)).to_le_bytes());
        }
    }
    acl
}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::tree::change::testing::{entry, file};
    use crate::tree::metadata::IdRule;

    fn accounts(is_superuser: bool) -> Accounts {
        Accounts { is_superuser, own_groups: vec![5], umask: 0o022, ..Accounts::default() }
    }

    #[test]
    fn ordinary_user_keeps_only_groups_of_its_own() {
        let options = MetadataOptions { owner: true, group: true, ..MetadataOptions::default() };
        let offered =
            |group| Arc::new(Attributes { user: Some(1), group: Some(group), ..Attributes::default() });
        for (is_superuser, group, expected) in
            [(true, 7, (Some(1), Some(7))), (false, 7, (None, None)), (false, 5, (None, Some(5)))]
        {
            let accounts = accounts(is_superuser);
            let mut mapping = Mapping::new(&options, &accounts, &Owners::default());
            let mapped = mapping.attributes(&offered(group)).map(|mapped| (mapped.user, mapped.group));
            assert_eq!(mapped.unwrap_or_default(), expected, "{is_superuser} {group}");
        }
    }

    #[test]
    fn ids_in_acls_are_mapped() {
        let entry = |tag: u8, id: u32| [&[tag, 0, 7, 0][..], &id.to_le_bytes()].concat();
        let acl =
            |user, group| [&[2, 0, 0, 0][..], &entry(1, !0), &entry(2, user), &entry(8, group)].concat();
        let options = MetadataOptions {
            users: IdRule::parse_list("10:20").unwrap(),
            groups: IdRule::parse_list("10:30").unwrap(),
            ..MetadataOptions::default()
        };
        let (users, groups) = accounts(true).maps(&Owners::default(), &options);
        assert_eq!(acl_for(&acl(10, 10), &users, &groups), acl(20, 30));
        assert_eq!(acl_for(b"xy", &users, &groups), b"xy");
    }

    #[test]
    fn security_attributes_need_the_superuser_and_the_owner() {
        for (name, is_superuser, with_owner, expected) in [
            ("user.a", false, false, true),
            ("user.rsync.%stat", true, true, false),
            ("trusted.a", false, true, false),
            ("trusted.a", true, false, true),
            ("security.capability", true, false, false),
            ("security.capability", true, true, true),
            ("system.nfs4_acl", true, true, false),
        ] {
            assert_eq!(is_allowed(name.as_bytes(), is_superuser, with_owner), expected, "{name}");
        }
        let options = MetadataOptions { xattrs: true, ..MetadataOptions::default() };
        let accounts = accounts(true);
        let xattrs = vec![(ByteBuf::from(b"security.capability"), ByteBuf::from(b"x"))];
        let offered = Arc::new(Attributes { xattrs, ..Attributes::default() });
        let mut mapping = Mapping::new(&options, &accounts, &Owners::default());
        assert_eq!(mapping.attributes(&offered), None, "a hostile sender gives no capability");
    }

    #[test]
    fn without_perms_old_modes_stay_and_new_ones_pass_the_umask() {
        let with_mode = |mode| crate::tree::entry::Entry { mode, ..file("f", 1) };
        let tree = |mode| Manifest::new(vec![with_mode(mode)]).unwrap();
        let empty = Manifest::default();
        let accounts = accounts(false);
        for (executability, wanted, present, expected) in [
            (false, 0o777, None, 0o755),
            (false, 0o7770, None, 0o750),
            (false, 0o777, Some(0o600), 0o600),
            (true, 0o755, Some(0o640), 0o750),
            (true, 0o644, Some(0o755), 0o644),
            (true, 0o755, Some(0o700), 0o700),
        ] {
            let options = MetadataOptions { no_perms: true, executability, ..MetadataOptions::default() };
            let mut mapping = Mapping::new(&options, &accounts, &Owners::default());
            let present = present.map(tree);
            let made = mapping.tree(&tree(wanted), present.as_ref().unwrap_or(&empty)).unwrap();
            assert_eq!(made.get(0).unwrap().mode, expected, "{wanted:o}");
        }
        let options = MetadataOptions { no_perms: true, ..MetadataOptions::default() };
        let mut mapping = Mapping::new(&options, &accounts, &Owners::default());
        let link = Manifest::new(vec![entry("l", Kind::Symlink { target: b"x"[..].into() })]).unwrap();
        assert_eq!(mapping.tree(&link, &empty).unwrap(), link);
    }
}
