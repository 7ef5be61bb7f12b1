//! Settings of the environment, of the project's file and of the user's.

use std::ffi::OsString;

use serde_json::Value;

use crate::world::schema::faults;
use crate::world::{Run, World};

fn world() -> World {
    let world = World::new();
    world.tree("src").file("a", "text").file("b.tmp", "text").file("c.log", "text");
    world
}

fn user_file(world: &World, text: &str) {
    world.tree("config/ksync").file("config.toml", text);
}

/// The names in a directory.
fn names(world: &World, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(world.path(directory)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn settings_of_files_and_environment_shape_a_run() {
    let world = world();
    user_file(&world, "exclude = ['*.log']\n");
    world.tree(".").file(".ksync.toml", "exclude = ['*.tmp']\n");
    world.run(["src", "all"]).ok();
    assert_eq!(names(&world, "all"), ["a"]);
    world.run(["--include", "*.tmp", "src", "more"]).ok();
    assert_eq!(names(&world, "more"), ["a", "b.tmp"]);
    let mut command = world.ksync(["--no-config", "src", "env"]);
    command.env("KSYNC_EXCLUDE", "*.log");
    Run::of(command).ok();
    assert_eq!(names(&world, "env"), ["a", "b.tmp"]);
}

#[test]
fn a_directory_with_a_project_s_file_goes_to_its_destination() {
    let world = world();
    world.tree("src").file(".ksync.toml", "dest = '../copy'\nexclude = ['.ksync.toml', '*.tmp']\n");
    let run = |args: &[&str]| {
        let mut command = world.ksync(args);
        command.current_dir(world.path("src"));
        Run::of(command)
    };
    let said = run(&[]).fails(1).stderr;
    let file = world.path("src/.ksync.toml").display().to_string();
    assert_eq!(
        said,
        format!(
            "ksync: {file} names the DEST ../copy, to which nothing was copied from here yet\n  \
             hint: If that is meant, write it once: ksync . ../copy\n"
        )
    );
    run(&["-n", ".", "../copy"]).ok();
    assert!(run(&["-n"]).ok().stdout.contains("would change"));
    assert!(!world.path("copy").exists());
    run(&[]).ok();
    assert_eq!(names(&world, "copy"), ["a", "c.log"]);
    let said = run(&["--no-config"]).fails(1).stderr;
    assert!(said.starts_with("ksync: there is no SOURCE and no DEST\n"), "{said}");
}

#[test]
fn a_project_s_destination_in_a_vm_needs_no_word() {
    let world = world();
    let run = |destination: &str| {
        world.tree("src").file(".ksync.toml", format!("dest = '{destination}'\n"));
        let mut command = world.ksync(["-q"]);
        command.current_dir(world.path("src"));
        Run::of(command)
    };
    run(world.far("far").to_str().unwrap()).ok();
    assert!(world.path("far/a").exists());
    let outside = world.path("outside").display().to_string();
    for destination in [outside.as_str(), "../outside", "user@host.invalid:/srv"] {
        assert!(run(destination).fails(1).stderr.contains("to which nothing was copied"), "{destination}");
    }
    assert!(!world.path("outside").exists());
}

#[test]
fn a_wrong_setting_stops_before_anything_is_done() {
    let world = world();
    let file = world.path(".ksync.toml");
    world.tree(".").file(".ksync.toml", "chcksum = true\n");
    let run = world.run(["src", "dst"]).fails(1);
    let said = format!(
        "ksync: {}: there is no key chcksum\n  hint: There is checksum; ksync schema config lists all keys.\n",
        file.display()
    );
    assert_eq!((run.stdout.as_str(), run.stderr), ("", said));
    assert!(!world.path("dst").exists());
    // Help needs no settings.
    world.run(["--help"]).ok();
    let run = world.run(["--json", "src", "dst"]).fails(1);
    let event: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&event["event"], &event["code"]), (&"error".into(), &"usage".into()));
}

#[test]
fn a_file_of_another_user_is_no_project_s_file() {
    let world = world();
    world.tree(".").file(".ksync.toml", "exclude = ['a']\n");
    let file = world.path(".ksync.toml");
    if !rustix::process::geteuid().is_root() {
        return crate::world::skip::skip("only the superuser can give a file away");
    }
    std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
    let run = world.run(["src", "dst"]).ok();
    let said = format!("ksync: warning: {} is ignored: it belongs to another user\n", file.display());
    assert!(run.stderr.starts_with(&said), "{}", run.stderr);
    assert!(names(&world, "dst").contains(&"a".to_owned()));
}

#[test]
fn config_shows_each_value_and_its_origin() {
    let world = world();
    user_file(&world, "timeout = 30\nretries = 2\n");
    world.tree(".").file(".ksync.toml", "dest = 'host:x'\nretries = 3\nexclude = ['a', 'b']\n");
    let run = |args: &[&str]| {
        let mut command = world.ksync(args);
        command.env("KSYNC_TIMEOUT", "5").env_remove("KSYNC_KEEP").env_remove("KSYNC_SANDBOX_HOST_FILES");
        Run::of(command).ok()
    };
    let shown = run(&["config"]).stdout;
    let [project, user] = ["/.ksync.toml", "/config/ksync/config.toml"]
        .map(|name| format!("{}{name}", world.path("").display()).replace("//", "/"));
    let lines: Vec<(String, String)> = shown
        .lines()
        .map(|line| line.rsplit_once("  # ").unwrap())
        .map(|(setting, origin)| (setting.trim().to_owned(), origin.to_owned()))
        .collect();
    let line = |setting: &str, origin: &str| (setting.to_owned(), origin.to_owned());
    assert_eq!(
        lines,
        [
            line("timeout = \"5\"", "KSYNC_TIMEOUT"),
            line("dest = \"host:x\"", &project),
            line("exclude = [\"a\", \"b\"]", &project),
            line("retries = \"3\"", &project),
            line("# retries = \"2\"", &format!("{user}, overridden")),
            line("# timeout = \"30\"", &format!("{user}, overridden")),
        ]
    );
    let json = run(&["config", "--json"]).stdout;
    let values: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values[0]["from"], "environment");
    assert_eq!((&values[2]["key"], &values[2]["value"][1]), (&"exclude".into(), &"b".into()));
    assert_eq!(values[5]["overridden"], true);
}

#[test]
fn the_published_schema_is_that_of_the_program() {
    let world = World::new();
    for (name, file) in [("config", "config.json"), ("events", "events.json")] {
        let told = world.run(["schema", name]).ok().stdout;
        let path = format!("{}/fixtures/schema/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("KSYNC_WRITE_FIXTURES").is_some() {
            std::fs::write(&path, &told).unwrap();
        }
        let is_published = told == std::fs::read_to_string(&path).unwrap();
        assert!(is_published, "{path} is old: KSYNC_WRITE_FIXTURES=1 writes it");
    }
    let schema: Value = serde_json::from_str(&world.run(["schema", "config"]).ok().stdout).unwrap();
    for (settings, is_valid) in [
        (serde_json::json!({ "delete": true, "exclude": ["a"], "timeout": 3, "dest": "h:x" }), true),
        (serde_json::json!({ "delete": "yes" }), false),
        (serde_json::json!({ "exclude": [true] }), false),
        (serde_json::json!({ "yes": true }), false),
    ] {
        assert_eq!(faults(&schema, &schema, &settings).is_empty(), is_valid, "{settings}");
    }
}

#[test]
fn flags_of_settings_are_turned_off_on_the_command_line() {
    let world = world();
    world.tree("dst").file("old", "text");
    world.run(["src", "dst"]).ok();
    world.tree(".").file(".ksync.toml", "delete = true\n");
    let run = |option: Option<&str>| {
        let words = ["-n", "src", "dst"].map(OsString::from).into_iter().chain(option.map(OsString::from));
        world.run(words).ok().stdout
    };
    assert!(run(None).contains("delete  old"));
    assert!(!run(Some("--no-delete")).contains("delete  old"));
}

#[test]
fn a_project_s_file_lifts_no_caution_of_the_user() {
    let world = world();
    user_file(&world, "max-delete = 5\nsafe-links = true\n");
    for (text, part) in [
        ("max-delete = 100000\n", "the key max-delete may not stand in the file of a project"),
        ("safe-links = false\n", "the file of a project may turn safe-links on, and not off"),
        ("backup = false\n", "the file of a project may turn backup on, and not off"),
        ("undoable = false\n", "the file of a project may turn undoable on, and not off"),
        ("ignore-existing = false\n", "the file of a project may turn ignore-existing on, and not off"),
    ] {
        world.tree(".").file(".ksync.toml", text);
        let said = world.run(["src", "dst"]).fails(1).stderr;
        assert!(said.contains(part), "{said}");
        assert!(!world.path("dst").exists());
    }
    world.tree(".").file(".ksync.toml", "backup = true\n");
    world.run(["src", "dst"]).ok();
}

#[test]
fn a_variable_that_is_nearly_a_setting_is_reported() {
    let world = world();
    let mut command = world.ksync(["src", "dst"]);
    command.env("KSYNC_DELET", "1").env("KSYNC_REQUIRE_PEERS", "0").env("KSYNC_LOG", "");
    let said = Run::of(command).ok().stderr;
    assert_eq!(said.matches("is no setting").count(), 1, "{said}");
    assert!(
        said.contains("the variable KSYNC_DELET is no setting\n  hint: There is KSYNC_DELETE;"),
        "{said}"
    );
}

#[test]
fn a_pipe_in_place_of_a_settings_file_is_refused() {
    let world = world();
    let pipe = world.path(".ksync.toml");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let said = world.run(["src", "dst"]).fails(1).stderr;
    assert!(said.contains(".ksync.toml: it is not a regular file\n"), "{said}");
}

#[test]
fn a_setting_turns_off_what_is_on_by_itself() {
    let world = world();
    world.tree("src").file("a", "x".repeat(1 << 20));
    std::fs::set_permissions(world.path("src/a"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    world.tree("dst").file("a", "old");
    std::fs::set_permissions(world.path("dst/a"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    user_file(&world, "perms = false\ncompress = false\n");
    let far = world.far("dst").into_string().unwrap();
    let said = world.run(["--stats", "src", &far]).ok().stdout;
    let mode = std::fs::metadata(world.path("dst/a")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o644);
    let sent = world.run(["--json", "src", &world.far("new").into_string().unwrap()]).ok().stdout;
    let summary: Value = serde_json::from_str(sent.lines().last().unwrap()).unwrap();
    assert!(summary["sent_bytes"].as_u64().unwrap() > 1 << 20, "{summary} {said}");
}

#[test]
fn a_listing_or_dry_run_ignores_settings_for_real_runs() {
    let world = world();
    user_file(&world, "delete = true\nwatch = true\n");
    assert!(world.run(["src/"]).ok().stdout.contains(" a\n"));
    assert!(world.run(["--list-only", "src/"]).ok().stdout.contains(" a\n"));
    assert!(world.run(["-n", "src", "dst"]).ok().stdout.contains("would change"));
    let said = world.run(["--watch", "-n", "src", "dst"]).fails(1).stderr;
    assert!(said.contains("--watch and --dry-run exclude each other"), "{said}");
}
