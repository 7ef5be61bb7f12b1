//! The disk: everything that touches files. Knows neither the engine nor the wire.
//!
//! All access to a tree goes through one [`root::Root`], a directory handle that nothing climbs out
//! of: names are [`TreePath`](crate::tree::path::TreePath)s, and no symbolic link in them is ever
//! followed, whoever swaps directories for links meanwhile. What is written is written aside, in
//! [`STATE_DIR`](crate::tree::path::STATE_DIR) or without a name, and gets into place when it is
//! complete; which of it the disk may not have yet is marked (`unconfirmed`). What is remembered
//! from one run to the next lies outside of every tree: see [`memory`].

mod boundaries;
mod change;
mod closing;
pub mod directory;
pub mod error;
pub mod glance;
pub mod holes;
mod homes;
pub mod identities;
mod levels;
mod link;
mod lock;
mod marker;
pub mod memory;
mod mount;
mod nameless;
mod place;
mod protected;
mod resolve;
pub mod root;
pub mod scan;
pub mod secret;
pub mod set_id;
pub mod space;
mod spelling;
pub mod stage;
pub mod stat;
mod state;
mod swap;
mod unconfirmed;
mod writeback;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod given_away;
#[cfg(test)]
pub(crate) mod testing;

pub use homes::{expand_home, home};
pub use state::{Staged, clear_leftovers, staged};
