//! A VM that is set up, but whose port is unreachable or answered by another program.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::World;

const TO_DO: &str = "hint: Something on the way lets no connection through to port 2222: look at the firewall and the VPN \
                     on this side, or try another network; HTTPS_PROXY names a proxy if the network needs one; ksync doctor ID tries each \
                     step.";

const TO_DO_OTHERWISE: &str = "hint: Something on the way answers in the VM's place: look at the proxy and the firewall on \
                               this side, or try another network; ksync doctor ID tries each step.";

/// Runs a sync that cannot get in. Returns its exit code and stderr, with the session's id and its
/// VM's address replaced by words.
fn fail(platform: &Platform, world: &World, id: &str, options: &[&str]) -> (i32, String) {
    let there = endpoint(world, id, "there");
    let run = platform.run(world, &[options, &["-q", "src", &there]].concat());
    let session = platform.session(id);
    let address = session["ssh_address"].as_str().expect("an address");
    (run.status.code().unwrap_or(-1), run.stderr.replace(id, "ID").replace(address, "VM:2222"))
}

fn start() -> (World, Platform, String) {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    (world, platform, id)
}

#[test]
fn a_refused_port_is_reported_with_the_diagnosis_of_the_vm() {
    let (world, platform, id) = start();
    platform.ask("DELETE", &format!("/_sandbox/sessions/{id}/port"), &Value::Null);
    platform.calls();
    let (code, said) = fail(&platform, &world, &id, &[]);
    let expected = format!(
        "ksync: could not get into the VM of the session ID, which says that sshd and its bridge run: could not connect \
         to wss://VM:2222: connection refused\n  {TO_DO}\n"
    );
    assert_eq!((code, said.as_str()), (10, expected.as_str()));
    let calls = platform.calls();
    assert_eq!((&calls["get"], &calls["exec"]), (&json!(1), &json!(2)), "set up, and asked");
}

#[test]
fn a_silent_port_is_reported_after_the_timeout() {
    let (world, platform, id) = start();
    platform.fault(json!({ "call": "bridge", "delay_ms": 600_000, "times": 9 }));
    let (code, said) = fail(&platform, &world, &id, &["--contimeout", "1"]);
    let expected = format!(
        "ksync: could not get into the VM of the session ID, which says that sshd and its bridge run: could not make a \
         TLS connection to wss://VM:2222: no answer within 1 s\n  {TO_DO}\n"
    );
    assert_eq!((code, said.as_str()), (35, expected.as_str()));
}

#[test]
fn an_http_answer_on_the_port_is_reported() {
    let (world, platform, id) = start();
    platform.fault(json!({ "call": "bridge", "status": 403, "times": 9 }));
    let (code, said) = fail(&platform, &world, &id, &[]);
    let expected = format!(
        "ksync: could not get into the VM of the session ID, which says that sshd and its bridge run: could not open a \
         WebSocket to wss://VM:2222: it answered 403 Forbidden\n  {TO_DO_OTHERWISE}\n"
    );
    assert_eq!((code, said.as_str()), (10, expected.as_str()));
}

#[test]
fn a_stopped_service_on_the_vm_is_reported() {
    let (world, platform, id) = start();
    platform.ask("DELETE", &format!("/_sandbox/sessions/{id}/port"), &Value::Null);
    // The service runs during the setup, but not during the diagnosis.
    supervise(
        &platform,
        &id,
        "if [ $1 = status ]; then [ ! -e $state/seen ] && echo $2 RUNNING || echo $2 BACKOFF Exited too quickly; fi\n\
         [ $2 != websocat-ssh ] || touch $state/seen",
    );
    let (code, said) = fail(&platform, &world, &id, &[]);
    let expected = "ksync: could not get into the VM of the session ID, which says that sshd does not run (BACKOFF Exited \
                    too quickly): could not connect to wss://VM:2222: connection refused\n  hint: Run \
                    ksync session setup ID, which starts what is missing there; if that is no help, take a new \
                    session.\n";
    assert_eq!((code, said.as_str()), (10, expected));
}

#[test]
fn a_failed_diagnosis_does_not_hide_the_error() {
    let (world, platform, id) = start();
    platform.ask("DELETE", &format!("/_sandbox/sessions/{id}/port"), &Value::Null);
    let headers = json!({ "retry-after-ms": "10" });
    platform.fault(json!({ "call": "exec", "status": 500, "skip": 1, "times": 9, "headers": headers }));
    let (code, said) = fail(&platform, &world, &id, &[]);
    let expected = format!(
        "ksync: could not get into the VM of the session ID, which could not be asked what runs there: could not connect \
         to wss://VM:2222: connection refused\n  {TO_DO}\n"
    );
    assert_eq!((code, said.as_str()), (10, expected.as_str()));
}

/// Installs a `supervisorctl` with this text in the emulated VMs, and a websocat that does not run.
fn supervise(platform: &Platform, id: &str, text: &str) {
    // The first command creates the directory of programs.
    platform.ask("POST", &format!("/browsers/{id}/process/exec"), &json!({ "command": "true" }));
    let programs = platform.root(id).parent().expect("a platform").join("bin");
    let state = platform.root(id);
    let program = format!("#!/bin/bash\nstate={}\n{text}\nexit 0\n", state.display());
    for (name, program) in [("supervisorctl", program.as_str()), ("websocat", "#!/bin/bash\nexit 1\n")] {
        // Write it under another name first, because a program open for writing cannot run.
        fs::write(programs.join("new"), program).expect("a program");
        fs::set_permissions(programs.join("new"), fs::Permissions::from_mode(0o755)).expect("a mode");
        fs::rename(programs.join("new"), programs.join(name)).expect("a name");
    }
}

#[test]
fn a_vm_without_a_working_websocat_gets_a_bridge_once() {
    let (world, platform, id) = start();
    let root = platform.root(&id);
    // Otherwise the script would make host keys for the machine that runs the tests.
    fs::write(root.join("etc/ssh/ssh_host_ed25519_key"), "there is one").expect("a file");
    supervise(
        &platform,
        &id,
        "case $1 in start) touch $state/$2 ;; status) [ ! -e $state/$2 ] || echo $2 RUNNING ;; update) rm -f $state/$2 ;; esac",
    );
    platform.calls();
    let run = platform.run(&world, &["session", "setup", &id]).ok();
    let bridge = concat!("bridge ksync-bridge ", env!("CARGO_PKG_VERSION"), "; installed: ksync-bridge");
    assert!(run.stderr.contains(bridge), "{}", run.stderr);
    assert!(run.stderr.contains("bringing a bridge: the VM has no websocat"), "{}", run.stderr);
    let calls = platform.calls();
    assert_eq!((&calls["get"], &calls["exec"], &calls["write_file"]), (&json!(1), &json!(2), &json!(1)));

    let own = root.join("usr/local/lib/ksync");
    let names: Vec<_> =
        fs::read_dir(&own).expect("ours").map(|entry| entry.expect("a name").file_name()).collect();
    assert_eq!(names, ["ksync-bridge"], "what was sent is packed no more");
    let mut unpacked = Vec::new();
    let mut packed = flate2::read::GzDecoder::new(ksync::bridge().gzip);
    std::io::Read::read_to_end(&mut packed, &mut unpacked).expect("gzip");
    assert!(fs::read(own.join("ksync-bridge")).expect("the bridge") == unpacked);
    let service = root.join("etc/supervisor/conf.d/services/websocat-ssh.conf");
    let expected = format!("command={}/ksync-bridge 0.0.0.0:2222 127.0.0.1:22", own.display());
    assert!(fs::read_to_string(&service).expect("a service").contains(&expected));

    platform.run(&world, &["session", "setup", &id]).ok();
    let calls = platform.calls();
    assert_eq!((&calls["exec"], &calls["write_file"]), (&json!(1), &Value::Null));
    platform.run(&world, &["session", "cleanup", &id]).ok();
    assert!(!own.exists() && !service.exists() && !root.join("websocat-ssh").exists());
}

#[test]
fn a_failed_upload_of_the_bridge_is_reported() {
    let (world, platform, id) = start();
    fs::write(platform.root(&id).join("etc/ssh/ssh_host_ed25519_key"), "there is one").expect("a file");
    supervise(&platform, &id, "");
    fs::write(platform.root(&id).join("usr"), "no directory").expect("a file");
    let (code, said) = fail(&platform, &world, &id, &[]);
    let (begin, end) = said.split_once("/usr/local/lib/ksync/").expect("a path");
    let expected = "ksync: could not bring a bridge to the VM, which has no websocat that runs and could not download one: \
                    could not write \"";
    assert_eq!((code, begin), (42, expected), "{said}");
    // The answer is visible only by chance: the connection ends while the bridge is still being
    // sent.
    let expected = "\n  hint: Run the same command again; ksync doctor SESSION tells which step fails.\n";
    assert!(end.contains(".gz\" in the session \"ID\": "), "{said}");
    assert!(end.ends_with(expected), "{said}");
}

#[test]
fn a_vm_with_neither_sshd_nor_network_is_reported() {
    let (world, platform, id) = start();
    supervise(&platform, &id, "");
    let programs = platform.root(&id).parent().expect("a platform").join("bin");
    // This flock reports that both are missing, whatever this machine has.
    let flock = "#!/bin/bash\necho '== install openssh-server' >&2\n\
                 echo \"W: Failed to fetch x  Temporary failure resolving 'x'\" >&2\nexit 74\n";
    fs::write(programs.join("new"), flock).expect("a program");
    fs::set_permissions(programs.join("new"), fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::rename(programs.join("new"), programs.join("flock")).expect("a name");
    let (code, said) = fail(&platform, &world, &id, &[]);
    let expected = "ksync: the VM has neither sshd nor a network to install it from: W: Failed to fetch x  Temporary failure \
                    resolving 'x'\n  hint: Take an image with openssh-server, which newer ones have, or let the VM reach \
                    its package servers.\n";
    assert_eq!((code, said.as_str()), (42, expected));
    assert_eq!(platform.calls()["write_file"], Value::Null, "nothing is brought where it is of no use");
}
