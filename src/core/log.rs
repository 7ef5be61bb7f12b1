//! The diagnostic log: one line of text for each decision, if the user asks for it.
//!
//! A line is a subject with `key=value` pairs: `scan role=sender entries=3 bytes=90 ms=1`. A value
//! that may hold blanks comes last. No line holds a token, a key, a query string or a content. The
//! program chooses the sink: the client prints to stderr, and so does the agent, whose stderr the
//! client reads. Until [`begin`] is called, no line is formatted.
//!
//! The client does not wait for the agent's exit, so the agent's last lines may be missing.

use std::fmt::Arguments;
use std::sync::OnceLock;

/// The environment variable that holds the level, on both sides.
pub const VARIABLE: &str = "KSYNC_LOG";

/// The only level.
pub const LEVEL: &str = "debug";

/// Beginning of each line that the agent logs, to tell it from other output on its stderr.
pub const MARK: &str = "KSYNC-LOG ";

/// The machine that a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This one.
    Here,
    /// The other one.
    There,
}

type Sink = Box<dyn Fn(Side, Arguments<'_>) + Send + Sync>;

static SINK: OnceLock<Sink> = OnceLock::new();

/// Sends all further lines to `sink`. Only the first call of a process has an effect.
pub fn begin(sink: impl Fn(Side, Arguments<'_>) + Send + Sync + 'static) {
    let _ = SINK.set(Box::new(sink));
}

/// True if lines are wanted.
#[must_use]
pub fn is_on() -> bool {
    SINK.get().is_some()
}

/// Logs a line. Callers check [`is_on`] first, as `debug!` does.
#[cold]
#[inline(never)]
pub fn line(side: Side, text: Arguments<'_>) {
    if let Some(sink) = SINK.get() {
        sink(side, text);
    }
}

/// Logs a line about this side, formatted only if lines are wanted.
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => {
        if $crate::log::is_on() {
            $crate::log::line($crate::log::Side::Here, format_args!($($text)*));
        }
    };
}
pub use debug;
