//! `DiskError`: the failed operation, its path and its cause.

use std::io;

use rustix::io::Errno;

use crate::tree::path::escape;

/// A failed operation on a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}: {reason}", escape(path))]
pub struct DiskError {
    verb: &'static str,
    path: Box<[u8]>,
    #[source]
    reason: DiskErrorKind,
}

/// The cause of a failed operation.
#[derive(Debug, thiserror::Error)]
pub enum DiskErrorKind {
    /// An error of the operating system.
    #[error(transparent)]
    System(io::Error),
    /// A symbolic link or a file is where the path needs a directory.
    #[error("a symbolic link or a file is in the way")]
    InTheWay,
    /// The entry is no longer the one that was seen there.
    #[error("it changed since it was looked at")]
    Conflict,
    /// A FIFO, socket, device or directory where a file's content is needed.
    #[error("it is not a regular file")]
    NotRegular,
    /// A file with other names, which may be outside of the root.
    #[error("it has other hard links")]
    Linked,
    /// Only this many bytes are free, and they stay in reserve.
    #[error("only {0} bytes are free, and they stay in reserve")]
    Reserve(u64),
    /// Longer than a file may be.
    #[error("it is longer than the filesystem or the limit for files (ulimit -f) allows")]
    TooLong,
    /// Extended attributes that the filesystem does not take.
    #[error("the filesystem does not take them: they are too long or malformed")]
    Attributes,
    /// A backup of this name, which the source has too.
    #[error(
        "its backup would replace {0}, which SOURCE has too; --suffix or --backup-dir names another place"
    )]
    BackupIsWanted(crate::tree::path::TreePath),
    /// A file whose owner may not have the set-id bits of its new mode.
    #[error("it belongs to somebody else")]
    AnotherOwner,
    /// A followed link that leads nowhere.
    #[error("it is a link to nowhere")]
    NoReferent,
    /// A followed link that leads to itself, or a directory that is above itself.
    #[error("it leads back to itself or to a directory above it")]
    Loop,
    /// Another run works in this directory.
    #[error("another run is using it")]
    Busy,
    /// The state directory is a link or a file, or belongs to another user.
    #[error("it is not a directory of our own; remove it")]
    NotOurs,
    /// A time or a size that no tree can hold.
    #[error("its time or size is out of range")]
    OutOfRange,
    /// A line of a merge file, by its number from 1, that is no rule.
    #[error("{}{reason}", at_line(*.line))]
    Rule {
        /// The number; 0 is the whole file.
        line: usize,
        /// The cause.
        reason: crate::tree::rule::RuleError,
    },
    /// A path that is no [`TreePath`](crate::tree::path::TreePath).
    #[error(transparent)]
    Path(#[from] crate::tree::path::PathError),
    /// More than a tree may hold.
    #[error(transparent)]
    Tree(#[from] crate::tree::manifest::ManifestError),
}

fn at_line(number: usize) -> String {
    if number == 0 { String::new() } else { format!("line {number}: ") }
}

impl DiskError {
    pub(crate) fn new(verb: &'static str, path: &[u8], reason: DiskErrorKind) -> Self {
        Self { verb, path: path.into(), reason }
    }

    /// The failed operation, as a verb that follows "cannot".
    #[must_use]
    pub fn verb(&self) -> &'static str {
        self.verb
    }

    /// The path of the failed operation: below the root, or the root's own.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The cause.
    #[must_use]
    pub fn reason(&self) -> &DiskErrorKind {
        &self.reason
    }

    /// Nothing is at the path.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(io::ErrorKind::NotFound)
    }

    /// The disk, the quota or the inodes are used up.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self.kind(), Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
            || matches!(self.reason, DiskErrorKind::Reserve(_))
    }

    /// The file would be longer than the filesystem or the limit for files allows.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        matches!(self.reason, DiskErrorKind::TooLong)
    }

    /// The device failed.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        matches!(&self.reason, DiskErrorKind::System(error) if Errno::from_io_error(error) == Some(Errno::IO))
    }

    /// The operation is not allowed, or the filesystem is read-only.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self.kind(), Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))
    }

    /// This user may not set this metadata, or the filesystem keeps none of its kind.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.errno(), Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP))
            || matches!(self.reason, DiskErrorKind::Attributes)
    }

    /// Another run has the lock.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.reason, DiskErrorKind::Busy)
    }

    /// Another program changed the destination since it was scanned.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self.reason, DiskErrorKind::Conflict)
    }

    /// The entry is not a regular file.
    #[must_use]
    pub fn is_not_regular(&self) -> bool {
        matches!(self.reason, DiskErrorKind::NotRegular)
    }

    /// True for a file that must not be changed in place, but may be replaced by a new one. It has
    /// other hard links, or its owner may not get the rights of the new mode.
    #[must_use]
    pub fn must_be_anew(&self) -> bool {
        matches!(self.reason, DiskErrorKind::Linked | DiskErrorKind::AnotherOwner)
    }

    /// A rename from one filesystem to another.
    #[must_use]
    pub fn is_cross_device(&self) -> bool {
        matches!(&self.reason, DiskErrorKind::System(error) if Errno::from_io_error(error) == Some(Errno::XDEV))
    }

    /// The filesystem or the kernel makes no further name of this entry: it is on another
    /// filesystem, has too many names, or belongs to another user.
    #[must_use]
    pub fn cannot_be_linked(&self) -> bool {
        let not_linked = [Errno::XDEV, Errno::PERM, Errno::NOTSUP, Errno::NOSYS, Errno::MLINK, Errno::ACCESS];
        self.errno().is_some_and(|errno| not_linked.contains(&errno))
    }

    /// A link or a file is where a directory should be.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        matches!(self.reason, DiskErrorKind::InTheWay)
    }

    /// The system's error number, if the cause is a system error.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match &self.reason {
            DiskErrorKind::System(error) => Errno::from_io_error(error),
            _ => None,
        }
    }

    fn kind(&self) -> Option<io::ErrorKind> {
        match &self.reason {
            DiskErrorKind::System(error) => Some(error.kind()),
            _ => None,
        }
    }
}

/// Adds the verb and the path to a failed system call.
pub(crate) trait During<T> {
    fn during(self, verb: &'static str, path: &[u8]) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, verb: &'static str, path: &[u8]) -> Result<T, DiskError> {
        self.map_err(|error| DiskError::new(verb, path, classify(error.into())))
    }
}

fn classify(error: io::Error) -> DiskErrorKind {
    match Errno::from_io_error(&error) {
        Some(Errno::LOOP | Errno::NOTDIR) => DiskErrorKind::InTheWay,
        // Opening a socket, or a device without a driver.
        Some(Errno::NXIO) => DiskErrorKind::NotRegular,
        Some(Errno::FBIG) => DiskErrorKind::TooLong,
        _ => DiskErrorKind::System(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: Errno) -> DiskError {
        Err::<(), _>(errno).during("open", b"a\x1b[2J").unwrap_err()
    }

    #[test]
    fn the_text_names_verb_path_and_cause_and_escapes_control_bytes() {
        let text = failed(Errno::LOOP).to_string();
        assert_eq!(text, "cannot open a\\u{1b}[2J: a symbolic link or a file is in the way");
    }

    #[test]
    fn predicates_tell_errors_apart() {
        assert!(failed(Errno::NOENT).is_not_found());
        assert!(failed(Errno::NOSPC).is_no_space());
        assert!(failed(Errno::DQUOT).is_no_space());
        assert!(DiskError::new("write to", b"/", DiskErrorKind::Reserve(1)).is_no_space());
        assert!(failed(Errno::FBIG).is_too_long() && !failed(Errno::FBIG).is_no_space());
        assert!(failed(Errno::ACCESS).is_permission());
        assert!(failed(Errno::ROFS).is_permission());
        assert!(failed(Errno::NOTDIR).is_in_the_way());
        assert!(failed(Errno::NXIO).is_not_regular());
        assert!(!failed(Errno::IO).is_not_found());
    }
}
