//! An arriving offer.

use std::collections::HashMap;
use std::sync::Arc;

use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::tree::accounts::Owners;
use crate::tree::attributes::Attributes;
use crate::tree::change::Rebuild;
use crate::tree::entry::Kind;
use crate::tree::manifest::{Builder, Manifest};
use crate::tree::subtrees::{Subtree, SubtreeSet};
use crate::wire::message::{Holes, Subject};

/// An arriving offer.
#[derive(Debug, Default)]
pub(super) struct Offer {
    pub(super) subject: Option<Subject>,
    /// The offered parts, as they arrive.
    pub(super) subtrees: Vec<Subtree>,
    /// The same once they have all arrived; `None` is the whole tree.
    pub(super) scope: Option<SubtreeSet>,
    pub(super) holes: Holes,
    /// Names of the offered ids.
    pub(super) owners: Owners,
    /// Attributes of the offered directory itself.
    pub(super) root: Option<Arc<Attributes>>,
    /// The sender's report that it could list everything.
    pub(super) complete: Option<bool>,
    pub(super) baseline: Baseline,
    pub(super) builder: Builder,
    /// True once ignore files have arrived, or the message that there are none.
    pub(super) has_ignores: bool,
    /// True if the offer equals the stored baseline.
    pub(super) equals_baseline: bool,
    /// True if only parts of the tree are offered.
    pub(super) is_partial: bool,
    /// Contents that came with the offer.
    pub(super) pushed: Pushed,
    /// Samples of large files that came with the offer, by id.
    pub(super) samples: HashMap<u32, Samples>,
    /// True while the offer is being stored.
    pub(super) is_being_stored: bool,
}

impl Offer {
    /// True while the baseline is being looked up: changes must wait for it.
    pub(super) fn is_loading(&self) -> bool {
        matches!(self.baseline, Baseline::Loading(_))
    }
}

/// The baseline that the sender relies on.
#[derive(Debug, Default)]
pub(super) enum Baseline {
    /// None named so far.
    #[default]
    Unnamed,
    /// Named; the record is being looked up.
    Loading(Hash),
    /// Named; the record was found.
    Known(Box<Rebuild>),
    /// Named, but the record does not exist here. The receiver has reported that; changes that
    /// still arrive are skipped.
    Missing,
    /// The full offer arrives.
    Passed,
}

/// Contents of small files that came with the offer, by id.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    pub(super) files: HashMap<u32, (Hash, Vec<u8>)>,
    pub(super) bytes: usize,
}

impl Pushed {
    /// True if all belong to offered files and have their length.
    pub(super) fn fit(&self, offered: &Manifest) -> bool {
        self.files.iter().all(|(id, (_, data))| {
            let kind = offered.get(*id).map(|entry| entry.kind);
            matches!(kind, Some(Kind::File { size, .. }) if size == data.len() as u64)
        })
    }
}
