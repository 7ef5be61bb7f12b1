//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::subjects::{SUBJECTS, Subject};
use crate::watchers::{ALL, Watcher};

/// Scale of the data in a smoke run, which tests the harness and not the speed.
const SMOKE_SCALE: f64 = 0.005;

/// Most saves of a large file, because one takes a peer about a second.
const LARGE_SAMPLES_MAX: usize = 11;

/// Measures how soon a save arrives, and the cost of waiting for one.
///
/// Lets ksync and every installed peer keep a copy through websocat and sshd on loopback, makes
/// saves in turn, and verifies every copy.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench watch --")]
pub(crate) struct Options {
    /// Only these subjects
    #[arg(long = "subject", value_name = "NAME", value_delimiter = ',')]
    subjects: Vec<String>,
    /// Only these watchers; ksync is one
    #[arg(long = "peer", value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// Saves for ksync to carry; peers carry fewer
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    samples: usize,
    /// Scale of the data: 0.1 is a tenth
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Working directory, removed at the end [default: /dev/shm if it has room, else target]
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
    /// Makes a tenth of the saves, and idles for ten seconds instead of a minute
    #[arg(long)]
    quick: bool,
    /// Runs everything a few times with tiny data, to test the harness
    #[arg(long)]
    smoke: bool,
    /// Writes the result with all single samples as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Lists subjects and watchers
    #[arg(long)]
    pub(crate) list: bool,
    /// Set by `cargo bench`, and not by `cargo test --benches`
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

impl Options {
    /// Reads the options, and applies those of a smoke run.
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

    /// Approximate disk space of the bench.
    pub(crate) fn bytes_needed(&self) -> u64 {
        self.scaled(6 << 30)
    }

    /// Saves for ksync, and for a peer, which takes ten times as long.
    pub(crate) fn counts(&self, is_large: bool) -> (usize, usize) {
        let count = if is_large { self.samples.min(LARGE_SAMPLES_MAX) } else { self.samples };
        (count, if is_large { count } else { count.div_ceil(5) })
    }

    /// Checkouts of both releases.
    pub(crate) fn runs(&self) -> usize {
        self.samples.div_ceil(50)
    }

    /// Duration of the idle measurement.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(match (self.smoke, self.quick) {
            (true, _) => 1,
            (false, true) => 10,
            (false, false) => 60,
        })
    }

    /// The named subjects, or all.
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

/// Lists all names that the options accept.
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
