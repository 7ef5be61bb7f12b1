//! A VM that has no websocat and cannot download it gets ksync's own bridge.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::first::assert_lets_in;
use crate::vm::{Image, Vm, on_vm};

const SERVICES: [&str; 2] = ["sshd", "websocat-ssh"];

/// Exit codes of the script: ksync must upload a bridge, and a bridge would be useless.
const NO_BRIDGE: i32 = 73;
const NO_SSHD: i32 = 74;

const LEFT: &str = "ls -d /usr/local/lib/ksync /etc/supervisor/conf.d/services/websocat-ssh.conf \
                    /usr/local/bin/websocat 2>/dev/null || true; supervisorctl status | grep -v ^sshd || true";

/// Sets a VM up as ksync does: first without a bridge, then with one. Returns its host key.
#[track_caller]
fn set_up(vm: &Vm, key: &str) -> String {
    assert_eq!(vm.provision(key).code, Some(NO_BRIDGE));
    let ran = vm.provision_with_bridge(key, ksync::bridge().sha256).ok();
    assert_eq!(ran.stderr, "");
    assert_eq!(ran.told("installed"), Some("ksync-bridge"));
    assert_eq!(ran.told("websocat"), Some(concat!("ksync-bridge ", env!("CARGO_PKG_VERSION"))));
    ran.told("host-key").expect("a host key").to_owned()
}

#[test]
fn ksyncs_bridge_serves_without_websocat_and_network() {
    on_vm(Image::NoWebsocat, |vm| {
        let key = vm.make_key("ksync");
        let host_key = set_up(vm, &key);
        assert_lets_in(vm, "ksync", &host_key);
        let process = vm.service("websocat-ssh");
        let user = vm.sh(&format!("stat -c %U /proc/{process}; cat /proc/{process}/comm"));
        assert_eq!(user, "nobody\nksync-bridge\n", "what everybody can talk to has no rights");
        let files = vm.sh("cd /usr/local/lib/ksync && stat -c '%a %U %n' . *");
        assert_eq!(files, "755 root .\n755 root ksync-bridge\n");

        // A second setup uploads nothing.
        let running = SERVICES.map(|name| vm.service(name));
        let ran = vm.provision(&key).ok();
        assert_eq!((ran.told("host-key"), ran.told("installed")), (Some(host_key.as_str()), None));
        // Nor does a setup after the services were stopped, as on a freshly started VM.
        assert_eq!(SERVICES.map(|name| vm.service(name)), running);
        vm.sh("supervisorctl stop sshd websocat-ssh");
        assert_eq!(vm.provision(&key).ok().told("installed"), None);
        // Nor does the script reinstall a bridge that is uploaded anyway.
        let again = vm.provision_with_bridge(&key, ksync::bridge().sha256).ok();
        assert_eq!(again.told("installed"), None);
        assert_lets_in(vm, "ksync", &host_key);
    });
}

#[test]
fn ksync_goes_through_its_own_bridge() {
    on_vm(Image::NoWebsocat, |vm| {
        let host_key = set_up(vm, &vm.make_key("ksync"));
        vm.world().tree("src").with_everything();
        let identity = vm.world().path("identity");
        fs::write(&identity, vm.sh("cat /tmp/ksync")).expect("a file");
        fs::set_permissions(&identity, Permissions::from_mode(0o600)).expect("a mode");
        let there = "ws://127.0.0.1:2222/root/there";
        let ksync = |source: &str, destination: &str| {
            let identity = identity.to_str().expect("a path");
            vm.ksync(&["--identity", identity, "--host-key", &host_key, source, destination]).ok()
        };
        ksync("src", there);
        ksync(there, "back");
        vm.world().assert_same("src", "back");
        assert!(ksync("src", there).stdout.starts_with("nothing to do"));
    });
}

#[test]
fn the_official_cli_coexists_with_the_bridge_until_its_cleanup() {
    on_vm(Image::NoWebsocat, |vm| {
        let (theirs, ours) = (vm.make_key("theirs"), vm.make_key("ksync"));
        let before = vm.sh(LEFT);
        let host_key = set_up(vm, &ours);
        let running = SERVICES.map(|name| vm.service(name));
        vm.provision_officially(&theirs).ok();
        assert_eq!(SERVICES.map(|name| vm.service(name)), running);
        for name in ["theirs", "ksync"] {
            assert_lets_in(vm, name, &host_key);
        }
        let process = vm.service("websocat-ssh");
        vm.clean_up(&[&ours]).ok();
        assert_eq!(vm.keys(), [theirs]);
        assert_eq!(vm.sh(LEFT), before);
        assert_eq!(vm.sh(&format!("ls -d /proc/{process} 2>/dev/null || true")), "");
        // Afterwards both clients can start again.
        set_up(vm, &ours);
    });
}

#[test]
fn a_cleanup_leaves_the_bridge_to_another_ksync() {
    on_vm(Image::NoWebsocat, |vm| {
        let (one, other) = (vm.make_key("ksync"), vm.make_key("other"));
        let other = other.replace(" other", " ksync");
        let host_key = set_up(vm, &one);
        vm.provision(&other).ok();
        vm.clean_up(&[&one]).ok();
        assert_lets_in(vm, "other", &host_key);
        vm.clean_up(&[&other]).ok();
        assert_eq!(vm.sh(LEFT), "");
    });
}

#[test]
fn a_later_websocat_of_the_official_cli_replaces_the_bridge() {
    on_vm(Image::NoWebsocat, |vm| {
        let ours = vm.make_key("ksync");
        let host_key = set_up(vm, &ours);
        // The network is back, and the services are stopped.
        vm.sh("supervisorctl stop sshd websocat-ssh; cp /opt/client/websocat-of-a-client /usr/local/bin/websocat");
        let theirs = vm.make_key("theirs");
        vm.provision_officially(&theirs).ok();
        assert_lets_in(vm, "theirs", &host_key);
        vm.clean_up(&[&ours]).ok();
        assert_eq!(vm.sh("cat /proc/$(supervisorctl pid websocat-ssh)/comm"), "websocat\n");
        assert_lets_in(vm, "theirs", &host_key);
        assert_eq!(vm.sh("ls /usr/local/lib | grep ksync || true"), "");
    });
}

#[test]
fn a_broken_websocat_is_left_alone_and_not_used() {
    on_vm(Image::NoWebsocat, |vm| {
        vm.sh("echo 'no program' >/usr/local/bin/websocat && printf '\\177ELF' >/usr/local/bin/websocat && \
               chmod 755 /usr/local/bin/websocat");
        let ran = vm.provision("ssh-ed25519 AAAA one");
        assert_eq!(ran.code, Some(NO_BRIDGE));
        let (_, last) = ran.stderr.rsplit_once("== ").expect("a step");
        assert!(last.starts_with("run websocat\n") && last.contains("cannot execute binary file"), "{last}");
        let host_key = set_up(vm, &vm.make_key("ksync"));
        assert_lets_in(vm, "ksync", &host_key);
        assert_eq!(vm.sh("stat -c %s /usr/local/bin/websocat"), "4\n");
    });
}

#[test]
fn a_bridge_with_a_wrong_hash_is_not_run() {
    on_vm(Image::NoWebsocat, |vm| {
        let ran = vm.provision_with_bridge("ssh-ed25519 AAAA one", &"0".repeat(64));
        assert_eq!(ran.code, Some(1));
        let (_, last) = ran.stderr.rsplit_once("== ").expect("a step");
        assert!(last.starts_with("install the bridge of ksync\n") && last.contains("FAILED"), "{last}");
        assert_eq!(vm.sh("ls /usr/local/lib/ksync"), "");
    });
}

#[test]
fn an_occupied_port_is_reported_by_the_bridge() {
    on_vm(Image::NoWebsocat, |vm| {
        vm.sh("setsid /opt/client/websocat-of-a-client -E ws-l:0.0.0.0:2222 mirror: </dev/null >/dev/null 2>&1 &");
        let ran = vm.provision_with_bridge("ssh-ed25519 AAAA one", ksync::bridge().sha256);
        assert_eq!(ran.code, Some(1));
        let (_, last) = ran.stderr.rsplit_once("== ").expect("a step");
        let said = "ksync-bridge: cannot listen on 0.0.0.0:2222: Address already in use";
        assert!(last.starts_with("start sshd and its bridge\n") && last.contains(said), "{last}");
    });
}

#[test]
fn a_vm_without_sshd_and_network_gets_no_bridge() {
    on_vm(Image::Bare, |vm| {
        let ran = vm.provision("ssh-ed25519 AAAA one");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(NO_SSHD), ""), "{}", ran.stderr);
        let (_, last) = ran.stderr.rsplit_once("== ").expect("a step");
        assert!(last.starts_with("install openssh-server\n"), "{last}");
        assert_eq!(vm.sh(LEFT), "");
    });
}

#[test]
fn an_unanswered_download_fails_soon() {
    on_vm(Image::NoWebsocat, |vm| {
        // A name server that receives questions and never answers, as behind a firewall that drops
        // everything.
        let silent = "IO::Socket::INET->new(LocalAddr => q(127.0.0.1:53), Proto => q(udp)) or die; print qq(up\\n); \
                      close STDOUT; sleep 1000";
        vm.sh(&format!(
            "echo nameserver 127.0.0.1 >/etc/resolv.conf; mkfifo /tmp/up; \
             setsid perl -MIO::Socket::INET -e '$s = {silent}' >/tmp/up 2>/dev/null </dev/null & read -r up </tmp/up"
        ));
        let ran = vm.provision("ssh-ed25519 AAAA one");
        assert_eq!(ran.code, Some(NO_BRIDGE), "{}", ran.stderr);
        assert!(ran.stderr.contains("curl: (28) "), "{}", ran.stderr);
        assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
    });
}
