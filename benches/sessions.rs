//! Time and number of API calls from an API key to the first byte on a session's VM. This bench
//! compares ksync with the official procedure: `kernel browsers ssh ID -i KEY --setup-only`, then
//! rsync or scp through websocat.
//!
//! ```text
//! ksync ─────────────── HTTP, wss ─┐
//! 1 GET, 2 exec by HTTP ───────────┼─► emulator of the platform, in this process
//! rsync, scp ─ ssh ─ websocat ─────┘
//! ```
//! *Cold* is a new session, *warm* a session in which the same was done before. Each run copies to
//! another directory on the VM, and the bench compares the result with the source.
//!
//! The official CLI itself does not run. The bench makes its calls one after the other on one
//! connection, without the CLI's start and without making a key. It also omits websocat's TLS,
//! which not every build has: a relay in this process adds it. Both omissions favour the official
//! procedure. All VMs share one real sshd, which runs from the start. On a real VM both procedures
//! wait for the same services.
//!
//! The bench looks for programs in `KSYNC_PEERS_BIN` and in `PATH`. Run `cargo bench --bench
//! sessions -- --help` for the options.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use ksync::kernel::{Api, ApiKey, DEFAULT_TIMEOUT, Exec, Settings};
use ksync::sandbox::platform::{Platform, PlatformOptions, Sshd};
use ksync::sandbox::{Isolation, LinkConditions};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// The source of the copies.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/site");

/// First command of the official CLI. An emulated VM shares the machine, so its root is not `/`.
const CHECK: &str =
    "supervisorctl status sshd | grep -q RUNNING && supervisorctl status websocat-ssh | grep -q RUNNING";

/// Second command of the official CLI, if both services run.
const LET_IN: &str = r#"r=$KSYNC_SANDBOX_ROOT; mkdir -p "$r/root/.ssh" && chmod 700 "$r/root/.ssh" &&
echo "$1" >>"$r/root/.ssh/authorized_keys" && chmod 600 "$r/root/.ssh/authorized_keys""#;

/// Timeout of a run.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How long from an API key to the first byte on a session's VM, and how many API calls?
///
/// Compares ksync with `kernel browsers ssh --setup-only` plus rsync or scp, against an emulator of
/// the platform.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench sessions --")]
struct Options {
    /// Runs of each procedure; the medians are shown
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    runs: usize,
    /// Round trips to the API and to the VM, in milliseconds
    #[arg(long, value_name = "MS", value_delimiter = ',', default_values_t = [0, 100])]
    round_trip: Vec<u64>,
    /// Runs everything once and without delay, to test the harness
    #[arg(long)]
    smoke: bool,
    /// Set by `cargo bench`, and not by `cargo test --benches`
    #[arg(long, hide = true)]
    bench: bool,
}

/// A procedure to copy to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Ksync,
    Rsync,
    Scp,
}

impl Tool {
    const ALL: [Tool; 3] = [Tool::Ksync, Tool::Rsync, Tool::Scp];

    fn name(self) -> &'static str {
        match self {
            Tool::Ksync => "ksync",
            Tool::Rsync => "official CLI, rsync",
            Tool::Scp => "official CLI, scp",
        }
    }

    /// Programs that must be installed.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Tool::Ksync => &[],
            Tool::Rsync => &["ssh", "websocat", "rsync"],
            Tool::Scp => &["ssh", "websocat", "scp"],
        }
    }
}

/// Measurements of one run.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    first_byte: Duration,
    all: Duration,
    calls: u64,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if !options.bench {
        println!("nothing is measured without cargo bench");
        return ExitCode::SUCCESS;
    }
    if options.smoke {
        (options.runs, options.round_trip) = (1, vec![0]);
    }
    let mut tools = Tool::ALL.to_vec();
    tools.retain(|tool| match tool.programs().iter().find(|name| !is_installed(name)) {
        Some(missing) => {
            println!("left out: {} ({missing} is not installed)", tool.name());
            false
        }
        None => true,
    });
    println!("from an API key to {SOURCE} on a VM, medians of {}", options.runs);
    for &round_trip in &options.round_trip {
        println!("\nround trip {round_trip} ms            first byte       all   API calls");
        let world = World::new(Duration::from_millis(round_trip));
        let mut outcomes = vec![[Vec::new(), Vec::new()]; tools.len()];
        for _ in 0..options.runs {
            for (tool, outcomes) in tools.iter().zip(&mut outcomes) {
                let session = world.session();
                for outcomes in outcomes.iter_mut() {
                    outcomes.push(world.run(*tool, &session, outcomes.len()));
                }
            }
        }
        for (index, temperature) in ["cold", "warm"].into_iter().enumerate() {
            for (tool, outcomes) in tools.iter().zip(&outcomes) {
                let seconds = |what: fn(&Outcome) -> Duration| median(&outcomes[index], what).as_secs_f64();
                println!(
                    "  {temperature}  {:<20} {:>9.3} s {:>7.3} s {:>11}",
                    tool.name(),
                    seconds(|outcome| outcome.first_byte),
                    seconds(|outcome| outcome.all),
                    median(&outcomes[index], |outcome| outcome.calls),
                );
            }
        }
    }
    ExitCode::SUCCESS
}

fn median<T: Ord>(outcomes: &[Outcome], what: impl Fn(&Outcome) -> T) -> T {
    let mut values: Vec<T> = outcomes.iter().map(what).collect();
    values.sort_unstable();
    values.swap_remove(values.len() / 2)
}

/// A session on the platform.
struct Session {
    id: String,
    /// Root directory of the session's VM.
    root: PathBuf,
    /// Address of a relay to the VM's bridge, without TLS.
    relay: SocketAddr,
    carrying: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

/// The platform, and a user with an API key and an SSH key.
struct World {
    runtime: Runtime,
    platform: Option<Platform>,
    api: Api,
    folder: tempfile::TempDir,
    public_key: String,
    sshd: Child,
}

impl World {
    fn new(round_trip: Duration) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = Runtime::new().expect("a runtime");
        let (sshd, port) = start_sshd(folder.path());
        let host_key = fs::read_to_string(folder.path().join("host.pub")).expect("a host key");
        let options = PlatformOptions {
            sshd: Some(Sshd { port, host_key: host_key.trim().to_owned() }),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            home: folder.path().join("platform"),
            // rsync needs itself on the other side, and no VM has it.
            isolation: Isolation::HostFiles,
            conditions: LinkConditions { delay: round_trip / 2, ..LinkConditions::default() },
            time_scale: 1.0,
            client_key: None,
            chromium: None,
        };
        let platform = runtime.block_on(Platform::start(options)).expect("a platform");
        let settings = Settings {
            base_url: platform.base_url(),
            key: ApiKey::new(platform.api_key()),
            project: None,
            ca_cert: None,
            timeout: DEFAULT_TIMEOUT,
        };
        let api = Api::new(&settings).expect("an API");
        let public_key = make_key(folder.path(), "key");
        let world = World { runtime, platform: Some(platform), api, folder, public_key, sshd };
        if !round_trip.is_zero() {
            let delay_ms = u64::try_from(round_trip.as_millis()).expect("a short time");
            world.ask("POST", "faults", &json!({ "delay_ms": delay_ms, "times": u32::MAX }));
        }
        world
    }

    /// Sends a request to the emulator itself.
    fn ask(&self, method: &str, what: &str, body: &Value) -> Value {
        let url = format!("{}/_sandbox/{what}", self.platform.as_ref().expect("it runs").base_url());
        let answer = match method {
            "GET" => ureq::get(url).call(),
            "DELETE" => ureq::delete(url).call(),
            _ => ureq::post(url).send(body.to_string()),
        };
        let text = answer.expect("an answer").body_mut().read_to_string().expect("a text");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn session(&self) -> Session {
        let wish = json!({ "timeout_seconds": 600, "headless": true });
        let wish = wish.as_object().cloned().unwrap_or_default();
        let browser = self.api.create(&wish).expect("a session");
        let id = browser.session_id.clone();
        let inside = self.ask("GET", &format!("sessions/{id}"), &Value::Null);
        let text = |name: &str| inside[name].as_str().expect("a string").to_owned();
        let target: SocketAddr = text("ssh_address").parse().expect("an address");
        let (relay, carrying) = self.relay(target);
        Session { root: text("root").into(), id, relay, carrying }
    }

    /// Starts a relay that adds TLS on the connection to a VM.
    fn relay(&self, target: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        let ca_cert = self.platform.as_ref().expect("it runs").ca_cert();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca_cert).expect("a certificate")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let listener = self.runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let carrying = self.runtime.spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                let connector = connector.clone();
                tokio::spawn(async move {
                    let _ = inside.set_nodelay(true);
                    let Ok(outside) = TcpStream::connect(target).await else { return };
                    let _ = outside.set_nodelay(true);
                    let name = ServerName::from(target.ip());
                    let Ok(mut outside) = connector.connect(name, outside).await else { return };
                    let _ = copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });
        (address, carrying)
    }

    /// Copies the source with one procedure to a new directory in the session.
    fn run(&self, tool: Tool, session: &Session, number: usize) -> Outcome {
        let temperature = if self.knows(session) { "warm" } else { "cold" };
        let place = session.root.join(format!("{temperature}-{number}"));
        self.ask("DELETE", "calls", &Value::Null);
        let begun = Instant::now();
        let mut command = match tool {
            Tool::Ksync => {
                if temperature == "cold" {
                    // The VMs share a home, but a new one has no agent.
                    let _ = fs::remove_dir_all(self.folder.path().join("login/.cache"));
                }
                let mut command = self.command(env!("CARGO_BIN_EXE_ksync"));
                command.arg("-q").arg(SOURCE).arg(format!("{}:{}", session.id, place.display()));
                command
            }
            _ => {
                if temperature == "cold" {
                    self.set_up_officially(session);
                }
                self.copy(tool, session, &place)
            }
        };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a start");
        let mut first_byte = None;
        let status = loop {
            if first_byte.is_none() && has_content(&place) {
                first_byte = Some(begun.elapsed());
            }
            if let Some(status) = child.try_wait().expect("a status") {
                break status;
            }
            assert!(begun.elapsed() < TIMEOUT, "{} does not end", tool.name());
            std::thread::sleep(Duration::from_micros(300));
        };
        let all = begun.elapsed();
        assert!(status.success(), "{}: {status}", tool.name());
        let same = Command::new("diff").arg("-r").arg("-x").arg(".ksync").arg(SOURCE).arg(&place).status();
        assert!(same.expect("diff").success(), "{} did not bring what was sent", tool.name());
        fs::write(self.mark(session), "").expect("a mark");
        let calls = &self.ask("GET", "calls", &Value::Null)["calls"];
        let asked = calls.as_object().expect("calls").iter().filter(|(name, _)| *name != "cdp");
        let calls = asked.map(|(_, count)| count.as_u64().expect("a number")).sum();
        Outcome { first_byte: first_byte.unwrap_or(all), all, calls }
    }

    /// Marker file of a session that was used before.
    fn mark(&self, session: &Session) -> PathBuf {
        self.folder.path().join(format!("was-in-{}", session.id))
    }

    fn knows(&self, session: &Session) -> bool {
        self.mark(session).exists()
    }

    /// Makes the calls of `kernel browsers ssh ID -i KEY --setup-only`.
    fn set_up_officially(&self, session: &Session) {
        let browser = self.api.browser(&session.id).expect("a session");
        browser.vm().expect("a VM");
        let run = |line: &str, args: &[&str]| {
            let args = ["-c", line].iter().chain(args).map(|&arg| arg.to_owned()).collect();
            let command = "/bin/bash".to_owned();
            let exec = Exec { command, args, as_root: true, timeout_sec: 120, ..Exec::default() };
            let executed = self.api.exec(&session.id, &exec).expect("an answer");
            assert_eq!(executed.exit_code, 0, "{}", String::from_utf8_lossy(&executed.stderr));
        };
        run(CHECK, &[]);
        run(LET_IN, &["official", self.public_key.trim()]);
    }

    /// Command of rsync or scp, as in the official instructions.
    fn copy(&self, tool: Tool, session: &Session, place: &Path) -> Command {
        let key = self.folder.path().join("key").display().to_string();
        let options = [
            format!("ProxyCommand=websocat --binary ws://{}", session.relay),
            "StrictHostKeyChecking=no".to_owned(),
            "UserKnownHostsFile=/dev/null".to_owned(),
            "LogLevel=ERROR".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        let there = format!("root@localhost:{}", place.display());
        match tool {
            Tool::Scp => {
                let mut command = self.command("scp");
                command.args(["-q", "-r", "-F", "none", "-i", &key]);
                options.iter().for_each(|option| _ = command.args(["-o", option]));
                command.arg(SOURCE).arg(there);
                command
            }
            _ => {
                let options: String = options.iter().map(|option| format!(" -o '{option}'")).collect();
                let mut command = self.command("rsync");
                command.arg("-az").arg("-e").arg(format!("ssh -F none -i {key}{options}"));
                command.arg(format!("{SOURCE}/")).arg(format!("{there}/"));
                command
            }
        }
    }

    /// A program with a clean environment, except for `PATH`.
    fn command(&self, program: &str) -> Command {
        let platform = self.platform.as_ref().expect("it runs");
        let mut command = Command::new(program);
        command.env_clear().env("PATH", path()).env("HOME", self.folder.path()).env("LC_ALL", "C");
        command.env("KERNEL_API_KEY", platform.api_key()).env("KERNEL_BASE_URL", platform.base_url());
        command.env("KSYNC_CA_CERT", platform.ca_cert()).env("KSYNC_KEEP", "0");
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
        if let Some(platform) = self.platform.take() {
            self.runtime.block_on(platform.stop());
        }
    }
}

/// Makes a key without a passphrase, and returns the public one.
fn make_key(folder: &Path, name: &str) -> String {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(name));
    assert!(command.status().expect("ssh-keygen").success(), "no key");
    fs::read_to_string(folder.join(format!("{name}.pub"))).expect("a key")
}

/// Starts an sshd that accepts the keys of all VMs, on a free port.
fn start_sshd(folder: &Path) -> (Child, u16) {
    make_key(folder, "host");
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = port.local_addr().expect("an address").port();
    // sshd changes its root to this directory before the login.
    let _ = fs::create_dir_all("/run/sshd");
    fs::create_dir(folder.join("login")).expect("a home");
    let place = folder.display();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nPidFile none\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PrintMotd no\nPrintLastLog no\nUseDNS no\nMaxStartups 1000\nSubsystem sftp internal-sftp\nSetEnv HOME={place}/login\n\
         AuthorizedKeysFile none\nAuthorizedKeysCommandUser root\n\
         AuthorizedKeysCommand /bin/sh -c \"cat {place}/platform/*/*/root/.ssh/authorized_keys\"\n"
    );
    fs::write(folder.join("sshd_config"), config).expect("a configuration");
    let program =
        std::env::split_paths(&path()).map(|folder| folder.join("sshd")).find(|sshd| sshd.is_file());
    let mut command = Command::new(program.unwrap_or_else(|| "/usr/sbin/sshd".into()));
    command.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
    let log = fs::File::create(folder.join("sshd.log")).expect("a log");
    let sshd = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("sshd");
    let begun = Instant::now();
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(begun.elapsed() < TIMEOUT, "sshd does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    (sshd, port)
}

/// Reports if a directory holds a non-empty file under its final name.
fn has_content(place: &Path) -> bool {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name() != ".ksync").any(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => has_content(&entry.path()),
        // rsync writes under a name that begins with a dot.
        Ok(metadata) => metadata.len() > 0 && !entry.file_name().as_encoded_bytes().starts_with(b"."),
        Err(_) => false,
    })
}

fn path() -> OsString {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("KSYNC_PEERS_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    std::env::join_paths(folders).expect("a path")
}

fn is_installed(name: &str) -> bool {
    std::env::split_paths(&path()).any(|folder| folder.join(name).is_file())
}
