//! The bridge: carries what clients send in WebSocket messages to an SSH server, and back. ksync puts it on a VM
//! that has no websocat and cannot download it. Run as:
//!
//! ```text
//! ksync-bridge LISTEN_ADDRESS:PORT TARGET_ADDRESS:PORT
//! ```
//!
//! For a client it is what `websocat --binary ws-l:… tcp:…` is: binary messages of at most 64 KiB, text taken as
//! bytes, any path, pings answered and never sent. Different is how it ends: what was sent before an end arrives
//! before the end does, in both directions, and a client that has ended its side of the TCP connection, and no
//! more than that, is served until the target has ended too.
//!
//! Everybody can talk to it, so nothing that a client does may cost more than its own connection: there are limits
//! on messages, on connections, on the time for the handshake and for the farewell, and a client or target that
//! takes nothing is waited for without reading on. One thread serves a connection, both its ways: it moves what
//! can be moved without waiting, and when nothing can it waits for whatever may change that.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use tungstenite::error::{CapacityError, Error};
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};
use tungstenite::http::StatusCode;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Bytes, Message, WebSocket, accept_hdr_with_config};

/// Largest payload that is sent in a message, in bytes: websocat's buffer, which is what clients are used to.
const SENT_BYTES_MAX: usize = 64 << 10;

/// Largest message that is accepted, in bytes. ksync and websocat send at most 64 KiB.
const RECEIVED_BYTES_MAX: usize = 256 << 10;

/// What may wait for a client to take it, in bytes: a message, and the answers to pings that came meanwhile.
const WAITING_BYTES_MAX: usize = 4 * SENT_BYTES_MAX;

/// The connections that are served at a time; more wait to be accepted. With what each may hold in memory, that is
/// less than 100 MB, of the gigabyte that the smallest VM has.
const CONNECTIONS_MAX: usize = 100;

/// How long a client may take for its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long the target may take to accept a connection.
const TARGET_MAX: Duration = Duration::from_secs(5);

/// How long one side is waited for that does nothing any more after the other one has ended.
const FAREWELL_MAX: Duration = Duration::from_secs(10);

/// How long a client may take to close its socket after everything was said.
const LAST_MAX: Duration = Duration::from_secs(2);

/// A client that is gone without a word, as a laptop that went to sleep, is noticed after a silence of this, and four
/// questions of TCP in half of it.
const SILENCE: Duration = Duration::from_secs(120);

/// What a thread has for its stack, in bytes. The buffers are elsewhere; the largest thing here is a request's headers.
const STACK_BYTES: usize = 128 << 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let failed = |text: String, code| {
        let _ = writeln!(io::stderr(), "ksync-bridge: {text}");
        ExitCode::from(code)
    };
    match *arguments {
        ["--version"] => {
            let told = writeln!(io::stdout(), "ksync-bridge {}", env!("CARGO_PKG_VERSION"));
            if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        [listen, target] => match (listen.parse::<SocketAddr>(), target.parse()) {
            (Ok(listen), Ok(target)) => match TcpListener::bind(listen) {
                Ok(listener) => accept(&listener, target),
                Err(error) => failed(format!("cannot listen on {listen}: {error}"), 1),
            },
            _ => failed("both must be ADDRESS:PORT, in digits".to_owned(), 2),
        },
        _ => failed("give LISTEN_ADDRESS:PORT and TARGET_ADDRESS:PORT".to_owned(), 2),
    }
}

/// Serves whoever comes, for ever.
fn accept(listener: &TcpListener, target: SocketAddr) -> ! {
    let places = Arc::new(Places::default());
    loop {
        let place = Places::take(&places);
        match listener.accept() {
            Ok((socket, _)) => {
                let work = move || {
                    serve(socket, target);
                    drop(place);
                };
                // Where there is no thread to be had the client sees that the connection ends, and comes again.
                let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
            }
            // Out of descriptors, most likely: some will be free again.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// How many connections there are, and a way to wait for one that ends.
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

impl Places {
    /// Waits until there is room for a connection.
    fn take(places: &Arc<Places>) -> Place {
        let taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut usize| *taken >= CONNECTIONS_MAX;
        let mut taken = places.freed.wait_while(taken, is_full).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Place(Arc::clone(places))
    }
}

/// The room of a connection, given back when it is dropped.
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

/// One connection, from its beginning to its end. How it ended is the client's to find out, and a client's mistakes
/// are no event here: whoever wants to could fill the log with them.
fn serve(socket: TcpStream, target: SocketAddr) {
    if prepare(&socket).is_err() {
        return;
    }
    let Some((websocket, target)) = greet(Client { socket, has_ended: false }, target) else { return };
    let mut bridge = Bridge::new(websocket, target);
    if let Err(error) = bridge.carry() {
        bridge.refuse(&error);
    }
    bridge.part();
}

/// Nothing here waits but in [`wait`].
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // SSH sends many small packets that somebody waits for.
    socket.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(socket, SILENCE)?;
    sockopt::set_tcp_keepintvl(socket, SILENCE / 8)?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    Ok(sockopt::set_socket_keepalive(socket, true)?)
}

/// A client's socket, whose end is no end of the WebSocket: the client may have ended its own side only.
struct Client {
    socket: TcpStream,
    has_ended: bool,
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.socket.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                self.has_ended = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
            result => result,
        }
    }
}

impl Write for Client {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects to the target once somebody has asked for a WebSocket, and not for anything else.
struct Dial<'a> {
    target: SocketAddr,
    connected: &'a mut Option<TcpStream>,
}

impl Callback for Dial<'_> {
    fn on_request(self, _request: &Request, response: Response) -> Result<Response, ErrorResponse> {
        let connected = TcpStream::connect_timeout(&self.target, TARGET_MAX);
        match connected.and_then(|stream| prepare(&stream).map(|()| stream)) {
            Ok(stream) => {
                *self.connected = Some(stream);
                Ok(response)
            }
            Err(error) => {
                let text = format!("no connection to {}: {error}\n", self.target);
                let length = text.len();
                let mut refusal = ErrorResponse::new(Some(text));
                *refusal.status_mut() = StatusCode::BAD_GATEWAY;
                refusal.headers_mut().insert("content-length", length.into());
                Err(refusal)
            }
        }
    }
}

/// The handshake; `None` if it did not come to a good end in time.
fn greet(client: Client, target: SocketAddr) -> Option<(WebSocket<Client>, TcpStream)> {
    let deadline = Instant::now() + HANDSHAKE_MAX;
    let config = WebSocketConfig::default()
        .read_buffer_size(SENT_BYTES_MAX)
        .max_write_buffer_size(WAITING_BYTES_MAX)
        .max_message_size(Some(RECEIVED_BYTES_MAX))
        .max_frame_size(Some(RECEIVED_BYTES_MAX));
    let mut connected = None;
    let dial = Dial { target, connected: &mut connected };
    let mut state = accept_hdr_with_config(client, dial, Some(config));
    let websocket = loop {
        match state {
            Ok(websocket) => break websocket,
            Err(HandshakeError::Failure(_)) => return None,
            Err(HandshakeError::Interrupted(half)) => {
                let client = half.get_ref().get_ref();
                let left = deadline.saturating_duration_since(Instant::now());
                if client.has_ended || left.is_zero() {
                    return None;
                }
                // The few bytes of the answer fit into the socket, so what is waited for is the request.
                wait(&mut [(client.socket.as_fd(), PollFlags::IN)], Some(left)).ok()?;
                state = half.handshake();
            }
        }
    };
    Some((websocket, connected?))
}

/// A connection that stands.
///
/// What could be done without waiting, as far as is known: a flag is set when the system says so, and cleared when
/// trying has shown otherwise.
struct Bridge {
    websocket: WebSocket<Client>,
    target: TcpStream,
    client_can_read: bool,
    client_can_write: bool,
    target_can_read: bool,
    target_can_write: bool,
    /// What the client has sent and the target has not taken yet.
    up: Bytes,
    /// Whether the client may still say something.
    is_up_open: bool,
    /// Whether the target still takes what the client says.
    is_target_taking: bool,
    /// Whether the client has not taken all yet that it was to be told.
    is_down_waiting: bool,
    /// Whether the target may still say something.
    is_down_open: bool,
    buffer: Vec<u8>,
}

/// Whether anything was moved; else it is time to wait.
type Moved = bool;

impl Bridge {
    fn new(websocket: WebSocket<Client>, target: TcpStream) -> Self {
        Self {
            websocket,
            target,
            client_can_read: true,
            client_can_write: true,
            target_can_read: true,
            target_can_write: true,
            up: Bytes::new(),
            is_up_open: true,
            is_target_taking: true,
            is_down_waiting: false,
            is_down_open: true,
            buffer: vec![0; SENT_BYTES_MAX],
        }
    }

    /// Carries bytes until both sides have ended and what they said before has arrived.
    ///
    /// # Errors
    /// The client said something that it must not, or is gone.
    fn carry(&mut self) -> Result<(), Error> {
        loop {
            // Both, always: one way must not wait for the other.
            let (up, down) = (self.move_up()?, self.move_down()?);
            if up || down {
                continue;
            }
            let is_up_done = !self.is_up_open && self.up.is_empty();
            let is_down_done = !self.is_down_open && !self.is_down_waiting;
            if is_up_done && is_down_done {
                return Ok(());
            }
            // Whoever only ended its side of the TCP connection may want to hear for as long as there is something.
            let is_half_closed = is_up_done && self.is_down_open && self.websocket.can_write();
            let is_farewell = (is_up_done || is_down_done || !self.is_down_open) && !is_half_closed;
            if !self.wait(is_farewell.then_some(FAREWELL_MAX))? {
                return Ok(());
            }
        }
    }

    /// From the client to the target.
    fn move_up(&mut self) -> Result<Moved, Error> {
        let mut moved = false;
        if self.is_up_open && self.up.is_empty() && self.client_can_read {
            moved = true;
            match self.websocket.read() {
                Ok(Message::Binary(bytes)) => self.up = bytes,
                Ok(Message::Text(text)) => self.up = text.into(),
                Ok(Message::Close(_)) => {
                    self.is_up_open = false;
                    // Our answer, where it is one.
                    self.is_down_waiting = true;
                }
                // The answer to a ping, of which a part may have stayed behind.
                Ok(Message::Ping(_)) => self.is_down_waiting = true,
                Ok(Message::Pong(_) | Message::Frame(_)) => {}
                Err(Error::ConnectionClosed) => self.is_up_open = false,
                Err(error) if would_block(&error) => {
                    self.client_can_read = false;
                    self.is_up_open = !self.websocket.get_ref().has_ended;
                }
                Err(error) => return Err(error),
            }
        }
        if !self.is_target_taking {
            self.up.clear();
        }
        if !self.up.is_empty() && self.target_can_write {
            moved = true;
            match self.target.write(&self.up) {
                Ok(count) => drop(self.up.split_to(count)),
                Err(error) if is_passing(&error) => self.target_can_write = false,
                // What it has said before may still be read.
                Err(_) => self.is_target_taking = false,
            }
        }
        if !self.is_up_open && self.up.is_empty() && self.is_target_taking {
            self.is_target_taking = false;
            let _ = self.target.shutdown(Shutdown::Write);
        }
        Ok(moved)
    }

    /// From the target to the client.
    fn move_down(&mut self) -> Result<Moved, Error> {
        let mut moved = false;
        if self.is_down_waiting && self.client_can_write {
            moved = true;
            match self.websocket.flush() {
                Ok(()) | Err(Error::ConnectionClosed) => self.is_down_waiting = false,
                Err(error) if would_block(&error) => self.client_can_write = false,
                Err(error) => return Err(error),
            }
        }
        if self.is_down_open && !self.is_down_waiting && self.target_can_read {
            moved = true;
            let said = match self.target.read(&mut self.buffer) {
                Err(error) if is_passing(&error) => {
                    self.target_can_read = false;
                    return Ok(moved);
                }
                // A reset is an end as any other.
                Ok(0) | Err(_) => {
                    self.is_down_open = false;
                    Message::Close(None)
                }
                Ok(count) => {
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    Message::Binary(Bytes::copy_from_slice(bytes))
                }
            };
            // Somebody who has said goodbye is told nothing any more.
            if self.websocket.can_write() {
                self.is_down_waiting = true;
                match self.websocket.write(said) {
                    Ok(()) | Err(Error::ConnectionClosed) => {}
                    Err(error) if would_block(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(moved)
    }

    /// Waits until something can be moved; false if nothing could for too long.
    fn wait(&mut self, patience: Option<Duration>) -> io::Result<bool> {
        let flags = |reads: bool, writes: bool| {
            let read = if reads { PollFlags::IN } else { PollFlags::empty() };
            read | if writes { PollFlags::OUT } else { PollFlags::empty() }
        };
        let client = flags(self.is_up_open && self.up.is_empty(), self.is_down_waiting);
        let target = flags(self.is_down_open && !self.is_down_waiting, !self.up.is_empty());
        let mut sides = [(self.websocket.get_ref().socket.as_fd(), client), (self.target.as_fd(), target)];
        if !wait(&mut sides, patience)? {
            return Ok(false);
        }
        let [(_, client), (_, target)] = sides;
        // An error or an end is found by trying.
        let is_any = |found: PollFlags, wanted| found.intersects(wanted | PollFlags::HUP | PollFlags::ERR);
        self.client_can_read |= is_any(client, PollFlags::IN);
        self.client_can_write |= is_any(client, PollFlags::OUT);
        self.target_can_read |= is_any(target, PollFlags::IN);
        self.target_can_write |= is_any(target, PollFlags::OUT);
        Ok(true)
    }

    /// Tells a client what it did wrong, if it still listens.
    fn refuse(&mut self, error: &Error) {
        let code = match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseCode::Size,
            Error::Capacity(_) | Error::Protocol(_) | Error::Utf8(_) => CloseCode::Protocol,
            _ => return,
        };
        let _ = self.websocket.close(Some(CloseFrame { code, reason: "".into() }));
    }

    /// Ends both connections, the client's last. A socket that is closed with something unread in it is reset, and that may take
    /// away what the client has not read yet.
    fn part(&mut self) {
        // What it still has to say nobody hears; what it has been told it keeps.
        let _ = self.target.shutdown(Shutdown::Write);
        let socket = &mut self.websocket.get_mut().socket;
        let deadline = Instant::now() + LAST_MAX;
        let _ = socket.shutdown(Shutdown::Write);
        loop {
            match socket.read(&mut self.buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(_) => return,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || wait(&mut [(socket.as_fd(), PollFlags::IN)], Some(left)).is_err() {
                return;
            }
        }
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if is_passing(error))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Waits for what is wanted of some sockets, and puts what has come in its place; false if nothing did.
///
/// A socket of which nothing is wanted is not looked at: its end would be told each time anew.
fn wait(sockets: &mut [(BorrowedFd<'_>, PollFlags)], patience: Option<Duration>) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = sockets
        .iter()
        .filter(|(_, wanted)| !wanted.is_empty())
        .map(|(socket, wanted)| PollFd::from_borrowed_fd(*socket, *wanted))
        .collect();
    let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
    let count = match poll(&mut polled, patience.as_ref()) {
        Ok(count) => count,
        // Nothing is known then, and trying shows that.
        Err(rustix::io::Errno::INTR) => polled.len(),
        Err(error) => return Err(error.into()),
    };
    let found = polled.iter().map(PollFd::revents);
    let wanted = sockets.iter_mut().filter(|(_, wanted)| !wanted.is_empty());
    for ((_, flags), found) in wanted.zip(found) {
        *flags = found;
    }
    Ok(count > 0)
}
