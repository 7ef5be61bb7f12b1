//! The hello: both sides recognise each other in a byte stream, and the client makes its request.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::tree::filter::{Filter, FilterSettings, MERGES_MAX, RULES_BYTES_MAX, RULES_MAX, Rule, Side};
use crate::tree::links::FollowedLinks;
use crate::tree::metadata::MetadataOptions;
use crate::tree::path::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX};
use crate::tree::plan_state::PlanState;
use crate::tree::rule::bits;
use crate::tree::subtrees::SUBTREES_MAX;
use crate::tree::time_rule::TimeRule;
use crate::tree::transfer_rules::TransferRules;
use crate::tree::tree_id::Pair;
use crate::wire::frame::{FrameError, FrameReader, FrameWriter};

/// The first bytes of either side. The NUL keeps them distinct from any login banner; the CR LF
/// exposes a channel that translates line ends.
pub const MAGIC: [u8; 8] = *b"\0KSYNC\r\n";

/// Version of everything after the hello.
pub const VERSION: u16 = 1;

/// A side's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Has the files.
    Sender,
    /// Wants the files.
    Receiver,
}

/// Options that both sides of a run follow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Options {
    /// Remove entries from the destination that the source does not have.
    pub delete: bool,
    /// With `delete`, remove excluded entries too.
    pub delete_excluded: bool,
    /// Change nothing.
    pub dry_run: bool,
    /// Compare by content instead of size and time.
    pub checksum: bool,
    /// The offered entries that the receiver passes over.
    pub transfer: TransferRules,
    /// Report every change.
    pub list_changes: bool,
    /// Compress content with zstd.
    pub compress: bool,
    /// Preserve set-user-id and set-group-id bits of files that belong to this user and group: the
    /// owner of the copies, where known.
    pub set_id_owner: Option<(u32, u32)>,
    /// Do not enter directories of the source on which another filesystem is mounted.
    pub one_file_system: bool,
    /// The symbolic links that take part.
    pub links: Links,
    /// Write everything to the disk before it is reported as done.
    pub fsync: bool,
    /// Back up the entries that are replaced or removed.
    pub backup: Option<BackupOptions>,
    /// Differences between times that do not count; `None` is what the destination's filesystem
    /// makes.
    pub time_rule: Option<TimeRule>,
    /// Filter rules: they select the entries that take part.
    pub rules: Vec<Rule>,
    /// `.gitignore` files count as `.ksyncignore` files do.
    pub gitignore: bool,
    /// The rules of merge files end at a NUL, and not with their line.
    pub nul_ended: bool,
    /// The entries of the source that take part, if they are listed.
    pub files: Option<FileList>,
    /// Path of SOURCE's directory inside the transfer root, at which the rules are anchored. Empty
    /// if SOURCE is the root.
    #[serde(with = "serde_bytes")]
    pub anchor: Vec<u8>,
    /// Deletions that the user allowed.
    pub consent: Consent,
    /// The client's facts from earlier runs about source and destination.
    pub history: History,
    /// Bytes that each side may send in a second; 0 is any number.
    pub bytes_per_second: u64,
    /// Metadata besides modes and times; `None` if all of these options are off.
    pub metadata: Option<Box<MetadataOptions>>,
    /// Directories on the receiver's machine in which new entries may be already.
    pub bases: Option<Box<BasisOptions>>,
    /// Write into the destination's files, which keep their inodes and their other names. A file is
    /// then neither old nor new while it is written.
    pub in_place: bool,
    /// The links that the sender replaces by what they lead to.
    pub follows: FollowedLinks,
    /// The sender removes files and links that are in place at the receiver.
    pub remove_source: bool,
    /// The tie to a plan, if the run makes or carries out one.
    pub plan: Option<PlanTie>,
    /// The run's part in undoing: it keeps replaced entries, restores them, or neither.
    pub undo: Undo,
}

/// The part of a run in undoing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Undo {
    /// None.
    #[default]
    Off,
    /// Keep what the run replaces and deletes, and that of this number of runs in all.
    Keep(u32),
    /// Undo a run, or the last one. What the sender offers does not count.
    Restore(Option<u64>),
    /// Report the runs that can be undone, in a dry run.
    List,
}

impl Undo {
    /// True if the offer does not count.
    #[must_use]
    pub fn is_own(self) -> bool {
        matches!(self, Self::Restore(_) | Self::List)
    }
}

/// The tie between a run and a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlanTie {
    /// Report the state of both sides, to which the plan is bound.
    Make,
    /// Stop before the first change, unless both sides are in this state.
    Match(PlanState),
}

impl Options {
    /// The filter that protects entries of the destination.
    #[must_use]
    pub fn protecting(&self) -> Filter {
        self.filter(Side::Receiver, &self.anchor)
    }

    /// The filter that hides entries of the source at `anchor` in the transfer root.
    #[must_use]
    pub fn hiding(&self, anchor: &[u8]) -> Filter {
        self.filter(Side::Sender, anchor)
    }

    fn filter(&self, side: Side, anchor: &[u8]) -> Filter {
        let Self { delete_excluded, gitignore, nul_ended, .. } = *self;
        Filter::with(&self.rules, anchor, FilterSettings { side, delete_excluded, gitignore, nul_ended })
    }
}

/// Listed entries of a source. The directories above them take part, too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileList {
    /// Paths in the source, each with whether what is in that directory takes part, one level deep.
    /// The empty path is the source itself.
    pub paths: Vec<(ByteBuf, bool)>,
    /// Everything below a listed directory takes part.
    pub recursive: bool,
}

impl FileList {
    /// True if the list may travel.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let bytes = self.paths.iter().map(|(path, _)| path.len()).sum::<usize>();
        self.paths.len() <= SUBTREES_MAX && bytes <= FILES_BYTES_MAX
    }
}

/// Most bytes of listed paths: a request is one frame, which holds the rules, too.
pub const FILES_BYTES_MAX: usize = 800 << 10;

/// The symbolic links that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Links {
    /// All on the way to another machine and within this one; from another machine as `Safe`.
    #[default]
    ByDirection,
    /// Those that stay inside the tree.
    Safe,
    /// All.
    All,
    /// None. What the destination has under their names stays.
    None,
}

/// The backups of replaced and removed entries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackupOptions {
    /// The directory that holds them, under their paths; relative to the destination. `None` puts
    /// each one beside its original.
    pub directory: Option<ByteBuf>,
    /// Bytes after each name. Empty only with a directory.
    #[serde(with = "serde_bytes")]
    pub suffix: Vec<u8>,
}

impl BackupOptions {
    /// True if the names can be made, and none can be that of its original.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let is_path = |path: &ByteBuf| (1..=PATH_BYTES_MAX).contains(&path.len()) && !path.contains(&0);
        // A relative path without a name is that of the destination itself.
        let is_elsewhere = |path: &ByteBuf| {
            path.starts_with(b"/") || path.split(|&byte| byte == b'/').any(|part| !matches!(part, b"" | b"."))
        };
        self.directory.as_ref().is_none_or(is_path)
            && (self.directory.as_ref().is_some_and(is_elsewhere) || !self.suffix.is_empty())
            && self.suffix.len() <= COMPONENT_BYTES_MAX
            && !self.suffix.iter().any(|byte| matches!(byte, 0 | b'/'))
    }

    /// True if an entry of this name may be a backup beside its original.
    #[must_use]
    pub fn is_name_of_backup(&self, name: &[u8]) -> bool {
        self.directory.is_none() && name.ends_with(&self.suffix)
    }
}

/// Directories on the receiver's machine in which new entries may be already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasisOptions {
    /// The use of an entry that equals the wanted one.
    pub purpose: BasisPurpose,
    /// The directories, in order; relative ones are relative to the destination.
    pub directories: Vec<ByteBuf>,
}

/// The use of a basis tree's entry that equals the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BasisPurpose {
    /// The destination does not need it.
    Compare,
    /// The destination gets a copy.
    Copy,
    /// The destination gets a further name of it.
    Link,
}

/// Most basis directories, as with rsync.
pub const BASES_MAX: usize = 20;

impl BasisOptions {
    /// True if the paths may be opened.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let is_path = |path: &ByteBuf| (1..=PATH_BYTES_MAX).contains(&path.len()) && !path.contains(&0);
        (1..=BASES_MAX).contains(&self.directories.len()) && self.directories.iter().all(is_path)
    }
}

/// Deletions that need no question.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Consent {
    /// Everything that the plan lists, except in protected directories.
    pub yes: bool,
    /// The same as `yes`, up to this number of entries: the user was asked and agreed.
    pub agreed: Option<u64>,
    /// The largest number of entries.
    pub max_delete: Option<u64>,
    /// Everything in these directories: paths on the receiver's machine, as the user typed them.
    pub force_in: Vec<ByteBuf>,
}

/// Facts from earlier runs about a source and a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// Both trees, if ksync made the destination as a copy of this source.
    pub pair: Option<Pair>,
    /// The side that is in a session's VM, if one is.
    pub session: Option<InSession>,
}

/// A side in a session's VM; the VM is the same one only until it is restarted or recreated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSession {
    /// True if that side is the sender.
    pub is_source: bool,
    /// True if the session id or the host key differs from the pair's.
    pub is_other: bool,
}

/// Most directories of [`Consent::force_in`].
pub const FORCED_MAX: usize = 64;

/// The client's request to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The agent's role.
    pub role: Role,
    /// The path as bytes, as the user typed it; relative to the home directory.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Further sources: all of them go into the destination by their names.
    pub further: Vec<ByteBuf>,
    /// Options that both sides follow.
    pub options: Options,
    /// Name under which the agent stores its baseline, if the client stores one too. It is not
    /// secret, and means nothing to anybody else.
    pub baseline_key: Option<[u8; 16]>,
    /// Set if rounds follow each other until the connection ends: how the sender watches its tree.
    pub watch: Option<WatchOptions>,
    /// Timeout: milliseconds of silence after which the client gives the agent up; 0 means never.
    pub timeout_ms: u32,
}

impl Request {
    /// Requests further sources, at these paths.
    #[must_use]
    pub fn with_further(self, paths: &[Vec<u8>]) -> Self {
        Self { further: paths.iter().map(|path| ByteBuf::from(path.clone())).collect(), ..self }
    }

    /// Decodes a request that stands alone.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let request: Self = postcard::from_bytes(bytes).map_err(|_| HelloError::Malformed)?;
        if request.is_within_limits() { Ok(request) } else { Err(HelloError::Malformed) }
    }

    fn is_within_limits(&self) -> bool {
        let Options { rules, consent, files, backup, metadata, bases, follows, .. } = &self.options;
        let pattern_bytes = rules.iter().map(|rule| rule.pattern.len()).sum::<usize>();
        let merges = rules.iter().filter(|rule| rule.has(bits::DIRECTORY_MERGE)).count();
        rules.len() <= RULES_MAX
            && pattern_bytes <= RULES_BYTES_MAX
            && rules.iter().all(Rule::is_wire)
            && merges <= MERGES_MAX
            && files.as_ref().is_none_or(FileList::is_within_limits)
            && consent.force_in.len() <= FORCED_MAX
            && backup.as_ref().is_none_or(BackupOptions::is_valid)
            && metadata.as_ref().is_none_or(|metadata| metadata.is_within_limits())
            && bases.as_ref().is_none_or(|bases| bases.is_valid())
            && follows.is_known()
    }
}

/// A sender's way to watch its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchOptions {
    /// Debounce: the tree must be quiet for this many milliseconds before a round starts.
    pub quiet_ms: u32,
    /// Scan the whole tree periodically.
    pub poll: bool,
}

/// The first message of a side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u16,
    /// The client's request; the agent sends none.
    pub request: Option<Request>,
}

/// Failure to read a hello.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The stream does not begin with [`MAGIC`].
    #[error("the other end is not ksync")]
    Magic,
    /// The other end speaks another version.
    #[error("the other end speaks version {0} of the protocol, not {VERSION}")]
    Version(u16),
    /// The hello is malformed or too long.
    #[error("the other end's hello is malformed")]
    Malformed,
    /// The stream ended or failed.
    #[error("waiting for the other end's hello")]
    Stream(#[from] FrameError),
}

/// Writes the magic and the hello, without a flush.
///
/// # Errors
/// The writer's error.
pub fn write(writer: &mut impl Write, request: Option<Request>) -> io::Result<()> {
    let hello = Hello { version: VERSION, request };
    let bytes = postcard::to_stdvec(&hello).map_err(io::Error::other)?;
    let mut stream = MAGIC.to_vec();
    FrameWriter::new(&mut stream, false).write(&bytes)?;
    writer.write_all(&stream)
}

/// Reads the magic and the hello.
///
/// # Errors
/// See [`HelloError`].
pub fn read(reader: &mut impl Read) -> Result<Hello, HelloError> {
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HelloError::Stream(FrameError::Closed),
        _ => HelloError::Stream(error.into()),
    })?;
    if magic != MAGIC {
        return Err(HelloError::Magic);
    }
    let bytes = FrameReader::new(reader).read()?;
    // The version always stays the first field, so any version's hello reveals it.
    let (version, _) = postcard::take_from_bytes::<u16>(&bytes).map_err(|_| HelloError::Malformed)?;
    if version != VERSION {
        return Err(HelloError::Version(version));
    }
    let hello: Hello = postcard::from_bytes(&bytes).map_err(|_| HelloError::Malformed)?;
    let is_valid = hello.request.as_ref().is_none_or(Request::is_within_limits);
    if is_valid { Ok(hello) } else { Err(HelloError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            role: Role::Receiver,
            path: b"/tmp/\xff".to_vec(),
            further: vec![ByteBuf::from(b"b".to_vec())],
            options: Options::default(),
            baseline_key: Some([7; 16]),
            watch: None,
            timeout_ms: 60_000,
        }
    }

    #[test]
    fn hello_survives_the_wire() {
        let mut stream = Vec::new();
        write(&mut stream, Some(request())).unwrap();
        let hello = read(&mut stream.as_slice()).unwrap();
        assert_eq!(hello, Hello { version: VERSION, request: Some(request()) });
    }

    #[test]
    fn basis_directories_beyond_the_limits_are_refused() {
        let directory = |length| ByteBuf::from(vec![b'a'; length]);
        for (directories, is_valid) in [
            (vec![directory(1); BASES_MAX], true),
            (vec![directory(1); BASES_MAX + 1], false),
            (vec![directory(PATH_BYTES_MAX)], true),
            (vec![directory(PATH_BYTES_MAX + 1)], false),
            (vec![directory(0)], false),
            (vec![ByteBuf::from(b"a\0b".to_vec())], false),
            (Vec::new(), false),
        ] {
            let mut request = request();
            let bases = BasisOptions { purpose: BasisPurpose::Link, directories };
            request.options.bases = Some(Box::new(bases));
            let mut stream = Vec::new();
            write(&mut stream, Some(request)).unwrap();
            assert_eq!(read(&mut stream.as_slice()).is_ok(), is_valid);
        }
    }

    #[test]
    fn foreign_version_is_reported_whatever_follows_it() {
        let mut stream = MAGIC.to_vec();
        FrameWriter::new(&mut stream, false).write(&[9, 0xff, 0xff]).unwrap();
        assert!(matches!(read(&mut stream.as_slice()), Err(HelloError::Version(9))));
    }

    #[test]
    fn streams_without_the_magic_are_refused() {
        assert!(matches!(read(&mut &b"SSH-2.0-OpenSSH"[..]), Err(HelloError::Magic)));
        assert!(matches!(read(&mut &b""[..]), Err(HelloError::Stream(FrameError::Closed))));
    }
}
