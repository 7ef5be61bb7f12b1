//! A test server that sends prepared replies and records the requests.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server's reaction to one request.
#[derive(Clone)]
pub(super) enum Reply {
    /// Sends these bytes.
    Text(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Cut(&'static str),
    /// Sends nothing for this time, then closes the connection.
    Silence(Duration),
}

impl Reply {
    /// A reply with this status and body.
    pub(super) fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::with(status, &[], body)
    }

    /// A reply with these headers too.
    pub(super) fn with(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut text = format!("HTTP/1.1 {status} x\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        // A 204 reply has no length.
        if status != 204 {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        Self::Text([format!("{text}\r\n").as_bytes(), body].concat())
    }
}

/// A received request.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Method and path, "GET /x".
    pub(super) line: String,
    /// The headers, with names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// The body.
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A server on this machine. It sends its replies in turn, and repeats the last one for ever.
pub(super) struct Server {
    /// The server's port.
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Makes a server with these replies.
    pub(super) fn saying(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::over(replies, |stream| stream)
    }

    /// Makes a server with these replies over TLS.
    pub(super) fn saying_over_tls(
        replies: impl IntoIterator<Item = Reply>,
        config: Arc<ServerConfig>,
    ) -> Self {
        Self::over(replies, move |stream| {
            StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream)
        })
    }

    fn over<S: Read + Write>(
        replies: impl IntoIterator<Item = Reply>,
        wrap: impl Fn(TcpStream) -> S + Send + Clone + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (wrap, replies, log) = (wrap.clone(), replies.clone(), log.clone());
                thread::spawn(move || serve(wrap(stream.unwrap()), &replies, &log));
            }
        });
        Self { port, seen }
    }

    /// The server's URL.
    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// Serves a connection until it ends.
fn serve(stream: impl Read + Write, replies: &Mutex<VecDeque<Reply>>, log: &Mutex<Vec<Seen>>) {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = request(&mut stream) {
        log.lock().unwrap().push(seen);
        let reply = {
            let mut replies = replies.lock().unwrap();
            if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
        };
        match reply.unwrap() {
            Reply::Text(text) => {
                let sent = stream.get_mut().write_all(&text).and_then(|()| stream.get_mut().flush());
                // The client may have stopped reading.
                if sent.is_err() {
                    return;
                }
            }
            Reply::Cut(text) => {
                let _ = stream.get_mut().write_all(text.as_bytes());
                return;
            }
            Reply::Silence(time) => return thread::sleep(time),
        }
    }
}

fn request(stream: &mut impl BufRead) -> Option<Seen> {
    let line = |stream: &mut dyn BufRead| {
        let mut text = String::new();
        stream.read_line(&mut text).ok().filter(|length| *length > 0)?;
        Some(text.trim_end().to_owned())
    };
    let first = line(stream)?;
    let mut headers = Vec::new();
    loop {
        let text = line(stream)?;
        let Some((name, value)) = text.split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let mut seen = Seen { line: first.trim_end_matches(" HTTP/1.1").to_owned(), headers, body: Vec::new() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    seen.body.resize(length, 0);
    stream.read_exact(&mut seen.body).ok()?;
    Some(seen)
}
