//! Faults of a keeper, of its connection and of its agent. Each run has the result that it has
//! without a keeper.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::kept::Kept;
use crate::world::link::Flow;
use crate::world::service::make_key;
use crate::world::{Run, noise, wait_for};

/// Makes a copy and waits for its keeper.
fn begin(kept: &Kept) -> crate::kept::Keeper {
    kept.machine.world.tree("src").file("a", "one").file("b/c", "two");
    kept.sync(&[]).ok();
    kept.keeper()
}

/// Changes the source, copies it, and asserts the result and that nothing was said about it.
#[track_caller]
fn change(kept: &Kept, content: &str) -> Run {
    kept.machine.world.tree("src").file("a", content);
    let run = kept.sync(&[]).ok();
    kept.is_same();
    assert!(!run.stderr.contains("lost") && !run.stderr.contains("keeper"), "{}", run.stderr);
    run
}

/// Starts a copy of a large file, and waits until it is on its way.
fn begin_transfer(kept: &Kept, options: &[&str]) -> Child {
    kept.machine.world.tree("src").file("large", noise(1, 30_000_000));
    kept.link.reset();
    let mut command = kept.copy(options);
    let running = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the transfer", || (kept.link.carried().up_bytes > 200_000).then_some(()));
    running
}

#[test]
fn keep_stop_ends_a_keeper_that_is_still_connecting() {
    let Some(kept) = Kept::start() else { return };
    kept.machine.world.tree("src").file("a", "one");
    kept.sync(&[]).ok();
    // The keeper has its lock before the run ends, so nothing is to be waited for.
    for _ in 0..10 {
        assert!(kept.has_lock());
        let stop = Run::of(kept.ksync(["keep", "stop"])).ok();
        assert!(stop.stderr.contains("ended 1 kept connection"), "{}", stop.stderr);
        assert!(!kept.has_lock());
        kept.sync(&[]).ok();
    }
}

#[test]
fn a_keeper_that_was_killed_is_replaced() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    keeper.signal(Signal::KILL);
    kept.ends(&keeper);
    change(&kept, "changed");
    let next = kept.keeper();
    assert_ne!(next.pid, keeper.pid);
    change(&kept, "changed again");
    assert_eq!(kept.keeper().served, 1);
}

#[test]
fn a_keeper_that_is_stopped_does_not_delay_a_run() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    keeper.signal(Signal::STOP);
    let start = Instant::now();
    change(&kept, "changed");
    // A connection takes much less, a timeout much more.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    // The run leaves another one in its place.
    kept.ends(&keeper);
    assert_ne!(kept.keeper().pid, keeper.pid);
}

#[test]
fn a_run_whose_keeper_is_stopped_goes_on_by_itself() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    let running = begin_transfer(&kept, &[]);
    keeper.signal(Signal::STOP);
    Run::end_of(running).ok();
    kept.is_same();
    kept.ends(&keeper);
}

#[test]
fn a_run_whose_keeper_is_killed_goes_on_by_itself() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    let running = begin_transfer(&kept, &[]);
    keeper.signal(Signal::KILL);
    let run = Run::end_of(running).ok();
    kept.is_same();
    assert!(!run.stderr.contains("lost"), "{}", run.stderr);
}

#[test]
fn a_run_survives_the_end_of_its_keeper_by_keep_stop() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    let running = begin_transfer(&kept, &["--retries", "0"]);
    Run::of(kept.ksync(["keep", "stop"])).ok();
    kept.ends(&keeper);
    Run::end_of(running).ok();
    kept.is_same();
}

#[test]
fn a_cut_connection_ends_the_keeper_and_no_run() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    kept.link.cut();
    change(&kept, "changed");
    kept.ends(&keeper);
    change(&kept, "changed again");
}

/// The bytes of the kept connection vanish, and new connections work: after a change of network.
#[test]
fn a_silent_connection_is_replaced_by_a_fresh_one() {
    let Some(kept) = Kept::start() else { return };
    let keeper = begin(&kept);
    kept.link.set_flow(Flow::Vanishes);
    wait_for("a loss", || {
        // One that is made now is lost too.
        let is_up = std::net::TcpStream::connect(kept.link.address()).is_ok();
        is_up.then_some(())
    });
    kept.machine.world.tree("src").file("a", "changed");
    let mut command = kept.copy(&[]);
    let running = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The run's first bytes are lost.
    std::thread::sleep(Duration::from_millis(5));
    kept.link.set_flow(Flow::Passes);
    Run::end_of(running).ok();
    kept.is_same();
    Run::of(kept.ksync(["keep", "stop"])).ok();
    kept.ends(&keeper);
}

#[test]
fn an_agent_that_is_killed_is_replaced() {
    let Some(kept) = Kept::start() else { return };
    begin(&kept);
    let agents = agents(&kept);
    assert!(!agents.is_empty());
    for agent in agents {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(agent).unwrap(), Signal::KILL);
    }
    change(&kept, "changed");
    change(&kept, "changed again");
    assert!(kept.keeper().served > 0);
}

/// Kept agents of the machine: those that have its home.
fn agents(kept: &Kept) -> Vec<i32> {
    let home = format!("HOME={}\0", kept.machine.world.path("machine/home").display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let has_home = |environ: Vec<u8>| environ.windows(home.len()).any(|part| part == home.as_bytes());
            read("cmdline").ends_with(b"\0keep\0") && has_home(read("environ"))
        })
        .collect()
}

#[test]
fn another_known_host_key_refuses_a_run_as_without_a_keeper() {
    let Some(kept) = Kept::start() else { return };
    begin(&kept);
    make_key(&kept.machine.world, "other-key", "ed25519");
    kept.trust("other-key");
    kept.machine.world.tree("src").file("a", "changed");
    kept.sync(&[]).fails(43);
    kept.trust("host-key");
    change(&kept, "changed");
    assert_eq!(kept.keeper().served, 1);
}

#[test]
fn another_key_or_a_missing_one_refuses_a_run_as_without_a_keeper() {
    let Some(kept) = Kept::start() else { return };
    begin(&kept);
    let world = &kept.machine.world;
    make_key(world, "another", "ed25519");
    let key = fs::read(world.path("key")).unwrap();
    fs::copy(world.path("another"), world.path("key")).unwrap();
    kept.sync(&[]).fails(40);
    fs::write(world.path("key"), key).unwrap();
    change(&kept, "changed");
    // A login that the machine revokes is noticed with the connection.
    fs::write(world.path("machine/authorized"), "").unwrap();
    kept.link.cut();
    kept.sync(&[]).fails(40);
}

#[test]
fn twenty_runs_at_once_have_twenty_results() {
    let Some(kept) = Kept::start() else { return };
    begin(&kept);
    let runs: Vec<_> = (0..20)
        .map(|number| {
            kept.machine.world.tree(format!("src-{number}")).file("a", format!("{number}"));
            let mut command = kept.ksync(["--identity", "key"]);
            command.arg(format!("src-{number}")).arg(kept.there(&format!("dst-{number}")));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        Run::end_of(run).ok();
        kept.machine.world.assert_same(format!("src-{number}"), format!("dst-{number}"));
    }
    assert_eq!(kept.keepers().len(), 1);
}

#[test]
fn another_build_has_a_keeper_of_its_own() {
    let Some(kept) = Kept::start() else { return };
    begin(&kept);
    let world = &kept.machine.world;
    let other = world.path("other-ksync");
    fs::copy(env!("CARGO_BIN_EXE_ksync"), &other).unwrap();
    let plain = kept.copy(&[]);
    let mut command = world.command(&other);
    command.args(plain.get_args()).env("KSYNC_KEEP", "1").env("XDG_RUNTIME_DIR", world.path("run"));
    world.tree("src").file("a", "changed");
    Run::of(command).ok();
    kept.is_same();
    wait_for("another keeper", || (kept.keepers().len() == 2).then_some(()));
    assert!(kept.keepers().iter().all(|keeper| keeper.served == 0));
}
