//! `ksync ssh SESSION` with a real sshd, to a session from the store, without an API.

use crate::machine::Machine;
use crate::own;
use crate::tls::Tls;
use crate::world::service::Service;
use crate::world::{Run, Terminal};

/// The prompt of the shell on the machine.
pub(crate) const PROMPT: &str = "vm> ";

/// A machine that is the VM of the session `vm`.
pub(crate) fn machine() -> Option<(Machine, (Tls, Service))> {
    machine_with("")
}

/// The same with extra lines in sshd's configuration.
pub(crate) fn machine_with(settings: &str) -> Option<(Machine, (Tls, Service))> {
    let machine = Machine::with(settings)?;
    let (bridge, service) = machine.bridge();
    let world = &machine.world;
    let (tls, address) = Tls::as_of_a_vm(&bridge, world);
    let host_key = std::fs::read_to_string(world.path("host-key.pub")).expect("a key");
    let known = serde_json::json!({
        "session_id": "vm",
        "name": null,
        "pool": null,
        "vm_domain": address,
        "host_key": host_key.trim(),
        "key_file": world.path("key"),
        // This port is closed, and ksync does not report that.
        "cdp_ws_url": format!("ws://{address}:1/"),
        "base_url": "https://api.example",
    });
    world.tree("state/ksync/sessions").file("vm.json", known.to_string());
    world.tree("machine/home").file(".bash_profile", format!("PS1='{PROMPT}'\n"));
    world.tree("machine/home").file(".profile", format!("PS1='{PROMPT}'\n"));
    Some((machine, (tls, service)))
}

#[test]
fn a_shell_has_a_terminal_and_a_command_has_none() {
    for settings in ["", own::SETTINGS] {
        shell_has_a_terminal_and_a_command_has_none(settings);
    }
}

fn shell_has_a_terminal_and_a_command_has_none(settings: &str) {
    let Some((machine, _services)) = machine_with(settings) else { return };
    let ssh = |args: &[&str]| machine.world.ksync(["ssh", "--ca-cert", "ca.pem", "vm"].iter().chain(args));
    let run = Run::of(ssh(&["test -t 0 || echo none; echo oops >&2; exit 3"]));
    assert_eq!((run.status.code(), run.stdout.as_str(), run.stderr.as_str()), (Some(3), "none\n", "oops\n"));

    let mut terminal = Terminal::new(&machine.world, &ssh(&[]));
    terminal.sees(PROMPT);
    assert!(terminal.is_changed());
    terminal.types("test -t 0 && stty size && echo $TERM\n");
    terminal.sees("17 91\r\nvt220\r\n");
    terminal.sees(PROMPT);
    terminal.resize(132, 50);
    // sshd gets the new size before the next input, but a program sees it only when it asks.
    terminal.types("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo re\"\"sized\n");
    terminal.sees("resized\r\n");
    // One process prints and sleeps: the key could come before a shell has started a second one.
    terminal.types("sh -c 'echo be\"\"gun; exec sleep 1000'\n");
    terminal.sees("begun\r\n");
    terminal.types("\x03");
    terminal.sees(PROMPT);
    terminal.types("exit 7\n");
    terminal.ends_with(7);
}

#[test]
fn the_editing_keys_of_the_local_terminal_apply() {
    let Some((machine, _services)) = machine() else { return };
    let ssh = machine.world.ksync(["ssh", "--ca-cert", "ca.pem", "vm"]);
    let mut program = machine.world.command("sh");
    let line =
        "before=$(stty -g); stty erase ^H kill undef iutf8; \"$@\"; status=$?; stty $before; exit $status";
    program.args(["-c", line, "sh"]).arg(ssh.get_program()).args(ssh.get_args());
    let mut terminal = Terminal::new(&machine.world, &program);
    terminal.sees(PROMPT);
    terminal.types("stty -a; echo en\"\"ded\n");
    let told = terminal.sees("ended\r\n");
    for mode in ["erase = ^H;", "kill = <undef>;", "intr = ^C;", " iutf8"] {
        assert!(told.contains(mode), "{mode} in {told}");
    }
    terminal.sees(PROMPT);
    terminal.types("exit\n");
    terminal.ends_with(0);
}
