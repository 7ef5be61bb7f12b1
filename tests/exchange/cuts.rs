//! The connection is cut, and the run is repeated.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::world::{World, noise};

const LARGE_BYTES: usize = 6 << 20;

fn world() -> World {
    let world = World::deleting();
    world.write("a/small", b"small");
    world.write("large", &noise(1, LARGE_BYTES));
    world.write("z", &noise(2, 100_000));
    world.write_target("extra", b"goes in the end");
    world
}

#[test]
fn content_before_a_cut_is_kept_wherever_the_cut_is() {
    for cut in [0, 20, 60, 200, 150_000, 1_500_000, 3_000_001, 5_000_000, 6_300_000] {
        let mut world = world();
        world.cut_after = Some(cut);
        let ran = world.run();
        assert!(ran.client.is_err() && ran.agent.is_err(), "{cut}: {ran:?}");
        assert!(world.target.join("extra").exists(), "deletes come last");
        assert!(!world.target.join("large").exists() || world.read_target("large").len() == LARGE_BYTES);
        let staged = world.staged_bytes();
        // All sent bytes are staged, except one piece that was in flight.
        assert!(staged + (1 << 20) + 110_000 >= cut.min(LARGE_BYTES as u64), "{cut}: {staged}");

        world.cut_after = None;
        let again = world.run();
        assert!(again.agent.is_ok(), "{again:?}");
        world.assert_same();
        let due = (LARGE_BYTES + 100_005) as u64 - staged;
        assert!(again.bytes < due + 20_000, "{cut}: {} with {staged} staged", again.bytes);
    }
}

#[test]
fn an_update_that_is_cut_keeps_the_basis_and_continues() {
    let mut world = World::new();
    world.write_target("large", &noise(9, LARGE_BYTES));
    world.write("large", &noise(1, LARGE_BYTES));
    world.cut_after = Some(4_000_000);
    assert!(world.run().client.is_err());
    assert_eq!(world.read_target("large"), noise(9, LARGE_BYTES));
    let staged = world.staged_bytes();
    assert!(staged > 2_000_000, "{staged}");
    world.cut_after = None;
    let again = world.run();
    world.assert_same();
    assert!(again.bytes < LARGE_BYTES as u64 - staged + 200_000, "{} with {staged}", again.bytes);
}

#[test]
fn damaged_staged_content_is_fetched_again() {
    for at in [0, 1_500_000, 2_900_000] {
        let mut world = world();
        world.cut_after = Some(4_500_000);
        assert!(world.run().client.is_err());
        let staged = world.staged_bytes();
        assert!(staged > 3_000_000);
        for entry in fs::read_dir(world.target.join(".ksync")).unwrap() {
            let file = fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
            file.write_all_at(b"damaged", at).unwrap();
        }
        world.cut_after = None;
        let again = world.run();
        assert_eq!(again.problems(), []);
        world.assert_same();
        // Blocks before the damage are still used.
        let kept = at / (1 << 20) * (1 << 20);
        assert!(again.bytes > LARGE_BYTES as u64 - staged && again.bytes < 6_500_000 - kept, "{again:?}");
    }
}

#[test]
fn a_download_that_is_cut_continues() {
    let mut world = world();
    world.download = true;
    world.cut_after = Some(3_000_000);
    assert!(world.run().client.is_err());
    let staged = world.staged_bytes();
    world.cut_after = None;
    let again = world.run();
    world.assert_same();
    assert!(staged > 1_500_000 && again.bytes < LARGE_BYTES as u64 + 120_005 - staged, "{again:?}");
}

#[test]
fn a_cut_removes_no_source_that_is_not_in_place() {
    const NAMES: [&str; 4] = ["a/small", "large", "same", "z"];
    for download in [false, true] {
        let whole = removing(download);
        let ran = whole.run();
        assert!(ran.agent.is_ok() && ran.client.is_ok(), "{ran:?}");
        assert!(
            NAMES.iter().all(|name| !whole.source.join(name).exists()) && whole.source.join("a").is_dir()
        );
        let sent = LARGE_BYTES as u64 + 100_000;
        for cut in [0, 300, 50_000, 3_000_000, sent].into_iter().chain(sent + 100..sent + 400) {
            let mut world = removing(download);
            let before = NAMES.map(|name| (name, fs::read(world.source.join(name)).unwrap()));
            world.cut_after = Some(cut);
            let ran = world.run();
            for (name, content) in &before {
                let is_in_source = fs::read(world.source.join(name)).is_ok_and(|there| there == *content);
                let is_in_target = fs::read(world.target.join(name)).is_ok_and(|there| there == *content);
                assert!(is_in_source || is_in_target, "{name} is nowhere after {cut}: {ran:?}");
            }
            if cut > sent + 100 && cut % 20 != 0 {
                continue;
            }
            world.cut_after = None;
            let again = world.run();
            assert!(again.agent.is_ok(), "{again:?}");
            for (name, content) in &before {
                assert!(!world.source.join(name).exists() && world.read_target(name) == *content, "{name}");
            }
        }
    }
}

fn removing(download: bool) -> World {
    let mut world = World::new();
    (world.options.remove_source, world.download) = (true, download);
    world.write("a/small", b"small");
    world.write("large", &noise(1, LARGE_BYTES));
    world.write("same", b"same");
    world.write("z", &noise(2, 100_000));
    world.write_target("same", b"same");
    for root in [&world.source, &world.target] {
        crate::world::set_time(&root.join("same"), 1_000_000, 0);
    }
    world
}
