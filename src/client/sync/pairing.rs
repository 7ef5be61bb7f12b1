//! Pairs of a source and its copy, as the client knows them: one small private file for each pair.
//!
//! A pair decides whether deletions need consent. So it is kept apart from the baselines of
//! [`crate::disk::baseline`], which only save bytes and are pruned early. An unreadable pair counts
//! as unknown, and an unknown pair needs consent.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::content::hash::Hasher;
use crate::monitor::{Event, Monitor, Notice, Preparation, Warning};
use crate::private;
use crate::sync::baseline::where_to;
use crate::sync::endpoint::Endpoint;
use crate::sync::job::{Job, SharedMonitor};
use crate::sync::target::{session_of, state_dir};
use crate::tree::tree_id::Pair;
use crate::wire::hello::{History, InSession, Options};

/// Maximum number of stored pairs: the most recently used ones stay.
const PAIRS_MAX: usize = 10_000;

/// Age at which an unused pair is removed.
const UNUSED_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Age at which a record is rewritten, so that its file's time shows the last use.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// The content of a pair's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pair: Pair,
    /// The VM of the session that one side is in: a hash of the session's id and the host key.
    machine: Option<String>,
}

/// The known facts about the source and the destination of a job.
pub(super) struct Pairing {
    /// `None` if nothing can be stored.
    file: Option<PathBuf>,
    /// The side that is in a session, if one is: `true` for the source.
    is_source_in_session: Option<bool>,
    known: Mutex<PairingState>,
}

#[derive(Default)]
struct PairingState {
    record: Option<Record>,
    /// The session's VM that was reached.
    machine: Option<String>,
}

impl Pairing {
    /// Loads the stored pair of a job.
    pub(super) fn of(job: &Job) -> Arc<Self> {
        let is_in_session =
            |endpoint: &Endpoint| matches!(endpoint, Endpoint::Session { .. } | Endpoint::Setup { .. });
        let is_source_in_session = match (is_in_session(&job.source), is_in_session(&job.destination)) {
            (false, false) => None,
            (is_source, _) => Some(is_source),
        };
        let file = state_dir().ok().map(|state| state.join("copies").join(name(job)));
        let record = file.as_deref().and_then(read);
        // The other side reports an unchanged pair only once, so its use is recorded here.
        if let (Some(file), Some(record)) = (&file, &record)
            && !is_fresh(file)
        {
            let _ = write(file, record);
        }
        // A setup names its session in advance; other sessions are known only after connecting.
        let machine = session_of(&job.connect_options);
        let known = Mutex::new(PairingState { record, machine });
        Arc::new(Self { file, is_source_in_session, known })
    }

    /// Sets the session's VM after connecting to it.
    pub(super) fn met(&self, machine: String) {
        self.known().machine = Some(machine);
    }

    /// The options, completed by the known pair.
    pub(super) fn options(&self, options: &Options) -> Options {
        let known = self.known();
        let session = self.is_source_in_session.map(|is_source| {
            let then = known.record.as_ref().and_then(|record| record.machine.as_ref());
            // Where it does not matter for deletions, the VM is unknown before connecting.
            let is_other = then.zip(known.machine.as_ref()).is_some_and(|(then, now)| then != now);
            InSession { is_source, is_other }
        });
        let pair = known.record.as_ref().map(|record| record.pair);
        Options { history: History { pair, session }, ..options.clone() }
    }

    /// Forwards all events to `monitor`, and stores the pair that they report.
    pub(super) fn observing(self: &Arc<Self>, monitor: SharedMonitor) -> SharedMonitor {
        Arc::new(Learning { pairing: Arc::clone(self), monitor })
    }

    fn learn(&self, pair: Pair) {
        let mut known = self.known();
        let record = Record { pair, machine: known.machine.clone() };
        let is_new = known.record.as_ref() != Some(&record);
        known.record = Some(record.clone());
        drop(known);
        if let Some(file) = self.file.as_deref().filter(|file| is_new || !is_fresh(file)) {
            // If the pair cannot be stored, the next run needs consent.
            let _ = write(file, &record);
        }
    }

    fn known(&self) -> MutexGuard<'_, PairingState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forwards events to another observer, and stores pairs.
struct Learning {
    pairing: Arc<Pairing>,
    monitor: SharedMonitor,
}

impl Monitor for Learning {
    fn observe(&self, event: Event) {
        match event {
            Event::Paired(pair) => self.pairing.learn(pair),
            event => self.monitor.observe(event),
        }
    }

    fn prepare(&self, preparation: Preparation) {
        self.monitor.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.monitor.warn(warning);
    }

    fn notice(&self, notice: Notice) {
        self.monitor.notice(notice);
    }
}

/// The name of a job's pair: independent of its rules and options.
pub(super) fn name(job: &Job) -> String {
    let mut hasher = Hasher::new();
    for endpoint in job.sources().chain([&job.destination]) {
        let path = match endpoint {
            Endpoint::Local(path) => real(path).into_os_string().as_bytes().to_vec(),
            remote => plain(remote.path()),
        };
        for part in [where_to(endpoint).as_bytes(), &path] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    let digits = hasher.finish().to_string();
    format!("{}.json", digits.get(..32).unwrap_or(&digits))
}

/// A path without links. Components that do not exist yet stay as they are: they will be created
/// there.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = path.ancestors().find_map(|existing| {
        let rest = path.strip_prefix(existing).ok()?;
        let real = fs::canonicalize(existing).ok()?;
        Some(if rest == Path::new("") { real } else { real.join(rest) })
    });
    existing.unwrap_or(path)
}

/// A path on another machine, without redundant parts: `a//b/.` is `a/b`.
fn plain(path: &[u8]) -> Vec<u8> {
    let is_absolute = path.starts_with(b"/");
    let components = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let joined = components.collect::<Vec<_>>().join(&b'/');
    if is_absolute { [b"/", joined.as_slice()].concat() } else { joined }
}

fn read(file: &Path) -> Option<Record> {
    serde_json::from_str(&private::read(file).ok()?).ok()
}

fn write(file: &Path, record: &Record) -> io::Result<()> {
    let is_first = !file.exists();
    private::replace(file, &serde_json::to_vec(record)?)?;
    if let Some(directory) = file.parent().filter(|_| is_first) {
        prune(directory, PAIRS_MAX);
    }
    Ok(())
}

fn is_fresh(file: &Path) -> bool {
    let written = fs::metadata(file).and_then(|metadata| metadata.modified());
    written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH))
}

/// Removes files that were unused for long, then the oldest of the rest beyond `most`.
pub(super) fn prune(directory: &Path, most: usize) {
    let now = SystemTime::now();
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<(SystemTime, PathBuf)> =
        files.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    files.sort_by(|one, other| other.cmp(one));
    let is_old = |time: &SystemTime| now.duration_since(*time).is_ok_and(|age| age > UNUSED_MAX);
    for (index, (time, path)) in files.iter().enumerate() {
        if index >= most || is_old(time) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use bytes::Bytes;

    use super::*;
    use crate::kernel::BridgeImage;
    use crate::remote::AgentImage;
    use crate::sync::job::ConnectOptions;
    use crate::tree::filter::Rule;
    use crate::tree::tree_id::TreeId;

    fn job(source: &str, destination: &str) -> Job {
        let endpoint = |text: &str| Endpoint::parse(text.as_ref()).unwrap();
        let agent = AgentImage { sha256: "".into(), gzip: Bytes::new() };
        let bridge = BridgeImage { sha256: "", gzip: &[] };
        Job {
            source: endpoint(source),
            further: Vec::new(),
            destination: endpoint(destination),
            options: Options::default(),
            connect_options: ConnectOptions::new(agent, bridge),
            verifies: false,
        }
    }

    fn pairing(file: PathBuf, is_source_in_session: Option<bool>) -> Arc<Pairing> {
        let record = read(&file);
        let known = Mutex::new(PairingState { record, machine: None });
        Arc::new(Pairing { file: Some(file), is_source_in_session, known })
    }

    const PAIR: Pair = Pair {
        source: TreeId { filesystem: 1, directory: 2, boot: 4 },
        destination: TreeId { filesystem: 5, directory: 6, boot: 8 },
        was_empty: false,
        is_own: true,
    };

    #[test]
    fn a_pairs_name_ignores_options_and_spelling() {
        let one = name(&job("/a/b", "me@host:x/y"));
        let mut other = job("/a/b/", "me@host:./x//y/");
        other.options.checksum = true;
        other.options.rules = vec![Rule::new(false, b"x".to_vec())];
        assert_eq!(name(&other), one);
        other.further = vec![Endpoint::parse("/a/c".as_ref()).unwrap()];
        assert_ne!(name(&other), one, "another SOURCE");
        for (source, destination) in [
            ("/a/c", "me@host:x/y"),
            ("/a/b", "me@host:/x/y"),
            ("/a/b", "you@host:x/y"),
            ("me@host:x/y", "/a/b"),
        ] {
            assert_ne!(name(&job(source, destination)), one, "{source} {destination}");
        }
    }

    #[test]
    fn a_destination_has_the_same_name_before_and_after_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        symlink("real", folder.path().join("link")).unwrap();
        let there = folder.path().join("link/new/dst");
        let before = real(&there);
        fs::create_dir_all(&there).unwrap();
        assert_eq!(real(&there), before);
        assert!(before.ends_with("real/new/dst"));
    }

    #[test]
    fn a_stored_pair_is_private_and_known_to_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/copies/a.json");
        let first = pairing(file.clone(), None);
        assert_eq!(first.options(&Options::default()).history, History::default());
        first.observing(Arc::new(crate::monitor::Quiet)).observe(Event::Paired(PAIR));
        for pairing in [first, pairing(file.clone(), None)] {
            assert_eq!(pairing.options(&Options::default()).history.pair, Some(PAIR));
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "{").unwrap();
        assert_eq!(pairing(file, None).options(&Options::default()).history.pair, None, "damaged");
    }

    #[test]
    fn another_vm_is_told_from_the_stored_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        let first = pairing(file.clone(), Some(true));
        first.met("one".to_owned());
        first.learn(PAIR);
        for (machine, is_other) in [("one", false), ("two", true)] {
            let again = pairing(file.clone(), Some(true));
            again.met(machine.to_owned());
            let session = again.options(&Options::default()).history.session;
            assert_eq!(session, Some(InSession { is_source: true, is_other }));
        }
    }

    #[test]
    fn pruning_removes_the_oldest_pairs_and_those_unused_for_a_year() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for (name, days) in [("a", 1), ("b", 2), ("c", 3), ("d", 400)] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
        }
        prune(folder.path(), 3);
        assert_eq!(names(), ["a", "b", "c"]);
        prune(folder.path(), 2);
        assert_eq!(names(), ["a", "b"]);
    }
}
