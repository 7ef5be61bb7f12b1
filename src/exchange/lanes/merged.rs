//! The receiving end: a reader that puts the segments of all lanes back in order.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::wire::lanes::{Announcement, SegmentError, read_segment};

/// Reads what was written, whichever lanes it came over. Holds one segment of each lane and one more.
pub(in crate::exchange) struct Merged {
    shared: Arc<Shared>,
    current: io::Cursor<Vec<u8>>,
}

struct Shared {
    state: Mutex<State>,
    /// The next segment is there, or none will come.
    arrived: Condvar,
}

struct State {
    /// The number of the segment whose turn it is.
    turn: u64,
    lanes: Vec<Lane>,
    lanes_max: usize,
    /// Why a lane ended before its time. What came before on all of them still counts.
    broken: Option<(io::ErrorKind, String)>,
    /// What makes no sense: nothing that follows counts.
    nonsense: Option<String>,
    /// Nobody reads any more.
    abandoned: bool,
}

struct Lane {
    holds: Holds,
    /// Tells its thread that what it holds was taken.
    taken: Arc<Condvar>,
}

enum Holds {
    /// Nothing: it waits for its lane.
    Nothing,
    /// A segment that waits for its turn.
    Segment(u64, Vec<u8>),
    /// Nothing ever again.
    Ended,
}

/// What can be said of the next segment.
enum Next {
    Arrived(Vec<u8>),
    NotYet,
    Never,
}

impl State {
    /// Takes the segment whose turn it is, if some lane holds it.
    fn take(&mut self) -> Next {
        let turn = self.turn;
        let holder = self.lanes.iter_mut().find(|lane| matches!(lane.holds, Holds::Segment(n, _) if n == turn));
        if let Some(lane) = holder
            && let Holds::Segment(_, bytes) = std::mem::replace(&mut lane.holds, Holds::Nothing)
        {
            lane.taken.notify_one();
            // Only with 2^64 segments would it end here.
            self.turn = turn.saturating_add(1);
            return Next::Arrived(bytes);
        }
        if self.lanes.iter().any(|lane| matches!(lane.holds, Holds::Nothing)) { Next::NotYet } else { Next::Never }
    }

    /// Whether a lane may hold a segment of this number: one that has not come before.
    fn is_new(&self, number: u64) -> bool {
        let held = |lane: &Lane| matches!(lane.holds, Holds::Segment(n, _) if n == number);
        number >= self.turn && !self.lanes.iter().any(held)
    }

    /// Why nothing more comes: `Ok` where all lanes ended with nothing left.
    fn end(&self) -> io::Result<()> {
        if self.lanes.iter().any(|lane| matches!(lane.holds, Holds::Segment(..))) && self.broken.is_none() {
            let text = format!("no lane brings segment {}", self.turn);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        match &self.broken {
            Some((kind, text)) => Err(io::Error::new(*kind, format!("a lane broke: {text}"))),
            None => Ok(()),
        }
    }
}

impl Merged {
    /// Reads from `main` and from the lanes that join it, as many as were announced.
    pub(in crate::exchange) fn new(main: Box<dyn Read + Send>, announcement: Announcement) -> (Self, Joining) {
        let state = State {
            turn: 0,
            lanes: Vec::new(),
            lanes_max: usize::from(announcement.lanes),
            broken: None,
            nonsense: None,
            abandoned: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() });
        let joining = Joining(Arc::clone(&shared));
        joining.add(main);
        (Self { shared, current: io::Cursor::default() }, joining)
    }

    /// Waits for the next segment; `None` at the end.
    fn next(&self) -> io::Result<Option<Vec<u8>>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(text) = &state.nonsense {
                return Err(io::Error::new(io::ErrorKind::InvalidData, text.clone()));
            }
            match state.take() {
                Next::Arrived(bytes) => return Ok(Some(bytes)),
                Next::NotYet => {}
                Next::Never => return state.end().map(|()| None),
            }
            state = self.shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Merged {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.next()? {
                Some(bytes) => self.current = io::Cursor::new(bytes),
                None => return Ok(0),
            }
        }
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        state.lanes.iter().for_each(|lane| lane.taken.notify_one());
    }
}

/// Where announced lanes join.
#[derive(Clone)]
pub struct Joining(Arc<Shared>);

impl Joining {
    /// Adds a lane; `false` where there are as many as were announced, or nobody reads any more. Its thread is
    /// left behind, waiting for it, when the run ends before the lane does.
    pub fn add(&self, lane: Box<dyn Read + Send>) -> bool {
        let mut state = self.0.lock();
        if state.lanes.len() >= state.lanes_max || state.abandoned {
            return false;
        }
        let taken = Arc::new(Condvar::new());
        let index = state.lanes.len();
        state.lanes.push(Lane { holds: Holds::Nothing, taken: Arc::clone(&taken) });
        drop(state);
        let shared = Arc::clone(&self.0);
        if let Err(error) = thread::Builder::new().spawn(move || shared.carry(lane, index, &taken)) {
            let mut state = self.0.lock();
            state.broken.get_or_insert((error.kind(), error.to_string()));
            state.lanes.get_mut(index).into_iter().for_each(|own| own.holds = Holds::Ended);
            return false;
        }
        true
    }

    /// Whether another lane can be added.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let state = self.0.lock();
        state.lanes.len() < state.lanes_max && !state.abandoned
    }
}

impl Shared {
    /// Reads one segment after the other and holds each until it is taken.
    fn carry(&self, mut lane: Box<dyn Read + Send>, index: usize, taken: &Condvar) {
        loop {
            let segment = read_segment(&mut lane);
            let mut state = self.lock();
            let holds = match segment {
                Ok(Some((number, _))) if !state.is_new(number) => {
                    state.nonsense.get_or_insert_with(|| format!("segment {number} came twice"));
                    Holds::Ended
                }
                Ok(Some((number, bytes))) => Holds::Segment(number, bytes),
                Ok(None) => Holds::Ended,
                Err(SegmentError::Io(error)) => {
                    state.broken.get_or_insert_with(|| (error.kind(), error.to_string()));
                    Holds::Ended
                }
                Err(error @ SegmentError::Length { .. }) => {
                    state.nonsense.get_or_insert_with(|| error.to_string());
                    Holds::Ended
                }
            };
            let ended = matches!(holds, Holds::Ended);
            let Some(own) = state.lanes.get_mut(index) else { return };
            own.holds = holds;
            self.arrived.notify_one();
            if ended {
                return;
            }
            while !state.abandoned && state.lanes.get(index).is_some_and(|own| matches!(own.holds, Holds::Segment(..))) {
                state = taken.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.abandoned {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
