//! `ksync` with the platform's API, and the machine behind it.

use std::time::Duration;

use crate::platform::{Platform, SESSION};
use crate::vm::{Image, on_vm};
use crate::world::link::Conditions;

/// TCP 1, WebSocket 1, key exchange 1, and login, channel and command 1. The answer is that there is
/// no agent; its upload and its own answer take 1.
const ROUND_TRIPS: usize = 5;

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
        platform.ksync(&["--no-keep-alive", "src", &format!("{SESSION}:/root/there")]).ok();
        assert_eq!(vm.sh("cat /root/there/a"), "b");
        let (round_trips, carried) = (platform.link.round_trips(), platform.link.carried());
        assert_eq!(carried.connections, 1);
        assert!(round_trips <= ROUND_TRIPS, "{round_trips} round trips, {carried:?}");
    });
}
