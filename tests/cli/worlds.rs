//! `sandbox:` and `ksync sandbox` have files of their own: a world, or at least a directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::world::skip::{needs, needs_superuser};
use crate::world::{Emulator, Run, World, wait_for};

/// User and group of nobody.
const NOBODY: u32 = 65534;

/// A command of ksync with a world of its own.
fn isolated(mut command: Command) -> Command {
    command.env_remove("KSYNC_SANDBOX_HOST_FILES");
    command
}

fn run(world: &World, args: &[&str]) -> Run {
    Run::of(isolated(world.ksync(args)))
}

/// True unless the VM warned that a place does not stay: the system's directories on a filesystem
/// that cannot hold their changes.
fn stays(sent: Run, place: &str) -> bool {
    let is_volatile = sent.stderr.contains("loses its changes");
    !(is_volatile && (place.starts_with("usr") || place.starts_with("etc")))
}

/// A name that this machine has nowhere.
fn name() -> String {
    let name = format!("ksync-test-{}-{:?}", std::process::id(), std::thread::current().id());
    name.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect()
}

#[test]
fn what_was_sent_to_the_sandbox_stays_there_and_only_there() {
    let (world, name) = (World::new(), name());
    world.tree("src").with_everything();
    for (index, place) in ["tmp", "srv", "usr/local", "root", "new"].into_iter().enumerate() {
        let back = format!("back-{index}");
        let there = format!("sandbox:/{place}/{name}");
        if !stays(run(&world, &["src", &there]).ok(), place) {
            continue;
        }
        assert!(run(&world, &["src", &there]).ok().stdout.starts_with("nothing to do: "), "{place}");
        run(&world, &["--links", &there, &back]).ok();
        world.assert_same("src", &back);
        assert!(!Path::new(&format!("/{place}/{name}")).exists(), "{place} on this machine");
    }
    let told = run(&world, &["src", "sandbox:x", "--exec", "id -un; pwd; echo $HOME $SHELL"]).ok();
    assert!(told.stdout.contains("root\n") && told.stdout.contains("/root /bin/bash"), "{}", told.stdout);
}

#[test]
fn a_deletion_in_a_session_spares_the_same_path_here() {
    if !needs_superuser() {
        return;
    }
    let (world, place) = (World::new(), PathBuf::from("/srv").join(name()));
    fs::create_dir(&place).expect("a directory");
    fs::write(place.join("mine"), "1").expect("a file");
    world.tree("src").file("a", "2");
    let emulator = Emulator::isolated(&world, "vms");
    let session = Run::of(emulator.lend(world.ksync(["session", "create"]))).ok();
    assert!(!session.stdout.is_empty());
    let endpoint = format!("session:{}", place.display());
    let force = format!("--force-delete-in={}", place.display());
    Run::of(emulator.lend(world.ksync(["--delete", "--yes", &force, "src", &endpoint]))).ok();
    let sandbox = format!("sandbox:{}", place.display());
    run(&world, &["--delete", "--yes", &force, "src", &sandbox]).ok();
    let here: Vec<_> =
        fs::read_dir(&place).expect("a directory").map(|entry| entry.expect("an entry")).collect();
    let is_unchanged =
        here.len() == 1 && fs::read_to_string(place.join("mine")).is_ok_and(|text| text == "1");
    fs::remove_file(place.join("mine")).expect("the file");
    fs::remove_dir(&place).expect("the directory");
    assert!(is_unchanged, "{here:?}");
}

/// A world whose files belong to nobody, with a ksync that nobody can run.
fn of_nobody() -> (World, PathBuf) {
    let world = World::new();
    let ksync = world.path("ksync");
    fs::copy(env!("CARGO_BIN_EXE_ksync"), &ksync).expect("a copy");
    for name in ["", "home", "tmp", "cache", "config", "state", "data", "ksync"] {
        fs::set_permissions(world.path(name), fs::Permissions::from_mode(0o755)).expect("a mode");
        chown(world.path(name), Some(NOBODY), Some(NOBODY)).expect("an owner");
    }
    (world, ksync)
}

#[test]
fn a_user_without_rights_has_worlds_too() {
    if !needs_superuser() {
        return;
    }
    let ((world, ksync), name) = (of_nobody(), name());
    world.tree("src").file("a", "1").file("deep/b", "2");
    let as_nobody = |args: &[&str]| {
        let mut command = isolated(world.command(&ksync));
        command.args(args).uid(NOBODY).gid(NOBODY);
        Run::of(command)
    };
    for place in ["tmp", "root", "usr/local/share", "etc", "srv"] {
        let there = format!("sandbox:/{place}/{name}");
        let sent = as_nobody(&["src", &there]);
        let has_world = !sent.stderr.contains("no files of its own");
        if !needs(has_world, format!("nobody has no worlds here: {}", sent.stderr)) {
            return;
        }
        if stays(sent.ok(), place) {
            assert!(as_nobody(&["src", &there]).ok().stdout.starts_with("nothing to do: "), "{place}");
        }
        assert!(!Path::new(&format!("/{place}/{name}")).exists(), "{place} on this machine");
    }
    let told = as_nobody(&["src", "sandbox:x", "--exec", "id -u; pwd; ls /home"]).ok();
    assert!(told.stdout.contains("/root\n") && told.stdout.contains("kernel\n"), "{}", told.stdout);
}

/// A command of ksync in a user namespace in which nobody can make mount namespaces.
fn confined(world: &World, args: &[&str]) -> Command {
    let mut command = isolated(world.command("unshare"));
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    command.arg("echo 0 >/proc/sys/user/max_mnt_namespaces && exec \"$@\"").arg("sh");
    command.arg(env!("CARGO_BIN_EXE_ksync")).args(args);
    command
}

#[test]
fn without_namespaces_the_sandbox_warns_and_refuses_paths_of_this_machine() {
    let world = World::new();
    world.tree("src").file("a", "1");
    let confined = |args: &[&str]| Run::of(confined(&world, args));
    if !needs(confined(&["--version"]).status.success(), "there are no user namespaces here") {
        return;
    }
    let warning = "ksync: warning: the emulated VM has no files of its own, so its commands see and change those \
                   of this machine: ";
    let place = world.path("dst");
    let there = format!("sandbox:{}", place.display());
    let refused = confined(&["src", &there]).fails(3);
    assert!(refused.stderr.contains(warning), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("{} is a path of this machine", place.display())));
    assert!(refused.stderr.contains("--host-files"), "{}", refused.stderr);
    assert!(!place.exists());
    for path in ["sandbox:/etc/hosts", "sandbox:../../../up"] {
        assert!(confined(&[path, "back"]).fails(3).stderr.contains("is a path of this machine"), "{path}");
    }
    let home = world.far_home();
    for (path, arrived) in [("sandbox:site", "site"), (&*format!("sandbox:{}/x", home.display()), "x")] {
        let done = confined(&["src", path]).ok();
        assert!(done.stderr.contains(warning), "{}", done.stderr);
        assert!(home.join(arrived).join("a").exists(), "{path}");
    }
    // Whoever asks for this machine's files gets them, without a word.
    let done = confined(&["--host-files", "src", &there]).ok();
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    assert!(place.join("a").exists());
}

#[test]
fn without_namespaces_a_session_takes_no_path_of_this_machine() {
    let world = World::new();
    world.tree("src").file("a", "1");
    if !needs(Run::of(confined(&world, &["--version"])).status.success(), "there are no user namespaces here")
    {
        return;
    }
    let exports = Run::of(confined(&world, &["sandbox", "--export", "--home", "vms"])).ok();
    assert!(exports.stderr.contains("has no files of its own"), "{}", exports.stderr);
    let variables: Vec<(String, String)> = exports
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect();
    let ksync = |args: &[&str]| {
        let mut command = isolated(world.ksync(args));
        command.envs(variables.iter().cloned());
        Run::of(command)
    };
    ksync(&["session", "create"]).ok();
    let place = world.path("dst");
    let refused = ksync(&["src", &format!("session:{}", place.display())]).fails(3);
    assert!(refused.stderr.contains("is a path of this machine") && !place.exists(), "{}", refused.stderr);
    ksync(&["session:/etc/hosts", "back"]).fails(3);
    ksync(&["-w", "src", "session:/etc/ksync-test"]).fails(3);
    ksync(&["src", "session:site"]).ok();
    ksync(&["session:site", "back"]).ok();
    world.assert_same("src", "back");
    let pid = variables.iter().find(|(name, _)| name == "KSYNC_SANDBOX_PID").expect("a pid");
    kill_process(Pid::from_raw(pid.1.parse().expect("a pid")).expect("a pid"), Signal::TERM)
        .expect("a signal");
}

#[test]
fn a_shell_evaluates_the_exports_of_a_sandbox_in_the_background() {
    let world = World::new();
    let mut shell = isolated(world.command("sh"));
    shell.arg("-ec").arg(
        "eval \"$(\"$1\" sandbox --export --home vms)\"; echo $KSYNC_SANDBOX_PID; \"$1\" session create; \
         kill $KSYNC_SANDBOX_PID",
    );
    shell.arg("sh").arg(env!("CARGO_BIN_EXE_ksync"));
    let done = Run::of(shell).ok();
    let lines: Vec<_> = done.stdout.lines().collect();
    assert!(matches!(lines[..], [_, id] if id.len() == 24), "{}", done.stdout);
    wait_for("the end of the emulator", || (!Path::new("/proc").join(lines[0]).exists()).then_some(()));
    // Nothing of the session is left.
    let left = fs::read_dir(world.path("vms")).expect("a directory").map(|entry| entry.expect("an entry"));
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["world"]);
}

/// True while a process of this machine sleeps for this duration.
fn sleeps(mark: &str) -> bool {
    let line = format!("sleep\0{mark}\0");
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    processes
        .map(|process| process.path().join("cmdline"))
        .any(|path| fs::read(path).is_ok_and(|text| text == line.as_bytes()))
}

#[test]
fn a_killed_emulator_leaves_no_process_of_its_sessions() {
    let (world, mark) = (World::new(), format!("1000.{}", std::process::id()));
    let mut shell = isolated(world.command("sh"));
    shell.arg("-ec").arg(
        "eval \"$(\"$1\" sandbox --export --home vms)\"; echo $KSYNC_SANDBOX_PID; \"$1\" session create >&2
         \"$1\" ssh session \"setsid sleep $2 </dev/null >/dev/null 2>&1 &\"",
    );
    shell.arg("sh").arg(env!("CARGO_BIN_EXE_ksync")).arg(&mark);
    let done = Run::of(shell).ok();
    let emulator = Pid::from_raw(done.stdout.trim().parse().expect("a pid")).expect("a pid");
    wait_for("a process in the session", || sleeps(&mark).then_some(()));
    kill_process(emulator, Signal::KILL).expect("a signal");
    wait_for("its end", || (!sleeps(&mark)).then_some(()));
}
