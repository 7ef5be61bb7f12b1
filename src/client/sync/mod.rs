//! Sync: one job from end to end. Connects, runs, runs again if the source changed meanwhile,
//! summarises.
//!
//! This layer knows both endpoints and the connection between them, but no terminal.

mod backoff;
mod baseline;
mod congestion;
pub mod consent;
mod emulator;
pub mod endpoint;
mod error;
mod job;
pub mod keeper;
mod kernel;
mod lanes;
mod limit;
mod list;
mod local;
mod meter;
mod news;
mod owed;
mod pairing;
mod remote;
mod repeat;
mod report;
mod retry;
mod run;
mod seal;
mod target;
pub mod undo;
mod verify;
mod visit;
pub mod watch;

pub use endpoint::Endpoint;
pub use error::SyncError;
pub use job::{ConnectOptions, Job, SharedMonitor};
pub use kernel::access;
pub use list::list;
pub use report::Report;
pub use run::{Runner, run};
pub use seal::seal;
pub use target::{is_reachable, machines, parse, resolve, resolve_for_ssh};
pub use visit::Visit;
