//! Terminals: a pseudoterminal, and a program that has it for its own, as a shell that somebody types into needs it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe;

/// Makes a program the leader of a session with a terminal of its own. Only a process itself can do that for itself,
/// between its making and its program, where safe Rust cannot go.
const LEADER_MAKERS: [&str; 2] = ["/usr/bin/setsid", "/bin/setsid"];

/// Characters in a line, and lines.
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
    /// As SSH tells it. What is too large for a terminal is the largest.
    pub(super) fn of(columns: u32, rows: u32) -> Self {
        let fit = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Self { columns: fit(columns), rows: fit(rows) }
    }
}

/// Our end of a terminal: what is written is typed, and what is shown there is read.
#[derive(Debug)]
pub(super) struct Terminal(File);

impl Terminal {
    /// Makes one; answers the program's end, too.
    ///
    /// # Errors
    /// The system has none to give.
    pub(super) fn open(size: Size) -> io::Result<(Self, File)> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        // Not with the flags above: not every system takes these there.
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = PathBuf::from(ptsname(&ours, Vec::new())?.into_string().map_err(io::Error::other)?);
        let no_control = OFlags::NOCTTY.bits().cast_signed();
        let theirs = OpenOptions::new().read(true).write(true).custom_flags(no_control).open(name)?;
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        let terminal = Self(ours.into());
        terminal.resize(size)?;
        Ok((terminal, theirs))
    }

    /// Gives it another size, which its program is told of.
    ///
    /// # Errors
    /// The system does not take it.
    pub(super) fn resize(&self, Size { columns, rows }: Size) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.as_fd(), size)?)
    }

    /// What is read from it and written to it. Reading ends with an error once nobody has the other end open.
    ///
    /// # Errors
    /// The system has no further descriptors.
    pub(super) fn ends(&self) -> io::Result<(pipe::Receiver, pipe::Sender)> {
        // It is no pipe, but is waited for in the same way.
        let reader = pipe::Receiver::from_file_unchecked(self.0.try_clone()?)?;
        Ok((reader, pipe::Sender::from_file_unchecked(self.0.try_clone()?)?))
    }
}

/// What a command begins with whose standard input is to be its terminal.
///
/// # Errors
/// There is no such program here.
pub(super) fn leader_maker() -> io::Result<[&'static str; 2]> {
    let found = LEADER_MAKERS.into_iter().find(|path| Path::new(path).is_file());
    let missing = || io::Error::new(io::ErrorKind::Unsupported, "there are no terminals without setsid");
    Ok([found.ok_or_else(missing)?, "-c"])
}
