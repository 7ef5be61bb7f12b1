//! The sockets of keepers: whose they may be, and where.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;

use crate::kept::Kept;
use crate::world::Run;

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
