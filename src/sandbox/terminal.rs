//! Terminals: a pseudoterminal, and a program that has it as its controlling terminal, for an
//! interactive shell.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe;

/// Programs that start a session with its own controlling terminal. Only a process itself can do
/// that, between fork and exec, where safe Rust cannot run.
const LEADER_MAKERS: [&str; 2] = ["/usr/bin/setsid", "/bin/setsid"];

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: u16,
    pub(super) rows: u16,
}

impl Default for Size {
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

impl Size {
    /// Size from SSH's numbers, limited to a terminal's maximum.
    pub(super) fn of(columns: u32, rows: u32) -> Self {
        let fit = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Self { columns: fit(columns), rows: fit(rows) }
    }
}

/// Our end of a terminal: writes are typed, and reads return the output.
#[derive(Debug)]
pub(super) struct Terminal(File);

impl Terminal {
    /// Opens a terminal among these devices, which may be those of a world. Returns the program's
    /// end too.
    ///
    /// # Errors
    /// The system has no free terminal.
    pub(super) fn open(size: Size, devices: &Path) -> io::Result<(Self, File)> {
        let is_host = devices == Path::new("/dev");
        let ours = if is_host {
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?
        } else {
            let flags = OFlags::RDWR | OFlags::NOCTTY;
            rustix::fs::open(devices.join("pts/ptmx"), flags, rustix::fs::Mode::empty())?
        };
        // Not part of the flags above, because some systems reject them there.
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = PathBuf::from(ptsname(&ours, Vec::new())?.into_string().map_err(io::Error::other)?);
        let name = if is_host { name } else { devices.join(name.strip_prefix("/dev").unwrap_or(&name)) };
        let no_control = OFlags::NOCTTY.bits().cast_signed();
        let theirs = OpenOptions::new().read(true).write(true).custom_flags(no_control).open(name)?;
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        let terminal = Self(ours.into());
        terminal.resize(size)?;
        Ok((terminal, theirs))
    }

    /// Resizes the terminal; the system signals its program.
    ///
    /// # Errors
    /// The system rejects the size.
    pub(super) fn resize(&self, Size { columns, rows }: Size) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.as_fd(), size)?)
    }

    /// Reader and writer of the terminal. Reads end with an error once the other end is closed.
    ///
    /// # Errors
    /// The system has no free descriptors.
    pub(super) fn ends(&self) -> io::Result<(pipe::Receiver, pipe::Sender)> {
        // The terminal is not a pipe, but tokio polls it in the same way.
        let reader = pipe::Receiver::from_file_unchecked(self.0.try_clone()?)?;
        Ok((reader, pipe::Sender::from_file_unchecked(self.0.try_clone()?)?))
    }
}

/// Command prefix that makes standard input the controlling terminal.
///
/// # Errors
/// This machine has no `setsid`.
pub(super) fn leader_maker() -> io::Result<[&'static str; 2]> {
    let found = LEADER_MAKERS.into_iter().find(|path| Path::new(path).is_file());
    let missing = || io::Error::new(io::ErrorKind::Unsupported, "there are no terminals without setsid");
    Ok([found.ok_or_else(missing)?, "-c"])
}
