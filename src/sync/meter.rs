//! Counts the bytes of a stream.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A stream that counts what passes.
pub(super) struct Meter<S> {
    stream: S,
    bytes: Arc<AtomicU64>,
}

impl<S> Meter<S> {
    /// The stream, and where its count can be read.
    pub(super) fn new(stream: S) -> (Self, Arc<AtomicU64>) {
        let bytes = Arc::new(AtomicU64::new(0));
        (Self { stream, bytes: Arc::clone(&bytes) }, bytes)
    }
}

impl<S: Read> Read for Meter<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<S: Write> Write for Meter<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
