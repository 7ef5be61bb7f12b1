//! Worlds, with the rights of the user who runs the tests. Without namespaces they test nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use crate::isolation::{Files, Isolation};
use crate::machine::{Directories, Launch, Machine};
use crate::process::PATH;
use crate::world::User;

/// A machine in a directory that is removed after it.
struct Vm {
    machine: Machine,
    folder: tempfile::TempDir,
}

impl Vm {
    async fn new() -> Vm {
        let folder = tempfile::tempdir().expect("a folder");
        Vm { machine: machine(&folder).await, folder }
    }

    async fn run(&self, user: User, line: &str) -> Output {
        let launch = Launch {
            program: OsStr::new("sh"),
            args: ["-c", line].map(OsString::from).into(),
            cwd: None,
            user,
            search_path: OsStr::new(PATH),
            has_terminal: false,
        };
        let mut command = self.machine.command(launch).expect("a command");
        let output = tokio::time::timeout(Duration::from_secs(60), command.output());
        output.await.expect("no hang").expect("an output")
    }

    /// Runs a line of shell as root, and asserts that it says nothing but what is returned.
    async fn sh(&self, line: &str) -> String {
        let done = self.run(User::Root, line).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(done.status.success() && done.stderr.is_empty(), "{line}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    async fn end(self) -> PathBuf {
        self.machine.stop().await;
        self.machine.remove_world().await;
        self.folder.path().join("world")
    }
}

async fn machine(folder: &tempfile::TempDir) -> Machine {
    let path = |name: &str| folder.path().join(name);
    let directories =
        Directories { world: path("world"), root: path("root"), home: path("root"), variable: None };
    Machine::start(Isolation::World, directories).await.expect("a machine")
}

#[tokio::test]
async fn a_world_has_its_own_files_and_ends_with_all_of_its_processes() {
    let vm = Vm::new().await;
    if let Files::Rooted { reason } = vm.machine.files() {
        let is_required = std::env::var_os("KSYNC_REQUIRE_PEERS").is_some_and(|value| value == "1");
        assert!(!is_required, "{reason}");
        return;
    }
    assert_eq!(vm.sh("id -u; pwd; echo $HOME").await, "0\n/root\n/root\n");
    let kernel = vm.run(User::Kernel, "id -un; id -u; pwd; echo $HOME").await;
    assert_eq!(String::from_utf8_lossy(&kernel.stdout), "kernel\n1000\n/home/kernel\n/home/kernel\n");
    assert_eq!(vm.sh("for name in rsync zstd; do ! command -v $name || exit 1; done").await, "");
    vm.sh("echo 1 >/etc/new; rm /usr/bin/yes; echo 1 >/usr/local/bin/new; mknod /tmp/fifo p").await;
    assert!(Path::new("/usr/bin/yes").exists() && !Path::new("/etc/new").exists());
    let mark = format!("1000.{}", std::process::id());
    vm.sh(&format!("setsid sleep {mark} >/dev/null 2>&1 </dev/null & echo")).await;
    while !is_alive(&mark) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let world = vm.end().await;
    assert!(!is_alive(&mark) && !world.exists());
}

#[tokio::test]
async fn files_of_a_world_stay_and_a_second_world_takes_none_away() {
    let vm = Vm::new().await;
    // Some filesystems, such as that of a container, cannot hold an overlay's changes.
    if vm.machine.files() != &(Files::World { volatile: None }) {
        return;
    }
    // A user may install what a new VM lacks.
    vm.sh("echo 1 >/tmp/kept; echo 1 >/etc/kept; cp /bin/true /usr/bin/rsync").await;
    let second = machine(&vm.folder).await;
    let Files::World { volatile: Some(reason) } = second.files() else { panic!("{:?}", second.files()) };
    assert!(reason.contains("another"), "{reason}");
    assert!(second.root().find("tmp/kept").is_ok() && second.root().find("etc/kept").is_err());
    second.stop().await;
    vm.sh("cat /tmp/kept /etc/kept").await;
    vm.machine.stop().await;
    drop(vm.machine);
    let again = machine(&vm.folder).await;
    assert_eq!(again.files(), &Files::World { volatile: None });
    assert!(again.root().find("etc/kept").is_ok() && again.root().find("usr/bin/rsync").is_ok());
    again.stop().await;
    again.remove_world().await;
}

/// True while a process of this machine sleeps for this duration.
fn is_alive(mark: &str) -> bool {
    let line = format!("sleep\0{mark}\0");
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    processes
        .map(|process| process.path().join("cmdline"))
        .any(|path| std::fs::read(path).is_ok_and(|text| text == line.as_bytes()))
}
