//! `--bwlimit`: the rate of a run, measured by its time.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use crate::world::{Run, World, noise, wait_for};

/// Runs that may be late.
const ATTEMPTS: usize = 3;

/// The time of a run that succeeds, and its output.
fn timed(world: &World, options: &[&str], ends: [OsString; 2]) -> (Duration, Run) {
    let mut command = world.ksync(options);
    command.args(ends);
    let start = Instant::now();
    let run = Run::of(command).ok();
    (start.elapsed(), run)
}

#[track_caller]
fn assert_rate(took: Duration, expected: f64, free: Duration) {
    let longest = 1.05 * expected + free.as_secs_f64();
    let is_kept = (0.95 * expected..longest).contains(&took.as_secs_f64());
    assert!(is_kept, "{took:?} and not {expected} s; {free:?} without a limit");
}

/// Asserts that a run with a limit takes the time that its bytes take at that rate, within 5
/// percent. A run without the limit tells what connecting takes.
#[track_caller]
fn keeps_the_rate(
    bytes: usize,
    rate: &str,
    bytes_per_second: f64,
    options: &[&str],
    ends: impl Fn(&World, &str) -> [OsString; 2],
) -> Run {
    let world = World::new();
    world.tree("src").file("noise", noise(7, bytes));
    let (free, _) = timed(&world, options, ends(&world, "free"));
    let limit = format!("--bwlimit={rate}");
    let expected = bytes as f64 / bytes_per_second;
    for attempt in 1.. {
        let to = format!("limited{attempt}");
        let (limited, run) = timed(&world, &[options, &[&*limit]].concat(), ends(&world, &to));
        world.assert_same("src", &to);
        // A busy machine may be late, but nothing excuses a run that is too fast.
        let is_late = limited.as_secs_f64() > 1.05 * expected + free.as_secs_f64();
        if is_late && attempt < ATTEMPTS {
            continue;
        }
        assert_rate(limited, expected, free);
        return run;
    }
    unreachable!("the last attempt returns")
}

#[test]
fn an_upload_keeps_the_rate() {
    keeps_the_rate(2_000_000, "500kb", 500e3, &[], |world, to| ["src".into(), world.far(to)]);
}

#[test]
fn a_download_keeps_the_rate() {
    keeps_the_rate(2_000_000, "500kb", 500e3, &[], |world, to| [world.far("src"), to.into()]);
}

#[test]
fn a_local_copy_keeps_the_rate() {
    keeps_the_rate(2_048_000, "500", 512e3, &[], |_, to| ["src".into(), to.into()]);
}

#[test]
fn all_lanes_together_keep_the_rate() {
    let run = keeps_the_rate(12_000_000, "3mb", 3e6, &["-vv", "-j", "4"], |world, to| {
        ["src".into(), world.far(to)]
    });
    assert!(run.stderr.contains("lanes asked=3 joined=3"), "{}", run.stderr);
}

#[test]
fn a_kept_connection_keeps_the_rate() {
    let world = World::new();
    world.tree("src").file("noise", noise(8, 1_000_000));
    let keep = ["--keep", "5", "--json"];
    timed(&world, &keep, ["src".into(), world.far("first")]);
    let free = wait_for("a kept connection", || {
        let (free, run) = timed(&world, &keep, ["src".into(), world.far("free")]);
        run.stdout.contains("\"kept\":true").then_some(free)
    });
    let limited = [&keep[..], &["--bwlimit=250kb"]].concat();
    for ends in [["src".into(), world.far("up")], [world.far("src"), "down".into()]] {
        let (took, run) = timed(&world, &limited, ends);
        assert!(run.stdout.contains("\"kept\":true"), "{}", run.stdout);
        assert_rate(took, 4.0, free);
    }
    world.run(["keep", "stop"]).ok();
}

#[test]
fn zero_is_no_limit_and_a_tiny_rate_is_refused() {
    let world = World::new();
    world.tree("src").file("noise", noise(9, 3_000_000));
    let (took, _) = timed(&world, &["--bwlimit=0"], ["src".into(), "zero".into()]);
    let (also, _) = timed(&world, &["--bwlimit=1", "--no-bwlimit"], ["src".into(), "none".into()]);
    assert!(took.max(also) < Duration::from_secs(20));
    let said = world.run(["--bwlimit=511b", "src", "dst"]).fails(1).stderr;
    assert!(said.starts_with("ksync: --bwlimit takes a rate of at least 512b, or 0"), "{said}");
}
