//! The sender's half that removes from its source what the receiver has in place.

use super::Sender;
use crate::engine::error::WorkError;
use crate::engine::transfer::Source;
use crate::engine::work::SenderWork;
use crate::monitor::Event;
use crate::tree::entry::Kind;
use crate::wire::message::FromSender;

impl<S: Source> Sender<S> {
    /// Removes entries that the receiver has in place.
    pub(super) fn remove(&mut self, entries: Vec<(u32, u64)>, is_last: bool) {
        if !self.removal.is_wanted || self.removal.is_complete || self.unanswered > 0 {
            return self.outbox.protocol_error("entries to remove that nobody asked for");
        }
        let manifest = self.manifest.clone().unwrap_or_default();
        let is_removable = |id: u32| {
            let kind = manifest.get(id).map(|entry| entry.kind);
            kind.is_some_and(|kind| !matches!(kind, Kind::Directory) && !kind.is_special())
        };
        if !entries.iter().all(|(id, _)| is_removable(*id) && self.removal.named.insert(*id)) {
            return self.outbox.protocol_error("an entry to remove that is no offered file or link");
        }
        self.removal.is_complete = is_last;
        if let Some(source) = self.source.clone() {
            self.removal.works += 1;
            self.outbox.start(SenderWork::Remove { source, entries });
        }
    }

    pub(super) fn removed(&mut self, results: Vec<(u32, Result<bool, WorkError>)>) {
        self.removal.works -= 1;
        for (id, result) in results {
            match result {
                Ok(is_removed) if is_removed && self.removal.lists => {
                    self.outbox.report(Event::SourceRemoved { path: self.path(id) });
                }
                Ok(_) => {}
                Err(error) => {
                    if !self.outbox.report_error(self.path(id), error) {
                        return;
                    }
                }
            }
        }
        if self.removal.works == 0 && self.removal.is_complete {
            self.outbox.send(FromSender::Removed);
        }
    }
}
