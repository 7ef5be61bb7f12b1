//! Failed installations, and the diagnosis of a VM.

use std::time::Duration;

use crate::vm::{Image, Ran, Vm, on_vm};

/// Asserts that the download of websocat failed for this reason, and left nothing behind.
#[track_caller]
fn assert_no_websocat(vm: &Vm, ran: &Ran, reason: &str) {
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(73), ""), "{}", ran.stderr);
    let (_, last) = ran.stderr.rsplit_once("== ").expect("a step");
    assert!(last.starts_with("download websocat\n") && last.contains(reason), "{}", ran.stderr);
    assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
    assert_eq!(vm.sh("ls /usr/local/bin | grep websocat || true; ls /tmp | grep '^tmp' || true"), "");
}

#[test]
fn a_missing_websocat_without_network_is_reported_soon() {
    on_vm(Image::NoWebsocat, |vm| {
        let ran = vm.provision("ssh-ed25519 AAAA one");
        assert_no_websocat(vm, &ran, "curl: (6) Could not resolve host");
    });
}

#[test]
fn a_broken_download_leaves_nothing_and_can_be_repeated() {
    on_vm(Image::NoWebsocat, |vm| {
        // A curl that writes the beginning of its output file, and fails.
        vm.sh("printf '%s\\n' '#!/bin/bash' 'while [ \"$1\" != -o ]; do shift; done; echo half >\"$2\"' \
             'echo \"curl: (18) half of it is missing\" >&2; exit 18' >/usr/local/bin/curl && \
             chmod 755 /usr/local/bin/curl");
        let ran = vm.provision("ssh-ed25519 AAAA one");
        assert_no_websocat(vm, &ran, "curl: (18)");
        // A curl that writes a program that claims to be websocat, and waits.
        vm.sh(
            "printf '%s\\n' '#!/bin/bash' 'echo websocat 1.13.0; [ \"$1\" = --version ] || exec sleep 1000' \
             >/tmp/fake && sed -i 's/^while.*/while [ \"$1\" != -o ]; do shift; done; cp \\/tmp\\/fake \"$2\"; exit/' \
             /usr/local/bin/curl",
        );
        let ran = vm.provision("ssh-ed25519 AAAA one").ok();
        assert_eq!(ran.told("installed"), Some("websocat"));
        assert_eq!(ran.told("websocat"), Some("websocat 1.13.0"));
        assert_eq!(vm.sh("stat -c %a /usr/local/bin/websocat*"), "755\n");
    });
}

#[test]
fn the_diagnosis_reports_services_and_the_answer_on_the_port() {
    on_vm(Image::New, |vm| {
        assert_eq!(
            vm.diagnose(),
            "KSYNC sshd ERROR (no such process)\nKSYNC bridge ERROR (no such process)\nKSYNC root \nKSYNC answer \n"
        );
        vm.provision(&vm.make_key("one")).ok();
        let told = vm.diagnose();
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].starts_with("KSYNC sshd RUNNING pid "), "{told}");
        assert!(lines[1].starts_with("KSYNC bridge RUNNING pid "), "{told}");
        // Older versions of sshd print the older word.
        assert!(matches!(lines[2], "KSYNC root prohibit-password" | "KSYNC root without-password"), "{told}");
        assert_eq!(lines[3..], ["KSYNC answer HTTP/1.1 101 Switching Protocols"]);
        vm.sh("supervisorctl stop websocat-ssh");
        assert!(vm.diagnose().contains("\nKSYNC bridge STOPPED "), "{}", vm.diagnose());
        assert!(vm.diagnose().ends_with("\nKSYNC answer \n"), "{}", vm.diagnose());
    });
}

#[test]
fn the_diagnosis_reports_an_sshd_that_refuses_root() {
    on_vm(Image::New, |vm| {
        let host_key = vm.provision(&vm.make_key("one")).ok().told("host-key").expect("a key").to_owned();
        vm.sh("echo 'PermitRootLogin no' >/etc/ssh/sshd_config.d/a.conf; supervisorctl restart sshd");
        let refused = vm.log_in("one", &host_key, "true");
        assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
        assert!(vm.diagnose().contains("\nKSYNC root no\n"), "{}", vm.diagnose());
        // A later setup does not overrule it, so the diagnosis is all that helps.
        vm.provision(&vm.make_key("two")).ok();
        assert!(vm.diagnose().contains("\nKSYNC root no\n"), "{}", vm.diagnose());
    });
}
