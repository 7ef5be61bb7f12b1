//! The lister takes in an offer and asks for nothing: a receiver that has no destination.
//!
//! ```text
//! Subject   Entries… Offered ─► Finished
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::contract::{Engine, Input, Output};
use crate::engine::outbox::Outbox;
use crate::tree::manifest::{Builder, Manifest};
use crate::wire::message::{AbortKind, FromReceiver, FromSender, Subject, Tally};

/// An offer that has arrived.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The offered object.
    pub subject: Subject,
    /// The entries below it, or the one entry that it is.
    pub manifest: Arc<Manifest>,
}

/// The place where a lister leaves the offer.
pub type Listing = Arc<Mutex<Option<Listed>>>;

/// A work of the lister: there is none.
#[derive(Debug, Clone, Copy)]
pub enum NoWork {}

/// The side that only wants to know what there is.
#[derive(Debug)]
pub struct Lister {
    outbox: Outbox<FromReceiver, NoWork>,
    subject: Option<Subject>,
    builder: Builder,
    listing: Listing,
}

impl Lister {
    /// Makes a lister that waits for an offer, and leaves it there.
    #[must_use]
    pub fn new(listing: Listing) -> Self {
        Self { outbox: Outbox::new(false), subject: None, builder: Builder::default(), listing }
    }

    fn message(&mut self, message: FromSender) {
        match message {
            FromSender::Common(common) => self.outbox.common(common),
            FromSender::Subject(subject) if self.subject.is_none() && subject != Subject::Several => {
                self.subject = Some(subject);
            }
            _ if self.subject.is_none() => self.outbox.protocol_error("an offer out of turn"),
            FromSender::Entries(block) => {
                if let Err(error) = self.builder.push(&block) {
                    self.outbox.fail(AbortKind::Protocol, error.to_string());
                }
            }
            FromSender::Offered { .. } => self.offered(),
            FromSender::Owners(_)
            | FromSender::Root(_)
            | FromSender::Ignores(_)
            | FromSender::Pushed(_)
            | FromSender::Sampled(_)
            | FromSender::Holes(_) => {}
            FromSender::Scope(_)
            | FromSender::Subject(_)
            | FromSender::Baseline { .. }
            | FromSender::Changes(_)
            | FromSender::Changed { .. }
            | FromSender::Same { .. }
            | FromSender::Removed
            | FromSender::Answers(_) => self.outbox.protocol_error("an answer to nothing"),
        }
    }

    /// Leaves the offer in its place, and ends the run.
    fn offered(&mut self) {
        let Some(subject) = self.subject.clone() else { return };
        let manifest = Arc::new(std::mem::take(&mut self.builder).finish());
        let tally = Tally {
            entries: manifest.len() as u64,
            total_bytes: manifest.content_bytes(),
            ..Tally::default()
        };
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Listed { subject, manifest });
        self.outbox.send(FromReceiver::Finished(tally));
        self.outbox.finish(tally);
    }
}

impl Engine for Lister {
    type Incoming = FromSender;
    type Outgoing = FromReceiver;
    type Work = NoWork;
    type Outcome = NoWork;

    fn input(&mut self, input: Input<FromSender, NoWork>) {
        if self.outbox.ended.is_some() {
            return;
        }
        match input {
            Input::Message(message) => self.message(message),
            Input::Outcome(none) => match none {},
            Input::Closed(cause) => self.outbox.peer_failed(AbortKind::Connection, cause),
            Input::Broken(kind, cause) => self.outbox.fail(kind, cause),
        }
    }

    fn poll(&mut self) -> Output<FromReceiver, NoWork> {
        self.outbox.next().unwrap_or(Output::Wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Entry, Kind, Time};
    use crate::tree::path::TreePath;
    use crate::wire::message::Common;

    fn fed(messages: Vec<FromSender>) -> (Option<Listed>, Vec<Output<FromReceiver, NoWork>>) {
        let listing = Listing::default();
        let mut lister = Lister::new(Arc::clone(&listing));
        messages.into_iter().for_each(|message| lister.input(Input::Message(message)));
        let outputs = [lister.poll(), lister.poll()].into();
        (listing.lock().unwrap().clone(), outputs)
    }

    fn file() -> FromSender {
        FromSender::Subject(Subject::File { name: b"a".to_vec() })
    }

    #[test]
    fn an_offer_is_left_in_its_place_and_nothing_asked_for() {
        let kind = Kind::File { size: 5, hash: None };
        let mtime = Time::new(7, 0).unwrap();
        let path = TreePath::new(&b"a"[..]).unwrap();
        let entry = Entry { path, kind, mode: 0o644, mtime, attributes: None };
        let blocks: Vec<Vec<u8>> = Manifest::new(vec![entry]).unwrap().blocks().collect();
        let entries = blocks.into_iter().map(|block| FromSender::Entries(block.into()));
        let messages = [file()].into_iter().chain(entries).chain([FromSender::Offered { complete: true }]);
        let (listed, outputs) = fed(messages.collect());
        let manifest = listed.unwrap().manifest;
        assert_eq!((manifest.len(), manifest.content_bytes()), (1, 5));
        assert!(matches!(&outputs[0], Output::Send(FromReceiver::Finished(tally)) if tally.entries == 1));
        assert!(matches!(&outputs[1], Output::Done(Ok(summary)) if summary.tally.total_bytes == 5));
    }

    #[test]
    fn messages_out_of_turn_end_the_listing() {
        for messages in [
            vec![FromSender::Offered { complete: true }],
            vec![file(), file()],
            vec![FromSender::Subject(Subject::Several)],
            vec![file(), FromSender::Entries(vec![0xff; 9].into())],
            vec![file(), FromSender::Answers(Vec::new())],
            vec![file(), FromSender::Scope(Vec::new())],
        ] {
            let told = format!("{messages:?}");
            let (listed, outputs) = fed(messages);
            assert!(listed.is_none(), "{told}");
            let is_abort = |output: &Output<FromReceiver, NoWork>| {
                matches!(output, Output::Send(FromReceiver::Common(Common::Abort { .. })))
            };
            assert!(outputs.iter().any(is_abort), "{told}: {outputs:?}");
        }
    }
}
