//! Output for people: results on stdout, everything else on stderr, and a hint for every mistake.

use std::ffi::OsString;

use crate::world::{Run, World, noise};

fn world() -> World {
    let world = World::new();
    world.tree("src").file("a", "text");
    world
}

#[test]
fn results_go_to_stdout_and_the_mapping_to_stderr() {
    let world = world();
    let run = Run::of(world.ksync(["-v".into(), "src".into(), world.far("dst")])).ok();
    assert!(run.stdout.starts_with("create  a\n1 entry, 4 B: 1 new; sent 4 B in "), "{}", run.stdout);
    assert_eq!(run.stdout.lines().count(), 2);
    assert_eq!(run.stderr, format!("src → sandbox:{}\n", world.path("dst").display()));
}

#[test]
fn quiet_prints_only_errors() {
    let world = world();
    for _ in 0..2 {
        let run = Run::of(world.ksync(["-q".into(), "src".into(), world.far("dst")])).ok();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    }
    let run = world.run(["-q", "nowhere", "dst"]).fails(3);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.starts_with("ksync: "), "{}", run.stderr);
}

#[test]
fn json_reports_one_plan_and_then_each_change() {
    for is_dry in [false, true] {
        let world = World::new();
        world.tree("src").file("a", "text").file("d/b", noise(1, 600_000)).link("l", "a");
        let ways = [
            ("src".into(), "near".into()),
            ("src".into(), world.far("up")),
            (world.far("src"), "down".into()),
        ];
        for (from, to) in ways {
            let mut command = world.ksync(["--json"]);
            command.args(is_dry.then_some("-n")).args([from, to]);
            let run = Run::of(command).ok();
            let events: Vec<serde_json::Value> =
                run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let at = |name: &str| events.iter().position(|event| event["event"] == name).expect(name);
            let plan = &events[at("plan")];
            assert_eq!((&plan["files"], &plan["bytes"]), (&2.into(), &600_004.into()), "{}", run.stdout);
            let named = |name: &str| {
                let of_name = events.iter().filter(|event| event["event"] == name);
                let mut paths: Vec<_> = of_name.map(|event| event["path"].to_string()).collect();
                paths.sort();
                paths
            };
            assert_eq!(named("plan").len(), 1, "{}", run.stdout);
            assert_eq!(named("file"), [r#""a""#, r#""d""#, r#""d/b""#, r#""l""#], "{}", run.stdout);
            assert!(is_dry || at("plan") < at("file"), "{}", run.stdout);
        }
    }
}

#[test]
fn directories_with_the_name_of_the_state_directory_are_reported() {
    let world = world();
    world.tree("src").file(".ksync/notes", "own").file("d/.ksync/notes", "own");
    let text = "2 directories named .ksync not copied: ksync keeps its state under this name";
    for (source, destination) in [("src".into(), world.far("up")), (world.far("src"), "down".into())] {
        let run = Run::of(world.ksync([source.clone(), destination.clone()])).ok();
        assert!(run.stderr.lines().any(|line| line == format!("ksync: {text}")), "{}", run.stderr);
        let run = Run::of(world.ksync(["--json".into(), source, destination])).ok();
        assert!(run.stdout.contains(&format!("\"message\":\"{text}\"")), "{}", run.stdout);
    }
    assert!(!world.path("up/d/.ksync").exists() && !world.path("down/.ksync").exists());
}

#[test]
fn a_missing_source_is_named() {
    let world = world();
    let missing = world.path("nowhere");
    let text = format!("{} does not exist\n  hint: Check how it is spelled.\n", missing.display());
    let run = Run::of(world.ksync([missing.clone().into(), world.far("dst")])).fails(3);
    assert_eq!((run.stdout.as_str(), run.stderr), ("", format!("ksync: {text}")));
    assert!(!world.path("dst").exists());
    let run = Run::of(world.ksync([world.far("nowhere"), "dst".into()])).fails(3);
    assert_eq!((run.stdout.as_str(), run.stderr), ("", format!("ksync: sandbox:{text}")));
    assert!(!world.path("dst").exists());
}

#[test]
fn a_missing_source_deletes_nothing() {
    let world = world();
    world.tree("dst").file("precious", "text");
    for (source, destination) in
        [("nowhere".into(), world.far("dst")), (world.far("nowhere"), OsString::from("dst"))]
    {
        Run::of(world.ksync(["--delete".into(), source, destination])).fails(3);
        assert!(world.path("dst/precious").exists());
    }
}

#[test]
fn an_unknown_session_without_an_api_key_has_a_hint() {
    world().run(["src", "session:/tmp/dir"]).fails(1).says(
        "ksync: there is no current session\n  hint: Name one: ksync session use ID, or KSYNC_SESSION=ID.\n",
    );
    world().run(["src", "other:/tmp/dir"]).fails(40).says(
        "ksync: session \"other\" was never used from here, and there is no API key to look it up\n  \
         hint: Set KERNEL_API_KEY to a key of your Kernel account; an SSH host is written user@other:/path, or has \
         a Host entry in ~/.ssh/config.\n",
    );
}

#[test]
fn common_mistakes_get_a_hint() {
    let world = world();
    world.tree(".").file("file", "x");
    for (args, text) in [
        (
            &[][..],
            "ksync: there is no SOURCE and no DEST\n  \
             hint: Write ksync SOURCE... DEST; ksync --help has examples.\n",
        ),
        (
            &["--delete", "src"],
            "ksync: there is no DEST\n  hint: Write ksync SOURCE... DEST; ksync --help has examples.\n",
        ),
        (
            &["sandbox:a", "me@host:b"],
            "ksync: both sandbox:a and me@host:b are remote\n  \
             hint: Copy to a local directory first, and from there in a second run.\n",
        ),
        (
            &["src", ":/tmp/x"],
            "ksync: an endpoint that begins with : is in the VM of --setup, and there is none\n  \
             hint: Add --setup FILE with what `kernel browsers ssh ID --setup-only -o json` prints.\n",
        ),
        (
            &["--setup", "missing.json", "src", ":/tmp/x"],
            "ksync: cannot read missing.json: no such file or directory\n",
        ),
        (
            &["src", "src/", "file"],
            "ksync: file is not a directory, and several SOURCEs go into one\n  \
             hint: Name a directory as DEST.\n",
        ),
        (
            &["src", "src/", "dst"],
            "ksync: two SOURCEs would both become dst/src\n  \
             hint: Sync them one after the other, to two destinations.\n",
        ),
        (
            &["src", "rsync://host/module"],
            "ksync: \"rsync://host/module\" is not an endpoint: \
             it names an rsync daemon, whose protocol ksync does not speak\n  \
             hint: Reach the machine over SSH: user@host:/path.\n",
        ),
        (
            &["src", "http://host/path"],
            "ksync: \"http://host/path\" is not an endpoint: its scheme is not ssh, ws or wss\n  \
             hint: Write ssh://user@host:port/path or wss://host:port/path.\n",
        ),
        (
            &["src", "wss://host:99999/path"],
            "ksync: \"wss://host:99999/path\" is not an endpoint: \
             its port is not a number from 1 to 65535\n",
        ),
        (
            &["-e", "rsh -p 22", "src", "me@host:/x"],
            "ksync: \"rsh -p 22\" is not a plain ssh (-e, --rsh), and ksync starts no remote shell\n  \
             hint: Write user@host:/path, ssh://user@host:port/path or wss://host:port/path.\n",
        ),
        (
            &["--rsync-path=/bin/doas rsync", "src", "me@host:/x"],
            "ksync: --rsync-path takes rsync or \"sudo rsync\": ksync runs its own agent on the other side, and \
             not \"/bin/doas rsync\"\n  hint: ksync --help lists all options.\n",
        ),
        (
            &["--daemon"],
            "ksync: there is no --daemon: ksync speaks to no rsync daemon; \
             reach the machine over SSH: user@host:/path\n",
        ),
        (
            &["--exclude-from=missing", "src", "dst"],
            "ksync: cannot read missing: no such file or directory\n",
        ),
        (
            &["--host-key=abc", "src", "me@host:/x"],
            "ksync: --host-key is not a public key\n  \
             hint: Give the type and the key, as in \"ssh-ed25519 AAAA...\": \
             a line of ssh-keyscan without its host.\n",
        ),
    ] {
        let run = world.run(args).fails(1);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", text), "{args:?}");
    }
    assert!(!world.path("dst").exists());
}

#[test]
fn an_unknown_option_is_an_error_and_help_is_not() {
    let world = world();
    let run = world.run(["--frobnicate", "src", "dst"]).fails(1);
    assert!(run.stderr.contains("ksync: there is no option --frobnicate\n"), "{}", run.stderr);
    for option in ["--help", "-h"] {
        let run = world.run([option]).ok();
        assert!(run.stdout.contains("ksync [OPTIONS] SOURCE... DEST"), "{}", run.stdout);
        assert_eq!(run.stderr, "");
    }
    assert_eq!(world.run(["--version"]).ok().stdout, concat!("ksync ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_file_in_the_way_of_the_destination_is_named_and_stays() {
    let world = world();
    world.tree(".").file("dst", "precious");
    let run = Run::of(world.ksync(["src".into(), world.far("dst")])).fails(11);
    assert!(run.stderr.contains(&*world.path("dst").to_string_lossy()), "{}", run.stderr);
    assert_eq!(std::fs::read(world.path("dst")).unwrap(), b"precious");
}

#[test]
fn a_closed_port_is_named() {
    let world = world();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let run = world.run(["src", &format!("ws://127.0.0.1:{port}/x")]).fails(10);
    let text = format!(
        "ksync: could not connect to ws://127.0.0.1:{port}: connection refused\n  \
         hint: Check the host, the port, and that the network leads there.\n"
    );
    assert_eq!(run.stderr, text);
}
