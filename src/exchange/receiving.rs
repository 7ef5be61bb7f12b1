//! `Receiving`: performs the works of a receiver.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use serde_bytes::ByteBuf;

use crate::content::blocks::{BlockSize, Outline};
use crate::content::chunk::{Average, Chunk};
use crate::content::delta;
use crate::content::hash::Hash;
use crate::disk::error::DiskError;
use crate::disk::memory::Memory;
use crate::disk::root::{Policy, Root};
use crate::disk::scan::{self, Away, scan};
use crate::disk::stage::{Durability, Metadata, Staging};
use crate::disk::stat::Identity;
use crate::disk::{clear_leftovers, has_staged};
use crate::engine::{CopiedFile, Fault, Opened, Outcome, SignOrder, SmallContent, SmallFile, Step, Work};
use crate::exchange::ahead::{Ahead, Likely};
use crate::exchange::draft::{Draft, Drafts};
use crate::exchange::guess::large_files;
use crate::exchange::rounds::Standing;
use crate::exchange::run::Perform;
use crate::exchange::sink::{Sink, SinkError, blocks_of, chunks_of, no_old, open_old, read_window};
use crate::exchange::{chain, fault, patiently, scan_options};
use crate::monitor::{Problem, Trouble};
use crate::tree::entry::{Entry, Kind, Time};
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::tree::scope::Scope;
use crate::wire::hello::Options;
use crate::wire::message::{
    AbortKind, Blocks, Old, Op, SMALL_OLD_BYTES_MAX, Stretch, Subject, Want, Window, is_signed, old_bytes_max,
};

/// With the last handle on a file that was replaced its pages are freed, 0.1 s for a gigabyte. From this length on,
/// in bytes, nobody waits for that.
const CLOSED_ASIDE_BYTES_MIN: u64 = 64 << 20;

/// Writes a destination.
pub struct Receiving {
    path: PathBuf,
    options: Options,
    memory: Option<Memory>,
    standing: Option<Arc<Standing>>,
    opened: OnceLock<Place>,
    identities: OnceLock<Vec<Identity>>,
    trees: OnceLock<Trees>,
    sinks: Mutex<HashMap<u32, Sink>>,
    ahead: Arc<Ahead>,
    drafts: Drafts,
}

/// Where the tree goes.
struct Place {
    /// `None` where nothing is there and nothing is to be made.
    root: Option<Root>,
    /// A single file: its name here.
    single: Option<TreePath>,
    /// Its absolute path, for eyes.
    shown: PathBuf,
}

struct Trees {
    wanted: Arc<Manifest>,
    present: Arc<Manifest>,
}

impl Receiving {
    /// A receiver into `path`.
    #[must_use]
    pub fn new(path: PathBuf, options: Options) -> Self {
        Self {
            path,
            options,
            memory: None,
            standing: None,
            opened: OnceLock::new(),
            identities: OnceLock::new(),
            trees: OnceLock::new(),
            sinks: Mutex::new(HashMap::new()),
            ahead: Arc::default(),
            drafts: Drafts::default(),
        }
    }

    /// The same, if there is a memory, with what it holds in mind.
    #[must_use]
    pub fn remembering(self, memory: Option<Memory>) -> Self {
        Self { memory, ..self }
    }

    /// The same, as one of several rounds.
    pub(super) fn standing(self, standing: Arc<Standing>) -> Self {
        Self { standing: Some(standing), ..self }
    }

    /// The same, which begins at once to hash large files of the destination that will probably be asked about.
    /// For a receiver that has to wait until somebody makes an offer, of a single file called `name`, say.
    #[must_use]
    pub fn looking_ahead(self, name: Option<Vec<u8>>) -> Self {
        // With --checksum all is hashed anyway.
        if self.options.dry_run || self.options.checksum {
            return self;
        }
        let (ahead, path) = (Arc::clone(&self.ahead), self.path.clone());
        let begin = move || {
            for (file, identity) in large_files(&path, name.as_deref()) {
                // Blocks are as long as the new content's length wants them, which may be less than the old one's.
                let block = BlockSize::for_size(identity.size).halved();
                ahead.begin(identity, file, block, Likely::Perhaps);
            }
        };
        // Without a thread they are hashed when they are asked for.
        let _ = thread::Builder::new().spawn(begin);
        self
    }

    // The destination.

    fn open(&self, subject: &Subject, scope: Option<Scope>) -> Result<Opened, Fault> {
        let place = match subject {
            Subject::Directory { .. } => self.open_directory()?,
            Subject::File { name } => self.open_parent(name)?,
        };
        let inode = place.root.as_ref().map(Root::inode);
        if self.standing.as_ref().is_some_and(|standing| !standing.begin(inode, scope.is_none())) {
            let text = format!("{} is not the directory that it was", place.shown.display());
            return Err(Fault::Fatal(AbortKind::Destination, text));
        }
        let mut opened = Opened {
            manifest: Arc::default(),
            path: place.shown.as_os_str().as_bytes().to_vec(),
            problems: Vec::new(),
            complete: true,
            has_staged: false,
        };
        if let Some(root) = &place.root {
            // Runs of single files into one directory do not disturb each other.
            if place.single.is_none() && !self.options.dry_run {
                patiently(|| root.lock()).map_err(|error| destination_fault(&error))?;
            }
            opened.has_staged = has_staged(root).map_err(|error| destination_fault(&error))?;
            self.list(root, place.single.as_ref(), subject, scope, &mut opened)?;
        }
        let _ = self.opened.set(place);
        Ok(opened)
    }

    fn open_directory(&self) -> Result<Place, Fault> {
        let root = self.open_root(&self.path)?;
        Ok(Place { root, single: None, shown: absolute(&self.path) })
    }

    /// Finds where a single file of this name goes: into an existing directory or one that is written with a
    /// slash at its end, else to the path itself.
    fn open_parent(&self, name: &[u8]) -> Result<Place, Fault> {
        let into = self.path.as_os_str().as_bytes().ends_with(b"/") || self.path.is_dir();
        let (directory, name) = if into {
            (self.path.as_path(), name)
        } else {
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let name = self.path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
            (parent.unwrap_or(Path::new(".")), name)
        };
        let single = TreePath::new(name)
            .map_err(|error| Fault::Fatal(AbortKind::Destination, format!("{}: {error}", escape(name))))?;
        let root = self.open_root(directory)?;
        let shown = absolute(directory).join(std::ffi::OsStr::from_bytes(name));
        Ok(Place { root, single: Some(single), shown })
    }

    fn open_root(&self, path: &Path) -> Result<Option<Root>, Fault> {
        if self.options.dry_run && !path.exists() {
            return Ok(None);
        }
        let root = if self.options.dry_run { Root::open(path) } else { Root::create(path) };
        let policy = Policy { special_bits: self.options.special_bits };
        root.map(|root| Some(root.with_policy(policy))).map_err(|error| destination_fault(&error))
    }

    fn list(
        &self,
        root: &Root,
        single: Option<&TreePath>,
        subject: &Subject,
        scope: Option<Scope>,
        opened: &mut Opened,
    ) -> Result<(), Fault> {
        let which = match (single, scope) {
            (Some(single), _) => scan::Subject::One(single.clone()),
            (None, Some(scope)) => scan::Subject::Parts(scope),
            (None, None) => scan::Subject::Whole,
        };
        let options = scan_options(self.options.checksum, &which);
        let mut scanned =
            scan(root, &which, &options, None, &mut Away).map_err(|error| destination_fault(&error))?;
        if let (Subject::File { name }, Some(entry)) = (subject, scanned.entries.first_mut()) {
            // It is compared under the name that it is offered under.
            entry.path = TreePath::new(name.as_slice())
                .map_err(|error| Fault::Fatal(AbortKind::Protocol, error.to_string()))?;
            scanned.entries.truncate(1);
        }
        // What is not there cannot have been unreadable.
        scanned.problems.retain(|error| single.is_none() || !error.is_not_found());
        opened.complete = scanned.problems.is_empty();
        opened.problems.extend(scanned.problems.iter().map(|error| Problem {
            trouble: Trouble::Unwritable,
            path: error.path().to_vec(),
            cause: chain(error),
        }));
        let manifest = Manifest::new(scanned.entries)
            .map_err(|error| Fault::Fatal(AbortKind::Destination, error.to_string()))?;
        opened.manifest = Arc::new(manifest);
        let _ = self.identities.set(scanned.identities);
        Ok(())
    }

    fn close(&self, subject: &Subject) -> Result<(), Fault> {
        let root = self.root()?;
        let own = self.place()?.single.as_ref().map(Staging::name);
        // In a directory that several runs share, what the others stage stays.
        clear_leftovers(root, |name| own.as_ref().is_some_and(|own| own.as_bytes() != name))
            .map_err(|error| destination_fault(&error))?;
        if let Subject::Directory { mode, seconds, nanos } = *subject
            && let Some(mtime) = Time::new(seconds, nanos)
        {
            root.set_self(mode, mtime).map_err(|error| destination_fault(&error))?;
        }
        Ok(())
    }

    // What is there.

    fn sign(&self, order: SignOrder) -> Result<(Want, Option<Hash>), Fault> {
        let SignOrder { id, at, may_be_staged } = order;
        let size = self.entry(id)?.size();
        let staged = if may_be_staged { self.staged(id, size)? } else { None };
        let mut want = Want { id, staged, old: None };
        let Some(at) = at else { return Ok((want, None)) };
        if want.staged.is_none()
            && let Some(Outline { ids, hash }) = self.drafts.make(id, || self.draft(id, at))
        {
            want.old = Some(Old::Blocks(Blocks { length: size, ids }));
            return Ok((want, Some(hash)));
        }
        let ahead = self.ahead.take(self.basis(at)?.1);
        // Opened after it was hashed: it is still what it was when that began.
        let (file, seen) = self.open_basis(at)?;
        if want.staged.is_none() && is_signed(size, seen.size) {
            let signature = ByteBuf::from(self.sign_file(at)?);
            want.old = Some(Old::Signed { length: seen.size, signature });
            return Ok((want, None));
        }
        let most = old_bytes_max(size);
        let outline =
            ahead.filter(|_| seen.size <= most).and_then(|nodes| nodes.outline(BlockSize::for_size(size)));
        let (old, hash) = match outline {
            Some(Outline { ids, hash }) => (Blocks { length: seen.size, ids }, Some(hash)),
            None => blocks_of(seen.size, size, most, &|buffer, at| file.read_exact_at(buffer, at))
                .map_err(|error| unwritable(&error))?,
        };
        want.old = Some(Old::Blocks(old));
        Ok((want, hash))
    }

    /// A copy of the old version of a large file, made while that is named, where it looks as if it had been edited in
    /// place.
    fn draft(&self, id: u32, at: u32) -> Option<Draft> {
        let (root, path, size) = (self.root().ok()?, self.path(id).ok()?, self.entry(id).ok()?.size());
        let (basis, seen) = self.basis(at).ok()?;
        let is_edited = seen.size == size && basis == path && Draft::is_worth_it(size);
        // Named already; and there must be room for more than what is needed anyway.
        if !is_edited || self.ahead.is_done(seen) || root.space().ok()?.bytes / 2 < size {
            return None;
        }
        let old = open_old(root, basis, seen).ok()?;
        let (staging, _) = Staging::open(root, path).ok()?;
        if staging.shares_extents() {
            return None;
        }
        self.ahead.cancel(seen);
        Draft::of(&old, size, staging)
    }

    /// Lets go of files that were hashed ahead and that nobody will ask about: those that are what they shall be,
    /// and those that are not what they were.
    fn stop_looking_ahead(&self) {
        let (Ok(Trees { wanted, present }), Some(identities)) = (self.trees(), self.identities.get()) else {
            return;
        };
        self.ahead.only(|begun| {
            let at = identities.iter().position(|identity| identity == begun);
            let old = at.and_then(|at| present.get(u32::try_from(at).ok()?));
            let new = old.and_then(|old| wanted.get(wanted.position(&old.path)?));
            old.is_some_and(|old| new.is_none_or(|new| (new.size(), new.mtime) != (old.size(), old.mtime)))
        });
    }

    /// What an earlier run staged of a file.
    fn staged(&self, id: u32, size: u64) -> Result<Option<Blocks>, Fault> {
        let (root, path) = (self.root()?, self.path(id)?);
        let found = patiently(|| Staging::find(root, path));
        let found = found.map_err(|error| fault(&error, Trouble::Unwritable))?;
        let Some(staging) = found.filter(|staging| !staging.is_empty()) else { return Ok(None) };
        let blocks = blocks_of(staging.len(), size, size, &|buffer, at| staging.read_at(buffer, at));
        Ok(Some(blocks.map_err(|error| unwritable(&error))?.0))
    }

    fn sign_file(&self, at: u32) -> Result<Vec<u8>, Fault> {
        delta::sign(&self.read_basis(at)?).map_err(|error| sink_fault(SinkError::Basis(error.to_string())))
    }

    /// All of a small basis.
    fn read_basis(&self, at: u32) -> Result<Vec<u8>, Fault> {
        let (_, seen) = self.basis(at)?;
        if seen.size > SMALL_OLD_BYTES_MAX {
            return Err(Fault::Fatal(
                AbortKind::Protocol,
                "a signature of what is too long for one".to_owned(),
            ));
        }
        let (file, _) = self.open_basis(at)?;
        let window = Window { offset: 0, length: seen.size as u32 };
        read_window(&file, window).map_err(sink_fault)
    }

    fn cut(&self, at: u32, stretch: Stretch) -> Result<Vec<Chunk>, Fault> {
        let (file, _) = self.open_basis(at)?;
        let average = Average::for_size(stretch.length)
            .ok_or_else(|| Fault::Fatal(AbortKind::Protocol, "a stretch too long to be cut".to_owned()))?;
        let chunks = chunks_of(&file, stretch.offset..stretch.offset + stretch.length, average)
            .map_err(|error| unwritable(&error))?;
        let length: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        if length == stretch.length { Ok(chunks) } else { Err(sink_fault(no_old())) }
    }

    fn sign_windows(&self, at: u32, windows: &[Window]) -> Result<Vec<Vec<u8>>, Fault> {
        let (file, _) = self.open_basis(at)?;
        windows
            .iter()
            .map(|&window| {
                let old = read_window(&file, window).map_err(sink_fault)?;
                delta::sign(&old).map_err(|error| Fault::Fatal(AbortKind::Protocol, error.to_string()))
            })
            .collect()
    }

    // Contents.

    fn store(&self, file: &SmallFile) -> Result<(), Fault> {
        let made;
        let data = match &file.content {
            SmallContent::Whole(data) => data,
            SmallContent::Delta { at, delta } => {
                made = self.apply_delta(file.id, *at, delta)?;
                &made
            }
        };
        if Hash::of(data) != file.hash {
            return Err(corrupt());
        }
        let unwritable = |error: &DiskError| fault(error, Trouble::Unwritable);
        let (root, path) = (self.root()?, self.path(file.id)?);
        if self.trees()?.present.position(&self.entry(file.id)?.path).is_none() {
            let metadata = self.metadata(file.id)?;
            if root.put_new(path, data, &metadata).map_err(|error| unwritable(&error))? {
                return Ok(());
            }
        }
        let (mut staging, _) = Staging::open(root, path).map_err(|error| unwritable(&error))?;
        staging.keep(0).and_then(|()| staging.append(data)).map_err(|error| unwritable(&error))?;
        self.install(file.id, staging)
    }

    fn apply_delta(&self, id: u32, at: u32, delta: &[u8]) -> Result<Vec<u8>, Fault> {
        let old = self.read_basis(at)?;
        // Checked to be small when it came.
        let size = self.entry(id)?.size() as usize;
        delta::apply(&old, delta, size).map_err(|error| sink_fault(SinkError::Basis(error.to_string())))
    }

    fn copy(&self, file: CopiedFile) -> Result<(), Fault> {
        let (_, seen) = self.basis(file.at)?;
        let ops = vec![Op::Copy { offset: 0, length: seen.size }];
        self.sink(file.id, Some(file.at), ops, Some(file.hash))
    }

    fn sink(&self, id: u32, at: Option<u32>, ops: Vec<Op>, end: Option<Hash>) -> Result<(), Fault> {
        let taken = self.sinks().remove(&id);
        let mut sink = match taken {
            Some(sink) => sink,
            None => {
                let basis = at.map(|at| self.basis(at)).transpose()?;
                Sink::begin(self.root()?, self.path(id)?, basis, self.drafts.take(id)).map_err(sink_fault)?
            }
        };
        for op in ops {
            sink.apply(op).map_err(sink_fault)?;
        }
        match end {
            Some(hash) => {
                let (staging, old) = sink.finish(hash).map_err(sink_fault)?;
                let is_long = staging.len() >= CLOSED_ASIDE_BYTES_MIN;
                let installed = self.install(id, staging);
                if is_long {
                    // If there can be no thread, it is closed here.
                    let _ = thread::Builder::new().spawn(move || drop(old));
                }
                installed
            }
            None => {
                self.sinks().insert(id, sink);
                Ok(())
            }
        }
    }

    fn install(&self, id: u32, staging: Staging) -> Result<(), Fault> {
        let metadata = self.metadata(id)?;
        let seen = self.seen(id)?;
        let present = &self.trees()?.present;
        if let Some(at) = present.position(&self.entry(id)?.path)
            && present.get(at).is_some_and(Entry::is_directory)
        {
            self.clear(at)?;
        }
        staging
            .finish(self.root()?, &metadata, seen.as_ref(), Durability::Eventually)
            .map_err(|error| fault(&error, Trouble::Unwritable))
    }

    // Names, modes, times.

    fn apply(&self, step: Step) -> Result<(), Fault> {
        let done = match step {
            Step::Clear { at } => return self.clear(at),
            Step::Unlock { at } => {
                let entry = self.trees()?.present.get(at).ok_or_else(out_of_turn)?;
                self.root()?.make_directory(&entry.path, entry.mode).map(drop)
            }
            Step::MakeDirectory { id } => {
                let mode = self.entry(id)?.mode;
                self.root()?.make_directory(self.path(id)?, mode).map(drop)
            }
            Step::MakeLink { id } => self.make_link(id)?,
            Step::Adjust { id } => self.adjust(id)?,
            Step::Move { id, at, hash } => return self.move_file(CopiedFile { id, at, hash }),
            Step::Remove { at } => return self.remove(at),
        };
        done.map_err(|error| fault(&error, Trouble::Unwritable))
    }

    fn make_link(&self, id: u32) -> Result<Result<(), DiskError>, Fault> {
        let entry = self.entry(id)?;
        let Kind::Symlink { target } = &entry.kind else { return Err(out_of_turn()) };
        Ok(self.root()?.make_symlink(self.path(id)?, target, entry.mtime, self.seen(id)?.as_ref()))
    }

    fn adjust(&self, id: u32) -> Result<Result<(), DiskError>, Fault> {
        let (root, path, entry) = (self.root()?, self.path(id)?, self.entry(id)?);
        Ok(match &entry.kind {
            Kind::Directory => root.set_directory(path, entry.mode, entry.mtime),
            Kind::Symlink { .. } => root.set_link_time(path, entry.mtime),
            Kind::File { .. } => {
                // It turned out to be the same.
                if let Some(draft) = self.drafts.take(id) {
                    draft.discard();
                }
                let seen = self.seen(id)?.ok_or_else(out_of_turn)?;
                match root.set_file(path, entry.mode, entry.mtime, &seen) {
                    // Its other names may lie outside and are not to change: it becomes a file of its own.
                    Err(error) if error.is_linked() => return self.separate(id, &seen).map(Ok),
                    result => result.map(drop),
                }
            }
        })
    }

    fn move_file(&self, file: CopiedFile) -> Result<(), Fault> {
        let (entry, (from, seen)) = (self.entry(file.id)?, self.basis(file.at)?);
        let to = self.path(file.id)?;
        match self.root()?.move_file(from, seen, to, entry.mode, entry.mtime) {
            // Its other names may lie outside and are not to change with it.
            Err(error) if error.is_linked() => {
                self.copy(file)?;
                self.remove(file.at)
            }
            result => result.map_err(|error| fault(&error, Trouble::Unwritable)),
        }
    }

    /// Writes a file that has other names anew, with the same content.
    fn separate(&self, id: u32, seen: &Identity) -> Result<(), Fault> {
        let unwritable = |error: &DiskError| fault(error, Trouble::Unwritable);
        let (root, path) = (self.root()?, self.path(id)?);
        let old = open_old(root, path, seen).map_err(sink_fault)?;
        let (mut staging, _) = patiently(|| Staging::open(root, path)).map_err(|error| unwritable(&error))?;
        staging
            .keep(0)
            .and_then(|()| staging.append_from(&old, 0, seen.size))
            .map_err(|error| unwritable(&error))?;
        self.install(id, staging)
    }

    /// Removes what was listed at and below an entry, and nothing else.
    fn clear(&self, at: u32) -> Result<(), Fault> {
        let present = &self.trees()?.present;
        let rest = present.entries().get(at as usize..).unwrap_or_default();
        let Some(top) = rest.first() else { return Err(out_of_turn()) };
        let below = rest.iter().skip(1).take_while(|entry| entry.path.is_below(&top.path)).count();
        for position in (at..=at + u32::try_from(below).unwrap_or(0)).rev() {
            self.remove(position)?;
        }
        Ok(())
    }

    fn remove(&self, at: u32) -> Result<(), Fault> {
        let entry = self.trees()?.present.get(at).ok_or_else(out_of_turn)?;
        let seen = self.identities.get().and_then(|identities| identities.get(at as usize));
        let path = self.place()?.single.as_ref().unwrap_or(&entry.path);
        let root = self.root()?;
        let removed = match entry.kind {
            Kind::Directory => root.remove_directory(path),
            Kind::File { .. } | Kind::Symlink { .. } => root.remove_file(path, seen),
        };
        removed.map_err(|error| fault(&error, Trouble::Unwritable))
    }

    // Looking up.

    fn place(&self) -> Result<&Place, Fault> {
        self.opened.get().ok_or_else(out_of_turn)
    }

    fn root(&self) -> Result<&Root, Fault> {
        self.place()?.root.as_ref().ok_or_else(out_of_turn)
    }

    fn trees(&self) -> Result<&Trees, Fault> {
        self.trees.get().ok_or_else(out_of_turn)
    }

    fn entry(&self, id: u32) -> Result<&Entry, Fault> {
        self.trees()?.wanted.get(id).ok_or_else(out_of_turn)
    }

    fn metadata(&self, id: u32) -> Result<Metadata, Fault> {
        let entry = self.entry(id)?;
        Ok(Metadata { mode: entry.mode, mtime: entry.mtime })
    }

    /// Where an entry goes.
    fn path(&self, id: u32) -> Result<&TreePath, Fault> {
        let entry = self.entry(id)?;
        Ok(self.place()?.single.as_ref().unwrap_or(&entry.path))
    }

    /// Where a basis lies, and what was seen there.
    fn basis(&self, at: u32) -> Result<(&TreePath, &Identity), Fault> {
        let entry = self.trees()?.present.get(at);
        let seen = self.identities.get().and_then(|identities| identities.get(at as usize));
        let (Some(entry), Some(seen)) = (entry, seen) else { return Err(out_of_turn()) };
        Ok((self.place()?.single.as_ref().unwrap_or(&entry.path), seen))
    }

    /// A basis, if it is still what was seen.
    fn open_basis(&self, at: u32) -> Result<(File, &Identity), Fault> {
        let (path, seen) = self.basis(at)?;
        Ok((open_old(self.root()?, path, seen).map_err(sink_fault)?, seen))
    }

    /// What was seen in an entry's place that a rename is going to replace: a file, a link or nothing. (A
    /// directory in its place has been removed.)
    fn seen(&self, id: u32) -> Result<Option<Identity>, Fault> {
        let present = &self.trees()?.present;
        let at = present.position(&self.entry(id)?.path);
        let replaced = at.filter(|&at| present.get(at).is_some_and(|entry| !entry.is_directory()));
        Ok(replaced.and_then(|at| self.identities.get()?.get(at as usize).copied()))
    }

    fn sinks(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Sink>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Perform for Receiving {
    fn perform(&self, work: Work) -> Outcome {
        match work {
            Work::Open { subject, scope } => Outcome::Open(self.open(&subject, scope)),
            Work::Plan { wanted, present } => {
                let _ = self.trees.set(Trees { wanted, present });
                self.stop_looking_ahead();
                Outcome::Plan
            }
            Work::Sign(orders) => {
                Outcome::Sign(orders.into_iter().map(|order| (order.id, self.sign(order))).collect())
            }
            Work::SignWindows { id, at, windows } => {
                Outcome::SignWindows(id, self.sign_windows(at, &windows))
            }
            Work::SignFiles(files) => {
                Outcome::SignFiles(files.into_iter().map(|(id, at)| (id, self.sign_file(at))).collect())
            }
            Work::Cut { id, at, stretch } => Outcome::Cut(id, self.cut(at, stretch)),
            Work::Store(files) => {
                Outcome::Store(files.iter().map(|file| (file.id, self.store(file))).collect())
            }
            Work::Sink { id, at, ops, end } => Outcome::Sink(id, self.sink(id, at, ops, end)),
            Work::Copy(files) => {
                Outcome::Copy(files.into_iter().map(|file| (file.id, self.copy(file))).collect())
            }
            Work::Apply(steps) => {
                Outcome::Apply(steps.into_iter().map(|step| (step, self.apply(step))).collect())
            }
            Work::Close(subject) => Outcome::Close(self.close(&subject)),
            Work::Recall(_) => Outcome::Recall(self.memory.as_ref().and_then(Memory::recall)),
            Work::Remember { manifest, ignores } => {
                super::remember(self.memory.as_ref(), &manifest, &ignores)
            }
            other => Outcome::Close(Err(Fault::Fatal(
                AbortKind::Protocol,
                format!("a work that is not a receiver's: {:?}", std::mem::discriminant(&other)),
            ))),
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn destination_fault(error: &DiskError) -> Fault {
    let kind = if error.is_busy() {
        AbortKind::Busy
    } else if error.is_no_space() || error.is_broken() {
        AbortKind::Storage
    } else {
        AbortKind::Destination
    };
    Fault::Fatal(kind, chain(error))
}

fn sink_fault(error: SinkError) -> Fault {
    match error {
        SinkError::Disk(error) => fault(&error, Trouble::Unwritable),
        SinkError::Basis(text) => Fault::Entry(Trouble::Corrupt, text),
        SinkError::Peer(text) => Fault::Fatal(AbortKind::Protocol, text.to_owned()),
    }
}

fn unwritable(error: &std::io::Error) -> Fault {
    Fault::Entry(Trouble::Unwritable, format!("cannot read it: {error}"))
}

fn corrupt() -> Fault {
    Fault::Entry(Trouble::Corrupt, "what arrived does not have the hash that was announced".to_owned())
}

fn out_of_turn() -> Fault {
    Fault::Fatal(AbortKind::Protocol, "a work out of turn".to_owned())
}
