//! `Sending`: performs the works of a sender.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::content::blocks::{BlockSize, Content, Outline, Run};
use crate::content::hash::Hash;
use crate::content::sample::{SAMPLED_BYTES_MIN, Samples};
use crate::disk::accounts::owners_of;
use crate::disk::attributes::offered_mode;
use crate::disk::baseline::Baseline;
use crate::disk::holes::SparseFile;
use crate::disk::identities::Identities;
use crate::disk::root::Root;
use crate::disk::scan::{self, Look, ScanOptions, Skipped, Sparse, scan};
use crate::disk::stat::{Identity, identity_of};
use crate::engine::transfer::send::{changed, read_error};
use crate::engine::transfer::{Difference, Source, SourceFile};
use crate::engine::{
    self, Changed, PushedFile, Scanned, SendInput, SendNext, SendTransfer, Sender, SenderOutcome, SenderWork,
    WorkError,
};
use crate::exchange::common::{chain, renamed, scan_options, store_baseline, work_error};
use crate::exchange::found::{self, Found, Part, listing_problems};
use crate::exchange::kept_trees::{KeptTrees, View};
use crate::exchange::listed_files::{self, ListedFiles};
use crate::exchange::prefetch::{PREHASH_BYTES_MIN, PREHASH_FILES_MAX, Prehashes, Priority};
use crate::exchange::removal::Removal;
use crate::exchange::run::Perform;
use crate::exchange::several::{self, FoundSeveral, ListedSeveral};
use crate::exchange::tails::Tails;
use crate::exchange::unusable;
use crate::log::{self, debug};
use crate::monitor::{Problem, ProblemKind};
use crate::tree::attributes::Attributes;
use crate::tree::change;
use crate::tree::entry::Kind;
use crate::tree::filter::{Filter, IgnoreFile};
use crate::tree::links::FollowedLinks;
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::tree::record;
use crate::tree::subtrees::SubtreeSet;
use crate::watch::Watch;
use crate::wire::hello::{FileList, Options, Role};
use crate::wire::message::{
    AbortKind, HOLES_MAX, Holes, LIST_MAX, Op, PUSHED_BYTES_MAX, SAMPLED_MAX, SMALL_BYTES_MAX, Subject,
};

/// The sender of files on this machine.
pub type FileSender = Sender<Arc<Listing>>;

/// Performs the works on a source: a directory, or one file.
pub struct Sending {
    path: PathBuf,
    /// Further sources: all of them go into the destination by their names.
    further: Vec<PathBuf>,
    options: Options,
    baseline: Option<Baseline>,
    round: Option<RoundContext>,
    kept: Option<Arc<KeptTrees>>,
}

/// A watched tree.
pub(super) struct Watched {
    pub(super) watch: Watch,
    /// The directory, which must stay in place. For a single file: its parent directory.
    pub(super) root: Root,
    /// The filter of the last full round.
    pub(super) filter: Mutex<Filter>,
}

/// Context of one round of a watched source.
struct RoundContext {
    watched: Arc<Watched>,
    /// The scope; `None` means everything.
    scope: Option<SubtreeSet>,
}

/// Location of the sources.
#[derive(Debug)]
pub struct FoundSource(Sources);

#[derive(Debug)]
enum Sources {
    One {
        found: Found,
        /// The digest of the baseline's record.
        baseline: Option<Hash>,
    },
    Several(FoundSeveral),
}

/// Sources as they were listed.
struct Listed {
    parts: Vec<Part>,
    manifest: Arc<Manifest>,
    identities: Arc<Identities>,
    ignores: Vec<IgnoreFile>,
    problems: Vec<Problem>,
    is_complete: bool,
    skipped: Skipped,
    holes: Sparse,
    /// The parts of the offered tree; `None` is everything.
    scope: Option<SubtreeSet>,
    baseline: Option<Hash>,
}

/// A listed source.
pub struct Listing {
    /// The sources, in the order of their entries.
    parts: Vec<Part>,
    manifest: Arc<Manifest>,
    identities: Arc<Identities>,
    prehashes: Prehashes,
    tails: Tails,
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("entries", &self.manifest.len()).finish_non_exhaustive()
    }
}

/// An open file of a source.
#[derive(Debug)]
pub struct OfferedFile {
    file: SparseFile<File>,
    identity: Identity,
    listing: Arc<Listing>,
}

impl Listing {
    /// Opens a listed file, whatever is there now.
    fn open_now(&self, id: u32) -> Result<(File, Identity), WorkError> {
        let (part, path) = self.locate(id)?;
        let opened = part.root.open_file(&path);
        let (file, stat) = opened.map_err(|error| work_error(&error, ProblemKind::Unreadable))?;
        Ok((file, stat.identity))
    }

    /// The part that holds a listed entry, and the path of the entry in it.
    fn locate(&self, id: u32) -> Result<(&Part, TreePath), WorkError> {
        let path = self.manifest.path(id).ok_or_else(changed)?;
        let part = self.parts.partition_point(|part| part.first <= id).checked_sub(1);
        let part = part.and_then(|part| self.parts.get(part)).ok_or_else(changed)?;
        Ok((part, part.local(path.to_path()).map_err(read_error)?))
    }

    /// Removes listed files and links, each with the fingerprint of its copy's identity.
    fn remove(&self, entries: &[(u32, u64)], follows: FollowedLinks) -> Vec<(u32, Result<bool, WorkError>)> {
        let mut removal = Removal { follows, touched: HashSet::new() };
        let remove = |&(id, copy): &(u32, u64)| {
            let listed = self.identities.get(&self.manifest, id).ok_or_else(changed);
            let located = listed.and_then(|listed| Ok((listed, self.locate(id)?)));
            let removed =
                located.and_then(|(listed, (part, path))| removal.remove(&part.root, &path, &listed, copy));
            (id, removed)
        };
        entries.iter().map(remove).collect()
    }

    /// True if the source is a single file.
    fn is_single(&self) -> bool {
        matches!(&*self.parts, [Part { single: Some(_), prefix: None, .. }])
    }
}

impl Source for Arc<Listing> {
    type Found = FoundSource;
    type File = OfferedFile;

    fn open(&self, id: u32) -> Result<OfferedFile, WorkError> {
        let listed = self.identities.get(&self.manifest, id).ok_or_else(changed)?;
        let (file, now) = self.open_now(id)?;
        match difference(&now, &listed) {
            Difference::None | Difference::Touched => {}
            Difference::Longer if self.tails.is_appended(id, listed.size, &file) => {}
            Difference::Longer | Difference::Other => return Err(changed()),
        }
        let file = SparseFile::of(file, listed.size);
        Ok(OfferedFile { file, identity: listed, listing: Arc::clone(self) })
    }
}

impl Content for OfferedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.file.zeros_at(offset)
    }

    fn first_run(&self, range: &std::ops::Range<u64>) -> Run {
        self.file.first_run(range)
    }
}

impl SourceFile for OfferedFile {
    /// Zero-filled memory would be touched twice.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset.saturating_add(bytes.len() as u64);
            match rustix::io::pread(self.file.file(), spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The capacity may exceed `length`.
        bytes.truncate(length);
        Ok(bytes)
    }

    fn prehashed(&self, block: BlockSize) -> Option<Outline> {
        self.listing.prehashes.take(&self.identity)?.outline(block)
    }

    fn cancel_prehash(&self) {
        self.listing.prehashes.cancel(&self.identity);
    }

    fn difference(&self) -> io::Result<Difference> {
        Ok(difference(&identity_of(self.file.file())?, &self.identity))
    }
}

fn difference(now: &Identity, listed: &Identity) -> Difference {
    let is_same_file = (now.dev, now.ino, now.kind) == (listed.dev, listed.ino, listed.kind);
    match now.size.cmp(&listed.size) {
        _ if now == listed => Difference::None,
        Ordering::Equal if is_same_file => Difference::Touched,
        Ordering::Greater if is_same_file => Difference::Longer,
        _ => Difference::Other,
    }
}

impl Sending {
    /// Makes a sender of the tree at `path`.
    #[must_use]
    pub fn new(path: PathBuf, options: Options) -> Self {
        Self { path, further: Vec::new(), options, baseline: None, round: None, kept: None }
    }

    /// Sets the store of the baseline, if there is one.
    #[must_use]
    pub fn with_baseline(self, baseline: Option<Baseline>) -> Self {
        Self { baseline, ..self }
    }

    /// Sets where scans are kept for the next run, if they are.
    #[must_use]
    pub fn keeping(self, kept: Option<Arc<KeptTrees>>) -> Self {
        Self { kept, ..self }
    }

    /// Sends these entries too. All of them go into the destination by their names.
    #[must_use]
    pub fn with_further(self, further: Vec<PathBuf>) -> Self {
        Self { further, ..self }
    }

    /// Makes this a round of a watched source; without a scope, a full one.
    pub(super) fn in_round(self, watched: Arc<Watched>, scope: Option<SubtreeSet>) -> Self {
        Self { round: Some(RoundContext { watched, scope }), ..self }
    }

    /// Fails if a watched source was replaced or unmounted: that must not pass for an emptied one.
    fn check_still_there(&self) -> Result<(), WorkError> {
        if self.round.as_ref().is_none_or(|round| round.watched.root.is_still_there()) {
            return Ok(());
        }
        let shown = escape(self.path.as_os_str().as_bytes());
        let text = format!("{shown} is gone, or was replaced by another directory: nothing was changed");
        Err(WorkError::Fatal(AbortKind::Selection, text))
    }

    fn scope(&self) -> Option<&SubtreeSet> {
        self.round.as_ref()?.scope.as_ref()
    }

    fn find(&self) -> Result<(engine::Found, FoundSource), WorkError> {
        self.check_still_there()?;
        if !self.further.is_empty() {
            let found = several::find(std::iter::once(&self.path).chain(&self.further), self.options.follows);
            let engine = engine::Found { subject: Subject::Several, baseline: None, is_partial: true };
            return Ok((engine, FoundSource(Sources::Several(found))));
        }
        let missing = |error: &(dyn std::error::Error + 'static)| {
            WorkError::Fatal(AbortKind::Selection, unusable::source(&self.path, error))
        };
        let found = found::find(&self.path, self.options.follows).map_err(|error| missing(&*error))?;
        if found.single.is_some() && self.options.files.is_some() {
            let shown = escape(self.path.as_os_str().as_bytes());
            let text = format!("{shown} is a file, and --files-from lists entries of a directory");
            return Err(WorkError::Fatal(AbortKind::Selection, text));
        }
        let (subject, baseline) = match &found.single {
            None if self.options.files.is_some() => (Subject::Several, None),
            None => {
                let stat = found.root.own_stat().map_err(|error| missing(&error))?;
                let mode = offered_mode(&stat, self.options.set_id_owner, self.options.metadata.as_deref());
                let subject = Subject::directory(mode, stat.mtime(), found.root.tree_id());
                // An incremental round has no store of the baseline, so it names no base.
                (subject, self.baseline.as_ref().and_then(Baseline::digest))
            }
            Some(single) => (Subject::File { name: single.offered.as_bytes().to_vec() }, None),
        };
        let is_partial = self.scope().is_some() || subject == Subject::Several;
        Ok((engine::Found { subject, baseline, is_partial }, FoundSource(Sources::One { found, baseline })))
    }

    fn scan(&self, found: FoundSource) -> Result<(Scanned, Arc<Listing>), WorkError> {
        let begin = Instant::now();
        let listed = match found.0 {
            Sources::One { found, baseline } => match &self.options.files {
                Some(files) if found.single.is_none() => self.list_files(found, files)?,
                _ => self.list_one(found, baseline)?,
            },
            Sources::Several(found) => self.list_several(found)?,
        };
        let Listed { parts, manifest, identities, ignores, problems, is_complete, skipped, .. } = listed;
        debug!(
            "scan role=sender entries={} bytes={} excluded={} problems={} ms={}",
            manifest.len(),
            manifest.content_bytes(),
            skipped.excluded,
            problems.len(),
            begin.elapsed().as_millis()
        );
        let (prehashes, tails) = Default::default();
        let mut source = Listing { parts, manifest: Arc::clone(&manifest), identities, prehashes, tails };
        let holes = holes(listed.holes, &manifest, source.is_single());
        let metadata = self.options.metadata.as_deref();
        let root = match source.parts.as_slice() {
            [Part { root, single: None, prefix: None, .. }] => root.own_attributes(metadata),
            _ => None,
        };
        let owners = metadata.filter(|metadata| metadata.has_names()).map(|_| {
            let ids = |root: &Attributes| Some((root.user?, root.group?));
            Box::new(owners_of(&manifest, root.as_deref().and_then(ids)))
        });
        let is_whole = listed.scope.is_none() && !source.is_single();
        let (changed, is_new) = self.compare_with_baseline(is_whole, listed.baseline, &manifest, &ignores);
        if !self.options.dry_run {
            let open = |id| source.open_now(id).ok().map(|(file, _)| file);
            source.tails = Tails::of(&manifest, SystemTime::now(), open);
        }
        let source = Arc::new(source);
        let sampled = if self.options.dry_run { Vec::new() } else { self.prehash(&source, changed.as_ref()) };
        let pushed = self.push(&source);
        if log::is_on() {
            self.log_offer(&source, listed.baseline, changed.as_ref(), pushed.len(), sampled.len());
        }
        let scanned = Scanned {
            ignores,
            complete: is_complete,
            excluded: skipped.excluded,
            state_directories: skipped.state,
            problems,
            changed,
            is_new,
            scope: listed.scope.map(|scope| scope.as_found(&manifest)),
            pushed,
            sampled,
            holes,
            owners,
            root,
            manifest,
        };
        Ok((scanned, source))
    }

    fn scan_options(&self, subject: &scan::Subject) -> ScanOptions {
        ScanOptions {
            set_id_owner: self.options.set_id_owner,
            cross_mounts: !self.options.one_file_system,
            follows: self.options.follows,
            ..scan_options(&self.options, subject)
        }
    }

    fn list_several(&self, found: FoundSeveral) -> Result<Listed, WorkError> {
        let options = ScanOptions { depth: 1, ..self.scan_options(&scan::Subject::Whole) };
        let listed = several::list(found, &self.options, &options, &mut Entering(None))
            .map_err(|error| WorkError::Fatal(AbortKind::Selection, error.to_string()))?;
        let ListedSeveral { parts, manifest, identities, ignores, problems, skipped, .. } = listed;
        Ok(Listed {
            parts,
            manifest: Arc::new(manifest),
            identities: Arc::new(identities),
            ignores,
            problems,
            is_complete: listed.is_complete,
            skipped,
            holes: listed.sparse,
            scope: Some(listed.scope),
            baseline: None,
        })
    }

    fn list_files(&self, found: Found, files: &FileList) -> Result<Listed, WorkError> {
        let options = self.scan_options(&scan::Subject::Subtrees(SubtreeSet::default(), Arc::default()));
        let mut filter = self.options.hiding(&self.options.anchor);
        let listed = listed_files::list(&found.root, files, &options, &mut filter)
            .map_err(|error| WorkError::Fatal(AbortKind::Selection, chain(&error)))?;
        let ListedFiles { scanned, scope, problems } = listed;
        Ok(Listed {
            ignores: filter.files().to_vec(),
            is_complete: problems.is_empty(),
            problems,
            parts: vec![Part { first: 0, root: found.root, single: None, prefix: None }],
            manifest: scanned.manifest,
            identities: scanned.identities,
            skipped: scanned.skipped,
            holes: scanned.sparse,
            scope: Some(scope),
            baseline: None,
        })
    }

    fn list_one(&self, found: Found, baseline: Option<Hash>) -> Result<Listed, WorkError> {
        let subject = match (&found.single, self.scope()) {
            (Some(single), _) => scan::Subject::One(single.local.clone()),
            (None, Some(scope)) => scan::Subject::Subtrees(scope.clone(), Arc::default()),
            (None, None) => scan::Subject::Whole,
        };
        // A single file lies in the transfer root itself.
        let anchor = if found.single.is_some() { &b""[..] } else { &self.options.anchor };
        let mut filter = self.options.hiding(anchor);
        let is_excluded = match &found.single {
            Some(single) => filter.excludes(&single.offered, false),
            None => filter.excludes_tree(),
        };
        let mut entering = Entering(self.round.as_ref().map(|round| &round.watched.watch));
        let mut scanned = if is_excluded {
            let single = found.single.as_ref().map(|single| &single.offered);
            let path = single.map_or(anchor, |path| path.as_bytes());
            entering.exclude(path, &|| filter.reason(single, single.is_none()));
            scan::Scanned {
                skipped: Skipped { excluded: 1, ..Skipped::default() },
                ..scan::Scanned::default()
            }
        } else {
            let options = self.scan_options(&subject);
            let is_kept = subject == scan::Subject::Whole && self.round.is_none();
            match self.kept.as_ref().filter(|_| is_kept) {
                Some(kept) => {
                    let view = View::new(Role::Sender, &self.options);
                    kept.list(&found.root, view, &mut filter, &mut entering)
                }
                None => scan(&found.root, &subject, &options, Some(&mut filter), &mut entering),
            }
            .map_err(|error| WorkError::Fatal(AbortKind::Selection, chain(&error)))?
        };
        if let Some(round) = self.round.as_ref().filter(|_| !scanned.unclear.is_empty()) {
            // A touched name leads to an entry with another name, so scan its whole directory.
            round.watched.watch.everything();
        }
        self.check_still_there()?;
        if let Some(single) = &found.single {
            scanned.manifest = renamed(&scanned.manifest, &single.offered)
                .map(Arc::new)
                .map_err(|error| WorkError::Fatal(AbortKind::Selection, error.to_string()))?;
        }
        let ignores = filter.files().to_vec();
        if let Some(round) = self.round.as_ref().filter(|round| round.scope.is_none()) {
            *round.watched.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter;
        }
        let single = found.single.map(|single| single.local);
        Ok(Listed {
            ignores,
            problems: listing_problems(&scanned).collect(),
            is_complete: scanned.problems.is_empty(),
            parts: vec![Part { first: 0, root: found.root, single, prefix: None }],
            manifest: scanned.manifest,
            identities: scanned.identities,
            skipped: scanned.skipped,
            holes: scanned.sparse,
            scope: self.scope().cloned(),
            baseline,
        })
    }

    /// Compares the source with the baseline. Returns the changes, and true if the source must be
    /// stored as the new baseline.
    fn compare_with_baseline(
        &self,
        is_whole: bool,
        known: Option<Hash>,
        manifest: &Manifest,
        ignores: &[IgnoreFile],
    ) -> (Option<Changed>, bool) {
        // Offering a single file takes fewer bytes than a digest.
        let Some(baseline) = self.baseline.as_ref().filter(|_| is_whole) else {
            return (None, false);
        };
        let digest = record::digest(manifest, ignores);
        // If nothing changed, the digest alone suffices and the record need not be read.
        if known == Some(digest) {
            return (Some(Changed { changes: Vec::new(), ignores: false, digest }), false);
        }
        let record = known.and_then(|digest| baseline.load().filter(|record| record.digest() == digest));
        let changed = record.and_then(|record| {
            let (known_ignores, entries) = record.into_parts();
            let changes = change::between(entries, manifest)?;
            Some(Changed { changes, ignores: known_ignores != ignores, digest })
        });
        (changed, !self.options.dry_run)
    }

    /// Logs the offer, and why it is not made against the baseline.
    fn log_offer(
        &self,
        source: &Arc<Listing>,
        baseline: Option<Hash>,
        changed: Option<&Changed>,
        pushed: usize,
        sampled: usize,
    ) {
        let against = match (changed, &self.baseline) {
            (Some(changed), _) if changed.changes.is_empty() => "baseline why=unchanged",
            (Some(_), _) => "baseline why=changed",
            _ if self.scope().is_some() => "nothing why=incremental-round",
            _ if source.is_single() => "nothing why=single-file",
            (None, None) => "nothing why=no-store",
            _ if baseline.is_none() => "nothing why=no-baseline",
            _ => "nothing why=baseline-damaged-or-too-different",
        };
        debug!(
            "offer role=sender entries={} against={against} blocks={} pushed={pushed} sampled={sampled}",
            source.manifest.len(),
            changed.map_or(0, |changed| changed.changes.len())
        );
    }

    /// Starts to prehash large files that the receiver will probably want to compare. These are the
    /// files that changed since the last run, or any large ones if the changes are unknown. Returns
    /// samples of them.
    fn prehash(&self, source: &Arc<Listing>, changed: Option<&Changed>) -> Vec<(u32, Samples)> {
        let manifest = &source.manifest;
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
            if let Ok(OfferedFile { file, identity, .. }) = source.open(id) {
                if identity.size >= SAMPLED_BYTES_MIN
                    && let Ok(samples) = Samples::of(identity.size, &file)
                {
                    sampled.push((id, samples));
                }
                let block = BlockSize::for_size(identity.size);
                let why = if has_changed { "changed" } else { "large" };
                debug!("prehash role=sender size={} why={why}", identity.size);
                source.prehashes.begin(identity, file.into_inner(), block, priority);
            }
        }
        // As many as fit in a message.
        sampled.truncate(SAMPLED_MAX);
        sampled
    }

    /// Contents of small touched files, to go with the offer.
    fn push(&self, source: &Arc<Listing>) -> Vec<PushedFile> {
        let is_single = source.is_single();
        if self.round.is_none() || self.scope().is_none() && !is_single || self.options.dry_run {
            return Vec::new();
        }
        let mut pushed = Vec::new();
        let mut left = PUSHED_BYTES_MAX as u64;
        let files = source.manifest.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }));
        for (id, entry) in files {
            // An unreadable file is requested later, and the failure is reported then.
            if entry.size() <= left.min(SMALL_BYTES_MAX)
                && let Ok(data) = read_all(source, id, entry.size() as usize)
            {
                left -= data.len() as u64;
                pushed.push(PushedFile { id, hash: Hash::of(&data), data });
            }
        }
        // As many as fit in a message.
        pushed.truncate(LIST_MAX);
        pushed
    }
}

impl Perform<Sender<Arc<Listing>>> for Sending {
    fn perform(&self, work: SenderWork<Arc<Listing>>) -> SenderOutcome<Arc<Listing>> {
        match work {
            SenderWork::Find => SenderOutcome::Find(self.find()),
            SenderWork::Scan(found) => SenderOutcome::Scan(self.scan(found)),
            SenderWork::Step { source, steps } => {
                let step = |(mut transfer, input): (Box<SendTransfer<OfferedFile>>, SendInput)| {
                    let is_first = matches!(input, SendInput::Begin);
                    let result = transfer.step(&source, input);
                    if log::is_on() {
                        log_file(&source, &transfer, &result, is_first);
                    }
                    (transfer, result)
                };
                SenderOutcome::Step(steps.into_iter().map(step).collect())
            }
            SenderWork::Remove { source, entries } => {
                SenderOutcome::Remove(source.remove(&entries, self.options.follows))
            }
            SenderWork::StoreBaseline { manifest, ignores } => {
                store_baseline(self.baseline.as_ref(), &manifest, &ignores);
                SenderOutcome::StoreBaseline
            }
        }
    }
}

/// Logs how the content of a file is sent.
fn log_file(
    source: &Listing,
    transfer: &SendTransfer<OfferedFile>,
    result: &Result<(Vec<Op>, SendNext), WorkError>,
    is_first: bool,
) {
    let (Some(entry), Ok((_, next))) = (source.manifest.get(transfer.id()), result) else { return };
    let (size, path) = (entry.size(), entry.path.to_path());
    let log = |how: &str| debug!("file role=sender how={how} size={size} path={}", escape(path.as_bytes()));
    if is_first {
        log(&transfer.how());
    }
    if let SendNext::Sign(windows) = next {
        log(&format!("signatures why=gaps-resemble-basis windows={}", windows.len()));
    }
}

/// Reads a small file that is still the listed one.
fn read_all(source: &Arc<Listing>, id: u32, length: usize) -> Result<Vec<u8>, WorkError> {
    let file = source.open(id)?;
    let data = file.read(0, length).map_err(read_error)?;
    match file.difference().map_err(read_error)? {
        Difference::None => Ok(data),
        _ => Err(changed()),
    }
}

/// Lets the watch of a tree enter each directory that is read, and logs what is excluded.
struct Entering<'a>(Option<&'a Watch>);

impl Look for Entering<'_> {
    fn enter(&mut self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        if let Some(watch) = self.0 {
            watch.enter(directory, path);
        }
    }

    fn exclude(&mut self, path: &[u8], reason: &dyn Fn() -> Option<String>) {
        if log::is_on() {
            debug!("exclude role=sender {} path={}", reason().unwrap_or_default(), escape(path));
        }
    }
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
