//! State that the task of a connection and its handles share: the client, and the channels'
//! queues.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::channels::{ChannelEvent, ChannelId};
use crate::client::{Client, Event};
use crate::error::SshError;
use crate::login::LoginReply;

/// Bytes that wait to be written before data of channels waits, too.
const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// Events that may wait for a channel's reader. Data is limited by the window already.
const EVENTS_MAX: usize = 100_000;

/// Data up to this size is appended to the last piece, so that single bytes cost little memory.
const SMALL_BYTES: usize = 1024;

/// The events of a channel that nobody has read yet.
pub(crate) struct Queue {
    events: VecDeque<ChannelEvent>,
    reader: Arc<Notify>,
    writer: Arc<Notify>,
}

impl Queue {
    /// A queue that wakes these when something comes.
    pub(crate) fn new(reader: &Arc<Notify>, writer: &Arc<Notify>) -> Self {
        Self { events: VecDeque::new(), reader: Arc::clone(reader), writer: Arc::clone(writer) }
    }

    pub(crate) fn pop(&mut self) -> Option<ChannelEvent> {
        self.events.pop_front()
    }

    pub(crate) fn wake(&self) {
        self.reader.notify_one();
        self.writer.notify_one();
    }

    pub(crate) fn wake_writer(&self) {
        self.writer.notify_one();
    }

    pub(crate) fn push(&mut self, event: ChannelEvent) -> Result<(), SshError> {
        self.wake();
        match (self.events.back_mut(), event) {
            (Some(ChannelEvent::Data(last)), ChannelEvent::Data(data))
                if last.len() + data.len() <= SMALL_BYTES =>
            {
                *last = Bytes::from([&last[..], &data].concat());
            }
            (Some(ChannelEvent::Window(last)), ChannelEvent::Window(window)) => *last = window,
            (_, event) => self.events.push_back(event),
        }
        if self.events.len() > EVENTS_MAX { Err(SshError::TooMuch("events of a channel")) } else { Ok(()) }
    }
}

/// State that the task and the handles share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the connection is to end.
    pub(crate) output: Notify,
    /// Something about the connection itself has changed.
    pub(crate) changed: Notify,
    /// The client's output waits for [`Shared::wake`].
    is_held: AtomicBool,
}

pub(crate) struct State {
    pub(crate) client: Client,
    pub(crate) queues: HashMap<ChannelId, Queue>,
    pub(crate) replies: VecDeque<LoginReply>,
    pub(crate) banners: Vec<String>,
    pub(crate) has_host_key: bool,
    /// The server has announced its algorithms for user keys.
    has_algorithms: bool,
    /// The time at which the host was trusted, and the round trip that began then.
    pub(crate) trusted: Option<Instant>,
    pub(crate) round_trip: Option<Duration>,
    /// The connection has ended, for this reason.
    pub(crate) end: Option<SshError>,
    /// The task has written its last bytes.
    pub(crate) is_done: bool,
}

impl Shared {
    pub(crate) fn new(client: Client) -> Self {
        let (queues, replies, banners) = Default::default();
        let state = State {
            client,
            queues,
            replies,
            banners,
            has_host_key: false,
            has_algorithms: false,
            trusted: None,
            round_trip: None,
            end: None,
            is_done: false,
        };
        let [output, changed] = [(); 2].map(|()| Notify::new());
        Self { state: Mutex::new(state), output, changed, is_held: AtomicBool::new(false) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the task write what the client has to send.
    pub(crate) fn wake(&self) {
        self.is_held.store(false, Relaxed);
        self.output.notify_one();
    }

    /// Keeps what the client has to send until something else travels with it.
    pub(crate) fn hold(&self) {
        self.is_held.store(true, Relaxed);
    }

    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Relaxed)
    }

    /// Ends the connection. The first reason counts.
    pub(crate) fn fail(&self, error: SshError) {
        let mut state = self.state();
        state.end.get_or_insert(error);
        for queue in state.queues.values() {
            queue.wake();
        }
        drop(state);
        self.changed.notify_waiters();
        self.wake();
    }

    /// Waits until `find` finds something, or the connection has ended.
    pub(crate) async fn wait_for<T>(
        &self,
        mut find: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, SshError> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(found) = find(&mut state) {
                    return Ok(found);
                }
                if let Some(error) = &state.end {
                    return Err(error.clone());
                }
            }
            changed.await;
        }
    }
}

impl State {
    /// Reports if data of channels has to wait for the stream.
    pub(crate) fn is_full(&mut self) -> bool {
        self.client.output_bytes() > OUTPUT_BYTES_MAX
    }

    /// Hands the client's events to those who wait for them. Returns if something has come that was
    /// not of a channel.
    pub(crate) fn dispatch(&mut self) -> Result<bool, SshError> {
        let has_algorithms = self.client.signature_algorithms().is_some();
        let mut has_changed = std::mem::replace(&mut self.has_algorithms, has_algorithms) != has_algorithms;
        if self.round_trip.is_none() && self.client.may_log_in() {
            self.round_trip = self.trusted.map(|trusted| trusted.elapsed());
        }
        while let Some(event) = self.client.next_event() {
            match event {
                Event::Channel(id, event) => match (self.queues.get_mut(&id), event) {
                    (Some(queue), event) => queue.push(event)?,
                    // Nobody reads this channel any more.
                    (None, ChannelEvent::Opened) => self.client.close(id)?,
                    (None, ChannelEvent::Data(data) | ChannelEvent::ExtendedData(_, data)) => {
                        self.client.consume(id, data.len())?;
                    }
                    (None, _) => {}
                },
                Event::HostKey => (self.has_host_key, has_changed) = (true, true),
                Event::Login(reply) => {
                    self.replies.push_back(reply);
                    has_changed = true;
                }
                Event::Banner(text) => self.banners.push(text),
            }
        }
        Ok(has_changed)
    }
}

/// Ends the connection when the last handle is gone.
pub(crate) struct Handles(pub(crate) Arc<Shared>);

impl Drop for Handles {
    fn drop(&mut self) {
        self.0.fail(SshError::Closed);
    }
}
