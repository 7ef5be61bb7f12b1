//! Lanes: an upload over a long round trip uses further channels, and leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::Machine;
use crate::world::link::Link;
use crate::world::{Run, noise, wait_for};

/// A round trip that justifies five lanes.
const ROUND_TRIP: Duration = Duration::from_millis(60);

const LARGE_BYTES: usize = 60 << 20;

/// Makes a machine, and a large file to upload.
fn machine(settings: &str) -> Option<Machine> {
    let machine = Machine::with(settings)?;
    machine.world.tree("src").file("large", noise(3, LARGE_BYTES)).file("small", "text");
    Some(machine)
}

/// Starts an upload over a link with this round trip.
fn upload(machine: &Machine, round_trip: Duration, options: &[&str]) -> Child {
    let link = Link::delayed(([127, 0, 0, 1], machine.port), round_trip / 2);
    upload_over(machine, &format!("ssh://{}", link.address()), options)
}

fn upload_over(machine: &Machine, way: &str, options: &[&str]) -> Child {
    let host_key = fs::read_to_string(machine.world.path("host-key.pub")).expect("a key");
    let endpoint = machine.behind(way, "dst");
    let mut command = machine.world.ksync(["--identity", "key", "--stats", "--host-key", &host_key]);
    command.args(options).args(["src", &endpoint]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start")
}

/// Agents that run on a machine: main agents of exchanges, and lanes.
fn agents(machine: &Machine) -> (Vec<Pid>, Vec<Pid>) {
    let home = machine.world.path("machine/home");
    let (mut mains, mut lanes) = (Vec::new(), Vec::new());
    for process in fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path())) {
        if !fs::read_link(process.join("exe")).is_ok_and(|exe| exe.starts_with(&home)) {
            continue;
        }
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let argument = arguments.split(|&byte| byte == 0).nth(1).unwrap_or_default();
        let id = process.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
        match id {
            Some(id) if argument.starts_with(b"lane:") => lanes.push(id),
            // A process that exits has no arguments, and a starting one has `--version`.
            Some(id) if !argument.is_empty() && argument != b"--version" => mains.push(id),
            _ => {}
        }
    }
    (mains, lanes)
}

/// Waits for the success of an upload, and returns the number of lanes seen.
#[track_caller]
fn ends_well(machine: &Machine, mut client: Child) -> usize {
    let mut seen = BTreeSet::new();
    while client.try_wait().expect("wait").is_none() {
        seen.extend(agents(machine).1.iter().map(|lane| lane.as_raw_nonzero()));
        thread::sleep(Duration::from_millis(2));
    }
    let stats = Run::end_of(client).ok().stats();
    assert!(stats.wire_up_bytes > LARGE_BYTES as u64, "what goes over lanes counts: {stats:?}");
    machine.rsync_finds_no_difference("src", "dst");
    leaves_nothing(machine);
    seen.len()
}

/// Asserts that no agent runs and no temporary file remains.
#[track_caller]
fn leaves_nothing(machine: &Machine) {
    wait_for("the end of all agents", || (agents(machine) == (Vec::new(), Vec::new())).then_some(()));
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(machine.world.path("machine/home")) {
        let entry = entry.expect("an entry");
        // The baseline and the agent's secret stay.
        let is_remembered = entry.path().parent().is_some_and(|parent| parent.ends_with("offers"))
            || entry.file_name() == "secret";
        if !entry.file_type().is_dir() && !is_remembered {
            files.push(entry.file_name().to_str().expect("a name").to_owned());
        }
    }
    assert!(matches!(&files[..], [agent] if agent.starts_with("agent-")), "{files:?}");
}

#[test]
fn a_long_round_trip_opens_lanes_for_an_upload() {
    let Some(machine) = machine("") else { return };
    let client = upload(&machine, ROUND_TRIP, &[]);
    let lanes = ends_well(&machine, client);
    assert!((4..=7).contains(&lanes), "{lanes}");
}

#[test]
fn an_upload_through_a_bridge_opens_lanes_too() {
    let Some(machine) = machine("") else { return };
    let (bridge, _service) = machine.bridge();
    let bridge: SocketAddr = bridge.trim_start_matches("ws://").parse().expect("an address");
    let link = Link::delayed(bridge, ROUND_TRIP / 2);
    let client = upload_over(&machine, &format!("ws://{}", link.address()), &[]);
    let lanes = ends_well(&machine, client);
    assert!((4..=7).contains(&lanes), "{lanes}");
}

#[test]
fn a_short_round_trip_opens_no_lanes() {
    let Some(machine) = machine("") else { return };
    let client = upload(&machine, Duration::ZERO, &[]);
    assert_eq!(ends_well(&machine, client), 0);
}

#[test]
fn the_chosen_number_of_channels_is_used() {
    let Some(machine) = machine("") else { return };
    for (chosen, lanes) in [("1", 0), ("3", 2)] {
        let client = upload(&machine, ROUND_TRIP, &["-j", chosen]);
        assert_eq!(ends_well(&machine, client), lanes, "-j {chosen}");
        fs::remove_dir_all(machine.world.path("dst")).expect("the copy");
    }
}

#[test]
fn the_permitted_channels_carry_an_upload() {
    for (allowed, lanes) in [("MaxSessions 1", 0), ("MaxSessions 2", 1)] {
        let Some(machine) = machine(allowed) else { return };
        let client = upload(&machine, ROUND_TRIP, &[]);
        assert_eq!(ends_well(&machine, client), lanes, "{allowed}");
    }
}

#[test]
fn a_small_upload_opens_no_lanes_at_any_round_trip() {
    let Some(machine) = machine("") else { return };
    machine.world.tree("src").file("large", noise(3, 3 << 20));
    let mut client = upload(&machine, ROUND_TRIP, &[]);
    while client.try_wait().expect("wait").is_none() {
        assert!(agents(&machine).1.is_empty(), "a lane");
        thread::sleep(Duration::from_millis(2));
    }
    Run::end_of(client).ok();
    leaves_nothing(&machine);
}

#[test]
fn late_lanes_end_at_once() {
    let Some(machine) = machine("") else { return };
    for size in [5 << 20, 6 << 20, 7 << 20] {
        machine.world.tree("src").file("large", noise(size as u64, size));
        let client = upload(&machine, ROUND_TRIP, &[]);
        Run::end_of(client).ok();
        let start = Instant::now();
        leaves_nothing(&machine);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        machine.rsync_finds_no_difference("src", "dst");
    }
}

/// Waits until lanes carry an upload.
fn wait_for_lanes(machine: &Machine) -> (Vec<Pid>, Vec<Pid>) {
    wait_for("lanes", || {
        let agents = agents(machine);
        let staged = fs::read_dir(machine.world.path("dst/.ksync")).ok()?;
        let staged = staged.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.len()).max()?;
        (agents.0.len() == 1 && agents.1.len() >= 4 && staged > 16 << 20).then_some(agents)
    })
}

#[test]
fn a_cut_link_ends_all_agents_and_keeps_the_received_data() {
    let Some(machine) = machine("") else { return };
    machine.world.tree("src").file("large", noise(3, 4 * LARGE_BYTES));
    // The two runs have different addresses, so the second one knows nothing of the first. An
    // unknown destination keeps its mode.
    machine.world.tree("dst");
    let link = Link::delayed(([127, 0, 0, 1], machine.port), ROUND_TRIP / 2);
    let client = upload_over(&machine, &format!("ssh://{}", link.address()), &["--retries", "0"]);
    wait_for_lanes(&machine);
    link.cut();
    let run = Run::end_of(client).fails(10);
    assert!(run.stderr.contains("ksync: lost the connection to "), "{}", run.stderr);
    leaves_nothing(&machine);
    let stats = Run::end_of(upload(&machine, Duration::ZERO, &[])).ok().stats();
    assert!(stats.matched_bytes > 15 << 20, "what arrived is not sent again: {stats:?}");
    machine.rsync_finds_no_difference("src", "dst");
}

#[test]
fn an_upload_over_lanes_survives_repeated_cuts() {
    const CUTS: u64 = 6;
    const BYTES_PER_CUT: u64 = 12 << 20;
    let Some(machine) = machine("") else { return };
    machine.world.tree("src").file("large", noise(3, 2 * LARGE_BYTES));
    for number in 0..200 {
        machine.world.tree("src").file(format!("many/{number}"), noise(number, 20_000));
    }
    let link = Link::delayed(([127, 0, 0, 1], machine.port), ROUND_TRIP / 2);
    let mut client = upload_over(&machine, &format!("ssh://{}", link.address()), &["-j", "4"]);
    let (mut lanes, mut cuts, mut bytes) = (BTreeSet::new(), 0, 0);
    while client.try_wait().expect("wait").is_none() {
        lanes.extend(agents(&machine).1.iter().map(|lane| lane.as_raw_nonzero()));
        if cuts < CUTS && link.carried().up_bytes - bytes >= BYTES_PER_CUT {
            link.cut();
            (cuts, bytes) = (cuts + 1, link.carried().up_bytes);
        }
        thread::sleep(Duration::from_millis(2));
    }
    let run = Run::end_of(client).ok();
    let retries = run.stderr.matches("; trying again in ").count() as u64;
    assert!(cuts == CUTS && retries >= CUTS, "{cuts} cuts: {}", run.stderr);
    assert!(lanes.len() >= 6, "{} lanes", lanes.len());
    machine.rsync_finds_no_difference("src", "dst");
    leaves_nothing(&machine);
}

/// Starts an upload, kills the process that `choose` selects once lanes run, and uploads again.
fn killed(choose: impl Fn((Vec<Pid>, Vec<Pid>)) -> Pid) -> Option<String> {
    let machine = machine("")?;
    machine.world.tree("src").file("large", noise(3, 4 * LARGE_BYTES));
    // The two runs have different addresses, so the second one knows nothing of the first. An
    // unknown destination keeps its mode.
    machine.world.tree("dst");
    let client = upload(&machine, ROUND_TRIP, &["--retries", "0"]);
    kill_process(choose(wait_for_lanes(&machine)), Signal::KILL).expect("kill");
    let run = Run::end_of(client);
    assert!(!run.status.success(), "{}", run.stdout);
    assert!(!machine.world.path("dst/large").exists());
    leaves_nothing(&machine);
    let client = upload(&machine, Duration::ZERO, &[]);
    let stats = Run::end_of(client).ok().stats();
    assert!(stats.matched_bytes > 15 << 20, "what arrived is not sent again: {stats:?}");
    machine.rsync_finds_no_difference("src", "dst");
    Some(run.stderr)
}

#[test]
fn a_killed_agent_ends_its_lanes() {
    let Some(said) = killed(|(mains, _)| mains[0]) else { return };
    assert!(said.contains("ksync: the agent was killed (signal 9) after it had started"), "{said}");
}

#[test]
fn a_killed_lane_ends_the_run_with_a_cause() {
    let Some(said) = killed(|(_, lanes)| lanes[1]) else { return };
    assert!(said.contains("a lane broke") || said.contains("a lane ended early"), "{said}");
}

#[test]
fn the_socket_names_of_lanes_vanish_with_them() {
    let Some(machine) = machine("") else { return };
    let client = upload(&machine, ROUND_TRIP, &[]);
    assert!(ends_well(&machine, client) > 0);
    // Other tests have their own lanes. Only names of dead processes would stay.
    wait_for("the end of all names", || {
        let sockets = fs::read_to_string(Path::new("/proc/net/unix")).expect("sockets");
        (!sockets.contains("@ksync-lane-")).then_some(())
    });
}
