//! Bulk throughput of this crate's client, beside russh's and OpenSSH's, over loopback to one sshd:
//!
//! ```sh
//! cargo bench -p ksync-ssh --bench ssh -- [MEGABYTES] [RUNS] [CIPHER...]
//! ```
//!
//! Both libraries run as ksync runs them: a current-thread runtime, sends of 32 KiB, a window of
//! 2 MiB. Each row is the best of all runs, which take turns.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

use std::borrow::Cow;
use std::net::{SocketAddr, TcpListener, TcpStream as Blocking};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ksync_ssh::{ChannelEvent, LoginKey, LoginReply, Request, Session};
use russh::ChannelMsg;
use russh::keys::signature::Signer;
use russh::keys::ssh_encoding::Encode;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, load_secret_key};
use tokio::net::TcpStream;

/// Bytes of one send, as ksync's.
const SEND_BYTES: usize = 32 << 10;

/// Receive window of each channel, as ksync's on a short link.
const WINDOW_BYTES: u32 = 2 << 20;

const CIPHERS: [&str; 2] = ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"];
const CLIENTS: [&str; 3] = ["ksync-ssh", "russh", "ssh"];

/// Ticks of a second in `/proc/self/stat`.
const TICKS: f64 = 100.0;

struct Host {
    folder: tempfile::TempDir,
    address: SocketAddr,
    sshd: Child,
}

impl Host {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["host", "key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(name));
            assert!(command.status().expect("ssh-keygen").success());
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let settings = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nPidFile none\nStrictModes no\nUsePAM no\nHostKey {}\n\
             AuthorizedKeysFile {}\nPermitRootLogin prohibit-password\nSetEnv HOME={}\n",
            path("host").display(),
            path("key.pub").display(),
            folder.path().display(),
        );
        std::fs::write(path("config"), settings).expect("a configuration");
        let _ = std::fs::create_dir_all("/run/sshd");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(path("config"));
        let sshd = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("sshd");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let until = Instant::now() + Duration::from_secs(20);
        while Blocking::connect(address).is_err() {
            assert!(Instant::now() < until, "sshd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { folder, address, sshd }
    }

    fn key(&self) -> PrivateKey {
        load_secret_key(self.folder.path().join("key"), None).expect("a key")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

/// The command of a transfer: it swallows its input, or makes output.
fn command(bytes: Option<usize>) -> String {
    bytes.map_or_else(|| "cat >/dev/null".into(), |bytes| format!("head -c {bytes} /dev/zero"))
}

async fn stream(host: &Host) -> TcpStream {
    let stream = TcpStream::connect(host.address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    stream
}

async fn with_ksync(host: &Host, cipher: &str, is_up: bool, bytes: usize) -> Duration {
    let mut config = ksync_ssh::Config { window_bytes: WINDOW_BYTES, ..ksync_ssh::Config::default() };
    config.algorithms.ciphers = vec![cipher.to_owned()];
    let checked = Session::connect(stream(host).await, config, None, async |_| Ok::<_, ()>(())).await;
    let session = checked.unwrap_or_else(|_| panic!("no connection"));
    let key = host.key();
    let public =
        LoginKey { algorithm: "ssh-ed25519".into(), blob: key.public_key().to_bytes().expect("a key") };
    let mut signature = Vec::new();
    let signed = key.try_sign(&session.client(|client| client.to_sign("root", &public)));
    signed.expect("a signature").encode(&mut signature).expect("a signature");
    assert_eq!(session.login("root", &public, &signature).await.expect("a reply"), LoginReply::Success);
    let channel = session.open().await.expect("a channel");
    let start = Instant::now();
    let exec = Request::Exec(command((!is_up).then_some(bytes)).into());
    channel.writer().request(&exec, false).expect("a command");
    let (mut reader, writer) = channel.split();
    let sending = tokio::spawn(async move {
        let piece = vec![7; SEND_BYTES];
        for _ in 0..if is_up { bytes / SEND_BYTES } else { 0 } {
            writer.send(&piece).await.expect("input");
        }
        writer.eof().expect("input");
        writer
    });
    let mut received = 0;
    while let Some(event) = reader.next().await {
        if let ChannelEvent::Data(data) = event {
            received += data.len();
        }
    }
    let _ = sending.await;
    assert_eq!(received, if is_up { 0 } else { bytes });
    start.elapsed()
}

struct Trusting;

impl russh::client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn with_russh(host: &Host, cipher: &str, is_up: bool, bytes: usize) -> Duration {
    let ciphers: &'static [russh::cipher::Name] = if cipher.starts_with("aes") {
        &[russh::cipher::AES_256_GCM]
    } else {
        &[russh::cipher::CHACHA20_POLY1305]
    };
    let config = russh::client::Config {
        window_size: WINDOW_BYTES,
        channel_buffer_size: 16,
        preferred: russh::Preferred { cipher: Cow::Borrowed(ciphers), ..russh::Preferred::default() },
        nodelay: true,
        ..russh::client::Config::default()
    };
    let connected = russh::client::connect_stream(Arc::new(config), stream(host).await, Trusting).await;
    let mut handle = connected.expect("a connection");
    let key = PrivateKeyWithHashAlg::new(Arc::new(host.key()), None);
    assert!(handle.authenticate_publickey("root", key).await.expect("a reply").success());
    let channel = handle.channel_open_session().await.expect("a channel");
    let start = Instant::now();
    channel.exec(false, command((!is_up).then_some(bytes))).await.expect("a command");
    let (mut reader, writer) = channel.split();
    let sending = tokio::spawn(async move {
        let piece = bytes::Bytes::from(vec![7; SEND_BYTES]);
        for _ in 0..if is_up { bytes / SEND_BYTES } else { 0 } {
            writer.data_bytes(piece.clone()).await.expect("input");
        }
        writer.eof().await.expect("input");
        writer
    });
    let mut received = 0;
    while let Some(message) = reader.wait().await {
        if let ChannelMsg::Data { data } = message {
            received += data.len();
        }
    }
    let _ = sending.await;
    assert_eq!(received, if is_up { 0 } else { bytes });
    start.elapsed()
}

fn with_ssh(host: &Host, cipher: &str, is_up: bool, bytes: usize) -> Duration {
    let path = |name: &str| host.folder.path().join(name).display().to_string();
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-T", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    ssh.args(["-o", "LogLevel=ERROR", "-c", cipher, "-i", &path("key"), "-p"]);
    ssh.arg(host.address.port().to_string()).args(["root@127.0.0.1", &command((!is_up).then_some(bytes))]);
    let mut zeros = Command::new("head")
        .args(["-c", &if is_up { bytes } else { 0 }.to_string(), "/dev/zero"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("head");
    ssh.stdin(zeros.stdout.take().expect("a pipe")).stdout(Stdio::null());
    let start = Instant::now();
    assert!(ssh.status().expect("ssh").success());
    let _ = zeros.wait();
    start.elapsed()
}

/// Processor time of this thread, which runs both libraries, or of finished children, in seconds.
fn cpu_seconds(of_children: bool) -> f64 {
    let read = |name: &str| std::fs::read_to_string(name).expect("a process");
    if of_children {
        let text = read("/proc/self/stat");
        let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
        return fields[13..15].iter().map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / TICKS;
    }
    let nanoseconds = read("/proc/thread-self/schedstat");
    nanoseconds.split(' ').next().expect("a field").parse::<f64>().expect("a number") / 1e9
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with("--")).collect();
    let number =
        |at: usize, default: usize| arguments.get(at).map_or(default, |n| n.parse().expect("a number"));
    let (megabytes, runs) = (number(0, 512), number(1, 5));
    let bytes = megabytes << 20;
    let ciphers: Vec<&str> = match arguments.get(2..) {
        Some(names) if !names.is_empty() => names.iter().map(String::as_str).collect(),
        _ => CIPHERS.to_vec(),
    };
    let host = Host::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("{megabytes} MiB, best of {runs}: MB/s, and seconds of the client's processor per GB");
    for cipher in ciphers {
        for is_up in [true, false] {
            let mut best = CLIENTS.map(|_| (f64::MAX, f64::MAX));
            for _ in 0..runs {
                for (client, best) in CLIENTS.into_iter().zip(&mut best) {
                    let cpu = cpu_seconds(client == "ssh");
                    let time = match client {
                        "ksync-ssh" => runtime.block_on(with_ksync(&host, cipher, is_up, bytes)),
                        "russh" => runtime.block_on(with_russh(&host, cipher, is_up, bytes)),
                        _ => with_ssh(&host, cipher, is_up, bytes),
                    };
                    let cpu = cpu_seconds(client == "ssh") - cpu;
                    *best = (best.0.min(time.as_secs_f64()), best.1.min(cpu));
                }
            }
            let row = CLIENTS.into_iter().zip(best).map(|(client, (seconds, cpu))| {
                let gigabytes = bytes as f64 / 1e9;
                format!("{client} {:.0} ({:.2})", gigabytes * 1e3 / seconds, cpu / gigabytes)
            });
            let direction = if is_up { "up" } else { "down" };
            println!("{cipher} {direction}: {}", row.collect::<Vec<_>>().join(" · "));
        }
    }
}
