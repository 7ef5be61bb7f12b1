//! The two programs that ksync carries, built by this crate's build script for x86-64 Linux.

/// SHA-256 of the agent, in lower-case hex.
pub const AGENT_SHA256: &str = env!("KSYNC_AGENT_SHA256");

/// The agent, compressed with gzip.
pub static AGENT_GZIP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent.gz"));

/// SHA-256 of the bridge, in lower-case hex.
pub const BRIDGE_SHA256: &str = env!("KSYNC_BRIDGE_SHA256");

/// The bridge, compressed with gzip.
pub static BRIDGE_GZIP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bridge.gz"));
