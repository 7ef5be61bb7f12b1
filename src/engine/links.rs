//! Links that lead out of the tree, which a download does not take.
//!
//! A target stays inside if it climbs first and descends then: `..` stands at its front only, no
//! more often than the link lies deep, and what follows are names. A tree whose links are all of
//! this form is closed: a link's own directories are directories, so each `..` at the front goes
//! one directory up; a name leads down, or to another link that stays inside. A `..` behind a name
//! is refused, wherever the name seems to lead: it goes up from what the name *is*, which may be a
//! link in this tree, in the destination, or one that comes to stand there later.
//!
//! The decision goes by names alone, as rsync's `--safe-links` does. A link of the destination's
//! owner that leads out and is not part of the sync leads out for whoever goes through it, also by
//! way of a link that was synced.

use crate::tree::path_ref::PathRef;

/// Whether a link at `path` may lead out of the tree.
pub(super) fn leads_out(path: PathRef<'_>, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let depth = path.components().count() - 1;
    // `.` and what lies between two slashes go nowhere.
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
    fn only_what_climbs_first_and_not_too_far_stays() {
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
            // Behind a name, `..` leads anywhere, also where counting says that it stays.
            ("d/e/link", &["up"], &["up/../secret", "x/y/../z", "../up/..", "x/.."]),
        ] {
            let path = TreePath::new(path.as_bytes()).unwrap();
            let path = PathRef::from(&path);
            stays.iter().for_each(|target| assert!(!leads_out(path, target.as_bytes()), "{path:?} {target}"));
            leaves.iter().for_each(|target| assert!(leads_out(path, target.as_bytes()), "{path:?} {target}"));
        }
    }
}
