//! Counts the bytes of one or several streams.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::exchange::Pace;

/// A counter that several streams add to.
#[derive(Clone, Default)]
pub(super) struct Count {
    bytes: Arc<AtomicU64>,
    /// The limit of their rate, for streams that are written.
    pace: Option<Arc<Pace>>,
}

impl Count {
    /// Wraps a stream so that its bytes are counted here.
    pub(super) fn meter<S>(&self, stream: S) -> Meter<S> {
        Meter { stream, count: self.clone(), tell: None }
    }

    /// The same counter, whose streams from now on keep a pace together.
    pub(super) fn paced(&self, pace: Option<Pace>) -> Self {
        Self { pace: pace.map(Arc::new), ..self.clone() }
    }

    /// The bytes counted so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A stream that counts its bytes.
pub(super) struct Meter<S> {
    stream: S,
    count: Count,
    tell: Option<Box<dyn FnOnce() + Send>>,
}

impl<S> Meter<S> {
    /// Calls a function when the first bytes arrive.
    pub(super) fn telling(self, tell: impl FnOnce() + Send + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), ..self }
    }
}

impl<S: Read> Read for Meter<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.count.add(count);
        if count > 0
            && let Some(tell) = self.tell.take()
        {
            tell();
        }
        Ok(count)
    }
}

impl<S: Write> Write for Meter<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = match &self.count.pace {
            Some(pace) => {
                let portion = bytes.get(..pace.portion()).unwrap_or(bytes);
                pace.wait(portion.len());
                portion
            }
            None => bytes,
        };
        let count = self.stream.write(bytes)?;
        self.count.add(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
