//! The connection is lost, and comes back or does not.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::platform::{Platform, endpoint};
use crate::vm::{Vm, ticks};
use crate::watcher::{Direction, Watcher};
use crate::world::link::{Cut, Flow, Link};
use crate::world::service::make_key;
use crate::world::{Run, World, noise, wait_for};

const REMOTE: [Direction; 2] = [Direction::Up, Direction::Down];

fn world() -> World {
    let world = World::new();
    world.tree("src").with_everything();
    world
}

#[test]
fn all_saves_use_one_connection() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &[]);
        let agent = vm.agent();
        for number in 0..10 {
            fs::write(world.path("src/note"), format!("saved {number} times")).unwrap();
            watcher.flush();
            assert_eq!(fs::read_to_string(world.path("dst/note")).unwrap(), format!("saved {number} times"));
        }
        world.assert_same("src", "dst");
        assert_eq!((vm.link.carried().connections, vm.agent()), (1, agent), "{direction:?}");
    }
}

#[test]
fn no_save_is_lost_to_a_killed_agent_or_a_cut() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &["--delete"]);
        for round in 0..6 {
            let lost = watcher.events("retry").len();
            let save = |when: &str| {
                let name = format!("src/{when}/{round}");
                world
                    .tree("src")
                    .file(format!("{when}/{round}"), noise(round, 100 + 30_000 * round as usize));
                fs::write(world.path("src/note"), &name).unwrap();
                let _ = fs::remove_file(world.path(format!("src/{when}/{}", round.wrapping_sub(1))));
            };
            save("before");
            if round % 2 == 0 {
                let _ = kill_process(vm.agent(), Signal::KILL);
            } else {
                vm.link.cut();
            }
            save("meanwhile");
            // The loss is noticed, and does not end the watch.
            let is_noticed = || (watcher.events("retry").len() > lost).then_some(());
            wait_for("a retry", is_noticed);
            save("after");
            watcher.is_there();
        }
        // Each wait is a first one, since each connection had worked.
        for retry in watcher.events("retry") {
            assert!(retry["wait_ms"].as_f64().unwrap() <= 313.0, "{retry}");
        }
        assert_eq!(watcher.events("ready").len(), 1);
    }
}

#[test]
fn a_watch_survives_a_cut_at_any_moment_before_it_is_ready() {
    const MOMENTS: u64 = 10;
    // Bytes of the end of a first round, with its last messages.
    const END: u64 = 1500;
    for direction in REMOTE {
        let world = world();
        world.tree("src").file("large", noise(1, 300_000));
        let vm = Vm::start(&world);
        // Installs the agent first, so that all connections carry the same bytes.
        Run::end_of(vm.sync(direction, &["--dry-run"]).spawn().expect("start")).ok();
        let before = vm.link.carried().bytes();
        drop(vm.watch(direction, &[]));
        let all = vm.link.carried().bytes() - before;
        let moments =
            (0..MOMENTS).flat_map(|moment| [1 + all * moment / MOMENTS, all - END + END * moment / MOMENTS]);
        let mut cuts = 0;
        for after in moments {
            let _ = fs::remove_dir_all(world.path("dst"));
            vm.link.cut_next(Cut::After(after));
            let watcher = vm.watch(direction, &[]);
            cuts += u64::from(!watcher.events("retry").is_empty());
            world.tree("src").file("later", noise(after, 100));
            watcher.is_there();
        }
        vm.link.cut_each(None);
        assert!(cuts >= MOMENTS, "{direction:?}: only {cuts} of {} were cut", 2 * MOMENTS);
    }
}

#[test]
fn a_watch_survives_a_cut_at_any_moment_after_a_save() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        Run::end_of(vm.sync(direction, &[]).spawn().expect("start")).ok();
        for delay_ms in [0, 0, 1, 2, 5, 10, 20, 50, 200] {
            let save = |text: &str| fs::write(world.path("src/note"), text).unwrap();
            let arrives = |text: &str| {
                wait_for("a save", || {
                    (fs::read_to_string(world.path("dst/note")).ok()? == text).then_some(())
                });
            };
            // Saved while the watch starts, so that it may arrive before the first round has ended.
            let watcher = vm.begin_watch(direction, &[]);
            let first = format!("first of {delay_ms}");
            save(&first);
            arrives(&first);
            std::thread::sleep(Duration::from_millis(delay_ms));
            vm.link.cut();
            let second = format!("second of {delay_ms}, saved after the cut");
            save(&second);
            arrives(&second);
            watcher.is_there();
        }
    }
}

#[test]
fn a_watch_that_reaches_nobody_ends_at_once() {
    for direction in REMOTE {
        let world = world();
        let mut vm = Vm::start(&world);
        vm.link.lead_to(1);
        let begun = Instant::now();
        // Every login is cut: the watch ends after the requested number of retries.
        let watcher = vm.begin_watch(direction, &["--retries", "2"]);
        let said = watcher.ends(10);
        assert_eq!(said.matches("ksync: ").count(), 1, "{said}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{direction:?}: {:?}", begun.elapsed());
        vm.end();
        let setup = fs::read_to_string(world.path("vm.json")).unwrap();
        let nobody = setup.replace(&format!(":{}", vm.link.port), ":1");
        fs::write(world.path("vm.json"), nobody).unwrap();
        let watcher = vm.begin_watch(direction, &[]);
        watcher.event("error");
        assert!(watcher.events("retry").is_empty());
        watcher.ends(10);
    }
}

#[test]
fn a_link_that_stays_down_is_retried_with_growing_waits() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &["--delete"]);
        vm.link.set_down(true);
        let wait = |retry: &Value| retry["wait_ms"].as_f64().unwrap();
        watcher.event_where("retry", 0, |retry| wait(retry) >= 1500.0);
        let waits: Vec<f64> = watcher.events("retry").iter().map(wait).collect();
        for (expected, wait) in [250.0, 500.0, 1000.0, 2000.0].iter().zip(&waits) {
            assert!((0.74 * expected..1.26 * expected).contains(wait), "{waits:?}");
        }
        world.tree("src").file("meanwhile", "saved while nobody listened");
        fs::remove_file(world.path("src/empty")).unwrap();
        vm.link.set_down(false);
        watcher.is_there();
        // The connection has worked, so the waits are short again.
        let mark = watcher.mark();
        vm.link.cut();
        let retry = watcher.event_where("retry", mark, |_| true);
        assert!(wait(&retry) < 313.0, "{retry}");
        watcher.is_there();
    }
}

#[test]
fn a_link_that_swallows_everything_is_noticed() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &["--delete", "--timeout", "3"]);
        vm.link.set_flow(Flow::Vanishes);
        let begun = Instant::now();
        world.tree("src").file("meanwhile", "saved into the dark");
        watcher.event("retry");
        // Not much later than the timeout.
        assert!(begun.elapsed() < Duration::from_secs(15), "{direction:?}: {:?}", begun.elapsed());
        vm.link.set_flow(Flow::Passes);
        watcher.is_there();
    }
}

#[test]
fn a_suspended_client_catches_up() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &["--delete"]);
        watcher.signal(Signal::STOP);
        world.tree("src").file("meanwhile", "saved while it slept");
        fs::remove_file(world.path("src/empty")).unwrap();
        vm.link.cut();
        watcher.signal(Signal::CONT);
        watcher.event("retry");
        watcher.is_there();
    }
}

#[test]
fn a_watch_survives_a_killed_bridge() {
    let Some(machine) = Machine::start() else { return };
    let world = &machine.world;
    world.tree("src").with_everything();
    let (url, bridge) = machine.bridge();
    let port = |url: &str| url.rsplit(':').next().unwrap().parse().unwrap();
    let link = Link::to((Ipv4Addr::LOCALHOST, port(&url)));
    let known = fs::read_to_string(world.path("home/.ssh/known_hosts")).unwrap();
    let known = known.replace(&format!(":{} ", machine.port), &format!(":{} ", link.port));
    fs::write(world.path("home/.ssh/known_hosts"), known).unwrap();
    let there = machine.behind(&format!("ws://127.0.0.1:{}", link.port), "dst");
    let command = world.ksync(["--watch", "--json", "--identity", "key", "src", &there]);
    let watcher = Watcher::of(world, "src", command);
    watcher.event("ready");
    drop(bridge);
    let (url, _bridge) = machine.bridge();
    link.lead_to(port(&url));
    world.tree("src").file("after", "the bridge was another one");
    watcher.event("retry");
    watcher.is_there();
    machine.rsync_finds_no_difference("src", "dst");
}

#[test]
fn another_host_key_ends_the_watch_with_43() {
    for direction in REMOTE {
        let world = world();
        let mut vm = Vm::start(&world);
        let watcher = vm.watch(direction, &["--delete"]);
        world.tree("src").file("later", "x");
        watcher.is_there();
        vm.link.set_down(true);
        vm.replace();
        fs::remove_file(world.path("src/empty")).unwrap();
        vm.link.set_down(false);
        let said = watcher.ends(43);
        assert!(said.contains("ksync: "), "{said}");
        assert!(world.path("dst/empty").exists(), "whoever it is was told nothing");
    }
}

#[test]
fn a_rejected_key_ends_the_watch_with_40() {
    let Some(machine) = Machine::start() else { return };
    let world = &machine.world;
    world.tree("src").with_everything();
    let link = Link::to((Ipv4Addr::LOCALHOST, machine.port));
    let known = fs::read_to_string(world.path("home/.ssh/known_hosts")).unwrap();
    let known = known.replace(&format!(":{} ", machine.port), &format!(":{} ", link.port));
    fs::write(world.path("home/.ssh/known_hosts"), known).unwrap();
    for (source, destination) in [("src", "dst-far"), ("dst-far", "dst-near")] {
        let there = |name: &str| format!("ssh://root@127.0.0.1:{}{}", link.port, world.path(name).display());
        let endpoints = if source == "src" {
            [source.to_owned(), there(destination)]
        } else {
            [there(source), destination.to_owned()]
        };
        let command = world
            .ksync(["--watch", "--json", "--identity", "key"].map(String::from).iter().chain(&endpoints));
        let near = if source == "src" { source } else { destination };
        let watcher = Watcher::of(world, near, command);
        watcher.event("ready");
        make_key(world, &format!("other-{near}"), "ed25519");
        fs::copy(world.path(format!("other-{near}.pub")), world.path("machine/authorized")).unwrap();
        link.cut();
        let error = watcher.event("error");
        assert_eq!(error["exit"], 40, "{error}");
        watcher.ends(40);
        world.assert_same("src", "dst-far");
        fs::copy(world.path("key.pub"), world.path("machine/authorized")).unwrap();
    }
}

#[test]
fn a_deleted_session_ends_the_watch_with_41() {
    for direction in REMOTE {
        let world = world();
        let platform = Platform::start(&world);
        let id = platform.create(&world, &[]);
        let far = |name: &str| endpoint(&world, &id, name);
        let endpoints = if direction == Direction::Up {
            ["src".to_owned(), far("dst")]
        } else {
            [far("src"), "dst".to_owned()]
        };
        let command =
            platform.ksync(&world, &["--watch", "--json", "--delete", &endpoints[0], &endpoints[1]]);
        let watcher = Watcher::of(&world, direction.near(), command);
        watcher.event("ready");
        world.tree("src").file("later", "x");
        watcher.is_there();
        assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
        let error = watcher.event("error");
        assert_eq!(error["exit"], json!(41), "{error}");
        watcher.ends(41);
        world.assert_same("src", "dst");
    }
}

#[test]
fn a_session_is_kept_while_it_is_watched_and_survives_cuts() {
    let world = world();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--timeout", "10"]);
    // The agent and the first sync get through, and then a few saves each time.
    platform.fault(json!({ "call": "bridge", "after_bytes": 1_600_000 }));
    platform.fault(json!({ "call": "bridge", "after_bytes": 400_000, "times": 2 }));
    let there = endpoint(&world, &id, "dst");
    let watcher = Watcher::of(&world, "src", platform.ksync(&world, &["--watch", "--json", "src", &there]));
    watcher.event("ready");
    for round in 0..8 {
        world.tree("src").file("noise", noise(round, 200_000));
        watcher.is_there();
        platform.advance(60);
    }
    assert_eq!(platform.status(&id), 200);
    assert!(!watcher.events("retry").is_empty());
}

#[test]
fn an_idle_watch_costs_next_to_nothing() {
    for direction in REMOTE {
        let world = world();
        let vm = Vm::start(&world);
        let watcher = vm.watch(direction, &[]);
        world.tree("src").file("later", "x");
        watcher.is_there();
        let (client, agent) = (watcher.pid(), vm.agent());
        let worked = || [client, agent].map(ticks);
        // The last bytes of the flush are still in flight.
        std::thread::sleep(Duration::from_secs(1));
        let (bytes, before) = (vm.link.carried().bytes(), worked());
        std::thread::sleep(Duration::from_secs(10));
        // 1 % of a core and 1 KB a minute, or one heartbeat in these ten seconds.
        let spent = [worked()[0] - before[0], worked()[1] - before[1]];
        assert!(spent.iter().all(|ticks| *ticks <= 10), "{direction:?}: {spent:?} hundredths of a second");
        let bytes = vm.link.carried().bytes() - bytes;
        assert!(bytes <= 1024 / 6, "{direction:?}: {bytes} bytes");
    }
}
