//! The keeper: a process that holds an SSH connection after a run, for the next ones.
//!
//! ```text
//!  ksync (run 1) ── starts, as it ends ──▶ ksync keep serve (setsid)
//!  ksync (run 2) ═══ Unix socket ═════════▶ keeper ═══ SSH ═══▶ sshd ─ agent, kept
//! ```
//!
//! The keeper is not the process of the first run. TLS state cannot move between processes, a fork
//! needs `unsafe`, and the first run must neither wait nor fail for the keeper. So a run that had
//! to connect by itself starts a process as it ends. That process connects anew, in the background.
//! Later runs do everything by themselves (arguments, scan, output, signals, exit code), and borrow
//! a stream to an agent from the keeper, or a channel, as OpenSSH's ControlMaster lends them.
//!
//! Three rules:
//! - No run fails, waits or differs for the keeper's sake. A run that the keeper does not serve at
//!   once connects by itself, and whichever is first counts. A run whose lent stream breaks starts
//!   anew over a connection of its own.
//! - A keeper serves the same build, the same endpoint, and the same keys, host keys, tokens and
//!   proxies as at its start: the name of its socket (`facts`) is a hash of all of them.
//! - A keeper ends by itself: when idle, when that name changes, when the session is gone, when the
//!   connection is lost, after this machine's sleep, and when its socket is removed.

mod ask;
mod facts;
mod manage;
mod message;
mod place;
mod pool;
mod serve;
mod start;

pub(super) use ask::{Dialled, borrow, end_if_silent, look_after, race};
pub(super) use facts::Facts;
pub use manage::{Kept, list, stop};
pub(super) use message::Purpose;
pub use message::Status;
pub use serve::serve;
pub(super) use start::start;
pub use start::{Parameters, detach};
