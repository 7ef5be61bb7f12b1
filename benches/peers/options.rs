//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::cases::{CASES, Case, Sizes};
use crate::contestants::{ALL, Contestant};
use crate::lab::link::{Conditions, LINKS};
use crate::lab::machine::Way;

/// What a smoke run makes of the data: it shall show that everything works, not how fast.
const SMOKE_SCALE: f64 = 0.005;

/// Is ksync faster than what people chain together today, over the same tunnel?
///
/// Runs ksync and every installed peer in turn through websocat and sshd on loopback, over a simulated link,
/// verifies each result and prints medians.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench peers --")]
pub(crate) struct Options {
    /// Only these cases
    #[arg(long = "case", value_name = "NAME", value_delimiter = ',')]
    cases: Vec<String>,
    /// Only these links
    #[arg(long = "link", value_name = "NAME", value_delimiter = ',')]
    links: Vec<String>,
    /// Only these contestants; ksync is one
    #[arg(long = "peer", value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// How often each contestant runs; the medians are shown
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub(crate) runs: usize,
    /// Downloads instead of uploads
    #[arg(long)]
    down: bool,
    /// Less data, or more: 0.1 is a tenth
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// A real source tree in the place of the synthetic one; its links are left out
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Its next release, for the case `upgrade`
    #[arg(long, value_name = "DIR", requires = "tree")]
    tree2: Option<PathBuf>,
    /// Where everything is made and removed again [default: /dev/shm if it has room, else target]
    ///
    /// On an ext4 without a journal, trees take two to five times as long where another one was removed minutes
    /// before: inodes that were just freed are passed over one by one.
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
    /// Everything once with tiny data and no delay, and ksync and rsync also down: does it work?
    #[arg(long)]
    smoke: bool,
    /// Draws the result
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Writes the result with all single runs
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Names cases, links and contestants
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
        if options.smoke {
            options.runs = 1;
            options.scale = SMOKE_SCALE;
            if options.links.is_empty() {
                options.links = vec!["raw".to_owned()];
            }
        }
        options
    }

    pub(crate) fn sizes(&self) -> Sizes {
        Sizes::new(self.scale, self.tree.clone(), self.tree2.clone())
    }

    pub(crate) fn ways(&self) -> &'static [Way] {
        match (self.smoke, self.down) {
            (true, _) => &[Way::Up, Way::Down],
            (false, true) => &[Way::Down],
            (false, false) => &[Way::Up],
        }
    }

    /// Whether somebody takes part at all. A smoke run has to stay below a minute, and what peers do has been
    /// seen on the way up.
    pub(crate) fn takes_part(&self, contestant: &Contestant, way: Way) -> bool {
        !(self.smoke && way == Way::Down) || contestant.is_ksync() || contestant.name == "rsync"
    }

    /// The cases that were named, or all.
    pub(crate) fn cases(&self) -> Result<Vec<&'static Case>, String> {
        chosen("case", CASES, |case| case.name, &self.cases)
    }

    pub(crate) fn links(&self) -> Result<Vec<Conditions>, String> {
        Ok(chosen("link", LINKS, |link| link.name, &self.links)?.into_iter().copied().collect())
    }

    pub(crate) fn contestants(&self) -> Result<Vec<&'static Contestant>, String> {
        chosen("peer", ALL, |contestant| contestant.name, &self.peers)
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
    Ok(all
        .iter()
        .filter(|one| wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name(one)))
        .collect())
}

/// All names that options take.
pub(crate) fn list() -> String {
    let mut text = String::from("cases:\n");
    for case in CASES {
        text += &format!("  {:<14} {}\n", case.name, case.about);
    }
    text += "links:\n";
    for link in LINKS {
        text += &format!("  {:<14} {}\n", link.name, link.about);
    }
    text += "contestants:\n";
    for contestant in ALL {
        let missing = contestant.missing().map(|name| format!(" (not installed: {name})"));
        text += &format!("  {:<14} {}{}\n", contestant.name, contestant.about, missing.unwrap_or_default());
    }
    text
}
