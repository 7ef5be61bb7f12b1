//! The memory of a run grows little with each entry of a tree: a million entries fit in 256 MiB.

use std::ffi::OsString;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::world::World;

/// Numbers of entries of the smaller tree and of the larger one.
const FEW: usize = 10_000;
const MANY: usize = 60_000;

/// Maximum bytes per entry: 256 MiB for 1,002,000 entries, less 12 MiB that every run needs.
const ENTRY_BYTES_MAX: usize = 255;

/// A world with a tree of `count` empty files and a copy of it.
fn synced(count: usize) -> World {
    let world = World::new();
    for number in 0..count {
        if number % 1000 == 0 {
            fs::create_dir_all(world.path(format!("src/directory-{:04}", number / 1000))).unwrap();
        }
        let name = format!("src/directory-{:04}/some-file-name-{number:06}.txt", number / 1000);
        fs::write(world.path(name), "").unwrap();
    }
    world.sync("src", "dst");
    world
}

/// The largest resident set of a run with nothing to do, in bytes.
#[cfg(target_os = "linux")]
fn peak_bytes(world: &World, from: OsString, to: OsString) -> usize {
    let mut command = world.ksync([from, to]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success() && peak > 0);
    peak
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_with_nothing_to_do_takes_less_than_256_bytes_per_entry() {
    let (few, many) = (synced(FEW), synced(MANY));
    type Ends = fn(&World) -> (OsString, OsString);
    let directions: [(&str, Ends); 3] = [
        ("locally", |_| ("src".into(), "dst".into())),
        ("up", |world| ("src".into(), world.far("dst"))),
        ("down", |world| (world.far("src"), "dst".into())),
    ];
    for (direction, ends) in directions {
        let peak = |world: &World| {
            let (from, to) = ends(world);
            peak_bytes(world, from, to)
        };
        let (low, high) = (peak(&few), peak(&many));
        let cost = high.saturating_sub(low) / (MANY - FEW);
        println!("{direction}: {} MiB and {} MiB, {cost} bytes an entry", low >> 20, high >> 20);
        assert!(cost <= ENTRY_BYTES_MAX, "{direction}: {cost} bytes an entry, {high} in all");
    }
}
