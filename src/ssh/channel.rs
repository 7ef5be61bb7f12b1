//! Handles of a channel of a [`Session`](crate::driver::Session).

use std::sync::Arc;

use tokio::sync::Notify;

use crate::channels::{ChannelEvent, ChannelId, Request};
use crate::error::SshError;
use crate::shared::{Handles, Queue, State};

/// State shared by both halves of a channel. The channel is closed when both are gone.
struct Link {
    session: Arc<Handles>,
    id: ChannelId,
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.session.0.state();
        state.queues.remove(&self.id);
        // A channel that is not open yet is closed once it is.
        let _ = state.client.close(self.id);
        drop(state);
        self.session.0.wake();
    }
}

/// A channel.
pub struct Channel {
    reader: ChannelReader,
    writer: ChannelWriter,
}

/// The half of a channel that reads.
pub struct ChannelReader {
    link: Arc<Link>,
    ready: Arc<Notify>,
}

/// The half of a channel that writes.
pub struct ChannelWriter {
    link: Arc<Link>,
    ready: Arc<Notify>,
}

impl Channel {
    pub(crate) fn new(session: &Arc<Handles>, state: &mut State, id: ChannelId) -> Self {
        let link = Arc::new(Link { session: Arc::clone(session), id });
        let [read, write] = [(); 2].map(|()| Arc::new(Notify::new()));
        state.queues.insert(id, Queue::new(&read, &write));
        Self {
            reader: ChannelReader { link: Arc::clone(&link), ready: read },
            writer: ChannelWriter { link, ready: write },
        }
    }

    /// Splits the channel, so that two tasks can use it.
    #[must_use]
    pub fn split(self) -> (ChannelReader, ChannelWriter) {
        (self.reader, self.writer)
    }

    /// The next event: see [`ChannelReader::next`].
    pub async fn next(&mut self) -> Option<ChannelEvent> {
        self.reader.next().await
    }

    /// The half that writes.
    #[must_use]
    pub const fn writer(&self) -> &ChannelWriter {
        &self.writer
    }
}

impl ChannelReader {
    /// The next event; `None` after [`ChannelEvent::Closed`], or if the connection has ended.
    pub async fn next(&mut self) -> Option<ChannelEvent> {
        loop {
            if let Some(event) = self.take()? {
                return Some(event);
            }
            self.ready.notified().await;
        }
    }

    /// The next event, if there is one. `None` if there will be none.
    fn take(&self) -> Option<Option<ChannelEvent>> {
        let shared = &self.link.session.0;
        let mut state = shared.state();
        let Some(event) = state.queues.get_mut(&self.link.id)?.pop() else {
            return if state.end.is_some() { None } else { Some(None) };
        };
        match &event {
            ChannelEvent::Data(data) | ChannelEvent::ExtendedData(_, data) => {
                // A connection that failed meanwhile says so by its end.
                let _ = state.client.consume(self.link.id, data.len());
                if state.client.output_bytes() > 0 {
                    shared.wake();
                }
            }
            ChannelEvent::Closed | ChannelEvent::Refused { .. } => {
                let queue = state.queues.remove(&self.link.id);
                queue.iter().for_each(Queue::wake);
            }
            _ => {}
        }
        Some(Some(event))
    }
}

impl ChannelWriter {
    /// Uses the state of a connection that has not ended, and sends what it has to send.
    fn with<T>(&self, run: impl FnOnce(&mut State, ChannelId) -> Result<T, SshError>) -> Result<T, SshError> {
        let shared = &self.link.session.0;
        let mut state = shared.state();
        if let Some(error) = &state.end {
            return Err(error.clone());
        }
        let result = run(&mut state, self.link.id);
        if state.client.output_bytes() > 0 {
            shared.wake();
        }
        result
    }

    /// Makes a request.
    ///
    /// # Errors
    /// The channel or the connection has ended.
    pub fn request(&self, request: &Request, want_reply: bool) -> Result<(), SshError> {
        self.with(|state, id| state.client.request(id, request, want_reply))
    }

    /// Sends data, and waits until the last of it is on its way.
    ///
    /// # Errors
    /// The channel or the connection has ended.
    pub async fn send(&self, mut bytes: &[u8]) -> Result<(), SshError> {
        while !bytes.is_empty() {
            let sent =
                self.with(|state, id| if state.is_full() { Ok(0) } else { state.client.send(id, bytes) })?;
            bytes = bytes.get(sent..).unwrap_or_default();
            if sent == 0 {
                self.ready.notified().await;
            }
        }
        Ok(())
    }

    /// Sends the end of input.
    ///
    /// # Errors
    /// The channel or the connection has ended.
    pub fn eof(&self) -> Result<(), SshError> {
        self.with(|state, id| state.client.send_eof(id))
    }

    /// Closes the channel.
    ///
    /// # Errors
    /// The channel or the connection has ended.
    pub fn close(&self) -> Result<(), SshError> {
        self.with(|state, id| state.client.close(id))
    }
}
