//! An interactive terminal: a real pseudoterminal, with its input and output.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::{World, wait_for};

/// A terminal with a program in it. A shell starts the program and stays. Without it the terminal
/// would reset at the program's end, whatever its state.
pub(crate) struct Terminal {
    /// The user's end of the terminal.
    keys: File,
    shown: Arc<Mutex<String>>,
    /// Length of the output already read.
    seen: usize,
    shell: Child,
    modes_before: Modes,
}

/// The terminal's modes.
#[derive(Debug, PartialEq, Eq)]
struct Modes(String);

impl Modes {
    fn of(keys: &File) -> Modes {
        let Termios { input_modes, output_modes, control_modes, local_modes, special_codes, .. } =
            tcgetattr(keys).unwrap();
        Modes(format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?} {special_codes:?}"))
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Opens a terminal of 91 columns and 17 lines, and starts a program in it.
    pub(crate) fn new(world: &World, program: &Command) -> Terminal {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let name = PathBuf::from(ptsname(&keys, Vec::new()).unwrap().into_string().unwrap());
        let no_control = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(no_control).open(name).unwrap();
        tcsetwinsize(&terminal, size(91, 17)).unwrap();
        let keys = File::from(keys);
        let modes_before = Modes::of(&keys);

        let mut command = world.command("setsid");
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(["-c", "sh", "-c", "\"$@\"; echo \"ended with $?\"; read -r line", "sh"]);
        command.arg(program.get_program()).args(program.get_args()).env("TERM", "vt220");
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap()).stderr(terminal);
        let shell = command.spawn().unwrap();

        let shown = Arc::new(Mutex::new(String::new()));
        let (mut screen, writing) = (keys.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A read error means that nobody has the terminal open any more.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                writing.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Terminal { keys, shown, seen: 0, shell, modes_before }
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until `text` appears after the output already read. Returns the output before it.
    pub(crate) fn sees(&mut self, text: &str) -> String {
        let found = wait_for(&format!("{text:?} on the terminal"), || {
            let shown = self.shown.lock().unwrap();
            let before = shown[self.seen..].split_once(text)?.0.to_owned();
            Some(before)
        });
        self.seen += found.len() + text.len();
        found
    }

    /// Reports if text has appeared at any time.
    pub(crate) fn has_shown(&self, text: &str) -> bool {
        self.shown.lock().unwrap().contains(text)
    }

    /// All output so far.
    pub(crate) fn output(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    /// Resizes the terminal.
    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.keys, size(columns, rows)).unwrap();
    }

    /// Reports if the terminal's modes have changed.
    pub(crate) fn is_changed(&self) -> bool {
        Modes::of(&self.keys) != self.modes_before
    }

    /// Waits for the program's end, and asserts this exit code and the restored modes. Returns the
    /// output before it.
    pub(crate) fn ends_with(&mut self, status: u8) -> String {
        let before = self.sees(&format!("ended with {status}\r\n"));
        assert_eq!(Modes::of(&self.keys), self.modes_before);
        before
    }

    /// Pid of the program, the only child of the shell.
    pub(crate) fn program(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.shell.id());
        wait_for("a child", || {
            let children = std::fs::read_to_string(&children).ok()?;
            Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
