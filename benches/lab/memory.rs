//! Peak memory of process trees, from the kernel's record of each process (`VmHWM`).
//!
//! A tree's peak is the sum of its processes' peaks: an upper bound for a pipeline of programs. The
//! observer samples every 20 ms, so it may miss a shorter process, and the last growth before an
//! end.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Sampling interval; it costs about 1 % of a core.
const INTERVAL: Duration = Duration::from_millis(20);

/// Peak memory, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peaks {
    /// The client program with its descendants.
    pub(crate) client: u64,
    /// The processes that sshd started for it, without sshd's own and the login shell.
    pub(crate) far: u64,
}

/// Samples a run until stopped. Kills a run that times out or is interrupted.
pub(crate) struct Observer {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Peaks>,
}

impl Observer {
    /// Observes `client`, which leads a process group, and the descendants of `sshd`.
    pub(crate) fn start(client: u32, helper: Option<u32>, sshd: u32, timeout: Duration) -> Observer {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = thread::spawn(move || {
            let (mut near, mut far) = (HashMap::new(), HashMap::new());
            let start = Instant::now();
            while !seen.load(Ordering::Relaxed) {
                for root in [Some(client), helper].into_iter().flatten() {
                    look(root, &mut near, &|_| true);
                }
                for child in children(sshd) {
                    look(child, &mut far, &is_work);
                }
                if start.elapsed() > timeout || crate::lab::is_interrupted() {
                    end_group(client);
                }
                thread::sleep(INTERVAL);
            }
            Peaks { client: near.values().sum(), far: far.values().sum() }
        });
        Observer { done, thread }
    }

    pub(crate) fn stop(self) -> Peaks {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("an observer")
    }
}

/// Kills a process group.
pub(crate) fn end_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// Records the peaks of a process and its descendants.
fn look(process: u32, peaks: &mut HashMap<u32, u64>, counts: &dyn Fn(&str) -> bool) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let peak = field("VmHWM:").and_then(|peak| peak.strip_suffix(" kB")?.parse::<u64>().ok());
    if let (Some(peak), Some(name)) = (peak, field("Name:")) {
        // Memory before an exec does not count.
        peaks.insert(process, if counts(name) { peak * 1024 } else { 0 });
    }
    for child in children(process) {
        look(child, peaks, counts);
    }
}

/// Reports if a program does the work, and is not merely sshd or a shell.
pub(crate) fn is_work(name: &str) -> bool {
    !name.starts_with("sshd") && !["sh", "bash", "dash", "zsh"].contains(&name)
}

/// Child processes that have not been waited for.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers = |list: String| list.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>();
    lists.flat_map(numbers).collect()
}
