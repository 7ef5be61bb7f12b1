//! `Sending`: performs the works of a sender.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::content::blocks::{BlockSize, Outline, outline_of};
use crate::content::delta::{DeltaError, Signature};
use crate::content::hash::Hash;
use crate::content::sample::{SAMPLED_BYTES_MIN, Samples};
use crate::disk::baseline::Baseline;
use crate::disk::holes::SparseFile;
use crate::disk::identities::Identities;
use crate::disk::root::Root;
use crate::disk::scan::{self, Look, ScanOptions, Skipped, Sparse, scan};
use crate::disk::set_id::{Owner, mode_for};
use crate::disk::stat::Identity;
use crate::engine::{
    self, Changed, Outcome, PushedFile, ReadContent, ReadFile, ReadOrder, Scanned, SignedFile, SourceNext,
    SourceStep, Work, WorkError,
};
use crate::exchange::prehash::{PREHASH_BYTES_MIN, PREHASH_FILES_MAX, Prehashes, Priority};
use crate::exchange::rounds::RoundContext;
use crate::exchange::run::Perform;
use crate::exchange::sink::read_bytes;
use crate::exchange::source::{Source, SourceError};
use crate::exchange::{chain, renamed, scan_options, work_error};
use crate::log::{self, debug};
use crate::monitor::{Problem, ProblemKind};
use crate::tree::change;
use crate::tree::entry::{Kind, Time};
use crate::tree::filter::{Filter, IgnoreFile};
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::tree::record;
use crate::tree::subtrees::SubtreeSet;
use crate::tree::tree_id::TreeId;
use crate::watch::Watch;
use crate::wire::hello::Options;
use crate::wire::message::{
    AbortKind, HOLES_MAX, Holes, LIST_MAX, Op, PUSHED_BYTES_MAX, SAMPLED_MAX, SMALL_BYTES_MAX, Subject,
};

/// Performs the works on a source: a directory, or one file.
pub struct Sending {
    path: PathBuf,
    options: Options,
    baseline: Option<Baseline>,
    context: Option<RoundContext>,
    found: OnceLock<Found>,
    listed: OnceLock<Listed>,
    sources: Mutex<HashMap<u32, Source>>,
    prehashes: Prehashes,
}

/// Location of the source.
struct Found {
    root: Root,
    /// A single file: its local name, and the name under which it is offered.
    single: Option<Single>,
    /// The digest of the baseline's record.
    baseline: Option<Hash>,
}

struct Single {
    local: TreePath,
    offered: TreePath,
}

/// The listed source.
struct Listed {
    manifest: Arc<Manifest>,
    identities: Identities,
}

impl Sending {
    /// Makes a sender of the tree at `path`.
    #[must_use]
    pub fn new(path: PathBuf, options: Options) -> Self {
        Self {
            path,
            options,
            baseline: None,
            context: None,
            found: OnceLock::new(),
            listed: OnceLock::new(),
            sources: Mutex::new(HashMap::new()),
            prehashes: Prehashes::default(),
        }
    }

    /// Sets the store of the baseline, if there is one.
    #[must_use]
    pub fn with_baseline(self, baseline: Option<Baseline>) -> Self {
        Self { baseline, ..self }
    }

    /// Makes this a round of a watched source.
    pub(super) fn in_round(self, context: RoundContext) -> Self {
        Self { context: Some(context), ..self }
    }

    /// Fails if a watched source was replaced or unmounted: that must not pass for an emptied one.
    fn check_still_there(&self) -> Result<(), WorkError> {
        if self.context.as_ref().is_none_or(|context| context.root.is_still_there()) {
            return Ok(());
        }
        let shown = escape(self.path.as_os_str().as_bytes());
        let text = format!("{shown} is gone, or was replaced by another directory: nothing was changed");
        Err(WorkError::Fatal(AbortKind::Selection, text))
    }

    fn scope(&self) -> Option<&SubtreeSet> {
        self.context.as_ref()?.scope.as_ref()
    }

    fn find(&self) -> Result<engine::Found, WorkError> {
        self.check_still_there()?;
        let missing = |error: &dyn std::error::Error| {
            let shown = escape(self.path.as_os_str().as_bytes());
            WorkError::Fatal(AbortKind::Selection, format!("cannot read {shown}: {}", chain(error)))
        };
        let metadata = fs::metadata(&self.path).map_err(|error| missing(&error))?;
        let (found, subject) = if metadata.is_dir() {
            let root = Root::open(&self.path).map_err(|error| missing(&error))?;
            let subject = directory_subject(&metadata, self.options.set_id_owner, root.tree_id())
                .map_err(|error| missing(&error))?;
            // An incremental round has no store of the baseline, so it names no base.
            let baseline = self.baseline.as_ref().and_then(Baseline::digest);
            (Found { root, single: None, baseline }, subject)
        } else {
            let (found, name) = find_single(&self.path).map_err(|error| missing(&*error))?;
            (found, Subject::File { name })
        };
        let baseline = found.baseline;
        // `Find` is asked for once.
        let _ = self.found.set(found);
        Ok(engine::Found { subject, baseline, is_partial: self.scope().is_some() })
    }

    fn scan(&self) -> Result<Scanned, WorkError> {
        let (found, begin) = (self.found()?, Instant::now());
        let subject = match (&found.single, self.scope()) {
            (Some(single), _) => scan::Subject::One(single.local.clone()),
            (None, Some(scope)) => scan::Subject::Subtrees(scope.clone(), Arc::default()),
            (None, None) => scan::Subject::Whole,
        };
        let options = ScanOptions {
            set_id_owner: self.options.set_id_owner,
            cross_mounts: !self.options.one_file_system,
            ..scan_options(self.options.checksum, &subject)
        };
        // A single file lies in the transfer root itself.
        let anchor = if found.single.is_some() { &b""[..] } else { &self.options.anchor };
        let mut filter = Filter::anchored(&self.options.rules, anchor);
        let is_excluded = match &found.single {
            Some(single) => filter.excludes(&single.offered, false),
            None => filter.excludes_tree(),
        };
        let mut entering = Entering(self.context.as_ref().map(|context| &*context.watch));
        let mut scanned = if is_excluded {
            scan::Scanned {
                skipped: Skipped { excluded: 1, ..Skipped::default() },
                ..scan::Scanned::default()
            }
        } else {
            scan(&found.root, &subject, &options, Some(&mut filter), &mut entering)
                .map_err(|error| WorkError::Fatal(AbortKind::Selection, chain(&error)))?
        };
        if let Some(context) = self.context.as_ref().filter(|_| !scanned.unclear.is_empty()) {
            // A touched name leads to an entry with another name, so scan its whole directory.
            context.watch.everything();
        }
        self.check_still_there()?;
        if let Some(single) = &found.single {
            scanned.manifest = renamed(&scanned.manifest, &single.offered)
                .map_err(|error| WorkError::Fatal(AbortKind::Selection, error.to_string()))?;
        }
        let manifest = Arc::new(scanned.manifest);
        debug!(
            "scan role=sender entries={} bytes={} excluded={} problems={} ms={}",
            manifest.len(),
            manifest.content_bytes(),
            scanned.skipped.excluded,
            scanned.problems.len(),
            begin.elapsed().as_millis()
        );
        let unreadable = scanned.problems.iter().map(|error| Problem {
            kind: ProblemKind::Unreadable,
            path: error.path().to_vec(),
            cause: chain(error),
        });
        let unsupported = scanned.unsupported.iter().map(|(path, kind)| Problem {
            kind: ProblemKind::Unsupported,
            path: path.as_bytes().to_vec(),
            cause: format!("{kind} are not copied"),
        });
        let holes = holes(scanned.sparse, &manifest, found.single.is_some());
        let ignores = filter.files().to_vec();
        if let Some(context) = self.context.as_ref().filter(|context| context.scope.is_none()) {
            *context.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter;
        }
        let (changed, is_new) = self.compare_with_memory(found, &manifest, &ignores);
        let listed = Listed { manifest: Arc::clone(&manifest), identities: scanned.identities };
        let _ = self.listed.set(listed);
        let sampled =
            if self.options.dry_run { Vec::new() } else { self.prehash(&manifest, changed.as_ref()) };
        let pushed = self.push(&manifest);
        if log::is_on() {
            self.log_offer(&manifest, changed.as_ref(), pushed.len(), sampled.len());
        }
        Ok(Scanned {
            ignores,
            complete: scanned.problems.is_empty(),
            excluded: scanned.skipped.excluded,
            problems: unreadable.chain(unsupported).collect(),
            changed,
            is_new,
            scope: self.scope().map(|scope| scope.as_found(&manifest)),
            pushed,
            sampled,
            holes,
            manifest,
        })
    }

    /// Compares the source with the baseline. Returns the changes, and true if the source must be
    /// stored as the new baseline.
    fn compare_with_memory(
        &self,
        found: &Found,
        manifest: &Manifest,
        ignores: &[IgnoreFile],
    ) -> (Option<Changed>, bool) {
        // Offering a single file takes fewer bytes than a digest.
        let is_whole = found.single.is_none() && self.scope().is_none();
        let Some(baseline) = self.baseline.as_ref().filter(|_| is_whole) else {
            return (None, false);
        };
        let digest = record::digest(manifest, ignores);
        // If nothing changed, the digest alone suffices and the record need not be read.
        if found.baseline == Some(digest) {
            return (Some(Changed { changes: Vec::new(), ignores: false, digest }), false);
        }
        let record =
            found.baseline.and_then(|digest| baseline.load().filter(|record| record.digest() == digest));
        let changed = record.and_then(|record| {
            let (known_ignores, entries) = record.into_parts();
            let changes = change::between(entries, manifest)?;
            Some(Changed { changes, ignores: known_ignores != ignores, digest })
        });
        (changed, !self.options.dry_run)
    }

    /// Logs the offer, and why it is not made against the baseline.
    fn log_offer(&self, manifest: &Manifest, changed: Option<&Changed>, pushed: usize, sampled: usize) {
        let against = match (changed, &self.baseline) {
            (Some(changed), _) if changed.changes.is_empty() => "baseline why=unchanged",
            (Some(_), _) => "baseline why=changed",
            _ if self.scope().is_some() => "nothing why=incremental-round",
            _ if self.found().is_ok_and(|found| found.single.is_some()) => "nothing why=single-file",
            (None, None) => "nothing why=no-store",
            _ if self.found().is_ok_and(|found| found.baseline.is_none()) => "nothing why=no-baseline",
            _ => "nothing why=baseline-damaged-or-too-different",
        };
        debug!(
            "offer role=sender entries={} against={against} blocks={} pushed={pushed} sampled={sampled}",
            manifest.len(),
            changed.map_or(0, |changed| changed.changes.len())
        );
    }

    /// Logs how the content of a file is sent.
    fn log_file(&self, id: u32, how: &str) {
        let entry = self.listed.get().and_then(|listed| listed.manifest.get(id));
        if let Some(entry) = entry {
            let (size, path) = (entry.size(), entry.path.to_path());
            debug!("file role=sender how={how} size={size} path={}", escape(path.as_bytes()));
        }
    }

    /// Starts to prehash large files that the receiver will probably want to compare. These are the
    /// files that changed since the last run, or any large ones if the changes are unknown. Returns
    /// samples of them.
    fn prehash(&self, manifest: &Manifest, changed: Option<&Changed>) -> Vec<(u32, Samples)> {
        let mut ids: Vec<u32> = match changed {
            Some(changed) => change::added(&changed.changes).collect(),
            None => (0..manifest.len() as u32).collect(),
        };
        let size = |id: &u32| manifest.get(*id).map_or(0, |entry| entry.size());
        ids.retain(|id| size(id) >= PREHASH_BYTES_MIN);
        ids.sort_by_key(|id| Reverse(size(id)));
        let has_changed = changed.is_some() || self.scope().is_some();
        let priority = if has_changed { Priority::High } else { Priority::Low };
        let mut sampled = Vec::new();
        for &id in ids.iter().take(PREHASH_FILES_MAX) {
            // A failure to open or read is reported when the file is requested.
            if let Ok((file, identity)) = self.open(id) {
                if identity.size >= SAMPLED_BYTES_MIN
                    && let Ok(samples) = Samples::of(identity.size, &SparseFile::of(&file, identity.size))
                {
                    sampled.push((id, samples));
                }
                let block = BlockSize::for_size(identity.size);
                let why = if has_changed { "changed" } else { "large" };
                debug!("prehash role=sender size={} why={why}", identity.size);
                self.prehashes.begin(identity, file, block, priority);
            }
        }
        // As many as fit in a message.
        sampled.truncate(SAMPLED_MAX);
        sampled
    }

    /// Contents of small touched files, to go with the offer.
    fn push(&self, manifest: &Manifest) -> Vec<PushedFile> {
        let is_single = self.found().is_ok_and(|found| found.single.is_some());
        if self.context.is_none() || self.scope().is_none() && !is_single || self.options.dry_run {
            return Vec::new();
        }
        let mut pushed = Vec::new();
        let mut left = PUSHED_BYTES_MAX as u64;
        for (id, entry) in manifest.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File { .. })) {
            // An unreadable file is requested later, and the failure is reported then.
            if entry.size() <= left.min(SMALL_BYTES_MAX)
                && let Ok(data) = self.read_small(id)
            {
                left -= data.len() as u64;
                pushed.push(PushedFile { id, hash: Hash::of(&data), data });
            }
        }
        // As many as fit in a message.
        pushed.truncate(LIST_MAX);
        pushed
    }

    fn read(&self, order: &ReadOrder) -> Result<ReadFile, WorkError> {
        let ReadOrder { want, may_ask } = order;
        let data = self.read_small(want.id)?;
        let basis = want.basis_blocks();
        let Outline { ids, hash } = match basis {
            Some(_) => outline_of(&data, BlockSize::for_size(data.len() as u64)),
            None => Outline { ids: Vec::new(), hash: Hash::of(&data) },
        };
        let same = basis.is_some_and(|basis| basis.length == data.len() as u64 && basis.ids == ids);
        if log::is_on() {
            let how = match basis {
                _ if same => "same why=equal-blocks",
                Some(_) if *may_ask => "signature why=basis-differs",
                Some(_) => "whole why=too-short-for-signature",
                None => "whole why=no-basis",
            };
            self.log_file(want.id, how);
        }
        let content = match basis {
            _ if same => ReadContent::Same,
            Some(basis) if *may_ask => ReadContent::Differs { basis_length: basis.length },
            _ => ReadContent::Whole(data),
        };
        Ok(ReadFile { content, hash })
    }

    /// Makes a delta from a small file's basis to its content.
    fn diff(&self, signed: &SignedFile) -> Result<ReadFile, WorkError> {
        let data = self.read_small(signed.id)?;
        let hash = Hash::of(&data);
        let peer = |error: DeltaError| WorkError::Fatal(AbortKind::Protocol, error.to_string());
        let delta = if signed.signature.is_empty() {
            None
        } else {
            // At most `SMALL_BASIS_BYTES_MAX`.
            let signature =
                Signature::check(&signed.signature, signed.basis_length as usize).map_err(peer)?;
            signature.diff(&data).map_err(peer)?
        };
        if log::is_on() {
            let how = match &delta {
                Some(delta) => format!("delta why=signature sent_bytes={}", delta.len()),
                None if signed.signature.is_empty() => "whole why=basis-unreadable".to_owned(),
                None => "whole why=delta-saves-nothing".to_owned(),
            };
            self.log_file(signed.id, &how);
        }
        Ok(ReadFile { content: delta.map_or(ReadContent::Whole(data), ReadContent::Delta), hash })
    }

    fn read_small(&self, id: u32) -> Result<Vec<u8>, WorkError> {
        let (file, identity) = self.open(id)?;
        let data = read_bytes(&file, 0, identity.size as usize).map_err(|error| read_error(&error))?;
        self.check_unchanged(&file, &identity)?;
        Ok(data)
    }

    fn source(&self, id: u32, step: SourceStep) -> Result<(Vec<Op>, SourceNext), WorkError> {
        let mut source = match step {
            SourceStep::Begin(want) => {
                let (file, identity) = self.open(id)?;
                if want.basis.is_none() && want.staged.is_none() {
                    self.prehashes.cancel(&identity);
                }
                let block = BlockSize::for_size(identity.size);
                let prehashed = || self.prehashes.take(&identity)?.outline(block);
                let source = Source::begin(file, identity, &want, prehashed).map_err(source_error)?;
                if log::is_on() {
                    self.log_file(id, &source.how());
                }
                source
            }
            SourceStep::Signatures(signatures) => {
                let mut source = self.take_source(id)?;
                source.signatures(signatures);
                source
            }
            SourceStep::Cut => {
                let mut source = self.take_source(id)?;
                source.cut().map_err(source_error)?;
                self.keep_source(id, source);
                return Ok((Vec::new(), SourceNext::Chunks));
            }
            SourceStep::Chunks(chunks) => {
                let mut source = self.take_source(id)?;
                source.chunks(&chunks).map_err(source_error)?;
                source
            }
            SourceStep::More => self.take_source(id)?,
        };
        let (ops, next) = source.produce().map_err(source_error)?;
        if log::is_on()
            && let SourceNext::Sign(windows) = &next
        {
            self.log_file(id, &format!("signatures why=gaps-resemble-basis windows={}", windows.len()));
        }
        match next {
            SourceNext::More | SourceNext::Sign(_) | SourceNext::Cut(_) | SourceNext::Chunks => {
                self.keep_source(id, source);
            }
            SourceNext::End(_) | SourceNext::Same(_) => {
                self.check_unchanged(source.file(), &source.identity)?;
            }
        }
        Ok((ops, next))
    }

    fn keep_source(&self, id: u32, source: Source) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(id, source);
    }

    fn take_source(&self, id: u32) -> Result<Source, WorkError> {
        let taken = self.sources.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        taken.ok_or_else(|| WorkError::Fatal(AbortKind::Protocol, "a file that was not begun".to_owned()))
    }

    /// Opens an offered file, if it is still the listed one.
    fn open(&self, id: u32) -> Result<(File, Identity), WorkError> {
        let found = self.found()?;
        let listed = self.listed.get().ok_or_else(out_of_turn)?;
        let path = listed.manifest.path(id).ok_or_else(out_of_turn)?;
        let identity = listed.identities.get(&listed.manifest, id).ok_or_else(out_of_turn)?;
        let path = found.single.as_ref().map_or_else(|| path.to_path(), |single| single.local.clone());
        let (file, stat) =
            found.root.open_file(&path).map_err(|error| work_error(&error, ProblemKind::Unreadable))?;
        if stat.identity == identity { Ok((file, identity)) } else { Err(changed()) }
    }

    fn check_unchanged(&self, file: &File, identity: &Identity) -> Result<(), WorkError> {
        let now = crate::disk::stat::identity_of(file).map_err(|error| unreadable(&error))?;
        if now == *identity { Ok(()) } else { Err(changed()) }
    }

    fn found(&self) -> Result<&Found, WorkError> {
        self.found.get().ok_or_else(out_of_turn)
    }
}

impl Perform for Sending {
    fn perform(&self, work: Work) -> Outcome {
        match work {
            Work::Find => Outcome::Find(self.find()),
            Work::Scan => Outcome::Scan(self.scan()),
            Work::Read(orders) => {
                Outcome::Read(orders.iter().map(|order| (order.want.id, self.read(order))).collect())
            }
            Work::Diff(files) => {
                Outcome::Read(files.iter().map(|signed| (signed.id, self.diff(signed))).collect())
            }
            Work::Source { id, step } => Outcome::Source(id, self.source(id, step)),
            Work::StoreBaseline { manifest, ignores } => {
                super::store_baseline(self.baseline.as_ref(), &manifest, &ignores)
            }
            other => Outcome::Scan(Err(WorkError::Fatal(
                AbortKind::Protocol,
                format!("a work that is not a sender's: {:?}", std::mem::discriminant(&other)),
            ))),
        }
    }
}

/// Lets the watch of a tree enter each directory that is read.
struct Entering<'a>(Option<&'a Watch>);

impl Look for Entering<'_> {
    fn enter(&mut self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        if let Some(watch) = self.0 {
            watch.enter(directory, path);
        }
    }
}

fn directory_subject(
    metadata: &fs::Metadata,
    set_id_owner: Option<Owner>,
    tree_id: TreeId,
) -> io::Result<Subject> {
    use std::os::unix::fs::MetadataExt;
    let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    let mtime = Time::new(metadata.mtime(), nanos)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its time is out of range"))?;
    // The mask keeps only bits that fit.
    #[allow(clippy::cast_possible_truncation)]
    let mode = (metadata.mode() & 0o7777) as u16;
    let of = (metadata.uid(), metadata.gid());
    Ok(Subject::directory(set_id_owner.map_or(mode, |owner| mode_for(mode, of, owner)), mtime, tree_id))
}

/// Finds a single file. A link that is named as source stands for its target, under the link's own
/// name, as with `scp`.
fn find_single(path: &Path) -> Result<(Found, Vec<u8>), Box<dyn std::error::Error>> {
    let name_of = |path: &Path| -> Result<TreePath, Box<dyn std::error::Error>> {
        let name = path.file_name().ok_or("it has no name")?;
        Ok(TreePath::new(name.as_bytes())?)
    };
    let offered = name_of(path)?;
    let real = fs::canonicalize(path)?;
    let local = name_of(&real)?;
    let root = Root::open(real.parent().unwrap_or(Path::new("/")))?;
    let name = offered.as_bytes().to_vec();
    Ok((Found { root, single: Some(Single { local, offered }), baseline: None }, name))
}

fn source_error(error: SourceError) -> WorkError {
    match error {
        SourceError::Read(error) => read_error(&error),
        SourceError::Peer(text) => WorkError::Fatal(AbortKind::Protocol, text),
    }
}

/// Classifies a read error: a file that became shorter has changed.
fn read_error(error: &io::Error) -> WorkError {
    if error.kind() == io::ErrorKind::UnexpectedEof { changed() } else { unreadable(error) }
}

fn unreadable(error: &io::Error) -> WorkError {
    WorkError::Entry(ProblemKind::Unreadable, format!("cannot read it: {error}"))
}

fn changed() -> WorkError {
    WorkError::Entry(ProblemKind::Changed, "it changed while it was being sent".to_owned())
}

fn out_of_turn() -> WorkError {
    WorkError::Fatal(AbortKind::Protocol, "a work out of turn".to_owned())
}

/// Converts the holes of the files to their wire form.
fn holes(sparse: Sparse, manifest: &Manifest, is_single: bool) -> Holes {
    let mut holes = Holes { files: Vec::new(), others_bytes: sparse.others_bytes };
    for (path, bytes) in sparse.files {
        // A single file may be offered under another name.
        let id = if is_single { Some(0) } else { manifest.position(&path) };
        match id.filter(|_| holes.files.len() < HOLES_MAX) {
            Some(id) => holes.files.push((id, bytes)),
            None => holes.others_bytes = holes.others_bytes.saturating_add(bytes),
        }
    }
    holes.files.sort_unstable();
    holes
}
