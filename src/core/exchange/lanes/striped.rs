//! The sending end: a writer that spreads its bytes over lanes once that pays.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::wire::lanes::{Announcement, SEGMENT_BYTES_MAX, encode_segment};

/// Bytes after which the writer asks whether lanes would pay. Until then it writes straight
/// through: most runs never get that far. Together with one frame this still fits into OpenSSH's
/// window, so no write has waited for a round trip by then.
const STRAIGHT_BYTES: usize = 512 << 10;

/// Waiting bytes from which further lanes pay. With OpenSSH's window of 2 MiB the whole is then
/// more than 4 MiB. The main lane would need two more round trips for that, which is the time it
/// takes to open lanes. The announcement leaves before, since it overtakes none of these bytes.
const WAITING_BYTES: usize = 2 << 20;

/// Most bytes that wait: enough for all lanes to find something when their windows open.
const QUEUED_BYTES_MAX: usize = 4 << 20;

/// Opens further lanes, on the side that announces them.
pub trait OpenLanes: Send {
    /// Number of lanes that pay, the main one included, as far as is known by now.
    fn worthwhile(&self) -> usize;

    /// Prepares lanes and returns at once the announcement to send, or `None` if none will come. A
    /// lane is added to the entrance only after the other side has answered on it that it joined.
    fn open(&self, entrance: Entrance) -> Option<Announcement>;

    /// Called once so many bytes wait that further lanes pay.
    fn fills(&self) {}
}

/// Writes straight to the main lane, then through a queue, then in segments over all lanes. Each
/// write is a frame, so the announcement stands between two frames.
pub struct Striped {
    stage: Stage,
    opener: Option<Box<dyn OpenLanes>>,
    straight_bytes: usize,
    shared: Arc<Shared>,
}

enum Stage {
    /// Writes go to the main lane; empty only while it is handed over.
    Straight(Option<Box<dyn Write + Send>>),
    /// Writes go to the main lane's thread.
    Queued,
    /// Writes go to all lanes; the number of the next segment.
    Numbered(u64),
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signals that a segment was put in, or that none will follow.
    filled: Condvar,
    /// Signals that a segment was taken, or that a lane left.
    taken: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes for the main lane only: those before the announcement, and the announcement.
    main: VecDeque<Vec<u8>>,
    /// Segments for the first lane that has room.
    any: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    lanes: usize,
    closed: bool,
    /// The reason why a lane broke; all lanes then stop.
    error: Option<(io::ErrorKind, String)>,
}

impl State {
    /// Takes the next bytes for a lane. The main lane first takes the bytes that only it may carry.
    fn take(&mut self, is_main: bool) -> Option<Vec<u8>> {
        let bytes = if is_main { self.main.pop_front() } else { None }.or_else(|| self.any.pop_front())?;
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes.len());
        Some(bytes)
    }
}

impl Striped {
    /// Writes to `main`, and to the lanes that `opener` opens.
    #[must_use]
    pub fn new(main: Box<dyn Write + Send>, opener: Box<dyn OpenLanes>) -> Self {
        Self {
            stage: Stage::Straight(Some(main)),
            opener: Some(opener),
            straight_bytes: 0,
            shared: Arc::default(),
        }
    }

    /// Puts the main lane behind the queue.
    fn queue(&mut self) {
        if let Stage::Straight(main) = &mut self.stage
            && let Some(main) = main.take()
        {
            Entrance(Arc::clone(&self.shared)).start(main, true);
        }
        self.stage = Stage::Queued;
    }

    /// Announces lanes, if they are available.
    fn announce(&mut self) -> io::Result<()> {
        let entrance = Entrance(Arc::clone(&self.shared));
        if let Some(announcement) = self.opener.as_ref().and_then(|opener| opener.open(entrance)) {
            self.put(announcement.encode())?;
            self.stage = Stage::Numbered(0);
        }
        Ok(())
    }

    /// Puts bytes into the queue, when there is room.
    fn put(&self, bytes: Vec<u8>) -> io::Result<()> {
        let mut state = self.shared.lock();
        while state.queued_bytes >= QUEUED_BYTES_MAX && state.error.is_none() {
            state = self.shared.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some((kind, text)) = &state.error {
            return Err(io::Error::new(*kind, text.clone()));
        }
        state.queued_bytes += bytes.len();
        if matches!(self.stage, Stage::Numbered(_)) {
            state.any.push_back(bytes);
            self.shared.filled.notify_one();
        } else {
            state.main.push_back(bytes);
            self.shared.filled.notify_all();
        }
        Ok(())
    }
}

impl Write for Striped {
    /// Takes all of a frame.
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        if self.straight_bytes >= STRAIGHT_BYTES
            && matches!(self.stage, Stage::Straight(_))
            && self.opener.as_ref().is_some_and(|opener| opener.worthwhile() > 1)
        {
            self.queue();
            self.announce()?;
        }
        if let Stage::Straight(main) = &mut self.stage {
            main.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(frame)?;
            self.straight_bytes = self.straight_bytes.saturating_add(frame.len());
            return Ok(frame.len());
        }
        if self.shared.lock().queued_bytes >= WAITING_BYTES
            && let Some(opener) = self.opener.take()
        {
            opener.fills();
        }
        for bytes in frame.chunks(SEGMENT_BYTES_MAX) {
            let bytes = match &mut self.stage {
                Stage::Numbered(next) => {
                    *next += 1;
                    encode_segment(*next - 1, bytes)
                }
                _ => bytes.to_vec(),
            };
            self.put(bytes)?;
        }
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stage {
            Stage::Straight(Some(main)) => main.flush(),
            // Each lane flushes when it has nothing more to write.
            _ => Ok(()),
        }
    }
}

/// Waits until everything written has left, unless a lane is broken.
impl Drop for Striped {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.filled.notify_all();
        while state.lanes > 0 && state.error.is_none() {
            state = self.shared.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The end at which opened lanes are added, whenever they are ready.
#[derive(Clone)]
pub struct Entrance(Arc<Shared>);

impl Entrance {
    /// Adds a lane. It is closed when everything is written.
    pub fn add(&self, lane: Box<dyn Write + Send>) {
        self.start(lane, false);
    }

    fn start(&self, mut lane: Box<dyn Write + Send>, is_main: bool) {
        self.0.lock().lanes += 1;
        // Counts the lane as gone even if the thread cannot start, or panics.
        let leaving = Leaving(Arc::clone(&self.0));
        let carrying = move || {
            let result = carry(&mut *lane, is_main, &leaving.0);
            // The other side must see the end of the lane before it counts as gone here.
            drop(lane);
            leaving.leave(result);
        };
        if let Err(error) = thread::Builder::new().spawn(carrying)
            && is_main
        {
            self.0.lock().error.get_or_insert((error.kind(), error.to_string()));
        }
    }
}

/// Carries segments to the end of the queue, or until a lane breaks.
fn carry(lane: &mut dyn Write, is_main: bool, shared: &Shared) -> io::Result<()> {
    let mut flushed = true;
    loop {
        let mut state = shared.lock();
        if state.error.is_some() {
            return Ok(());
        }
        let bytes = state.take(is_main);
        if bytes.is_none() && flushed {
            if state.closed {
                return Ok(());
            }
            drop(shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner));
            continue;
        }
        drop(state);
        if let Some(bytes) = bytes {
            shared.taken.notify_all();
            lane.write_all(&bytes)?;
            flushed = false;
        } else {
            lane.flush()?;
            flushed = true;
        }
    }
}

/// A lane's share in the count. A lane whose thread panics counts as broken.
struct Leaving(Arc<Shared>);

impl Leaving {
    fn leave(self, result: io::Result<()>) {
        if let Err(error) = result {
            self.0.lock().error.get_or_insert((error.kind(), error.to_string()));
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.lanes -= 1;
        if thread::panicking() {
            state.error.get_or_insert((io::ErrorKind::Other, "a thread of this side panicked".to_owned()));
        }
        self.0.taken.notify_all();
        self.0.filled.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
