//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::subjects::{SUBJECTS, Subject};
use crate::watchers::{ALL, Watcher};

/// What a smoke run makes of the data: it shall show that everything works, not how fast.
const SMOKE_SCALE: f64 = 0.005;

/// How often a large file is saved, at most: that takes a peer close to a second.
const LARGE_SAMPLES_MAX: usize = 11;

/// How long does it take until a save is there, and what does it cost to wait for one?
///
/// Lets ksync and every installed peer keep a copy through websocat and sshd on loopback, saves in turn, and verifies
/// every copy.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench watch --")]
pub(crate) struct Options {
    /// Only these subjects
    #[arg(long = "subject", value_name = "NAME", value_delimiter = ',')]
    subjects: Vec<String>,
    /// Only these watchers; ksync is one
    #[arg(long = "peer", value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// How many saves ksync is to carry; peers carry fewer
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    samples: usize,
    /// Less data, or more: 0.1 is a tenth
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Where everything is made and removed again [default: /dev/shm if it has room, else target]
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
    /// A tenth of the saves, and idle for ten seconds instead of a minute
    #[arg(long)]
    quick: bool,
    /// Everything a few times with tiny data: does it work?
    #[arg(long)]
    smoke: bool,
    /// Writes the result with all single samples
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Names subjects and watchers
    #[arg(long)]
    pub(crate) list: bool,
    /// What `cargo bench` gives, and `cargo test --benches` does not
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

impl Options {
    /// What was asked for, smoke runs included.
    pub(crate) fn read() -> Options {
        let mut options = Options::parse();
        if options.quick {
            options.samples = options.samples.div_ceil(10);
        }
        if options.smoke {
            options.samples = 2;
            options.scale = SMOKE_SCALE;
            if options.peers.is_empty() {
                options.peers = vec![ALL[0].name.to_owned()];
            }
        }
        options
    }

    pub(crate) fn scaled(&self, count: u64) -> u64 {
        (count as f64 * self.scale) as u64
    }

    /// About what all of it takes on the disk.
    pub(crate) fn bytes_needed(&self) -> u64 {
        self.scaled(6 << 30)
    }

    /// How many saves ksync carries, and how many a peer: those take ten times as long.
    pub(crate) fn counts(&self, is_large: bool) -> (usize, usize) {
        let count = if is_large { self.samples.min(LARGE_SAMPLES_MAX) } else { self.samples };
        (count, if is_large { count } else { count.div_ceil(5) })
    }

    /// How often both releases are checked out.
    pub(crate) fn runs(&self) -> usize {
        self.samples.div_ceil(50)
    }

    /// For how long nothing happens.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(match (self.smoke, self.quick) {
            (true, _) => 1,
            (false, true) => 10,
            (false, false) => 60,
        })
    }

    /// The subjects that were named, or all.
    pub(crate) fn subjects(&self) -> Result<Vec<&'static Subject>, String> {
        chosen("subject", SUBJECTS, |subject| subject.name, &self.subjects)
    }

    pub(crate) fn watchers(&self) -> Result<Vec<&'static Watcher>, String> {
        chosen("peer", ALL, |watcher| watcher.name, &self.peers)
    }
}

fn chosen<T>(
    what: &str,
    all: &'static [T],
    name: impl Fn(&T) -> &'static str,
    wanted: &[String],
) -> Result<Vec<&'static T>, String> {
    let names: Vec<&str> = all.iter().map(&name).collect();
    if let Some(stranger) = wanted.iter().find(|wanted| !names.contains(&wanted.as_str())) {
        return Err(format!("there is no {what} {stranger}; there are {}", names.join(", ")));
    }
    let is_wanted = |one: &&T| wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name(one));
    Ok(all.iter().filter(is_wanted).collect())
}

/// All names that options take.
pub(crate) fn list() -> String {
    let mut text = String::from("subjects:\n");
    for Subject { name, about, link, .. } in SUBJECTS {
        text += &format!("  {name:<14} {about}; {link}\n");
    }
    text += "watchers:\n";
    for watcher in ALL {
        let missing = watcher.missing().map(|name| format!(" (not installed: {name})"));
        text += &format!("  {:<14} {}{}\n", watcher.name, watcher.about, missing.unwrap_or_default());
    }
    text
}
