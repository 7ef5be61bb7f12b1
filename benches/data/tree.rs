//! A tree shaped like the Linux source: depth, files per directory, file lengths.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::text::{Author, WORDS};
use super::{Rng, TIME_OLD};

/// Files per directory.
const FILES_A_DIRECTORY: usize = 16;
/// Greatest depth of a directory.
const DEPTH_MAX: usize = 6;
/// File lengths are log-normal, with this median; with this deviation of the logarithm their mean
/// is 16 KB.
const MEDIAN_BYTES: f64 = 5000.0;
const DEVIATION: f64 = 1.53;
/// Greatest file length, in bytes.
const LENGTH_MAX: usize = 4 << 20;

/// A file to write.
struct Plan {
    path: PathBuf,
    length: usize,
    seed: u64,
}

/// Writes a tree of `files` files at `root`.
pub(crate) fn write(root: &Path, files: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let directories = directories(root, (files / FILES_A_DIRECTORY).max(1), &mut rng);
    let plans = plans(&directories, files, &mut rng);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for share in plans.chunks(plans.len().div_ceil(threads).max(1)) {
            scope.spawn(move || share.iter().for_each(write_file));
        }
    });
    // Set these times last, because every new file changes the time of its directory.
    for directory in directories.iter().rev() {
        set_time(directory, TIME_OLD);
    }
}

/// Creates directories and returns their paths, each after its parent.
fn directories(root: &Path, count: usize, rng: &mut Rng) -> Vec<PathBuf> {
    let mut known = HashSet::new();
    let mut made = vec![(root.to_owned(), 0)];
    while made.len() <= count {
        // The first directories are near the root and get the most children: real trees are flat
        // and broad.
        let (parent, depth) = made[rng.skewed(made.len())].clone();
        let path = parent.join(name(rng));
        if depth < DEPTH_MAX && known.insert(path.clone()) {
            made.push((path, depth + 1));
        }
    }
    let paths: Vec<PathBuf> = made.into_iter().map(|(path, _)| path).collect();
    for path in &paths {
        fs::create_dir_all(path).expect("a directory");
    }
    paths
}

fn plans(directories: &[PathBuf], files: usize, rng: &mut Rng) -> Vec<Plan> {
    let mut known = HashSet::new();
    let mut plans = Vec::with_capacity(files);
    while plans.len() < files {
        let directory = &directories[rng.below(directories.len())];
        let extension = ["c", "c", "c", "h", "h", "rst", "dts", "yaml"][rng.below(8)];
        let path = directory.join(format!("{}.{extension}", name(rng)));
        if known.insert(path.clone()) {
            let length = (MEDIAN_BYTES * (DEVIATION * rng.normal()).exp()) as usize;
            plans.push(Plan { path, length: length.min(LENGTH_MAX), seed: rng.next() });
        }
    }
    plans
}

fn name(rng: &mut Rng) -> String {
    let mut word = || WORDS[rng.below(WORDS.len())];
    let (one, other) = (word(), word());
    if rng.below(4) == 0 { one.to_owned() } else { format!("{one}_{other}") }
}

fn write_file(plan: &Plan) {
    let mut text = Vec::with_capacity(plan.length + 256);
    Author::new(plan.seed).write(&mut text, plan.length);
    File::create(&plan.path).and_then(|mut file| file.write_all(&text)).expect("a file");
    set_time(&plan.path, TIME_OLD + plan.seed % 10_000_000);
}

/// Sets a modification time, in seconds since 1970.
pub(crate) fn set_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).and_then(|file| file.set_modified(time)).expect("a time");
}
