//! The client's layers: the connection to a VM, the platform's API, and a job from end to end. The
//! crate `ksync` describes them, and hands in the agent and the bridge.

pub mod kernel;
mod private;
pub mod remote;
pub mod sync;

use ksync_core::{content, disk, engine, exchange, log, monitor, tree, wire};
#[cfg(feature = "sandbox")]
use ksync_sandbox as sandbox;
