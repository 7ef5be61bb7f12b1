//! Torn files: a file that is still being written never arrives with a content that it never had.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::watcher::{Direction, Watcher};
use crate::world::{World, noise, wait_for};

/// Reads a file of the destination repeatedly, and returns all contents that it had.
fn seen_meanwhile(world: &World, name: &str, story: impl FnOnce()) -> BTreeSet<Vec<u8>> {
    let (path, ended) = (world.path(name), AtomicBool::new(false));
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            loop {
                // Read once more after the end.
                let is_last = ended.load(Ordering::SeqCst);
                if let Ok(content) = fs::read(&path) {
                    seen.insert(content);
                }
                if is_last {
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        story();
        ended.store(true, Ordering::SeqCst);
        looking.join().unwrap()
    })
}

#[test]
fn a_file_written_in_pieces_arrives_in_prefixes_and_whole() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("other", "x");
        let watcher = Watcher::ready(&world, direction, &[]);
        let content = noise(3, 2_000_000);
        let seen = seen_meanwhile(&world, "dst/recording", || {
            let mut file = File::create(world.path("src/recording")).unwrap();
            for (number, piece) in content.chunks(100_000).enumerate() {
                file.write_all(piece).unwrap();
                // The writer pauses, sometimes for longer than the watch waits.
                thread::sleep(Duration::from_millis(if number % 5 == 0 { 250 } else { 60 }));
            }
            // The file need not be closed.
            watcher.flush();
            assert_eq!(fs::read(world.path("dst/recording")).unwrap().len(), content.len());
        });
        watcher.is_there();
        for version in &seen {
            assert!(content.starts_with(version), "{direction:?}: {} bytes that never were", version.len());
            assert_eq!(version.len() % 100_000, 0, "{direction:?}: half a piece");
        }
        assert!(seen.contains(&content), "{direction:?}");
        assert!(seen.len() > 2, "{direction:?}: it arrives while it grows");
    }
}

#[test]
fn a_file_overwritten_in_place_arrives_only_in_real_versions() {
    for direction in Direction::ALL {
        let world = World::new();
        let version = |number: usize| format!("version {number:06}\n").repeat(20_000 + number);
        world.tree("src").file("file", version(0));
        let watcher = Watcher::ready(&world, direction, &[]);
        let seen = seen_meanwhile(&world, "dst/file", || {
            for number in 1..30 {
                // Truncated, then written in pieces.
                let mut file = File::create(world.path("src/file")).unwrap();
                for piece in version(number).as_bytes().chunks(100_000) {
                    file.write_all(piece).unwrap();
                    thread::sleep(Duration::from_millis(4));
                }
            }
            watcher.flush();
        });
        watcher.is_there();
        for content in &seen {
            let is_prefix = (0..30).any(|number| version(number).as_bytes().starts_with(content));
            assert!(is_prefix, "{direction:?}: {} bytes that never were", content.len());
        }
    }
}

#[test]
fn a_file_that_is_never_closed_arrives() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("log", "begin\n");
        let watcher = Watcher::ready(&world, direction, &[]);
        let mut log = OpenOptions::new().append(true).open(world.path("src/log")).unwrap();
        let mark = watcher.mark();
        log.write_all(b"a line\n").unwrap();
        // By events alone.
        watcher.event_where("round", mark, |_| true);
        assert_eq!(fs::read(world.path("dst/log")).unwrap(), b"begin\na line\n", "{direction:?}");
        log.set_len(3).unwrap();
        let shortened = || (fs::read(world.path("dst/log")).unwrap() == b"beg").then_some(());
        wait_for("what was cut off", shortened);
    }
}

#[test]
fn unfinished_browser_downloads_are_excluded_from_downloads() {
    for (options, are_left_out) in [(&["--delete"][..], true), (&["--delete", "--partial-downloads"], false)]
    {
        let world = World::new();
        world
            .tree("src")
            .file("a.crdownload", "half")
            .file(".com.google.Chrome.abc", "half")
            .file("done", "x");
        let watcher = Watcher::ready(&world, Direction::Down, options);
        let is_there = |name: &str| world.path("dst").join(name).exists();
        for name in ["a.crdownload", ".com.google.Chrome.abc"] {
            assert_eq!(is_there(name), !are_left_out, "{name}");
        }
        world.tree("src").file("b.crdownload", "half").file("sub/.com.google.Chrome.xyz", "half");
        watcher.flush();
        for name in ["b.crdownload", "sub/.com.google.Chrome.xyz"] {
            assert_eq!(is_there(name), !are_left_out, "{name}");
        }
        for (partial, whole) in [("a.crdownload", "a.zip"), ("sub/.com.google.Chrome.xyz", "sub/b.pdf")] {
            let mark = watcher.mark();
            fs::rename(world.path("src").join(partial), world.path("src").join(whole)).unwrap();
            watcher.event_where("round", mark, |_| true);
            wait_for("a download that is finished", || is_there(whole).then_some(()));
            wait_for("the end of the part", || (!is_there(partial)).then_some(()));
        }
    }
    // An upload excludes nothing by itself.
    let world = World::new();
    world.tree("src").file("a.crdownload", "half");
    Watcher::ready(&world, Direction::Up, &[]).is_there();
}
