//! The cost of a repeat over a kept connection.

use std::fs;
use std::time::{Duration, Instant};

use crate::kept::Kept;
use crate::machine::Machine;
use crate::world::link::{Carried, Conditions, Link};
use crate::world::{Run, noise, wait_for};

/// Limit of a repeat that finds nothing to do, in bytes.
const UP_BYTES_MAX: u64 = 400;

/// The round trip of the link there.
const ROUND_TRIP: Duration = Duration::from_millis(300);

/// Repeats, one of which keeps the limits.
const ATTEMPTS: u32 = 6;

/// Resident memory of a keeper, in kilobytes.
const MEMORY_KB_MAX: u64 = 25_000;

#[test]
fn a_repeat_takes_one_round_trip_and_few_bytes() {
    let Some(machine) = Machine::start_alone() else { return };
    let kept = Kept::of(machine).unwrap();
    let mut tree = kept.machine.world.tree("src");
    for number in 0..300 {
        tree = tree.file(format!("dir-{}/file-{number}.bin", number % 7), noise(number, 1000));
    }
    kept.link.set(Conditions { round_trip: ROUND_TRIP, ..Conditions::default() });
    kept.sync(&[]).ok();
    kept.keeper();
    let repeat = |_| {
        wait_for("a quiet link", || is_still(&kept.link).then_some(()));
        kept.link.reset();
        let start = Instant::now();
        let run = kept.sync(&[]).ok();
        let seen = (kept.link.carried(), start.elapsed());
        assert!(run.summary().starts_with("nothing to do"), "{}", run.stdout);
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{seen:?}\n").as_bytes());
        seen
    };
    // A busy machine adds to the time, and may let a run doubt that its agent answers.
    let is_cheap = |(carried, took): (Carried, Duration)| {
        let is_one_round_trip = took >= ROUND_TRIP && took < 2 * ROUND_TRIP;
        carried.connections == 0 && carried.up_bytes <= UP_BYTES_MAX && is_one_round_trip
    };
    assert!((0..ATTEMPTS).map(repeat).any(is_cheap));
    kept.is_same();
}

/// True if the link carries nothing for a while.
fn is_still(link: &Link) -> bool {
    let before = link.carried();
    std::thread::sleep(2 * ROUND_TRIP);
    link.carried().bytes() == before.bytes()
}

#[test]
fn a_kept_connection_serves_runs_in_both_directions_and_their_commands() {
    let Some(kept) = Kept::start() else { return };
    let world = &kept.machine.world;
    world.tree("src").file("a", "one").file("b/c", "two");
    kept.sync(&[]).ok();
    let keeper = kept.keeper();
    kept.link.reset();
    for number in 0..3 {
        world.tree("src").file("a", format!("change {number}"));
        let run = kept.sync(&["--exec", "cat dst-of-the-command; exit 0"]).ok();
        assert!(!run.stderr.contains("lost"), "{}", run.stderr);
        kept.is_same();
    }
    let mut back = kept.ksync(["--identity", "key"]);
    back.arg(kept.there("dst")).arg("back");
    Run::of(back).ok();
    world.assert_same("src", "back");
    let failed = kept.copy(&["--exec", "echo told; exit 7", "--checksum"]);
    world.tree("src").file("a", "another");
    let run = Run::of(failed).fails(47);
    assert!(run.stderr.contains("told") || run.stdout.contains("told"), "{run:?}");
    let now = kept.keeper();
    assert_eq!(now.pid, keeper.pid);
    assert_eq!(now.served, 5);
    // Errors are those of a run without a keeper.
    for keep in ["0", "1"] {
        let mut missing = kept.ksync(["--identity", "key"]);
        missing.env("KSYNC_KEEP", keep).arg(kept.there("missing")).arg("back");
        let run = Run::of(missing).fails(3);
        assert!(run.stderr.contains("/missing does not exist"), "{}", run.stderr);
    }
}

#[test]
fn a_keeper_is_small_and_ends_when_it_is_idle() {
    let Some(kept) = Kept::start() else { return };
    kept.machine.world.tree("src").file("a", "one");
    let mut first = kept.copy(&[]);
    first.env("KSYNC_KEEP", "0.05");
    Run::of(first).ok();
    let keeper = kept.keeper();
    let status = fs::read_to_string(format!("/proc/{}/status", keeper.pid)).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let _ =
        std::io::Write::write_all(&mut std::io::stderr(), format!("{kilobytes} kB resident\n").as_bytes());
    assert!(kilobytes <= MEMORY_KB_MAX, "{kilobytes}");
    let files: Vec<_> = fs::read_dir(format!("/proc/{}/fd", keeper.pid))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap_or_default())
        .collect();
    let foreign = |path: &std::path::PathBuf| {
        !path.starts_with("/dev")
            && path.starts_with("/")
            && !path.starts_with(kept.machine.world.path("run"))
    };
    assert!(!files.iter().any(foreign), "{files:?}");
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", keeper.pid)).unwrap(), std::path::Path::new("/"));
    kept.ends(&keeper);
    assert_eq!(fs::read_dir(kept.machine.world.path("run/ksync")).unwrap().count(), 0);
}

#[test]
fn nothing_is_kept_unless_it_is_wanted() {
    let Some(kept) = Kept::start() else { return };
    kept.machine.world.tree("src").file("a", "one");
    for options in [&["--no-keep"][..], &["--keep", "0"]] {
        kept.sync(options).ok();
    }
    let mut local = kept.ksync(["src", "copy"]);
    local.env("KSYNC_KEEP", "5");
    Run::of(local).ok();
    kept.sync(&["--identity", "missing"]).fails(40);
    assert!(kept.keepers().is_empty());
    kept.sync(&[]).ok();
    kept.keeper();
    let listed = Run::of(kept.ksync(["keep", "list"])).ok().stdout;
    assert!(listed.starts_with("root@127.0.0.1") || listed.starts_with("ssh://root@127.0.0.1"), "{listed}");
    kept.link.reset();
    kept.sync(&["--no-keep"]).ok();
    assert_eq!(kept.link.carried().connections, 1);
    let run = Run::of(kept.ksync(["keep", "stop", &kept.there("")])).ok();
    assert_eq!(run.stderr, "ksync: ended 1 kept connection\n");
    assert!(kept.keepers().is_empty());
}

#[test]
fn emulated_vm_is_kept_only_if_somebody_asks() {
    let Some(kept) = Kept::start() else { return };
    let world = &kept.machine.world;
    world.tree("src").file("a", "one");
    let mut unasked = kept.ksync(["src", "sandbox:/tmp/kept"]);
    unasked.env_remove("KSYNC_KEEP");
    Run::of(unasked).ok();
    assert!(!kept.has_lock());
    let copy = || Run::of(kept.ksync(["--keep", "1", "src", "sandbox:/tmp/kept"])).ok();
    copy();
    kept.keeper();
    world.tree("src").file("a", "changed").file("b", "new");
    copy();
    Run::of(kept.ksync(["sandbox:/tmp/kept", "back"])).ok();
    world.assert_same("src", "back");
    assert_eq!(kept.keeper().served, 2);
}
