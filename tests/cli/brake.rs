//! Deletions that wait for consent: the run does everything else, and exits with 25.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::below::with_mounts;
use crate::world::{Run, Terminal, World};

/// SOURCE and DEST for a local copy, an upload and a download.
fn directions(world: &World) -> [[OsString; 2]; 3] {
    [["src".into(), "dst".into()], ["src".into(), world.far("dst")], [world.far("src"), "dst".into()]]
}

fn run(world: &World, options: &[&str], endpoints: &[OsString; 2]) -> Run {
    let mut command = world.ksync(options);
    command.args(endpoints);
    Run::of(command)
}

fn fill(world: &World, files: usize) {
    (0..files).fold(world.tree("src"), |tree, number| tree.file(format!("f{number:02}"), "text"));
}

fn count(world: &World, name: &str) -> usize {
    fs::read_dir(world.path(name)).unwrap().count()
}

fn empty(world: &World, name: &str) {
    for entry in fs::read_dir(world.path(name)).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

#[test]
fn an_emptied_source_deletes_nothing_without_consent() {
    for direction in 0..3 {
        let world = World::new();
        let endpoints = &directions(&world)[direction];
        fill(&world, 3);
        run(&world, &[], endpoints).ok();
        empty(&world, "src");
        // A sync without `--delete` in between changes nothing.
        for options in [&["--delete"][..], &[], &["--delete"]] {
            let code = if options.is_empty() { 0 } else { 25 };
            let told = run(&world, options, endpoints).fails(code);
            assert_eq!(count(&world, "dst"), 3);
            if code == 25 {
                assert!(told.stderr.contains("is empty and was not at the last sync; 3 entries would go"));
                assert!(told.stderr.contains("\n  f00\n  f01\n  f02\n  hint: "), "{}", told.stderr);
            }
        }
        run(&world, &["--delete", "--yes"], endpoints).ok();
        assert_eq!(count(&world, "dst"), 0);
        // The source was empty at the last sync now.
        world.tree("dst").file("late", "");
        run(&world, &["--delete"], endpoints).ok();
        assert_eq!(count(&world, "dst"), 0);
    }
}

#[test]
fn an_unmounted_source_deletes_nothing() {
    for (source, destination) in [("src", "dst"), ("src", "sandbox:$PWD/dst"), ("sandbox:$PWD/src", "dst")] {
        let world = World::new();
        let script = format!(
            "
            waits() {{
                code=0; ksync --delete {source} {destination} 2>told || code=$?
                [ $code = 25 ] && [ -e dst/f1 ] && [ -e dst/d/f2 ] && grep -q \"$1\" told
            }}
            mkdir src dst; mount -t tmpfs none src
            mkdir src/d; echo 1 >src/f1; echo 2 >src/d/f2
            ksync --delete {source} {destination}
            umount src; waits 'is empty and was not at the last sync'
            # What it hides is no reason to delete, either; it arrives.
            echo hidden >src/hidden
            waits 'is on another filesystem than at the last sync'; [ -e dst/hidden ]
            mount -t tmpfs none src; echo other >src/other
            waits 'is on another filesystem than at the last sync'; [ -e dst/other ]
            # A run that deletes nothing makes it no copy of that.
            ksync {source} {destination}; waits 'filesystem'
            ksync --delete --yes {source} {destination}
            [ ! -e dst/f1 ] && [ ! -e dst/d ] && [ ! -e dst/hidden ] && [ -e dst/other ]
            mv src/other src/again; ksync --delete {source} {destination}
            [ ! -e dst/other ] && [ -e dst/again ]"
        );
        if with_mounts(&world, &script).is_none() {
            return;
        }
    }
}

#[test]
fn a_source_that_is_mounted_again_needs_no_consent() {
    let world = World::new();
    let script = "
        mkdir src dst disk; echo 1 >disk/f1; echo 2 >disk/f2
        mount --bind disk src; ksync --delete src dst; umount src
        code=0; ksync --delete src dst || code=$?; [ $code = 25 ]
        mount --bind disk src; rm disk/f1
        ksync --delete src dst; [ ! -e dst/f1 ] && [ -e dst/f2 ]";
    let _ = with_mounts(&world, script);
}

#[test]
fn a_user_at_a_terminal_is_asked_for_consent() {
    for (typed, code) in
        [("y\n", 0), ("YES\n", 0), ("n\n", 25), ("\n", 25), ("yes please\n", 25), ("\x04", 25)]
    {
        let world = World::new();
        fill(&world, 2);
        world.tree("dst").file("mine", "x");
        let mut terminal = Terminal::new(&world, &world.ksync(["--delete", "src", "dst"]));
        terminal.sees("dst was never a copy of src made by ksync");
        terminal.sees("Delete 1 entry? [y/N] ");
        assert!(world.path("dst/f00").exists() && world.path("dst/mine").exists(), "{typed:?}");
        terminal.types(typed);
        terminal.ends_with(code);
        assert_eq!(world.path("dst/mine").exists(), code != 0, "{typed:?}");
        // Only a yes makes DEST a known copy.
        let again = run(&world, &["--delete"], &directions(&world)[0]);
        assert_eq!(again.status.code(), Some(if code == 0 { 0 } else { 25 }), "{typed:?}");
    }
}

#[test]
fn a_yes_covers_only_the_deletions_in_the_question() {
    for direction in 0..3 {
        let world = World::new();
        fill(&world, 3);
        world.tree("dst").file("mine", "x");
        let mut command = world.ksync(["--delete"]);
        command.args(&directions(&world)[direction]);
        let mut terminal = Terminal::new(&world, &command);
        terminal.sees("Delete 1 entry? [y/N] ");
        // The source is unmounted while the user thinks.
        empty(&world, "src");
        terminal.types("y\n");
        terminal.sees("Delete 4 entries? [y/N] ");
        assert_eq!(count(&world, "dst"), 4);
        terminal.types("n\n");
        terminal.ends_with(25);
        assert_eq!(count(&world, "dst"), 4);
    }
}

#[test]
fn a_signal_counts_as_no() {
    let world = World::new();
    fill(&world, 1);
    world.tree("dst").file("mine", "x");
    let mut terminal = Terminal::new(&world, &world.ksync(["--delete", "src", "dst"]));
    terminal.sees("[y/N] ");
    kill_process(terminal.program(), Signal::TERM).unwrap();
    terminal.ends_with(20);
    assert!(world.path("dst/mine").exists());
}

#[test]
fn no_question_is_asked_with_quiet_or_json_or_in_a_home() {
    for options in [&["-q"][..], &["--json"]] {
        let world = World::new();
        fill(&world, 1);
        world.tree("dst").file("mine", "x");
        let mut command = world.ksync(options);
        command.args(["--delete", "src", "dst"]);
        let mut terminal = Terminal::new(&world, &command);
        terminal.ends_with(25);
        assert!(!terminal.has_shown("[y/N]"), "{options:?}");
    }
    let world = World::new();
    fill(&world, 1);
    fs::write(world.home().join("precious"), "x").unwrap();
    let mut terminal = Terminal::new(&world, &world.ksync(["--delete", "src", "home"]));
    terminal.ends_with(25);
    assert!(!terminal.has_shown("[y/N]") && world.home().join("precious").exists());
}

#[test]
fn a_foreign_destination_needs_consent_once() {
    for direction in 0..3 {
        let world = World::new();
        let endpoints = &directions(&world)[direction];
        fill(&world, 2);
        world.tree("dst").file("mine", "x");
        let told = run(&world, &["--delete"], endpoints).fails(25);
        assert!(told.stderr.contains("was never a copy of"), "{}", told.stderr);
        assert_eq!(count(&world, "dst"), 3, "everything else is done");
        // A DEST that contains all of SOURCE is still no known copy.
        run(&world, &[], endpoints).ok();
        run(&world, &["--delete"], endpoints).fails(25);
        run(&world, &["--delete", "-y"], endpoints).ok();
        world.tree("dst").file("late", "");
        run(&world, &["--delete"], endpoints).ok();
        assert_eq!(count(&world, "dst"), 2);
    }
}

#[test]
fn a_directory_that_replaced_a_copy_needs_consent() {
    let world = World::new();
    fill(&world, 2);
    let endpoints = &directions(&world)[0];
    run(&world, &[], endpoints).ok();
    fs::rename(world.path("dst"), world.path("moved")).unwrap();
    world.tree("dst").file("foreign", "x");
    run(&world, &["--delete"], endpoints).fails(25);
    assert!(world.path("dst/foreign").exists());
    // An empty DEST holds nothing that could be missed.
    fs::remove_dir_all(world.path("dst")).unwrap();
    run(&world, &["--delete"], endpoints).ok();
    world.tree("dst").file("late", "");
    run(&world, &["--delete"], endpoints).ok();
    assert!(!world.path("dst/late").exists());
}

#[test]
fn an_unreadable_pair_needs_consent() {
    let world = World::new();
    fill(&world, 2);
    let endpoints = &directions(&world)[0];
    run(&world, &[], endpoints).ok();
    let records = world.path("state/ksync/copies");
    assert_eq!(fs::metadata(&records).unwrap().permissions().mode() & 0o777, 0o700);
    world.tree("dst").file("late", "");
    let paths = || fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().path());
    assert!(paths().count() > 0, "no pair was recorded");
    for path in paths() {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(path, "{").unwrap();
    }
    run(&world, &["--delete"], endpoints).fails(25);
    fs::remove_dir_all(&records).unwrap();
    fs::write(&records, "in the way").unwrap();
    run(&world, &["--delete"], endpoints).fails(25);
    assert!(world.path("dst/late").exists());
}

#[test]
fn more_than_half_and_at_least_ten_need_consent() {
    for (files, gone, code) in [(20, 10, 0), (19, 10, 25), (9, 8, 0), (30, 20, 25)] {
        let world = World::new();
        fill(&world, files);
        let endpoints = &directions(&world)[1];
        run(&world, &[], endpoints).ok();
        (0..gone).for_each(|number| fs::remove_file(world.path(format!("src/f{number:02}"))).unwrap());
        let told = run(&world, &["--delete"], endpoints).fails(code);
        let left = if code == 0 { files - gone } else { files };
        assert_eq!(count(&world, "dst"), left, "{}", told.stderr);
    }
}

#[test]
fn more_deletions_than_the_limit_delete_nothing() {
    let world = World::new();
    fill(&world, 20);
    let endpoints = &directions(&world)[1];
    run(&world, &[], endpoints).ok();
    (0..15).for_each(|number| fs::remove_file(world.path(format!("src/f{number:02}"))).unwrap());
    for limit in ["--max-delete=0", "--max-delete=14"] {
        let told = run(&world, &["--delete", limit], endpoints).fails(25);
        assert!(told.stderr.contains("allows less; 15 entries would go"), "{}", told.stderr);
        assert!(told.stderr.contains("\n  and 5 more\n"), "{}", told.stderr);
        assert_eq!(count(&world, "dst"), 20);
    }
    run(&world, &["--delete", "--max-delete=15"], endpoints).ok();
    assert_eq!(count(&world, "dst"), 5);
    let told = run(&world, &["--delete", "--max-delete=-1"], endpoints).fails(1);
    assert!(told.stderr.contains("--max-delete takes a number of entries, 0 or more"), "{}", told.stderr);
}

#[test]
fn braked_deletions_also_hold_back_what_replaces_a_directory() {
    let world = World::new();
    world.tree("src").file("new", "new").file("a", "a file now").file("same", "changed").link("l", "new");
    world.tree("dst").file("a/b/k", "").file("same", "old").file("old", "moved").dir("l/none");
    world.tree("src").file("renamed", "moved").time("renamed", 1_000_000, 0);
    world.tree("dst").time("old", 1_000_000, 0);
    let told = run(&world, &["--delete", "-i"], &directions(&world)[1]).fails(25);
    for (name, expected) in [("new", "new"), ("same", "changed"), ("old", "moved"), ("renamed", "moved")] {
        assert_eq!(fs::read_to_string(world.path("dst").join(name)).unwrap(), expected, "{name}");
    }
    assert!(world.path("dst/a/b/k").exists() && world.path("dst/l/none").is_dir());
    assert!(!told.stdout.contains("deleting"), "{}", told.stdout);
    assert!(told.stderr.contains("4 entries would go"), "{}", told.stderr);
    assert!(!told.stderr.contains("cannot"), "{}", told.stderr);
}

#[test]
fn a_dry_run_lists_deletions_and_says_that_they_would_wait() {
    let world = World::new();
    fill(&world, 1);
    world.tree("dst").file("mine", "x");
    let told = run(&world, &["-n", "-i", "--delete"], &directions(&world)[1]).ok();
    assert!(told.stdout.contains("*deleting   mine\n"), "{}", told.stdout);
    assert!(told.stderr.contains("the run would delete nothing and end with exit code 25: "));
    let told = run(&world, &["-n", "-i", "--delete", "--yes"], &directions(&world)[1]).ok();
    assert!(!told.stderr.contains("exit code 25"), "{}", told.stderr);
}

#[test]
fn json_reports_braked_deletions_with_a_code() {
    let world = World::new();
    fill(&world, 1);
    world.tree("dst").file("mine", "x");
    let told = run(&world, &["--json", "--delete"], &directions(&world)[1]).fails(25);
    let events: Vec<Value> = told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors: Vec<_> = events.iter().filter(|event| event["event"] == "error").collect();
    let [error] = errors[..] else { panic!("{}", told.stdout) };
    assert_eq!((&error["code"], &error["exit"]), (&"brake".into(), &25.into()));
    assert_eq!((&error["retryable"], &error["reason"]), (&false.into(), &"foreign".into()));
    assert_eq!((&error["entries"], &error["first"][0]["path"]), (&1.into(), &"mine".into()));
    assert!(error["hint"].as_str().unwrap().contains("--yes"));
}

#[test]
fn deletions_in_a_home_need_its_path_in_any_spelling() {
    let world = World::new();
    fill(&world, 1);
    symlink(world.home(), world.path("link")).unwrap();
    fs::create_dir_all(world.far_home()).unwrap();
    let far = |path: &str| -> [OsString; 2] { ["src".into(), format!("sandbox:{path}").into()] };
    let near = |path: &str| -> [OsString; 2] { ["src".into(), path.into()] };
    let far_home = world.far_home();
    for (endpoints, home, named) in [
        (near("home"), world.home(), "link"),
        (near("link/"), world.home(), "home/../home//"),
        (near("home/../home/."), world.home(), "home"),
        (far("."), far_home.clone(), "."),
        (far("~"), far_home.clone(), "sandbox:~"),
        (far(far_home.to_str().unwrap()), far_home.clone(), "~"),
    ] {
        fs::write(home.join("precious"), "x").unwrap();
        // The agent's own files are in the far home.
        let delete = ["--delete", "--exclude=.cache", "--yes"];
        for options in [&delete[..2], &delete, &["--delete", "-y", "--max-delete=9"]] {
            let told = run(&world, options, &endpoints).fails(25);
            assert!(told.stderr.contains("is a home or a directory of the system"), "{}", told.stderr);
            assert!(home.join("precious").exists());
        }
        run(&world, &[&delete[..], &["--force-delete-in", "dst"]].concat(), &endpoints).fails(25);
        run(&world, &[&delete[..], &["--force-delete-in", named]].concat(), &endpoints).ok();
        assert!(!home.join("precious").exists(), "{endpoints:?}");
        fs::create_dir_all(&home).unwrap();
    }
}

#[test]
fn an_existing_destination_keeps_its_mode() {
    let world = World::new();
    fill(&world, 1);
    world.tree("src").mode("", 0o755);
    fs::create_dir(world.path("dst")).unwrap();
    let set_mode = |name: &str, mode| {
        fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |name: &str| fs::metadata(world.path(name)).unwrap().permissions().mode() & 0o7777;
    set_mode("dst", 0o2770);
    for _ in 0..2 {
        run(&world, &[], &directions(&world)[1]).ok();
        assert_eq!(mode("dst"), 0o2770);
    }
    // A directory that ksync created follows the source.
    run(&world, &[], &["src".into(), world.far("own")]).ok();
    assert_eq!(mode("own"), 0o755);
    set_mode("src", 0o700);
    let told = run(&world, &["-i"], &["src".into(), world.far("own")]).ok();
    assert_eq!((mode("own"), mode("dst")), (0o700, 0o2770));
    assert!(told.stdout.starts_with(".d...p..... ./\n"), "{}", told.stdout);
    assert!(told.summary().contains(": 1 adjusted; sent 0 B in "), "{}", told.stdout);
}
