//! A platform for one test, and HTTP/1.1 written by hand.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use ksync::sandbox::platform::{Platform, PlatformOptions};
use ksync::sandbox::{Isolation, LinkConditions};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_tungstenite::WebSocketStream;

/// A platform, stopped when dropped.
pub(crate) struct Cloud {
    pub(crate) runtime: Runtime,
    pub(crate) platform: Option<Platform>,
    /// Holds the platform's home directory.
    _folder: tempfile::TempDir,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A CDP client.
pub(crate) type Cdp = WebSocketStream<tokio::net::TcpStream>;

impl Cloud {
    pub(crate) fn new() -> Cloud {
        Cloud::with_time_scale(1.0)
    }

    /// Starts a platform whose clock runs `time_scale` times as fast.
    pub(crate) fn with_time_scale(time_scale: f64) -> Cloud {
        Cloud::start(time_scale, None)
    }

    /// Starts a platform with a Chromium at `url`.
    pub(crate) fn with_chromium(url: &str) -> Cloud {
        Cloud::start(1.0, Some(url.to_owned()))
    }

    fn start(time_scale: f64, chromium: Option<String>) -> Cloud {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = Runtime::new().expect("a runtime");
        let options = PlatformOptions {
            sshd: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            home: folder.path().join("home"),
            isolation: Isolation::World,
            conditions: LinkConditions::default(),
            time_scale,
            client_key: None,
            chromium,
        };
        let platform = runtime.block_on(Platform::start(options)).expect("a platform");
        Cloud { runtime, platform: Some(platform), _folder: folder }
    }

    pub(crate) fn platform(&self) -> &Platform {
        self.platform.as_ref().expect("it runs")
    }

    fn address(&self) -> String {
        self.platform().base_url().strip_prefix("http://").expect("a URL").to_owned()
    }

    /// Makes a call with the key.
    pub(crate) fn call(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        self.attempt(method, path, body).expect("an answer")
    }

    /// Sends a form with the key.
    pub(crate) fn form(&self, path: &str, fields: &[(&str, &[u8])]) -> Reply {
        let mut body = Vec::new();
        for (name, content) in fields {
            let head = format!("--border\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend([head.as_bytes(), content, b"\r\n"].concat());
        }
        body.extend(b"--border--\r\n");
        let headers = format!(
            "Authorization: Bearer {}\r\nContent-Type: multipart/form-data; boundary=border\r\n",
            self.platform().api_key()
        );
        send(&self.address(), "POST", path, &headers, &body).expect("an answer")
    }

    pub(crate) fn attempt(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
        let key = format!("Authorization: Bearer {}\r\n", self.platform().api_key());
        send(&self.address(), method, path, &key, body)
    }

    /// Sends a call with the key, without waiting for the answer.
    pub(crate) fn begin(&self, method: &str, path: &str, body: &Value) -> TcpStream {
        let key = format!("Authorization: Bearer {}\r\n", self.platform().api_key());
        request(&self.address(), method, path, &key, body.to_string().as_bytes()).expect("a connection")
    }

    /// Makes a call with these header lines, without the key.
    pub(crate) fn bare(&self, method: &str, path: &str, headers: &str) -> Reply {
        self.bare_with(method, path, headers, b"")
    }

    pub(crate) fn bare_with(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        send(&self.address(), method, path, headers, body).expect("an answer")
    }

    /// Makes a call to another name of the platform.
    pub(crate) fn at_host(&self, host: &str, path: &str) -> Reply {
        let mut socket = TcpStream::connect(self.address()).expect("a connection");
        write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
        receive(BufReader::new(socket)).expect("an answer")
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.call("GET", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, body.to_string().as_bytes())
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Reply {
        self.call("PUT", path, body.to_string().as_bytes())
    }

    /// Description of a new session.
    pub(crate) fn browser(&self, wish: &Value) -> Value {
        self.post("/browsers", wish).has(200).json()
    }

    /// Id of a new session with default properties.
    pub(crate) fn session(&self) -> String {
        text(&self.browser(&json!({}))["session_id"])
    }

    /// Runs a line of shell in a session.
    pub(crate) fn sh(&self, id: &str, line: &str) -> Ran {
        self.exec(id, &json!({ "command": "/bin/sh", "args": ["-c", line] }))
    }

    /// Runs a program in a session, and asserts that it has an exit code.
    #[track_caller]
    pub(crate) fn exec(&self, id: &str, program: &Value) -> Ran {
        let value = self.post(&format!("/browsers/{id}/process/exec"), program).has(200).json();
        let stream = |name: &str| String::from_utf8(decoded(&value[name])).expect("UTF-8");
        Ran {
            exit_code: value["exit_code"].as_i64().expect("a code"),
            stdout: stream("stdout_b64"),
            stderr: stream("stderr_b64"),
        }
    }

    /// Requests a fault.
    pub(crate) fn fault(&self, fault: &Value) {
        self.post("/_sandbox/faults", fault).has(204);
    }

    /// Advances the platform's clock.
    pub(crate) fn pass(&self, seconds: f64) {
        self.post("/_sandbox/clock", &json!({ "advance_seconds": seconds })).has(200);
    }

    /// The emulator's own record of a session.
    pub(crate) fn inside(&self, id: &str) -> Value {
        self.get(&format!("/_sandbox/sessions/{id}")).has(200).json()
    }

    /// Path on this machine of the `/` of a session's VM.
    pub(crate) fn root(&self, id: &str) -> String {
        text(&self.inside(id)["root"])
    }

    /// Stage of a session's clock; `gone` if the session does not exist.
    pub(crate) fn stage(&self, id: &str) -> String {
        let reply = self.get(&format!("/_sandbox/sessions/{id}"));
        if reply.status == 404 { "gone".to_owned() } else { text(&reply.json()["stage"]) }
    }

    /// Opens the CDP socket of a session.
    pub(crate) fn cdp(&self, browser: &Value) -> Cdp {
        let url = text(&browser["cdp_ws_url"]);
        let address =
            url.strip_prefix("ws://").expect("ws").split('/').next().expect("an address").to_owned();
        self.runtime.block_on(async {
            let socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
            tokio_tungstenite::client_async(&url, socket).await.expect("a handshake").0
        })
    }

    /// Waits until the other side closes a socket.
    pub(crate) fn ends(&self, cdp: &mut Cdp) {
        self.runtime.block_on(async {
            let ended = async { while let Some(Ok(_)) = cdp.next().await {} };
            tokio::time::timeout(Duration::from_secs(30), ended).await.expect("an end");
        });
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(platform) = self.platform.take() {
            self.runtime.block_on(platform.stop());
        }
    }
}

/// Result of a program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) exit_code: i64,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Reply {
    /// Asserts the status.
    #[track_caller]
    pub(crate) fn has(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Asserts an error of the platform: a code and a message.
    #[track_caller]
    pub(crate) fn is_error(&self, status: u16, code: &str) {
        assert_eq!((self.status, text(&self.json()["code"])), (status, code.to_owned()));
        assert!(!text(&self.json()["message"]).is_empty());
        assert_eq!(self.header("content-type"), Some("application/json"));
    }

    /// Asserts an error from inside a VM: a message and nothing else.
    #[track_caller]
    pub(crate) fn says(&self, status: u16, message: &str) {
        assert_eq!((self.status, self.json()), (status, json!({ "message": message })));
    }
}

/// A string of an answer.
#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no string: {value}")).to_owned()
}

/// Decodes base64.
#[track_caller]
pub(crate) fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value)).expect("base64")
}

fn send(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Reply> {
    receive(BufReader::new(request(address, method, path, headers, body)?))
}

fn request(address: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    )?;
    // The server may answer a refused request before it has read everything.
    let _ = socket.write_all(body);
    Ok(socket)
}

fn receive(mut socket: impl BufRead) -> io::Result<Reply> {
    let mut line = || {
        let mut line = String::new();
        socket.read_line(&mut line)?;
        Ok::<_, io::Error>(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut headers = Vec::new();
    while let Some((name, value)) = line()?.split_once(": ") {
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let mut body = Vec::new();
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    if is_chunked {
        loop {
            let mut size = String::new();
            socket.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            if size == 0 {
                break;
            }
            (&mut socket).take(size).read_to_end(&mut body)?;
            socket.read_line(&mut String::new())?;
        }
    } else {
        socket.read_to_end(&mut body)?;
    }
    Ok(Reply { status, headers, body })
}
