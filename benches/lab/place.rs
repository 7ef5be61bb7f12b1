//! The place of the files of a run, and the memory that it may use as a disk.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::statvfs;

use super::world::World;

/// Default directory of a world, if it has room: memory. On a disk, writing a tree right after
/// another was removed can take five times as long.
const MEMORY: &str = "/dev/shm";

/// Makes a world in `folder`. Without `folder` it uses memory if `bytes_needed` are free there, or
/// else the target directory.
///
/// Its commands run in process groups of their own. A key that interrupts the harness must not stop
/// the VM during a measurement.
pub(crate) fn world(folder: Option<&Path>, bytes_needed: u64) -> World {
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None if free_bytes(Path::new(MEMORY)) > bytes_needed => PathBuf::from(MEMORY),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
    };
    let world = World::within(&folder, |command| {
        command.env("LC_ALL", "C").env("SHELL", "/bin/sh").env("USER", user()).process_group(0);
    });
    fs::create_dir(world.path("far")).expect("a directory");
    world
}

/// Kind of the filesystem that holds a world.
pub(crate) fn filesystem(world: &World) -> &'static str {
    // TMPFS_MAGIC of linux/magic.h.
    let is_memory = rustix::fs::statfs(world.path("")).is_ok_and(|stat| stat.f_type == 0x0102_1994);
    if is_memory { "tmpfs" } else { "disk" }
}

/// Free bytes of a directory, limited to the available memory, because a tmpfs may claim more.
fn free_bytes(folder: &Path) -> u64 {
    let of_folder = statvfs(folder).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    of_folder.min(memory_bytes("MemAvailable"))
}

/// A line of the kernel's memory information, in bytes.
pub(crate) fn memory_bytes(line: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Login name of the current user: sshd without root's rights accepts nobody else.
pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
