//! `ksync ssh -L`, `-R`, `-D` and `-N`, through a real sshd and through the emulator of the
//! platform.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::shell::{PROMPT, machine, machine_with};
use crate::sockets::{ask, capitals, connect, greeter, leads_to_capitals, serve, taken_port, web};
use crate::world::skip::needs_programs;
use crate::world::{Emulator, Run, Terminal, World, wait_for};

/// Makes the command `ksync ssh VM` with more arguments.
type Ssh = Box<dyn Fn(&[&str]) -> Command>;

/// A VM for `ksync ssh`.
struct Vm {
    name: &'static str,
    ssh: Ssh,
}

/// A VM with a real sshd, and one of the emulator.
fn vms() -> Vec<Vm> {
    [real(), Some(emulated())].into_iter().flatten().collect()
}

fn real() -> Option<Vm> {
    let (machine, services) = machine()?;
    let ssh = move |args: &[&str]| {
        // The closure keeps all of it.
        let (machine, _services) = (&machine, &services);
        machine.world.ksync(["ssh", "--ca-cert", "ca.pem", "vm"].iter().chain(args))
    };
    Some(Vm { name: "sshd", ssh: Box::new(ssh) })
}

fn emulated() -> Vm {
    let world = World::new();
    let emulator = Emulator::new(&world);
    let id = Run::of(emulator.lend(world.ksync(["session", "create"]))).ok().stdout.trim().to_owned();
    let ssh = move |args: &[&str]| emulator.lend(world.ksync(["ssh", &id].iter().chain(args)));
    Vm { name: "emulator", ssh: Box::new(ssh) }
}

/// A running `ksync ssh`.
struct Running {
    child: Child,
    told: Arc<Mutex<String>>,
    telling: Option<JoinHandle<()>>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stderr, told) = (child.stderr.take().unwrap(), Arc::new(Mutex::new(String::new())));
        let shared = Arc::clone(&told);
        let telling = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Running { child, told, telling: Some(telling) }
    }

    /// Starts forwards without a command, and waits until they work.
    fn forward(vm: &Vm, args: &[&str]) -> Running {
        let running = Running::start((vm.ssh)(&[&["-N"], args].concat()));
        running.sees("; Ctrl-C ends it\n");
        running
    }

    fn told(&self) -> String {
        self.told.lock().unwrap().clone()
    }

    #[track_caller]
    fn sees(&self, text: &str) {
        wait_for(text, || self.told().contains(text).then_some(()));
    }

    /// The port that was allocated for a kind of forward.
    #[track_caller]
    fn port(&self, kind: &str) -> u16 {
        let find = |line: &str| {
            let (port, what) = line.strip_prefix("Allocated port ")?.split_once(" for ")?;
            what.starts_with(kind).then(|| port.parse().unwrap())
        };
        wait_for(kind, || self.told().lines().find_map(find))
    }

    /// Presses Ctrl-C and returns the exit code.
    fn interrupt(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        (self.end(), self.told())
    }

    /// Waits for the end, and for all that it told.
    fn end(&mut self) -> Option<i32> {
        let status = wait_for("the end of ksync", || self.child.try_wait().unwrap());
        self.telling.take().unwrap().join().unwrap();
        status.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn forwards_of_all_kinds_carry_many_connections_at_once() {
    for vm in vms() {
        let (target, page) = (format!("localhost:{}", capitals()), web("a page"));
        let (local, remote) = (format!("0:{target}"), format!("0:{target}"));
        let more = format!("[127.0.0.1]:0:{target}");
        let running = Running::forward(
            &vm,
            &["-L", &local, "-R", &remote, "-D", "0", "-L", &more, "-R", "127.0.0.1:0"],
        );
        for kind in ["local forward", "remote forward"] {
            let port = running.port(kind);
            leads_to_capitals(port, 25);
            let told = running.told();
            assert!(told.contains(&format!("Allocated port {port} for {kind} to {target}\n")), "{told}");
        }
        if needs_programs(&["curl"]) {
            let socks: Vec<_> = running.told().lines().filter_map(socks_port).collect();
            assert_eq!(socks.len(), 2, "{}: {}", vm.name, running.told());
            for (port, proxy) in socks.iter().flat_map(|port| {
                ["socks4", "socks4a", "socks5", "socks5h"]
                    .map(|version| (port, format!("{version}://127.0.0.1:{port}")))
            }) {
                let mut curl = Command::new("curl");
                curl.args(["-sS", "--noproxy", "", "-x", &proxy, &format!("http://localhost:{page}/")]);
                assert_eq!(Run::of(curl).ok().stdout, "a page", "{}: {port} {proxy}", vm.name);
            }
        }
        let (exit, told) = running.interrupt();
        assert_eq!(exit, Some(20), "{told}");
        assert!(told.ends_with("ksync: stopped by a signal\n"), "{told}");
    }
}

fn socks_port(line: &str) -> Option<u16> {
    line.strip_prefix("Allocated port ")?.strip_suffix(" for dynamic forward")?.parse().ok()
}

#[test]
fn each_direction_of_a_forwarded_connection_ends_by_itself() {
    for vm in vms() {
        let (port, heard) = greeter();
        let running = Running::forward(
            &vm,
            &["-L", &format!("0:localhost:{port}"), "-R", &format!("0:localhost:{port}")],
        );
        for kind in ["local forward", "remote forward"] {
            let mut socket = connect(running.port(kind));
            let mut greeting = Vec::new();
            // The answer's end arrives before anything is sent.
            socket.read_to_end(&mut greeting).unwrap();
            assert_eq!(greeting, b"hello", "{}: {kind}", vm.name);
            socket.write_all(b"and back").unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            assert_eq!(heard.recv_timeout(crate::world::DEADLINE).unwrap(), b"and back");
        }
    }
}

#[test]
fn a_refused_target_closes_one_connection_and_the_rest_goes_on() {
    for vm in vms() {
        let (closed, listeners) = taken_port();
        drop(listeners);
        let (dead, alive) = (format!("localhost:{closed}"), format!("0:localhost:{}", capitals()));
        let (local, remote) = (format!("127.0.0.1:0:{dead}"), format!("0:{dead}"));
        let running = Running::forward(&vm, &["-R", &remote, "-L", &local]);
        for (kind, line) in [
            (
                "local forward",
                format!("ksync: could not open a connection to {dead} there: connect failed\n"),
            ),
            (
                "remote forward",
                format!("ksync: could not open a connection to {dead} here: connection refused\n"),
            ),
        ] {
            // The server may close a connection with a reset.
            let mut answer = Vec::new();
            let _ = connect(running.port(kind)).read_to_end(&mut answer);
            assert_eq!(answer, b"", "{}: {kind}", vm.name);
            running.sees(&line);
        }
        // Another one beside it still works, with a command in the shell.
        let mut running = Running::start((vm.ssh)(&["-L", &local, "-L", &alive, "cat; exit 3"]));
        let ports = wait_for("two ports", || {
            let told = running.told();
            let ports: Vec<u16> =
                told.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok()).collect();
            (ports.len() == 2).then_some(ports)
        });
        let mut answer = Vec::new();
        let _ = connect(ports[0]).read_to_end(&mut answer);
        assert_eq!(ask(ports[1], b"more"), b"MORE");
        let (mut stdin, mut stdout) =
            (running.child.stdin.take().unwrap(), running.child.stdout.take().unwrap());
        stdin.write_all(b"typed").unwrap();
        drop(stdin);
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!((said.as_str(), running.end()), ("typed", Some(3)), "{}", running.told());
        // The listener ended with the command.
        assert!(TcpStream::connect(("127.0.0.1", ports[1])).is_err());
    }
}

#[test]
fn a_listener_that_cannot_be_had_is_an_error_before_the_command() {
    for vm in vms() {
        let (taken, _listeners) = taken_port();
        let forward = format!("{taken}:localhost:1");
        let run = Run::of((vm.ssh)(&["-L", &forward, "echo run"])).fails(10);
        assert_eq!(run.stdout, "");
        run.says(&format!(
            "ksync: could not listen on localhost:{taken}: address already in use\n  hint: Choose another port, or end the program that listens there.\n"
        ));
        let run = Run::of((vm.ssh)(&["-R", &forward, "echo run"])).fails(10);
        assert_eq!(run.stdout, "", "{}", vm.name);
        let text = format!("ksync: could not forward localhost:{taken} there: ");
        assert!(run.stderr.contains(&text), "{}", run.stderr);
        assert!(run.stderr.contains("\n  hint: Choose another port: "), "{}", run.stderr);
    }
}

/// A reader that takes nothing costs a file, but no memory, and no other connection waits for it.
#[test]
fn a_slow_reader_fills_no_memory_and_holds_nothing_else_up() {
    const BYTES: usize = 96 << 20;
    fn flood() -> impl Iterator<Item = Vec<u8>> {
        (0..BYTES / 8 / 8192)
            .map(|block| (0..8192).flat_map(|at| (block * 8192 + at).to_le_bytes()).collect())
    }
    for vm in vms() {
        let is_sent = Arc::new(Mutex::new(false));
        let sent = Arc::clone(&is_sent);
        let port = serve(move |mut socket| {
            flood().for_each(|block| socket.write_all(&block).unwrap());
            *sent.lock().unwrap() = true;
        });
        let other = format!("0:localhost:{}", capitals());
        let running = Running::forward(&vm, &["-L", &format!("0:localhost:{port}"), "-R", &other]);
        let mut slow = connect(running.port("local forward"));
        wait_for("all of it on its way", || {
            leads_to_capitals(running.port("remote forward"), 2);
            is_sent.lock().unwrap().then_some(())
        });
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())) {
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
            assert!(peak < 80 << 10, "{}: {peak} kB", vm.name);
        }
        let mut received = Vec::new();
        slow.read_to_end(&mut received).unwrap();
        assert!(received.len() == BYTES && received.chunks(65536).eq(flood()), "{}", vm.name);
    }
}

#[test]
fn a_shells_output_that_nobody_takes_holds_no_forward_up() {
    for vm in vms() {
        let forward = format!("0:localhost:{}", capitals());
        let command = "head -c 20000000 /dev/zero; echo all of it >&2";
        let mut running = Running::start((vm.ssh)(&["-R", &forward, command]));
        running.sees("all of it\n");
        leads_to_capitals(running.port("remote forward"), 3);
        let mut output = Vec::new();
        running.child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        assert_eq!((output.len(), running.end()), (20_000_000, Some(0)), "{}", vm.name);
    }
}

#[test]
fn a_server_that_does_not_read_slows_its_client_down() {
    let Some(vm) = real() else { return };
    let port = serve(|socket| {
        thread::sleep(crate::world::DEADLINE);
        drop(socket);
    });
    let running = Running::forward(&vm, &["-L", &format!("0:localhost:{port}")]);
    let mut socket = connect(running.port("local forward"));
    socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let (block, mut sent) = (vec![7; 1 << 16], 0);
    while sent < 100 << 20 {
        match socket.write(&block) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    assert!(sent < 50 << 20, "{sent} bytes");
}

#[test]
fn a_server_that_forbids_forwards_is_reported_as_such() {
    let Some((machine, _services)) = machine_with("AllowTcpForwarding no") else { return };
    let ssh = |args: &[&str]| machine.world.ksync(["ssh", "--ca-cert", "ca.pem", "vm"].iter().chain(args));
    let running = Running::start(ssh(&["-N", "-L", "0:localhost:22"]));
    drop(connect(running.port("local forward")));
    running.sees(
        "ksync: could not open a connection to localhost:22 there: the server forbids it (AllowTcpForwarding, PermitOpen)\n",
    );
    let run = Run::of(ssh(&["-N", "-R", "0:localhost:22"])).fails(10);
    assert!(run.stderr.contains("AllowTcpForwarding and PermitListen"), "{}", run.stderr);
}

#[test]
fn a_server_with_rare_algorithms_only_is_reported_as_one_without_forwards() {
    let Some((machine, _services)) = machine_with(crate::own::SETTINGS) else { return };
    let ssh =
        |args: &[&str]| Run::of(machine.world.ksync(["ssh", "--ca-cert", "ca.pem", "vm"].iter().chain(args)));
    for forward in ["-L0:a:1", "-R0:a:1", "-D0"] {
        let run = ssh(&["-N", forward]).fails(10);
        assert!(run.stderr.contains("its sshd has only sntrup761 or UMAC\n  hint: "), "{}", run.stderr);
    }
    assert_eq!(ssh(&["echo here"]).ok().stdout, "here\n");
}

#[test]
fn forwards_go_beside_a_shell_in_a_terminal() {
    let Some((machine, _services)) = machine() else { return };
    let (closed, listeners) = taken_port();
    drop(listeners);
    let (dead, alive) = (format!("0:localhost:{closed}"), format!("0:localhost:{}", capitals()));
    let args = ["ssh", "--ca-cert", "ca.pem", "vm", "-L", &alive, "-L", &dead];
    let mut terminal = Terminal::new(&machine.world, &machine.world.ksync(args));
    terminal.sees(PROMPT);
    let output = terminal.output();
    let ports = output
        .lines()
        .filter_map(|line| line.strip_prefix("Allocated port ")?.split(' ').next()?.parse().ok());
    let ports: Vec<u16> = ports.collect();
    leads_to_capitals(ports[0], 3);
    drop(connect(ports[1]));
    // The line ends as a raw terminal needs it.
    terminal
        .sees(&format!("ksync: could not open a connection to localhost:{closed} there: connect failed\r\n"));
    terminal.types("exit 7\n");
    terminal.ends_with(7);
}

#[test]
fn a_unix_socket_can_stand_at_either_end_of_a_forward() {
    let Some(vm) = real() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    // A chain: a local socket, one there, one here, and the server.
    let server = format!("localhost:{}", capitals());
    let (there, here) = (format!("{}:{}", path("there"), path("here")), format!("{}:{server}", path("here")));
    let running = Running::forward(&vm, &["-L", &here, "-R", &there, "-L", &format!("0:{}", path("there"))]);
    leads_to_capitals(running.port("local forward"), 3);
    assert_eq!(running.interrupt().0, Some(20));
    assert!(!folder.path().join("here").exists());
}

#[test]
fn a_lost_connection_ends_the_forwards_with_10() {
    let Some((machine, (_tls, bridge))) = machine() else { return };
    let args = ["ssh", "--ca-cert", "ca.pem", "-N", "-D", "0", "vm"];
    let mut running = Running::start(machine.world.ksync(args));
    running.sees("forwarding SOCKS on localhost:");
    drop(bridge);
    assert_eq!(running.end(), Some(10), "{}", running.told());
    running.sees("ksync: lost the connection to ");
}
