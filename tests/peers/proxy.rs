//! `ksync proxy` in place of websocat: a ProxyCommand for ssh and the programs that use it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use crate::machine::Machine;
use crate::world::service::{Service, closed_port};
use crate::world::skip::needs_programs;
use crate::world::{Run, noise};

/// A machine behind a bridge, and the options for OpenSSH's programs to connect through ksync.
struct Connection {
    machine: Machine,
    options: Vec<String>,
    _bridge: Service,
}

impl Connection {
    /// Connects through `ksync proxy` and websocat.
    fn new() -> Option<Connection> {
        let ksync = format!("{} proxy", env!("CARGO_BIN_EXE_ksync"));
        Connection::with(&ksync, Machine::bridge)
    }

    /// Connects through websocat, as without ksync, and the bridge that ksync uploads to VMs
    /// without one.
    ///
    /// The second option is only for the test. Without it websocat may keep bytes that did not fit
    /// into a full pipe, with any server, and then any longer download may hang.
    fn of_others() -> Option<Connection> {
        Connection::with("websocat --binary --no-async-stdio", Machine::own_bridge)
    }

    fn with(proxy: &str, bridge: impl FnOnce(&Machine) -> (String, Service)) -> Option<Connection> {
        if !needs_programs(&["scp", "sftp"]) {
            return None;
        }
        let machine = Machine::start()?;
        let (url, bridge) = bridge(&machine);
        let world = &machine.world;
        let host_key = fs::read_to_string(world.path("host-key.pub")).unwrap();
        fs::write(world.path("hosts"), format!("vm {host_key}")).unwrap();
        let options = [
            format!("ProxyCommand={proxy} {url}"),
            format!("IdentityFile={}", world.path("key").display()),
            format!("UserKnownHostsFile={}", world.path("hosts").display()),
            "StrictHostKeyChecking=yes".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        Some(Connection { machine, options: options.into(), _bridge: bridge })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.machine.world.command(program);
        command.args(["-F", "none"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// A path on the machine.
    fn there(&self, name: &str) -> String {
        format!("root@vm:{}", self.machine.world.path(name).display())
    }
}

#[test]
fn ssh_through_the_proxy_returns_output_and_exit_code() {
    for connection in [Connection::new(), Connection::of_others()].into_iter().flatten() {
        let run = |command: &str| {
            let mut ssh = connection.command("ssh");
            ssh.args(["root@vm", command]);
            Run::of(ssh)
        };
        let answer = run("echo there; echo trouble >&2; exit 3").fails(3);
        assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("there\n", "trouble\n"));
        // More bytes than all buffers on the connection hold, in both directions.
        let much = run("head -c 20000000 /dev/zero | tr '\\0' x").ok();
        assert_eq!(much.stdout.len(), 20_000_000);
    }
}

#[test]
fn scp_and_sftp_copy_through_the_proxy() {
    for connection in [Connection::new(), Connection::of_others()].into_iter().flatten() {
        let world = &connection.machine.world;
        let content = noise(7, 5_000_000);
        fs::write(world.path("file"), &content).unwrap();
        for old_protocol in [true, false] {
            let mut up = connection.command("scp");
            up.args(old_protocol.then_some("-O")).arg("file").arg(connection.there("up"));
            Run::of(up).ok();
            assert_eq!(fs::read(world.path("up")).unwrap(), content);
            let mut down = connection.command("scp");
            down.args(old_protocol.then_some("-O")).arg(connection.there("up")).arg("down");
            Run::of(down).ok();
            assert_eq!(fs::read(world.path("down")).unwrap(), content);
            fs::remove_file(world.path("up")).unwrap();
        }
        let mut sftp = connection.command("sftp");
        sftp.args(["-q", "-b", "batch", "root@vm"]);
        // Relative paths on the machine are below the home directory, which is empty.
        let batch = format!("cd {}\nput file up\nget up back\n", world.path("").display());
        fs::write(world.path("batch"), batch).unwrap();
        Run::of(sftp).ok();
        assert_eq!(fs::read(world.path("back")).unwrap(), content);
    }
}

#[test]
fn rsync_copies_through_the_proxy() {
    for connection in [Connection::new(), Connection::of_others()].into_iter().flatten() {
        let world = &connection.machine.world;
        world.tree("src").with_everything().file("large", noise(3, 3 << 20));
        let quoted = connection.options.iter().map(|option| format!(" -o '{option}'")).collect::<String>();
        let mut rsync = world.command("rsync");
        rsync.args(["-a", "-e", &format!("ssh -F none{quoted}"), "src/", &connection.there("dst/")]);
        Run::of(rsync).ok();
        connection.machine.rsync_finds_no_difference("src", "dst");
    }
}

/// VS Code's procedure: a shell that reads a script and stays. Beside it, SOCKS connections go to a
/// server on the VM that the script started.
#[test]
fn an_editor_reaches_its_server_through_the_proxy() {
    for connection in [Connection::new(), Connection::of_others()].into_iter().flatten() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let serving = thread::spawn(move || {
            let (mut client, _) = server.accept().unwrap();
            let mut said = [0; 5];
            client.read_exact(&mut said).unwrap();
            client.write_all(&said.map(|byte| byte.to_ascii_uppercase())).unwrap();
        });
        let socks = closed_port();
        let mut ssh = connection.command("ssh");
        ssh.args([
            "-T",
            "-o",
            "ExitOnForwardFailure=yes",
            "-D",
            &format!("127.0.0.1:{socks}"),
            "root@vm",
            "bash",
        ]);
        let mut shell = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut script = shell.stdin.take().unwrap();
        script.write_all(b"echo ready\n").unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");

        let mut tunnel = TcpStream::connect((Ipv4Addr::LOCALHOST, socks)).unwrap();
        // SOCKS 5 (RFC 1928): no authentication, then a connection to an IPv4 address.
        tunnel.write_all(&[5, 1, 0]).unwrap();
        let mut answer = [0; 12];
        tunnel.read_exact(&mut answer[..2]).unwrap();
        let [high, low] = port.to_be_bytes();
        tunnel.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
        tunnel.read_exact(&mut answer[2..]).unwrap();
        assert_eq!((&answer[..2], &answer[2..4]), (&[5, 0][..], &[5, 0][..]));
        tunnel.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        tunnel.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HELLO");
        serving.join().unwrap();
        drop((tunnel, script));
        assert!(shell.wait().unwrap().success());
    }
}

#[test]
fn a_missing_bridge_is_reported() {
    let Some(machine) = Machine::start() else { return };
    let url = format!("ws://127.0.0.1:{}", closed_port());
    let run = machine.world.run(["proxy", &url]).fails(10);
    assert!(run.stderr.contains(&url) && run.stderr.contains("hint: "), "{}", run.stderr);
}
