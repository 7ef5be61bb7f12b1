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
mod apply;
mod backup;
mod baseline;
mod basis;
mod below;
mod brake;
mod bwlimit;
mod config;
mod events;
mod files_from;
mod filters;
mod followed_links;
mod footprint;
mod formats;
mod full;
mod holes;
mod hostile;
mod impostor;
mod in_place;
mod interrupted;
mod itemized;
mod kinds;
mod listing;
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
mod removed_sources;
mod reports;
mod rules;
mod select;
mod silence;
mod streams;
mod sudo;
mod times;
mod transfer;
mod undo;
mod verify;
mod wire;
mod worlds;
