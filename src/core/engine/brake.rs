//! The brake decides which deletions need consent. It is a pure decision table.
//!
//! | case | rule |
//! |---|---|
//! | a directory that a machine cannot do without | stops, unless named (`--force-delete-in`) |
//! | consent (`--yes`, or the directory is named) | releases all that follows |
//! | an answer at a terminal, and no more deletions than it covers | releases all that follows |
//! | more than `--max-delete` allows | stops |
//! | deletions that a watch saw as they happened | pass |
//! | the session's VM is not the same as last time | stops |
//! | the source is empty, or on another filesystem, and was not before | stops |
//! | the destination was never a copy of this source | stops |
//! | at least [`MANY`] entries, more than half of the destination, and no `--max-delete` | stops |
//!
//! For the last row an entry that is only renamed does not count.

use crate::engine::work::Destination;
use crate::monitor::Reason;
use crate::tree::tree_id::{Pair, TreeId};

/// Fewest deletions whose number alone may need consent.
pub(super) const MANY: u64 = 10;

/// Inputs of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// Entries that would be deleted.
    pub(super) going: u64,
    /// Entries among these that are not merely renamed.
    pub(super) lost: u64,
    /// Entries of the destination that rules do not protect.
    pub(super) held: u64,
    /// Facts from earlier runs about both sides, as far as they still hold.
    pub(super) known: KnownPair,
    /// True if the source holds nothing.
    pub(super) is_empty: bool,
    /// Identity of the source directory.
    pub(super) source: TreeId,
    /// True if the source saw these deletions as they happened.
    pub(super) is_seen: bool,
    /// True if every listed entry may be deleted.
    pub(super) yes: bool,
    /// Number of deletions that the user agreed to when asked.
    pub(super) agreed: Option<u64>,
    /// Most deletions that are allowed.
    pub(super) max_delete: Option<u64>,
    /// True if the destination is a directory that a machine cannot do without.
    pub(super) is_protected: bool,
    /// True if the user named the destination as one in which deletions are allowed.
    pub(super) is_forced: bool,
}

/// Facts from earlier runs about the two sides of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct KnownPair {
    /// The pair, if the destination is still the same one.
    pub(super) pair: Option<Pair>,
    /// True if the session's VM is no longer the same one.
    pub(super) is_other_machine: bool,
}

impl KnownPair {
    /// Evaluates the facts from earlier runs for this source and this destination.
    pub(super) fn of(source: &TreeId, destination: &Destination) -> Self {
        let history = &destination.history;
        let (pair, session) = (history.pair, history.session);
        let is_other_machine = pair.zip(session).is_some_and(|(pair, session)| {
            let (then, now) = if session.is_source {
                (&pair.source, source)
            } else {
                (&pair.destination, &destination.tree_id)
            };
            session.is_other || then.is_of_another_boot(now)
        });
        let is_other_destination = is_other_machine && session.is_some_and(|session| !session.is_source);
        let is_there = |pair: &Pair| {
            !is_other_destination
                && !destination.is_new
                && pair.destination.is_same_directory(&destination.tree_id)
        };
        Self { pair: pair.filter(is_there), is_other_machine }
    }
}

/// Decides why these deletions need consent; `None` where they are allowed.
pub(super) fn decide(facts: &Facts) -> Option<Reason> {
    let Facts { going, lost, held, known, .. } = *facts;
    if going == 0 {
        return None;
    }
    if facts.is_protected && !facts.is_forced {
        return Some(Reason::Protected);
    }
    // The number of deletions may have grown between question and answer.
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
    use crate::wire::hello::{History, InSession};

    const HERE: TreeId = TreeId { filesystem: 1, directory: 2, boot: 4 };
    const PAIR: Pair = Pair { source: HERE, destination: HERE, was_empty: false, is_own: true };

    /// Marks a row in which every deleted entry is only renamed.
    const RENAMED: u64 = u64::MAX;

    /// Nine of a hundred entries of a known copy.
    fn harmless() -> Facts {
        let known = KnownPair { pair: Some(PAIR), is_other_machine: false };
        Facts { going: 9, held: 100, known, source: HERE, ..Facts::default() }
    }

    #[test]
    fn every_row_of_the_table_decides() {
        let unknown = KnownPair::default();
        let other_machine = KnownPair { is_other_machine: true, ..harmless().known };
        let elsewhere = TreeId { filesystem: 9, ..HERE };
        let was_empty = KnownPair { pair: Some(Pair { was_empty: true, ..PAIR }), ..harmless().known };
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
            // A source that is empty, or on another filesystem.
            (Facts { going: 1, is_empty: true, ..harmless() }, Some(Reason::Emptied)),
            (Facts { going: 1, is_empty: true, known: was_empty, ..harmless() }, None),
            (Facts { going: 1, is_empty: true, yes: true, ..harmless() }, None),
            (Facts { going: 1, source: elsewhere, ..harmless() }, Some(Reason::OtherFilesystem)),
            (Facts { going: 1, source: TreeId { directory: 9, ..HERE }, ..harmless() }, None),
            // Another VM.
            (Facts { going: 1, known: other_machine, ..harmless() }, Some(Reason::OtherMachine)),
            (Facts { known: other_machine, is_empty: true, ..harmless() }, Some(Reason::OtherMachine)),
            (Facts { known: other_machine, yes: true, ..harmless() }, None),
        ] {
            // In rows without the mark, no entry is merely renamed.
            let lost = if facts.lost == RENAMED { 0 } else { facts.going };
            let facts = Facts { lost, ..facts };
            assert_eq!(decide(&facts), reason, "{facts:?}");
        }
    }

    #[test]
    fn pair_is_known_while_the_destination_is_the_same() {
        let known = |pair, session, source, tree_id| {
            let history = History { pair, session };
            KnownPair::of(&source, &Destination { tree_id, history, ..Destination::default() })
        };
        let rebooted = TreeId { boot: 9, ..HERE };
        let replaced = TreeId { directory: 9, ..HERE };
        let pull = |is_other| Some(InSession { is_source: true, is_other });
        let push = |is_other| Some(InSession { is_source: false, is_other });
        let pair = Some(PAIR);
        for (one, other, expected) in [
            // The user's own machine may be rebooted.
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
            tree_id: HERE,
            history: History { pair, session: None },
            ..Destination::default()
        };
        assert_eq!(KnownPair::of(&HERE, &is_new).pair, None);
    }
}
