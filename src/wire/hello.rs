//! The hello: how two ends find each other in a byte stream.

/// The first bytes that either side sends. The NUL keeps it out of any login banner; the CR LF shows a
/// channel that translates line ends.
pub const MAGIC: [u8; 8] = *b"\0KSYNC\r\n";
