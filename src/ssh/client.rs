//! The client: a state machine without sockets and clocks.
//!
//! # Use
//! 1. [`Client::new`] writes the first bytes.
//! 2. Send what [`Client::take_output`] returns, and give to [`Client::feed`] what arrives.
//! 3. Take events by [`Client::next_event`] until there is none, and go to 2.
//!
//! The event [`Event::HostKey`] asks if the host is the right one. Nothing is sent and nothing is
//! read until [`Client::trust`] says so. Requests for a login and channels may be made from then
//! on. Whatever is made before the next `take_output` travels together.
//!
//! # Early channels
//! A channel that [`Client::open_early`] opens before the login has succeeded costs no round trip.
//! If the server refuses that login, it drops the channel's messages (OpenSSH answers each with
//! UNIMPLEMENTED). They are kept, and sent again once another login has succeeded.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::channels::{ChannelEvent, ChannelId, Channels, Request};
use crate::encoding::{
    GLOBAL_REQUEST, Message, REQUEST_FAILURE, REQUEST_SUCCESS, Reader, SERVICE_ACCEPT, UNIMPLEMENTED,
};
use crate::error::SshError;
use crate::flight::{Facts, Guess, OPENSSH_FIRST_CHANNEL, Order};
use crate::hostkey::HostKey;
use crate::login::{Heard, Login, LoginKey, LoginReply, to_sign};
use crate::negotiation::{Algorithms, KEY_EXCHANGES, Negotiated, make_lean};
use crate::transport::{Incoming, RekeyLimit, Transport};

/// The reason code "by application" of DISCONNECT.
const BY_APPLICATION: u32 = 11;

/// Settings of a client.
#[derive(Debug, Clone)]
pub struct Config {
    /// The identification, such as `SSH-2.0-ksync_0.1.0`.
    pub id: String,
    /// The algorithms to offer.
    pub algorithms: Algorithms,
    /// The receive window of each channel, in bytes.
    pub window_bytes: u32,
    /// The traffic after which keys are changed.
    pub rekey_limit: RekeyLimit,
    /// The order of packets.
    pub order: Order,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: concat!("SSH-2.0-ksync_", env!("CARGO_PKG_VERSION")).into(),
            algorithms: Algorithms::default(),
            window_bytes: 2 << 20,
            rekey_limit: RekeyLimit::default(),
            order: Order::Safe,
        }
    }
}

/// An event of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The host proved that it has the key [`Client::host_key`]. Answer by [`Client::trust`], or
    /// drop the client.
    HostKey,
    /// Text for the person who logs in. It is the server's.
    Banner(String),
    /// The answer to the oldest unanswered login request.
    Login(LoginReply),
    /// An event of a channel.
    Channel(ChannelId, ChannelEvent),
}

/// An SSH client.
pub struct Client {
    transport: Transport,
    login: Login,
    channels: Channels,
    events: VecDeque<Event>,
    is_trusted: bool,
    order: Order,
    /// Messages of channels that were sent before a login succeeded.
    early: Vec<Vec<u8>>,
    /// The server dropped them, and no login has succeeded since.
    is_early_lost: bool,
    /// A channel was opened, so a command may have run.
    has_opened: bool,
    key: Option<Vec<u8>>,
}

impl Client {
    /// Begins a connection.
    ///
    /// # Errors
    /// The crypto library gives no keys.
    pub fn new(config: Config) -> Result<Self, SshError> {
        let Config { id, mut algorithms, window_bytes, rekey_limit, order } = config;
        let guess = order.guess();
        if let Some(Guess { key_exchange, host_key }) = guess {
            // One method each, so that the outcome is this one or none.
            algorithms.key_exchanges = vec![key_exchange.clone()];
            algorithms.host_keys = vec![host_key.clone()];
            make_lean(&mut algorithms);
        }
        let transport = Transport::new(&id, algorithms, rekey_limit, guess.is_some())?;
        Ok(Self {
            transport,
            login: Login::default(),
            channels: Channels::new(window_bytes),
            events: VecDeque::new(),
            is_trusted: false,
            order,
            early: Vec::new(),
            is_early_lost: false,
            has_opened: false,
            key: None,
        })
    }

    /// Handles bytes that arrived.
    ///
    /// # Errors
    /// The connection has failed. Whatever [`Client::take_output`] still returns may be sent.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), SshError> {
        self.transport.push(bytes);
        self.read()
    }

    /// Handles bytes that arrived, as [`Client::feed`] does, but copies none. Leaves the beginning
    /// of a packet in `bytes`; the next bytes belong behind it.
    ///
    /// # Errors
    /// As those of [`Client::feed`].
    pub fn feed_from(&mut self, bytes: &mut BytesMut) -> Result<(), SshError> {
        self.transport.lend(bytes);
        let read = self.read();
        // Before that, the rest waits for the trust.
        if self.is_trusted {
            self.transport.give_back(bytes);
        }
        read
    }

    fn read(&mut self) -> Result<(), SshError> {
        while let Some(incoming) = self.transport.next()? {
            match incoming {
                Incoming::HostKey => self.events.push_back(Event::HostKey),
                Incoming::Message(payload) => self.take(&payload)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, payload: &bytes::Bytes) -> Result<(), SshError> {
        let number = payload.first().copied().unwrap_or_default();
        match number {
            SERVICE_ACCEPT | 50..=79 => match self.login.take(payload)? {
                Heard::Nothing => {}
                Heard::Banner(text) => self.events.push_back(Event::Banner(text)),
                Heard::Reply(reply) => self.on_reply(reply)?,
            },
            // An answer to a message behind a login that failed, or to a keepalive.
            UNIMPLEMENTED => {}
            _ if !self.login.is_done => return Err(SshError::OutOfOrder(number)),
            GLOBAL_REQUEST => {
                let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
                reader.string()?;
                if reader.boolean()? {
                    self.transport.send(vec![REQUEST_FAILURE])?;
                }
            }
            // Any answer to a keepalive is a sign of life.
            REQUEST_SUCCESS | REQUEST_FAILURE => {}
            90..=100 => {
                let (event, answer) = self.channels.take(payload)?;
                if let Some(answer) = answer {
                    self.transport.send(answer)?;
                }
                if let Some((id, event)) = event {
                    self.has_opened |= event == ChannelEvent::Opened;
                    self.events.push_back(Event::Channel(id, event));
                }
            }
            _ => return Err(SshError::OutOfOrder(number)),
        }
        Ok(())
    }

    fn on_reply(&mut self, reply: LoginReply) -> Result<(), SshError> {
        match &reply {
            LoginReply::Success => {
                let early = std::mem::take(&mut self.early);
                if std::mem::take(&mut self.is_early_lost) {
                    for message in early {
                        self.transport.send(message)?;
                    }
                }
            }
            // The answer to the last request decides about what is behind it.
            LoginReply::Failure { .. } => {
                self.is_early_lost |= !self.early.is_empty() && !self.login.is_waiting();
            }
            LoginReply::Acceptable => {}
        }
        self.events.push_back(Event::Login(reply));
        Ok(())
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The bytes to send.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(self.transport.output())
    }

    /// The bytes to send, in place of those in `buffer`, whose memory is used for the next ones.
    pub fn swap_output(&mut self, buffer: &mut Vec<u8>) {
        buffer.clear();
        std::mem::swap(self.transport.output(), buffer);
    }

    /// Number of bytes to send.
    pub fn output_bytes(&mut self) -> usize {
        self.transport.output().len()
    }

    /// Number of bytes that arrived and wait for [`Client::trust`] or for the rest of a packet.
    #[must_use]
    pub fn unread_bytes(&self) -> usize {
        self.transport.unread_bytes()
    }

    /// The host key, once the host has proved that it has it.
    #[must_use]
    pub const fn host_key(&self) -> Option<&HostKey> {
        self.transport.host_key()
    }

    /// Accepts the host key, and asks for the login service.
    ///
    /// # Errors
    /// The key exchange is not that far, or what has arrived since is wrong.
    pub fn trust(&mut self) -> Result<(), SshError> {
        self.transport.trust()?;
        self.is_trusted = true;
        self.transport.send(Login::service())?;
        self.read()
    }

    /// The session's id, which signatures of a login cover. Empty before [`Client::trust`].
    #[must_use]
    pub fn session_id(&self) -> &[u8] {
        self.transport.session_id()
    }

    /// The algorithms of the first key exchange.
    #[must_use]
    pub const fn negotiated(&self) -> Option<&Negotiated> {
        self.transport.negotiated()
    }

    /// The algorithms of user keys that the server announced, if it did.
    #[must_use]
    pub fn signature_algorithms(&self) -> Option<&[String]> {
        self.transport.signature_algorithms()
    }

    /// The facts about this host that make its next connection fast.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        let negotiated = self.transport.negotiated()?;
        // The best method of the server's list, which the host key signed: so nobody is held to an
        // older one for having been there before.
        let is_offered = |name: &&&str| self.transport.offered().iter().any(|offered| offered == **name);
        let best =
            KEY_EXCHANGES.iter().find(is_offered).map_or(negotiated.key_exchange.as_str(), |name| name);
        Some(Facts {
            server_id: String::from_utf8_lossy(self.transport.server_id()).into_owned(),
            guess: Guess { key_exchange: best.to_owned(), host_key: negotiated.host_key.clone() },
            is_strict: negotiated.is_strict,
            key: self.key.clone().filter(|_| self.login.is_done),
            // The fast order offers no cipher that needs a MAC.
            is_slow: negotiated.macs.iter().any(Option::is_some),
        })
    }

    /// Reports if the server has answered the request for the login service, which
    /// [`Client::trust`] makes. Servers do that at once, so the time until then is a round trip.
    #[must_use]
    pub const fn may_log_in(&self) -> bool {
        self.login.is_accepted
    }

    /// Reports if a login has succeeded.
    #[must_use]
    pub const fn is_logged_in(&self) -> bool {
        self.login.is_done
    }

    /// Reports if a session channel was opened. From then on a command may have run, so nobody
    /// repeats it on another connection.
    #[must_use]
    pub const fn has_opened(&self) -> bool {
        self.has_opened
    }

    /// The order of packets.
    #[must_use]
    pub const fn order(&self) -> &Order {
        &self.order
    }

    fn login_message(&mut self, message: Vec<u8>) -> Result<(), SshError> {
        if !self.is_trusted || self.login.is_done {
            return Err(SshError::Closed);
        }
        self.transport.send(message)
    }

    /// Asks if the server would accept a key.
    ///
    /// # Errors
    /// The host key is not accepted yet, or the login is over.
    pub fn probe(&mut self, user: &str, key: &LoginKey) -> Result<(), SshError> {
        let message = self.login.probe(user, key);
        self.login_message(message)
    }

    /// The bytes that `key` signs to log in as `user`.
    #[must_use]
    pub fn to_sign(&self, user: &str, key: &LoginKey) -> Vec<u8> {
        to_sign(self.transport.session_id(), user, key)
    }

    /// Logs in with a signature of [`Client::to_sign`]: the algorithm and the signature proper,
    /// each as a string.
    ///
    /// # Errors
    /// The host key is not accepted yet, or the login is over.
    pub fn login(&mut self, user: &str, key: &LoginKey, signature: &[u8]) -> Result<(), SshError> {
        self.key = Some(key.blob.clone());
        let message = self.login.signed(user, key, signature);
        self.login_message(message)
    }

    /// Asks to be let in without proof.
    ///
    /// # Errors
    /// The host key is not accepted yet, or the login is over.
    pub fn login_without_proof(&mut self, user: &str) -> Result<(), SshError> {
        let message = self.login.without_proof(user);
        self.login_message(message)
    }

    /// Sends a message of a channel, or keeps it while the server would drop it.
    fn channel_message(&mut self, message: Vec<u8>) -> Result<(), SshError> {
        if self.login.is_done {
            return self.transport.send(message);
        }
        self.early.push(message.clone());
        if self.is_early_lost { Ok(()) } else { self.transport.send(message) }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// No login has succeeded yet.
    pub fn open(&mut self) -> Result<ChannelId, SshError> {
        if !self.login.is_done {
            return Err(SshError::Closed);
        }
        let (id, message) = self.channels.open(None);
        self.channel_message(message)?;
        Ok(id)
    }

    /// Opens a session whose number on the server is known, behind a login that will succeed. It
    /// takes requests and up to 1 MiB of data at once.
    ///
    /// # Errors
    /// The order is not a fast one, or no login was asked for.
    pub fn open_early(&mut self) -> Result<ChannelId, SshError> {
        if self.order.guess().is_none() || !self.login.is_waiting() {
            return Err(SshError::Closed);
        }
        let (id, message) = self.channels.open(Some(OPENSSH_FIRST_CHANNEL));
        self.channel_message(message)?;
        Ok(id)
    }

    /// Makes a request about a channel that is open, or opened early.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn request(&mut self, id: ChannelId, request: &Request, want_reply: bool) -> Result<(), SshError> {
        let message = self.channels.request(id, request, want_reply)?;
        self.channel_message(message)
    }

    /// Number of bytes that [`Client::send`] would take.
    #[must_use]
    pub fn room(&self, id: ChannelId) -> usize {
        // While keys are exchanged, data would only pile up.
        if self.transport.is_held() { 0 } else { self.channels.room(id) }
    }

    /// Sends the beginning of `bytes` as data, and returns how many they were.
    ///
    /// # Errors
    /// The channel is not open, or its end of input was sent.
    pub fn send(&mut self, id: ChannelId, bytes: &[u8]) -> Result<usize, SshError> {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty())
            && self.room(id) > 0
        {
            let (count, head) = self.channels.data(id, rest)?;
            let data = rest.get(..count).unwrap_or_default();
            if self.login.is_done {
                self.transport.send_data(&head, data)?;
            } else {
                self.channel_message([&head, data].concat())?;
            }
            sent += count;
        }
        if sent == 0 {
            // Tells a closed channel from a full window.
            self.channels.data(id, &[])?;
        }
        Ok(sent)
    }

    /// Sends the end of input.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn send_eof(&mut self, id: ChannelId) -> Result<(), SshError> {
        let message = self.channels.eof(id)?;
        message.map_or(Ok(()), |message| self.channel_message(message))
    }

    /// Closes a channel. The event [`ChannelEvent::Closed`] follows.
    ///
    /// # Errors
    /// The channel is not open.
    pub fn close(&mut self, id: ChannelId) -> Result<(), SshError> {
        let message = self.channels.close(id)?;
        message.map_or(Ok(()), |message| self.channel_message(message))
    }

    /// Tells that `count` bytes of a channel's output were read, so that the server may send more.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn consume(&mut self, id: ChannelId, count: usize) -> Result<(), SshError> {
        let message = self.channels.consume(id, count);
        message.map_or(Ok(()), |message| self.channel_message(message))
    }

    /// Asks the server for a sign of life. Any bytes that arrive are one.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn keepalive(&mut self) -> Result<(), SshError> {
        // Before the login there is nothing to keep. During a key exchange it would have to wait.
        if !self.login.is_done || self.transport.is_held() {
            return Ok(());
        }
        let message = Message::new(GLOBAL_REQUEST).string("keepalive@openssh.com").boolean(true);
        self.transport.send(message.into_bytes())
    }

    /// Ends the connection with a text for the server.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn disconnect(&mut self, text: &str) -> Result<(), SshError> {
        self.transport.disconnect(BY_APPLICATION, text)
    }
}
