//! websocat's connections with TCP_NODELAY, which a setup sets on its listener.

use crate::first::assert_lets_in;
use crate::vm::{Image, Vm, on_vm};
use crate::world::wait_for;

/// Prints TCP_NODELAY of the listener and of each connection on the bridge's port: `listen=1`.
const LOOK: &str = r#"
chomp(my $bridge = `supervisorctl pid websocat-ssh`);
my $handle = syscall 434, $bridge + 0, 0;
for my $link (glob "/proc/$bridge/fd/*") {
  next if readlink($link) !~ /^socket:/;
  my ($number) = $link =~ /(\d+)$/;
  open my $socket, "+<&=", syscall(438, $handle, $number + 0, 0) or die;
  my $address = getsockname $socket or next;
  next if unpack("x2n", $address) != 2222;
  my $name = unpack("i", getsockopt $socket, 1, 30) ? "listen" : "accepted";
  print "$name=", unpack("i", getsockopt $socket, 6, 1) ? 1 : 0, "\n";
}
"#;

/// TCP_NODELAY of the bridge's listener and of the connection through it that asks.
#[track_caller]
fn look(vm: &Vm, name: &str, host_key: &str) -> Vec<String> {
    vm.sh(&format!("cat >/tmp/look.pl <<'END'\n{LOOK}\nEND"));
    let ran = vm.log_in(name, host_key, "perl /tmp/look.pl").ok();
    let mut seen: Vec<_> = ran.stdout.lines().map(str::to_owned).collect();
    seen.sort();
    seen
}

const SET: [&str; 2] = ["accepted=1", "listen=1"];
const UNSET: [&str; 2] = ["accepted=0", "listen=0"];

#[test]
fn connections_through_websocat_have_tcp_nodelay() {
    on_vm(Image::New, |vm| {
        let ran = vm.provision(&vm.make_key("one")).ok();
        assert_eq!(ran.told("nodelay"), Some("yes"));
        assert!(ran.told("websocat").expect("a version").starts_with("websocat 1."), "{}", ran.stdout);
        assert_eq!(look(vm, "one", ran.told("host-key").expect("a host key")), SET);
    });
}

#[test]
fn a_setup_sets_nodelay_for_the_official_cli_and_cuts_no_connection() {
    on_vm(Image::New, |vm| {
        let (theirs, ours) = (vm.make_key("theirs"), vm.make_key("ours"));
        vm.provision_officially(&theirs).ok();
        let host_key = vm.sh("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub").trim_end().to_owned();
        assert_eq!(look(vm, "theirs", &host_key), UNSET);
        let process = vm.service("websocat-ssh");

        // A user of the official CLI is connected meanwhile, and types before and after the setup.
        vm.sh("mkfifo /tmp/typed; sleep 1000 >/tmp/typed </dev/null 2>&1 & \
               setsid ssh -F /dev/null -i /tmp/theirs -o IdentitiesOnly=yes -o UserKnownHostsFile=/tmp/known_hosts \
               -o 'ProxyCommand=/opt/client/websocat-of-a-client --binary ws://127.0.0.1:2222' root@localhost cat \
               </tmp/typed >/tmp/shown 2>/dev/null & echo before >/tmp/typed");
        let shown =
            |lines: &str| wait_for("their output", || (vm.sh("cat /tmp/shown") == lines).then_some(()));
        shown("before\n");
        let ran = vm.provision(&ours).ok();
        assert_eq!((ran.told("nodelay"), ran.told("host-key")), (Some("yes"), Some(host_key.as_str())));
        vm.sh("echo after >/tmp/typed");
        shown("before\nafter\n");
        assert_eq!(vm.service("websocat-ssh"), process);
        // The connection from before was accepted without the option.
        let expected = ["accepted=0", "accepted=1", "listen=1"];
        for name in ["theirs", "ours"] {
            assert_eq!(look(vm, name, &host_key), expected, "{name}");
        }
    });
}

#[test]
fn a_bridge_that_was_killed_comes_back_and_gets_nodelay_again() {
    on_vm(Image::New, |vm| {
        let key = vm.make_key("one");
        let host_key = vm.provision(&key).ok().told("host-key").expect("a host key").to_owned();
        let killed = vm.service("websocat-ssh");
        vm.sh(&format!("kill -9 {killed}"));
        wait_for("another bridge", || {
            let status = vm.run(&["supervisorctl", "status", "websocat-ssh"]).stdout;
            (status.contains("RUNNING") && !status.contains(&format!("pid {killed},"))).then_some(())
        });
        assert_eq!(look(vm, "one", &host_key), UNSET);
        assert_eq!(vm.provision(&key).ok().told("nodelay"), Some("yes"));
        assert_eq!(look(vm, "one", &host_key), SET);
    });
}

#[test]
fn a_vm_without_perl_is_set_up_and_tells_that_nodelay_is_missing() {
    on_vm(Image::New, |vm| {
        vm.sh("rm /usr/bin/perl");
        let ran = vm.provision(&vm.make_key("one")).ok();
        assert_eq!((ran.told("nodelay"), ran.stderr.as_str()), (Some("no"), ""));
        assert!(ran.told("websocat").expect("a version").starts_with("websocat 1."), "{}", ran.stdout);
        assert_lets_in(vm, "one", ran.told("host-key").expect("a host key"));
    });
}

#[test]
fn the_bridge_that_runs_is_named_and_not_one_that_lies_there() {
    on_vm(Image::NoWebsocat, |vm| {
        let key = vm.make_key("ksync");
        vm.provision_with_bridge(&key, ksync::bridge().sha256).ok();
        vm.sh("cp /opt/client/websocat-of-a-client /usr/local/bin/websocat");
        let ran = vm.provision(&key).ok();
        assert_eq!(ran.told("websocat"), Some(concat!("ksync-bridge ", env!("CARGO_PKG_VERSION"))));
        assert_eq!(ran.told("nodelay"), Some("yes"));
    });
}

#[test]
fn what_a_client_would_learn_from_sshd_is_told() {
    on_vm(Image::New, |vm| {
        let key = vm.make_key("one");
        let ran = vm.provision(&key).ok();
        let id = ran.told("server-id").expect("an id");
        assert_eq!(format!("{id}\r\n"), vm.sh("exec 3<>/dev/tcp/127.0.0.1/22; head -n 1 <&3"));
        let all = ran.told("key-exchanges").expect("names");
        assert!(all.split(',').any(|name| name == "curve25519-sha256"), "{all}");
        vm.sh("echo 'KexAlgorithms ecdh-sha2-nistp256' >/etc/ssh/sshd_config.d/a.conf; supervisorctl restart sshd");
        assert_eq!(vm.provision(&key).ok().told("key-exchanges"), Some("ecdh-sha2-nistp256"));
        // A setting for some users only does not hide the others.
        vm.sh("printf 'Match User kernel\\nX11Forwarding no\\n' >/etc/ssh/sshd_config.d/b.conf");
        assert_eq!(vm.provision(&key).ok().told("key-exchanges"), Some("ecdh-sha2-nistp256"));
    });
}
