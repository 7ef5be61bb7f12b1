//! `--out-format` and `--log-file`, compared with rsync.

use std::fs;

use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// A source and a destination that differ in every way that a line can tell.
fn world() -> World {
    let world = World::new();
    for name in ["mine", "theirs"] {
        let root = format!("{name}/dst");
        world.tree(&root).file("gone/x", "x").file("old", "text").file("same", "same").file("edited", "1");
    }
    world.tree("src").file("d/new", "12").file("edited", "1234").file("same", "same").link("l", "d/new");
    for name in ["src/same", "mine/dst/same", "theirs/dst/same", "src/edited"] {
        let file = fs::File::options().write(true).open(world.path(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_767_323_045);
        file.set_modified(time).unwrap();
    }
    // rsync compares whole seconds, and these are far apart.
    for (name, seconds) in
        [("src", 1_767_000_000), ("mine/dst", 1_700_000_000), ("theirs/dst", 1_700_000_000)]
    {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        fs::File::open(world.path(name)).unwrap().set_modified(time).unwrap();
    }
    world
}

/// The lines of a run's list, without the summary, in order of the text.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn rsync(world: &World, options: &[&str]) -> Run {
    let mut command = world.command("rsync");
    command.args(["-rlpt", "--delete"]).args(options).args(["src/", "theirs/dst/"]).env("TZ", "UTC");
    Run::of(command).ok()
}

fn ksync(world: &World, options: &[&str]) -> Run {
    let mut command = world.ksync(["--delete", "--yes"]);
    command.args(options).args(["src", "mine/dst"]);
    Run::of(command).ok()
}

#[test]
fn lines_of_a_format_are_those_of_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    for format in ["%n%L", "%i %n%L", "%o %n", "[%-12n|%6n] %%", "%n %'l %B", "%n %M %U", "%q%n %o"] {
        let world = world();
        for is_dry in [true, false] {
            let option = format!("--out-format={format}");
            let options: Vec<&str> = is_dry.then_some("-n").into_iter().chain([&*option]).collect();
            let theirs = sorted(&rsync(&world, &options).stdout);
            let mine = ksync(&world, &options).stdout;
            let mine =
                sorted(mine.rsplit_once('\n').map_or("", |_| mine.trim_end().rsplit_once('\n').unwrap().0));
            assert!(theirs.len() > 4, "{theirs:?}");
            assert_eq!(mine, theirs, "{format} {is_dry}");
        }
    }
}

#[test]
fn an_escape_without_an_answer_is_refused() {
    let world = world();
    let run = world.run(["--out-format=%C", "src", "dst"]).fails(1);
    assert!(run.stderr.starts_with("ksync: --out-format takes the escapes %i %n "), "{}", run.stderr);
    assert!(run.stderr.contains(" and no %C, and not \"%C\"\n"), "{}", run.stderr);
}

#[test]
fn the_log_file_has_the_lines_of_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    for format in [None, Some("%o %n")] {
        let world = world();
        let format = format.map(|format| format!("--log-file-format={format}"));
        let options =
            |log: &'static str| [Some(log), format.as_deref()].into_iter().flatten().collect::<Vec<_>>();
        rsync(&world, &options("--log-file=theirs/log"));
        let run = ksync(&world, &options("--log-file=mine/log"));
        // The list goes to the file only.
        assert_eq!(run.stdout.lines().count(), 1, "{}", run.stdout);
        let lines = |name: &str| {
            let text = fs::read_to_string(world.path(name)).unwrap();
            let mut lines: Vec<String> = text
                .lines()
                .map(|line| {
                    let (stamp, rest) = line.split_once("] ").unwrap();
                    let is_stamp = |(at, byte): (usize, char)| match at {
                        4 | 7 => byte == '/',
                        10 => byte == ' ',
                        13 | 16 => byte == ':',
                        _ => byte.is_ascii_digit(),
                    };
                    assert!(stamp.chars().take(19).enumerate().all(is_stamp), "{line}");
                    rest.to_owned()
                })
                .collect();
            assert_eq!(lines[0], "building file list");
            let last = lines.pop().unwrap();
            assert!(last.starts_with("sent ") && last.contains(" bytes  total size 1"), "{last}");
            lines.sort();
            lines
        };
        assert_eq!(lines("mine/log"), lines("theirs/log"));
    }
}

#[test]
fn a_log_file_keeps_problems_and_errors() {
    let world = world();
    world.run(["--log-file=log", "nowhere", "dst"]).fails(3);
    let log = fs::read_to_string(world.path("log")).unwrap();
    assert!(log.contains("] ksync: ") && log.contains("nowhere does not exist"), "{log}");
    world.run(["--log-file=log", "src", "dst"]).ok();
    let longer = fs::read_to_string(world.path("log")).unwrap();
    assert!(longer.starts_with(&log) && longer.len() > log.len(), "{longer}");
}

#[test]
fn a_log_file_that_cannot_be_written_stops_before_the_run() {
    let world = world();
    let run = world.run(["--log-file=no/log", "src", "dst"]).fails(11);
    assert!(run.stderr.starts_with("ksync: cannot write the log no/log: no such file"), "{}", run.stderr);
    assert!(run.stderr.contains("\n  hint: Name a file"), "{}", run.stderr);
    assert!(!world.path("dst").exists());
    // A full disk under the log is no reason to end the run.
    if fs::metadata("/dev/full").is_ok() {
        let run = world.run(["--log-file=/dev/full", "src", "dst"]).ok();
        let said = "ksync: cannot write the log /dev/full: no space left on device\n";
        assert_eq!(run.stderr.matches(said).count(), 1, "{}", run.stderr);
        world.assert_same("src", "dst");
    }
}

#[test]
fn capital_p_lists_each_change() {
    let world = world();
    assert!(world.run(["-P", "src", "dst"]).ok().stdout.contains("create  d/new\n"));
}
