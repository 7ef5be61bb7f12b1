//! The diagnostic log: `-vv` or `KSYNC_LOG=debug`, on stderr.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;

use crate::world::{Emulator, Run, World, noise};

/// A line of the log: its side, and its subject with the pairs.
fn entry(line: &str) -> Option<(&str, &str)> {
    let mut words = line.strip_prefix("debug ")?.splitn(2, ' ');
    let seconds = words.next()?;
    assert!(seconds.parse::<f64>().is_ok() && seconds.contains('.'), "{line}");
    let (side, text) = words.next()?.split_once(' ')?;
    assert!(["here", "there"].contains(&side), "{line}");
    Some((side, text.trim_start()))
}

/// Asserts that the log has a line of `side` that begins with `start` and contains `part`.
#[track_caller]
fn assert_logged(run: &Run, side: &str, start: &str, part: &str) {
    let is_it = |line: &str| {
        entry(line).is_some_and(|(of, text)| of == side && text.starts_with(start) && text.contains(part))
    };
    assert!(run.stderr.lines().any(is_it), "no {side} {start}…{part} in:\n{}", run.stderr);
}

/// A source with a file that is long enough for a delta.
fn world() -> World {
    let world = World::new();
    world.tree("src").file("a b", "text").file("large", noise(1, 400_000));
    world
}

/// Starts an emulator, and returns it with the arguments of an upload to it. Unlike `sandbox:`, it
/// keeps its host key between runs.
fn emulated(world: &World) -> (Emulator, [OsString; 3]) {
    let emulator = Emulator::new(world);
    world.tree(".").file("vm.json", emulator.told["setup"].to_string());
    let mut endpoint = OsString::from(":");
    endpoint.push(world.path("dst"));
    (emulator, ["--setup=vm.json".into(), "src".into(), endpoint])
}

fn logged(world: &World, args: impl IntoIterator<Item = OsString>) -> Run {
    let mut command = world.ksync(args);
    command.env("KSYNC_LOG", "debug");
    Run::of(command)
}

#[test]
fn each_excluded_entry_is_logged_with_its_rule() {
    let world = World::new();
    world
        .tree("src")
        .file(".ksyncignore", "# temporary\n*.tmp\n")
        .file("a.tmp", "x")
        .file("kept", "x")
        .file("d/.ksyncignore", "!b.tmp\nbuild/\n")
        .file("d/b.tmp", "x")
        .file("d/build/out", "x")
        .file("d/x.o", "x")
        .file("d/.ksync/state", "x");
    let excluded = |run: &Run| {
        let lines = run.stderr.lines().filter_map(|line| line.split_once(" exclude role=sender "));
        let mut lines: Vec<_> = lines.map(|(_, line)| line.to_owned()).collect();
        lines.sort();
        lines
    };
    let expected = [
        "by=.ksyncignore:2 rule=*.tmp path=a.tmp",
        "by=command-line rule=*.o path=d/x.o",
        "by=d/.ksyncignore:2 rule=build/ path=d/build",
        "by=ksync rule=state-directory path=d/.ksync",
    ];
    let exclude = || ["-vv".into(), "-n".into(), OsString::from("--exclude=*.o")];
    for (from, to) in [("src".into(), "dst".into()), ("src".into(), world.far("dst"))] {
        let run = Run::of(world.ksync(exclude().into_iter().chain([from, to]))).ok();
        assert_eq!(excluded(&run), expected, "{}", run.stderr);
    }
    let run = Run::of(world.ksync(exclude().into_iter().chain([world.far("src"), "dst".into()]))).ok();
    assert_eq!(excluded(&run), expected, "{}", run.stderr);
    // A SOURCE that is one file.
    let file = ["-vv", "-n", "--exclude=*.tmp", "src/a.tmp", "dst"];
    assert_eq!(excluded(&world.run(file).ok()), ["by=command-line rule=*.tmp path=a.tmp"]);
}

#[test]
fn a_local_run_logs_the_decisions_of_both_roles() {
    let world = world();
    let run = world.run(["-vv", "src", "dst"]).ok();
    // A run that takes long lists each change as it happens.
    assert!(run.stdout.contains("create  a b\n"), "{}", run.stdout);
    for (start, part) in [
        ("start ", "version="),
        ("scan role=sender", "entries=2 bytes=400004"),
        ("scan role=receiver", "entries=0"),
        ("offer role=sender", "entries=2 against=nothing why=no-store"),
        ("plan role=receiver", "wanted=2 present=0"),
        ("file role=sender how=whole", "why=no-basis size=4 path=a b"),
        ("file role=sender how=whole", "why=no-basis size=400000 path=large"),
        ("exchange ok=true", "files=2"),
        ("end exit=0", ""),
    ] {
        assert_logged(&run, "here", start, part);
    }
    assert!(run.stderr.lines().filter_map(entry).all(|(side, _)| side == "here"), "{}", run.stderr);
    fs::remove_dir_all(world.path("dst")).unwrap();
    fs::create_dir(world.path("dst")).unwrap();
    fs::copy(world.path("src/large"), world.path("dst/old name")).unwrap();
    let run = world.run(["-vv", "--delete", "--yes", "src", "dst"]).ok();
    assert_logged(&run, "here", "file role=receiver how=rename", "path=large");
}

#[test]
fn an_upload_logs_the_connection_and_the_decisions_of_both_sides() {
    let world = world();
    let (_emulator, args) = emulated(&world);
    let run = logged(&world, args.clone()).ok();
    for (start, part) in [
        ("connect ok=true", "step=connect to"),
        ("connect ok=true", "step=open a WebSocket to"),
        ("connect ok=true", "step=agree on an SSH session with"),
        ("hostkey ok=true", "by=pin"),
        ("auth method=publickey", "accepted=true"),
        ("agent step=start", "flight=over-channel why=no-secret"),
        ("agent step=install", "bytes="),
        ("agent step=learn-secret", "stored=true"),
        ("agent step=started", "state=installed"),
        ("offer role=sender", "why=no-baseline"),
    ] {
        assert_logged(&run, "here", start, part);
    }
    let mut content = noise(1, 400_000);
    content[200_000] ^= 1;
    world.tree("src").file("large", content);
    let run = logged(&world, args).ok();
    for (side, start, part) in [
        ("here", "agent step=start", "flight=in-command-line"),
        ("here", "agent step=started", "state=reused"),
        ("here", "scan role=sender", "entries=2"),
        ("here", "offer role=sender", "against=baseline why=changed"),
        ("there", "baseline role=receiver", "found=true"),
        ("there", "scan role=receiver", "entries=2"),
        ("there", "basis role=receiver how=", "size=400000 basis_bytes=400000"),
        ("there", "wants sent=1", "with_basis=1"),
        ("here", "wants received=1", "with_basis=1"),
        ("here", "file role=sender how=", "path=large"),
        ("here", "exchange ok=true", "updated=1"),
        ("here", "end exit=0", ""),
    ] {
        assert_logged(&run, side, start, part);
    }
    let file = |(_, text): &(&str, &str)| text.starts_with("file role=sender");
    let how = run.stderr.lines().filter_map(entry).find(file).unwrap().1;
    assert!(how.contains("how=blocks") || how.contains("how=delta"), "{how}");
    world.assert_same("src", "dst");
}

#[test]
fn the_log_goes_to_stderr_beside_json() {
    let world = world();
    let run = logged(&world, ["--json".into(), "src".into(), world.far("dst")]).ok();
    assert!(run.stdout.lines().all(|line| line.starts_with('{')), "{}", run.stdout);
    assert_logged(&run, "here", "hostkey ok=true", "by=given-key");
    assert_logged(&run, "there", "scan role=receiver", "");
}

#[test]
fn the_log_shows_no_secret() {
    let world = world();
    world.tree("src").file("secret", "hidden-content");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_emulator, upload) = emulated(&world);
    let with_secrets = |args: &[OsString]| {
        let mut command = world.ksync(args);
        command.env("KSYNC_LOG", "debug").env("KERNEL_API_KEY", "hidden-key");
        command.env("KERNEL_BASE_URL", format!("http://{closed}"));
        Run::of(command)
    };
    let runs = [
        with_secrets(&upload).ok(),
        with_secrets(&upload).ok(),
        with_secrets(&["src".into(), "other:/tmp/x".into()]),
        with_secrets(&[
            "--retries=0".into(),
            "src".into(),
            format!("ws://{closed}/x?token=hidden-token").into(),
        ]),
    ];
    assert_logged(&runs[2], "here", "api failed=no-answer", "");
    assert_logged(&runs[2], "here", "wait ms=", "why=api");
    assert_logged(&runs[3], "here", "connect ok=false", "step=connect to");
    let stored = fs::read_to_string(world.path("state/ksync/secrets")).unwrap();
    assert_eq!(stored.lines().count(), 1, "one login");
    let agent_secret = stored.split_whitespace().last().unwrap().to_owned();
    assert_logged(&runs[1], "here", "agent step=start", "flight=in-command-line");
    for run in &runs {
        for secret in ["hidden-key", "hidden-content", &agent_secret] {
            assert!(!run.stderr.contains(secret), "{secret} in:\n{}", run.stderr);
        }
        let mut lines = run.stderr.lines().filter_map(entry);
        assert!(!lines.any(|(_, text)| text.contains("hidden")), "{}", run.stderr);
    }
}

#[test]
fn without_a_request_nothing_is_logged() {
    let world = world();
    for option in ["-q", "-v"] {
        let mut command = world.ksync([option.into(), OsString::from("src"), world.far("dst")]);
        command.env("KSYNC_LOG", "");
        let run = Run::of(command).ok();
        let mapping_lines = usize::from(option != "-q");
        assert_eq!(run.stderr.lines().count(), mapping_lines, "{}", run.stderr);
        assert!(!run.stderr.contains("debug"), "{}", run.stderr);
    }
}

#[test]
fn an_unknown_level_is_an_error_with_a_hint() {
    let world = world();
    let with_level = |args: &[&str]| {
        let mut command = world.ksync(args);
        command.env("KSYNC_LOG", "trace");
        Run::of(command)
    };
    with_level(&["src", "dst"]).fails(1).says(
        "ksync: KSYNC_LOG=trace is not a level of the log\n  hint: Set KSYNC_LOG=debug, or unset it.\n",
    );
    assert!(!world.path("dst").exists());
    with_level(&["--help"]).ok();
}
