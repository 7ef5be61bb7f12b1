//! Counts the bytes of one or several streams.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that several streams add to.
#[derive(Clone, Default)]
pub(super) struct Count(Arc<AtomicU64>);

impl Count {
    /// Wraps a stream so that its bytes are counted here.
    pub(super) fn meter<S>(&self, stream: S) -> Meter<S> {
        Meter { stream, count: self.clone() }
    }

    /// The bytes counted so far.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A stream that counts its bytes.
pub(super) struct Meter<S> {
    stream: S,
    count: Count,
}

impl<S: Read> Read for Meter<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.count.add(count);
        Ok(count)
    }
}

impl<S: Write> Write for Meter<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.count.add(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
