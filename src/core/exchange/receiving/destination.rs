//! Opens, lists and closes the destination.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::geteuid;
use serde_bytes::ByteBuf;

use crate::disk::accounts::accounts;
use crate::disk::error::DiskError;
use crate::disk::expand_home;
use crate::disk::identities::Identities;
use crate::disk::inaccessible::give_owner_access;
use crate::disk::scan::{self, Away, ScanOptions, scan};
use crate::disk::set_id::Policy;
use crate::disk::stage::Staging;
use crate::disk::stat::FileKind;
use crate::disk::writable::WritableRoot;
use crate::disk::xattr::Namespaces;
use crate::disk::{clear_leftovers, staged};
use crate::engine::{Destination, Opened, RootMetadata, WorkError};
use crate::exchange::common::{chain, metadata_error, renamed, retry_while_busy, scan_options};
use crate::exchange::kept_trees::View;
use crate::exchange::receiving::Receiving;
use crate::exchange::receiving::backups::path_inside;
use crate::exchange::receiving::basis_trees::OpenBases;
use crate::exchange::receiving::tree::{OpenTree, PlannedTree};
use crate::exchange::unusable;
use crate::log::debug;
use crate::monitor::{Problem, ProblemKind};
use crate::tree::doubt::Doubts;
use crate::tree::kept::Kept;
use crate::tree::manifest::Manifest;
use crate::tree::metadata::MetadataOptions;
use crate::tree::path::{TreePath, escape};
use crate::tree::subtrees::SubtreeSet;
use crate::tree::time_rule::TimeRule;
use crate::tree::tree_id::Pair;
use crate::wire::hello::{Options, Role};
use crate::wire::message::{AbortKind, Subject};

impl Receiving {
    pub(super) fn open(
        &self,
        subject: &Subject,
        scope: Option<SubtreeSet>,
        inaccessible: &[TreePath],
    ) -> Result<(Opened, Arc<OpenTree>), WorkError> {
        let (was_there, begin) = (self.path.exists(), Instant::now());
        let mut tree = match subject {
            Subject::Directory { .. } | Subject::Several => self.open_directory()?,
            Subject::File { name } => self.open_parent(name)?,
        };
        if let Some(session) = &self.session
            && !session
                .state()
                .begin(tree.root.as_deref(), scope.is_none())
                .map_err(|error| destination_error(&error))?
        {
            let text = format!("{} was replaced by another directory", tree.shown.display());
            return Err(WorkError::Fatal(AbortKind::Destination, text));
        }
        let mut opened = Opened {
            manifest: Arc::default(),
            doubts: Doubts::default(),
            path: tree.shown.as_os_str().as_bytes().to_vec(),
            problems: Vec::new(),
            complete: true,
            inaccessible: Vec::new(),
            kept: Kept::default(),
            filter: None,
            unclear: Arc::default(),
            has_staged: false,
            time_rule: TimeRule::Exact,
            room: None,
            accounts: self.options.metadata.as_ref().map(|_| Arc::new(accounts())),
            bases: None,
            undoing: None,
            destination: self.destination(was_there, tree.root.as_deref().filter(|_| tree.single.is_none())),
        };
        let own = tree.root.as_ref().map_or(self.path.as_path(), |root| root.path());
        let bases = OpenBases::open_all(&self.options, own, tree.single.as_ref(), subject);
        tree.bases = bases.map_err(|error| destination_error(&error))?;
        opened.bases = Some(Arc::clone(&tree.bases.listed)).filter(|_| self.options.bases.is_some());
        tree.root_time = opened.destination.metadata.map(|(_, time)| time).filter(|_| was_there);
        if let Some(root) = &tree.root.clone() {
            // Runs of single files into one directory do not disturb each other. A round of a watch
            // takes the lock only when it has changes to make. A lock shows in the directory, and
            // two watches against each other would never come to rest.
            if tree.single.is_none() && !self.options.dry_run && self.session.is_none() {
                retry_while_busy(|| root.lock()).map_err(|error| destination_error(&error))?;
            }
            if !self.options.dry_run {
                root.begin_writing(tree.single.is_none(), scope.is_none());
            }
            for directory in inaccessible {
                // The listing reports a directory that stays closed.
                let _ = root.give_owner_access(directory);
            }
            let listed = self.list(root, tree.single.as_ref(), subject, scope, &mut opened)?;
            (tree.identities, tree.ctimes_move, tree.doubted, tree.is_whole) = listed;
            if self.options.undo.is_own() {
                self.find_undo(root, &mut tree, &mut opened)?;
            }
            let staged = staged(root).map_err(|error| destination_error(&error))?;
            opened.has_staged = staged.files > 0;
            if !self.options.dry_run {
                let room = Self::room(root, staged, &opened.manifest, &tree.identities);
                (opened.room, tree.reserve) =
                    room.map_or((None, None), |(room, reserve)| (Some(room), reserve));
            }
        }
        debug!(
            "scan role=receiver entries={} bytes={} problems={} parts={} is_new={} ms={}",
            opened.manifest.len(),
            opened.manifest.content_bytes(),
            opened.problems.len(),
            opened.has_staged,
            !was_there,
            begin.elapsed().as_millis()
        );
        Ok((opened, Arc::new(tree)))
    }

    fn open_directory(&self) -> Result<OpenTree, WorkError> {
        if !self.options.dry_run {
            // Opening it reports a directory that stays closed.
            let _ = give_owner_access(&self.path);
        }
        let root = self.open_root(&self.path, true)?;
        Ok(OpenTree::new(root, None, absolute(&self.path)))
    }

    /// Finds the directory and name of a single file. An existing directory, or a path that ends
    /// with a slash, takes the file under its own name. Otherwise the path itself is the name.
    fn open_parent(&self, name: &[u8]) -> Result<OpenTree, WorkError> {
        let into = self.path.as_os_str().as_bytes().ends_with(b"/") || self.path.is_dir();
        let (directory, name) = if into {
            (self.path.as_path(), name)
        } else {
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let name = self.path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
            (parent.unwrap_or(Path::new(".")), name)
        };
        let single = TreePath::new(name).map_err(|error| {
            WorkError::Fatal(AbortKind::Destination, format!("{}: {error}", escape(name)))
        })?;
        let root = self.open_root(directory, false)?;
        let shown = absolute(directory).join(OsStr::from_bytes(name));
        Ok(OpenTree::new(root, Some(single), shown))
    }

    fn open_root(&self, path: &Path, is_directory: bool) -> Result<Option<Arc<WritableRoot>>, WorkError> {
        if self.options.undo.is_own() && !path.exists() {
            return Err(WorkError::Fatal(AbortKind::Selection, format!("{} does not exist", path.display())));
        }
        if self.options.dry_run && !path.exists() {
            let blocked = unusable::blocked(path, is_directory);
            return blocked.map_or(Ok(None), |text| Err(WorkError::Fatal(AbortKind::Destination, text)));
        }
        if !self.options.dry_run {
            let named = path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty());
            self.ancestors
                .note(named.take_while(|ancestor| !ancestor.exists()).map(Path::to_owned).collect());
        }
        let root = if self.options.dry_run { WritableRoot::open(path) } else { WritableRoot::create(path) };
        let metadata = self.options.metadata.as_deref();
        let keeps =
            |is_kept: fn(&MetadataOptions) -> bool| geteuid().is_root() && metadata.is_some_and(is_kept);
        let policy = Policy {
            set_id_owner: self.options.set_id_owner,
            keeps_user: keeps(|metadata| metadata.owner),
            keeps_group: keeps(|metadata| metadata.group),
            namespaces: Namespaces::of(metadata),
        };
        root.map(|root| Some(Arc::new(root.with_policy(policy)))).map_err(|error| {
            match destination_error(&error) {
                WorkError::Fatal(AbortKind::Destination, _) => {
                    let text = unusable::destination(path, is_directory, &error);
                    WorkError::Fatal(AbortKind::Destination, text)
                }
                other => other,
            }
        })
    }

    fn list(
        &self,
        root: &WritableRoot,
        single: Option<&TreePath>,
        subject: &Subject,
        scope: Option<SubtreeSet>,
        opened: &mut Opened,
    ) -> Result<(Arc<Identities>, bool, HashSet<u32>, bool), WorkError> {
        let which = match (single, scope) {
            (Some(single), _) => scan::Subject::One(single.clone()),
            (None, Some(scope)) => {
                let aliases = self.session.as_ref().map(|session| Arc::clone(&session.state().aliases));
                scan::Subject::Subtrees(scope, aliases.unwrap_or_default())
            }
            (None, None) => scan::Subject::Whole,
        };
        let options =
            ScanOptions { doubts: true, is_destination: true, ..scan_options(&self.options, &which) };
        let mut filter = self.options.protecting();
        let is_undo = self.options.undo.is_own();
        let is_kept = which == scan::Subject::Whole && self.session.is_none() && !is_undo;
        let mut scanned = match self.kept.as_ref().filter(|_| is_kept) {
            Some(kept) => kept.list(root, View::new(Role::Receiver, &self.options), &mut filter, &mut Away),
            None => {
                // The user named a single file explicitly, so rules do not apply to it.
                let filter = Some(&mut filter).filter(|_| single.is_none() && !is_undo);
                scan(root, &which, &options, filter, &mut Away)
            }
        }
        .map_err(|error| destination_error(&error))?;
        opened.filter = Some(filter).filter(|_| single.is_none() && !is_undo);
        root.seen_markers(std::mem::take(&mut scanned.markers));
        if let Subject::File { name } = subject {
            // Compare the file under its offered name.
            let name = TreePath::new(name.as_slice())
                .map_err(|error| WorkError::Fatal(AbortKind::Protocol, error.to_string()))?;
            scanned.manifest = renamed(&scanned.manifest, &name)
                .map(Arc::new)
                .map_err(|error| WorkError::Fatal(AbortKind::Protocol, error.to_string()))?;
            scanned.doubts.truncate(1);
        }
        let first = scanned.identities.get(&scanned.manifest, 0);
        let device = first.is_some_and(|identity| identity.kind == FileKind::Device);
        if single.is_some() && device {
            let text = format!("{} is a device, not a file", escape(self.path.as_os_str().as_bytes()));
            return Err(WorkError::Fatal(AbortKind::Destination, text));
        }
        // A missing entry is not an unreadable one.
        scanned.problems.retain(|error| single.is_none() || !error.is_not_found());
        let is_complete = scanned.problems.is_empty() && scanned.skipped.excluded == 0;
        let unlisted = scanned.problems.iter().filter_map(|error| TreePath::new(error.path()).ok());
        let backups = self.options.backup.as_ref().and_then(|options| path_inside(options, root));
        let kept = unlisted.chain(scanned.boundaries.iter().cloned()).chain(backups);
        opened.kept = Kept::new(kept.collect());
        root.set_boundaries(scanned.boundaries);
        opened.problems.extend(scanned.problems.iter().map(|error| Problem {
            kind: ProblemKind::Unlisted,
            path: error.path().to_vec(),
            cause: error.reason().to_string(),
        }));
        opened.inaccessible = scanned.inaccessible;
        opened.unclear = Arc::new(scanned.unclear);
        opened.manifest = scanned.manifest;
        opened.time_rule = self.time_rule(root, &opened.manifest);
        opened.doubts = scanned.doubts;
        if opened.time_rule != TimeRule::Exact {
            let is_suspect = |at: &u32| {
                let seen = scanned.identities.get(&opened.manifest, *at);
                seen.is_some_and(|seen| {
                    seen.kind == FileKind::File && opened.time_rule.may_hide_a_change(seen.mtime, seen.ctime)
                })
            };
            let suspects: Vec<u32> = opened.manifest.iter().map(|(at, _)| at).filter(is_suspect).collect();
            opened.doubts.add_unverified(suspects);
        }
        let doubted = opened.doubts.positions().collect();
        let is_whole = is_complete && which == scan::Subject::Whole;
        let ctimes_move = scanned.is_kept || !scanned.linked.is_empty();
        Ok((scanned.identities, ctimes_move, doubted, is_whole))
    }

    /// The rule for times on the destination's filesystem. Only times that are all coarse need a
    /// look at it. A dry run writes nothing, so it may have to believe them.
    fn time_rule(&self, root: &WritableRoot, present: &Manifest) -> TimeRule {
        if self.options.time_rule.is_some() {
            return TimeRule::Exact;
        }
        let coarsest = TimeRule::coarsest(present.entries().map(|entry| entry.mtime));
        if coarsest == TimeRule::Exact {
            return TimeRule::Exact;
        }
        let known = self.session.as_ref().and_then(|session| session.state().time_rule);
        let found = known.or_else(|| root.time_rule(!self.options.dry_run));
        if let Some(session) = &self.session {
            session.state().time_rule = found;
        }
        found.unwrap_or(if self.options.dry_run { coarsest } else { TimeRule::Exact })
    }

    /// Locks a directory that will be changed, unless this run holds the lock already.
    pub(super) fn lock(&self, tree: &OpenTree) -> Result<(), WorkError> {
        match &tree.root {
            Some(root) if tree.single.is_none() && !root.is_locked() => {
                retry_while_busy(|| root.lock()).map_err(|error| destination_error(&error))
            }
            _ => Ok(()),
        }
    }

    /// Facts about the destination besides its entries.
    fn destination(&self, was_there: bool, root: Option<&WritableRoot>) -> Destination {
        let Options { delete, consent, history, .. } = &self.options;
        let is_named = |path: &ByteBuf| root.is_some_and(|root| root.is_at(&expand_home(path)));
        let known = self.session.as_ref().map(|session| session.state().history(*history));
        let (history, withheld) = known.unwrap_or_else(|| (*history, Arc::default()));
        Destination {
            is_new: !was_there,
            metadata: root.and_then(|root| root.own_metadata()),
            attributes: root.and_then(|root| root.own_attributes(self.options.metadata.as_deref())),
            tree_id: root.map(|root| root.tree_id()).unwrap_or_default(),
            is_ours: root.is_some_and(|root| root.is_ours()),
            is_protected: *delete && root.is_some_and(|root| root.is_protected()),
            is_forced: *delete && consent.force_in.iter().any(is_named),
            history,
            withheld,
            is_round: self.session.is_some(),
        }
    }

    pub(super) fn close(
        &self,
        tree: &PlannedTree,
        metadata: Option<RootMetadata>,
        pair: Option<Pair>,
    ) -> Result<(), WorkError> {
        let root = &tree.root;
        let is_verified = tree.open.is_whole && tree.doubted().is_empty();
        if !self.options.fsync {
            root.settle(is_verified, false).map_err(|error| destination_error(&error))?;
        }
        if let Some(backups) = &tree.backups {
            backups.close();
        }
        tree.undo
            .as_ref()
            .map_or(Ok(()), |undo| undo.close(&tree.present))
            .map_err(|error| destination_error(&error))?;
        if let Some(run) = tree.open.undone.as_ref().filter(|run| run.is_complete()) {
            run.forget(root).map_err(|error| destination_error(&error))?;
        }
        let own = tree.open.single.as_ref().map(Staging::name);
        // In a directory that several runs share, the others' staged files stay.
        clear_leftovers(root, |name| own.as_ref().is_some_and(|own| own.as_bytes() != name))
            .map_err(|error| destination_error(&error))?;
        // Unlock before the time is set and before the peer is told: a peer that is told may end
        // this process.
        root.unlock();
        let set = metadata.map_or(Ok(()), |RootMetadata { mode, mtime, attributes }| {
            root.set_self(mode, mtime, attributes.as_deref())
        });
        if let Some(error) = set.as_ref().err().filter(|error| !error.is_refused()) {
            return Err(destination_error(error));
        }
        if self.options.fsync {
            // Sync names, modes and times of everything, and files that an earlier run left
            // unsynced.
            root.settle(is_verified, true).map_err(|error| destination_error(&error))?;
        }
        if let (Some(session), Some(pair)) = (&self.session, pair) {
            session.state().pair = Some(pair);
        }
        set.map_err(metadata_error)
    }
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn destination_error(error: &DiskError) -> WorkError {
    let kind = if error.is_busy() {
        AbortKind::Busy
    } else if error.is_no_space() || error.is_broken() {
        AbortKind::Storage
    } else {
        AbortKind::Destination
    };
    WorkError::Fatal(kind, chain(error))
}
