//! The files of a world before its start: the directory that becomes its `/`, and the table of what
//! is mounted there.
//!
//! ```text
//! DIRECTORY/fs         /       /tmp, /root, /home, /srv and new directories lie here
//! DIRECTORY/layers     /usr, /etc, /opt …: the changes to this machine's directories, as overlays,
//!                      in `upper`; the kernel works in `work`
//! DIRECTORY/mounts     the table, in the format of fstab
//! DIRECTORY/overlays   the names of the overlaid directories
//! DIRECTORY/skeleton   the directories of the layers
//! DIRECTORY/furnished  exists once the files of a VM are there
//! ```
//!
//! Each directory of this machine's `/` has an overlay of its own. One overlay of `/` would show no
//! other filesystem below it, and in a user namespace the kernel refuses it, because `/` has mounts
//! that must not be uncovered.
//!
//! In a user namespace, this machine's files belong to nobody. The world's root can replace and
//! delete them in the directories of [`WRITABLE`], one level deep, and nowhere else.

use std::fmt::Write;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

/// Directories of `/` that a world has of its own, with their modes.
const OWN: [(&str, u32); 13] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("lost+found", 0o700),
    ("media", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("recordings", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// Devices that a world shares with this machine.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links in `/dev`.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Directories in whose directories a world's root can write, even in a user namespace.
const WRITABLE: [&str; 7] = ["/etc", "/opt", "/usr", "/usr/local", "/var", "/var/lib", "/var/log"];

/// Filesystems that a world does without: those of other containers, of users' programs and of the
/// network, which may be slow or gone.
const LEFT_OUT: [&str; 6] = ["autofs", "cifs", "nfs", "nfs4", "nsfs", "overlay"];

/// The rights with which a world is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Those of root.
    Root,
    /// Those of root in a user namespace.
    UserNamespace,
}

/// Prepares a world's directory. `layers_last` is false if the changes to this machine's
/// directories go to a tmpfs.
///
/// # Errors
/// The directory cannot be written.
pub(super) fn prepare(directory: &Path, rights: Rights, layers_last: bool) -> io::Result<()> {
    let (fs_dir, layers) = (directory.join("fs"), directory.join("layers"));
    for path in [directory, &fs_dir, &layers] {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    }
    fs::set_permissions(&fs_dir, Permissions::from_mode(0o755))?;
    for (name, mode) in OWN {
        make(&fs_dir.join(name), mode)?;
    }
    make_devices(&fs_dir.join("dev"))?;
    let names = overlaid(&fs_dir)?;
    for name in &names {
        make(&fs_dir.join(name), 0o755)?;
        if layers_last {
            // A volatile overlay refuses a used work directory.
            remove_work(&layers.join("work").join(name));
        }
    }
    let skeleton = skeleton(&names, rights);
    if layers_last {
        for (path, mode) in &skeleton {
            make(&layers.join(path), *mode)?;
        }
    }
    fs::write(
        directory.join("skeleton"),
        skeleton.iter().map(|(path, _)| format!("{path}\n")).collect::<String>(),
    )?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    fs::write(directory.join("mounts"), table(&names, &mountinfo, rights, layers_last))?;
    fs::write(directory.join("overlays"), names.iter().map(|name| format!("{name}\n")).collect::<String>())
}

/// Removes the work directories of the overlays, which hold nothing between two starts.
pub(super) fn clear(directory: &Path) {
    let works = fs::read_dir(directory.join("layers/work")).into_iter().flatten().filter_map(Result::ok);
    works.for_each(|work| remove_work(&work.path()));
}

fn remove_work(work: &Path) {
    // The kernel makes directories there that their owner cannot list.
    for path in ["work", "work/incompat", "work/incompat/volatile"] {
        let _ = fs::set_permissions(work.join(path), Permissions::from_mode(0o700));
    }
    let _ = fs::remove_dir_all(work);
}

/// The directories of the layers, with their modes. In a user namespace, this machine's directories
/// belong to nobody, so the world's root could not write there. An overlay's directory has owner
/// and mode of its upper layer.
fn skeleton(names: &[String], rights: Rights) -> Vec<(String, u32)> {
    let mut made = vec![("upper".to_owned(), 0o700), ("work".to_owned(), 0o700)];
    for name in names {
        made.push((format!("work/{name}"), 0o700));
        add_upper(&Path::new("/").join(name), &format!("upper/{name}"), rights, &mut made);
    }
    made
}

fn add_upper(lower: &Path, upper: &str, rights: Rights, made: &mut Vec<(String, u32)>) {
    let mode = fs::metadata(lower).map_or(0o755, |lower| lower.permissions().mode());
    made.push((upper.to_owned(), (mode & 0o7777) | 0o700));
    if rights == Rights::Root || !WRITABLE.iter().any(|path| lower == Path::new(path)) {
        return;
    }
    for entry in fs::read_dir(lower).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        // The table of the directories has one a line, without quotes.
        let Some(name) = name.to_str().filter(|name| is_plain(name)) else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_upper(&entry.path(), &format!("{upper}/{name}"), rights, made);
        }
    }
}

/// True for a name that needs no quotes in tables and options.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+@".contains(&byte))
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        // The mask of this process may have taken bits away.
        Ok(()) if fs::metadata(path)?.permissions().mode() & 0o7777 != mode => {
            fs::set_permissions(path, Permissions::from_mode(mode))
        }
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_devices(dev: &Path) -> io::Result<()> {
    make(&dev.join("pts"), 0o755)?;
    make(&dev.join("shm"), 0o1777)?;
    for name in DEVICES {
        fs::OpenOptions::new().create(true).append(true).open(dev.join(name))?;
    }
    for (name, target) in DEVICE_LINKS {
        link(target.as_ref(), &dev.join(name))?;
    }
    Ok(())
}

fn link(target: &Path, at: &Path) -> io::Result<()> {
    match symlink(target, at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Names of this machine's directories to overlay. Links in `/`, such as `/bin`, are copied.
fn overlaid(fs_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        // Another name would need quotes in the options of a mount.
        let Some(name) = name.to_str().filter(|name| is_plain(name)) else { continue };
        if kind.is_symlink() {
            link(&fs::read_link(entry.path())?, &fs_dir.join(name))?;
        } else if kind.is_dir()
            && !OWN.iter().any(|(own, _)| *own == name)
            // In `/`, a world may have made something else in its place.
            && (fs_dir.join(name).is_dir() || fs_dir.join(name).symlink_metadata().is_err())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The table of mounts. The world's directory is at /tmp by then.
fn table(names: &[String], mountinfo: &str, rights: Rights, layers_last: bool) -> String {
    let mut lines = vec!["/tmp/fs /tmp/fs none rbind".to_owned()];
    let user = if rights == Rights::UserNamespace { ",userxattr" } else { "" };
    // A crash of this machine may damage a world. Without this, the end of each would wait for the
    // disk: 0.3 s in place of 0.03 s, measured on ext4.
    let volatile = if layers_last { ",volatile" } else { "" };
    for name in names {
        lines.push(format!(
            "overlay /tmp/fs/{name} overlay lowerdir=/{name},upperdir=/tmp/layers/upper/{name},\
             workdir=/tmp/layers/work/{name}{user}{volatile}"
        ));
    }
    lines.extend(below(names, mountinfo).map(|path| format!("{path} /tmp/fs{path} none rbind,ro")));
    lines.push("proc /tmp/fs/proc proc nosuid,nodev,noexec".to_owned());
    match rights {
        Rights::Root => {
            for path in ["proc/sys", "proc/sysrq-trigger"] {
                lines.push(format!("/tmp/fs/{path} /tmp/fs/{path} none bind,ro"));
            }
            lines.push("sysfs /tmp/fs/sys sysfs ro,nosuid,nodev,noexec".to_owned());
        }
        // The system's own files are out of its reach.
        Rights::UserNamespace => lines.push("/sys /tmp/fs/sys none rbind,ro".to_owned()),
    }
    lines.push("tmpfs /tmp/fs/run tmpfs mode=755,nosuid,nodev".to_owned());
    lines.push("tmpfs /tmp/fs/dev/shm tmpfs mode=1777,nosuid,nodev".to_owned());
    lines.push("devpts /tmp/fs/dev/pts devpts newinstance,ptmxmode=0666,mode=0620,nosuid,noexec".to_owned());
    lines.extend(DEVICES.iter().map(|name| format!("/dev/{name} /tmp/fs/dev/{name} none bind")));
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line} 0 0");
        text
    })
}

/// Mount points below the overlaid directories, as they stand in `mountinfo`, whose escapes are
/// those of fstab.
fn below<'a>(names: &'a [String], mountinfo: &'a str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let path = line.split(' ').nth(4)?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        let (name, _) = path.strip_prefix('/')?.split_once('/')?;
        let is_left_out = LEFT_OUT.contains(&kind) || kind.starts_with("fuse");
        (names.iter().any(|known| known == name) && !is_left_out).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:21 / /proc rw - proc proc rw
30 21 254:1 / /usr rw - ext4 /dev/vdb rw
31 30 254:2 / /usr/local\\040share rw shared:1 - ext4 /dev/vdc rw
32 21 0:30 / /usr/lib/fuse rw - fuse.sshfs me@host: rw
33 21 0:31 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
34 21 0:32 / /home/me rw - ext4 /dev/vdd rw
";

    #[test]
    fn filesystems_below_an_overlaid_directory_are_bound_read_only() {
        let names = ["usr".to_owned(), "var".to_owned()];
        let table = table(&names, MOUNTINFO, Rights::Root, true);
        assert!(
            table.contains("/usr/local\\040share /tmp/fs/usr/local\\040share none rbind,ro 0 0\n"),
            "{table}"
        );
        for other in ["sshfs", "docker", "/home", "/tmp/fs/usr none"] {
            assert!(!table.contains(other), "{other} in {table}");
        }
    }

    #[test]
    fn every_directory_of_this_machine_is_an_overlay_or_the_worlds_own() {
        let folder = tempfile::tempdir().expect("a folder");
        prepare(folder.path(), Rights::UserNamespace, true).expect("a prepared directory");
        let table = fs::read_to_string(folder.path().join("mounts")).expect("a table");
        for entry in fs::read_dir("/").expect("/").map(|entry| entry.expect("an entry")) {
            let name = entry.file_name().into_string().expect("UTF-8");
            if entry.file_type().expect("a kind").is_dir() {
                let is_overlay = table.contains(&format!(" /tmp/fs/{name} overlay lowerdir=/{name},"));
                let is_own = OWN.iter().any(|(own, _)| *own == name);
                assert!(is_overlay != is_own, "{name} in {table}");
            }
        }
        assert!(!table.contains("lowerdir=/tmp") && !table.contains("lowerdir=/root"), "{table}");
        // A second start finds everything.
        prepare(folder.path(), Rights::UserNamespace, true).expect("a prepared directory");
    }
}
