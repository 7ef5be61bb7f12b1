//! The superuser writes into a directory of a hostile user, who swaps names meanwhile.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Gid, Uid};

use crate::disk::testing::{Fixture, NOBODY, directory, give_away, path, time};
use crate::disk::writable::WritableRoot;

/// Stops the other thread when the test ends, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A root that belongs to the user nobody, with parents that nobody may pass. Skips the test if
/// this user may not give directories away.
fn given_away() -> Option<Fixture> {
    let mut fixture = Fixture::new();
    if !give_away(&fixture.at("")) {
        return None;
    }
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(fixture.outside().parent().unwrap(), open).unwrap();
    fixture.root = WritableRoot::open(&fixture.at("")).unwrap();
    Some(fixture)
}

/// Runs `work` while the user nobody repeats `attack`.
fn against_nobody(attack: impl Fn() + Send + Sync, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            rustix::thread::set_thread_gid(Gid::from_raw(NOBODY)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).unwrap();
            while !stop.load(Ordering::Relaxed) {
                attack();
            }
        });
        let _stop = Stop(&stop);
        work();
    });
}

fn owner(at: &Path) -> (u32, u32) {
    let is = at.symlink_metadata().unwrap();
    (is.uid(), is.mode() & 0o7777)
}

/// Plants entries of the superuser in nobody's directory, which are not given away. Nobody may
/// rename them, and nothing more.
fn plant(fixture: &Fixture) {
    fs::create_dir(fixture.at("secret")).unwrap();
    fs::write(fixture.at("secret/key"), "canary").unwrap();
    fs::write(fixture.at("file"), "canary").unwrap();
    for (name, mode) in [("secret", 0o700), ("file", 0o600)] {
        fs::set_permissions(fixture.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn find(fixture: &Fixture, wanted: (u64, u64)) -> Option<(u32, u32)> {
    let names = fs::read_dir(fixture.at("")).unwrap();
    let paths = names.map(|name| name.unwrap().path());
    paths
        .filter(|path| path.symlink_metadata().is_ok_and(|is| (is.dev(), is.ino()) == wanted))
        .map(|path| owner(&path))
        .next()
}

#[test]
fn an_entry_swapped_for_a_new_directory_is_not_given_away() {
    let Some(fixture) = given_away() else { return };
    plant(&fixture);
    let inode = |name: &str| {
        let is = fixture.at(name).metadata().unwrap();
        (is.dev(), is.ino())
    };
    let (secret, file) = (inode("secret"), inode("file"));
    let (one, two, made) = (fixture.at("secret"), fixture.at("file"), fixture.at("d"));
    let attack = || {
        for swapped in [&one, &two] {
            let _ = renameat_with(CWD, &made, CWD, swapped, RenameFlags::EXCHANGE);
        }
    };
    let (mut done, mut refused) = (0, 0);
    against_nobody(attack, || {
        let begun = Instant::now();
        while done < 200 && begun.elapsed() < Duration::from_secs(20) {
            let result = fixture.root.make_directory(&path("d"), 0o777).and_then(|made| {
                fixture.root.set_directory(&path("d"), &directory(0o777, time(1)), made.inode)
            });
            *if result.is_ok() { &mut done } else { &mut refused } += 1;
            for name in ["d", "secret", "file"] {
                let at = fixture.at(name);
                let is = at.symlink_metadata().map(|is| (is.dev(), is.ino()));
                // Removes only entries that the work made.
                if is.is_ok_and(|is| is != secret && is != file) {
                    let _ = fs::remove_dir(at);
                }
            }
            // Without `d` there is nothing to swap with, and a planted entry would stay in its
            // place.
            for (name, planted) in [("secret", secret), ("file", file)] {
                let there = made.symlink_metadata().map(|is| (is.dev(), is.ino()));
                if there.is_ok_and(|there| there == planted) {
                    let _ = fs::rename(&made, fixture.at(name));
                }
            }
        }
    });
    assert_eq!(find(&fixture, secret), Some((0, 0o700)), "{done} done, {refused} refused");
    assert_eq!(find(&fixture, file), Some((0, 0o600)), "{done} done, {refused} refused");
    assert!(done > 100, "{done} done, {refused} refused");
}

#[test]
fn a_file_swapped_for_a_link_keeps_owner_and_time() {
    let Some(fixture) = given_away() else { return };
    plant(&fixture);
    let before = fixture.at("file").metadata().unwrap();
    let (made, swapped) = (fixture.at("l"), fixture.at("file"));
    let attack = || {
        let _ = renameat_with(CWD, &made, CWD, &swapped, RenameFlags::EXCHANGE);
    };
    against_nobody(attack, || {
        for count in 0..2000 {
            let seen = fixture.root.stat(&path("l")).unwrap().map(|stat| stat.identity);
            let is_link = seen.is_none_or(|seen| seen.size != 6);
            if is_link && count % 2 == 0 {
                let _ = fixture.root.make_symlink(&path("l"), b"where", time(1), None, seen.as_ref());
            } else if let Some(seen) = seen.filter(|_| is_link) {
                let _ = fixture.root.set_link_time(&path("l"), b"where", time(2), &seen);
            }
        }
    });
    let after = find(&fixture, (before.dev(), before.ino()));
    assert_eq!(after, Some((0, 0o600)));
    let is = [&made, &swapped].map(|at| at.metadata());
    let file = is.into_iter().flatten().find(|is| is.ino() == before.ino()).unwrap();
    assert_eq!(file.mtime_nsec(), before.mtime_nsec());
}

#[test]
fn creating_a_root_below_a_foreign_directory_gives_nothing_else_away() {
    let Some(fixture) = given_away() else { return };
    plant(&fixture);
    let (secret, made) = (fixture.at("secret"), fixture.at("a"));
    let attack = || {
        let _ = renameat_with(CWD, &made, CWD, &secret, RenameFlags::EXCHANGE);
        let _ = fs::remove_dir(&made);
    };
    let inode = {
        let is = fixture.at("secret").metadata().unwrap();
        (is.dev(), is.ino())
    };
    let mut done = 0;
    against_nobody(attack, || {
        for _ in 0..1000 {
            done += u32::from(WritableRoot::create(&fixture.at("a/b/c")).is_ok());
            for at in ["a/b/c", "a/b", "a", "secret/b/c", "secret/b", "secret"] {
                let _ = fs::remove_dir(fixture.at(at));
            }
        }
    });
    assert_eq!(find(&fixture, inode), Some((0, 0o700)), "{done} done");
}

#[test]
fn a_root_below_a_foreign_directory_belongs_to_its_owner() {
    let Some(fixture) = given_away() else { return };
    let root = WritableRoot::create(&fixture.at("a/b/c")).unwrap();
    for at in ["a", "a/b", "a/b/c"] {
        assert_eq!(owner(&fixture.at(at)), (NOBODY, 0o755), "{at}");
    }
    assert!(root.is_still_there() && !fixture.at(".ksync").exists());
    WritableRoot::create(&fixture.at("a/../x")).unwrap();
    assert_eq!(owner(&fixture.at("x")), (NOBODY, 0o755));
    symlink("b", fixture.at("a/link")).unwrap();
    assert!(WritableRoot::create(&fixture.at("a/link/d")).is_ok() && fixture.at("a/b/d").is_dir());
}
