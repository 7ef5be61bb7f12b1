//! Free disk and memory of a VM, through the API.

use crate::kernel::types::{Exec, Executed};

/// The script that reports them.
const SCRIPT: &str = include_str!("resources.sh");

/// Timeout of the script.
const LOOK_SECONDS: u64 = 20;

/// Free and total bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that a program can use.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// Resources of a VM, as far as it reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// The filesystem of `/tmp`.
    pub disk: Option<Room>,
    /// The memory.
    pub memory: Option<Room>,
}

/// Builds the call of the script.
pub(super) fn call() -> Exec {
    Exec {
        command: "bash".to_owned(),
        args: vec!["-c".to_owned(), SCRIPT.to_owned()],
        timeout_sec: LOOK_SECONDS,
        ..Exec::default()
    }
}

/// Parses the script's output.
pub(super) fn read(executed: &Executed) -> Resources {
    let text = String::from_utf8_lossy(&executed.stdout);
    let room = |name: &str| {
        let told = text.lines().find_map(|line| line.strip_prefix("KSYNC ")?.strip_prefix(name))?;
        let mut bytes = told.split_whitespace().map(|kib| kib.parse::<u64>().ok()?.checked_mul(1024));
        Some(Room { free_bytes: bytes.next()??, total_bytes: bytes.next()?? })
    };
    Resources { disk: room("disk "), memory: room("memory ") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rooms_are_read_or_unknown() {
        for (stdout, disk, memory) in [
            ("KSYNC disk 2 4\nKSYNC memory 1 8\n", Some((2048, 4096)), Some((1024, 8192))),
            ("noise\nKSYNC disk 0 4\n", Some((0, 4096)), None),
            ("KSYNC disk x 4\nKSYNC memory 1\n", None, None),
            ("KSYNC disk 99999999999999999999 4\nKSYNC memory -1 8\n", None, None),
            ("", None, None),
        ] {
            let (stdout, stderr) = (stdout.as_bytes().to_vec(), Vec::new());
            let told = read(&Executed { exit_code: 0, stdout, stderr, duration: Duration::ZERO });
            let pair = |room: Option<Room>| room.map(|room| (room.free_bytes, room.total_bytes));
            assert_eq!((pair(told.disk), pair(told.memory)), (disk, memory));
        }
    }
}
