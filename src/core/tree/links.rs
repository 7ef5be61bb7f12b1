//! Links that lead out of the tree, and links that a sender follows.
//!
//! A target stays inside if it climbs first and then descends. `..` then stands only at its front,
//! at most as often as the link is deep, and only names follow. A tree whose links all have this
//! form is closed: a link's own directories are directories, so each `..` at the front climbs one
//! directory. A name leads down, or to another link that stays inside. A `..` after a name is
//! refused, wherever the name seems to lead. It climbs from the object behind the name, which may
//! be a link: in this tree, in the destination, or one made later.
//!
//! The decision uses names alone, as rsync's `--safe-links` does. A link of the destination's owner
//! may lead out and not be part of the sync. It leads out for everyone who follows it, also through
//! a synced link.

use serde::{Deserialize, Serialize};

use crate::tree::path_ref::PathRef;

/// The symbolic links that a sender replaces by what they lead to, as the user asked on the command
/// line. No peer can add to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FollowedLinks(u8);

impl FollowedLinks {
    /// All (`--copy-links`).
    pub const ALL: Self = Self(1);
    /// Those that may lead out of the tree (`--copy-unsafe-links`).
    pub const UNSAFE: Self = Self(2);
    /// Those that lead to directories (`--copy-dirlinks`).
    pub const DIRECTORIES: Self = Self(4);

    /// These and others.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// True if these are among them.
    #[must_use]
    pub fn has(self, these: Self) -> bool {
        self.0 & these.0 != 0
    }

    /// True if any link is followed.
    #[must_use]
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// True if a link to a file may be followed.
    #[must_use]
    pub fn may_lead_to_files(self) -> bool {
        self.has(Self::ALL) || self.has(Self::UNSAFE)
    }

    /// True if this version knows each bit.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.0 & !7 == 0
    }
}

/// True if a link at `path` may lead out of the tree.
#[must_use]
pub fn leads_out(path: PathRef<'_>, target: &[u8]) -> bool {
    leads_out_from(path.components().count() - 1, target)
}

/// True if a link in a directory that is this deep below the root of the tree may lead out of it.
#[must_use]
pub fn leads_out_from(depth: usize, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    // `.` and the empty name between two slashes lead nowhere.
    let mut steps =
        target.split(|&byte| byte == b'/').filter(|step| !step.is_empty() && *step != b".").peekable();
    let mut climbed = 0;
    while steps.next_if(|step| *step == b"..").is_some() {
        climbed += 1;
    }
    climbed > depth || steps.any(|step| step == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::path::TreePath;

    #[test]
    fn target_stays_inside_if_it_climbs_first_and_not_too_far() {
        for (path, stays, leaves) in [
            (
                "link",
                &["x", "./x", "d/e", "d//e/", ".", "./", "", "...", "..x", "x..", "d/..x/f", ".x/y"][..],
                &["..", "../", "./..", ".//..", "../x", "/", "/x", "//x", "/../x", "/./"][..],
            ),
            (
                "d/link",
                &["..", "../", "../x", "./../x", ".././x", "..//x/y", "../d/link"],
                &["../..", "../../x", ".././..", "..//..//x", "x/..", "./x/../y", "../x/..", "../x/../y"],
            ),
            (
                "a/b/link",
                &["../../x", "../..", "./.././../x/y", "../x/y/z"],
                &[
                    "../../../x",
                    "c/../../../../x",
                    "c/d/../../../../a",
                    "c/d/../../..",
                    "a/./../..",
                    "a//../b",
                ],
            ),
            // After a name, `..` may lead anywhere, even where counting says that it stays.
            ("d/e/link", &["up"], &["up/../secret", "x/y/../z", "../up/..", "x/.."]),
        ] {
            let path = TreePath::new(path.as_bytes()).unwrap();
            let path = PathRef::from(&path);
            stays.iter().for_each(|target| assert!(!leads_out(path, target.as_bytes()), "{path:?} {target}"));
            leaves.iter().for_each(|target| assert!(leads_out(path, target.as_bytes()), "{path:?} {target}"));
        }
    }
}
