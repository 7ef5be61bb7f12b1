use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;
#[cfg(target_os = "linux")]
use crate::disk::testing::skip::needs;
use crate::disk::testing::{Fixture, path};
use crate::tree::filter::Rule;

/// Excludes directories that are called `target`.
fn without_targets() -> Filter {
    Filter::new(&[Rule::new(false, b"target/".to_vec())])
}

fn read(fixture: &Fixture, subject: &Subject, filter: Option<&mut Filter>) -> Scanned {
    scan(&fixture.root, subject, &ScanOptions::default(), filter, &mut Away).unwrap()
}

fn whole(fixture: &Fixture) -> Scanned {
    read(fixture, &Subject::Whole, None)
}

fn paths(scanned: &Scanned) -> Vec<String> {
    scanned.manifest.entries().map(|entry| entry.path.to_string()).collect()
}

/// Records all calls.
#[derive(Default)]
struct Seen {
    last: ScanProgress,
    entered: Vec<String>,
}

impl Look for Seen {
    fn progress(&mut self, progress: ScanProgress) {
        self.last = progress;
    }

    fn enter(&mut self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        assert!(rustix::fs::fstat(directory).is_ok());
        self.entered.push(path.map_or_else(|| ".".to_owned(), TreePath::to_string));
    }
}

fn fill(fixture: &Fixture) {
    for directory in ["a/b", "a.b", "target/x", "a/target"] {
        fs::create_dir_all(fixture.at(directory)).unwrap();
    }
    for file in ["a/b/f", "a.b/f", "a/b.c", "f", "target/x/f", "a/target/f"] {
        fs::write(fixture.at(file), file).unwrap();
    }
    symlink("../outside", fixture.at("a/link")).unwrap();
}

#[test]
fn all_entries_are_found_in_order() {
    let fixture = Fixture::new();
    fill(&fixture);
    let scanned = whole(&fixture);
    assert_eq!(
        paths(&scanned),
        [
            "a",
            "a/b",
            "a/b/f",
            "a/b.c",
            "a/link",
            "a/target",
            "a/target/f",
            "a.b",
            "a.b/f",
            "f",
            "target",
            "target/x",
            "target/x/f"
        ]
    );
    assert!(scanned.manifest.entries().is_sorted_by(|one, other| one.path < other.path));
    assert!(scanned.problems.is_empty());
    assert_eq!(scanned.skipped, Skipped::default());
}

#[test]
fn entries_hold_the_filesystems_metadata() {
    let fixture = Fixture::new();
    fill(&fixture);
    fs::set_permissions(fixture.at("f"), fs::Permissions::from_mode(0o4640)).unwrap();
    let scanned = whole(&fixture);
    for (at, entry) in scanned.manifest.iter() {
        let stat = fixture.root.stat(&entry.path.to_path()).unwrap().unwrap();
        let identity = scanned.identities.get(&scanned.manifest, at).unwrap();
        assert_eq!((stat.identity, stat.mtime(), stat.mode), (identity, entry.mtime, entry.mode));
    }
    let find = |name| scanned.manifest.entries().find(|entry| entry.path == path(name)).unwrap();
    assert_eq!((find("f").size(), find("f").mode), (1, 0o4640));
    assert!(find("a").is_directory());
    assert_eq!(find("a/link").kind, Kind::Symlink { target: &b"../outside"[..] });
    assert_eq!(find("a/link").mode, 0o777);
}

#[test]
fn contents_are_hashed_on_request() {
    let fixture = Fixture::new();
    let content = vec![b'x'; 300_000];
    fs::write(fixture.at("f"), &content).unwrap();
    let options = ScanOptions { hash: true, ..ScanOptions::default() };
    let mut seen = Seen::default();
    let scanned = scan(&fixture.root, &Subject::Whole, &options, None, &mut seen).unwrap();
    assert_eq!(
        scanned.manifest.get(0).unwrap().kind,
        Kind::File { size: 300_000, hash: Some(Hash::of(&content)) }
    );
    assert_eq!(seen.last, ScanProgress { entries: 1, bytes: 300_000 });
}

#[test]
fn short_contents_are_hashed_on_request() {
    let fixture = Fixture::new();
    for (name, size) in [("a", 0), ("b", 1000), ("c", 1001)] {
        fs::write(fixture.at(name), vec![b'x'; size]).unwrap();
    }
    let options = ScanOptions { hash_bytes_max: 1000, ..ScanOptions::default() };
    let scanned = scan(&fixture.root, &Subject::Whole, &options, None, &mut Seen::default()).unwrap();
    let hash = |name: &str, size: usize| {
        let entry = scanned.manifest.entries().find(|entry| entry.path.name() == name.as_bytes()).unwrap();
        assert_eq!(entry.size(), size as u64);
        if let Kind::File { hash, .. } = entry.kind { hash } else { None }
    };
    assert_eq!((hash("a", 0), hash("c", 1001)), (None, None));
    assert_eq!(hash("b", 1000), Some(Hash::of(&[b'x'; 1000])));
}

#[test]
fn excluded_directories_are_counted_and_not_entered() {
    let fixture = Fixture::new();
    fill(&fixture);
    let scanned = read(&fixture, &Subject::Whole, Some(&mut without_targets()));
    assert_eq!(paths(&scanned), ["a", "a/b", "a/b/f", "a/b.c", "a/link", "a.b", "a.b/f", "f"]);
    assert_eq!(scanned.skipped.excluded, 2);
}

#[test]
fn an_ignore_file_applies_before_its_directory_is_listed() {
    let fixture = Fixture::new();
    fill(&fixture);
    fs::write(fixture.at(".ksyncignore"), "f\n").unwrap();
    fs::write(fixture.at("a/.ksyncignore"), "b\n!target\n").unwrap();
    fs::write(fixture.at("target/.ksyncignore"), "never read").unwrap();
    let mut filter = without_targets();
    let scanned = read(&fixture, &Subject::Whole, Some(&mut filter));
    let expected = [".ksyncignore", "a", "a/.ksyncignore", "a/b.c", "a/link", "a.b"];
    assert_eq!(paths(&scanned), expected);
    let files: Vec<_> = filter.files().iter().map(|file| file.directory.as_slice()).collect();
    assert_eq!(files, [&b""[..], b"a"]);
}

#[test]
fn an_unreadable_ignore_file_hides_its_directory_with_a_problem() {
    let fixture = Fixture::new();
    fill(&fixture);
    symlink(fixture.outside().join("f"), fixture.at("a/.ksyncignore")).unwrap();
    let scanned = read(&fixture, &Subject::Whole, Some(&mut Filter::default()));
    assert_eq!(paths(&scanned)[..2], ["a", "a.b"]);
    assert_eq!(scanned.problems.len(), 1);
    assert_eq!(scanned.problems[0].path(), b"a/.ksyncignore");
}

#[test]
fn state_directories_are_skipped_at_any_depth_and_in_any_case() {
    let fixture = Fixture::new();
    for directory in [".ksync", "a/.KSync/b"] {
        fs::create_dir_all(fixture.at(directory)).unwrap();
    }
    let scanned = whole(&fixture);
    assert_eq!(paths(&scanned), ["a"]);
    assert_eq!(scanned.skipped.state, 2);
    assert!(scanned.problems.is_empty());
}

#[test]
fn sockets_are_listed_with_their_kind_without_any_option() {
    let fixture = Fixture::new();
    let _socket = UnixListener::bind(fixture.at("s")).unwrap();
    let scanned = whole(&fixture);
    let entry = scanned.manifest.get(0).unwrap();
    assert!(entry.kind.is_special() && entry.special().is_some_and(|special| !special.is_device()));
}

#[cfg(target_os = "linux")]
#[test]
fn other_filesystems_are_entered_only_on_request() {
    // These are two filesystems on every Linux.
    let root = Root::open(std::path::Path::new("/")).unwrap();
    let proc = rustix::fs::stat("/proc/self");
    if !needs(proc.is_ok_and(|proc| proc.st_dev != root.dev()), "/proc is not mounted") {
        return;
    }
    let subject = Subject::One(path("proc"));
    let scanned = scan(&root, &subject, &ScanOptions::default(), None, &mut Away).unwrap();
    assert_eq!((paths(&scanned), scanned.skipped.mounts), (vec!["proc".to_owned()], 1));
}

#[test]
fn a_single_path_is_found_with_everything_below_it() {
    let fixture = Fixture::new();
    fill(&fixture);
    let one = |at: &str| paths(&read(&fixture, &Subject::One(path(at)), Some(&mut without_targets())));
    assert_eq!(one("a"), ["a", "a/b", "a/b/f", "a/b.c", "a/link"]);
    assert_eq!(one("f"), ["f"]);
    assert_eq!(one("missing"), [""; 0]);
    assert_eq!(one("missing/too"), [""; 0]);
    assert_eq!(one("target"), ["target", "target/x", "target/x/f"], "what is named by itself is meant");
}

#[test]
fn a_single_path_behind_a_link_is_a_problem() {
    let fixture = Fixture::new();
    symlink(fixture.outside(), fixture.at("link")).unwrap();
    let scanned = read(&fixture, &Subject::One(path("link/f")), None);
    assert!(scanned.manifest.is_empty());
    assert!(scanned.problems[0].is_in_the_way());
}

#[test]
fn an_overlong_path_is_a_problem_and_does_not_end_the_scan() {
    let fixture = Fixture::new();
    let mut at = path("x".repeat(250));
    while at.as_bytes().len() + 251 <= crate::tree::path::PATH_BYTES_MAX {
        fixture.root.make_directory(&at, 0o755).unwrap();
        at = at.join("x".repeat(250).as_bytes()).unwrap();
    }
    fixture.root.make_directory(&at, 0o755).unwrap();
    let deepest = fixture.root.open_directory(Some(&at)).unwrap();
    rustix::fs::mkdirat(&deepest, &*"y".repeat(250), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    fs::write(fixture.at("z"), "").unwrap();
    let scanned = whole(&fixture);
    assert_eq!(scanned.problems.len(), 1);
    assert_eq!(paths(&scanned).last().unwrap(), "z");
}

#[cfg(target_os = "linux")]
#[test]
fn an_unreadable_directory_is_a_problem_and_does_not_end_the_scan() {
    let fixture = Fixture::new();
    fill(&fixture);
    fs::set_permissions(fixture.at("a"), fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser reads everything, but one thread can give that right up.
    let scanned = std::thread::scope(|scope| {
        let unprivileged = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            }
            whole(&fixture)
        });
        unprivileged.join().unwrap()
    });
    fs::set_permissions(fixture.at("a"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(paths(&scanned), ["a.b", "a.b/f", "f", "target", "target/x", "target/x/f"]);
    assert_eq!(scanned.problems.len(), 1);
    assert!(scanned.problems[0].is_permission());
    assert_eq!(scanned.problems[0].path(), b"a");
}

#[test]
fn a_scan_of_parts_lists_only_the_parts_and_their_parents() {
    let fixture = Fixture::new();
    fill(&fixture);
    fs::write(fixture.at("a/.ksyncignore"), "b.c").unwrap();
    let scope = SubtreeSet::new([
        (path("a/b.c"), true),
        (path("a/link"), false),
        (path("a/gone/x"), false),
        (path("a.b"), false),
        (path("f/x"), true),
        (path("target"), true),
    ]);
    let (mut seen, mut filter) = (Seen::default(), Filter::default());
    let subject = Subject::Subtrees(scope, Arc::default());
    let scanned =
        scan(&fixture.root, &subject, &ScanOptions::default(), Some(&mut filter), &mut seen).unwrap();
    assert_eq!(paths(&scanned), ["a", "a/link", "a.b", "f", "target", "target/x", "target/x/f"]);
    assert_eq!(seen.entered, [".", "a", "target", "target/x"]);
    assert_eq!((scanned.problems.len(), scanned.skipped.vanished, scanned.skipped.excluded), (0, 1, 1));
    assert_eq!(filter.files().len(), 1);
}
