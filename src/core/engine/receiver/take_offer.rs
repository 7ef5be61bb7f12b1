//! The receiver's half that takes in the offer: in full, or as changes to the baseline.

use std::collections::HashSet;
use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::Receiver;
use super::offer::{Baseline, Pushed};
use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::engine::transfer::Target;
use crate::engine::work::ReceiverWork;
use crate::tree::change::{Change, ChangeError, Rebuild};
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::record;
use crate::tree::subtrees::{SUBTREES_MAX, Subtree, SubtreeSet};
use crate::wire::message::{AbortKind, FromReceiver, PUSHED_BYTES_MAX, SAMPLED_MAX, Subject};

impl<T: Target> Receiver<T> {
    // The subject.

    pub(super) fn subtrees(&mut self, subtrees: Vec<Subtree>) {
        self.offer.is_partial = true;
        self.offer.subtrees.extend(subtrees);
        if self.offer.subtrees.len() > SUBTREES_MAX {
            self.outbox.protocol_error("a scope of too many parts");
        }
    }

    pub(super) fn subject(&mut self, subject: Subject) {
        self.offer.subject = Some(subject.clone());
        let subtrees = std::mem::take(&mut self.offer.subtrees);
        if self.offer.is_partial && !self.is_directory() {
            return self.outbox.protocol_error("parts of what is no directory");
        }
        if !self.offer.is_partial && subject == Subject::Several {
            return self.outbox.protocol_error("several entries without their names");
        }
        let scope = if self.offer.is_partial { SubtreeSet::decode(subtrees).map(Some) } else { Ok(None) };
        let is_listed = |path: &TreePath| self.config.asked.binary_search(path).is_ok();
        let files = self.config.options.files.iter().flat_map(|files| &files.paths);
        let directories: HashSet<&[u8]> =
            files.filter(|(_, has_contents)| *has_contents).map(|(path, _)| path.as_slice()).collect();
        let is_in_listed = |path: &TreePath| {
            directories.contains(path.parent().as_ref().map_or(&b""[..], |parent| parent.as_bytes()))
        };
        let is_asked = |path: &TreePath| self.config.relay || is_listed(path) || is_in_listed(path);
        match scope {
            Ok(scope)
                if subject == Subject::Several
                    && !scope.iter().flat_map(SubtreeSet::subtrees).all(|(path, _)| is_asked(path)) =>
            {
                self.outbox.protocol_error("entries that nobody asked for");
            }
            Ok(scope) => {
                self.offer.scope.clone_from(&scope);
                self.outbox.start(ReceiverWork::Open { subject, scope, inaccessible: Vec::new() });
            }
            Err(error) => self.outbox.fail(AbortKind::Protocol, error.to_string()),
        }
    }

    pub(super) fn pushed(&mut self, files: Vec<(u32, Hash, ByteBuf)>) {
        let Pushed { files: held, bytes } = &mut self.offer.pushed;
        for (id, hash, data) in files {
            *bytes += data.len();
            held.insert(id, (hash, data.into_vec()));
        }
        if *bytes > PUSHED_BYTES_MAX {
            self.outbox.protocol_error("more contents along with an offer than allowed");
        }
    }

    // The full offer.

    pub(super) fn sampled(&mut self, files: Vec<(u32, Samples)>) {
        self.offer.samples.extend(files);
        if self.offer.samples.len() > SAMPLED_MAX {
            self.outbox.protocol_error("samples of too many files");
        }
    }

    pub(super) fn ignores(&mut self, files: Vec<IgnoreFile>) {
        self.offer.has_ignores = true;
        let _ = self.take_ignores(files);
    }

    pub(super) fn entries(&mut self, block: &[u8]) {
        if !self.pass_baseline() {
            return;
        }
        if let Err(error) = self.offer.builder.push(block) {
            self.outbox.fail(AbortKind::Protocol, error.to_string());
        }
    }

    pub(super) fn offered_all(&mut self, complete: bool) {
        if self.pass_baseline() {
            let manifest = std::mem::take(&mut self.offer.builder).finish();
            self.take_offer(manifest, complete);
        }
    }

    /// Ends the time for changes; `false` if some have arrived already.
    fn pass_baseline(&mut self) -> bool {
        match std::mem::replace(&mut self.offer.baseline, Baseline::Passed) {
            Baseline::Known(rebuild) if rebuild.unchanged().is_none() => {
                self.outbox.protocol_error("everything after a part of the changes");
                false
            }
            _ => true,
        }
    }

    // Changes.

    pub(super) fn baseline(&mut self, digest: Hash) {
        if !matches!(self.offer.baseline, Baseline::Unnamed) || self.offer.has_ignores {
            return self.outbox.protocol_error("a baseline out of turn");
        }
        self.offer.baseline = Baseline::Loading(digest);
        self.outbox.start(ReceiverWork::LoadBaseline(digest));
    }

    pub(super) fn loaded(&mut self, rebuild: Option<Rebuild>) {
        let Baseline::Loading(digest) = self.offer.baseline else {
            return;
        };
        match rebuild.filter(|rebuild| rebuild.unchanged() == Some(digest)) {
            Some(rebuild) => self.offer.baseline = Baseline::Known(Box::new(rebuild)),
            None => self.report_missing(),
        }
    }

    /// Asks for the full offer.
    fn report_missing(&mut self) {
        self.offer.baseline = Baseline::Missing;
        self.outbox.send(FromReceiver::BaselineMissing);
    }

    pub(super) fn changes(&mut self, change: &Change) {
        match &mut self.offer.baseline {
            Baseline::Known(rebuild) => match rebuild.apply(change) {
                Ok(()) => {}
                Err(ChangeError::Baseline) => self.report_missing(),
                Err(error) => self.outbox.fail(AbortKind::Protocol, error.to_string()),
            },
            Baseline::Missing => {}
            Baseline::Unnamed | Baseline::Loading(_) | Baseline::Passed => {
                self.outbox.protocol_error("changes of nothing");
            }
        }
    }

    pub(super) fn changed(&mut self, complete: bool, digest: Hash) {
        let rebuild = match std::mem::replace(&mut self.offer.baseline, Baseline::Passed) {
            Baseline::Known(rebuild) => rebuild,
            Baseline::Missing => return self.begin_again(),
            Baseline::Unnamed | Baseline::Loading(_) | Baseline::Passed => {
                return self.outbox.protocol_error("changes of nothing");
            }
        };
        let unchanged = rebuild.unchanged().filter(|_| !self.offer.has_ignores);
        let ignores = rebuild.ignores().to_vec();
        let manifest = match rebuild.finish() {
            Ok(manifest) => manifest,
            Err(ChangeError::Baseline) => {
                self.report_missing();
                return self.begin_again();
            }
            Err(error) => return self.outbox.fail(AbortKind::Protocol, error.to_string()),
        };
        if !self.offer.has_ignores && !self.take_ignores(ignores) {
            return;
        }
        // Ids are positions in the manifest, so both sides must have exactly the same one.
        let made = unchanged.unwrap_or_else(|| record::digest(&manifest, self.filter.files()));
        if made != digest {
            return self.outbox.protocol_error("changes that do not give what was announced");
        }
        self.offer.equals_baseline = unchanged.is_some();
        self.take_offer(manifest, complete);
    }

    /// All changes in flight have arrived; now the full offer follows.
    fn begin_again(&mut self) {
        self.offer.baseline = Baseline::Passed;
        self.offer.has_ignores = false;
        self.filter = self.config.options.protecting();
    }

    // Either kind of offer.

    /// Takes in ignore files; `false` if that ends the run.
    fn take_ignores(&mut self, files: Vec<IgnoreFile>) -> bool {
        let taken = files.into_iter().all(|file| self.filter.add(file));
        if !taken {
            self.outbox.protocol_error("more ignore files than allowed");
        }
        taken
    }

    fn take_offer(&mut self, manifest: Manifest, complete: bool) {
        if !self.offer.pushed.fit(&manifest) {
            return self.outbox.protocol_error("contents of what was not offered with that length");
        }
        self.offered = Arc::new(manifest);
        self.wanted = Arc::clone(&self.offered);
        self.offer.complete = Some(complete);
        self.compare_when_ready();
    }

    /// Stores the offer as the baseline of both sides, however this run ends. A run that is cut and
    /// begins again need not repeat the offer.
    pub(super) fn store_baseline(&mut self) {
        // Offering a single file takes fewer bytes than a digest.
        if self.offer.equals_baseline || self.offer.is_partial || !self.is_directory() {
            return;
        }
        self.offer.is_being_stored = true;
        let (manifest, ignores) = (Arc::clone(&self.offered), self.filter.files().to_vec());
        self.outbox.start(ReceiverWork::StoreBaseline { manifest, ignores });
    }
}
