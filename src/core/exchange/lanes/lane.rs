//! `Lane`: a stream to read from.

use std::io::{self, Read};

/// A stream to read from, of any kind.
///
/// Not a `Box<dyn Read>`, which brings along ten methods of each kind: without them the agent is 8
/// kB smaller.
pub struct Lane(Box<ReadBytes>);

type ReadBytes = dyn FnMut(&mut [u8]) -> io::Result<usize> + Send;

impl Lane {
    /// Makes a lane that reads from this.
    pub fn new(mut reader: impl Read + Send + 'static) -> Self {
        Self::of(move |buffer| reader.read(buffer))
    }

    /// Makes a lane that reads by calling this.
    pub(in crate::exchange) fn of(read: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl Read for Lane {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.0)(buffer)
    }
}
