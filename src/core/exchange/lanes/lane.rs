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
        Self(Box::new(move |buffer| reader.read(buffer)))
    }
}

impl Read for Lane {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.0)(buffer)
    }
}
