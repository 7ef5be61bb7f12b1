//! Changes to a tree between two syncs, applicable to any copy of it, forwards and backwards.
//!
//! The way back restores contents and file times, so that each round starts from the same state.
//! Directories keep the time of their last change, as in real use: unison skips a directory without
//! a change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use walkdir::WalkDir;

use crate::data::text::Author;
use crate::data::tree::set_time;
use crate::data::{Rng, TIME_OLD, noise};

/// Modification time of changed files.
const TIME_NEW: u64 = TIME_OLD + 50_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Old,
    New,
}

/// One difference between the versions. Paths are relative to the root of the tree.
enum Step {
    Overwrite {
        path: PathBuf,
        offset: u64,
        old: Vec<u8>,
        new: Vec<u8>,
    },
    Insert {
        path: PathBuf,
        offset: u64,
        bytes: Vec<u8>,
    },
    TakeOut {
        path: PathBuf,
        offset: u64,
        bytes: Vec<u8>,
    },
    Append {
        path: PathBuf,
        bytes: Vec<u8>,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// The file in either version; `None` if that version lacks it.
    Swap {
        path: PathBuf,
        old: Option<PathBuf>,
        new: Option<PathBuf>,
        old_time: u64,
    },
}

/// All differences between two versions of a tree.
#[derive(Default)]
pub(crate) struct Change {
    steps: Vec<Step>,
    /// Description in words, with numbers.
    pub(crate) about: String,
}

impl Change {
    /// Spreads `count` edits of ten bytes over the tree's first file.
    pub(crate) fn edits(tree: &Path, count: u64) -> Change {
        let path = files(tree).remove(0);
        let file = File::open(tree.join(&path)).expect("a file");
        let length = file.metadata().expect("a file").len();
        let mut rng = Rng::new(10);
        let edit = |index| {
            let offset = length / count * index + rng.below((length / count) as usize - 10) as u64;
            let mut old = vec![0; 10];
            file.read_exact_at(&mut old, offset).expect("a piece");
            let new = old.iter().map(|byte| byte ^ 1).collect();
            Step::Overwrite { path: path.clone(), offset, old, new }
        };
        let steps = (0..count).map(edit).collect();
        Change { steps, about: format!("{count} edits of 10 bytes") }
    }

    /// Inserts noise into the first file.
    pub(crate) fn insertion(tree: &Path, offset: u64, length: usize) -> Change {
        let step = Step::Insert { path: files(tree).remove(0), offset, bytes: noise(11, length) };
        Change { steps: vec![step], about: format!("{length} bytes inserted at {offset}") }
    }

    /// Removes a range from the first file.
    pub(crate) fn removal(tree: &Path, offset: u64, length: usize) -> Change {
        let path = files(tree).remove(0);
        let mut bytes = vec![0; length];
        let file = File::open(tree.join(&path)).expect("a file");
        file.read_exact_at(&mut bytes, offset).expect("a piece");
        let step = Step::TakeOut { path, offset, bytes };
        Change { steps: vec![step], about: format!("{length} bytes taken out at {offset}") }
    }

    /// Appends noise to the first file.
    pub(crate) fn appendix(tree: &Path, length: usize) -> Change {
        let step = Step::Append { path: files(tree).remove(0), bytes: noise(12, length) };
        Change { steps: vec![step], about: format!("{length} bytes appended") }
    }

    /// Renames the only directory at the top.
    pub(crate) fn new_top(tree: &Path) -> Change {
        let mut names = fs::read_dir(tree).expect("a directory").flatten().map(|entry| entry.file_name());
        let from = PathBuf::from(names.next().expect("a directory at the top"));
        let to = from.with_file_name("renamed");
        Change { steps: vec![Step::Rename { from, to }], about: "the top directory renamed".to_owned() }
    }

    /// Moves every fortieth file to another directory, under a new name.
    pub(crate) fn moves(tree: &Path) -> Change {
        let files = files(tree);
        let step = |index: usize| {
            let from = files[index].clone();
            let home = files[(index + files.len() / 3) % files.len()].parent().unwrap_or(Path::new(""));
            let to = home.join(format!("moved-{index}.txt"));
            Step::Rename { from, to }
        };
        let steps: Vec<Step> = (0..files.len()).step_by(40).map(step).collect();
        let about = format!("{} of {} files moved to other directories", steps.len(), files.len());
        Change { steps, about }
    }

    /// Makes a point release: small edits in 7 % of the files, a few files removed and a few added.
    /// Both versions of each changed file go to `aside`.
    pub(crate) fn release(tree: &Path, aside: &Path) -> Change {
        let mut rng = Rng::new(13);
        let mut steps = Vec::new();
        for side in ["old", "new"] {
            fs::create_dir_all(aside.join(side)).expect("a directory");
        }
        for (index, path) in files(tree).into_iter().enumerate() {
            let fate = rng.below(1000);
            if fate >= 77 {
                continue;
            }
            let text = fs::read(tree.join(&path)).expect("a file");
            let old_time = time_of(&tree.join(&path));
            let put = |side: &str, text: &[u8]| {
                let place = aside.join(side).join(index.to_string());
                fs::write(&place, text).expect("a file");
                place
            };
            // Of a thousand files 3 are removed, 4 added and 70 edited.
            let (path, old, new) = match fate {
                0..3 => (path, Some(put("old", &text)), None),
                3..7 => (path.with_extension("new"), None, Some(put("new", &edited(&text, &mut rng)))),
                _ => (path, Some(put("old", &text)), Some(put("new", &edited(&text, &mut rng)))),
            };
            steps.push(Step::Swap { path, old, new, old_time });
        }
        let about = format!("{} files changed, added or removed", steps.len());
        Change { steps, about }
    }

    /// Compares two trees by content.
    pub(crate) fn between(old_tree: &Path, new_tree: &Path) -> Change {
        let (old, new) = (files(old_tree), files(new_tree));
        let mut paths: Vec<PathBuf> = old.iter().chain(&new).cloned().collect();
        paths.sort();
        paths.dedup();
        let there = |tree: &Path, list: &[PathBuf], path: &PathBuf| {
            list.binary_search(path).is_ok().then(|| tree.join(path))
        };
        let step = |path: PathBuf| {
            let (old, new) = (there(old_tree, &old, &path), there(new_tree, &new, &path));
            let content = |file: &Option<PathBuf>| file.as_ref().map(|file| fs::read(file).expect("a file"));
            let old_time = old.as_deref().map_or(TIME_OLD, time_of);
            (content(&old) != content(&new)).then_some(Step::Swap { path, old, new, old_time })
        };
        let steps: Vec<Step> = paths.into_iter().filter_map(step).collect();
        let about = format!("{} files changed, added or removed", steps.len());
        Change { steps, about }
    }

    /// Moves the paths of all steps below `directory`.
    pub(crate) fn below(mut self, directory: &Path) -> Change {
        for step in &mut self.steps {
            if let Step::Swap { path, .. } = step {
                *path = directory.join(&path);
            }
        }
        self
    }

    /// Turns `tree` into the other version.
    pub(crate) fn apply(&self, tree: &Path, to: Version) {
        for step in &self.steps {
            step.apply(tree, to).expect("a change");
        }
    }
}

impl Step {
    fn apply(&self, tree: &Path, to: Version) -> io::Result<()> {
        let is_new = to == Version::New;
        let (path, old_time) = match self {
            Step::Rename { from, to } => {
                let (from, to) = if is_new { (from, to) } else { (to, from) };
                return fs::rename(tree.join(from), tree.join(to));
            }
            Step::Overwrite { path, .. }
            | Step::Insert { path, .. }
            | Step::TakeOut { path, .. }
            | Step::Append { path, .. } => (tree.join(path), TIME_OLD),
            Step::Swap { path, old_time, .. } => (tree.join(path), *old_time),
        };
        self.write(&path, is_new)?;
        if path.exists() {
            set_time(&path, if is_new { TIME_NEW } else { old_time });
        }
        Ok(())
    }

    fn write(&self, path: &Path, is_new: bool) -> io::Result<()> {
        match self {
            Step::Rename { .. } => Ok(()),
            Step::Overwrite { offset, old, new, .. } => {
                let file = OpenOptions::new().write(true).open(path)?;
                file.write_all_at(if is_new { new } else { old }, *offset)
            }
            Step::Insert { offset, bytes, .. } if is_new => insert(path, *offset, bytes),
            Step::TakeOut { offset, bytes, .. } if !is_new => insert(path, *offset, bytes),
            Step::Insert { offset, bytes, .. } | Step::TakeOut { offset, bytes, .. } => {
                take_out(path, *offset, bytes.len())
            }
            Step::Append { bytes, .. } => {
                let mut file = OpenOptions::new().append(true).open(path)?;
                if is_new {
                    file.write_all(bytes)
                } else {
                    file.set_len(file.metadata()?.len() - bytes.len() as u64)
                }
            }
            Step::Swap { old, new, .. } => swap(path, if is_new { new.as_deref() } else { old.as_deref() }),
        }
    }
}

/// Replaces a file by another one, or removes it, as editors and package managers do.
fn swap(path: &Path, other: Option<&Path>) -> io::Result<()> {
    let Some(other) = other else {
        fs::remove_file(path)?;
        // An empty directory is removed with its last file.
        let _ = path.parent().map(fs::remove_dir);
        return Ok(());
    };
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let aside = path.with_extension("aside");
    fs::copy(other, &aside)?;
    fs::rename(aside, path)
}

fn insert(path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    rewrite(path, |from, to| {
        io::copy(&mut from.take(offset), to)?;
        to.write_all(bytes)?;
        io::copy(from, to)
    })
}

fn take_out(path: &Path, offset: u64, length: usize) -> io::Result<()> {
    rewrite(path, |from, to| {
        io::copy(&mut from.take(offset), to)?;
        from.seek(SeekFrom::Current(length as i64))?;
        io::copy(from, to)
    })
}

/// Writes a new version beside a file and renames it into place.
fn rewrite(path: &Path, write: impl FnOnce(&mut File, &mut File) -> io::Result<u64>) -> io::Result<()> {
    let aside = path.with_extension("aside");
    write(&mut File::open(path)?, &mut File::create(&aside)?)?;
    fs::rename(aside, path)
}

/// Replaces or removes one to four lines of a text, or inserts new ones.
fn edited(text: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = text.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let mut author = Author::new(rng.next());
    for _ in 0..=rng.below(4) {
        let mut fresh = Vec::new();
        author.write(&mut fresh, 20 + rng.below(200));
        fresh.push(b'\n');
        let at = rng.below(lines.len() + 1);
        match rng.below(3) {
            0 if at < lines.len() => lines[at] = fresh,
            1 if at < lines.len() => drop(lines.remove(at)),
            _ => lines.insert(at, fresh),
        }
    }
    lines.concat()
}

/// All regular files below a root, in order. Symlinks are skipped, because not every program copies
/// them.
fn files(root: &Path) -> Vec<PathBuf> {
    let walk = WalkDir::new(root).into_iter().map(|entry| entry.expect("an entry"));
    let files = walk.filter(|entry| entry.file_type().is_file());
    let mut files: Vec<PathBuf> =
        files.map(|entry| entry.path().strip_prefix(root).expect("below the root").to_owned()).collect();
    files.sort();
    files
}

fn time_of(path: &Path) -> u64 {
    let time = path.metadata().and_then(|meta| meta.modified()).expect("a time");
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Copies the directories and files of a real tree, with times in whole seconds.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    let walk = WalkDir::new(from).min_depth(1).into_iter().map(|entry| entry.expect("an entry"));
    for entry in walk {
        let path = to.join(entry.path().strip_prefix(from).expect("below the root"));
        if entry.file_type().is_dir() {
            fs::create_dir(&path).expect("a directory");
        } else if entry.file_type().is_file() {
            fs::copy(entry.path(), &path).expect("a copy");
            set_time(&path, time_of(entry.path()));
        }
    }
}
