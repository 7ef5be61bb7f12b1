//! The platform as `ksync` sees it: an API with one session, whose VM is a machine of the tests,
//! and the VM's address with TLS. The emulator's VMs have neither sshd nor a supervisor.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::vm::{Vm, command_at};
use crate::world::Run;
use crate::world::link::Link;

/// Port of the bridge on a VM.
const BRIDGE_PORT: u16 = 2222;

/// The session's id.
pub(crate) const SESSION: &str = "htzv5orfit78e1m2biiifpbv";

/// A platform with one session. It serves until the process ends.
pub(crate) struct Platform<'a> {
    vm: &'a Vm,
    api: SocketAddr,
    /// Link between the end of TLS and the bridge.
    pub(crate) link: Arc<Link>,
    _runtime: Runtime,
}

impl<'a> Platform<'a> {
    pub(crate) fn start(vm: &'a Vm) -> Platform<'a> {
        let (domain, listener) = (1..255)
            .map(|last| Ipv4Addr::new(127, 91, 7, last))
            .find_map(|domain| Some((domain, TcpListener::bind((domain, BRIDGE_PORT)).ok()?)))
            .expect("an address with a free port");
        let runtime = Runtime::new().expect("a runtime");
        let link = Arc::new(within(vm.first, || Link::to((Ipv4Addr::LOCALHOST, BRIDGE_PORT))));
        let certificate =
            rcgen::generate_simple_self_signed(vec![domain.to_string()]).expect("a certificate");
        fs::write(vm.world().path("ca.pem"), certificate.cert.pem()).expect("a file");
        let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config.with_no_client_auth().with_single_cert(vec![certificate.cert.der().clone()], key)
            })
            .expect("TLS");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (first, to_link, handle) = (vm.first, Arc::clone(&link), runtime.handle().clone());
        thread::spawn(move || {
            for outside in listener.incoming().flatten() {
                // The socket stays in the VM's network, whichever thread uses it.
                let Ok(inside) = within(first, || TcpStream::connect(to_link.address())) else { continue };
                let acceptor = acceptor.clone();
                handle.spawn(async move {
                    let outside = acceptor.accept(asynchronous(outside)?).await?;
                    let (mut outside, mut inside) = (outside, asynchronous(inside)?);
                    copy_bidirectional(&mut outside, &mut inside).await
                });
            }
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let api = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(&stream, domain, first));
            }
        });
        Platform { vm, api, link, _runtime: runtime }
    }

    /// Runs `ksync` with the platform's API key.
    pub(crate) fn ksync(&self, args: &[&str]) -> Run {
        let mut command = self.vm.world().ksync(args);
        command.env("KERNEL_API_KEY", "sk_test").env("KERNEL_BASE_URL", format!("http://{}", self.api));
        command.env("KSYNC_CA_CERT", self.vm.world().path("ca.pem"));
        Run::of(command)
    }
}

/// Calls `call` on a thread in the network of a machine. Its sockets and threads are there as well.
fn within<T: Send>(first: i32, call: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let network = File::open(format!("/proc/{first}/ns/net")).expect("a network");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).expect("into the network");
            call()
        });
        thread.join().expect("a result")
    })
}

fn asynchronous(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// Answers one request.
fn answer(mut stream: &TcpStream, domain: Ipv4Addr, first: i32) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let length =
        head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).expect("a body");
    let request = head.first().map_or("", String::as_str);
    let of_session = format!("/browsers/{SESSION}");
    let (status, told) = match request.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/browsers", _] => (200, json!([browser(domain)])),
        ["GET", path, _] if path.starts_with("/browsers?") => (200, json!([browser(domain)])),
        ["GET", path, _] if path == of_session => (200, browser(domain)),
        ["POST", path, _] if path == format!("{of_session}/process/exec") => (200, execute(first, &body)),
        ["PUT", path, _] if path.starts_with(&format!("{of_session}/fs/write_file?")) => {
            write(first, path, &body);
            (201, json!({}))
        }
        _ => (404, json!({ "code": "not_found", "message": request })),
    };
    let text = told.to_string();
    let length = text.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{text}"
    );
}

/// The session. Nothing listens at its CDP URL, which names the VM.
fn browser(domain: Ipv4Addr) -> Value {
    json!({
        "session_id": SESSION, "created_at": "2026-11-30T12:00:00Z", "headless": true, "stealth": false,
        "timeout_seconds": 300, "cdp_ws_url": format!("wss://{domain}:9"), "webdriver_ws_url": "",
    })
}

/// Runs the command of an exec on the VM.
fn execute(first: i32, body: &[u8]) -> Value {
    let call: Value = serde_json::from_slice(body).expect("JSON");
    let args = call["args"].as_array().expect("arguments").iter().map(|arg| arg.as_str().expect("a string"));
    let args: Vec<_> = call["command"].as_str().into_iter().chain(args).collect();
    let output = command_at(first, &args).output().expect("nsenter");
    json!({
        "exit_code": output.status.code().unwrap_or(-1), "duration_ms": 1,
        "stdout_b64": STANDARD.encode(output.stdout), "stderr_b64": STANDARD.encode(output.stderr),
    })
}

/// Writes a file on the VM. The paths that ksync sends need little decoding.
fn write(first: i32, request: &str, body: &[u8]) {
    let query = request.split_once('?').expect("a query").1;
    let path = query.split('&').find_map(|pair| pair.strip_prefix("path=")).expect("a path");
    let file = PathBuf::from(format!("/proc/{first}/root{}", path.replace("%2F", "/").replace("%2f", "/")));
    fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
    fs::write(file, body).expect("a file");
}
