//! Logins, and trust in host keys.

use crate::machine::Machine;
use crate::tls::Tls;
use crate::world::service::{closed_port, make_key};

/// A machine with a source tree, and with nothing written on it.
fn machine() -> Option<Machine> {
    let machine = Machine::start()?;
    machine.world.tree("src").file("a", "text");
    Some(machine)
}

#[track_caller]
fn assert_nothing_written(machine: &Machine) {
    assert!(!machine.world.path("dst").exists());
    // Not even the agent was installed.
    assert_eq!(std::fs::read_dir(machine.world.path("machine/home")).unwrap().count(), 0);
}

#[test]
fn a_changed_host_key_is_refused_and_nothing_written() {
    let Some(machine) = machine() else { return };
    machine.distrust();
    let run = machine.run(["src", &machine.ssh("dst")]).fails(43);
    let known_hosts = machine.world.path("home/.ssh/known_hosts");
    assert!(run.stderr.contains("its key has changed: it shows ssh-ed25519 SHA256:"), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("{}:1 has another", known_hosts.display())), "{}", run.stderr);
    assert_nothing_written(&machine);
}

#[test]
fn an_unknown_host_is_refused_and_not_learnt() {
    let Some(machine) = machine() else { return };
    let known_hosts = machine.world.path("home/.ssh/known_hosts");
    std::fs::remove_file(&known_hosts).unwrap();
    let run = machine.run(["src", &machine.ssh("dst")]).fails(43);
    assert!(run.stderr.contains("is not in any known_hosts file"), "{}", run.stderr);
    assert!(!known_hosts.exists());
    assert_nothing_written(&machine);
}

#[test]
fn the_first_host_key_behind_a_bridge_is_pinned() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    machine.run(["src", &machine.behind(&bridge, "dst")]).ok();
    let pins = machine.world.path("state/ksync/known_hosts");
    let pinned = std::fs::read_to_string(&pins).expect("a pin");
    make_key(&machine.world, "other-key", "ed25519");
    let text = |name: &str| std::fs::read_to_string(machine.world.path(name)).unwrap();
    let base64 = |name: &str| text(name).split(' ').nth(1).unwrap().to_owned();
    assert!(pinned.contains(&base64("host-key.pub")), "{pinned}");
    std::fs::write(&pins, pinned.replace(&base64("host-key.pub"), &base64("other-key.pub"))).unwrap();
    machine.run(["src", &machine.behind(&bridge, "second")]).fails(43);
    assert!(!machine.world.path("second").exists());
}

#[test]
fn a_key_given_by_option_is_the_only_one_that_counts() {
    let Some(machine) = machine() else { return };
    make_key(&machine.world, "other-key", "ed25519");
    let public = |name: &str| std::fs::read_to_string(machine.world.path(name)).unwrap();
    let endpoint = machine.ssh("dst");
    machine.run(["--host-key", &public("other-key.pub"), "src", &endpoint]).fails(43);
    assert_nothing_written(&machine);
    machine.distrust();
    machine.run(["--host-key", &public("host-key.pub"), "src", &endpoint]).ok();
    machine.rsync_finds_no_difference("src", "dst");
}

#[test]
fn a_wrong_key_is_not_let_in() {
    let Some(machine) = machine() else { return };
    make_key(&machine.world, "stranger", "ed25519");
    let run = machine.world.run(["--identity", "stranger", "src", &machine.ssh("dst")]).fails(40);
    let start = format!("ksync: could not log in as root on 127.0.0.1:{}: ", machine.port);
    assert!(run.stderr.starts_with(&start), "{}", run.stderr);
    assert!(
        run.stderr.ends_with(
            "\n  hint: Give a key that the server knows with --identity, or add it to ssh-agent.\n"
        )
    );
    assert_nothing_written(&machine);
}

#[test]
fn a_closed_port_is_exit_10_with_every_scheme() {
    let Some(machine) = machine() else { return };
    let port = closed_port();
    for scheme in ["ssh", "ws", "wss"] {
        let endpoint = format!("{scheme}://root@127.0.0.1:{port}/tmp/x");
        let run = machine.run(["src", &endpoint]).fails(10);
        assert!(run.stderr.contains("connection refused"), "{}", run.stderr);
    }
    assert_nothing_written(&machine);
}

#[test]
fn a_bridge_to_a_closed_port_is_exit_10() {
    let Some(mut machine) = machine() else { return };
    let real = std::mem::replace(&mut machine.port, closed_port());
    let (bridge, _service) = machine.bridge();
    machine.port = real;
    machine.run(["src", &machine.behind(&bridge, "dst")]).fails(10);
    assert_nothing_written(&machine);
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    let tls = Tls::before(&bridge, &machine.world);
    let endpoint = machine.behind(&tls.url, "dst");
    for options in [&[][..], &["--ca-cert", "other-ca.pem"]] {
        let run = machine.run(options.iter().copied().chain(["src", &endpoint])).fails(10);
        assert!(run.stderr.contains("could not make a TLS connection to wss://localhost:"), "{}", run.stderr);
        assert!(run.stderr.contains("--ca-cert"), "{}", run.stderr);
    }
    // The certificate is valid for localhost, but not for its address.
    let by_address = endpoint.replace("localhost", "127.0.0.1");
    machine.run(["--ca-cert", "ca.pem", "src", &by_address]).fails(10);
    assert_nothing_written(&machine);
}

#[test]
fn settings_of_ssh_are_honoured() {
    let Some(machine) = machine() else { return };
    let config = format!(
        "Host vm\n  HostName 127.0.0.1\n  Port {}\n  User root\n  IdentityFile {}\n",
        machine.port,
        machine.world.path("key").display()
    );
    machine.world.tree("home/.ssh").file("config", config).mode("config", 0o600);
    let endpoint = format!("ssh://vm{}", machine.world.path("dst").display());
    machine.world.run(["src", &endpoint]).ok();
    machine.rsync_finds_no_difference("src", "dst");
}
