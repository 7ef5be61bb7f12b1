//! The exchange: one engine, one disk, one stream in, one stream out.
//!
//! [`run`] drives an engine with plain threads over blocking [`Read`](std::io::Read) and
//! [`Write`](std::io::Write). It does not know how the bytes travel, so it is the same on both
//! sides and between two threads of one process. [`Sending`] and [`Receiving`] perform the works of
//! the two engines. Where a tree is watched, exchanges follow each other on one [`Link`]: see
//! [`rounds`]. A kept agent serves one exchange after another over one channel: see [`runs`].

mod adaptive_level;
mod common;
mod found;
pub mod kept_trees;
pub mod lanes;
mod listed_files;
mod liveness;
mod mailbox;
mod pace;
mod pool;
mod prefetch;
mod receiver_session;
mod receiving;
mod removal;
pub mod rounds;
mod run;
pub mod runs;
mod send_queue;
mod sending;
mod several;
mod tails;
mod unusable;

pub use common::{chain, plain};
pub use liveness::{Carried, Timeouts};
pub use pace::Pace;
pub use receiving::{FileReceiver, OpenTree, PlannedTree, Receiving};
pub use run::{Asker, Incoming, Link, Perform, run};
pub use sending::{FileSender, FoundSource, Listing, OfferedFile, Sending};
