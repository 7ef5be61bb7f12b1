//! What happens, told to whoever looks on. The engine reports; it knows no terminal.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::tree::place::Pair;

/// How a change shows in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Something new is made.
    Create,
    /// A content or link is replaced.
    Update,
    /// Only mode or time are set.
    Adjust,
    /// Something is removed.
    Delete,
}

/// What a thing in a list is.
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

/// In what two entries of one path differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Differs {
    /// In length: files only.
    pub size: bool,
    /// In modification time.
    pub time: bool,
    /// In the mode bits that count.
    pub mode: bool,
}

/// Most paths that [`Braked`] names.
pub const HEAD_MAX: usize = 10;

/// Why deletions need consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The destination is a directory that a machine cannot do without.
    Protected,
    /// More than `--max-delete` allows.
    Limit {
        /// What it allows.
        limit: u64,
    },
    /// The VM is another one than at the last time.
    OtherMachine,
    /// The source is empty and was not.
    Emptied,
    /// The source is on another filesystem than it was.
    OtherFilesystem,
    /// The destination was never a copy of this source made by ksync.
    Foreign,
    /// More than half of the destination.
    Most,
}

/// Deletions that wait for consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Braked {
    /// Why.
    pub reason: Reason,
    /// Entries that would go.
    pub going: u64,
    /// Entries of the destination that rules do not protect.
    pub held: u64,
    /// The first [`HEAD_MAX`] of those that would go.
    pub head: Vec<Doomed>,
}

/// An entry that would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    /// What it is.
    pub what: What,
    /// The path as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// Why one entry, or a part of a run, could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
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
    /// Something that may not be removed stands in the way.
    Obstacle,
    /// What arrived does not have the hash that was announced.
    Corrupt,
    /// A link that leads out of its tree was left out.
    Unsafe,
    /// A kind of entry that no tree can hold: a pipe, a socket, a device.
    Unsupported,
    /// Nothing was deleted, since the list of what to keep is not complete.
    NotDeleted,
    /// A directory of the destination could not be listed, so what is in it stays.
    Unlisted,
}

/// One thing that went wrong without ending the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong.
    pub trouble: Trouble,
    /// The path it happened to, as bytes; empty where it is the root.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The cause in words.
    pub cause: String,
}

/// What happens in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The receiver found where the tree goes: the resolved destination.
    Resolved {
        /// Absolute path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// A side has listed its tree.
    Scanned {
        /// Entries found.
        entries: u64,
        /// Bytes in regular files.
        bytes: u64,
    },
    /// Entries of the source were left out by rules.
    Excluded {
        /// How many; a directory counts once.
        entries: u64,
    },
    /// Further content is known to be missing.
    Planned {
        /// Files more.
        files: u64,
        /// Bytes more; what is found in the destination is taken off with [`Event::Matched`].
        bytes: u64,
    },
    /// One decision, in path order; told when changes are to be listed.
    Change {
        /// What is done.
        action: Action,
        /// To what.
        what: What,
        /// In what the old one differs, where there is one.
        differs: Differs,
        /// The path as bytes; empty where it is the root.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// A file's content begins to travel.
    Began {
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Content travelled.
    Moved {
        /// Bytes of content.
        bytes: u64,
    },
    /// Planned content need not travel: the destination has it.
    Matched {
        /// Bytes of content.
        bytes: u64,
    },
    /// Something went wrong and the run goes on.
    Problem(Problem),
    /// Something that the source does not have any more stays, since nothing is to be deleted. Told by rounds of a
    /// watch, of what is not in a directory of which that is told.
    Left {
        /// What it is.
        what: What,
        /// The path as bytes.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Not everything that is touched in a watched tree is seen, so all of it is looked at again and again.
    Polling {
        /// Why, and what to do.
        cause: String,
    },
    /// Deletions wait for consent: the run does everything else and deletes nothing.
    Braked(Braked),
    /// What the client is to remember of source and copy.
    Paired(Pair),
}

/// What has to be done before anything can travel, and may take a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// The platform is asked for the session.
    LookUp,
    /// The session's VM is set up.
    SetUp,
    /// A bridge is brought to the session's VM, which has none.
    BringBridge,
}

/// Something that a person should know before it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What will happen, and why.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// Looks on. Called from the threads of an exchange, so it must be quick.
pub trait Monitor: Sync {
    /// Takes note of an event.
    fn observe(&self, event: Event);

    /// Told by this side alone, before anything is under way.
    fn prepare(&self, _preparation: Preparation) {}

    /// Told by this side alone, at any time.
    fn warn(&self, _warning: Warning) {}
}

/// Looks on and says nothing.
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
