//! The PATH filter of a VM without a world: this machine's programs without those that no VM has,
//! plus one that every VM has.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::process::PATH;
use crate::rooted::Root;
use crate::world::ABSENT;

/// Emulates a VM's supervisor. The SSH server and its bridge run from the start, and are no
/// services of this machine, so the script reports them as running.
const SUPERVISORCTL: &str = "#!/bin/sh\n[ \"$1\" = status ] || exit 0\nshift\n\
                             for name; do echo \"$name RUNNING pid 1, uptime 0:00:01\"; done\n";

/// Installs the supervisor of a VM with a world.
pub(super) fn install_supervisorctl(root: &Root) -> io::Result<()> {
    let path = "usr/local/sbin/supervisorctl";
    root.write(path, SUPERVISORCTL.as_bytes(), 0o755)?;
    fs::set_permissions(root.find(path)?.path(), Permissions::from_mode(0o755))
}

/// Builds `PATH`. A directory with an absent program is replaced by one below `folder`, with a link
/// to each other program.
pub(super) fn search_path(folder: &Path) -> io::Result<OsString> {
    let mut mirrors: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let own = folder.join("bin");
    fs::create_dir(&own)?;
    let supervisorctl = own.join("supervisorctl");
    fs::write(&supervisorctl, SUPERVISORCTL)?;
    fs::set_permissions(&supervisorctl, Permissions::from_mode(0o755))?;
    let mut path = vec![own];
    for directory in std::env::split_paths(PATH) {
        // `/bin` may be a link to `/usr/bin`.
        let Ok(real) = directory.canonicalize() else { continue };
        if !ABSENT.iter().any(|name| real.join(name).exists()) {
            path.push(directory);
        } else if let Some(mirror) = mirrors.get(&real) {
            path.push(mirror.clone());
        } else {
            let mirror = folder.join(format!("bin-{}", mirrors.len()));
            make_mirror(&real, &mirror)?;
            path.push(mirror.clone());
            mirrors.insert(real, mirror);
        }
    }
    std::env::join_paths(path).map_err(io::Error::other)
}

fn make_mirror(of: &Path, mirror: &Path) -> io::Result<()> {
    fs::create_dir(mirror)?;
    for entry in fs::read_dir(of)? {
        let name = entry?.file_name();
        if !ABSENT.iter().any(|absent| name == OsStr::new(absent)) {
            symlink(of.join(&name), mirror.join(&name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_programs_are_not_found_and_the_others_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = search_path(folder.path()).expect("a path");
        let found = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
        for name in ABSENT {
            assert!(!found(name), "{name}");
        }
        assert!(found("sh") && found("cat") && found("supervisorctl"));
    }
}
