//! Peers that send their hello and then nothing, or next to nothing.

use std::time::{Duration, Instant};

use crate::impostor::Impostor;
use crate::wire::{HEARTBEAT, Kind, Wire, agent_hello, content, offer};
use crate::world::World;

#[test]
fn a_silent_peer_is_given_up_in_time() {
    let second = Duration::from_secs(1);
    let offered = [agent_hello(1), offer(&[(b"a", Kind::File(9))])].concat();
    let large_frame = [agent_hello(1), (1u32 << 20).to_le_bytes().to_vec()].concat();
    for (what, script, drip, pause) in [
        ("silent after the hello", agent_hello(1), vec![], Duration::MAX),
        ("silent after its offer", offered, vec![], Duration::MAX),
        ("a byte a second", large_frame, vec![0], second),
    ] {
        let world = World::new();
        let impostor = Impostor::dripping(&world, script, drip, pause);
        let begun = Instant::now();
        let run = impostor.download_with(&world, &["--timeout", "2", "--retries", "0"]).fails(30);
        let elapsed = begun.elapsed();
        assert!(elapsed >= 2 * second && elapsed < 7 * second, "{what}: {elapsed:?}");
        assert!(run.stderr.contains(" for 2 s\n  hint: "), "{what}: {}", run.stderr);
    }
}

#[test]
fn a_peer_with_heartbeats_is_not_given_up() {
    let world = World::new();
    let working = Wire::common(HEARTBEAT).raw(&[1]).frame();
    // Silent for longer than the timeout, except for heartbeats.
    let impostor = Impostor::dripping(&world, agent_hello(1), working, Duration::from_millis(500));
    let begun = Instant::now();
    let mut child = {
        let mut command = world.ksync(impostor.arguments(&["--timeout", "1", "--retries", "0"]));
        command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("start")
    };
    while begun.elapsed() < Duration::from_secs(5) {
        assert!(child.try_wait().expect("wait").is_none(), "it was given up after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn a_failed_run_lists_what_had_happened_before() {
    let world = World::new();
    let offered = [agent_hello(1), offer(&[(b"a", Kind::File(4)), (b"b", Kind::File(4))])].concat();
    // The second answer for the same file breaks the protocol.
    let impostor = Impostor::dripping(&world, offered, content(0, b"text"), Duration::from_millis(2500));
    let run = impostor.download_with(&world, &["-v", "--retries", "0"]).fails(12);
    assert_eq!(run.stdout, "create  a\n", "{}", run.stderr);
    assert_eq!(std::fs::read(world.path("box/dst/a")).unwrap(), b"text");
}
