//! Lanes: one direction of an exchange over several streams. [`wire::lanes`](crate::wire::lanes)
//! defines the wire form.
//!
//! ```text
//! frames ─► Striped ─► queue ─┬─► main ─┬─► one segment each ─► Merged ─► frames
//!                             ├─► lane ─┤
//!                             └─► lane ─┘
//! ```
//! The layer above sees frames, the layer below bytes; the engine does not know about lanes. Each
//! lane has a thread at both ends. At the near end it takes the next segment when its lane has
//! accepted the last one. At the far end it holds a segment until that segment's turn comes. The
//! caller of [`run`](super::run) with a [`Striped`], or of [`run_over`](super::run_over) with a
//! joiner, provides the lanes.

mod merged;
mod striped;
#[cfg(test)]
mod tests;

use std::io::{self, Read};

pub use merged::{Joining, Merged};
pub use striped::{Entrance, Striped};

use crate::wire::lanes::Announcement;

/// A stream to read from, of any kind.
///
/// Not a `Box<dyn Read>`, which brings along ten methods of each kind: without them the agent is 8
/// kB smaller.
pub struct Lane(Box<ReadBytes>);

type ReadBytes = dyn FnMut(&mut [u8]) -> io::Result<usize> + Send;

impl Lane {
    /// Makes a lane that reads from this.
    pub fn new(mut reader: impl Read + Send + 'static) -> Self {
        Self(Box::new(move |buffer| reader.read(buffer)))
    }
}

impl Read for Lane {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.0)(buffer)
    }
}

/// Opens further lanes, on the side that announces them.
pub trait OpenLanes: Send {
    /// Number of lanes that pay, the main one included, as far as is known by now.
    fn worthwhile(&self) -> usize;

    /// Starts to open lanes and returns at once the announcement to send, or `None` if none will
    /// come. A lane is added to the entrance only after the other side has answered on it that it
    /// joined.
    fn open(&self, entrance: Entrance) -> Option<Announcement>;
}

/// Accepts announced lanes, on the side that reads them.
pub trait JoinLanes: Send {
    /// Starts to wait for lanes and returns at once. The answer to a lane may be sent once it has
    /// been added.
    fn join(&self, announcement: Announcement, joining: Joining);
}
