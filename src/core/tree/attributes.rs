//! `Attributes`: the metadata of an entry that only options copy. These are owner, group, hard
//! links, the kind of a special file, and extended attributes with ACLs.
//!
//! Entries with equal attributes share them, in memory and on the wire. An entry without attributes
//! takes no space for them.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Longest name of an extended attribute in bytes: Linux's `XATTR_NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest value of an extended attribute in bytes: Linux's `XATTR_SIZE_MAX`.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// Most bytes of all extended attributes of one entry. Two blocks' worth of them still fit in a
/// frame.
pub const ENTRY_BYTES_MAX: usize = 256 << 10;

/// Most extended attributes of one entry.
pub const COUNT_MAX: usize = 1 << 10;

/// Bytes that one set of attributes counts besides its names and values.
const SET_BYTES: usize = 128;

/// The ACL that decides about access.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// The ACL that new entries of a directory inherit.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// The kind of an entry that is neither a file, a directory nor a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Special {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with this number.
    Character(u64),
    /// A block device with this number.
    Block(u64),
}

impl Special {
    /// True for a device, which only the superuser can make.
    #[must_use]
    pub fn is_device(self) -> bool {
        matches!(self, Self::Character(_) | Self::Block(_))
    }
}

/// An extended attribute: its name with the namespace, and its value.
pub type Xattr = (ByteBuf, ByteBuf);

/// The optional metadata of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attributes {
    /// User id of the owner.
    pub user: Option<u32>,
    /// Group id.
    pub group: Option<u32>,
    /// Device and inode number of an entry with several names: equal for all of its names.
    pub link: Option<(u64, u64)>,
    /// The kind of a special file.
    pub special: Option<Special>,
    /// Extended attributes, ACLs among them, in the order of their names.
    pub xattrs: Vec<Xattr>,
}

impl Attributes {
    /// True if every number and list is as small as it must be, and the names are in order.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let is_valid = |(name, value): &Xattr| {
            (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(&0) && value.len() <= VALUE_BYTES_MAX
        };
        // chown(2) takes the largest number for "leave it".
        let is_id = |id: Option<u32>| id != Some(u32::MAX);
        is_id(self.user)
            && is_id(self.group)
            && self.xattrs.len() <= COUNT_MAX
            && self.xattrs.iter().all(is_valid)
            && self.xattrs.is_sorted_by(|(one, _), (next, _)| one < next)
            && self.xattr_bytes() <= ENTRY_BYTES_MAX
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Bytes that these attributes count in a manifest.
    pub(super) fn counted_bytes(&self) -> usize {
        SET_BYTES + self.xattr_bytes()
    }

    /// True if there is nothing to tell about the entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// True for the name of an ACL.
#[must_use]
pub fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

/// The extended attributes that a comparison looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Extended attributes other than ACLs.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
}

/// The attributes in which two entries differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttributesDiffer {
    /// Another owner than the wanted one.
    pub owner: bool,
    /// Another group than the wanted one.
    pub group: bool,
    /// Another ACL.
    pub acl: bool,
    /// Other extended attributes.
    pub xattr: bool,
}

impl AttributesDiffer {
    /// Compares the attributes of an entry with those of the present one. An owner or group that is
    /// not wanted counts as equal.
    #[must_use]
    pub fn of(wanted: Option<&Attributes>, present: Option<&Attributes>, compared: Compared) -> Self {
        let differs = |wanted: Option<u32>, present: Option<u32>| wanted.is_some() && wanted != present;
        let user = |of: Option<&Attributes>| of.and_then(|of| of.user);
        let group = |of: Option<&Attributes>| of.and_then(|of| of.group);
        let xattrs = |acls: bool| {
            let of = move |of| -> Vec<&Xattr> { select(of, acls) };
            of(wanted) != of(present)
        };
        Self {
            owner: differs(user(wanted), user(present)),
            group: differs(group(wanted), group(present)),
            acl: compared.acls && xattrs(true),
            xattr: compared.xattrs && xattrs(false),
        }
    }

    /// True if something differs.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

fn select(of: Option<&Attributes>, acls: bool) -> Vec<&Xattr> {
    let all = of.map(|of| of.xattrs.iter()).into_iter().flatten();
    all.filter(|(name, _)| is_acl(name) == acls).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn xattr(name: &str, value: &[u8]) -> Xattr {
        (ByteBuf::from(name.as_bytes()), ByteBuf::from(value))
    }

    #[test]
    fn attributes_beyond_a_limit_are_refused() {
        let with = |xattrs: Vec<Xattr>| Attributes { xattrs, ..Attributes::default() };
        let long = "u".repeat(NAME_BYTES_MAX + 1);
        assert!(with(vec![xattr("user.a", b"1"), xattr("user.b", b"")]).is_within_limits());
        for refused in [
            with(vec![xattr("user.b", b""), xattr("user.a", b"")]),
            Attributes { user: Some(u32::MAX), ..Attributes::default() },
            Attributes { group: Some(u32::MAX), ..Attributes::default() },
            with(vec![xattr("user.a", b""), xattr("user.a", b"")]),
            with(vec![xattr("", b"")]),
            with(vec![xattr("user.\0", b"")]),
            with(vec![xattr(&long, b"")]),
            with(vec![xattr("user.a", &vec![0; VALUE_BYTES_MAX + 1])]),
            with((0..5).map(|n| xattr(&format!("user.{n}"), &vec![0; VALUE_BYTES_MAX])).collect()),
            with((0..=COUNT_MAX).map(|n| xattr(&format!("user.{n:05}"), b"")).collect()),
        ] {
            assert!(!refused.is_within_limits(), "{} attributes", refused.xattrs.len());
        }
    }

    #[test]
    fn only_what_is_compared_and_wanted_can_differ() {
        let wanted = Attributes {
            user: Some(1),
            xattrs: vec![xattr("system.posix_acl_access", b"a"), xattr("user.a", b"1")],
            ..Attributes::default()
        };
        let present = Attributes { user: Some(2), group: Some(3), ..Attributes::default() };
        let all = Compared { xattrs: true, acls: true };
        let differ = |compared| AttributesDiffer::of(Some(&wanted), Some(&present), compared);
        assert_eq!(differ(all), AttributesDiffer { owner: true, group: false, acl: true, xattr: true });
        assert_eq!(differ(Compared::default()), AttributesDiffer { owner: true, ..Default::default() });
        assert!(!AttributesDiffer::of(Some(&wanted), Some(&wanted), all).any());
        let xattr = AttributesDiffer { acl: true, xattr: true, ..Default::default() };
        assert_eq!(AttributesDiffer::of(None, Some(&wanted), all), xattr, "they are to be removed");
    }
}
