//! Trees: names, entries and what differs between two of them. Knows no disk and no peers.

pub mod entry;
pub mod path;
