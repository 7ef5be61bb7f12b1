//! The tree after a run, and the plan of an undo.

use std::collections::HashSet;

use super::Plan;
use crate::engine::work::Step;
use crate::tree::compare::Change;
use crate::tree::manifest::{Builder, Manifest, ManifestError};

impl Plan {
    /// The whole destination after the run, if all goes well.
    pub(in crate::engine) fn after(
        &self,
        wanted: &Manifest,
        present: &Manifest,
    ) -> Result<Manifest, ManifestError> {
        let (mut made, mut gone) = (HashSet::new(), HashSet::new());
        for change in &self.changes {
            match *change {
                Change::Create { id }
                | Change::Update { id, .. }
                | Change::Adjust { id, .. }
                | Change::Verify { id, .. } => drop(made.insert(id)),
                Change::Replace { id, at } => {
                    made.insert(id);
                    gone.extend(present.subtree(at));
                }
                Change::Remove { at } => drop(gone.insert(at)),
                Change::Obstacle { .. } => {}
            }
        }
        let mut builder = Builder::default();
        let (mut id, mut at) = (0, 0);
        loop {
            let (new, old) = (wanted.get(id), present.get(at));
            let is_new = match (new, old) {
                (None, None) => return Ok(builder.finish()),
                (Some(new), Some(old)) => new.path <= old.path,
                (new, _) => new.is_some(),
            };
            let is_both = new.zip(old).is_some_and(|(new, old)| new.path == old.path);
            let entry = match (new, old) {
                (Some(new), _) if is_new && made.contains(&id) => Some(new),
                (_, Some(old)) if (is_both || !is_new) && !gone.contains(&at) => Some(old),
                _ => None,
            };
            entry.into_iter().try_for_each(|entry| builder.add(entry))?;
            id += u32::from(is_new);
            at += u32::from(is_both || !is_new);
        }
    }

    /// Takes all contents from the store of an earlier run, and none from the sender.
    pub(in crate::engine) fn recall(&mut self) {
        let fetch = std::mem::take(&mut self.fetch);
        // Damage by a power cut is no change of that run.
        self.adjust.extend(
            fetch.iter().filter(|fetch| !fetch.is_doubted).map(|fetch| Step::Recall { id: fetch.id }),
        );
    }
}
