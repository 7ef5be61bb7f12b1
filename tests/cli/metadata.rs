//! Owners, groups, hard links, extended attributes, ACLs and special files, compared with what
//! rsync makes of the same trees.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr,
    makedev, mknodat, utimensat,
};

use crate::world::skip::{needs, needs_programs, needs_superuser};
use crate::world::{Run, World};

/// A sequence of numbers that a seed decides.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}

/// All that is to be equal: of each path its metadata and content, and the groups of hard links.
type Facts = (BTreeMap<PathBuf, String>, Vec<Vec<PathBuf>>);

fn paths(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut at = 0;
    while let Some(path) = all.get(at).cloned() {
        at += 1;
        if path.symlink_metadata().unwrap().is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all.sort();
    all
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let length = llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = lgetxattr(path, name, &mut value[..]).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
        })
        .collect()
}

fn facts(root: &Path, options: &[&str]) -> Facts {
    let is_compared = |name: &String| {
        let option = if name.starts_with("system.") { "-A" } else { "-X" };
        options.contains(&option)
    };
    let (mut all, mut groups) = (BTreeMap::new(), BTreeMap::<(u64, u64), Vec<PathBuf>>::new());
    for path in paths(root) {
        let is = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let kind = is.file_type();
        let content = if kind.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            let sum =
                content.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("{} {sum:x}", content.len())
        } else {
            String::new()
        };
        let is_device = kind.is_block_device() || kind.is_char_device();
        let number = if is_device { is.rdev() } else { 0 };
        let mut xattrs = xattrs(&path);
        xattrs.retain(|name, _| is_compared(name));
        let (mode, user, group, mtime) = (is.mode(), is.uid(), is.gid(), (is.mtime(), is.mtime_nsec()));
        all.insert(
            name.clone(),
            format!("{mode:o} {user}:{group} {mtime:?} {number:x} {xattrs:?} {content}"),
        );
        if !is.is_dir() && options.contains(&"-H") {
            groups.entry((is.dev(), is.ino())).or_default().push(name);
        }
    }
    let mut groups: Vec<Vec<PathBuf>> = groups.into_values().filter(|names| names.len() > 1).collect();
    groups.sort();
    (all, groups)
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 500 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// An ACL in the kernel's form, see `linux/posix_acl_xattr.h`.
fn acl(dice: &mut Dice) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let user = dice.pick(&[1, 33, 1000]);
    let entries = [
        (1, 7, NOBODY),
        (2, dice.roll(8) as u16, user),
        (4, 5, NOBODY),
        (8, dice.roll(8) as u16, 33),
        (16, dice.pick(&[7, 5]), NOBODY),
        (32, 4, NOBODY),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend([u16::to_le_bytes(tag), rights.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Adds entries of all kinds to a tree.
fn grow(root: &Path, dice: &mut Dice, with_links: bool) {
    fs::create_dir_all(root).unwrap();
    let (mut directories, mut files) = (vec![root.to_owned()], Vec::new());
    for _ in 0..24 {
        let path = directories[dice.roll(directories.len())].join(format!("n{}", dice.roll(40)));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match dice.roll(12) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                directories.push(path);
            }
            2..=6 => {
                fs::write(&path, vec![b'a' + dice.roll(20) as u8; dice.pick(&[0, 3, 50, 3000])]).unwrap();
                files.push(path);
            }
            7 => symlink(format!("t{}", dice.roll(3)), &path).unwrap(),
            8 if with_links && !files.is_empty() => {
                fs::hard_link(&files[dice.roll(files.len())], &path).unwrap()
            }
            9 => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            10 => {
                let kind = dice.pick(&[FileType::CharacterDevice, FileType::BlockDevice]);
                mknodat(CWD, &path, kind, Mode::RUSR, makedev(7, dice.roll(9) as u32)).unwrap();
            }
            _ => {
                let file = fs::File::create(&path).unwrap();
                file.set_len(3 << 20).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", 2 << 20).unwrap();
                files.push(path);
            }
        }
    }
    let mut all = paths(root);
    all.reverse();
    for path in &all {
        let kind = path.symlink_metadata().unwrap().file_type();
        if dice.roll(2) == 0 {
            let ids = [0, 1, 33, 1000, 65534];
            lchown(path, Some(dice.pick(&ids)), Some(dice.pick(&ids))).unwrap();
        }
        if !kind.is_symlink() && dice.roll(2) == 0 {
            let mode = dice.pick(&[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o444, 0o1777]);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        if (kind.is_file() || kind.is_dir()) && dice.roll(3) == 0 {
            set(path, dice.pick(&["user.a", "user.b"]), dice.pick(&[&b""[..], b"1", &[7; 900]]));
        }
        if dice.roll(10) == 0 {
            set(path, "trusted.t", b"t");
        }
        if !kind.is_symlink() && dice.roll(4) == 0 {
            set(path, "system.posix_acl_access", &acl(dice));
            if kind.is_dir() {
                set(path, "system.posix_acl_default", &acl(dice));
            }
        }
    }
    all.iter().for_each(|path| set_time(path, dice.pick(&[1_000_000_000, 1_200_000_000])));
}

/// Changes a copy of a tree in ways that a sync must undo.
fn disturb(root: &Path, dice: &mut Dice) {
    for path in paths(root) {
        let is = path.symlink_metadata().unwrap();
        match dice.roll(8) {
            0 if !is.is_dir() => fs::remove_file(&path).unwrap(),
            1 if is.is_file() => {
                // The same file, which is no name of another one any more.
                let content = fs::read(&path).unwrap();
                fs::remove_file(&path).unwrap();
                fs::write(&path, content).unwrap();
                set_time(&path, is.mtime());
            }
            2 => lchown(&path, Some(7), Some(7)).unwrap(),
            3 if is.is_file() || is.is_dir() => set(&path, "user.z", b"z"),
            4 if is.is_file() => {
                fs::write(&path, "other").unwrap();
                set_time(&path, 1_100_000_000);
            }
            5 if is.is_dir() => fs::write(path.join("extra"), "extra").unwrap(),
            _ => {}
        }
    }
}

fn copy(world: &World, from: &str, to: &str) {
    let mut cp = world.command("cp");
    cp.args(["-a", from, to]);
    Run::of(cp).ok();
}

/// One tree, copied by rsync and by ksync. `None` if rsync itself fails.
fn compare(seed: u64) -> Option<()> {
    let mut dice = Dice(seed);
    let world = World::new();
    grow(&world.path("src"), &mut dice, true);
    let deletes = dice.roll(2) == 0;
    let start = dice.roll(3);
    let is_new = start == 0;
    match start {
        0 => {}
        1 if deletes => {
            // rsync leaves names of one file that are to be different files.
            grow(&world.path("rsynced"), &mut dice, false);
            copy(&world, "rsynced", "dst");
        }
        _ => {
            copy(&world, "src", "rsynced");
            disturb(&world.path("rsynced"), &mut dice);
            copy(&world, "rsynced", "dst");
        }
    }
    let mut options = vec!["-a", "-o", "-g", "-D"];
    options.extend(["-H", "-X", "-A"].into_iter().filter(|_| dice.roll(4) > 0));
    options.extend(deletes.then_some("--delete"));
    let mut rsync = world.command("timeout");
    rsync.arg("20").arg("rsync").args(&options).args(["src/", "rsynced/"]);
    if !Run::of(rsync).status.success() {
        return None;
    }
    let direction = dice.pick(&["local", "up", "down"]);
    let (source, destination): (OsString, OsString) = match direction {
        "up" => ("src".into(), world.far("dst")),
        "down" => (world.far("src"), "dst".into()),
        _ => ("src".into(), "dst".into()),
    };
    let what = format!("seed {seed}, {direction}, {options:?}");
    let args: Vec<OsString> = options.iter().chain(&["-y", "-i", "--links"]).map(OsString::from).collect();
    let ends = [source, destination];
    world.run([&args[..], &ends].concat()).ok();
    let same = |when: &str| {
        let (mut made, mut expected) =
            (facts(&world.path("dst"), &options), facts(&world.path("rsynced"), &options));
        // A DEST that was there keeps its own mode and owner.
        made.0.remove(Path::new(""));
        expected.0.remove(Path::new(""));
        for (path, expected) in &expected.0 {
            assert_eq!(made.0.get(path), Some(expected), "{path:?} {when}: {what}");
        }
        assert_eq!(made.0.len(), expected.0.len(), "{when}: {what}: {:?}", made.0.keys());
        assert_eq!(made.1, expected.1, "{when}: {what}");
    };
    same("first");
    let again = world.run([&args[..], &ends].concat()).ok();
    let changes: Vec<&str> =
        again.stdout.lines().filter(|line| line.as_bytes().get(11) == Some(&b' ')).collect();
    assert!(changes.iter().all(|line| line.ends_with(" ./")), "{what}: {changes:?}");
    same("again");
    // Holes stay holes, as with rsync's --sparse; some more zeros may become holes.
    let taken = |root: &str| -> u64 {
        let files =
            paths(&world.path(root)).into_iter().filter(|path| path.symlink_metadata().unwrap().is_file());
        files.map(|path| path.metadata().unwrap().blocks()).sum()
    };
    // Half of the shortest hole, so that blocks of attributes do not count.
    const SLACK_BLOCKS: u64 = 2048;
    assert!(taken("dst") <= taken("rsynced") + SLACK_BLOCKS, "{what}");
    assert!(!is_new || taken("dst") <= taken("src") + SLACK_BLOCKS, "{what}");
    Some(())
}

#[test]
fn metadata_ends_as_rsync_leaves_it() {
    if !needs_superuser() || !needs_programs(&["rsync", "cp", "timeout"]) {
        return;
    }
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let cases: u64 = variable("KSYNC_METADATA_CASES").unwrap_or(12);
    let first: u64 = variable("KSYNC_METADATA_SEED").unwrap_or(1);
    let compared = (first..first + cases).filter_map(compare).count() as u64;
    assert!(compared * 2 > cases, "rsync failed in {} of {cases}", cases - compared);
}

fn rsync(world: &World, args: &[&str]) -> Run {
    let mut rsync = world.command("rsync");
    rsync.args(args);
    Run::of(rsync)
}

#[test]
fn chmod_makes_the_modes_that_rsync_makes() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let tree = world.tree("src").dir("d").file("f", "").file("x", "").file("d/s", "");
    drop(tree.mode("x", 0o755).mode("d/s", 0o6711).mode("d", 0o750));
    for (number, changes) in [
        "D755,F644",
        "u=rw,go=r",
        "a+X",
        "go-w",
        "+w",
        "-x",
        "Dg+s",
        "u+s,+t",
        "ug+s",
        "u=s",
        "=rX",
        "600",
        "o+t",
        "Fu=,og+x",
        "a=",
        "g=u",
        "go=u",
        "a=u",
        "o+g",
        "g-o",
    ]
    .iter()
    .enumerate()
    {
        let option = format!("--chmod={changes}");
        let (made, expected) = (format!("made{number}"), format!("expected{number}"));
        let oracle = rsync(&world, &["-a", &option, "src/", &format!("{expected}/")]);
        let run = world.run([option.as_str(), "src", &made]);
        if !oracle.status.success() {
            // Older versions of rsync copy no bits of others.
            if !changes.contains("=u") && !changes.ends_with("+g") && !changes.ends_with("-o") {
                run.fails(1);
            }
            continue;
        }
        run.ok();
        let modes = |root: &str| -> Vec<u32> {
            paths(&world.path(root)).iter().map(|path| path.metadata().unwrap().mode()).collect()
        };
        assert_eq!(modes(&made), modes(&expected), "{changes}");
    }
}

#[test]
fn owners_are_mapped_as_rsync_maps_them() {
    if !needs_superuser() || !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    drop(world.tree("src").file("root", "").file("daemon", "").file("nameless", ""));
    for (name, id) in [("root", 0), ("daemon", 1), ("nameless", 54_321)] {
        chown(world.path("src").join(name), Some(id), Some(id)).unwrap();
    }
    for (number, options) in [
        &["-og"][..],
        &["-og", "--numeric-ids"],
        &["--chown=daemon:nogroup"],
        &["--chown=:7"],
        &["--usermap=daemon:nobody,*:5", "--groupmap=0-1:9,:8"],
        &["--usermap=d?emon:3", "-g"],
        &["--usermap=:4"],
    ]
    .iter()
    .enumerate()
    {
        let (made, expected) = (format!("made{number}"), format!("expected{number}"));
        let far = world.far(&made);
        let oracle = format!("{expected}/");
        let expected_args = [&["-rlpt"], *options, &["src/", &oracle]].concat();
        rsync(&world, &expected_args).ok();
        let args: Vec<OsString> = options.iter().map(OsString::from).chain(["src".into(), far]).collect();
        world.run(&args).ok();
        let owners = |root: &str| -> Vec<(u32, u32)> {
            let all = paths(&world.path(root));
            all.iter()
                .skip(1)
                .map(|path| (path.metadata().unwrap().uid(), path.metadata().unwrap().gid()))
                .collect()
        };
        assert_eq!(owners(&made), owners(&expected), "{options:?}");
    }
    let run = world.run(["--chown=nobody-here", "src", "unknown"]).fails(23);
    assert!(run.stderr.contains("there is no user nobody-here"), "{}", run.stderr);
}

#[test]
fn no_perms_leaves_the_modes_that_rsync_leaves() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    for options in [&["--no-perms"][..], &["--no-perms", "-E"]] {
        let world = World::new();
        for root in ["src", "dst", "rsynced"] {
            let is_source = root == "src";
            let tree = world.tree(root).file("a", "1").file("b", "2").time("a", 9, 0).time("b", 9, 0);
            let tree = if is_source { tree.file("new", "").mode("new", 0o777) } else { tree };
            let (of_a, of_b) = if is_source { (0o755, 0o644) } else { (0o640, 0o700) };
            drop(tree.mode("a", of_a).mode("b", of_b));
        }
        rsync(&world, &[&["-rlt"], options, &["src/", "rsynced/"]].concat()).ok();
        world.run([options, &["src", "dst"]].concat()).ok();
        let mode = |name: &str| world.path(name).metadata().unwrap().mode();
        for name in ["a", "b", "new"] {
            assert_eq!(mode(&format!("dst/{name}")), mode(&format!("rsynced/{name}")), "{name} {options:?}");
        }
    }
}

#[test]
fn no_perms_gives_a_new_entry_no_set_id_and_no_sticky_bit() {
    if !needs_programs(&["rsync"]) || !needs_superuser() {
        return;
    }
    let world = World::new();
    world.tree("src").file("f", "a").file("d/g", "b");
    let mode =
        |path: &str, mode| fs::set_permissions(world.path(path), fs::Permissions::from_mode(mode)).unwrap();
    mode("src/f", 0o6755);
    mode("src/d", 0o3777);
    rsync(&world, &["-rlt", "src/", "theirs/"]).ok();
    world.run(["--no-perms", "src", "ours"]).ok();
    for path in ["f", "d", "d/g"] {
        let mode = |side: &str| fs::metadata(world.path(side).join(path)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("theirs"), "{path}");
    }
}

#[test]
fn notes_of_ksync_are_no_attributes_of_a_tree() {
    let world = World::new();
    world.tree("src").file("f", "a");
    world.run(["src", "dst"]).ok();
    let notes = |name: &str| xattrs(&world.path(name));
    if !needs(!notes("dst").is_empty(), "the filesystem keeps no note about what a power cut may damage") {
        return;
    }
    set(&world.path("src"), "user.ksync.unconfirmed", b"forged");
    set(&world.path("src"), "user.mine", b"kept");
    world.run(["-X", "src", "new"]).ok();
    let names: Vec<String> = notes("new").into_keys().collect();
    assert_eq!(names, ["user.ksync.unconfirmed", "user.mine"]);
    assert_ne!(notes("new")["user.ksync.unconfirmed"], b"forged");
}

#[test]
fn changed_attribute_alone_sends_no_content() {
    let world = World::new();
    drop(world.tree("src").file("f", vec![b'x'; 300_000]).file("g", "g"));
    let file = world.path("src/f");
    if !crate::world::skip::needs(
        lsetxattr(&file, "user.a", b"1", XattrFlags::empty()).is_ok(),
        "this filesystem has no extended attributes",
    ) {
        return;
    }
    let far = world.far("dst");
    world.sync_with(&["-X"], "src", &far);
    assert_eq!(xattrs(&world.path("dst/f"))["user.a"], b"1");
    let before = world.path("dst/f").metadata().unwrap();
    set(&file, "user.a", b"2");
    set(&file, "user.b", &[1; 2000]);
    let stats = world.sync_with(&["-X"], "src", &far);
    assert_eq!(xattrs(&world.path("dst/f")), xattrs(&file));
    assert_eq!((stats.sent_bytes, world.path("dst/f").metadata().unwrap().ino()), (0, before.ino()));
    // Without the option nothing of it is looked at.
    set(&file, "user.a", b"3");
    world.sync("src", &far);
    assert_eq!(xattrs(&world.path("dst/f"))["user.a"], b"2");
}

#[test]
fn names_of_one_file_cost_its_content_once() {
    let world = World::new();
    drop(world.tree("src").dir("d").file("a", crate::world::noise(1, 400_000)).file("other", "o"));
    for name in ["b", "d/c"] {
        fs::hard_link(world.path("src/a"), world.path("src").join(name)).unwrap();
    }
    let far = world.far("dst");
    let inodes =
        |root: &str| ["a", "b", "d/c"].map(|name| world.path(root).join(name).metadata().unwrap().ino());
    let is_one = |root: &str| inodes(root).iter().all(|inode| *inode == inodes(root)[0]);
    let stats = world.sync_with(&["-H"], "src", &far);
    assert!(is_one("dst") && stats.sent_bytes < 420_000, "{stats:?}");
    let before = inodes("dst");
    world.sync_with(&["-H", "--delete"], "src", &far);
    assert_eq!(inodes("dst"), before, "nothing to do");
    // Split, and one name with another content.
    fs::remove_file(world.path("dst/b")).unwrap();
    fs::write(world.path("dst/b"), "other").unwrap();
    world.sync_with(&["-H"], "src", &far);
    assert_eq!(inodes("dst"), before, "the right one stays");
    // Changed in the source.
    fs::write(world.path("src/a"), "new").unwrap();
    world.sync_with(&["-H"], "src", &far);
    assert!(is_one("dst"));
    assert_eq!(fs::read(world.path("dst/d/c")).unwrap(), b"new");
    // Joined wrongly.
    fs::remove_file(world.path("src/b")).unwrap();
    fs::write(world.path("src/b"), "new").unwrap();
    set_time(&world.path("src/b"), 1_000_000_000);
    set_time(&world.path("src/a"), 1_000_000_000);
    world.sync_with(&["-H"], "src", &far);
    assert_eq!(inodes("dst")[0], inodes("dst")[2]);
    assert_ne!(inodes("dst")[0], inodes("dst")[1]);
}

#[test]
fn all_names_of_a_deleted_file_go_in_one_run() {
    let world = World::new();
    drop(world.tree("src").file("kept", ""));
    drop(world.tree("dst").file("a", "text"));
    for name in ["b", "c"] {
        fs::hard_link(world.path("dst/a"), world.path("dst").join(name)).unwrap();
    }
    world.run(["--delete", "-y", "src", "dst"]).ok();
    world.assert_same("src", "dst");
}

#[test]
fn watched_names_of_one_file_stay_names_of_one_file() {
    let world = World::new();
    drop(world.tree("src").file("a", "old"));
    fs::hard_link(world.path("src/a"), world.path("src/b")).unwrap();
    let mut watch = world.ksync(["-w", "-H", "src", "dst"]);
    let watch = crate::world::service::Service::start({
        watch.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        watch
    });
    let inode = |name: &str| world.path(name).metadata().ok().map(|is| is.ino());
    let is_one = || inode("dst/a").is_some() && inode("dst/a") == inode("dst/b");
    crate::world::wait_for("the first round", || is_one().then_some(()));
    fs::write(world.path("src/a"), "new content").unwrap();
    crate::world::wait_for("the change", || {
        let read = |name: &str| fs::read(world.path(name)).unwrap_or_default();
        (is_one() && read("dst/b") == b"new content").then_some(())
    });
    fs::hard_link(world.path("src/a"), world.path("src/c")).unwrap();
    crate::world::wait_for("the further name", || {
        (inode("dst/c").is_some() && inode("dst/c") == inode("dst/a")).then_some(())
    });
    drop(watch);
}
