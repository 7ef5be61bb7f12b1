//! First setup of a VM, and repeated setups.

use std::time::Duration;

use crate::vm::{Image, Vm, on_vm};

const SERVICES: [&str; 2] = ["sshd", "websocat-ssh"];

const SSHD_CONFIG: &str = "GatewayPorts yes\nTCPKeepAlive yes\nPermitRootLogin prohibit-password\n\
                           PasswordAuthentication no\nPubkeyAuthentication yes\n";

/// Asserts that a key logs in as root, to the host with the key that the script reported.
#[track_caller]
pub(crate) fn assert_lets_in(vm: &Vm, name: &str, host_key: &str) {
    assert_eq!(vm.log_in(name, host_key, "id -un").ok().stdout, "root\n");
}

#[test]
fn a_new_image_is_set_up_and_lets_the_key_in_through_the_bridge() {
    on_vm(Image::New, |vm| {
        assert_eq!(vm.sh("ls /etc/ssh/ssh_host_* /root/.ssh 2>/dev/null || true"), "");
        let key = vm.make_key("one");
        let ran = vm.provision(&key).ok();
        assert_eq!(ran.stderr, "");
        let host_key = ran.told("host-key").expect("a host key");
        assert!(host_key.starts_with("ssh-ed25519 AAAA") && host_key.split(' ').count() == 2, "{host_key}");
        assert!(ran.told("sshd").expect("a version").starts_with("OpenSSH_"), "{}", ran.stdout);
        assert!(ran.told("websocat").expect("a version").starts_with("websocat 1."), "{}", ran.stdout);
        assert_eq!(ran.told("installed"), None);
        for name in SERVICES {
            vm.service(name);
        }
        assert_lets_in(vm, "one", host_key);
        // Another key is not accepted.
        vm.make_key("other");
        assert_eq!(vm.log_in("other", host_key, "true").code, Some(255));

        assert_eq!(vm.sh("cat /etc/ssh/sshd_config.d/kernel.conf"), SSHD_CONFIG);
        let modes =
            vm.sh("stat -c '%a %U %n' /root/.ssh /root/.ssh/authorized_keys /etc/ssh/ssh_host_ed25519_key");
        let expected = "700 root /root/.ssh\n600 root /root/.ssh/authorized_keys\n\
                        600 root /etc/ssh/ssh_host_ed25519_key\n";
        assert_eq!(modes, expected);
        let services = vm.sh("cd /etc/supervisor/conf.d/services && head -n 4 -- *");
        let expected = "==> sshd.conf <==\n[program:sshd]\ncommand=/usr/sbin/sshd -D -e\nautostart=false\n\
                        autorestart=true\n\n==> websocat-ssh.conf <==\n[program:websocat-ssh]\n\
                        command=/usr/local/bin/websocat --binary ws-l:0.0.0.0:2222 tcp:127.0.0.1:22\n\
                        autostart=false\nautorestart=true\n";
        assert_eq!(services, expected);
        assert_eq!(vm.keys(), [key]);
        assert_eq!(vm.sh("ls /tmp"), "known_hosts\none\none.pub\nother\nother.pub\n");
    });
}

#[test]
fn a_second_setup_changes_nothing_and_adds_another_key() {
    on_vm(Image::New, |vm| {
        let (one, two) = (vm.make_key("one"), vm.make_key("two"));
        let first = vm.provision(&one).ok();
        let look = "stat -c '%n %i %y %a' /root/.ssh/* /etc/ssh/* /etc/ssh/sshd_config.d/* \
                    /etc/supervisor/conf.d/services/* /usr/local/bin/websocat";
        let (files, running) = (vm.sh(look), SERVICES.map(|name| vm.service(name)));
        let second = vm.provision(&one).ok();
        assert_eq!((second.stdout.as_str(), second.stderr.as_str()), (first.stdout.as_str(), ""));
        assert_eq!((vm.sh(look), SERVICES.map(|name| vm.service(name))), (files, running));
        assert_eq!(vm.keys(), [one.as_str()]);

        // Another user has written a line without its end.
        vm.sh("printf '# a note' >>/root/.ssh/authorized_keys");
        let third = vm.provision(&two).ok();
        assert_eq!(vm.keys(), [one.as_str(), "# a note", two.as_str()]);
        assert_eq!(SERVICES.map(|name| vm.service(name)), running);
        for name in ["one", "two"] {
            assert_lets_in(vm, name, third.told("host-key").expect("a host key"));
        }
    });
}

#[test]
fn an_old_image_gets_sshd_installed() {
    on_vm(Image::Old, |vm| {
        assert_ne!(vm.run(&["bash", "-c", "command -v sshd"]).code, Some(0));
        let ran = vm.provision(&vm.make_key("one")).ok();
        assert_eq!(ran.told("installed"), Some("openssh-server"));
        assert_eq!(vm.sh("dpkg-query -W -f '${db:Status-Status}' openssh-server"), "installed");
        assert_eq!(SERVICES.map(|name| vm.starts_of(name)), [1, 1]);
        assert_lets_in(vm, "one", ran.told("host-key").expect("a host key"));
    });
}

#[test]
fn two_setups_at_once_both_succeed() {
    on_vm(Image::New, |vm| {
        let (one, two) = (vm.make_key("one"), vm.make_key("two"));
        let ran = vm.provision_at_once(&[&one, &two]);
        let told: Vec<_> = ran.into_iter().map(|ran| ran.ok().stdout).collect();
        assert_eq!(told[0], told[1]);
        let mut keys = vm.keys();
        keys.sort();
        let mut expected = [one, two];
        expected.sort();
        assert_eq!(keys, expected);
        assert_eq!(SERVICES.map(|name| vm.starts_of(name)), [1, 1]);
        let host_key = told[0].lines().find_map(|line| line.strip_prefix("KSYNC host-key ")).unwrap();
        for name in ["one", "two"] {
            assert_lets_in(vm, name, host_key);
        }
    });
}

#[test]
fn started_services_hold_neither_the_output_nor_the_lock() {
    on_vm(Image::New, |vm| {
        // `provision` waits for the end of the output, so a service that held the output would hang
        // the test.
        let ran = vm.provision(&vm.make_key("one")).ok();
        assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
        for process in SERVICES.map(|name| vm.service(name)) {
            let open = vm.sh(&format!("readlink /proc/{process}/fd/*"));
            assert!(!open.contains("ksync-provision.lock"), "{open}");
        }
        vm.sh("flock -n /run/ksync-provision.lock true");
    });
}
