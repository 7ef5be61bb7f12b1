//! The VM emulator with real clients: OpenSSH's `ssh` logs in through `websocat`.
//!
//! A test whose peers are missing reports that and passes, unless `KSYNC_REQUIRE_PEERS=1`. The
//! tests look for `websocat` in `PATH` and in `KSYNC_PEERS_BIN`.
#![cfg(feature = "sandbox")]

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ksync::sandbox::{Isolation, LinkConditions, Options, Sandbox, SandboxError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

mod world;

use world::skip::{needs_programs, path};
use world::{DEADLINE, noise};

/// Options with which `websocat` keeps no bytes back.
const STEADY: &str = "--no-async-stdio --ping-interval 1";

/// A sandbox, and a client's home directory with its key.
struct World {
    sandbox: Sandbox,
    folder: tempfile::TempDir,
}

impl World {
    /// Skips the test if a peer is missing.
    async fn new(conditions: LinkConditions) -> Option<World> {
        if !needs_programs(&["websocat", "ssh", "ssh-keygen"]) {
            return None;
        }
        let folder = tempfile::tempdir().expect("folder");
        let sandbox = start(folder.path(), conditions).await.expect("start");
        let world = World { sandbox, folder };
        let mut key = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(world.key())
            .expect("key file");
        key.write_all(world.sandbox.client_key().as_bytes()).expect("key");
        Some(world)
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    fn vm_home(&self) -> PathBuf {
        self.folder.path().join("vm")
    }

    /// A client that ignores the settings of the user who runs the tests.
    fn peer(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", path()).env("HOME", self.folder.path()).kill_on_drop(true);
        command
    }

    /// `ssh` through `websocat`, with blocking standard output and a ping each second.
    ///
    /// Without these options websocat 1.14.1 may keep its last bytes until more arrive, perhaps for
    /// ever. It does not repeat a flush that would have blocked. On the way down it keeps up to 1
    /// KiB, in the buffer of Rust's `stdout`, when the pipe to a busy `ssh` is full. On the way up
    /// it keeps up to one frame, when the socket is full.
    fn ssh_with(&self, options: &[&str], remote: &str) -> Command {
        let mut command = self.peer("ssh");
        command
            .args(["-F", "none", "-o"])
            .arg(format!("ProxyCommand=websocat {STEADY} --binary {}", self.sandbox.url()));
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "LogLevel=ERROR", "-o", "BatchMode=yes"]).args(options);
        command.arg("root@localhost").args((!remote.is_empty()).then_some(remote));
        command
    }

    fn ssh(&self, remote: &str) -> Command {
        let key = self.key();
        self.ssh_with(&["-i", key.to_str().expect("UTF-8")], remote)
    }
}

async fn start(folder: &Path, conditions: LinkConditions) -> Result<Sandbox, SandboxError> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Sandbox::start(Options { listen, home: folder.join("vm"), isolation: Isolation::World, conditions }).await
}

async fn output(mut command: Command) -> Output {
    in_time(command.stdin(Stdio::null()).output()).await.expect("run")
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("no hang")
}

/// Runs a process with `input` on its standard input, and collects its output.
async fn exchange(mut command: Command, input: Vec<u8>) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    let feed = async move {
        let _ = stdin.write_all(&input).await;
    };
    let (output, ()) = in_time(async { tokio::join!(child.wait_with_output(), feed) }).await;
    output.expect("run")
}

async fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().expect("stdout");
    while line.last() != Some(&b'\n') {
        line.push(in_time(stdout.read_u8()).await.expect("a line"));
    }
    String::from_utf8(line).expect("UTF-8").trim().to_owned()
}

/// A duration for `sleep` that no other process has.
fn mark() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("1000.{}{:03}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// True while a process of this machine sleeps for this duration. In the VM it has another pid.
fn is_alive(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let line = format!("sleep\0{mark}\0");
    processes
        .map(|process| process.path().join("cmdline"))
        .any(|path| std::fs::read(path).is_ok_and(|text| text == line.as_bytes()))
}

async fn gone(mark: &str) {
    in_time(async {
        while is_alive(mark) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn here(mark: &str) {
    in_time(async {
        while !is_alive(mark) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[tokio::test]
async fn a_command_runs_in_the_home_with_its_own_environment() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let line = "pwd; echo \"$HOME:$USER:$SHELL\"; id -un; env | grep -c CARGO; echo oops >&2";
    let done = output(world.ssh(line)).await;
    assert_eq!(text(&done.stdout), "/root\n/root:root:/bin/bash\nroot\n0\n");
    assert_eq!(text(&done.stderr), "oops\n");
    assert_eq!(done.status.code(), Some(0));
    let mode = std::fs::metadata(world.vm_home()).expect("home").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(world.sandbox.connections(), 1);
    world.sandbox.stop().await;
}

#[tokio::test]
async fn the_printed_ssh_command_logs_in() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let setup = world.sandbox.setup(&world.key());
    let mut shell = world.peer("/bin/sh");
    shell.arg("-c").arg(format!("{} 'echo in'", setup.ssh_command));
    let done = output(shell).await;
    assert_eq!((text(&done.stdout), text(&done.stderr)), ("in\n", ""));
    assert_eq!(setup.proxy_command, format!("websocat --binary {}", world.sandbox.url()));
    assert_eq!(setup.vm_domain, "127.0.0.1");
}

#[tokio::test]
async fn a_client_gets_a_terminal_only_on_request() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let look = "test -t 0 && test -t 2 && echo $TERM; tty >/dev/tty; exit 3";
    let key = world.key();
    let mut ssh = world.ssh_with(&["-tt", "-i", key.to_str().expect("UTF-8")], look);
    ssh.env("TERM", "vt220");
    let done = output(ssh).await;
    let said = text(&done.stdout);
    assert!(said.starts_with("vt220\r\n/dev/pts/") && said.ends_with("\r\n"), "{said:?}");
    assert_eq!(done.status.code(), Some(3));
    let done = output(world.ssh("test -t 0 || echo none")).await;
    assert_eq!(text(&done.stdout), "none\n");
    world.sandbox.stop().await;
}

#[tokio::test]
async fn the_end_of_a_terminal_kills_its_processes() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let key = world.key();
    let mark = mark();
    let line = format!("echo in; sleep {mark}");
    let mut ssh = world.ssh_with(&["-tt", "-i", key.to_str().expect("UTF-8")], &line);
    let mut child = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("spawn");
    assert_eq!(first_line(&mut child).await, "in");
    here(&mark).await;
    child.start_kill().expect("kill");
    gone(&mark).await;
    world.sandbox.stop().await;
}

#[tokio::test]
async fn twenty_megabytes_come_back_intact_through_cat() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let sent = noise(1, 20_000_000);
    let done = exchange(world.ssh("cat"), sent.clone()).await;
    assert_eq!(text(&done.stderr), "");
    assert!(done.stdout == sent, "{} bytes came back", done.stdout.len());
    assert!(world.sandbox.bytes_up() > 20_000_000);
    assert!(world.sandbox.bytes_down() > 20_000_000);
    assert!(world.sandbox.bytes_up() < 21_000_000);
}

#[tokio::test]
async fn unread_input_stalls_nothing_and_is_not_lost() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let sent = noise(1, 12_000_000);
    let done = exchange(world.ssh("head -c 5000000 /dev/zero; sleep 1; cat"), sent.clone()).await;
    assert_eq!(done.stdout.len(), 17_000_000);
    assert!(done.stdout.ends_with(&sent));
}

#[tokio::test]
async fn a_process_need_not_read_its_input() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let done = exchange(world.ssh("exec <&-; head -c 3000000 /dev/zero; exit 4"), noise(1, 20_000_000)).await;
    assert_eq!((done.stdout.len(), done.status.code()), (3_000_000, Some(4)));
}

#[tokio::test]
async fn exit_codes_and_signals_are_relayed() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    assert_eq!(output(world.ssh("exit 23")).await.status.code(), Some(23));
    assert_eq!(output(world.ssh("no-such-program-here")).await.status.code(), Some(127));
    // OpenSSH's client exits with 255 after an exit signal.
    assert_eq!(output(world.ssh("kill -TERM $$")).await.status.code(), Some(255));
}

#[tokio::test]
async fn a_shell_takes_its_commands_from_standard_input() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let done = exchange(world.ssh(""), b"echo hello\nexit 3\n".to_vec()).await;
    assert_eq!((text(&done.stdout), done.status.code()), ("hello\n", Some(3)));
}

#[tokio::test]
async fn a_wrong_key_and_a_password_are_refused() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let wrong = world.folder.path().join("wrong");
    let wrong = wrong.to_str().expect("UTF-8");
    let mut keygen = world.peer("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", wrong]);
    assert!(output(keygen).await.status.success());
    let refused = output(world.ssh_with(&["-i", wrong], "echo in")).await;
    assert_eq!(refused.status.code(), Some(255));
    assert_eq!(text(&refused.stdout), "");
    // The list of methods comes from the server.
    assert!(text(&refused.stderr).contains("Permission denied (publickey)"), "{}", text(&refused.stderr));

    let askpass = world.folder.path().join("askpass");
    std::fs::write(&askpass, "#!/bin/sh\necho secret\n").expect("askpass");
    std::fs::set_permissions(&askpass, std::fs::Permissions::from_mode(0o700)).expect("mode");
    let options = ["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no"];
    let mut ssh = world.ssh_with(&options, "echo in");
    ssh.env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force");
    let refused = output(ssh).await;
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(255), ""));
    assert!(text(&refused.stderr).contains("Permission denied (publickey)"), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn the_host_key_is_the_one_that_was_announced() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let known = world.folder.path().join("known_hosts");
    std::fs::write(&known, format!("localhost {}\n", world.sandbox.host_key())).expect("known_hosts");
    let (known, key) = (format!("UserKnownHostsFile={}", known.display()), world.key());
    // The first value of an option counts, so these precede the defaults.
    let mut ssh = world.peer("ssh");
    ssh.args(["-F", "none", "-o", &known, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-i"]);
    ssh.arg(key).arg("-o").arg(format!("ProxyCommand=websocat --binary {}", world.sandbox.url()));
    ssh.args(["root@localhost", "echo in"]);
    let done = output(ssh).await;
    assert_eq!(text(&done.stdout), "in\n", "{}", text(&done.stderr));
}

#[tokio::test]
async fn a_disconnect_kills_the_process_group() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let mark = mark();
    let mut ssh = world.ssh(&format!("sleep {mark} & echo in; wait"));
    let mut child = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("spawn");
    assert_eq!(first_line(&mut child).await, "in");
    here(&mark).await;
    child.kill().await.expect("kill");
    gone(&mark).await;
}

#[tokio::test]
async fn stop_kills_background_processes_of_finished_commands() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let mark = mark();
    let line = format!("setsid sleep {mark} >/dev/null 2>&1 </dev/null & echo in");
    assert_eq!(text(&output(world.ssh(&line)).await.stdout), "in\n");
    // sshd leaves it running, too.
    here(&mark).await;
    world.sandbox.stop().await;
    gone(&mark).await;
}

#[tokio::test]
async fn stop_ends_connections_and_their_processes() {
    let Some(world) = World::new(LinkConditions::default()).await else { return };
    let mark = mark();
    let mut ssh = world.ssh(&format!("echo in; exec sleep {mark}"));
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    assert_eq!(first_line(&mut child).await, "in");
    here(&mark).await;
    world.sandbox.stop().await;
    assert!(!is_alive(&mark));
    assert!(!in_time(child.wait()).await.expect("wait").success());
}

#[tokio::test]
async fn delay_is_one_way_and_does_not_limit_throughput() {
    // Long compared with the delay of a busy machine.
    let delay = Duration::from_millis(300);
    let folder = tempfile::tempdir().expect("folder");
    let sandbox =
        start(folder.path(), LinkConditions { delay, ..LinkConditions::default() }).await.expect("start");
    // The WebSocket handshake takes one round trip: twice the delay, not once and not four times.
    let begun = Instant::now();
    let _socket = handshake(&sandbox).await;
    let took = begun.elapsed();
    assert!(took >= 2 * delay && took < 4 * delay, "{took:?}");
    sandbox.stop().await;

    let delay = Duration::from_millis(100);
    let Some(world) = World::new(LinkConditions { delay, ..LinkConditions::default() }).await else { return };
    let begun = Instant::now();
    let done = output(world.ssh("head -c 20000000 /dev/zero")).await;
    let took = begun.elapsed();
    assert_eq!(done.stdout.len(), 20_000_000);
    // Ten round trips for the connection, and one for each 2 MiB of OpenSSH's window. A line that
    // carried one chunk of 64 KiB at a time would need 30 s.
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn connections_are_cut_at_the_chosen_byte() {
    let up = LinkConditions { cut_after: Some(1_000_000), ..LinkConditions::default() };
    let Some(world) = World::new(up).await else { return };
    let done = exchange(world.ssh("cat >file; echo whole"), noise(1, 3_000_000)).await;
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(255), ""));
    assert_eq!(world.sandbox.bytes_up(), 1_000_000);
    world.sandbox.stop().await;

    let down = LinkConditions { cut_down_after: Some(1_000_000), ..LinkConditions::default() };
    let Some(world) = World::new(down).await else { return };
    let done = output(world.ssh("head -c 3000000 /dev/zero")).await;
    assert_eq!(done.status.code(), Some(255));
    assert!(done.stdout.len() < 1_000_000);
    assert_eq!(world.sandbox.bytes_down(), 1_000_000);
}

#[tokio::test]
async fn only_loopback_is_served() {
    let folder = tempfile::tempdir().expect("folder");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:2222"] {
        let listen: SocketAddr = address.parse().expect("address");
        let options = Options {
            listen,
            home: folder.path().join("vm"),
            isolation: Isolation::World,
            conditions: LinkConditions::default(),
        };
        let refused = Sandbox::start(options).await.expect_err("refused");
        assert!(matches!(refused, SandboxError::NotLoopback(a) if a == listen));
    }
    assert!(!folder.path().join("vm").exists());
}

/// Opens a WebSocket by hand, without sending a frame.
async fn handshake(sandbox: &Sandbox) -> TcpStream {
    let address = sandbox.url().replace("ws://", "");
    let mut socket = TcpStream::connect(&address).await.expect("connect");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(in_time(socket.read_u8()).await.expect("read"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", text(&answer));
    socket
}
