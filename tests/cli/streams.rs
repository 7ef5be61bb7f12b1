//! A standard output that takes nothing: a full disk, a closed file, a reader that went away.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::process::{Command, Stdio};

use crate::world::{Run, World};

/// Runs with this stdout; returns the exit code and stderr.
fn with_stdout(mut command: Command, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let mut child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// The writing end of a pipe that nobody reads.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// `ksync` with a closed stdout, as a shell starts it.
fn closed(world: &World, args: &[&str]) -> Command {
    let mut shell = world.command("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" >&-", env!("CARGO_BIN_EXE_ksync")]).args(args);
    shell
}

const SAYS: &str = "ksync: cannot write to standard output";

#[test]
fn lost_output_is_an_error_for_programs() {
    let world = World::new();
    world.tree("src").file("a", "x");
    let (code, said) = with_stdout(world.ksync(["--json", "src", "one"]), full());
    assert_eq!((code, said.as_str()), (Some(11), format!("{SAYS}: no space left on device\n").as_str()));
    let (code, said) = with_stdout(world.ksync(["--json", "src", "two"]), unread());
    assert_eq!((code, said.as_str()), (Some(11), format!("{SAYS}: broken pipe\n").as_str()));
    // The copy itself is complete.
    for copy in ["one", "two"] {
        world.assert_same("src", copy);
    }
    // Another error keeps its exit code.
    let (code, said) = with_stdout(world.ksync(["--json", "missing", "one"]), full());
    assert_eq!(code, Some(3), "{said}");
    let (code, said) = with_stdout(closed(&world, &["--json", "src", "three"]), Stdio::null());
    assert!(said.starts_with(&format!("{SAYS}: it is closed, and --json writes there\n  hint: ")), "{said}");
    assert!(code == Some(11) && !world.path("three").exists());
    // A shell's /dev/null is not a closed file.
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    assert_eq!(with_stdout(world.ksync(["--json", "src", "three"]), null), (Some(0), String::new()));
}

#[test]
fn for_people_a_full_disk_is_an_error_and_a_closed_pipe_is_none() {
    let world = World::new();
    world.tree("src").file("a", "x");
    for (number, args) in
        [&["-v"][..], &["-i"], &["--stats"], &["-n"], &[], &["-q", "--json"]].into_iter().enumerate()
    {
        let copy = format!("full-{number}");
        let (code, said) = with_stdout(world.ksync([args, &["src", &copy]].concat()), full());
        assert!(
            code == Some(11) && said.ends_with(&format!("{SAYS}: no space left on device\n")),
            "{args:?} {said}"
        );
    }
    for args in [&["--help"][..], &["--version"], &["help", "session"]] {
        let (code, said) = with_stdout(world.ksync(args), full());
        assert_eq!((code, said), (Some(11), format!("{SAYS}: no space left on device\n")), "{args:?}");
        assert_eq!(with_stdout(world.ksync(args), unread()), (Some(0), String::new()));
    }
    let (code, said) = with_stdout(world.ksync(["-v", "src", "piped"]), unread());
    assert_eq!(code, Some(0), "{said}");
    world.assert_same("src", "piped");
    // Nothing is written, so nothing is lost.
    assert_eq!(with_stdout(world.ksync(["-q", "src", "quiet"]), full()), (Some(0), String::new()));
    assert_eq!(with_stdout(closed(&world, &["src", "closed"]), Stdio::null()).0, Some(0));
}

#[test]
fn a_watch_for_a_program_ends_with_its_reader() {
    let world = World::new();
    world.tree("src").file("a", "x");
    let (code, said) = with_stdout(world.ksync(["--watch", "--json", "src", "dst"]), unread());
    assert_eq!(code, Some(11), "{said}");
    assert!(said.contains(SAYS), "{said}");
}

#[test]
fn an_emulator_that_cannot_tell_its_address_ends() {
    let world = World::new();
    let (code, said) = with_stdout(world.ksync(["sandbox", "--json"]), full());
    assert_eq!((code, said.as_str()), (Some(11), format!("{SAYS}: no space left on device\n").as_str()));
}

#[test]
fn errors_before_a_run_are_events_too() {
    let world = World::new();
    for (args, message) in [
        (&["--json", "src"][..], "there is no DEST"),
        (&["--json", "--frobnicate", "a", "b"], "there is no option --frobnicate"),
    ] {
        let run = world.run(args).fails(1);
        let event: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!((&event["event"], &event["exit"]), (&"error".into(), &1.into()));
        assert_eq!(event["message"], message);
        assert!(run.stderr.starts_with(&format!("ksync: {message}\n")), "{}", run.stderr);
    }
    let run: Run = world.run(["--json", "-i", "src", "me@host"]).fails(3);
    let first = run.stdout.lines().next().unwrap();
    let event: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!((&event["event"], &event["kind"]), (&"warning".into(), &"endpoint".into()), "{first}");
}
