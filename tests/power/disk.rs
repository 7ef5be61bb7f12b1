//! An ext4 filesystem in a file, whose power can be cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The attribute and the file that hold a marker of unconfirmed files.
const ATTRIBUTE: &str = "user.ksync.unconfirmed";
const FILE: &str = ".ksync/unconfirmed";

/// Shuts down the filesystem of a directory: data that the disk lacks is lost.
const CUT: &str = r#"open(my $f, "<", $ARGV[0]) or die "open: $!"; ioctl($f, 0x8004587D, pack("I", $ARGV[1])) or die "ioctl: $!";"#;

/// Tells if the journal is still written when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Journal = 1,
    Nothing = 2,
}

pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) place: PathBuf,
    is_mounted: bool,
}

fn tried(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", told.trim())) }
}

impl Disk {
    /// Checks that this machine supports such disks, or returns the reason why not.
    pub(crate) fn probe() -> Result<(), String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut disk = Disk::make(folder.path(), 16)?;
        disk.mount("")?;
        disk.cut(Last::Nothing)
    }

    /// Creates a disk of this many MiB.
    pub(crate) fn make(folder: &Path, mib: u64) -> Result<Disk, String> {
        let (image, place) = (folder.join("image"), folder.join("disk"));
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(mib << 20).map_err(|error| error.to_string())?;
        tried(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        Ok(Disk { image, place, is_mounted: false })
    }

    pub(crate) fn mount(&mut self, options: &str) -> Result<(), String> {
        let options = format!("loop,commit=1{options}");
        tried(Command::new("mount").args(["-o", &options]).arg(&self.image).arg(&self.place))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Cuts the power.
    pub(crate) fn cut(&mut self, last: Last) -> Result<(), String> {
        tried(Command::new("perl").args(["-e", CUT]).arg(&self.place).arg((last as u8).to_string()))
    }

    /// Unmounts the disk, once no process has a file of it open any more.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match tried(Command::new("umount").arg(&self.place)) {
                Err(_) if start.elapsed() < Duration::from_secs(20) => {
                    thread::sleep(Duration::from_millis(20))
                }
                result => {
                    self.is_mounted &= result.is_err();
                    return result;
                }
            }
        }
    }

    /// Removes all markers of unconfirmed files.
    pub(crate) fn take_markers(&self) {
        for entry in walkdir::WalkDir::new(&self.place).into_iter().flatten() {
            if entry.file_type().is_dir() {
                let _ = rustix::fs::removexattr(entry.path(), ATTRIBUTE);
                let _ = fs::remove_file(entry.path().join(FILE));
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.place).status();
        }
    }
}
