//! ksync and the official CLI on the same VM.

use crate::first::assert_lets_in;
use crate::vm::{Image, Vm, on_vm};

const SERVICES: [&str; 2] = ["sshd", "websocat-ssh"];

fn host_key(vm: &Vm) -> String {
    vm.sh("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub").trim_end().to_owned()
}

/// Asserts that each service has one description.
#[track_caller]
fn assert_described_once(vm: &Vm) {
    let programs = vm.sh("cat /etc/supervisor/conf.d/services/* | grep -F '[program:' | sort");
    assert_eq!(programs, "[program:sshd]\n[program:websocat-ssh]\n");
}

#[test]
fn a_setup_by_the_official_cli_is_used_unchanged() {
    on_vm(Image::New, |vm| {
        let (theirs, ours) = (vm.make_key("theirs"), vm.make_key("ours"));
        vm.provision_officially(&theirs).ok();
        let (key, running) = (host_key(vm), SERVICES.map(|name| vm.service(name)));
        let ran = vm.provision(&ours).ok();
        assert_eq!(ran.told("host-key"), Some(key.as_str()));
        assert_eq!(SERVICES.map(|name| vm.service(name)), running);
        assert_described_once(vm);
        assert_eq!(vm.keys(), [theirs.as_str(), ours.as_str()]);

        // The official CLI's services exist and are stopped. ksync starts them, and does not
        // describe them again.
        vm.sh("supervisorctl stop sshd websocat-ssh");
        assert_eq!(vm.provision(&ours).ok().told("host-key"), Some(key.as_str()));
        assert_described_once(vm);
        for name in ["theirs", "ours"] {
            assert_lets_in(vm, name, &key);
        }
    });
}

#[test]
fn the_official_cli_accepts_a_setup_by_ksync() {
    on_vm(Image::New, |vm| {
        let (theirs, ours) = (vm.make_key("theirs"), vm.make_key("ours"));
        vm.provision(&ours).ok();
        let (key, running) = (host_key(vm), SERVICES.map(|name| vm.service(name)));
        vm.provision_officially(&theirs).ok();
        assert_eq!((host_key(vm), SERVICES.map(|name| vm.service(name))), (key.clone(), running));
        assert_described_once(vm);
        for name in ["theirs", "ours"] {
            assert_lets_in(vm, name, &key);
        }
    });
}
