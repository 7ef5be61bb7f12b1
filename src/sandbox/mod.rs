//! The sandbox: a stand-in VM on loopback. Shares no code with the rest of ksync, so it shares no mistake.
