//! `--fsync`: a reported success survives a power cut, without another run.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::disk::{Disk, Last};
use crate::fuse::{Quirky, Syncs};
use crate::round::{Operation, Rng, Stage, edit, end, fill, seen};
use crate::skip::needs;
use crate::{alone, can_cut};

/// A change of the source.
type Change = fn(&Path, &mut Rng);

/// Changes of the source, one after the other; the power goes after each.
const STEPS: [(&str, Change); 8] = [
    ("few", few),
    ("many and large", |source, rng| fill(source, rng)),
    ("edits", |source, rng| edit(source, rng)),
    ("names", names),
    ("deletions", deletions),
    ("metadata", metadata),
    ("kinds", kinds),
    ("a directory", |source, _| fs::create_dir_all(source.join("new/empty")).unwrap()),
];

/// Fewer bytes than justify a sync of the whole filesystem.
fn few(source: &Path, rng: &mut Rng) {
    fs::create_dir_all(source.join("dir/deep")).unwrap();
    fs::write(source.join("dir/deep/one"), rng.bytes(3000)).unwrap();
    fs::write(source.join("two"), rng.bytes(70_000)).unwrap();
    symlink("dir/deep/one", source.join("link")).unwrap();
}

fn names(source: &Path, _: &mut Rng) {
    fs::rename(source.join("twice"), source.join("small/moved")).unwrap();
    fs::rename(source.join("small/deep"), source.join("deeper")).unwrap();
    fs::rename(source.join("link"), source.join("dir/link")).unwrap();
}

fn deletions(source: &Path, _: &mut Rng) {
    fs::remove_dir_all(source.join("deeper")).unwrap();
    fs::remove_file(source.join("whole blocks")).unwrap();
    fs::remove_file(source.join("dir/link")).unwrap();
}

fn metadata(source: &Path, _: &mut Rng) {
    fs::set_permissions(source.join("two"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(source.join("dir"), Permissions::from_mode(0o700)).unwrap();
    let log = OpenOptions::new().write(true).open(source.join("log")).unwrap();
    log.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// Replaces entries by entries of another kind.
fn kinds(source: &Path, rng: &mut Rng) {
    fs::remove_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("dir"), rng.bytes(20_000)).unwrap();
    fs::remove_file(source.join("two")).unwrap();
    symlink("nowhere", source.join("two")).unwrap();
    fs::remove_file(source.join("replaced")).unwrap();
    fs::create_dir(source.join("replaced")).unwrap();
    fs::write(source.join("replaced/inner"), rng.bytes(10)).unwrap();
}

/// A folder in memory, if possible: the image is read and written a lot.
fn folder() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap()
}

/// A run that may delete.
fn command(stage: &Stage<'_>, options: &[&str]) -> Command {
    let mut command = stage.command(false);
    command.args(["--delete", "--yes"]).args(options);
    command
}

fn cut(disk: &mut Disk) {
    disk.cut(Last::Nothing).unwrap();
    disk.unmount().unwrap();
    disk.mount("").unwrap();
}

/// Changes the source step by step, each followed by a run and a power cut. Returns the steps after
/// which the copy differed from the source.
fn lost_steps(operation: Operation, options: &[&str]) -> Vec<&'static str> {
    let folder = folder();
    let mut disk = Disk::make(folder.path(), 256).unwrap();
    disk.mount("").unwrap();
    let (source, mut rng) = (folder.path().join("src"), Rng::new(14));
    fs::create_dir(&source).unwrap();
    let mut lost = Vec::new();
    for (name, change) in STEPS {
        change(&source, &mut rng);
        let place = disk.place.clone();
        let stage = Stage { folder: folder.path(), disk: &place, operation };
        assert!(command(&stage, options).status().unwrap().success(), "{operation:?}: {name}");
        cut(&mut disk);
        if seen(&source) != seen(&stage.target()) {
            lost.push(name);
            // Makes the copy equal again for the next step.
            assert!(command(&stage, &["--fsync"]).status().unwrap().success(), "{operation:?}: {name}");
        }
    }
    disk.unmount().unwrap();
    lost
}

#[test]
fn a_reported_success_survives_a_power_cut_at_once() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    for operation in [Operation::Local, Operation::Upload, Operation::Download] {
        assert_eq!(lost_steps(operation, &["--fsync"]), [""; 0], "{operation:?}");
    }
}

#[test]
fn the_same_cuts_lose_something_without_fsync() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    let lost = lost_steps(Operation::Local, &[]);
    assert!(lost.len() >= STEPS.len() / 2, "the test sees nothing but {lost:?}");
}

#[test]
fn fsync_makes_an_earlier_runs_writes_durable_too() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    for operation in [Operation::Local, Operation::Upload] {
        let folder = folder();
        let mut disk = Disk::make(folder.path(), 256).unwrap();
        disk.mount(",commit=300").unwrap();
        let (source, mut rng, place) = (folder.path().join("src"), Rng::new(15), disk.place.clone());
        fill(&source, &mut rng);
        let stage = Stage { folder: folder.path(), disk: &place, operation };
        for options in [&[][..], &["--fsync"]] {
            assert!(command(&stage, options).status().unwrap().success(), "{operation:?} {options:?}");
        }
        cut(&mut disk);
        assert!(seen(&source) == seen(&stage.target()), "{operation:?}");
        disk.unmount().unwrap();
    }
}

/// A filesystem is mounted in the destination, and a run changes nothing but names in it.
#[test]
fn names_in_a_filesystem_below_the_destination_are_durable() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    for operation in [Operation::Local, Operation::Upload] {
        let folder = folder();
        let below = tempfile::tempdir_in(folder.path()).unwrap();
        let mut disk = Disk::make(below.path(), 64).unwrap();
        let place = folder.path().to_owned();
        let stage = Stage { folder: folder.path(), disk: &place, operation };
        disk.place = stage.target().join("mp");
        fs::create_dir_all(&disk.place).unwrap();
        disk.mount(",commit=300").unwrap();
        let source = folder.path().join("src");
        fs::create_dir_all(source.join("mp/d")).unwrap();
        fs::write(source.join("mp/d/x"), "x").unwrap();
        assert!(command(&stage, &["--fsync"]).status().unwrap().success());
        fs::create_dir(source.join("mp/d/new")).unwrap();
        symlink("new", source.join("mp/link")).unwrap();
        assert!(command(&stage, &["--fsync"]).status().unwrap().success());
        cut(&mut disk);
        // Nothing is deleted below a mount, so the copy also contains lost+found.
        let (source, copy) = (seen(&source.join("mp")), seen(&disk.place));
        let is_there = |path: &&Path| copy.get(*path) == source.get(*path);
        let paths: Vec<&Path> = ["d", "d/x", "d/new", "link"].map(Path::new).to_vec();
        assert!(paths.iter().all(is_there), "{operation:?}: {:?}", copy.keys());
        disk.unmount().unwrap();
    }
}

/// A run that loses its disk must not report success, whatever the moment.
#[test]
fn a_success_reported_amid_a_power_cut_is_on_the_disk() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    let (mut failed, mut succeeded) = (0, 0);
    for (operation, delays_ms) in [
        (Operation::Local, [0, 20, 50, 100, 200, 300, 500, 800, 1200, 2000]),
        (Operation::Upload, [20, 50, 100, 200, 300, 500, 800, 1200, 2000, 3000]),
    ] {
        for delay_ms in delays_ms {
            let folder = folder();
            let mut disk = Disk::make(folder.path(), 256).unwrap();
            disk.mount("").unwrap();
            let (source, mut rng, place) = (folder.path().join("src"), Rng::new(16), disk.place.clone());
            fill(&source, &mut rng);
            let stage = Stage { folder: folder.path(), disk: &place, operation };
            let mut child = command(&stage, &["--fsync"]).spawn().unwrap();
            thread::sleep(Duration::from_millis(delay_ms));
            disk.cut(Last::Nothing).unwrap();
            // A run whose disk is gone ends by itself.
            let status = crate::round::status(&mut child, Duration::from_secs(60));
            end(child);
            disk.unmount().unwrap();
            disk.mount("").unwrap();
            let code = status.expect("the run ends").code();
            if code == Some(0) {
                succeeded += 1;
                assert!(seen(&source) == seen(&stage.target()), "{operation:?} {delay_ms} ms");
            } else {
                failed += 1;
                assert!(matches!(code, Some(3 | 11 | 23)), "{operation:?} {delay_ms} ms: {code:?}");
                assert!(command(&stage, &["--fsync"]).status().unwrap().success());
                assert!(seen(&source) == seen(&stage.target()), "{operation:?} {delay_ms} ms");
            }
            disk.unmount().unwrap();
        }
    }
    println!("{failed} runs failed, {succeeded} succeeded");
    assert!(failed > 0, "no run was cut");
}

/// The last sync of a run comes after all files have their names, and may fail too. The next run
/// does not believe the files that are in place by then.
#[test]
fn a_failed_last_sync_makes_the_next_run_write_again() {
    let _turn = alone();
    let strace = |inject: &str| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=syncfs", "-e", inject]);
        command
    };
    let can_inject = strace("inject=syncfs:error=EIO:when=1").arg("true").status();
    let can_inject = can_inject.is_ok_and(|status| status.success());
    if !can_cut() || !needs(can_inject, "strace cannot inject errors here") {
        return;
    }
    let folder = folder();
    let mut disk = Disk::make(folder.path(), 64).unwrap();
    disk.mount("").unwrap();
    let (source, mut rng, place) = (folder.path().join("src"), Rng::new(17), disk.place.clone());
    few(&source, &mut rng);
    let stage = Stage { folder: folder.path(), disk: &place, operation: Operation::Local };
    let plain = command(&stage, &["--fsync"]);
    let mut injected = strace("inject=syncfs:error=EIO:when=1");
    injected.arg(plain.get_program()).args(plain.get_args()).env("HOME", folder.path().join("home"));
    assert_eq!(injected.current_dir(folder.path()).status().unwrap().code(), Some(11));
    let inode = |name: &str| fs::metadata(stage.target().join(name)).unwrap().ino();
    let before = ["two", "dir/deep/one"].map(inode);
    assert!(command(&stage, &["--fsync"]).status().unwrap().success());
    let after = ["two", "dir/deep/one"].map(inode);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
    cut(&mut disk);
    assert!(seen(&source) == seen(&stage.target()));
    disk.unmount().unwrap();
}

#[test]
fn a_refused_fsync_makes_the_next_run_write_again() {
    const LENGTH: usize = 300_000;
    let noise = |seed: u64, length: usize| Rng::new(seed).bytes(length as u64);
    // In many pieces, in one message, and in several messages of small files.
    for (name, files, length) in [("large", 1, LENGTH), ("small", 1, 50_000), ("few", 3, 50_000)] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("mount")).unwrap();
        let syncs = Arc::new(Syncs::default());
        let Some(_quirky) = Quirky::refusing(&at("mount"), &syncs) else { return };
        let run = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ksync"));
            command.args(["-q", "--no-progress", "--fsync"]).arg(at("src")).arg(at("mount/dst"));
            command.env("HOME", at("home")).output().unwrap()
        };
        fs::create_dir(at("src")).unwrap();
        let mut old = None;
        for version in 0..2 {
            for file in 0..files {
                fs::write(at(&format!("src/{file}")), noise(version * 10 + file, length)).unwrap();
            }
            syncs.refused.store(1, Ordering::SeqCst);
            syncs.calls.store(0, Ordering::SeqCst);
            let output = run();
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(11), "{name} {version}: {told}");
            let now = || fs::read(at("mount/dst/0")).ok();
            assert_eq!(syncs.calls.load(Ordering::SeqCst), if files == 1 { 1 } else { files }, "{told}");
            if files == 1 {
                assert!(now() == old, "{name} {version}: a file that is not on the disk is in place");
            }
            // The page cache is not believed, so the run must write everything again.
            syncs.written_bytes.store(0, Ordering::SeqCst);
            let output = run();
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            let written = syncs.written_bytes.load(Ordering::SeqCst);
            assert!(written >= length as u64, "{name} {version}: {written} bytes were written anew");
            for file in 0..files {
                let copy = fs::read(at(&format!("mount/dst/{file}"))).unwrap();
                assert!(copy == noise(version * 10 + file, length), "{name} {version} {file}");
            }
            old = now();
        }
    }
}
