//! Baselines: both sides keep the last agreed snapshot, and then only changes are sent.

use std::fs;
use std::path::PathBuf;

use ksync::disk::baseline::Baseline;
use ksync::exchange::{Receiving, Sending};
use ksync::wire::hello::{Consent, Options};

use crate::world::{NOBODY, Ran, World, facts, set_mode, write};

const KEY: [u8; 16] = [9; 16];

/// More bytes than a run without changes transfers: hello, digests, notes, tally.
const NOTHING_BYTES: u64 = 350;

fn place(world: &World, side: &str) -> PathBuf {
    world.folder.path().join(format!("{side}-state/offers"))
}

fn baseline(world: &World, side: &str) -> Baseline {
    let place = place(world, side);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    Baseline::new(place, &KEY)
}

fn run(world: &World) -> Ran {
    world.run_with(
        Sending::new(world.source.clone(), world.options.clone())
            .with_baseline(Some(baseline(world, "sender"))),
        Receiving::new(world.target.clone(), world.options.clone())
            .with_baseline(Some(baseline(world, "receiver"))),
    )
}

#[track_caller]
fn run_ok(world: &World) -> Ran {
    let ran = run(world);
    assert!(ran.agent.is_ok(), "{ran:?}");
    assert_eq!(ran.problems(), []);
    world.assert_same();
    ran
}

/// A directory with this many empty files, so that the manifest dominates the cost.
fn world_of(count: usize) -> World {
    let world = World { options: deleting(), ..World::in_memory() };
    for number in 0..count {
        write(&world.source.join(format!("{:02}/{number:06}", number % 50)), b"");
    }
    world
}

fn deleting() -> Options {
    let consent = Consent { yes: true, ..Consent::default() };
    Options { delete: true, consent, ..Options::default() }
}

#[test]
fn an_unchanged_large_tree_costs_no_more_than_a_small_one() {
    for download in [false, true] {
        let small = World { download, ..world_of(3) };
        let large = World { download, ..world_of(20_000) };
        let first = run_ok(&large).bytes;
        assert!(first > 200_000, "{first}");
        run_ok(&small);
        for _ in 0..2 {
            let (few, many) = (run_ok(&small).bytes, run_ok(&large).bytes);
            assert!(few < NOTHING_BYTES && many <= few + 16, "{few} and {many} bytes");
        }
        assert_eq!(baseline(&large, "sender").digest(), baseline(&large, "receiver").digest());
    }
}

#[test]
fn a_change_costs_only_itself() {
    let world = world_of(3000);
    run_ok(&world);
    fs::remove_file(world.source.join("07/000007")).unwrap();
    world.write("08/new", b"arrives");
    world.write("new/f", b"arrives");
    fs::rename(world.source.join("09/000009"), world.source.join("09/renamed")).unwrap();
    set_mode(&world.source.join("10/000010"), 0o600);
    let changed = run_ok(&world);
    assert!(changed.bytes < 3 * NOTHING_BYTES, "{} bytes", changed.bytes);
    let again = run_ok(&world);
    assert!(again.bytes < NOTHING_BYTES, "{} bytes", again.bytes);
}

#[test]
fn a_change_of_the_target_is_found() {
    let world = world_of(3000);
    run_ok(&world);
    fs::remove_file(world.target.join("07/000007")).unwrap();
    world.write_target("08/000008", b"edited");
    world.write_target("extra", b"goes");
    let ran = run_ok(&world);
    let tally = ran.summary().tally;
    assert_eq!((tally.created, tally.updated, tally.deleted), (1, 1, 1));
    assert!(ran.bytes < 2 * NOTHING_BYTES, "{} bytes", ran.bytes);
}

#[test]
fn a_lost_or_damaged_baseline_costs_the_manifest_once() {
    let world = world_of(3000);
    let all = run_ok(&world).bytes;
    for side in ["sender", "receiver"] {
        let file = || fs::read_dir(place(&world, side)).unwrap().next().unwrap().unwrap().path();
        let damages: [&dyn Fn(); 5] = [
            &|| fs::remove_dir_all(place(&world, side)).unwrap(),
            &|| fs::remove_file(file()).unwrap(),
            &|| fs::write(file(), b"something else").unwrap(),
            &|| {
                let mut bytes = fs::read(file()).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(file(), bytes).unwrap();
            },
            &|| {
                // An older baseline: as if the other side had been in a run without this one.
                let other = world_of(2999);
                run_ok(&other);
                let older = fs::read_dir(place(&other, side)).unwrap().next().unwrap().unwrap().path();
                fs::copy(older, file()).unwrap();
            },
        ];
        for (index, damage) in damages.iter().enumerate() {
            damage();
            // If nothing changed, the sender reads only the digest; so this changes a file.
            let name = world.source.join(format!("{side}{index}"));
            write(&name, b"");
            let ran = run_ok(&world);
            assert!(ran.bytes > all / 4, "{side} {index}: {} of {all} bytes", ran.bytes);
            let again = run_ok(&world);
            assert!(again.bytes < NOTHING_BYTES, "{side} {index}: {} bytes", again.bytes);
        }
    }
}

#[test]
fn a_baseline_that_cannot_be_stored_is_no_problem() {
    let as_nobody = |world: &World| {
        for path in [world.folder.path(), &world.source] {
            std::os::unix::fs::chown(path, Some(NOBODY), None).unwrap();
        }
    };
    for side in ["sender", "receiver"] {
        let mut world = world_of(100);
        world.as_nobody = true;
        as_nobody(&world);
        let other = if side == "sender" { "receiver" } else { "sender" };
        let _ = (baseline(&world, side), baseline(&world, other));
        // The directory belongs to the superuser, and the user nobody may only read it.
        set_mode(place(&world, side).parent().unwrap(), 0o555);
        set_mode(place(&world, other).parent().unwrap(), 0o777);
        for _ in 0..2 {
            let ran = run(&world);
            assert!(ran.agent.is_ok() && ran.problems().is_empty(), "{side}: {ran:?}");
            world.assert_same();
        }
        assert!(!place(&world, side).exists() && place(&world, other).exists());
    }
}

#[test]
fn a_run_with_problems_still_leaves_a_baseline() {
    let world = world_of(3000);
    let ran = {
        // A file vanishes between the scan and the read.
        let sending = Sending::new(world.source.clone(), world.options.clone())
            .with_baseline(Some(baseline(&world, "sender")));
        let receiving = Receiving::new(world.target.clone(), world.options.clone())
            .with_baseline(Some(baseline(&world, "receiver")));
        let source = world.source.clone();
        let meddling = crate::meddling::Meddling {
            inner: sending,
            meddle: move |work: &<ksync::exchange::FileSender as ksync::engine::Engine>::Work| {
                if matches!(work, ksync::engine::SenderWork::Step { .. }) {
                    let _ = fs::remove_file(source.join("07/000007"));
                }
            },
        };
        world.run_with(meddling, receiving)
    };
    assert_eq!(ran.problems().len(), 1, "{ran:?}");
    let again = run_ok(&world);
    assert!(again.bytes < 2 * NOTHING_BYTES, "{} bytes", again.bytes);
}

#[test]
fn an_interrupted_run_continues_without_the_manifest() {
    for download in [false, true] {
        let mut world = World { download, ..world_of(0) };
        for number in 0..3000 {
            fs::create_dir(world.source.join(format!("{number}"))).unwrap();
        }
        world.write("large", &crate::world::noise(1, 8 << 20));
        world.cut_after = Some(4 << 20);
        assert!(run(&world).client.is_err());
        let remembered = ["sender", "receiver"].map(|side| baseline(&world, side).digest());
        assert!(remembered[0].is_some() && remembered[0] == remembered[1]);
        world.cut_after = None;
        let staged = world.staged_bytes();
        let ran = run_ok(&world);
        let rest = ran.bytes - ((8 << 20) - staged);
        // Subtract the hashes of the staged blocks.
        let rest = rest - staged / 2000;
        assert!(staged > 0 && rest < 3 * NOTHING_BYTES, "{rest} bytes besides content");
    }
}

#[test]
fn a_dry_run_and_a_single_file_leave_no_baseline() {
    let mut world = world_of(100);
    world.options.dry_run = true;
    run(&world);
    assert!(!place(&world, "sender").exists() && !place(&world, "receiver").exists());
    world.options.dry_run = false;
    run_ok(&world);
    let before = [facts(&place(&world, "sender")), facts(&place(&world, "receiver"))];
    world.write("another", b"");
    world.options.dry_run = true;
    let ran = run(&world);
    assert_eq!(ran.summary().tally.created, 1);
    assert!(ran.bytes < 2 * NOTHING_BYTES, "{} bytes", ran.bytes);
    let contents = |facts: &std::collections::BTreeMap<PathBuf, String>| -> Vec<String> {
        facts.values().map(|fact| fact.split_whitespace().take(5).collect()).collect()
    };
    for (side, before) in ["sender", "receiver"].into_iter().zip(before) {
        assert_eq!(contents(&facts(&place(&world, side))), contents(&before), "{side}");
    }

    let mut world = world_of(0);
    world.write("f", b"alone");
    world.source = world.source.join("f");
    assert!(run(&world).agent.is_ok());
    assert!(!place(&world, "sender").exists() && !place(&world, "receiver").exists());
}

#[test]
fn ignore_files_of_the_baseline_still_protect() {
    let world = world_of(10);
    let text = "*.keep\n".repeat(2000);
    for directory in 0..10 {
        world.write(&format!("{directory:02}/.ksyncignore"), text.as_bytes());
    }
    world.write_target("03/x.keep", b"stays");
    run(&world);
    let ran = run(&world);
    assert!(ran.agent.is_ok() && ran.bytes < NOTHING_BYTES, "{ran:?}");
    assert_eq!(world.read_target("03/x.keep"), b"stays");
    fs::remove_file(world.source.join("03/.ksyncignore")).unwrap();
    run_ok(&world);
}

#[test]
fn a_run_that_fails_early_changes_no_baseline() {
    let world = world_of(3000);
    run_ok(&world);
    let before = baseline(&world, "sender").digest();
    fs::rename(&world.target, world.folder.path().join("aside")).unwrap();
    write(&world.target, b"in the way");
    world.write("new", b"");
    assert!(run(&world).client.is_err());
    assert_eq!(baseline(&world, "sender").digest(), before);
    fs::remove_file(&world.target).unwrap();
    fs::rename(world.folder.path().join("aside"), &world.target).unwrap();
    let ran = run_ok(&world);
    assert!(ran.bytes < 2 * NOTHING_BYTES, "{} bytes", ran.bytes);
}

#[test]
fn a_baseline_replaced_meanwhile_is_not_used() {
    let world = world_of(1000);
    run_ok(&world);
    let replaced = fs::read_dir(place(&world, "sender")).unwrap().next().unwrap().unwrap().path();
    let by = world.folder.path().join("an earlier one");
    fs::copy(&replaced, &by).unwrap();
    fs::remove_file(world.source.join("01/000001")).unwrap();
    run_ok(&world);
    world.write("new", b"");
    let meddling = crate::meddling::Meddling {
        inner: Sending::new(world.source.clone(), world.options.clone())
            .with_baseline(Some(baseline(&world, "sender"))),
        meddle: move |work: &<ksync::exchange::FileSender as ksync::engine::Engine>::Work| {
            if matches!(work, ksync::engine::SenderWork::Scan(_)) {
                fs::copy(&by, &replaced).unwrap();
            }
        },
    };
    let receiving = Receiving::new(world.target.clone(), world.options.clone())
        .with_baseline(Some(baseline(&world, "receiver")));
    let ran = world.run_with(meddling, receiving);
    assert!(ran.agent.is_ok() && ran.problems().is_empty(), "{ran:?}");
    world.assert_same();
    assert!(run_ok(&world).bytes < NOTHING_BYTES);
}
