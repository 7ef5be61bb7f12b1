//! The subjects: the data, the save, the link, and the limits.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walkdir::WalkDir;

use crate::data::{noise, text::Author, tree, write_mixed};
use crate::lab::link::{LINKS, RAW};
use crate::lab::machine::{Direction, Job, Machine};
use crate::options::Options;
use crate::saves::{self, Save, Session};
use crate::table::{Fact, Heat, Row};
use crate::watchers::Watcher;
use crate::{checkout, idle};

/// The data of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// 300 files.
    Small,
    /// One file of 100 MB, half noise and half text.
    Large,
    /// 80,000 files, like the Linux source.
    Tree,
}

/// The event of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happens {
    /// A file of one line is saved.
    Save,
    /// Ten bytes in the middle of a large file change.
    Edit,
    /// A large file grows by one line.
    Append,
    /// git checks another release out.
    Checkout,
    Nothing,
}

/// One part of the table.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) data: Data,
    happens: Happens,
    pub(crate) link: &'static str,
    direction: Direction,
}

const fn subject(
    name: &'static str,
    (data, happens): (Data, Happens),
    (link, direction): (&'static str, Direction),
    about: &'static str,
) -> Subject {
    Subject { name, about, data, happens, link, direction }
}

/// Subjects with the same data are adjacent. The checkout comes last, because it changes its tree.
pub(crate) const SUBJECTS: &[Subject] = &[
    subject("save", (Data::Small, Happens::Save), ("raw", Direction::Up), "one line saved, 300 files"),
    subject("save-l100", (Data::Small, Happens::Save), ("l100", Direction::Up), "one line saved, 300 files"),
    subject(
        "pull",
        (Data::Small, Happens::Save),
        ("raw", Direction::Down),
        "one line saved there, 300 files",
    ),
    subject(
        "pull-l100",
        (Data::Small, Happens::Save),
        ("l100", Direction::Down),
        "one line saved there, 300 files",
    ),
    subject(
        "edit-100m",
        (Data::Large, Happens::Edit),
        ("raw", Direction::Up),
        "ten bytes changed amid 100 MB",
    ),
    subject(
        "append-100m",
        (Data::Large, Happens::Append),
        ("raw", Direction::Up),
        "one line appended to 100 MB",
    ),
    subject("save-tree", (Data::Tree, Happens::Save), ("raw", Direction::Up), "one line saved, 80,000 files"),
    subject(
        "pull-tree",
        (Data::Tree, Happens::Save),
        ("raw", Direction::Down),
        "one line saved there, 80,000 files",
    ),
    subject("idle", (Data::Tree, Happens::Nothing), ("raw", Direction::Up), "80,000 files, watched here"),
    subject(
        "idle-pull",
        (Data::Tree, Happens::Nothing),
        ("raw", Direction::Down),
        "80,000 files, watched there",
    ),
    subject(
        "checkout",
        (Data::Tree, Happens::Checkout),
        ("raw", Direction::Up),
        "git checkout, 80,000 files",
    ),
];

/// The trees of a watcher. All watchers share one large tree and work one after the other, because
/// so many copies of so many files would need too much memory.
struct Trees {
    source: PathBuf,
    destination: PathBuf,
}

/// Writes a subject's data anew.
pub(crate) fn make(data: Data, machine: &Machine, watchers: &[&'static Watcher], options: &Options) {
    for trees in all_trees(data, machine, watchers) {
        let _ = fs::remove_dir_all(&trees.destination);
        let _ = fs::remove_dir_all(&trees.source);
        fs::create_dir_all(&trees.source).expect("a directory");
        match data {
            Data::Small => tree::write(&trees.source, 300, 5),
            Data::Tree => tree::write(&trees.source, options.scaled(80_000).max(100) as usize, 3),
            Data::Large => {
                let half = options.scaled(50_000_000);
                let file = File::create(trees.source.join("large")).expect("a file");
                write_mixed(file, 2, half, half).expect("a file");
            }
        }
    }
}

/// Removes a subject's data.
pub(crate) fn remove(data: Data, machine: &Machine, watchers: &[&'static Watcher]) {
    for trees in all_trees(data, machine, watchers) {
        let _ = fs::remove_dir_all(trees.source);
        let _ = fs::remove_dir_all(trees.destination);
    }
}

fn all_trees(data: Data, machine: &Machine, watchers: &[&'static Watcher]) -> Vec<Trees> {
    let trees = |name: &str| Trees {
        source: machine.world.path(format!("from-{name}")),
        destination: machine.world.path(format!("to-{name}")),
    };
    match data {
        Data::Tree => vec![trees("tree")],
        Data::Small | Data::Large => watchers.iter().map(|watcher| trees(watcher.name)).collect(),
    }
}

/// Runs one subject.
pub(crate) fn run(
    subject: &'static Subject,
    machine: &Machine,
    watchers: &[&'static Watcher],
    options: &Options,
) -> Heat {
    // Peers only upload.
    let takes_part = |watcher: &&Watcher| match (subject.happens, subject.direction) {
        (_, Direction::Down) | (Happens::Nothing, _) => watcher.is_ksync(),
        (_, Direction::Up) => true,
    };
    let all_trees = all_trees(subject.data, machine, watchers);
    machine.link.set(*LINKS.iter().find(|link| link.name == subject.link).expect("a link"));
    let mut heat = Heat { subject, change: None, rows: Vec::new(), facts: Vec::new() };
    match subject.happens {
        Happens::Save | Happens::Edit | Happens::Append if subject.data == Data::Tree => {
            for &watcher in watchers.iter().filter(|watcher| takes_part(watcher)) {
                heat.rows.extend(in_turn(subject, machine, &[(watcher, &all_trees[0])], options));
            }
        }
        Happens::Save | Happens::Edit | Happens::Append => {
            let pairs: Vec<_> =
                watchers.iter().copied().zip(&all_trees).filter(|(watcher, _)| takes_part(watcher)).collect();
            heat.rows = in_turn(subject, machine, &pairs, options);
        }
        Happens::Nothing => nothing(subject, machine, watchers, &all_trees[0], options, &mut heat),
        Happens::Checkout => {
            let ksync = watchers.iter().copied().find(|watcher| watcher.is_ksync());
            let rsync = Some(&checkout::RSYNC as &'static Watcher).filter(|rsync| rsync.missing().is_none());
            if let Some(missing) = Some("git").filter(|git| crate::lab::world::skip::program(git).is_none()) {
                heat.change = Some(format!("not installed: {missing}"));
            } else if let Some(ksync) = ksync {
                let Trees { source, destination } = &all_trees[0];
                let (rows, facts, about) =
                    checkout::measure(machine, ksync, rsync, source, destination, options.runs());
                heat = Heat { rows, facts, change: Some(about), ..heat };
            }
        }
    }
    machine.link.set(RAW);
    asked(subject, &mut heat);
    heat
}

/// Measures saves of several watchers in turn.
fn in_turn(
    subject: &Subject,
    machine: &Machine,
    pairs: &[(&'static Watcher, &Trees)],
    options: &Options,
) -> Vec<Row> {
    let (mut sessions, mut failed) = (Vec::new(), Vec::new());
    for &(watcher, Trees { source, destination }) in pairs {
        let job = Job { machine, direction: subject.direction, source, destination };
        match Session::begin(watcher, job) {
            Ok(session) => sessions.push(session),
            Err(error) => failed.push(Row { error: Some(error), ..Row::of(watcher) }),
        }
    }
    let (count, peer_count) = options.counts(subject.data == Data::Large);
    let mut rows = match (subject.happens, sessions.first()) {
        (_, None) => Vec::new(),
        (Happens::Edit, Some(_)) => {
            let (offset, bytes) = (options.scaled(50_000_000), |number: usize| noise(number as u64 + 9, 10));
            let save = Save {
                path: Path::new("large"),
                write: &|path, number| {
                    let file = OpenOptions::new().write(true).open(path).expect("a file");
                    file.write_all_at(&bytes(number), offset).expect("an edit");
                },
                is_there: &|path, number| is_at(path, offset, &bytes(number)),
            };
            saves::measure(machine, &sessions, &save, count, peer_count)
        }
        (Happens::Append, Some(session)) => {
            let length = fs::metadata(session.job.source.join("large")).expect("a file").len();
            append(machine, &sessions, length, count)
        }
        (_, Some(session)) => {
            // The text differs for each watcher that shares a tree.
            let author = session.watcher.name;
            let text = |number: usize| format!("line {number} of a note by {author}\n").into_bytes();
            let path = deep_directory(session.job.source).join("note.txt");
            let save = Save {
                path: &path,
                write: &|path, number| fs::write(path, text(number)).expect("a save"),
                is_there: &|path, number| saves::is_text(path, &text(number)),
            };
            saves::measure(machine, &sessions, &save, count, peer_count)
        }
    };
    saves::end(machine, sessions, &mut rows);
    rows.extend(failed);
    rows
}

/// Appends line after line. Every watcher takes each turn, because each line follows the previous
/// one.
fn append(machine: &Machine, sessions: &[Session], length: u64, count: usize) -> Vec<Row> {
    const LINE_BYTES: usize = 60;
    let line = |number: usize| {
        let mut line = Vec::new();
        Author::new(number as u64).write(&mut line, LINE_BYTES);
        line.truncate(LINE_BYTES - 1);
        line.push(b'\n');
        line
    };
    let save = Save {
        path: Path::new("large"),
        write: &|path, number| {
            let mut file = OpenOptions::new().append(true).open(path).expect("a file");
            file.write_all(&line(number)).expect("a line");
        },
        is_there: &|path, number| is_at(path, length + (number * LINE_BYTES) as u64, &line(number)),
    };
    saves::measure(machine, sessions, &save, count, count)
}

/// Reports if a file has these bytes at `offset`.
fn is_at(path: &Path, offset: u64, bytes: &[u8]) -> bool {
    let mut found = vec![0; bytes.len()];
    File::open(path).and_then(|file| file.read_exact_at(&mut found, offset)).is_ok() && found == bytes
}

/// A directory at depth 3 below a root.
fn deep_directory(root: &Path) -> PathBuf {
    let walk = WalkDir::new(root).sort_by_file_name().into_iter().flatten();
    let found = walk.filter(|entry| entry.file_type().is_dir()).find(|entry| entry.depth() == 3);
    let path = found.map_or_else(|| root.to_owned(), walkdir::DirEntry::into_path);
    path.strip_prefix(root).expect("below the root").to_owned()
}

fn nothing(
    subject: &Subject,
    machine: &Machine,
    watchers: &[&'static Watcher],
    trees: &Trees,
    options: &Options,
    heat: &mut Heat,
) {
    let Some(&ksync) = watchers.iter().find(|watcher| watcher.is_ksync()) else { return };
    let job =
        Job { machine, direction: subject.direction, source: &trees.source, destination: &trees.destination };
    let mut rows = vec![Row::of(ksync)];
    match Session::begin(ksync, job) {
        Ok(session) => {
            heat.facts = idle::measure(machine, session.running.id(), options.idle());
            saves::end(machine, vec![session], &mut rows);
        }
        Err(error) => rows[0].error = Some(error),
    }
    heat.rows.extend(rows.into_iter().filter(|row| row.error.is_some()));
}

/// Adds the limits of the numbers.
fn asked(subject: &Subject, heat: &mut Heat) {
    let Some(ksync) = heat.ksync() else { return };
    let (Some(median), Some(high)) = (ksync.percentile(50), ksync.percentile(95)) else { return };
    // The limit of the large files refers to the plain peer.
    let plain = heat.rows.iter().find(|row| row.watcher.name == "inotify-rsync");
    let (peer, best) = match subject.happens {
        Happens::Edit | Happens::Append => ("of inotify-rsync", plain.and_then(|row| row.percentile(50))),
        _ => ("of the best peer", heat.best_peer()),
    };
    let ratio = best.map(|best| median / best);
    let round_trip = LINKS.iter().find(|link| link.name == subject.link).map(|link| link.round_trip);
    let half_trip = round_trip.unwrap_or(Duration::ZERO).as_secs_f64() * 1000.0 / 2.0;
    let mut facts = Vec::new();
    let most_of_best = match subject.happens {
        Happens::Save if subject.link == "raw" => {
            facts.push(Fact::new("median", median, "ms").asked(30.0));
            facts.push(Fact::new("p95", high, "ms").asked(60.0));
            Some(0.25)
        }
        Happens::Save => {
            facts.push(Fact::new("median", median, "ms").asked(half_trip + 40.0));
            None
        }
        Happens::Edit | Happens::Append => {
            let bytes = ksync.median_bytes().unwrap_or(0);
            facts.push(Fact::new("bytes up and down", bytes as f64, "B").asked(100_000.0));
            Some(0.3)
        }
        Happens::Checkout => Some(0.5),
        Happens::Nothing => None,
    };
    if let (Some(ratio), Some(most)) = (ratio, most_of_best) {
        facts.push(Fact::new(peer, ratio, "").asked(most));
    }
    heat.facts.extend(facts);
}
