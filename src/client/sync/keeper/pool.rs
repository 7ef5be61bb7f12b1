//! The agents of a keeper, each of which serves one run after another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::log::debug;
use crate::remote::relay::{self, Record};
use crate::remote::{Agent, AgentImage, Connection, SERVER_WINDOW_BYTES};
use crate::wire::hello::{MAGIC, Request};
use crate::wire::keep::{self, Decoder, Kind};

/// Agents at once. OpenSSH allows ten channels, and lanes and commands need some.
const AGENTS_MAX: usize = 4;

/// Agents that wait for the next run.
const IDLE_MAX: usize = 2;

/// Time for the agent to end a run that its client has left, and for a client to leave a run that
/// its agent has ended.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Time for a run to take bytes. A run that is stopped loses its agent, because a channel that is
/// not drained stops the whole session.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// Bytes that the other side has read, from which on the run is told.
const TOLD_BYTES_MIN: usize = 64 << 10;

/// Bytes that are read from a run at once.
const READ_BYTES: usize = 32 << 10;

/// Time for which the end of a run waits for the next one, to leave in one packet with its begin.
/// On the VM, a relay that uses Nagle's algorithm would hold the begin back until sshd has
/// acknowledged the end, which takes 40 ms.
const END_WAITS: Duration = Duration::from_millis(200);

/// Bytes that are few, so that others are waited for, and the time.
const SMALL_BYTES: usize = 2 << 10;
const LINGER: Duration = Duration::from_millis(1);

/// The same after a run's request. An upload begins its offer as soon as it has opened SOURCE.
const REQUEST_LINGER: Duration = Duration::from_millis(3);

/// The agents over one connection.
pub(super) struct Pool {
    connection: Arc<Connection>,
    image: AgentImage,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    idle: Vec<Kept>,
    /// All agents, those in use included.
    count: usize,
    started: usize,
}

/// An agent that waits for a run.
struct Kept {
    agent: Agent,
    decoder: Decoder,
    /// Bytes of the magic that are still to come.
    magic_left: usize,
    /// True if the end of the last run is still to be sent.
    owes_end: bool,
    /// The first agents know more trees, so they are preferred.
    number: usize,
}

/// An agent, or the right to start one, for one run.
pub(super) struct Reserved {
    connection: Arc<Connection>,
    image: AgentImage,
    state: Arc<Mutex<State>>,
    kept: Option<Kept>,
}

impl Pool {
    pub(super) fn new(connection: Arc<Connection>, image: AgentImage) -> Self {
        Self { connection, image, state: Arc::default() }
    }

    /// Starts the first agent, which watches the tree of a request that is likely to come. False if
    /// the agent does not run.
    pub(super) async fn warm(&self, request: Option<&Request>) -> bool {
        let Some(mut reserved) = self.reserve() else { return false };
        let Some(mut kept) = reserved.start().await else { return false };
        while kept.magic_left > 0 {
            let Some(bytes) = kept.agent.reader.next().await else { return false };
            kept.magic_left = kept.magic_left.saturating_sub(bytes.len());
        }
        if let Some(warm) = request.and_then(keep::encode_warm) {
            kept.agent.writer.send(warm.into()).await;
        }
        reserved.give_back(kept);
        true
    }

    /// Reserves an agent; `None` if too many are in use.
    pub(super) fn reserve(&self) -> Option<Reserved> {
        let mut state = lock(&self.state);
        let before = state.idle.len();
        state.idle.retain(|kept| !kept.agent.reader.has_ended());
        state.count -= before - state.idle.len();
        let first = state.idle.iter().enumerate().min_by_key(|(_, kept)| kept.number).map(|(index, _)| index);
        let kept = first.map(|index| state.idle.swap_remove(index));
        if kept.is_none() {
            if state.count >= AGENTS_MAX {
                return None;
            }
            state.count += 1;
        }
        let (connection, image) = (Arc::clone(&self.connection), self.image.clone());
        Some(Reserved { connection, image, state: Arc::clone(&self.state), kept })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.state).count -= 1;
    }
}

impl Reserved {
    /// True if the agent runs already.
    pub(super) fn is_ready(&self) -> bool {
        self.kept.is_some()
    }

    async fn start(&mut self) -> Option<Kept> {
        let agent = self.connection.keep(self.image.clone()).await.ok()?;
        let mut state = lock(&self.state);
        state.started += 1;
        let (decoder, magic_left) = (Decoder::default(), MAGIC.len());
        Some(Kept { agent, decoder, magic_left, owes_end: false, number: state.started })
    }

    /// Puts an agent back for the next run.
    fn give_back(self, kept: Kept) {
        give_back(&self.state, kept);
    }

    /// Connects the run at the other end of `stream` with the agent, until the run is over.
    pub(super) async fn serve(mut self, stream: UnixStream) {
        let (mut from, mut to) = stream.into_split();
        let kept = match self.kept.take() {
            Some(kept) => Some(kept),
            None => self.start().await,
        };
        let Some(mut kept) = kept else { return };
        let is_over = serve_run(&mut kept, &mut from, &mut to).await;
        debug!("keeper step=served agent={} again={is_over}", kept.number);
        if is_over {
            if kept.owes_end {
                let (state, number) = (Arc::clone(&self.state), kept.number);
                tokio::spawn(async move {
                    tokio::time::sleep(END_WAITS).await;
                    settle_end(&state, number).await;
                });
            }
            self.give_back(kept);
            return;
        }
        // The agent has ended, or must not serve another run. Dropping it ends it.
        let Kept { agent: Agent { reader, writer, end, .. }, .. } = kept;
        if !reader.has_ended() {
            return;
        }
        drop((reader, writer));
        let Ok(end) = timeout(TAKEN_WITHIN, end.wait()).await else { return };
        let mut records = vec![Record::Stderr(end.stderr.into_bytes().into())];
        records.extend(end.exit_status.map(Record::ExitStatus));
        records.extend(end.signal.map(|name| Record::ExitSignal(name.into_bytes().into())));
        records.push(match end.error {
            Some(error) => Record::Lost(error.to_string().into_bytes().into()),
            None => Record::Close,
        });
        for record in records {
            write(&mut to, &record).await;
        }
    }
}

fn give_back(state: &Mutex<State>, kept: Kept) {
    let mut state = lock(state);
    if state.idle.len() < IDLE_MAX {
        state.idle.push(kept);
        state.count += 1;
    }
}

/// Sends the end that an idle agent still waits for.
async fn settle_end(state: &Mutex<State>, number: usize) {
    let owing = |kept: &Kept| kept.number == number && kept.owes_end;
    let taken = {
        let mut state = lock(state);
        let at = state.idle.iter().position(owing);
        state.count -= usize::from(at.is_some());
        at.map(|at| state.idle.swap_remove(at))
    };
    let Some(mut kept) = taken else { return };
    kept.owes_end = false;
    if kept.agent.writer.send(end_of_run().into()).await {
        give_back(state, kept);
    }
}

fn end_of_run() -> Vec<u8> {
    // An end without a payload is a valid record.
    keep::encode(Kind::End, &[]).unwrap_or_default()
}

/// Serves one run. True if it is over on both sides, and the agent waits for the next one.
async fn serve_run(kept: &mut Kept, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> bool {
    let Kept { agent: Agent { reader, writer, acknowledged, .. }, decoder, magic_left, owes_end, .. } = kept;
    let mut before = if std::mem::take(owes_end) { end_of_run() } else { Vec::new() };
    let writer = &*writer;
    let to = &tokio::sync::Mutex::new(to);
    let up = async {
        let (read_before, mut told, mut sent) = (acknowledged.bytes(), 0, 0);
        let mut from = BufReader::with_capacity(READ_BYTES, from);
        let mut linger = REQUEST_LINGER;
        while let Some(bytes) = read_data(&mut from, &mut linger).await {
            sent += bytes.len();
            let mut records = std::mem::take(&mut before);
            records.extend(keep::encode_data(&bytes));
            if !writer.send(records.into()).await {
                return;
            }
            // The run decides about lanes by what the other side has read.
            let read = usize::try_from(acknowledged.bytes() - read_before).unwrap_or(usize::MAX);
            if read >= told + TOLD_BYTES_MIN {
                told = read;
                let room = SERVER_WINDOW_BYTES.saturating_sub(sent.saturating_sub(read));
                let room = Record::Window(u32::try_from(room).unwrap_or(u32::MAX));
                write(*to.lock().await, &room).await;
            }
        }
        // The run has sent nothing.
        if !before.is_empty() {
            writer.send(before.into()).await;
        }
    };
    let down = async {
        let mut is_taken = true;
        while let Some(bytes) = reader.next().await {
            let skipped = bytes.len().min(*magic_left);
            *magic_left -= skipped;
            let mut rest = bytes.get(skipped..).unwrap_or_default();
            loop {
                match decoder.next(&mut rest) {
                    Ok(Some(record)) => match record.kind {
                        Kind::Data => {
                            let record = Record::Data(record.payload.into());
                            is_taken = is_taken && write(*to.lock().await, &record).await;
                        }
                        Kind::End => {
                            for record in [Record::Eof, Record::ExitStatus(0), Record::Close] {
                                is_taken = is_taken && write(*to.lock().await, &record).await;
                            }
                            return true;
                        }
                        Kind::Pong => {}
                        Kind::Warm | Kind::Ping => return false,
                    },
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
        }
        false
    };
    tokio::pin!(up, down);
    tokio::select! {
        // The run's client has ended its stream, or has died.
        () = &mut up => {
            writer.send(end_of_run().into()).await;
            timeout(ENDS_WITHIN, down).await.unwrap_or(false)
        }
        is_over = &mut down => {
            *owes_end = is_over && timeout(ENDS_WITHIN, up).await.is_ok();
            *owes_end
        }
    }
}

/// Reads the next bytes of a run, with those that follow at once: each packet costs 45 bytes of its
/// own, and a request is written in several pieces. `linger` is the first wait for more, and then
/// becomes the usual one. `None` at the end of the run's stream.
async fn read_data(from: &mut BufReader<&mut OwnedReadHalf>, linger: &mut Duration) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let Ok(Some(Record::Data(bytes))) = relay::read(from).await else { return None };
        all.extend_from_slice(&bytes);
        if all.len() < SMALL_BYTES && from.buffer().is_empty() {
            let _ = timeout(std::mem::replace(linger, LINGER), from.fill_buf()).await;
        }
        if !relay::begins_with_data(from.buffer()) || all.len() >= READ_BYTES {
            return Some(all);
        }
    }
}

/// Writes a record to a run. False if the run takes nothing more.
async fn write(to: &mut OwnedWriteHalf, record: &Record) -> bool {
    let encoded: Bytes = record.encode();
    matches!(timeout(TAKEN_WITHIN, to.write_all(&encoded)).await, Ok(Ok(())))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
