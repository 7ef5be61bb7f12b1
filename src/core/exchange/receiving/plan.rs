//! Takes in the plan.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::disk::writable::WritableRoot;
use crate::engine::{Planned, WorkError};
use crate::exchange::receiving::Receiving;
use crate::exchange::receiving::backups::Backups;
use crate::exchange::receiving::directories::MadeDirectories;
use crate::exchange::receiving::tree::{LastReplaced, OpenTree, PlannedTree, unknown};
use crate::log::debug;
use crate::tree::path_ref::PathRef;

impl Receiving {
    /// Takes in the plan.
    pub(super) fn plan(&self, open: Arc<OpenTree>, planned: Planned) -> Result<Arc<PlannedTree>, WorkError> {
        let Planned { wanted, present, spelling, changes, writes, withheld, pair, after } = planned;
        let root = open.root.clone().ok_or_else(unknown)?;
        // A round of a watch has not taken the lock yet.
        if changes {
            self.lock(&open)?;
        }
        if let Some(session) = &self.session {
            let aliases = spelling.shown_otherwise().iter().filter_map(|&id| wanted.path(id));
            let mut state = session.state();
            state.planned(withheld, aliases.map(PathRef::to_path).collect());
            state.pair = pair.or(state.pair);
        }
        debug!(
            "plan role=receiver wanted={} present={} changes={changes} writes={writes}",
            wanted.len(),
            present.len()
        );
        // The plan will fill them, or they are the wanted result.
        self.ancestors.note(Vec::new());
        if writes {
            expect_files(&root);
        }
        // The order of the wanted names.
        let order = spelling.order();
        let is_reordered = !order.is_empty();
        let doubted = if is_reordered {
            let positions = (0_u32..).zip(order).filter(|(_, listed)| open.doubted.contains(listed));
            positions.map(|(at, _)| at).collect()
        } else {
            open.doubted.clone()
        };
        let reordered = is_reordered.then(|| open.identities.reordered(order));
        let backups = self.options.backup.as_ref().map(Backups::new);
        let undo = after.map(|after| self.keep_for_undo(&open, &root, &present, &after));
        let tree = PlannedTree {
            backups,
            undo: undo.transpose()?,
            root,
            is_durable: self.options.fsync,
            is_in_place: self.options.in_place,
            wanted,
            present,
            spelling,
            reordered,
            doubted: Mutex::new(doubted),
            directories: MadeDirectories::default(),
            prehashes: Arc::clone(&self.prehashes),
            replaced: LastReplaced::default(),
            is_full: AtomicBool::new(false),
            open,
        };
        tree.cancel_prehashes();
        Ok(Arc::new(tree))
    }
}

/// Prepares the destination for files before the first one arrives. The preparation takes the disk
/// a moment, in which the peer is waited for anyway.
fn expect_files(root: &Arc<WritableRoot>) {
    if root.outlives_power() {
        let root = Arc::clone(root);
        // If no thread can start or the preparation fails, the first file shows the failure.
        let _ = thread::Builder::new().spawn(move || drop(root.expect_files()));
    }
}
