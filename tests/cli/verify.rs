//! `ksync verify` and `--verify`: both sides are hashed, and each difference is told.

use std::ffi::OsString;
use std::fs;

use serde_json::Value;

use crate::plan::{Rng, grow};
use crate::world::{Run, World};

/// Changes the first byte of a file, and neither its size nor its times.
fn corrupt(world: &World, file: &str) {
    let path = world.path(file);
    let before = fs::metadata(&path).unwrap();
    let mut content = fs::read(&path).unwrap();
    content[0] ^= 1;
    fs::write(&path, content).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
}

/// The endpoints of a comparison: local, up and down.
fn ways(world: &World) -> [[OsString; 2]; 3] {
    let (src, dst) = (OsString::from("src"), OsString::from("dst"));
    [[src.clone(), dst.clone()], [src, world.far("dst")], [world.far("src"), dst]]
}

fn verify(world: &World, options: &[&str], ends: &[OsString; 2]) -> Run {
    let mut ksync = world.ksync(["verify"]);
    ksync.args(options).args(ends);
    Run::of(ksync)
}

#[test]
fn altered_byte_of_unchanged_size_and_time_is_a_difference() {
    let world = World::new();
    world.tree("src").with_everything().file("deep/altered", "content").file("same", "same");
    world.run(["src", "dst"]).ok();
    for ends in ways(&world) {
        let run = verify(&world, &[], &ends).ok();
        assert!(run.summary().contains("verified, no difference"), "{}", run.stdout);
    }
    corrupt(&world, "dst/deep/altered");
    let before = (world.snapshot("src"), world.snapshot("dst"));
    assert!(world.run(["src", "dst"]).ok().summary().contains("nothing to do"));
    for ends in ways(&world) {
        let run = verify(&world, &[], &ends).fails(44);
        let lines: Vec<&str> = run.stdout.lines().collect();
        let sign = if ends[1] == "dst" { '>' } else { '<' };
        assert_eq!(lines[..lines.len() - 1], [format!("{sign}fc........ deep/altered")], "{}", run.stdout);
        assert!(run.summary().contains("1 difference"), "{}", run.summary());
        assert!(run.stderr.contains(" differ: 1 difference\n  hint: "), "{}", run.stderr);
    }
    assert_eq!((world.snapshot("src"), world.snapshot("dst")), before);
    assert!(!world.path("dst/.ksync").exists());
}

#[test]
fn verification_after_a_run_finds_what_size_and_time_hide() {
    for is_up in [false, true] {
        let world = World::new();
        world.tree("src").file("a", "content").file("b", "content");
        let far = if is_up { world.far("dst") } else { "dst".into() };
        let sync = |options: &[&str]| {
            let mut ksync = world.ksync(options);
            ksync.arg("src").arg(&far);
            Run::of(ksync)
        };
        sync(&["--verify"]).ok();
        corrupt(&world, "dst/a");
        world.tree("dst").file("extra", "stays without --delete");
        let run = sync(&["--verify"]).fails(44);
        assert_eq!(run.stdout.lines().filter(|line| line.ends_with(" a")).count(), 1, "{}", run.stdout);
        assert!(!run.stdout.contains("extra"), "{}", run.stdout);
        sync(&["--verify", "-c"]).ok();
        sync(&["--verify", "--delete", "--yes"]).ok();
        // Deletions that wait are told once, with their own exit code.
        world.tree("dst").file("more", "x");
        let run = sync(&["--verify", "--delete", "--max-delete=0"]).fails(25);
        assert!(run.summary().contains("verified, no difference"), "{}", run.stdout);
    }
}

#[test]
fn entries_of_one_side_and_other_metadata_are_differences() {
    let world = World::new();
    world.tree("src").file("new", "x").file("mode", "x").file("text", "one").link("l", "a").dir("kind");
    world.tree("dst").file("old/below", "x").file("text", "two!").link("l", "b").file("kind", "x");
    world.tree("src").file("skipped.o", "x");
    world.tree("dst").file("mode", "x").mode("mode", 0o600).file("kept.o", "x");
    for side in ["src", "dst"] {
        for name in ["mode", "text"] {
            world.tree(side).time(name, 1_000_000, 0);
        }
        world.tree(side).time("", 1_000_000, 0);
    }
    let run = verify(&world, &["--exclude=*.o"], &ways(&world)[0]).fails(44);
    let mut lines: Vec<&str> = run.stdout.lines().collect();
    lines.pop();
    lines.sort_unstable();
    let expected = [
        "*extra      old/",
        "*extra      old/below",
        ".f...p..... mode",
        ">f+++++++++ new",
        ">fcs....... text",
        "cLc.t...... l -> a",
        "cd+++++++++ kind/",
    ];
    assert_eq!(lines, expected);
    let run = verify(&world, &["--exclude=*.o", "--ignore-extra"], &ways(&world)[0]).fails(44);
    assert!(!run.stdout.contains("old/"), "{}", run.stdout);
    // Neither a setting nor a guard against deletions changes the comparison.
    let mut ksync = world.ksync(["verify", "-q", "src", "dst"]);
    ksync.envs([("KSYNC_DELETE", "false"), ("KSYNC_EXEC", "touch ran"), ("KSYNC_MAX_DELETE", "0")]);
    let run = Run::of(ksync).fails(44);
    assert_eq!((run.stdout.as_str(), run.stderr.contains("differ")), ("", true), "{}", run.stderr);
    assert!(!world.path("ran").exists());
}

#[test]
fn json_has_an_event_for_each_difference_and_totals() {
    let world = World::new();
    world.tree("src").file("a", "x").file("b", "x").file("c", "x");
    world.run(["src", "dst"]).ok();
    corrupt(&world, "dst/a");
    fs::remove_file(world.path("dst/b")).unwrap();
    world.tree("dst").file("d", "x").mode("c", 0o600);
    world.tree("dst").time("", 1, 0);
    let run = world.run(["verify", "--json", "src", "dst"]).fails(44);
    let events: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told =
        |of: &Value| (of["path"].as_str().unwrap().to_owned(), of["difference"].as_str().unwrap().to_owned());
    let mut differences: Vec<_> =
        events.iter().filter(|event| event["event"] == "difference").map(told).collect();
    differences.sort_unstable();
    let expected = [("", "metadata"), ("a", "content"), ("b", "missing"), ("c", "metadata"), ("d", "extra")];
    assert_eq!(differences, expected.map(|(path, kind)| (path.to_owned(), kind.to_owned())));
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["exit"], &last["equal"]),
        (&"verify".into(), &44.into(), &false.into())
    );
    assert_eq!((&last["differences"], &last["extra"], &last["metadata"]), (&5.into(), &1.into(), &2.into()));
    assert!(!run.stdout.contains("\"event\":\"file\"") && !run.stdout.contains("\"event\":\"summary\""));
}

#[test]
fn entry_that_cannot_be_read_is_not_taken_for_equal() {
    let world = World::new();
    world.tree("src").file("a", "x").file("gone/b", "x");
    world.run(["src", "dst"]).ok();
    let run = world.run(["verify", "src", "nowhere"]).fails(44);
    assert!(run.stdout.contains(">f+++++++++ a"), "{}", run.stdout);
    let run = world.run(["verify", "nowhere", "dst"]).fails(3);
    assert!(run.stderr.contains("nowhere does not exist"), "{}", run.stderr);
    for line in [&["verify"][..], &["verify", "src"], &["verify", "--delete", "src", "dst"]] {
        world.run(line).fails(1);
    }
    for option in ["-n", "--watch"] {
        let run = world.run(["--verify", option, "src", "dst"]).fails(1);
        assert!(run.stderr.contains("--verify and --"), "{}", run.stderr);
    }
}

#[test]
fn differences_are_those_that_rsync_finds() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let world = World::new();
        let names = &["a", "b", "c", "d"];
        grow(&mut rng, names, world.tree("src"), "", 2);
        grow(&mut rng, names, world.tree("dst"), "", 2);
        // rsync ignores nanoseconds, in which the roots would differ.
        world.tree("src").time("", 5_000_000, 0);
        world.tree("dst").time("", 5_000_000 + rng.below(2) as i64, 0);
        let mut rsync = world.command("rsync");
        rsync.args(["-nacii", "--delete", "--force", "src/", "dst/"]);
        let theirs = Run::of(rsync).ok();
        // Entries that are equal have dots and blanks only.
        let changed = |line: &&str| !line.get(2..11).unwrap_or_default().trim_matches([' ', '.']).is_empty();
        let mut theirs: Vec<String> = theirs.stdout.lines().filter(changed).map(str::to_owned).collect();
        let run = verify(&world, &[], &ways(&world)[0]);
        assert_eq!(run.status.code(), Some(if theirs.is_empty() { 0 } else { 44 }), "seed {seed}");
        let own = run.stdout.lines().rev().skip(1).map(|line| line.replace("*extra      ", "*deleting   "));
        let mut own: Vec<String> = own.collect();
        own.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(own, theirs, "seed {seed}");
    }
}
