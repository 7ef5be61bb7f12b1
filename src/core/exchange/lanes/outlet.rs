//! `Outlet`: a stream to write to.

use std::io::{self, Write};

/// A stream to write to, of any kind. Each write is taken whole.
///
/// Not a `Box<dyn Write>`, for the reason that [`Lane`](super::Lane) gives.
pub struct Outlet(Box<WriteBytes>);

type WriteBytes = dyn FnMut(&[u8]) -> io::Result<()> + Send;

impl Outlet {
    /// Makes an outlet that writes to this, and buffers nothing.
    pub fn new(mut writer: impl Write + Send + 'static) -> Self {
        Self::of(move |bytes| writer.write_all(bytes).and_then(|()| writer.flush()))
    }

    /// Makes an outlet that writes by calling this.
    pub(in crate::exchange) fn of(write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static) -> Self {
        Self(Box::new(write))
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
