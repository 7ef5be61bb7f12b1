//! The bridge: carries the bytes of WebSocket messages to an SSH server, and back. ksync installs
//! it on a VM that has no websocat and cannot download it. Run as:
//!
//! ```text
//! ksync-bridge LISTEN_ADDRESS:PORT TARGET_ADDRESS:PORT
//! ```
//!
//! To a client it behaves like `websocat --binary ws-l:… tcp:…`. Messages are binary, with at most
//! 64 KiB; text is taken as bytes, and any path is accepted. Pings are answered and never sent.
//! Only the end differs. Bytes that were sent before an end arrive before it, in both directions. A
//! client that has closed only its own direction of the TCP connection is served until the target
//! has ended too.
//!
//! Anybody can connect, so no client may cost more than its own connection. Limits apply to
//! messages, connections, and the time for the handshake and for the close. While a client or
//! target takes no bytes, the bridge does not read on. One thread serves both directions of a
//! connection. It moves all bytes that it can move without blocking, then waits for a change.

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

/// Maximum payload of a sent message, in bytes: websocat's buffer size, which clients are used to.
const SENT_BYTES_MAX: usize = 64 << 10;

/// Maximum length of an accepted message, in bytes. ksync and websocat send at most 64 KiB.
const RECEIVED_BYTES_MAX: usize = 256 << 10;

/// Maximum bytes that wait for a client: a message, and the answers to pings that came meanwhile.
const WAITING_BYTES_MAX: usize = 4 * SENT_BYTES_MAX;

/// Maximum number of simultaneous connections; more wait to be accepted. Their memory is less than
/// 100 MB, of the gigabyte that the smallest VM has.
const CONNECTIONS_MAX: usize = 100;

/// Timeout for a client's handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Timeout for the target to accept a connection.
const TARGET_MAX: Duration = Duration::from_secs(5);

/// Timeout for a silent side after the other side has ended.
const FAREWELL_MAX: Duration = Duration::from_secs(10);

/// Timeout for a client to close its socket after everything was sent.
const LAST_MAX: Duration = Duration::from_secs(2);

/// TCP keep-alive: silence before the first probe. A client that vanished, as a laptop that went to
/// sleep, is detected after this and four probes, which take half of this time.
const SILENCE: Duration = Duration::from_secs(120);

/// Stack size of a thread, in bytes. The buffers are elsewhere; the largest object here is a
/// request's headers.
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

/// Serves every connection, for ever.
fn accept(listener: &TcpListener, target: SocketAddr) -> ! {
    let slots = Arc::new(Slots::default());
    loop {
        let slot = Slots::take(&slots);
        match listener.accept() {
            Ok((socket, _)) => {
                let work = move || {
                    serve(socket, target);
                    drop(slot);
                };
                // Without a thread the connection just ends, and the client connects again.
                let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
            }
            // Most likely no descriptor is free, and some will be soon.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Counts the connections, and lets the accept loop wait until one ends.
#[derive(Default)]
struct Slots {
    taken: Mutex<usize>,
    freed: Condvar,
}

impl Slots {
    /// Waits until another connection is allowed.
    fn take(slots: &Arc<Slots>) -> Slot {
        let taken = slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut usize| *taken >= CONNECTIONS_MAX;
        let mut taken = slots.freed.wait_while(taken, is_full).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Slot(Arc::clone(slots))
    }
}

/// One allowed connection; dropping it allows another.
struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

/// Serves one connection, from its beginning to its end. Nothing is logged: otherwise any client
/// could fill the log with its mistakes.
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

/// Makes the socket non-blocking, so that the bridge blocks only in [`wait`].
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // SSH sends many small packets, and users wait for them.
    socket.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(socket, SILENCE)?;
    sockopt::set_tcp_keepintvl(socket, SILENCE / 8)?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    Ok(sockopt::set_socket_keepalive(socket, true)?)
}

/// A client's socket. The end of its input does not end the WebSocket: the client may have closed
/// only its own direction.
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

/// Connects to the target once a client has sent a valid WebSocket request.
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
                let mut response = ErrorResponse::new(Some(text));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response.headers_mut().insert("content-length", length.into());
                Err(response)
            }
        }
    }
}

/// Performs the handshake; `None` if it failed or timed out.
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
                // The few bytes of the answer fit into the socket, so the missing part is the
                // request.
                wait(&mut [(client.socket.as_fd(), PollFlags::IN)], Some(left)).ok()?;
                state = half.handshake();
            }
        }
    };
    Some((websocket, connected?))
}

/// An established connection.
///
/// The `can` flags hold the known readiness of both sockets. A report of the system sets a flag; an
/// attempt that would block clears it.
struct Bridge {
    websocket: WebSocket<Client>,
    target: TcpStream,
    client_can_read: bool,
    client_can_write: bool,
    target_can_read: bool,
    target_can_write: bool,
    /// Bytes that the client has sent and the target has not taken yet.
    up: Bytes,
    /// True while the client may still send.
    is_up_open: bool,
    /// True while the target takes the client's bytes.
    is_target_taking: bool,
    /// True while bytes for the client wait to be written.
    is_down_waiting: bool,
    /// True while the target may still send.
    is_down_open: bool,
    buffer: Vec<u8>,
}

/// True if any byte moved; otherwise it is time to wait.
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

    /// Carries bytes until both sides have ended and all their bytes have arrived.
    ///
    /// # Errors
    /// The client broke the protocol, or is gone.
    fn carry(&mut self) -> Result<(), Error> {
        loop {
            // Always both: one direction must not wait for the other.
            let (up, down) = (self.move_up()?, self.move_down()?);
            if up || down {
                continue;
            }
            let is_up_done = !self.is_up_open && self.up.is_empty();
            let is_down_done = !self.is_down_open && !self.is_down_waiting;
            if is_up_done && is_down_done {
                return Ok(());
            }
            // A client that closed only its direction of TCP may still read, for as long as the
            // target sends.
            let is_half_closed = is_up_done && self.is_down_open && self.websocket.can_write();
            let is_farewell = (is_up_done || is_down_done || !self.is_down_open) && !is_half_closed;
            if !self.wait(is_farewell.then_some(FAREWELL_MAX))? {
                return Ok(());
            }
        }
    }

    /// Moves bytes from the client to the target.
    fn move_up(&mut self) -> Result<Moved, Error> {
        let mut moved = false;
        if self.is_up_open && self.up.is_empty() && self.client_can_read {
            moved = true;
            match self.websocket.read() {
                Ok(Message::Binary(bytes)) => self.up = bytes,
                Ok(Message::Text(text)) => self.up = text.into(),
                Ok(Message::Close(_)) => {
                    self.is_up_open = false;
                    // Our answer to the close, if one is due.
                    self.is_down_waiting = true;
                }
                // Part of the answer to a ping may wait to be written.
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
                // Bytes that the target sent before may still be read.
                Err(_) => self.is_target_taking = false,
            }
        }
        if !self.is_up_open && self.up.is_empty() && self.is_target_taking {
            self.is_target_taking = false;
            let _ = self.target.shutdown(Shutdown::Write);
        }
        Ok(moved)
    }

    /// Moves bytes from the target to the client.
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
                // A reset counts as an end.
                Ok(0) | Err(_) => {
                    self.is_down_open = false;
                    Message::Close(None)
                }
                Ok(count) => {
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    Message::Binary(Bytes::copy_from_slice(bytes))
                }
            };
            // A client that has sent a close gets no more messages.
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

    /// Waits until a byte can be moved; false after a timeout.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let flags = |reads: bool, writes: bool| {
            let read = if reads { PollFlags::IN } else { PollFlags::empty() };
            read | if writes { PollFlags::OUT } else { PollFlags::empty() }
        };
        let client = flags(self.is_up_open && self.up.is_empty(), self.is_down_waiting);
        let target = flags(self.is_down_open && !self.is_down_waiting, !self.up.is_empty());
        let mut sides = [(self.websocket.get_ref().socket.as_fd(), client), (self.target.as_fd(), target)];
        if !wait(&mut sides, timeout)? {
            return Ok(false);
        }
        let [(_, client), (_, target)] = sides;
        // An attempt to read or write finds an error or an end.
        let is_any = |found: PollFlags, wanted| found.intersects(wanted | PollFlags::HUP | PollFlags::ERR);
        self.client_can_read |= is_any(client, PollFlags::IN);
        self.client_can_write |= is_any(client, PollFlags::OUT);
        self.target_can_read |= is_any(target, PollFlags::IN);
        self.target_can_write |= is_any(target, PollFlags::OUT);
        Ok(true)
    }

    /// Tells a client what it did wrong, if it still reads.
    fn refuse(&mut self, error: &Error) {
        let code = match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseCode::Size,
            Error::Capacity(_) | Error::Protocol(_) | Error::Utf8(_) => CloseCode::Protocol,
            _ => return,
        };
        let _ = self.websocket.close(Some(CloseFrame { code, reason: "".into() }));
    }

    /// Ends both connections, the client's last. Closing a socket with unread input resets the
    /// connection, and a reset may destroy bytes that the client has not read yet.
    fn part(&mut self) {
        // Input from the client is discarded; bytes for the client still arrive.
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

/// Waits for the wanted events of some sockets, and replaces them by the events that came; false if
/// none did.
///
/// A socket without wanted events is not polled: its end would be reported again each time.
fn wait(sockets: &mut [(BorrowedFd<'_>, PollFlags)], timeout: Option<Duration>) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = sockets
        .iter()
        .filter(|(_, wanted)| !wanted.is_empty())
        .map(|(socket, wanted)| PollFd::from_borrowed_fd(*socket, *wanted))
        .collect();
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let count = match poll(&mut polled, timeout.as_ref()) {
        Ok(count) => count,
        // All sockets may be ready then; an attempt finds out.
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
