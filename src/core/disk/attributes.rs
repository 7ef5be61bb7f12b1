//! Reads the metadata of an entry that only options copy.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::disk::set_id::{Owner, mode_for};
use crate::disk::stat::{FileKind, Stat};
use crate::disk::xattr::{self, Namespaces};
use crate::tree::attributes::Attributes;
use crate::tree::metadata::MetadataOptions;

/// The attributes of the entry `name`, as far as the options ask for any. Those of a followed link
/// are its target's.
pub(crate) fn of(
    parent: impl AsFd,
    name: &CStr,
    stat: &Stat,
    is_followed: bool,
    options: &MetadataOptions,
) -> Result<Option<Attributes>, Errno> {
    let namespaces = Namespaces::of(Some(options));
    let xattrs = if namespaces.any() {
        let nofollow = if is_followed { OFlags::empty() } else { OFlags::NOFOLLOW };
        match openat(parent, name, OFlags::PATH | nofollow | OFlags::CLOEXEC, Mode::empty()) {
            // The transfer or the next round finds out that it is gone.
            Err(Errno::NOENT) => Vec::new(),
            entry => xattr::read(&entry?, namespaces)?,
        }
    } else {
        Vec::new()
    };
    Ok(with_xattrs(stat, options, xattrs))
}

/// The attributes of an open directory with this metadata.
pub(crate) fn of_open(
    directory: impl AsFd,
    stat: &Stat,
    options: &MetadataOptions,
) -> Option<Arc<Attributes>> {
    let namespaces = Namespaces::of(Some(options));
    let xattrs = if namespaces.any() { xattr::read(directory, namespaces).ok()? } else { Vec::new() };
    with_xattrs(stat, options, xattrs).map(Arc::new)
}

fn with_xattrs(
    stat: &Stat,
    options: &MetadataOptions,
    xattrs: Vec<crate::tree::attributes::Xattr>,
) -> Option<Attributes> {
    let is_linked = stat.nlink > 1 && stat.kind() != FileKind::Directory && stat.identity.ino != 0;
    let attributes = Attributes {
        user: options.owner.then_some(stat.uid),
        group: options.group.then_some(stat.gid),
        link: (options.hard_links && is_linked).then_some((stat.identity.dev, stat.identity.ino)),
        special: stat.special,
        xattrs,
    };
    Some(attributes).filter(|attributes| !attributes.is_empty())
}

/// The mode that an entry is offered with: without the set-id bits that a copy may not have, and
/// with the changes of `--chmod`.
#[must_use]
pub fn offered_mode(stat: &Stat, owner: Option<Owner>, metadata: Option<&MetadataOptions>) -> u16 {
    let mode = owner.map_or(stat.mode, |owner| {
        let mode = mode_for(stat.mode, (stat.uid, stat.gid), owner);
        // A copied owner or group brings its bit.
        let of_user = if metadata.is_some_and(|metadata| metadata.owner) { 0o4000 } else { 0 };
        let of_group = if metadata.is_some_and(|metadata| metadata.group) { 0o2000 } else { 0 };
        mode | stat.mode & (of_user | of_group)
    });
    match metadata.filter(|metadata| !metadata.chmod.is_empty()) {
        Some(metadata) => metadata.mode(mode, stat.kind() == FileKind::Directory),
        None => mode,
    }
}
