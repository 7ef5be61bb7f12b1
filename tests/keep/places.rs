//! The sockets of keepers: whose they may be, and where.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;

use crate::kept::Kept;
use crate::world::Run;
use crate::world::skip::needs_superuser;

/// Two users without a name.
const USERS: [u32; 2] = [65_001, 65_002];

#[test]
fn a_socket_is_private_to_its_user() {
    let Some(kept) = Kept::start() else { return };
    kept.machine.world.tree("src").file("a", "one");
    kept.sync(&[]).ok();
    kept.keeper();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&kept.socket()), 0o600);
    assert_eq!(mode(kept.socket().parent().unwrap()), 0o700);
}

/// A directory that another user owns or can change is not used: neither for a socket, nor for
/// what it says.
#[test]
fn a_directory_of_another_user_is_not_used() {
    let Some(kept) = Kept::start() else { return };
    let world = &kept.machine.world;
    world.tree("src").file("a", "one");
    let directory = world.path("run/ksync");
    let elsewhere = world.path("elsewhere");
    for case in ["mode", "owner", "link"] {
        match case {
            "mode" => {
                fs::create_dir(&directory).unwrap();
                fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
            }
            "owner" => {
                fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
                chown(&directory, Some(65534), None).unwrap();
            }
            _ => {
                fs::remove_dir(&directory).unwrap();
                fs::create_dir(&elsewhere).unwrap();
                fs::set_permissions(&elsewhere, Permissions::from_mode(0o700)).unwrap();
                symlink(&elsewhere, &directory).unwrap();
            }
        }
        kept.sync(&[]).ok();
        // The state directory is used instead.
        let keeper = kept.keeper();
        kept.sync(&[]).ok();
        assert_eq!(kept.keeper().served, 1, "{case}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{case}");
        Run::of(kept.ksync(["keep", "stop"])).ok();
        kept.ends(&keeper);
    }
}

/// Two users of this machine, who log in as the same user of the other.
#[test]
fn two_users_at_once_have_a_keeper_each() {
    let Some(kept) = Kept::start() else { return };
    if !needs_superuser() {
        return;
    }
    let world = &kept.machine.world;
    let homes = ["one", "two"].map(|name| (name, world.path(name)));
    fs::copy(env!("CARGO_BIN_EXE_ksync"), world.path("program")).unwrap();
    for (number, (name, home)) in homes.iter().enumerate() {
        world.tree(name).file("src/a", *name);
        let run = |program: &str, args: &[&OsStr]| {
            let mut command = world.command(program);
            command.args(args);
            Run::of(command).ok();
        };
        for (from, to) in [("home/.ssh", ".ssh"), ("key", "key")] {
            run("cp", &["-r".as_ref(), world.path(from).as_ref(), home.join(to).as_ref()]);
        }
        fs::create_dir(home.join("run")).unwrap();
        fs::set_permissions(home.join("run"), Permissions::from_mode(0o700)).unwrap();
        run("chown", &["-R".as_ref(), USERS[number].to_string().as_ref(), home.as_ref()]);
    }
    fs::set_permissions(world.path("."), Permissions::from_mode(0o755)).unwrap();
    let ksync = |number: usize, args: &[&str]| {
        let home = &homes[number].1;
        let mut command = world.command(world.path("program"));
        command.args(args).uid(USERS[number]).gid(USERS[number]).current_dir(home);
        for (variable, at) in [("HOME", "."), ("XDG_RUNTIME_DIR", "run"), ("XDG_STATE_HOME", "state")] {
            command.env(variable, home.join(at));
        }
        command.env("XDG_CACHE_HOME", home.join("cache")).env("XDG_CONFIG_HOME", home.join("config"));
        command.env("KSYNC_KEEP", "1");
        command
    };
    let there = ["one/dst", "two/dst"].map(|name| kept.there(name));
    let sync = |number: usize| Run::of(ksync(number, &["--identity", "key", "src", &there[number]])).ok();
    std::thread::scope(|scope| {
        for number in [0, 1] {
            let sync = &sync;
            scope.spawn(move || (0..5).for_each(|_| drop(sync(number))));
        }
    });
    for (number, (name, _)) in homes.iter().enumerate() {
        let list = || Run::of(ksync(number, &["keep", "list", "--json"])).ok().stdout;
        let keeper: serde_json::Value =
            crate::world::wait_for("a keeper", || serde_json::from_str(list().trim()).ok());
        sync(number);
        world.assert_same(format!("{name}/src"), format!("{name}/dst"));
        // One line, so only the user's own; and it served the last run.
        let now: serde_json::Value = serde_json::from_str(list().trim()).unwrap();
        assert_eq!(now["pid"], keeper["pid"], "{name}");
        assert_eq!(now["served"].as_u64(), keeper["served"].as_u64().map(|served| served + 1), "{name}");
        let status = fs::read_to_string(format!("/proc/{}/status", now["pid"])).unwrap();
        assert!(status.contains(&format!("\nUid:\t{}\t", USERS[number])), "{status}");
    }
    for number in [1, 0] {
        let stop = Run::of(ksync(number, &["keep", "stop"])).ok();
        assert!(stop.stderr.contains("ended 1 kept connection"), "{}", stop.stderr);
    }
}

#[test]
fn without_a_place_for_a_socket_nothing_is_kept() {
    let Some(kept) = Kept::start() else { return };
    let world = &kept.machine.world;
    world.tree("src").file("a", "one");
    let long = world.path("x".repeat(90));
    fs::create_dir(&long).unwrap();
    let sync = |runtime: &std::path::Path, state: &std::path::Path| {
        let mut command = kept.copy(&[]);
        command.env("XDG_RUNTIME_DIR", runtime).env("XDG_STATE_HOME", state);
        Run::of(command).ok()
    };
    let listed = |runtime: &std::path::Path, state: &std::path::Path| {
        let mut command = kept.ksync(["keep", "list"]);
        command.env("XDG_RUNTIME_DIR", runtime).env("XDG_STATE_HOME", state);
        Run::of(command).ok().stdout
    };
    // Both paths are too long for a socket.
    sync(&long, &long);
    assert_eq!(listed(&long, &long), "");
    // A runtime directory that is too long leaves the state directory.
    sync(&long, &world.path("state"));
    crate::world::wait_for("a keeper", || (!listed(&long, &world.path("state")).is_empty()).then_some(()));
    let mut stop = kept.ksync(["keep", "stop"]);
    stop.env("XDG_RUNTIME_DIR", &long);
    Run::of(stop).ok();
}

#[test]
fn a_stale_or_foreign_socket_costs_nothing_but_a_connection() {
    let Some(kept) = Kept::start() else { return };
    kept.machine.world.tree("src").file("a", "one");
    kept.sync(&[]).ok();
    let keeper = kept.keeper();
    let socket = kept.socket();
    keeper.signal(rustix::process::Signal::KILL);
    kept.ends(&keeper);
    assert!(socket.exists());
    // The next run connects by itself, and its keeper replaces the socket.
    kept.sync(&[]).ok();
    let keeper = kept.keeper();
    Run::of(kept.ksync(["keep", "stop"])).ok();
    kept.ends(&keeper);
    // A program that takes connections and talks nonsense.
    let listener = UnixListener::bind(&socket).unwrap();
    let talking = std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(3) {
            let _ = std::io::Write::write_all(&mut &stream, b"HTTP/1.1 400 what?\r\n\r\n");
        }
    });
    let run = kept.sync(&[]).ok();
    assert!(!run.stderr.contains("lost"), "{}", run.stderr);
    kept.is_same();
    while !talking.is_finished() {
        let _ = std::os::unix::net::UnixStream::connect(&socket);
    }
}
