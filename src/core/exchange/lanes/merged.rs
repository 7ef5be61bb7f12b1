//! The reading end: puts the segments of all lanes back in order.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::exchange::lanes::lane::Lane;
use crate::exchange::liveness::Liveness;
use crate::wire::lanes::{Announcement, SegmentError, read_segment};

/// Most bytes held of one lane while another brings the bytes before them. As much as OpenSSH's
/// window: a lane whose window is used up delays the rest by a round trip. Without this room the
/// others would use up their windows and stand still too (100 MB/s instead of 120 at 100 ms round
/// trip).
const HELD_BYTES_MAX: usize = 2 << 20;

/// Accepts announced lanes, on the side that reads them.
pub trait JoinLanes: Send {
    /// Starts to wait for lanes and returns at once. The answer to a lane may be sent once it has
    /// been added.
    fn join(&self, announcement: Announcement, joining: Joining);
}

/// Reads the written bytes in order, whichever lanes they took. Holds at most 2 MiB of each lane.
pub struct Merged {
    shared: Arc<Shared>,
    current: io::Cursor<Vec<u8>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signals that a segment arrived, or that none will.
    arrived: Condvar,
    /// Any bytes on a lane are a sign of life, even before their turn.
    liveness: Arc<Liveness>,
}

struct State {
    /// Number of the segment whose turn it is.
    turn: u64,
    lanes: Vec<Held>,
    lanes_max: usize,
    /// The reason why a lane broke. Segments that arrived before on any lane still count.
    broken: Option<(io::ErrorKind, String)>,
    /// A protocol error; nothing that follows counts.
    nonsense: Option<String>,
    /// Nobody reads any more.
    abandoned: bool,
}

/// State of a lane.
struct Held {
    /// Segments that wait for their turn, in order.
    held: VecDeque<(u64, Vec<u8>)>,
    held_bytes: usize,
    /// The lowest number that may come next.
    next_min: u64,
    ended: bool,
    /// Tells the lane's thread that there is room.
    taken: Arc<Condvar>,
}

/// State of the next segment.
enum Next {
    Arrived(Vec<u8>),
    NotYet,
    Never,
}

impl State {
    /// Takes the segment whose turn it is, if some lane holds it.
    fn take(&mut self) -> Next {
        let turn = self.turn;
        let is_next = |lane: &&mut Held| lane.held.front().is_some_and(|(number, _)| *number == turn);
        if let Some(lane) = self.lanes.iter_mut().find(is_next)
            && let Some((_, bytes)) = lane.held.pop_front()
        {
            lane.held_bytes -= bytes.len();
            lane.taken.notify_one();
            // Only 2^64 segments would reach the limit.
            self.turn = turn.saturating_add(1);
            return Next::Arrived(bytes);
        }
        // A lane that holds a segment brings no earlier one.
        if self.lanes.iter().any(|lane| lane.held.is_empty() && !lane.ended) {
            Next::NotYet
        } else {
            Next::Never
        }
    }

    /// Takes in a segment of a lane; `false` if the lane has ended.
    fn put(&mut self, index: usize, segment: Result<Option<(u64, Vec<u8>)>, SegmentError>) -> bool {
        let turn = self.turn;
        let Some(lane) = self.lanes.get_mut(index) else { return false };
        match segment {
            Ok(Some((number, bytes))) if number >= lane.next_min.max(turn) => {
                lane.next_min = number.saturating_add(1);
                lane.held_bytes += bytes.len();
                lane.held.push_back((number, bytes));
                return true;
            }
            Ok(Some((number, _))) => {
                self.nonsense.get_or_insert_with(|| format!("segment {number} came late, or twice"));
            }
            Ok(None) => {}
            Err(SegmentError::Io(error)) => {
                self.broken.get_or_insert_with(|| (error.kind(), error.to_string()));
            }
            Err(error @ SegmentError::Length { .. }) => {
                self.nonsense.get_or_insert_with(|| error.to_string());
            }
        }
        lane.ended = true;
        false
    }

    /// True if a lane may read on.
    fn has_room(&self, index: usize) -> bool {
        self.lanes.get(index).is_none_or(|lane| lane.held_bytes < HELD_BYTES_MAX)
    }

    /// The reason why nothing more comes; `Ok` if all lanes ended with nothing left.
    fn end(&self) -> io::Result<()> {
        if let Some((kind, text)) = &self.broken {
            return Err(io::Error::new(*kind, format!("a lane broke: {text}")));
        }
        if self.lanes.iter().all(|lane| lane.held.is_empty()) {
            return Ok(());
        }
        let text = format!("a lane ended early: segment {} did not come", self.turn);
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
    }
}

impl Merged {
    #[cfg(test)]
    pub(crate) fn new(main: Lane, announcement: Announcement) -> (Self, Joining) {
        Self::listening(main, announcement, &Arc::default())
    }

    /// Reads from `main` and from the lanes that join it, as many as were announced. Notes signs of
    /// life on the lanes that join.
    pub(in crate::exchange) fn listening(
        main: Lane,
        announcement: Announcement,
        liveness: &Arc<Liveness>,
    ) -> (Self, Joining) {
        let state = State {
            turn: 0,
            lanes: Vec::new(),
            lanes_max: usize::from(announcement.lanes),
            broken: None,
            nonsense: None,
            abandoned: false,
        };
        let liveness = Arc::clone(liveness);
        let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new(), liveness });
        let joining = Joining(Arc::clone(&shared));
        joining.begin(main);
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

/// The end at which announced lanes join.
#[derive(Clone)]
pub struct Joining(Arc<Shared>);

impl Joining {
    /// Adds a lane; `false` if as many as announced have joined, or nobody reads any more. When the
    /// run ends before the lane does, the lane's thread stays behind and waits for it.
    pub fn add(&self, lane: Lane) -> bool {
        self.begin(self.0.liveness.listen(lane))
    }

    /// The same for a lane that notes signs of life already.
    fn begin(&self, lane: Lane) -> bool {
        let mut state = self.0.lock();
        if state.lanes.len() >= state.lanes_max || state.abandoned {
            return false;
        }
        let taken = Arc::new(Condvar::new());
        let index = state.lanes.len();
        state.lanes.push(Held {
            held: VecDeque::new(),
            held_bytes: 0,
            next_min: 0,
            ended: false,
            taken: Arc::clone(&taken),
        });
        drop(state);
        let shared = Arc::clone(&self.0);
        if let Err(error) = thread::Builder::new().spawn(move || shared.carry(lane, index, &taken)) {
            let mut state = self.0.lock();
            state.broken.get_or_insert((error.kind(), error.to_string()));
            state.lanes.get_mut(index).into_iter().for_each(|own| own.ended = true);
            return false;
        }
        true
    }

    /// True if another lane can be added.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let state = self.0.lock();
        state.lanes.len() < state.lanes_max && !state.abandoned
    }
}

impl Shared {
    /// Reads segments one after the other while there is room for them.
    fn carry(&self, mut lane: Lane, index: usize, taken: &Condvar) {
        loop {
            let segment = read_segment(&mut lane);
            let mut state = self.lock();
            let goes_on = state.put(index, segment);
            self.arrived.notify_one();
            while !state.abandoned && !state.has_room(index) {
                state = taken.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.abandoned || !goes_on {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
