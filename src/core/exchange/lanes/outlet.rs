//! `Outlet`: a stream to write to.

use std::io::{self, Write};

use crate::exchange::pace::Pace;

/// Most bytes that an outlet holds back.
const HELD_BYTES_MAX: usize = 16 << 10;

/// A stream to write to, of any kind. Each write is taken whole.
///
/// Not a `Box<dyn Write>`, for the reason that [`Lane`](super::Lane) gives.
pub struct Outlet {
    act: Box<Act>,
    /// Bytes held back until a flush.
    held: Vec<u8>,
    holds: bool,
    pace: Option<Pace>,
}

type Act = dyn FnMut(Action<'_>) -> io::Result<()> + Send;

/// An action of an outlet's stream.
pub(in crate::exchange) enum Action<'a> {
    Write(&'a [u8]),
    Flush,
}

impl Outlet {
    /// Makes an outlet that writes to this, and buffers nothing.
    pub fn new(mut writer: impl Write + Send + 'static) -> Self {
        Self::of(move |action| match action {
            Action::Write(bytes) => writer.write_all(bytes).and_then(|()| writer.flush()),
            Action::Flush => Ok(()),
        })
    }

    /// Makes an outlet that writes to this at the pace, if there is one.
    pub fn paced(writer: impl Write + Send + 'static, pace: Option<Pace>) -> Self {
        let mut outlet = Self::new(writer);
        outlet.pace = pace;
        outlet
    }

    /// Slows the outlet down to this pace.
    pub fn set_pace(&mut self, pace: Option<Pace>) {
        self.pace = pace;
    }

    /// Writes at the pace.
    fn write_out(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(pace) = &self.pace else { return (self.act)(Action::Write(bytes)) };
        for portion in bytes.chunks(pace.portion()) {
            pace.wait(portion.len());
            (self.act)(Action::Write(portion))?;
        }
        Ok(())
    }

    /// Makes an outlet that calls this.
    pub(in crate::exchange) fn of(act: impl FnMut(Action<'_>) -> io::Result<()> + Send + 'static) -> Self {
        Self { act: Box::new(act), held: Vec::new(), holds: false, pace: None }
    }

    /// Holds small writes back until a flush, or the end of the outlet. Each write becomes a packet
    /// of its own below. Where a relay uses Nagle's algorithm, a second packet waits until the
    /// first one is acknowledged, which takes a round trip.
    #[must_use]
    pub fn holding(mut self) -> Self {
        self.holds = true;
        self
    }

    fn let_go(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        self.write_out(&held)
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.holds && self.held.len() + bytes.len() <= HELD_BYTES_MAX {
            self.held.extend_from_slice(bytes);
        } else if self.held.is_empty() {
            self.write_out(bytes)?;
        } else {
            self.held.extend_from_slice(bytes);
            self.let_go()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.let_go()?;
        (self.act)(Action::Flush)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let _ = self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn held_bytes_leave_in_one_write_at_a_flush_a_large_write_or_the_end() {
        let writes: Arc<Mutex<Vec<usize>>> = Arc::default();
        let sink = Arc::clone(&writes);
        let mut outlet = Outlet::of(move |action| {
            if let Action::Write(bytes) = action {
                sink.lock().unwrap().push(bytes.len());
            }
            Ok(())
        });
        outlet.write_all(&[0; 3]).unwrap();
        outlet = outlet.holding();
        outlet.write_all(&[0; 4]).unwrap();
        outlet.write_all(&[0; 5]).unwrap();
        outlet.flush().unwrap();
        outlet.write_all(&[0; 6]).unwrap();
        outlet.write_all(&[0; HELD_BYTES_MAX]).unwrap();
        outlet.write_all(&[0; 7]).unwrap();
        drop(outlet);
        assert_eq!(*writes.lock().unwrap(), [3, 9, 6 + HELD_BYTES_MAX, 7]);
    }
}
