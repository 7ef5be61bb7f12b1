//! A silent or slow agent, or a silent or slow network, while the connection stays open.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::vm::{Vm, stop};
use crate::watcher::Direction;
use crate::world::{Run, World, noise, wait_for};

const REMOTE: [Direction; 2] = [Direction::Up, Direction::Down];

/// The timeout of `--timeout 2`, and some more for a slow machine.
const GIVEN_UP: Duration = Duration::from_secs(2 + 5);

#[test]
fn an_agent_stopped_amid_a_transfer_is_given_up_in_time() {
    for direction in REMOTE {
        let world = World::new();
        world.tree("src").file("large", noise(3, 24 << 20));
        let vm = Vm::start(&world);
        vm.link.set_rate(2 << 20);
        let child = vm.sync(direction, &["--timeout", "2", "--retries", "0"]).spawn().expect("start");
        wait_for("content", || (vm.link.carried().bytes() > 4 << 20).then_some(()));
        let agent = vm.agent();
        stop(agent);
        let begun = Instant::now();
        let run = Run::end_of(child).fails(30);
        assert!(begun.elapsed() < GIVEN_UP, "{direction:?}: {:?}", begun.elapsed());
        assert!(
            run.stderr.contains("for 2 s\n  hint: The machine there, or the agent on it"),
            "{}",
            run.stderr
        );
        // The VM may have ended the agent.
        let _ = kill_process(agent, Signal::CONT);
        vm.link.set_rate(0);
        Run::end_of(vm.sync(direction, &[]).spawn().expect("start")).ok();
        world.assert_same("src", "dst");
    }
}

#[test]
fn a_watch_whose_agent_is_stopped_reconnects() {
    for direction in REMOTE {
        let world = World::new();
        world.tree("src").with_everything();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &["--delete", "--timeout", "2"]);
        let agent = vm.agent();
        // Nothing changes for a while, which does not count as silence.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!((watcher.events("retry").len(), vm.agent()), (0, agent), "{direction:?}");
        stop(agent);
        let begun = Instant::now();
        let retry = watcher.event("retry");
        assert!(begun.elapsed() < GIVEN_UP, "{direction:?}: {:?}", begun.elapsed());
        assert_eq!(retry["message"], "nothing was heard from the other side for 2 s");
        world.tree("src").file("meanwhile", "saved while it stood still");
        // The VM may have ended the agent.
        let _ = kill_process(agent, Signal::CONT);
        watcher.is_there();
    }
}

#[test]
fn a_slow_link_is_not_given_up() {
    for direction in REMOTE {
        let world = World::new();
        world.tree("src").file("small", "text");
        let vm = Vm::start(&world);
        // Installs the agent at full speed.
        Run::end_of(vm.sync(direction, &[]).spawn().expect("start")).ok();
        world.tree("src").file("large", noise(4, 200_000));
        vm.link.set_rate(8000);
        let begun = Instant::now();
        let options = ["--timeout", "10", "--retries", "0", "--contimeout", "60"];
        Run::end_of(vm.sync(direction, &options).spawn().expect("start")).ok();
        assert!(begun.elapsed() > Duration::from_secs(15), "{:?}", begun.elapsed());
        world.assert_same("src", "dst");
    }
}

#[test]
fn a_client_stopped_for_longer_than_the_timeout_continues() {
    for direction in REMOTE {
        let world = World::new();
        world.tree("src").file("large", noise(5, 24 << 20));
        let vm = Vm::start(&world);
        vm.link.set_rate(4 << 20);
        let child = vm.sync(direction, &["--timeout", "2", "--retries", "0"]).spawn().expect("start");
        wait_for("content", || (vm.link.carried().bytes() > 4 << 20).then_some(()));
        let client = rustix::process::Pid::from_child(&child);
        stop(client);
        std::thread::sleep(Duration::from_secs(8));
        kill_process(client, Signal::CONT).expect("a signal");
        Run::end_of(child).ok();
        world.assert_same("src", "dst");
    }
}
