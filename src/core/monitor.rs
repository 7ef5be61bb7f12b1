//! Events of a run, for observers. The engine reports them; it knows no terminal.

use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::tree::attributes::AttributesDiffer;
use crate::tree::plan_state::PlanState;
use crate::tree::tree_id::Pair;

/// The kind of a change in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// A new entry is created.
    Create,
    /// A content or link is replaced.
    Update,
    /// Only mode or time are set.
    Adjust,
    /// An entry is removed.
    Delete,
    /// A new entry is made from one of a basis directory, with other metadata.
    Copy,
}

/// The kind of an entry in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket, a device.
    Special,
}

/// The differences between two entries of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Differs {
    /// Different lengths; files only.
    pub size: bool,
    /// Different modification times.
    pub time: bool,
    /// Different mode bits, of those that are compared.
    pub mode: bool,
    /// Different owner, group, ACLs or extended attributes, if they are compared.
    pub attributes: Letters,
}

/// Differing attributes: the letters that rsync lists for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Letters(u8);

impl Letters {
    /// The owner (`o`).
    pub const OWNER: Self = Self(1);
    /// The group (`g`).
    pub const GROUP: Self = Self(2);
    /// ACLs (`a`).
    pub const ACL: Self = Self(4);
    /// Extended attributes (`x`).
    pub const XATTR: Self = Self(8);

    /// Those of these that differ.
    #[must_use]
    pub fn of(differs: AttributesDiffer) -> Self {
        let AttributesDiffer { owner, group, acl, xattr } = differs;
        let all = [(owner, Self::OWNER), (group, Self::GROUP), (acl, Self::ACL), (xattr, Self::XATTR)];
        Self(all.iter().filter(|(differs, _)| *differs).map(|(_, letter)| letter.0).sum())
    }

    /// True if this letter is among them.
    #[must_use]
    pub fn has(self, letter: Self) -> bool {
        self.0 & letter.0 != 0
    }
}

/// Maximum number of paths that [`Braked`] names.
pub const HEAD_MAX: usize = 10;

/// The reason why deletions need consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The destination is a directory that a machine needs.
    Protected,
    /// `--max-delete` allows fewer deletions.
    Limit {
        /// The maximum that it allows.
        limit: u64,
    },
    /// The VM is not the one of the last sync.
    OtherMachine,
    /// The source is empty and was not before.
    Emptied,
    /// The source is on another filesystem than before.
    OtherFilesystem,
    /// The destination was never a copy of this source made by ksync.
    Foreign,
    /// More than half of the destination would be deleted.
    Most,
}

/// Deletions that wait for consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Braked {
    /// The reason.
    pub reason: Reason,
    /// Number of entries that would be deleted.
    pub going: u64,
    /// Number of entries in the destination that rules do not protect.
    pub held: u64,
    /// The first [`HEAD_MAX`] entries that would be deleted.
    pub head: Vec<Doomed>,
}

/// An entry that would be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    /// The kind of the entry.
    pub what: What,
    /// The path as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// The cause of a problem with one entry, or with a part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProblemKind {
    /// The source could not be read.
    Unreadable,
    /// The source vanished after it was listed.
    Vanished,
    /// The source changed while it was read.
    Changed,
    /// The destination could not be written.
    Unwritable,
    /// The destination changed during the run and was left alone.
    Conflict,
    /// An existing entry blocks the path, and may not be removed.
    Obstacle,
    /// The received content does not have the announced hash.
    Corrupt,
    /// Nothing was deleted, because the list of entries to keep is not complete.
    NotDeleted,
    /// A directory of the destination could not be listed, so its entries stay.
    Unlisted,
    /// The destination refused a mode, a time or an owner; the content is in place.
    Refused,
    /// A file or link of the source was not removed.
    NotRemoved,
}

/// A problem that did not end the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The kind of the problem.
    pub kind: ProblemKind,
    /// The path as bytes; empty for the root.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The cause in words.
    pub cause: String,
}

/// Content that the receiver has written, of all that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Written {
    /// Files that are settled: in place, or given up.
    pub files: u64,
    /// Files whose content is missing or must be verified.
    pub total_files: u64,
    /// Bytes of content that travelled and are written.
    pub bytes: u64,
    /// Bytes of content that has to travel, as far as is known. Content that the destination
    /// already has counts until it is found there.
    pub total_bytes: u64,
}

/// An event of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The receiver resolved the destination path.
    Resolved {
        /// Absolute path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// A side has listed its tree.
    Scanned {
        /// Number of entries found.
        entries: u64,
        /// Bytes in regular files.
        bytes: u64,
    },
    /// Rules excluded entries of the source.
    Excluded {
        /// Number of excluded entries; a directory counts once.
        entries: u64,
    },
    /// More content is known to be missing.
    Planned {
        /// Additional files.
        files: u64,
        /// Additional bytes. [`Event::Matched`] subtracts those that are found in the destination.
        bytes: u64,
    },
    /// One change; reported only if the options ask for a list of changes. A dry run reports the
    /// plan, in the order of rsync's list. A run reports each change after it has happened.
    Change {
        /// The kind of the change.
        action: Action,
        /// The kind of the entry.
        what: What,
        /// The differences to the old entry, if there is one.
        differs: Differs,
        /// The path as bytes; empty for the root.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// The target of a link, or the path whose further name an entry becomes; else empty.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    /// The transfer of a file's content begins.
    Began {
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// This side has sent or received content. [`Event::Written`] counts what is written.
    Moved {
        /// Bytes of content.
        bytes: u64,
    },
    /// The destination already has some of the planned content.
    Matched {
        /// Bytes of content.
        bytes: u64,
    },
    /// A problem occurred, and the run continues.
    Problem(Problem),
    /// A destination entry that left the source was kept, because `--delete` is off. Reported by
    /// the rounds of a watch. For a directory that left the source, its content is not reported.
    Left {
        /// The kind of the entry.
        what: What,
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// The watch misses changes, so the whole tree is scanned at intervals.
    Polling {
        /// The cause and a remedy.
        cause: String,
    },
    /// Deletions wait for consent: the run does everything else and deletes nothing.
    Braked(Braked),
    /// The pair of source and copy, for the client to store.
    Paired(Pair),
    /// A file grew while it was read. Its content at the time of the listing was transferred.
    Grew {
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Directories of the source that have the name of ksync's state directories were excluded.
    StateExcluded {
        /// Number of directories.
        directories: u64,
    },
    /// Links that are absolute or lead out of the tree were excluded.
    LinksExcluded {
        /// Number of links.
        links: u64,
        /// The path of the first as bytes.
        #[serde(with = "serde_bytes")]
        first: Vec<u8>,
    },
    /// Progress of the content: as soon as it is known what is missing, then now and then.
    Written(Written),
    /// A file of the destination got another name, since the source has it there. Two changes say
    /// the same: its old name is deleted, and the new one created. Reported only if the options ask
    /// for a list of changes.
    Renamed {
        /// The old path as bytes.
        #[serde(with = "serde_bytes")]
        from: Vec<u8>,
        /// The new path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Devices were passed over, since only the superuser can make them.
    DevicesPassedOver {
        /// Number of devices.
        devices: u64,
        /// The path of the first as bytes.
        #[serde(with = "serde_bytes")]
        first: Vec<u8>,
    },
    /// A directory of `--compare-dest`, `--copy-dest` or `--link-dest` does not exist.
    BasisMissing {
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Entries were passed over, since the options do not copy their kind.
    NonRegularSkipped {
        /// Number of entries.
        entries: u64,
        /// The path of the first as bytes.
        #[serde(with = "serde_bytes")]
        first: Vec<u8>,
    },
    /// A file or link was removed from the source; reported only if the options ask for a list of
    /// changes. A dry run reports what a run would remove.
    SourceRemoved {
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// The state of both sides, to which a plan is bound.
    Bound(PlanState),
    /// A run whose changes can be undone.
    Stored {
        /// Names the run: milliseconds since 1970.
        run: u64,
        /// Number of files that it replaced or deleted.
        files: u64,
        /// Bytes in these files.
        bytes: u64,
    },
}

/// A preparation that may take a while, before any transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// The platform's API is asked for the session.
    LookUp,
    /// The session's VM is set up.
    SetUp,
    /// A bridge is sent to the session's VM, which has none.
    BringBridge,
}

/// A warning for the user, before the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The event to come, and its cause.
    pub what: String,
    /// The remedy.
    pub hint: String,
}

/// A fact about the session of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The session to which the endpoint's name leads, before anything is written there.
    Session {
        /// The session's id.
        session_id: String,
        /// The domain of its VM.
        vm_domain: String,
    },
    /// The state of the session's keep-alive.
    KeepAlive(Awake),
    /// A connection to another machine is there.
    Connected {
        /// Round trips until the other side could answer.
        round_trips: u32,
        /// The time of one round trip.
        round_trip: Duration,
        /// True if it was kept by an earlier run.
        is_kept: bool,
    },
    /// The agent on the other machine has answered.
    Agent {
        /// Bytes of the agent that had to be installed first; 0 if it was there.
        installed_bytes: u64,
    },
    /// The API makes ksync wait.
    Wait {
        /// The reason and the next step.
        what: String,
        /// The time until the next step.
        wait: Duration,
    },
}

/// State of a keep-alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awake {
    /// The user turned it off.
    Off,
    /// It holds the session. The platform bills the time.
    Held,
    /// It does not hold the session any more, or not yet: the consequence, and the remedy.
    Lost(Warning),
    /// It holds the session again, after the warning.
    Back,
}

/// Observes a run. Called from the threads of an exchange, so it must be quick.
pub trait Monitor: Sync {
    /// Takes an event.
    fn observe(&self, event: Event);

    /// Called only by this side, before the exchange starts.
    fn prepare(&self, _preparation: Preparation) {}

    /// Called only by this side, at any time.
    fn warn(&self, _warning: Warning) {}

    /// Called only by this side, at any time.
    fn notice(&self, _notice: Notice) {}
}

/// An observer that ignores all events.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Monitor for Quiet {
    fn observe(&self, _event: Event) {}
}

/// Keeps every event, for tests.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// All events so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().map(|events| events.clone()).unwrap_or_default()
    }
}

impl Monitor for Recorder {
    fn observe(&self, event: Event) {
        if let Ok(mut events) = self.0.lock() {
            events.push(event);
        }
    }
}
