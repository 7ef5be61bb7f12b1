//! `ksync` with the platform's API, and the machine behind it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::platform::{Platform, SESSION};
use crate::vm::{Image, on_vm};
use crate::world::link::Conditions;

/// Round trips of the first sync to a new VM: TCP 1, WebSocket 1, key exchange 1, and the login
/// with the command 1. The VM answers that it has no agent. The agent's upload and its secret take
/// 2.
const ROUND_TRIPS: usize = 6;

/// Round trips that the fast order saves: 1 of the key exchange, 3 of the login and 1 of the
/// channel.
const SAVED: usize = 5;

#[test]
fn a_session_is_set_up_and_the_doctor_names_its_bridge() {
    on_vm(Image::New, |vm| {
        let platform = Platform::start(vm);
        let said = platform.ksync(&["session", "setup", SESSION]).ok();
        let is_named = |said: &str| said.contains("bridge websocat 1.") && said.contains(" with TCP_NODELAY");
        assert!(is_named(&said.stderr) && said.stderr.contains("; installed: nothing"), "{}", said.stderr);
        let told = platform.ksync(&["doctor", SESSION]).stdout;
        assert!(told.contains("  VM: sshd OpenSSH_") && is_named(&told), "{told}");
        vm.world().tree("src").with_everything();
        let there = format!("{SESSION}:/root/there");
        platform.ksync(&["--no-keep-alive", "src", &there]).ok();
        platform.ksync(&["--no-keep-alive", &there, "back"]).ok();
        vm.world().assert_same("src", "back");
        // Another setup leaves what connections have shown, such as the agent.
        let facts = || fs::read_to_string(vm.world().path("state/ksync/facts")).expect("facts");
        let before = facts();
        platform.ksync(&["session", "setup", SESSION]).ok();
        assert_eq!(facts(), before);
    });
}

#[test]
fn the_doctor_names_ksyncs_bridge_on_a_vm_that_had_none() {
    on_vm(Image::NoWebsocat, |vm| {
        let platform = Platform::start(vm);
        let bridge = concat!("bridge ksync-bridge ", env!("CARGO_PKG_VERSION"), " with TCP_NODELAY");
        let said = platform.ksync(&["session", "setup", SESSION]).ok();
        assert!(said.stderr.contains(&format!("{bridge}; installed: ksync-bridge")), "{}", said.stderr);
        let told = platform.ksync(&["doctor", SESSION]).stdout;
        assert!(told.contains(bridge), "{told}");
    });
}

#[test]
fn the_first_connection_to_a_new_vm_is_made_in_the_fast_order() {
    on_vm(Image::New, |vm| {
        let platform = Platform::start(vm);
        platform.link.set(Conditions { round_trip: Duration::from_millis(300), ..Conditions::default() });
        vm.world().tree("src").file("a", "b");
        let sync = || {
            platform.link.reset();
            let there = format!("{SESSION}:/root/there");
            platform.ksync(&["--no-keep-alive", "src", &there]).ok();
            assert_eq!((vm.sh("cat /root/there/a").as_str(), platform.link.carried().connections), ("b", 1));
            platform.link.round_trips()
        };
        let fast = sync();
        // Neither side remembers anything. A directory in place of the facts keeps it so.
        vm.sh("rm -rf /root/.cache/ksync /root/.local/state/ksync /root/there");
        let state = vm.world().path("state/ksync");
        fs::remove_dir_all(&state).expect("the state");
        fs::create_dir_all(state.join("facts")).expect("a directory");
        fs::set_permissions(&state, Permissions::from_mode(0o700)).expect("a mode");
        let in_order = sync();
        assert!(fast <= ROUND_TRIPS && in_order >= fast + SAVED, "{fast} and {in_order} round trips");
    });
}
