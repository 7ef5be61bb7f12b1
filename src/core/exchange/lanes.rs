//! Lanes: one direction of an exchange over several streams. [`wire::lanes`](crate::wire::lanes)
//! defines the wire form.
//!
//! ```text
//! frames ─► Striped ─► queue ─┬─► main ─┬─► one segment each ─► Merged ─► frames
//!                             ├─► lane ─┤
//!                             └─► lane ─┘
//! ```
//! The layer above sees frames, the layer below bytes; the engine does not know about lanes. Each
//! lane has a thread at both ends. At the near end it takes the next segment when its lane has
//! accepted the last one. At the far end it holds a segment until that segment's turn comes. The
//! caller of [`run`](super::run) provides the lanes: a [`Striped`] as writer, or a joiner.

pub(super) mod lane;
mod merged;
mod outlet;
mod striped;
#[cfg(test)]
mod tests;

pub use lane::Lane;
pub use merged::{JoinLanes, Joining, Merged};
pub(in crate::exchange) use outlet::Action;
pub use outlet::Outlet;
pub use striped::{Entrance, OpenLanes, Striped};
