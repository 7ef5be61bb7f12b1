use std::fs;
use std::os::fd::AsFd;
use std::sync::mpsc;

use super::*;
use crate::disk::scan::{Look, ScanOptions, Subject, scan};
use crate::disk::testing::{Fixture, path};
use crate::tree::subtrees::{Coverage, SubtreeSet};

/// Timeout for an event on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

const OPTIONS: Options = Options { quiet: settle::QUIET, poll: false };

/// Reports each scanned directory to a watch.
struct Entering<'a>(&'a Watch);

impl Look for Entering<'_> {
    fn enter(&mut self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        self.0.enter(directory, path);
    }
}

/// A watched place.
struct WatchedTree {
    fixture: Fixture,
    watch: Watch,
    woken: mpsc::Receiver<()>,
}

impl WatchedTree {
    fn new(fill: impl FnOnce(&Fixture)) -> Self {
        let fixture = Fixture::new();
        fill(&fixture);
        let watch = Watch::new(fixture.root.path(), OPTIONS);
        let (wake, woken) = mpsc::channel();
        watch.wake(move || wake.send(()).unwrap_or_default());
        let watched = Self { fixture, watch, woken };
        watched.read(&Subject::Whole);
        watched
    }

    fn read(&self, subject: &Subject) {
        let look = &mut Entering(&self.watch);
        scan(&self.fixture.root, subject, &ScanOptions::default(), None, look).unwrap();
    }

    /// Waits for the next changes, scans them, and returns them.
    fn next(&self) -> Touched {
        loop {
            self.woken.recv_timeout(TIMEOUT).expect("nothing was touched");
            if let Some(touched) = self.watch.take() {
                if let Touched::Subtrees(scope) = &touched {
                    self.read(&Subject::Subtrees(scope.clone(), Arc::default()));
                }
                return touched;
            }
        }
    }

    /// Waits until all of these paths were reported, each in time.
    fn sees(&self, names: &[&str]) {
        let mut missing: Vec<TreePath> = names.iter().copied().map(path).collect();
        while !missing.is_empty() {
            match self.next() {
                Touched::Subtrees(scope) => missing.retain(|path| scope.coverage(path) == Coverage::Outside),
                Touched::Everything => return,
            }
        }
    }
}

fn two_directories(fixture: &Fixture) {
    fs::create_dir_all(fixture.at("d/e")).unwrap();
    fs::write(fixture.at("d/e/f"), "f").unwrap();
    fs::write(fixture.at("g"), "g").unwrap();
}

#[test]
fn written_created_moved_and_removed_entries_are_reported() {
    let watched = WatchedTree::new(two_directories);
    let at = |name: &str| watched.fixture.at(name);
    fs::write(at("d/e/f"), "other").unwrap();
    watched.sees(&["d/e/f"]);
    fs::set_permissions(at("g"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    watched.sees(&["g"]);
    fs::rename(at("g"), at("d/h")).unwrap();
    watched.sees(&["g", "d/h"]);
    fs::remove_file(at("d/h")).unwrap();
    watched.sees(&["d/h"]);
    std::os::unix::fs::symlink("d", at("l")).unwrap();
    watched.sees(&["l"]);
    fs::remove_dir_all(at("d")).unwrap();
    watched.sees(&["d"]);
    assert_eq!(watched.watch.blindness(), None);
}

#[test]
fn a_new_directory_is_watched_as_soon_as_it_is_read() {
    let watched = WatchedTree::new(two_directories);
    let at = |name: &str| watched.fixture.at(name);
    fs::create_dir_all(at("n/m")).unwrap();
    watched.sees(&["n"]);
    fs::write(at("n/m/f"), "f").unwrap();
    watched.sees(&["n/m/f"]);
    // A directory that arrives with everything in it, and one that is renamed.
    fs::create_dir_all(watched.fixture.outside().join("o/p")).unwrap();
    fs::rename(watched.fixture.outside().join("o"), at("o")).unwrap();
    watched.sees(&["o"]);
    fs::write(at("o/p/f"), "f").unwrap();
    watched.sees(&["o/p/f"]);
    fs::rename(at("o"), at("q")).unwrap();
    watched.sees(&["o", "q"]);
    fs::write(at("q/p/f"), "other").unwrap();
    watched.sees(&["q/p/f"]);
}

#[test]
fn a_directory_that_left_the_tree_is_no_longer_watched() {
    let watched = WatchedTree::new(two_directories);
    let outside = watched.fixture.outside().join("left");
    fs::rename(watched.fixture.at("d"), &outside).unwrap();
    watched.sees(&["d"]);
    fs::write(outside.join("e/f"), "other").unwrap();
    fs::write(watched.fixture.at("g"), "other").unwrap();
    let touched = watched.next();
    assert_eq!(touched, Touched::Subtrees(SubtreeSet::new([(path("g"), false)])));
}

#[test]
fn reads_and_the_state_directory_cause_no_report() {
    let watched = WatchedTree::new(|fixture| {
        two_directories(fixture);
        fs::create_dir(fixture.at(".ksync")).unwrap();
    });
    fs::read(watched.fixture.at("g")).unwrap();
    fs::create_dir(watched.fixture.at(".ksync/x")).unwrap();
    fs::write(watched.fixture.at("d/n"), "n").unwrap();
    assert_eq!(watched.next(), Touched::Subtrees(SubtreeSet::new([(path("d/n"), false)])));
}

#[test]
fn a_moved_root_reports_everything() {
    let watched = WatchedTree::new(two_directories);
    fs::rename(watched.fixture.root.path(), watched.fixture.outside().join("gone")).unwrap();
    while watched.next() != Touched::Everything {}
    assert!(!watched.fixture.root.is_still_there());
}

#[test]
fn a_path_that_was_changing_is_reported_again() {
    let watched = WatchedTree::new(two_directories);
    watched.watch.touch(path("g"));
    assert_eq!(watched.next(), Touched::Subtrees(SubtreeSet::new([(path("g"), false)])));
}

#[test]
fn a_polling_watch_reports_that_it_is_blind() {
    let fixture = Fixture::new();
    let watch = Watch::new(fixture.root.path(), Options { poll: true, ..OPTIONS });
    watch.enter(fixture.root.open_directory(None).unwrap().as_fd(), None);
    assert_eq!(watch.blindness().as_deref(), Some("--poll was given"));
}

#[test]
fn the_portable_watcher_reports_written_and_created_entries() {
    let fixture = Fixture::new();
    two_directories(&fixture);
    let shared = Shared::new(settle::QUIET);
    let (wake, woken) = mpsc::channel();
    shared.state().waker = Some(Box::new(move || wake.send(()).unwrap_or_default()));
    let source = portable::EventSource::begin(fixture.root.path(), Arc::clone(&shared)).unwrap();
    let sees = |name: &str| {
        let is_in = |touched: Touched| match touched {
            Touched::Subtrees(scope) => scope.coverage(&path(name)) != Coverage::Outside,
            Touched::Everything => true,
        };
        loop {
            woken.recv_timeout(TIMEOUT).expect("nothing was touched");
            let due = shared.state().due.take();
            if due.is_some_and(is_in) {
                return;
            }
        }
    };
    source.enter(fixture.root.open_directory(None).unwrap().as_fd(), None);
    source.rouse();
    fs::write(fixture.at("d/e/f"), "other").unwrap();
    sees("d/e/f");
    fs::create_dir(fixture.at("n")).unwrap();
    sees("n");
    fs::remove_file(fixture.at("g")).unwrap();
    sees("g");
    drop(source);
}
