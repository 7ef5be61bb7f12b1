//! A connection over a stream of tokio: one task that reads and writes, and handles that share the
//! [`Client`] with it.
//!
//! Each channel has its own queue. Its length is bounded by the channel's window, which is opened
//! as the queue is read. So a channel that nobody reads stops no other one.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, sleep_until, timeout};

use crate::channel::Channel;
use crate::channels::{ChannelEvent, Request};
use crate::client::{Client, Config};
use crate::error::SshError;
use crate::flight::Order;
use crate::hostkey::HostKey;
use crate::login::{LoginKey, LoginReply};
use crate::shared::{Handles, Shared, State};

/// Memory for reads, and the least of it that is left for one. Several reads share it, because each
/// piece of output that nobody has taken yet keeps what it was read into.
const READ_BYTES: usize = 256 << 10;
const READ_BYTES_MIN: usize = 64 << 10;

/// Bytes that wait to be written before nothing is read any more: answers would only pile up.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Memory that the output keeps between writes.
const SPARE_BYTES_MAX: usize = 512 << 10;

/// Bytes that are read while the caller checks the host key.
const UNREAD_BYTES_MAX: usize = 512 << 10;

/// Time for the last bytes of a connection.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The question for a sign of life.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// Silence after which the server is asked.
    pub interval: Duration,
    /// Unanswered questions after which the connection counts as dead.
    pub unanswered_max: u32,
}

/// Reason why there is no connection.
#[derive(Debug)]
pub enum ConnectError<E> {
    /// The protocol or the network failed.
    Ssh(SshError),
    /// The caller did not accept the host key.
    HostKey(E),
}

/// An SSH connection.
#[derive(Clone)]
pub struct Session(Arc<Handles>);

impl Session {
    /// Connects over `stream`. `check` decides if the host is the right one; before that nothing
    /// but the key exchange is sent.
    ///
    /// In the fast order, the end of the key exchange travels with the login.
    ///
    /// # Errors
    /// The key exchange failed, or `check` did not accept the host key.
    pub async fn connect<S, E>(
        stream: S,
        config: Config,
        keepalive: Option<Keepalive>,
        check: impl AsyncFnOnce(&HostKey) -> Result<(), E>,
    ) -> Result<Self, ConnectError<E>>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let is_fast = config.order != Order::Safe;
        let client = Client::new(config).map_err(ConnectError::Ssh)?;
        let shared = Arc::new(Shared::new(client));
        let session = Self(Arc::new(Handles(Arc::clone(&shared))));
        let (read, write) = split(stream);
        tokio::spawn(Task { shared: Arc::clone(&shared), read, write, keepalive }.run());
        let find = |state: &mut State| state.has_host_key.then(|| state.client.host_key().cloned()).flatten();
        let key = shared.wait_for(find).await.map_err(ConnectError::Ssh)?;
        if let Err(error) = check(&key).await {
            shared.fail(SshError::HostKeyRefused);
            return Err(ConnectError::HostKey(error));
        }
        if is_fast {
            // Whatever arrives meanwhile must not make the task send a part of the flight.
            shared.hold();
        }
        session
            .with(|state| {
                state.trusted = Some(std::time::Instant::now());
                state.client.trust()?;
                state.dispatch()
            })
            .map_err(ConnectError::Ssh)?;
        if !is_fast {
            shared.wake();
        }
        Ok(session)
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Uses the state of a connection that has not ended.
    fn with<T>(&self, run: impl FnOnce(&mut State) -> Result<T, SshError>) -> Result<T, SshError> {
        let mut state = self.shared().state();
        match &state.end {
            Some(error) => Err(error.clone()),
            None => run(&mut state),
        }
    }

    /// Looks at the client.
    pub fn client<T>(&self, look: impl FnOnce(&Client) -> T) -> T {
        look(&self.shared().state().client)
    }

    /// A round trip, measured once the server has answered a request that needs no work.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.shared().state().round_trip
    }

    /// Text for the person who logs in that has come since the last call. It is the server's.
    pub fn take_banners(&self) -> Vec<String> {
        std::mem::take(&mut self.shared().state().banners)
    }

    /// Waits until the server has announced its algorithms for user keys, at most for `timeout`.
    /// Most servers do so before the login.
    pub async fn signature_algorithms(&self, limit: Duration) -> Option<Vec<String>> {
        let find = |state: &mut State| state.client.signature_algorithms().map(<[String]>::to_vec);
        timeout(limit, self.shared().wait_for(find)).await.ok()?.ok()
    }

    /// The answer to the oldest login request.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn login_reply(&self) -> Result<LoginReply, SshError> {
        self.shared().wait_for(|state| state.replies.pop_front()).await
    }

    /// Asks if the server would accept a key.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn probe(&self, user: &str, key: &LoginKey) -> Result<LoginReply, SshError> {
        self.with(|state| state.client.probe(user, key))?;
        self.shared().wake();
        self.login_reply().await
    }

    /// Logs in with a signature of what [`Client::to_sign`] returns: the algorithm and the
    /// signature proper, each as a string.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn login(&self, user: &str, key: &LoginKey, signature: &[u8]) -> Result<LoginReply, SshError> {
        self.with(|state| state.client.login(user, key, signature))?;
        self.shared().wake();
        self.login_reply().await
    }

    /// Logs in, opens a session, makes a request and sends input, all in one flight. Returns how
    /// many bytes of the input were sent; the rest waits for the server. [`Session::login_reply`]
    /// tells if the login succeeded. If it did not, the flight's rest is sent again once another
    /// login has succeeded.
    ///
    /// # Errors
    /// The order is not the fast one, or the connection has ended.
    pub fn start(
        &self,
        user: &str,
        key: &LoginKey,
        signature: &[u8],
        request: &Request,
        input: &[u8],
    ) -> Result<(Channel, usize), SshError> {
        let started = self.with(|state| {
            state.client.login(user, key, signature)?;
            let id = state.client.open_early()?;
            state.client.request(id, request, false)?;
            let sent = if input.is_empty() { 0 } else { state.client.send(id, input)? };
            Ok((Channel::new(&self.0, state, id), sent))
        });
        self.shared().wake();
        started
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`OpenError::Refused`] if the server opens no further channel.
    pub async fn open(&self) -> Result<Channel, OpenError> {
        let mut channel = self
            .with(|state| {
                let id = state.client.open()?;
                Ok(Channel::new(&self.0, state, id))
            })
            .map_err(OpenError::Ssh)?;
        self.shared().wake();
        match channel.next().await {
            Some(ChannelEvent::Opened) => Ok(channel),
            Some(ChannelEvent::Refused { code, message }) => Err(OpenError::Refused { code, message }),
            _ => Err(OpenError::Ssh(self.end().unwrap_or(SshError::Closed))),
        }
    }

    /// The reason why the connection has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<SshError> {
        self.shared().state().end.clone()
    }

    /// Waits until the connection has ended, and returns the reason.
    pub async fn ended(&self) -> SshError {
        match self.shared().wait_for(|_| None::<()>).await {
            Ok(()) => SshError::Closed,
            Err(error) => error,
        }
    }

    /// Ends the connection with a text for the server, and waits until that is written.
    pub async fn disconnect(&self, text: &str) {
        let told = self.with(|state| state.client.disconnect(text));
        self.shared().fail(told.err().unwrap_or(SshError::Closed));
        loop {
            let changed = self.shared().changed.notified();
            if self.shared().state().is_done {
                return;
            }
            changed.await;
        }
    }
}

/// Reason why a channel was not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The server opens no further channel.
    #[error("the server opens no channel: {message}")]
    Refused {
        /// The reason code of RFC 4254, section 5.1.
        code: u32,
        /// The server's text.
        message: String,
    },
    /// The connection has failed.
    #[error(transparent)]
    Ssh(SshError),
}

/// The task that reads and writes.
struct Task<S> {
    shared: Arc<Shared>,
    read: ReadHalf<S>,
    write: WriteHalf<S>,
    keepalive: Option<Keepalive>,
}

impl<S: AsyncRead + AsyncWrite> Task<S> {
    async fn run(mut self) {
        if let Err(error) = self.carry().await {
            self.shared.fail(error);
        }
        let _ = timeout(GOODBYE_TIMEOUT, self.write.shutdown()).await;
        self.shared.state().is_done = true;
        self.shared.changed.notify_waiters();
    }

    /// Reads and writes until the connection has ended.
    async fn carry(&mut self) -> Result<(), SshError> {
        let mut input = BytesMut::new();
        let (mut output, mut written) = (Vec::new(), 0);
        let mut needs_flush = false;
        let (mut heard, mut unanswered) = (Instant::now(), 0);
        loop {
            let may_read = {
                let mut state = self.shared.state();
                let may_write = written == output.len() && !self.shared.is_held();
                if may_write && state.client.output_bytes() > 0 {
                    // A burst does not keep its memory.
                    output.clear();
                    output.shrink_to(SPARE_BYTES_MAX);
                    state.client.swap_output(&mut output);
                    written = 0;
                    for queue in state.queues.values() {
                        queue.wake_writer();
                    }
                }
                if state.end.is_some() && written == output.len() {
                    return Ok(());
                }
                state.client.output_bytes() + output.len() - written < ANSWER_BYTES_MAX
                    && state.client.unread_bytes() < UNREAD_BYTES_MAX
            };
            if input.capacity() - input.len() < READ_BYTES_MIN {
                input.reserve(READ_BYTES);
            }
            let rest = output.get(written..).unwrap_or_default();
            let write = &mut self.write;
            let writing = async {
                if rest.is_empty() { write.flush().await.map(|()| 0) } else { write.write(rest).await }
            };
            let silence = async {
                match self.keepalive {
                    Some(keepalive) => sleep_until(heard + keepalive.interval * (unanswered + 1)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = self.read.read_buf(&mut input), if may_read => {
                    if count? == 0 {
                        return Err(SshError::Closed);
                    }
                    (heard, unanswered) = (Instant::now(), 0);
                    let mut state = self.shared.state();
                    let fed = state.client.feed_from(&mut input);
                    let has_changed = state.dispatch()?;
                    drop(state);
                    if has_changed {
                        self.shared.changed.notify_waiters();
                    }
                    fed?;
                }
                count = writing, if !rest.is_empty() || needs_flush => {
                    let count = count?;
                    if count == 0 && !rest.is_empty() {
                        return Err(SshError::Closed);
                    }
                    needs_flush = !rest.is_empty();
                    written += count;
                }
                () = self.shared.output.notified(), if rest.is_empty() => {}
                () = silence => {
                    let mut state = self.shared.state();
                    if !state.client.is_logged_in() {
                        // Whoever logs in has a timeout of its own.
                        heard = Instant::now();
                        continue;
                    }
                    let unanswered_max = self.keepalive.map_or(0, |keepalive| keepalive.unanswered_max);
                    if unanswered >= unanswered_max {
                        return Err(SshError::Silence);
                    }
                    unanswered += 1;
                    state.client.keepalive()?;
                }
            }
        }
    }
}
