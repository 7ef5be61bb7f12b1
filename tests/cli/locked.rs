//! Locks on a destination: those of other users, and ksync's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::world::{World, wait_for};

/// Holds a lock on a file or directory as another user, until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(path: &Path) -> Holder {
        let mut command = Command::new("flock");
        command.arg("--exclusive").arg(path).args(["sh", "-c", "echo held; exec sleep 100"]);
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.as_mut().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert_eq!(line, "held\n", "{} cannot be locked", path.display());
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn another_users_lock_on_the_destination_stops_no_run() {
    let world = World::new();
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    world.tree("src").file("a", "new").file("dir/b", "new");
    world.tree("dst").file("a", "old").file("dir/b", "old");
    let paths = ["", "a", "dir", "dir/b"].map(|name| world.path("dst").join(name));
    let _holders = paths.each_ref().map(|path| Holder::of(path));
    world.sync("src", "dst");
    world.assert_same("src", "dst");
    world.tree("src").file("a", "newer");
    world.sync("src", world.far("dst"));
    world.assert_same("src", "dst");
    // A run with nothing to do leaves no trace.
    let before = fs::metadata(world.path("dst")).unwrap().modified().unwrap();
    assert!(world.sync("src", "dst").summary.starts_with("nothing to do"));
    assert_eq!(fs::metadata(world.path("dst")).unwrap().modified().unwrap(), before);
    assert!(!world.path("dst/.ksync").exists());
}

#[test]
fn a_second_run_waits_for_the_first_and_then_reports_it() {
    let world = World::new();
    world.tree("src").file("a", "text");
    world.tree("dst").dir(".ksync");
    fs::set_permissions(world.path("dst/.ksync"), fs::Permissions::from_mode(0o700)).unwrap();
    let lock = fs::File::create(world.path("dst/.ksync/lock")).unwrap();
    lock.lock().unwrap();
    let run = world.run(["src", "dst"]).fails(5);
    assert!(run.stderr.contains("another run is using it"), "{}", run.stderr);
    // A dry run takes no lock.
    world.run(["--dry-run", "src", "dst"]).ok();
    // A lock that is released in time does not matter.
    let waiting = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        drop(lock);
    });
    world.sync("src", "dst");
    waiting.join().unwrap();
    world.assert_same("src", "dst");
    wait_for("the end of the state directory", || (!world.path("dst/.ksync").exists()).then_some(()));
}
