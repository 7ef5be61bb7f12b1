//! Cost of an idle watch: memory, processor time and bytes on the wire.

use std::fs;
use std::time::{Duration, Instant};

use crate::lab::machine::Machine;
use crate::lab::memory::{children, is_work};
use crate::table::Fact;

/// Ticks of the kernel's processor clock per second: `USER_HZ`, which is 100 on all of Linux's
/// current platforms.
const TICKS_A_SECOND: f64 = 100.0;

/// Observes a client, and its processes on the machine, for `span`.
pub(crate) fn measure(machine: &Machine, client: u32, span: Duration) -> Vec<Fact> {
    let agents: Vec<u32> = below(machine.sshd()).into_iter().filter(|&id| is_work(&name(id))).collect();
    let sides = [("client", vec![client]), ("agent", agents)];
    let before = sides.each_ref().map(|(_, ids)| sum(ids, ticks));
    machine.link.reset();
    let start = Instant::now();
    while start.elapsed() < span && !crate::lab::is_interrupted() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let seconds = start.elapsed().as_secs_f64();
    let carried = machine.link.carried();
    let mut facts = Vec::new();
    for ((side, ids), before) in sides.iter().zip(before) {
        let megabytes = |field| sum(ids, |id| memory(id, field)) as f64 / 1_000_000.0;
        facts.push(Fact::new(&format!("{side} RSS now"), megabytes("VmRSS:"), "MB"));
        facts.push(Fact::new(&format!("{side} RSS peak"), megabytes("VmHWM:"), "MB").asked(120.0));
        let used = (sum(ids, ticks) - before) as f64 / TICKS_A_SECOND / seconds;
        facts.push(Fact::new(&format!("{side} CPU"), used * 100.0, "% of a core").asked(1.0));
    }
    let bytes_a_minute = carried.bytes() as f64 * 60.0 / seconds;
    facts.push(Fact::new("on the wire", bytes_a_minute, "B/min").asked(1000.0));
    facts.push(Fact::new("looked at for", seconds, "s"));
    facts
}

fn sum(ids: &[u32], what: impl Fn(u32) -> u64) -> u64 {
    ids.iter().map(|&id| what(id)).sum()
}

/// All descendants of a process.
fn below(process: u32) -> Vec<u32> {
    children(process).into_iter().flat_map(|child| [vec![child], below(child)].concat()).collect()
}

fn name(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned()
}

/// Processor time so far, in ticks.
fn ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in brackets, may contain anything. utime and stime are the fields 14 and 15 of `man
    // 5 proc`.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// A line of a process's status, in bytes.
fn memory(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
    value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
