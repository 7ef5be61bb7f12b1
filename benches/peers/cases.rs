//! The cases: the data, the state before the sync, and the contestants.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::data::text::Author;
use crate::data::tree::{self, set_time};
use crate::data::{TIME_OLD, noise, write_mixed};
use crate::lab::change::{Change, copy_tree};
use crate::lab::link::Conditions;

/// The data of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// One file of 10 KB.
    One,
    /// 300 files, 3 MB of text.
    Small,
    /// 50 MB of noise in one file.
    Noise,
    /// 1 GiB in one file, half noise and half text.
    Large,
    /// 80,000 files of text, like the Linux source.
    Tree,
}

/// The state before the measured sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing: the destination does not exist.
    Nothing,
    /// A copy by the same sync.
    Same,
    /// A copy by the same sync, which broke off at a quarter.
    Cut,
    Edits,
    Insertion,
    Removal,
    Appendix,
    NewTop,
    Moves,
    Release,
    /// A copy by the same sync; one edit before each of several syncs in a row.
    Edit,
}

/// One row of the result table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) data: Data,
    pub(crate) before: Before,
    pub(crate) contestants: &'static [&'static str],
    /// Measured syncs in a row, of which the sum is shown.
    pub(crate) repeats: usize,
    /// The loss of the links that the case runs on.
    pub(crate) loss: Loss,
}

/// The links of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Those that lose no packets. With losses, a gigabyte would take an hour.
    Without,
    /// Those that lose packets.
    Only,
    Any,
}

/// Repeats of the cases that stand for an agent that syncs before each of its commands.
const REPEATS: usize = 20;

impl Case {
    /// Reports if the case runs on a link. A user who names a link with real TCP gets the slow
    /// cases there too.
    pub(crate) fn runs_on(&self, link: Conditions, is_named: bool) -> bool {
        let is_slow = matches!(self.data, Data::Large | Data::Tree);
        let fits = match self.loss {
            Loss::Without => link.loss == 0.0,
            Loss::Only => link.loss > 0.0,
            Loss::Any => true,
        };
        fits && (is_named || !(is_slow && link.is_real_tcp))
    }

    const fn with_loss(self, loss: Loss) -> Case {
        Case { loss, ..self }
    }

    const fn repeated(self) -> Case {
        Case { repeats: REPEATS, ..self }
    }
}

const CONNECT: &[&str] = &["ksync", "ssh-true", "rsync"];
const KEPT: &[&str] = &["ksync-kept", "rsync-kept", "ssh-true-kept"];
const EACH: &[&str] = &["ksync", "ksync-kept", "rsync", "rsync-kept"];
/// Without the programs that take as long as these: each run takes minutes.
const LOSSY: &[&str] = &["ksync", "rsync", "scp"];
const NOOP: &[&str] = &["ksync", "rsync", "rclone", "unison"];
const NOOP_TREE: &[&str] = &["ksync", "rsync", "rsync-nir", "unison"];
const FIRST: &[&str] = &["ksync", "rsync", "rsync-z", "scp", "sftp", "tar-zstd", "rclone", "unison"];
/// Without the programs that wait at least a round trip per file: scp takes minutes even without a
/// delay.
const FIRST_TREE: &[&str] = &["ksync", "rsync", "rsync-z", "tar-zstd"];
const DELTA: &[&str] = &["ksync", "rsync", "rsync-z", "rsync-inplace", "unison"];
const CUT: &[&str] = &["ksync", "rsync", "rsync-partial", "rsync-append"];
const MOVED: &[&str] = &["ksync", "rsync", "rsync-z", "unison"];

const fn case(
    name: &'static str,
    data: Data,
    before: Before,
    contestants: &'static [&'static str],
    about: &'static str,
) -> Case {
    Case { name, about, data, before, contestants, repeats: 1, loss: Loss::Without }
}

/// Cases with the same data are adjacent. Those that need an empty destination come first.
pub(crate) const CASES: &[Case] = &[
    case("connect", Data::One, Before::Same, CONNECT, "nothing to do, one file").with_loss(Loss::Any),
    case("kept", Data::One, Before::Same, KEPT, "the same over a kept connection").with_loss(Loss::Any),
    case("first-300", Data::Small, Before::Nothing, FIRST, "first copy of 300 files, 3 MB"),
    case("noop-300", Data::Small, Before::Same, NOOP, "nothing to do, 300 files"),
    case("each-same", Data::Small, Before::Same, EACH, "nothing to do, twenty times in a row, 300 files")
        .repeated(),
    case("each-edit", Data::Small, Before::Edit, EACH, "one file changed before each of twenty, 300 files")
        .repeated(),
    case("agent-absent", Data::Small, Before::Same, &["ksync", "ksync-anew"], "first contact with a VM"),
    case("first-50m", Data::Noise, Before::Nothing, FIRST, "first copy of 50 MB of noise"),
    case("lossy-50m", Data::Noise, Before::Nothing, LOSSY, "first copy of 50 MB of noise, with losses")
        .with_loss(Loss::Only),
    case("cut-1g", Data::Large, Before::Cut, CUT, "1 GiB again, after the link broke at a quarter"),
    case("edits-1g", Data::Large, Before::Edits, DELTA, "ten edits of ten bytes in 1 GiB"),
    case("insert-1g", Data::Large, Before::Insertion, DELTA, "1 MB inserted at 100 MB in 1 GiB"),
    case("remove-1g", Data::Large, Before::Removal, DELTA, "1 MB taken out at 100 MB in 1 GiB"),
    case("append-1g", Data::Large, Before::Appendix, DELTA, "100 MB appended to 1 GiB"),
    case("first-tree", Data::Tree, Before::Nothing, FIRST_TREE, "first copy of a source tree"),
    case("noop-tree", Data::Tree, Before::Same, NOOP_TREE, "nothing to do, a source tree"),
    case("kept-tree", Data::Tree, Before::Same, KEPT, "the same over a kept connection"),
    case("rename-tree", Data::Tree, Before::NewTop, MOVED, "top directory of a source tree renamed"),
    case("move-files", Data::Tree, Before::Moves, MOVED, "files of a source tree moved"),
    case("upgrade", Data::Tree, Before::Release, MOVED, "point release of a source tree"),
];

/// Sizes of the data.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    scale: f64,
    /// A real tree in place of the synthetic one, and its next release.
    tree: Option<PathBuf>,
    next_tree: Option<PathBuf>,
}

/// Name of the only directory at the top of a tree.
const TOP: &str = "source";

impl Sizes {
    pub(crate) fn new(scale: f64, tree: Option<PathBuf>, next_tree: Option<PathBuf>) -> Sizes {
        Sizes { scale, tree, next_tree }
    }

    fn scaled(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.scale) as u64
    }

    /// Approximate disk space of a contest over this data: a source, a copy for each contestant,
    /// and the files written aside.
    pub(crate) fn bytes_needed(&self, data: Data) -> u64 {
        self.scaled(match data {
            Data::One | Data::Small | Data::Noise => 1 << 30,
            Data::Large => 10 << 30,
            Data::Tree => 14 << 30,
        })
    }

    /// Writes the data to `root`.
    pub(crate) fn make(&self, data: Data, root: &Path) {
        fs::create_dir_all(root).expect("a directory");
        match data {
            Data::One => tree_of_equals(root, 1),
            Data::Small => tree_of_equals(root, self.scaled(300).max(10)),
            Data::Noise => {
                fs::write(root.join("noise"), noise(1, self.scaled(50_000_000) as usize)).expect("a file");
                set_time(&root.join("noise"), TIME_OLD);
            }
            Data::Large => {
                let half = self.scaled(1 << 29);
                let file = File::create(root.join("large")).expect("a file");
                write_mixed(file, 2, half, half).expect("a file");
                set_time(&root.join("large"), TIME_OLD);
            }
            Data::Tree => match &self.tree {
                Some(real) => copy_tree(real, &root.join(TOP)),
                None => tree::write(&root.join(TOP), self.scaled(80_000).max(100) as usize, 3),
            },
        }
        set_time(root, TIME_OLD);
    }

    /// Change of the data at `root` before the measured sync, if the case has one.
    pub(crate) fn change(&self, before: Before, root: &Path, aside: &Path) -> Option<Change> {
        Some(match before {
            Before::Nothing | Before::Same | Before::Cut => return None,
            Before::Edits => Change::edits(root, 10),
            Before::Edit => Change::edits(root, 1),
            Before::Insertion => Change::insertion(root, self.scaled(100_000_000), self.inserted() as usize),
            Before::Removal => Change::removal(root, self.scaled(100_000_000), self.inserted() as usize),
            Before::Appendix => Change::appendix(root, self.appended() as usize),
            Before::NewTop => Change::new_top(root),
            Before::Moves => Change::moves(root),
            Before::Release => match (&self.tree, &self.next_tree) {
                (Some(tree), Some(next)) => Change::between(tree, next).below(Path::new(TOP)),
                _ => Change::release(root, aside),
            },
        })
    }

    /// Bytes after which the link breaks in the case `Cut`: a quarter of the large file. That is
    /// within its noise, so it is the same position for all programs.
    pub(crate) fn cut_after(&self) -> u64 {
        self.scaled(1 << 28)
    }

    fn inserted(&self) -> u64 {
        self.scaled(1_000_000)
    }

    fn appended(&self) -> u64 {
        self.scaled(100_000_000)
    }

    /// Bytes that every program must send: the noise that the other side lacks. `None` for text,
    /// because nobody knows the best compression of it.
    pub(crate) fn new_bytes(&self, case: &Case) -> Option<u64> {
        match (case.before, case.data) {
            (Before::Nothing, Data::Noise) => Some(self.scaled(50_000_000)),
            (Before::Nothing, _) | (Before::Release | Before::Edit, _) => None,
            (Before::Cut, _) => Some(self.scaled(1 << 28)),
            (Before::Insertion, _) => Some(self.inserted()),
            (Before::Appendix, _) => Some(self.appended()),
            (Before::Same | Before::Edits | Before::Removal | Before::NewTop | Before::Moves, _) => Some(0),
        }
    }
}

/// Writes files of 10 KB of text into directories of 20.
fn tree_of_equals(root: &Path, files: u64) {
    for index in 0..files {
        let directory = root.join(format!("part-{}", index / 20));
        fs::create_dir_all(&directory).expect("a directory");
        let mut text = Vec::new();
        Author::new(index).write(&mut text, 10_000);
        let path = directory.join(format!("file-{index}.c"));
        fs::write(&path, text).expect("a file");
        set_time(&path, TIME_OLD);
    }
    for index in 0..files.div_ceil(20) {
        set_time(&root.join(format!("part-{index}")), TIME_OLD);
    }
}
