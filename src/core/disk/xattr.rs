//! Extended attributes of an entry that is open, or that a descriptor leads to. ACLs are extended
//! attributes with reserved names.
//!
//! An entry may be closed to its owner, and a FIFO must not be opened. So attributes are read and
//! set by the kernel's own name of a descriptor, `/proc/self/fd/N`, which no other process can
//! change.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use serde_bytes::ByteBuf;

use crate::disk::error::{DiskError, DiskErrorKind};
use crate::tree::attributes::{COUNT_MAX, ENTRY_BYTES_MAX, Xattr, is_acl};
use crate::tree::effective::is_allowed;
use crate::tree::metadata::MetadataOptions;

/// The extended attributes that a run copies; all others stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Attributes other than ACLs.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
    /// This process is the superuser's.
    pub is_superuser: bool,
    /// Owners are copied, too.
    pub with_owner: bool,
}

impl Namespaces {
    /// The attributes that these options copy.
    #[must_use]
    pub fn of(options: Option<&MetadataOptions>) -> Self {
        let is_superuser = rustix::process::geteuid().is_root();
        options.map_or(Self::default(), |options| Self {
            xattrs: options.xattrs,
            acls: options.acls,
            is_superuser,
            with_owner: options.owner,
        })
    }

    /// True if there are any.
    #[must_use]
    pub fn any(self) -> bool {
        self.xattrs || self.acls
    }

    fn has(self, name: &[u8]) -> bool {
        if is_acl(name) {
            self.acls
        } else {
            self.xattrs && is_allowed(name, self.is_superuser, self.with_owner)
        }
    }
}

/// Reads the attributes of what a descriptor leads to, in the order of their names.
///
/// # Errors
/// [`Errno::TOOBIG`] if there are more than an entry may have, or the system's error. A filesystem
/// without attributes has none.
#[cfg(target_os = "linux")]
pub(crate) fn read(entry: impl AsFd, namespaces: Namespaces) -> Result<Vec<Xattr>, Errno> {
    use rustix::fs::{getxattr, listxattr};

    let at = place_of(entry);
    let list = match with_room(|buffer| listxattr(&*at, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        list => list?,
    };
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty() && namespaces.has(name));
    let (mut xattrs, mut bytes) = (Vec::new(), 0);
    for name in names {
        let value = match with_room(|buffer| getxattr(&*at, name, buffer)) {
            // Removed since it was listed, or hidden from this user.
            Err(Errno::NODATA | Errno::ACCESS | Errno::PERM | Errno::NOTSUP) => continue,
            value => value?,
        };
        bytes += name.len() + value.len();
        if bytes > ENTRY_BYTES_MAX || xattrs.len() == COUNT_MAX {
            return Err(Errno::TOOBIG);
        }
        xattrs.push((ByteBuf::from(name), ByteBuf::from(value)));
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read(_entry: impl AsFd, _namespaces: Namespaces) -> Result<Vec<Xattr>, Errno> {
    Ok(Vec::new())
}

/// Makes the attributes of what a descriptor leads to the `wanted` ones. Attributes in other
/// namespaces stay.
///
/// # Errors
/// The system's error for the first attribute that the filesystem does not take.
#[cfg(target_os = "linux")]
pub(crate) fn set(entry: impl AsFd, wanted: &[Xattr], namespaces: Namespaces) -> Result<(), Errno> {
    use rustix::fs::{XattrFlags, removexattr, setxattr};

    let entry = entry.as_fd();
    let wanted: Vec<&Xattr> = wanted.iter().filter(|(name, _)| namespaces.has(name)).collect();
    let present = read(entry, namespaces)?;
    let at = place_of(entry);
    for (name, _) in &present {
        if !wanted.iter().any(|(other, _)| other == name) {
            match removexattr(&*at, name.as_slice()) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let missing = wanted.into_iter().filter(|xattr| !present.contains(xattr));
    for (name, value) in missing {
        setxattr(&*at, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn set(_entry: impl AsFd, wanted: &[Xattr], namespaces: Namespaces) -> Result<(), Errno> {
    let is_any = wanted.iter().any(|(name, _)| namespaces.has(name));
    if is_any { Err(Errno::NOTSUP) } else { Ok(()) }
}

/// An error of setting attributes. A full block of attributes is not a full disk.
pub(crate) fn set_error(error: Errno, path: &[u8]) -> DiskError {
    let kind = match error {
        Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::INVAL | Errno::DQUOT => {
            DiskErrorKind::Attributes
        }
        error => DiskErrorKind::System(error.into()),
    };
    DiskError::new("set the extended attributes of", path, kind)
}

/// The kernel's own name for what a descriptor leads to, see `proc_pid_fd(5)`.
#[cfg(target_os = "linux")]
fn place_of(entry: impl AsFd) -> String {
    format!("/proc/self/fd/{}", entry.as_fd().as_raw_fd())
}

/// Calls `read` with more and more room until the result fits.
#[cfg(target_os = "linux")]
fn with_room(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // No list and no value is longer (xattr(7)).
    const ROOM: [usize; 2] = [1 << 10, 64 << 10];
    let mut result = Err(Errno::RANGE);
    for room in ROOM {
        let mut buffer = vec![0; room];
        result = read(&mut buffer).map(|length| {
            buffer.truncate(length);
            buffer
        });
        if !matches!(result, Err(Errno::RANGE)) {
            break;
        }
    }
    result
}
