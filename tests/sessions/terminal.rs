//! Interactive use of `ksync ssh SESSION`, with a real terminal on both sides.

use std::fs;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::platform::Platform;
use crate::world::{Terminal, World, wait_for};

/// The prompt of the shell on the VM.
const PROMPT: &str = "vm> ";

/// Makes a session that needs no API call, and a shell on it that waits for a line.
fn at_the_prompt(world: &World, platform: &Platform) -> (String, Terminal) {
    let id = platform.create(world, &[]);
    platform.run(world, &["session", "setup", &id]).ok();
    let profile = platform.root(&id).join("root/.profile");
    fs::write(profile, format!("PS1='{PROMPT}'\n")).unwrap();
    let mut terminal = Terminal::new(world, &platform.ksync(world, &["ssh", &id]));
    terminal.sees(PROMPT);
    assert!(terminal.is_changed());
    (id, terminal)
}

#[test]
fn a_shell_answers_typed_lines_and_sets_the_exit_status() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (_, mut terminal) = at_the_prompt(&world, &platform);
    terminal.types("echo $((6 * 7)) $TERM; test -t 0 && test -t 2 && tty\n");
    // The line appears once, echoed by the terminal on the VM.
    assert_eq!(terminal.sees("42 vt220\r\n"), "echo $((6 * 7)) $TERM; test -t 0 && test -t 2 && tty\r\n");
    assert!(terminal.sees("\r\n").starts_with("/dev/pts/"));
    terminal.sees(PROMPT);
    terminal.types("exit 7\n");
    assert_eq!(terminal.ends_with(7), "exit 7\r\n");
}

#[test]
fn the_remote_terminal_follows_the_size_of_the_local_one() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (_, mut terminal) = at_the_prompt(&world, &platform);
    terminal.types("stty size\n");
    terminal.sees("17 91\r\n");
    terminal.sees(PROMPT);
    terminal.types("trap 'stty size' WINCH\n");
    terminal.sees(PROMPT);
    terminal.resize(132, 50);
    // The shell runs a trap only when it gets a line.
    wait_for("the new size", || {
        terminal.types("\n");
        terminal.has_shown("50 132\r\n").then_some(())
    });
    terminal.types("exit\n");
    terminal.ends_with(0);
}

#[test]
fn ctrl_c_and_the_end_of_input_are_the_vms() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (_, mut terminal) = at_the_prompt(&world, &platform);
    // The program itself prints this. Before it has started, Ctrl-C would only reach the shell,
    // which then waits for the program.
    terminal.types("sh -c 'echo on its \"\"way; exec sleep 1000'\n");
    terminal.sees("on its way\r\n");
    terminal.types("\x03");
    terminal.sees(PROMPT);
    terminal.types("echo code $?\n");
    terminal.sees("code 130\r\n");
    terminal.sees(PROMPT);
    terminal.types("\x04");
    terminal.ends_with(0);
}

#[test]
fn a_lost_connection_restores_the_terminal() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, mut terminal) = at_the_prompt(&world, &platform);
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
    let told = terminal.ends_with(41);
    // Each message begins at the start of a line.
    assert!(told.contains("ksync: ") && told.contains("\r\n  hint: "), "{told:?}");
}

#[test]
fn a_signal_restores_the_terminal() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (_, mut terminal) = at_the_prompt(&world, &platform);
    kill_process(terminal.program(), Signal::TERM).unwrap();
    assert_eq!(terminal.ends_with(20), "ksync: stopped by a signal\r\n");
}

#[test]
fn a_failed_connection_restores_the_terminal() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    platform.fault(json!({ "call": "get", "status": 403 }));
    let mut terminal = Terminal::new(&world, &platform.ksync(&world, &["ssh", &id]));
    terminal.ends_with(40);
}
