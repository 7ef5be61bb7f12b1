//! The disk layer: everything that touches files. It imports neither the engine nor the wire.
//!
//! All access to a tree goes through one [`root::Root`], a directory handle that no path climbs out
//! of. Names are [`TreePath`](crate::tree::path::TreePath)s. No operation follows a symbolic link
//! in a name, even if another process swaps directories for links meanwhile. A run that writes has
//! a [`writable::WritableRoot`]: a root with a lock, state directories and markers.
//!
//! New files are written aside, in [`STATE_DIR`](crate::tree::path::STATE_DIR) or as anonymous
//! temporary files, and are renamed into place when complete. Markers name the files that may not
//! be on the disk yet (`unconfirmed`). The baseline, which one run leaves for the next, lies
//! outside of every tree: see [`baseline`].

pub mod accounts;
mod anonymous;
pub mod attributes;
mod backup;
pub mod baseline;
mod boundaries;
pub mod bounded_scan;
mod change;
mod closing;
pub mod contents;
pub mod directory;
mod directory_stack;
mod durability;
pub mod error;
mod granularity;
mod hard_link;
pub mod holes;
mod homes;
pub mod identities;
mod in_place;
pub mod inaccessible;
mod link;
mod lock;
#[cfg(target_os = "linux")]
mod magic;
mod marker;
mod mount;
mod protected;
mod resolve;
pub mod root;
pub mod scan;
pub mod secret;
pub mod set_id;
pub mod space;
mod special;
mod spelling;
pub mod stage;
pub mod stat;
mod state;
mod swap;
mod tree_id;
pub mod typed_path;
mod unconfirmed;
pub mod undo;
pub mod writable;
mod writeback;
pub mod xattr;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod given_away;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use homes::user;
pub use homes::{expand_home, home};
pub use state::Staged;
pub use writable::{clear_leftovers, staged};
