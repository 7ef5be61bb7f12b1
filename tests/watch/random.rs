//! Random operations on a tree: both trees are finally equal. The operations follow from a seed,
//! queues overflow in between, and the comparison shares no code with ksync.
//!
//! `KSYNC_WATCH_OPERATIONS` and `KSYNC_WATCH_SEED` choose more, or other operations.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::process::{Signal, kill_process};

use crate::vm::{Vm, memory_bytes, stop};
use crate::watcher::Direction;
use crate::world::{World, noise};

const OPERATIONS: u64 = 20_000;
const SEED: u64 = 5;

/// Maximum growth of memory from a quarter of the run to its end: the trees are larger by then, and
/// the allocator keeps some memory. Measured: up to 30 MB within 60,000 operations, and less than a
/// megabyte from there to 240,000.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

/// Pseudo-random numbers from a seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}

/// Changes a tree at random. Some operations fail, as they do for any program.
struct Monkey {
    root: PathBuf,
    rng: Rng,
    /// Paths that are or were directories.
    directories: Vec<PathBuf>,
    acts: usize,
}

impl Monkey {
    fn new(root: PathBuf, seed: u64) -> Monkey {
        let directories = vec![root.clone()];
        Monkey { root, rng: Rng(0x9e37_79b9_7f4a_7c15 ^ seed), directories, acts: 0 }
    }

    /// A directory, usually an existing one.
    fn parent(&mut self) -> PathBuf {
        let mut picked = self.directories[self.rng.below(self.directories.len())].clone();
        for _ in 0..20 {
            if picked.is_dir() {
                break;
            }
            picked = self.directories[self.rng.below(self.directories.len())].clone();
        }
        picked
    }

    /// A path that may exist or not. Names are few, so operations often meet.
    fn somewhere(&mut self) -> PathBuf {
        let directory = self.parent();
        directory.join(format!("f{}", self.rng.below(30)))
    }

    fn directory(&mut self) -> PathBuf {
        let parent = self.parent();
        let depth = parent.strip_prefix(&self.root).expect("below the root").components().count();
        let parent = if depth > 4 { self.root.clone() } else { parent };
        parent.join(format!("d{}", self.rng.below(8)))
    }

    fn act(&mut self) {
        let (one, other, directory) = (self.somewhere(), self.somewhere(), self.directory());
        // Contents of the same moment have different lengths, since equal size and time count as
        // unchanged.
        self.acts += 1;
        let size = [0, 1, 3_000, 20_000, 130_000][self.rng.below(5)] + self.acts % 1000;
        let content = noise(self.rng.0, size);
        let _ = match self.rng.below(200) {
            0..=59 => fs::write(&one, content),
            60..=79 => {
                OpenOptions::new().append(true).open(&one).and_then(|mut file| file.write_all(&content))
            }
            80..=89 => OpenOptions::new().write(true).open(&one).and_then(|file| file.set_len(size as u64)),
            90..=114 => fs::rename(&one, &other),
            115..=139 => self.make(directory),
            140..=149 => fs::remove_dir(&directory),
            150 if self.rng.below(6) == 0 => fs::remove_dir_all(&directory),
            151..=160 => symlink(other.file_name().expect("a name"), &one),
            161..=170 => mode(&one, [0o644, 0o600, 0o755, 0o444][self.rng.below(4)]),
            171..=172 => self.rename_directory(&directory),
            _ => fs::remove_file(&one),
        };
    }

    fn make(&mut self, directory: PathBuf) -> std::io::Result<()> {
        fs::create_dir(&directory)?;
        if !self.directories.contains(&directory) {
            self.directories.push(directory);
        }
        Ok(())
    }

    fn rename_directory(&mut self, directory: &Path) -> std::io::Result<()> {
        let to = self.directory();
        // Not the root, and not into itself.
        fs::rename(directory, &to)?;
        if !self.directories.contains(&to) {
            self.directories.push(to);
        }
        Ok(())
    }
}

fn mode(path: &Path, mode: u32) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

fn converges(direction: Direction, operations: u64) {
    let seed = number("KSYNC_WATCH_SEED", SEED);
    let told = format!("{direction:?}: KSYNC_WATCH_SEED={seed} KSYNC_WATCH_OPERATIONS={operations}\n");
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    let world = World::new();
    world.tree("src");
    let vm = Vm::start(&world);
    let watcher = vm.watch(direction, &["--delete"]);
    let agent = vm.agent();
    let looks = if direction == Direction::Down { agent } else { watcher.pid() };
    let mut monkey = Monkey::new(world.path("src"), seed);
    let mut in_memory = Vec::new();
    let parts = 8;
    for part in 0..parts {
        let runs_over = part % 3 == 1;
        if runs_over {
            stop(looks);
            crate::limits::overflow(&world);
        }
        for done in 0..operations / parts {
            monkey.act();
            if runs_over && done == operations / parts / 2 {
                kill_process(looks, Signal::CONT).expect("a signal");
            }
        }
        watcher.is_there();
        in_memory.push([watcher.pid(), agent].map(memory_bytes));
    }
    let entries = world.snapshot("src").len();
    assert!((200..20_000).contains(&entries), "{entries} are a tree to compare");
    let (early, late) = (in_memory[1], in_memory[parts as usize - 1]);
    for (early, late) in early.iter().zip(&late) {
        assert!(*late < early + GROWTH_BYTES_MAX, "{direction:?}: {in_memory:?}");
    }
    assert_eq!((vm.agent(), vm.link.carried().connections), (agent, 1), "the link held");
}

#[test]
fn random_operations_converge_in_an_upload() {
    converges(Direction::Up, number("KSYNC_WATCH_OPERATIONS", OPERATIONS));
}

#[test]
fn random_operations_converge_in_a_download() {
    converges(Direction::Down, number("KSYNC_WATCH_OPERATIONS", OPERATIONS) / 4);
}
