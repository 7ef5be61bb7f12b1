//! The `ksync` program, tested from the outside: each test is a claim about it, each module a
//! subject.
//!
//! Hermetic: a test touches nothing but its own [`world`], and `sandbox:` takes the place of the
//! VM.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

mod agent;
mod baseline;
mod below;
mod brake;
mod footprint;
mod full;
mod holes;
mod hostile;
mod impostor;
mod interrupted;
mod itemized;
mod kinds;
mod locked;
mod log;
mod manual;
mod mapping;
mod messages;
mod metadata;
mod moved;
mod options;
mod plan;
mod progress;
mod reports;
mod rules;
mod select;
mod silence;
mod streams;
mod times;
mod transfer;
mod wire;
mod worlds;
