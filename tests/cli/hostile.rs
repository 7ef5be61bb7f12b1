//! Hostile peers: either side may lie, and no lie changes anything outside the destination.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use flate2::read::GzDecoder;
use ksync::wire::hello::MAGIC;

use crate::impostor::Impostor;
use crate::wire::{
    ABORT, ANSWERS, Kind, Role, Wire, abort_in, agent_hello, content, offer, pushed, request, scope, wants,
};
use crate::world::{Snapshot, World, wait_for};

/// The kind of an Abort for a protocol error.
const PROTOCOL: u8 = 0;

/// A world with a destination, and canaries around it that must not change.
fn besieged() -> (World, Snapshot) {
    let world = World::new();
    world.tree("canary").file("file", "alive").link("link", "file").dir("dir");
    world.tree("box/dst").file("old", "old");
    // Starting an impostor creates this file, so it exists before the snapshot.
    world.tree(".").file("key", "");
    unpack_agent(&world.path("agent"));
    let before = outside(&world);
    (world, before)
}

/// The trees, without ksync's own directories.
fn outside(world: &World) -> Snapshot {
    let ours = ["agent", "cache", "state", "key", "tmp"];
    let all = world.snapshot(".");
    all.into_iter().filter(|(path, _)| !ours.iter().any(|name| path.starts_with(name))).collect()
}

/// Writes the agent that ksync carries to a file.
fn unpack_agent(path: &Path) {
    let packed = ksync::agent().gzip;
    let mut binary = Vec::new();
    GzDecoder::new(&packed[..]).read_to_end(&mut binary).expect("gzip");
    fs::write(path, binary).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("chmod");
}

/// Sends all of `said` to an agent, and returns its output.
fn tell_agent(world: &World, said: &[u8]) -> Vec<u8> {
    let mut command = world.command(world.path("agent"));
    command.arg("exchange").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut agent = command.spawn().expect("start");
    let mut stdin = agent.stdin.take().expect("stdin");
    let mut stdout = agent.stdout.take().expect("stdout");
    let reading = std::thread::spawn(move || {
        let mut output = Vec::new();
        let _ = stdout.read_to_end(&mut output);
        output
    });
    // An agent that has found an error stops reading.
    let _ = stdin.write_all(said);
    drop(stdin);
    let status = wait_for("the end of the agent", || agent.try_wait().expect("wait"));
    assert!(!status.success(), "the agent believed it");
    let output = reading.join().expect("output");
    // The agent may send its secret first.
    let hello = output.windows(MAGIC.len()).position(|bytes| bytes == MAGIC).unwrap_or(0);
    output[hello..].to_vec()
}

/// Sends `said` to an agent that receives into `box/dst`, and returns its reason for aborting.
fn offer_to_agent(world: &World, said: &[u8]) -> (u8, String) {
    let path = world.path("box/dst");
    let request = request(Role::Receiver, path.as_os_str().as_encoded_bytes(), true);
    let output = tell_agent(world, &[&request, said].concat());
    abort_in(&output).unwrap_or_else(|| panic!("no reason in {}", output.escape_ascii()))
}

/// Manifests that no honest sender has, each with the lie that it tells.
fn lies(canary: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let long = [b'n'; 256];
    let file = Kind::File(4);
    let names: [(&str, &[u8]); 13] = [
        ("the parent", b".."),
        ("a file in the parent", b"../pwned"),
        ("an absolute name", b"/tmp/pwned"),
        ("a way out through a directory", b"a/../../pwned"),
        ("the directory itself", b"."),
        ("no name", b""),
        ("an empty component", b"a//b"),
        ("a slash at the end", b"a/"),
        ("a NUL", b"a\0b"),
        ("what ksync keeps", b".ksync"),
        ("something in what ksync keeps", b".ksync/x"),
        ("the same in capitals", b".KSync/x"),
        ("too long a name", &long),
    ];
    let mut lies: Vec<_> =
        names.iter().map(|&(what, name)| (what, offer(&[(b"a", Kind::Directory), (name, file)]))).collect();
    // Each name comes alone too, so that only the name can be the reason.
    lies.extend(names.iter().map(|&(what, name)| (what, offer(&[(name, file)]))));
    lies.extend([
        ("a file below a link", offer(&[(b"d", Kind::Link(canary)), (b"d/pwned", file)])),
        ("a link that is also a directory", offer(&[(b"d", Kind::Link(canary)), (b"d", Kind::Directory)])),
        ("a directory that is also a link", offer(&[(b"d", Kind::Directory), (b"d", Kind::Link(canary))])),
        ("a file below a file", offer(&[(b"d", file), (b"d/pwned", file)])),
        ("a file without its directory", offer(&[(b"d/pwned", file)])),
        ("one name twice", offer(&[(b"a", file), (b"a", file)])),
        ("no order", offer(&[(b"b", file), (b"a", file)])),
        ("too large a file", offer(&[(b"a", Kind::File(u64::MAX))])),
        ("a link to nothing", offer(&[(b"a", Kind::Link(b""))])),
        ("a link with a NUL", offer(&[(b"a", Kind::Link(b"x\0y"))])),
    ]);
    lies
}

fn canary(world: &World) -> Vec<u8> {
    world.path("canary").into_os_string().into_encoded_bytes()
}

#[test]
fn a_hostile_client_cannot_make_the_agent_write_elsewhere() {
    let (world, before) = besieged();
    for (what, lie) in lies(&canary(&world)) {
        let (kind, text) = offer_to_agent(&world, &[lie, content(0, b"evil"), content(1, b"evil")].concat());
        assert_eq!(kind, PROTOCOL, "{what}: {text}");
        assert_eq!(outside(&world), before, "{what}: {text}");
    }
}

#[test]
fn a_hostile_agent_cannot_make_the_client_write_elsewhere() {
    let (world, before) = besieged();
    for (what, lie) in lies(&canary(&world)) {
        let script = [agent_hello(1), lie, content(0, b"evil"), content(1, b"evil")].concat();
        let run = Impostor::start(&world, script).download(&world, "box/dst").fails(12);
        assert!(run.stderr.contains("ksync: the manifest "), "{what}: {}", run.stderr);
        assert_eq!(outside(&world), before, "{what}: {}", run.stderr);
    }
}

#[test]
fn a_link_out_of_the_tree_is_not_taken_from_a_hostile_agent() {
    let (world, _) = besieged();
    let before = world.snapshot("canary");
    let done =
        [agent_hello(1), offer(&[(b"d", Kind::Link(&canary(&world))), (b"up", Kind::Link(b"../../canary"))])];
    let run = Impostor::start(&world, done.concat()).download(&world, "box/dst").ok();
    assert!(run.stderr.contains("ksync: 2 links not copied, "), "{}", run.stderr);
    assert_eq!(world.snapshot("canary"), before);
    assert_eq!(world.snapshot("box/dst").len(), 2);
}

#[test]
fn a_link_out_of_the_tree_through_another_link_is_not_taken() {
    let (world, _) = besieged();
    let links: [(&[u8], Kind<'_>); 4] = [
        (b"d", Kind::Directory),
        (b"d/up", Kind::Link(b"..")),
        (b"esc", Kind::Link(b"d/up/../canary")),
        (b"esc2", Kind::Link(b"d/..")),
    ];
    let script = [agent_hello(1), offer(&links)].concat();
    let run = Impostor::start(&world, script).download(&world, "box/dst").ok();
    assert!(run.stderr.contains("ksync: 2 links not copied, "), "{}", run.stderr);
    for name in ["esc", "esc2"] {
        assert!(!world.path("box/dst").join(name).is_symlink(), "{name}");
    }
    assert!(world.path("box/dst/d/up").is_symlink());
}

#[test]
fn a_link_in_the_destination_is_replaced_and_not_followed() {
    for up in [true, false] {
        let (world, _) = besieged();
        world.tree("src").file("d/file", "new").file("dir/f", "new");
        world.tree("box/dst").link("d", canary(&world)).link("dir", "../../canary/dir");
        let before = world.snapshot("canary");
        if up {
            world.sync_with(&["--delete", "--yes"], "src", world.far("box/dst"));
        } else {
            world.sync_with(&["--delete", "--yes"], world.far("src"), "box/dst");
        }
        world.assert_same("src", "box/dst");
        assert_eq!(world.snapshot("canary"), before);
    }
}

#[test]
fn deleting_a_link_keeps_its_target() {
    for up in [true, false] {
        let (world, _) = besieged();
        world.tree("src").file("a", "text");
        world.tree("box/dst").link("d", canary(&world)).link("f", "../../canary/file");
        let before = world.snapshot("canary");
        if up {
            world.sync_with(&["--delete", "--yes"], "src", world.far("box/dst"));
        } else {
            world.sync_with(&["--delete", "--yes"], world.far("src"), "box/dst");
        }
        world.assert_same("src", "box/dst");
        assert_eq!(world.snapshot("canary"), before);
    }
}

#[test]
fn unrequested_content_is_refused() {
    let (world, before) = besieged();
    // The wanted content never comes. Otherwise the receiver might finish before it gets the
    // content that it did not ask for.
    let entries: [(&[u8], Kind<'_>); 2] = [(b"old", Kind::Directory), (b"wanted", Kind::File(4))];
    for id in [0, 2, u64::from(u32::MAX)] {
        let said = [offer(&entries), content(id, b"evil")].concat();
        let script = [agent_hello(1), said.clone()].concat();
        Impostor::start(&world, script).download(&world, "box/fresh").fails(12);
        let (kind, text) = offer_to_agent(&world, &said);
        assert_eq!(kind, PROTOCOL, "{text}");
    }
    assert_eq!(world.snapshot("canary"), {
        let mut canary = before;
        canary.retain(|path, _| path.starts_with("canary"));
        canary.into_iter().map(|(path, seen)| (path.strip_prefix("canary").unwrap().into(), seen)).collect()
    });
}

#[test]
fn scopes_outside_the_root_and_false_pushes_are_refused() {
    let (world, before) = besieged();
    let offer = offer(&[(b"d", Kind::Directory), (b"d/f", Kind::File(4))]);
    let (subject, entries) = offer.split_at(offer.len() - entries_bytes(&offer));
    for (what, said) in [
        ("the parent", [scope(&[b".."]).as_slice(), &offer].concat()),
        ("beside the root", [scope(&[b"old", b"../canary"]).as_slice(), &offer].concat()),
        ("an absolute path", [scope(&[b"/etc"]).as_slice(), &offer].concat()),
        ("what ksync keeps", [scope(&[b".ksync"]).as_slice(), &offer].concat()),
        ("parts after the subject", [subject, &scope(&[b"old"])].concat()),
        ("a content before the subject", [pushed(1, b"evil").as_slice(), &offer].concat()),
        ("of a directory", [subject, &pushed(0, b""), entries].concat()),
        ("of another length", [subject, &pushed(1, b"longer"), entries].concat()),
        ("of nothing", [subject, &pushed(9, b"evil"), entries].concat()),
        ("too much", [subject, &pushed(1, &vec![0; 300 << 10]), entries].concat()),
    ] {
        let script = [agent_hello(1), said.clone()].concat();
        Impostor::start(&world, script).download(&world, "box/dst").fails(12);
        let (kind, text) = offer_to_agent(&world, &said);
        assert_eq!(kind, PROTOCOL, "{what}: {text}");
        assert_eq!(outside(&world), before, "{what}: {text}");
    }
}

/// The number of bytes in an offer after its subject.
fn entries_bytes(offer: &[u8]) -> usize {
    let length = u32::from_le_bytes(*offer.first_chunk().expect("a frame"));
    offer.len() - 4 - length as usize
}

#[test]
fn content_with_a_wrong_hash_is_not_kept() {
    let (world, _) = besieged();
    let mut forged = content(0, b"evil");
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let said = [offer(&[(b"old", Kind::File(4))]), forged.clone(), forged].concat();
    let run = Impostor::start(&world, [agent_hello(1), said].concat()).download(&world, "box/dst");
    assert!(!run.status.success());
    assert_eq!(std::fs::read(world.path("box/dst/old")).unwrap(), b"old");
}

#[test]
fn a_request_for_an_unoffered_file_is_refused() {
    let (world, before) = besieged();
    for ids in [&[2][..], &[u64::from(u32::MAX)], &[0, 0]] {
        let script = [agent_hello(1), wants(ids)].concat();
        let run = Impostor::start(&world, script).upload(&world, "canary").fails(12);
        assert!(run.stderr.starts_with("ksync: "), "{}", run.stderr);
        let path = canary(&world);
        let output = tell_agent(&world, &[request(Role::Sender, &path, false), wants(ids)].concat());
        let (kind, text) = abort_in(&output).expect("a reason");
        assert_eq!(kind, PROTOCOL, "{text}");
    }
    assert_eq!(outside(&world), before);
}

#[test]
fn oversized_and_invalid_frames_are_refused_at_once() {
    let (world, before) = besieged();
    let huge = [0xff, 0xff, 0xff, 0x7f].to_vec();
    let packed = [1, 0, 0, 0x80, 0xff, 0xff, 0xff, 0x7f, 0].to_vec();
    let unknown = Wire::of(99).frame();
    let many = Wire::of(ANSWERS).number(1 << 40).frame();
    for (what, bytes) in
        [("huge", huge), ("packed", packed), ("unknown", unknown), ("many", many), ("empty", vec![0; 4])]
    {
        let run = Impostor::start(&world, [agent_hello(1), bytes.clone()].concat())
            .download(&world, "box/dst")
            .fails(12);
        assert!(run.stderr.contains("ksync: a "), "{what}: {}", run.stderr);
        let (kind, text) = offer_to_agent(&world, &bytes);
        assert_eq!(kind, PROTOCOL, "{what}: {text}");
        assert_eq!(outside(&world), before, "{what}");
    }
}

#[test]
fn another_version_and_a_noisy_shell_have_different_errors() {
    let (world, before) = besieged();
    let run = Impostor::start(&world, agent_hello(9)).download(&world, "box/dst").fails(2);
    assert!(run.stderr.contains("the other end speaks version 9 of the protocol, not 1"), "{}", run.stderr);
    let run = Impostor::start(&world, b"Welcome! ".repeat(20_000)).download(&world, "box/dst").fails(5);
    assert!(run.stderr.contains("among the output of its login shell: \"Welcome! "), "{}", run.stderr);
    assert_eq!(outside(&world), before);
}

#[test]
fn a_peers_text_cannot_steer_the_terminal() {
    let (world, _) = besieged();
    let abort = Wire::common(ABORT).raw(&[0]).bytes(b"\x1b[2J\x07\xe2\x80\xaegnp.exe").frame();
    let run = Impostor::start(&world, [agent_hello(1), abort].concat()).download(&world, "box/dst").fails(12);
    assert!(!run.stderr.contains(['\x1b', '\x07', '\u{202e}']), "{:?}", run.stderr);
    assert!(run.stderr.contains("ksync: the other side stopped: \\u{1b}[2J\\u{7}\\u{202e}gnp.exe\n"));
}
