//! Lanes: one direction of an exchange over several streams. The form on the wire is in
//! [`wire::lanes`](crate::wire::lanes).
//!
//! ```text
//! frames ─► Striped ─► queue ─┬─► main ─┬─► one segment each ─► Merged ─► frames
//!                             ├─► lane ─┤
//!                             └─► lane ─┘
//! ```
//! Above are frames, below are bytes; the engine knows nothing of it. A thread for each lane, at both ends:
//! at the near one it takes the next segment when its lane has taken the last one, at the far one it holds one
//! until that one's turn comes. Where lanes come from is the business of whoever calls
//! [`run`](super::run) with a [`Striped`], or [`run_over`](super::run_over) with somebody who lets lanes in.

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
/// Not a `Box<dyn Read>`, which brings along ten methods of each kind: the agent is 8 kB smaller without.
pub struct Lane(Box<ReadBytes>);

type ReadBytes = dyn FnMut(&mut [u8]) -> io::Result<usize> + Send;

impl Lane {
    /// A lane that reads from this.
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
    /// How many lanes pay, the main one included, as far as that is known by now.
    fn worthwhile(&self) -> usize;

    /// Begins to open lanes and answers at once what to announce, or `None` where none will come. A lane is put
    /// in at the entrance when the other side has answered on it that it joined, and not before.
    fn open(&self, entrance: Entrance) -> Option<Announcement>;
}

/// Lets announced lanes in, on the side that reads them.
pub trait JoinLanes: Send {
    /// Begins to wait for lanes and returns at once. The answer to a lane may go out when it has been added.
    fn join(&self, announcement: Announcement, joining: Joining);
}
