//! The brake: which deletions need consent. A pure decision table.
//!
//! | what | rule |
//! |---|---|
//! | a directory that a machine cannot do without | stops, unless it is named (`--force-delete-in`) |
//! | consent (`--yes`, or the directory is named) | releases all that follows |
//! | an answer at a terminal, and no more would go than it was about | releases all that follows |
//! | more than `--max-delete` allows | stops |
//! | deletions that a watch saw as they happened | pass |
//! | the session's VM is another one than at the last time | stops |
//! | the source is empty, or on another filesystem, and was not | stops |
//! | the destination was never a copy of this source | stops |
//! | at least [`MANY`] entries, more than half of the destination, and no `--max-delete` | stops |
//!
//! For the last row an entry that only gets another name does not count.

use crate::engine::work::Destination;
use crate::monitor::Reason;
use crate::tree::place::{Pair, Place};
use crate::wire::hello::Consent;

/// Fewer deletions than this never need consent for their number.
pub(super) const MANY: u64 = 10;

/// What the decision is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// Entries that would go.
    pub(super) going: u64,
    /// Those of them that do not merely get another name.
    pub(super) lost: u64,
    /// Entries of the destination that rules do not protect.
    pub(super) held: u64,
    /// What is known of both sides.
    pub(super) known: Known,
    /// Whether the source holds nothing.
    pub(super) is_empty: bool,
    /// Which directory the source is.
    pub(super) source: Place,
    /// Whether the source saw these deletions as they happened.
    pub(super) is_seen: bool,
    /// Whether everything that is listed may go.
    pub(super) yes: bool,
    /// How many entries somebody who was asked agreed to.
    pub(super) agreed: Option<u64>,
    /// How many entries may go.
    pub(super) max_delete: Option<u64>,
    /// Whether the destination is a directory that a machine cannot do without.
    pub(super) is_protected: bool,
    /// Whether the destination was named as one in which deletions are allowed.
    pub(super) is_forced: bool,
}

/// What is known of the two sides of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Known {
    /// The pair, if the destination still is what it was then.
    pub(super) pair: Option<Pair>,
    /// Whether the session's VM is another one than then.
    pub(super) is_other_machine: bool,
}

impl Known {
    /// What the baseline says of this source and this destination.
    pub(super) fn of(source: &Place, destination: &Destination) -> Self {
        let baseline = &destination.baseline;
        let (pair, session) = (baseline.pair, baseline.session);
        let is_other_machine = pair.zip(session).is_some_and(|(pair, session)| {
            let (then, now) = if session.is_source {
                (&pair.source, source)
            } else {
                (&pair.destination, &destination.place)
            };
            session.is_other || then.is_of_another_boot(now)
        });
        let is_other_destination = is_other_machine && session.is_some_and(|session| !session.is_source);
        let is_there = |pair: &Pair| {
            !is_other_destination
                && !destination.is_new
                && pair.destination.is_same_directory(&destination.place)
        };
        Self { pair: pair.filter(is_there), is_other_machine }
    }
}

/// Fills in what is known of consent and destination.
pub(super) fn facts(consent: &Consent, destination: &Destination, source: Place, known: Known) -> Facts {
    Facts {
        known,
        source,
        yes: consent.yes,
        agreed: consent.agreed,
        max_delete: consent.max_delete,
        is_protected: destination.is_protected,
        is_forced: destination.is_forced,
        ..Facts::default()
    }
}

/// Why these deletions need consent; `None` where they may be done.
pub(super) fn decide(facts: &Facts) -> Option<Reason> {
    let Facts { going, lost, held, known, .. } = *facts;
    if going == 0 {
        return None;
    }
    if facts.is_protected && !facts.is_forced {
        return Some(Reason::Protected);
    }
    // Between question and answer more may have come to go.
    let is_agreed = facts.agreed.is_some_and(|agreed| going <= agreed);
    if facts.yes || is_agreed || facts.is_forced {
        return None;
    }
    if let Some(limit) = facts.max_delete.filter(|&limit| going > limit) {
        return Some(Reason::Limit { limit });
    }
    if facts.is_seen {
        return None;
    }
    if known.is_other_machine {
        return Some(Reason::OtherMachine);
    }
    let Some(pair) = known.pair else { return Some(Reason::Foreign) };
    if facts.is_empty && !pair.was_empty {
        return Some(Reason::Emptied);
    }
    if pair.source.filesystem != facts.source.filesystem {
        return Some(Reason::OtherFilesystem);
    }
    let is_most = lost >= MANY && lost > held / 2;
    (facts.max_delete.is_none() && is_most).then_some(Reason::Most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hello::{Baseline, InSession};

    const HERE: Place = Place { filesystem: 1, directory: 2, boot: 4 };
    const PAIR: Pair = Pair { source: HERE, destination: HERE, was_empty: false, is_own: true };

    /// Stands for: everything that goes only gets another name.
    const RENAMED: u64 = u64::MAX;

    /// Nine of a hundred entries of a known copy.
    fn harmless() -> Facts {
        let known = Known { pair: Some(PAIR), is_other_machine: false };
        Facts { going: 9, held: 100, known, source: HERE, ..Facts::default() }
    }

    #[test]
    fn every_row_of_the_table_decides() {
        let unknown = Known::default();
        let other_machine = Known { is_other_machine: true, ..harmless().known };
        let elsewhere = Place { filesystem: 9, ..HERE };
        let was_empty = Known { pair: Some(Pair { was_empty: true, ..PAIR }), ..harmless().known };
        let protected = Facts { is_protected: true, ..harmless() };
        for (facts, reason) in [
            (harmless(), None),
            (Facts { going: 0, known: unknown, is_empty: true, ..harmless() }, None),
            // Protected directories.
            (protected, Some(Reason::Protected)),
            (Facts { yes: true, ..protected }, Some(Reason::Protected)),
            (Facts { is_seen: true, ..protected }, Some(Reason::Protected)),
            (Facts { is_forced: true, ..protected }, None),
            (Facts { going: 0, ..protected }, None),
            // --max-delete.
            (Facts { max_delete: Some(8), ..harmless() }, Some(Reason::Limit { limit: 8 })),
            (Facts { max_delete: Some(9), ..harmless() }, None),
            (Facts { max_delete: Some(0), going: 1, ..harmless() }, Some(Reason::Limit { limit: 0 })),
            (Facts { max_delete: Some(0), is_seen: true, ..harmless() }, Some(Reason::Limit { limit: 0 })),
            (Facts { max_delete: Some(8), yes: true, ..harmless() }, None),
            // An answer.
            (Facts { agreed: Some(9), ..protected }, Some(Reason::Protected)),
            (Facts { agreed: Some(9), max_delete: Some(8), ..harmless() }, None),
            (Facts { agreed: Some(8), max_delete: Some(8), ..harmless() }, Some(Reason::Limit { limit: 8 })),
            (Facts { going: 1, agreed: Some(1), known: unknown, ..harmless() }, None),
            (Facts { going: 2, agreed: Some(1), known: unknown, ..harmless() }, Some(Reason::Foreign)),
            (Facts { going: 2, agreed: Some(1), is_empty: true, ..harmless() }, Some(Reason::Emptied)),
            // More than half, and at least ten.
            (Facts { going: 9, held: 9, ..harmless() }, None),
            (Facts { going: 10, held: 10, ..harmless() }, Some(Reason::Most)),
            (Facts { going: 10, held: 19, ..harmless() }, Some(Reason::Most)),
            (Facts { going: 10, held: 20, ..harmless() }, None),
            (Facts { going: 11, held: 21, ..harmless() }, Some(Reason::Most)),
            (Facts { going: 10, held: 10, max_delete: Some(10), ..harmless() }, None),
            (Facts { going: 10, held: 10, yes: true, ..harmless() }, None),
            (Facts { going: 10, held: 10, is_seen: true, ..harmless() }, None),
            (Facts { going: 10, held: 10, lost: RENAMED, ..harmless() }, None),
            // A destination that ksync did not make.
            (Facts { going: 1, known: unknown, ..harmless() }, Some(Reason::Foreign)),
            (Facts { going: 1, known: unknown, max_delete: Some(5), ..harmless() }, Some(Reason::Foreign)),
            (Facts { going: 1, known: unknown, yes: true, ..harmless() }, None),
            (Facts { going: 1, known: unknown, is_forced: true, ..harmless() }, None),
            (Facts { going: 1, known: unknown, is_seen: true, ..harmless() }, None),
            // A source that is empty, or elsewhere.
            (Facts { going: 1, is_empty: true, ..harmless() }, Some(Reason::Emptied)),
            (Facts { going: 1, is_empty: true, known: was_empty, ..harmless() }, None),
            (Facts { going: 1, is_empty: true, yes: true, ..harmless() }, None),
            (Facts { going: 1, source: elsewhere, ..harmless() }, Some(Reason::OtherFilesystem)),
            (Facts { going: 1, source: Place { directory: 9, ..HERE }, ..harmless() }, None),
            // Another VM.
            (Facts { going: 1, known: other_machine, ..harmless() }, Some(Reason::OtherMachine)),
            (Facts { known: other_machine, is_empty: true, ..harmless() }, Some(Reason::OtherMachine)),
            (Facts { known: other_machine, yes: true, ..harmless() }, None),
        ] {
            // Where a row does not say so, nothing only gets another name.
            let lost = if facts.lost == RENAMED { 0 } else { facts.going };
            let facts = Facts { lost, ..facts };
            assert_eq!(decide(&facts), reason, "{facts:?}");
        }
    }

    #[test]
    fn a_pair_is_known_as_long_as_the_destination_is_the_same() {
        let known = |pair, session, source, place| {
            let baseline = Baseline { pair, session };
            Known::of(&source, &Destination { place, baseline, ..Destination::default() })
        };
        let rebooted = Place { boot: 9, ..HERE };
        let replaced = Place { directory: 9, ..HERE };
        let pull = |is_other| Some(InSession { is_source: true, is_other });
        let push = |is_other| Some(InSession { is_source: false, is_other });
        let pair = Some(PAIR);
        for (one, other, expected) in [
            // A machine of one's own may be started anew.
            (known(pair, None, HERE, HERE), known(pair, None, rebooted, rebooted), (true, false)),
            (known(pair, None, HERE, replaced), known(None, None, HERE, HERE), (false, false)),
            (
                known(pair, pull(false), HERE, rebooted),
                known(pair, push(false), rebooted, HERE),
                (true, false),
            ),
            // A session's VM may not.
            (known(pair, pull(true), HERE, HERE), known(pair, pull(false), rebooted, HERE), (true, true)),
            (known(pair, push(true), HERE, HERE), known(pair, push(false), HERE, rebooted), (false, true)),
            (known(None, push(true), HERE, HERE), known(None, pull(true), HERE, HERE), (false, false)),
        ] {
            for known in [one, other] {
                assert_eq!((known.pair.is_some(), known.is_other_machine), expected, "{known:?}");
            }
        }
        let is_new = Destination {
            is_new: true,
            place: HERE,
            baseline: Baseline { pair, session: None },
            ..Destination::default()
        };
        assert_eq!(Known::of(&HERE, &is_new).pair, None);
    }
}
