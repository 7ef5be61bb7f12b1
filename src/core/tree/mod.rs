//! Trees: names, entries and the differences of two trees. This layer knows neither the disk nor
//! peers.

pub mod accounts;
pub mod attributes;
pub mod basis_trees;
pub mod block;
pub mod change;
pub mod compare;
pub mod doubt;
pub mod effective;
pub mod entry;
pub mod filter;
mod glob;
pub mod hard_links;
pub mod kept;
mod limits;
pub mod links;
pub mod manifest;
pub mod metadata;
pub mod path;
pub mod path_ref;
pub mod pattern;
pub mod plan_state;
pub mod record;
pub mod rule;
pub mod spelling;
pub mod subtrees;
mod table;
pub mod time_rule;
pub mod transfer_rules;
pub mod tree_id;
pub mod undo;
