//! OpenSSH's own clients and the SSH server of the emulator: forwards and file transfers.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use crate::sockets::{ask, capitals, leads_to_capitals, web};
use crate::world::service::{Service, closed_port};
use crate::world::skip::needs_programs;
use crate::world::{Emulator, Run, World, noise, wait_for};

/// An emulated VM.
struct Vm {
    world: World,
    options: String,
    _emulator: Emulator,
}

impl Vm {
    fn start() -> Option<Vm> {
        if !needs_programs(&["ssh", "scp", "sftp", "websocat"]) {
            return None;
        }
        let world = World::new();
        let emulator = Emulator::new(&world);
        let line = emulator.told["ssh_command"].as_str().expect("a command");
        let options = line.strip_prefix("ssh ").and_then(|line| line.strip_suffix(" root@localhost"));
        // Without this option websocat may keep bytes that did not fit into a full pipe.
        let options = options.expect("options").replace("websocat ", "websocat --no-async-stdio ");
        Some(Vm { world, options, _emulator: emulator })
    }

    /// A program of OpenSSH with the printed options, and more words of a shell's line.
    fn command(&self, program: &str, words: &str) -> Command {
        let mut command = self.world.command("sh");
        command.args([
            "-c",
            &format!("exec {program} -F none -o BatchMode=yes -o LogLevel=INFO {} {words}", self.options),
        ]);
        command
    }

    fn run(&self, program: &str, words: &str) -> Run {
        Run::of(self.command(program, words))
    }

    /// Starts ssh, with the log in a file.
    fn begin(&self, words: &str) -> Service {
        let mut command = self.command("ssh", words);
        let log = fs::File::create(self.world.path("log")).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        Service::start(command)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("log")).unwrap()
    }

    /// The port that the server chose.
    fn allocated(&self) -> u16 {
        wait_for("an allocated port", || {
            let log = self.log();
            log.lines().find_map(|line| line.strip_prefix("Allocated port ")?.split(' ').next()?.parse().ok())
        })
    }
}

fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn ssh_forwards_in_all_directions_until_it_ends() {
    let Some(vm) = Vm::start() else { return };
    let (target, local, socks) = (capitals(), closed_port(), closed_port());
    let ssh = vm.begin(&format!(
        "-N -o ExitOnForwardFailure=yes -L {local}:localhost:{target} -R '*:0:localhost:{target}' \
         -D {socks} root@localhost"
    ));
    let remote = vm.allocated();
    wait_for("the local listener", || is_open(local).then_some(()));
    leads_to_capitals(local, 25);
    leads_to_capitals(remote, 25);
    // Listeners are on loopback only, whatever the client asks for.
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let at_port = format!(":{remote:04X} ");
    let listeners = tables.iter().flat_map(|table| table.lines()).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, state) = (words.next()?, words.nth(1)?);
        (format!("{address} ").contains(&at_port) && state == "0A").then(|| address.to_owned())
    });
    let listeners: Vec<_> = listeners.collect();
    assert!(!listeners.is_empty() || cfg!(not(target_os = "linux")));
    for address in listeners {
        assert!(
            address.starts_with("0100007F:") || address.starts_with("00000000000000000000000001000000:"),
            "{address}"
        );
    }
    drop(ssh);
    wait_for("the end of the listener", || (!is_open(remote)).then_some(()));
}

#[test]
fn ssh_w_is_a_connection_from_the_vm() {
    let Some(vm) = Vm::start() else { return };
    let mut command = vm.command("ssh", &format!("-W localhost:{} root@localhost", capitals()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"words").unwrap();
    assert_eq!(Run::end_of(child).ok().stdout, "WORDS");
    let refused = vm.run("ssh", &format!("-W localhost:{} root@localhost", closed_port())).fails(255);
    assert_eq!(refused.stdout, "");
}

#[test]
fn a_running_ssh_adds_and_cancels_forwards() {
    let Some(vm) = Vm::start() else { return };
    let target = capitals();
    let master = vm.begin("-M -S master -N root@localhost");
    let control = |words: &str| {
        let run = vm.run("ssh", &format!("-S master {words} root@localhost"));
        (run.status.success(), run.stdout)
    };
    wait_for("the master", || control("-O check").0.then_some(()));
    let (is_done, port) = control(&format!("-O forward -R 0:localhost:{target}"));
    let port: u16 = port.trim().parse().unwrap();
    assert!(is_done);
    assert_eq!(ask(port, b"once"), b"ONCE");
    // A port that is taken is refused.
    assert!(!control(&format!("-O forward -R {target}:localhost:{target}")).0);
    // A forward is cancelled by the port that it was asked for with.
    assert!(control(&format!("-O cancel -R 0:localhost:{target}")).0);
    wait_for("the end of the listener", || (!is_open(port)).then_some(()));
    drop(master);
}

#[test]
fn scp_and_sftp_copy_to_the_emulator_and_back() {
    let Some(vm) = Vm::start() else { return };
    let content = noise(7, 3_000_000);
    fs::write(vm.world.path("file"), &content).unwrap();
    // A path below the VM's home directory.
    for mode in ["", "-O"] {
        vm.run("scp", &format!("-q {mode} file root@localhost:up")).ok();
        vm.run("scp", &format!("-q {mode} root@localhost:up down")).ok();
        assert!(fs::read(vm.world.path("down")).unwrap() == content, "{mode}");
        vm.run("ssh", "root@localhost rm up").ok();
        fs::remove_file(vm.world.path("down")).unwrap();
    }
    fs::write(vm.world.path("batch"), "mkdir d\nput file d/up\nls d\nget d/up back\nrm d/up\nrmdir d\n")
        .unwrap();
    let run = vm.run("sftp", "-q -b batch root@localhost").ok();
    assert!(run.stdout.contains("d/up"), "{}", run.stdout);
    assert!(fs::read(vm.world.path("back")).unwrap() == content);
    // There is no other subsystem.
    let run = vm.run("ssh", "-s root@localhost netconf");
    assert_eq!(run.status.code(), Some(255), "{}", run.stderr);
}

/// VS Code's procedure: a shell that reads a script and stays, beside a SOCKS proxy.
#[test]
fn an_editor_reaches_its_server_on_the_emulator() {
    let Some(vm) = Vm::start() else { return };
    let (target, socks) = (web("the editor's server"), closed_port());
    let mut ssh = vm.command("ssh", &format!("-T -D {socks} root@localhost bash"));
    let mut shell = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut script = shell.stdin.take().unwrap();
    script.write_all(b"echo ready\n").unwrap();
    wait_for("the proxy", || is_open(socks).then_some(()));
    if needs_programs(&["curl"]) {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "", "-x", &format!("socks5h://127.0.0.1:{socks}")]);
        curl.arg(format!("http://localhost:{target}/"));
        assert_eq!(Run::of(curl).ok().stdout, "the editor's server");
    }
    drop(script);
    assert!(shell.wait().unwrap().success());
}
