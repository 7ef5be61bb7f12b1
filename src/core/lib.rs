//! The layers that the client and the agent share. The map of all layers, the glossary and the
//! rules that hold throughout are in the root package's `src/lib.rs`.

pub mod content;
pub mod disk;
pub mod engine;
pub mod exchange;
pub mod log;
pub mod monitor;
#[cfg(target_os = "linux")]
pub mod rendezvous;
pub mod tree;
pub mod watch;
pub mod wire;
