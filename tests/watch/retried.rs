//! A run over a connection that breaks again and again.

use std::time::{Duration, Instant};

use crate::vm::Vm;
use crate::watcher::Direction;
use crate::world::link::Cut;
use crate::world::{Run, World, noise, wait_for};

const REMOTE: [Direction; 2] = [Direction::Up, Direction::Down];

#[test]
fn a_large_file_gets_through_a_link_that_is_cut_repeatedly() {
    const SIZE: usize = 64 << 20;
    for direction in REMOTE {
        let world = World::new();
        world.tree("src").file("large", noise(6, SIZE));
        let vm = Vm::start(&world);
        world.tree("dst").file("small", "text");
        // Installs the agent first.
        Run::end_of(vm.sync(direction, &["--dry-run"]).spawn().expect("start")).ok();
        let before = vm.link.carried().bytes();
        // No faster than the agent stages the content.
        vm.link.set_rate(8 << 20);
        vm.link.cut_each(Some(Cut::After(5 << 20)));
        let run =
            Run::end_of(vm.sync(direction, &["--delete", "--yes", "--json"]).spawn().expect("start")).ok();
        let (bytes, retries) =
            (vm.link.carried().bytes() - before, run.stdout.matches("\"event\":\"retry\"").count());
        assert!(retries >= 10, "{direction:?}: {retries}");
        // Content in flight at a cut is sent again.
        let again = bytes.saturating_sub(SIZE as u64);
        assert!(
            again < SIZE as u64 / 4,
            "{direction:?}: {again} bytes more than the file has, with {retries} retries"
        );
        world.assert_same("src", "dst");
    }
}

#[test]
fn many_small_files_get_through_a_link_that_is_cut_repeatedly() {
    for direction in REMOTE {
        let world = World::new();
        for number in 0..1500 {
            world.tree("src").file(format!("d{}/{number}", number % 7), noise(number, 8000));
        }
        let vm = Vm::start(&world);
        vm.link.cut_each(Some(Cut::After(3 << 20)));
        let run = Run::end_of(vm.sync(direction, &[]).spawn().expect("start")).ok();
        assert!(run.stderr.contains("; trying again in "), "{}", run.stderr);
        world.assert_same("src", "dst");
    }
}

#[test]
fn a_link_that_stays_down_is_retried_as_often_as_requested() {
    for (retries, expected) in [("0", 0), ("2", 2)] {
        let world = World::new();
        world.tree("src").file("large", noise(7, 24 << 20));
        let vm = Vm::start(&world);
        vm.link.set_rate(4 << 20);
        let child = vm.sync(Direction::Up, &["--retries", retries]).spawn().expect("start");
        wait_for("content", || (vm.link.carried().bytes() > 4 << 20).then_some(()));
        vm.link.set_down(true);
        let begun = Instant::now();
        let run = Run::end_of(child).fails(10);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(run.stderr.matches("; trying again in ").count(), expected, "{}", run.stderr);
    }
}

#[test]
fn a_link_that_never_worked_is_not_retried() {
    let world = World::new();
    world.tree("src").file("a", "text");
    let vm = Vm::start(&world);
    vm.link.set_down(true);
    let run = Run::end_of(vm.sync(Direction::Up, &[]).spawn().expect("start"));
    assert!(!run.status.success() && !run.stderr.contains("trying again"), "{}", run.stderr);
}
