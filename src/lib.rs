//! ksync: incremental directory sync to and from cloud browser VMs.

pub mod content;
pub mod disk;
pub mod engine;
pub mod exchange;
pub mod monitor;
#[cfg(feature = "client")]
pub mod remote;
#[cfg(feature = "sandbox")]
pub mod sandbox;
#[cfg(feature = "client")]
pub mod sync;
pub mod tree;
pub mod wire;
