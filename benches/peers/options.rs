//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::cases::{CASES, Case, Loss, Sizes};
use crate::contestants::{ALL, Contestant};
use crate::lab::link::{Conditions, LINKS};
use crate::lab::machine::Direction;

/// Scale of the data in a smoke run, which tests the harness and not the speed.
const SMOKE_SCALE: f64 = 0.005;

/// Is ksync faster than common pipelines over the same tunnel?
///
/// Runs ksync and every installed peer in turn through websocat and sshd on loopback, over a
/// simulated link, verifies each result and prints medians.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench peers --")]
pub(crate) struct Options {
    /// Only these cases
    #[arg(long = "case", value_name = "NAME", value_delimiter = ',')]
    cases: Vec<String>,
    /// Only these links; without this, the slow cases leave out the links with real TCP
    #[arg(long = "link", value_name = "NAME", value_delimiter = ',')]
    links: Vec<String>,
    /// Only these contestants; ksync is one
    #[arg(long = "peer", value_name = "NAME", value_delimiter = ',')]
    peers: Vec<String>,
    /// Runs of each contestant; the medians are shown
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub(crate) runs: usize,
    /// Plain SSH instead of SSH through bridges
    #[arg(long)]
    pub(crate) direct: bool,
    /// Downloads instead of uploads
    #[arg(long)]
    down: bool,
    /// Scale of the data: 0.1 is a tenth
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// A real source tree in place of the synthetic one, without its symlinks
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// The next release of that tree, for the case `upgrade`
    #[arg(long, value_name = "DIR", requires = "tree")]
    tree2: Option<PathBuf>,
    /// Working directory, removed at the end [default: /dev/shm if it has room, else target]
    ///
    /// On an ext4 without a journal, a tree takes two to five times as long if another one was
    /// removed minutes before. The filesystem skips recently freed inodes one by one.
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
    /// Runs everything once with tiny data and no delay, and ksync also down, to test the harness
    #[arg(long)]
    smoke: bool,
    /// Draws the result as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Writes the result with all single runs as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Lists cases, links and contestants
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
        if options.smoke {
            options.runs = 1;
            options.scale = SMOKE_SCALE;
            if options.links.is_empty() {
                options.links = vec!["raw".to_owned(), "tcp".to_owned()];
            }
        }
        options
    }

    pub(crate) fn sizes(&self) -> Sizes {
        Sizes::new(self.scale, self.tree.clone(), self.tree2.clone())
    }

    pub(crate) fn directions(&self) -> &'static [Direction] {
        match (self.smoke, self.down) {
            (true, _) => &[Direction::Up, Direction::Down],
            (false, true) => &[Direction::Down],
            (false, false) => &[Direction::Up],
        }
    }

    /// Reports if a contestant takes part. A smoke run must stay below a minute, and its uploads
    /// already cover the peers: below ssh, websocat 1.14.1 sometimes keeps the last bytes of a
    /// download for five minutes. Kept connections have tests of their own.
    pub(crate) fn takes_part(&self, contestant: &Contestant, direction: Direction) -> bool {
        if self.smoke && contestant.kept.is_some() {
            return false;
        }
        !(self.smoke && direction == Direction::Down) || contestant.is_ksync()
    }

    /// The named cases, or all.
    pub(crate) fn cases(&self) -> Result<Vec<&'static Case>, String> {
        chosen("case", CASES, |case| case.name, &self.cases)
    }

    pub(crate) fn links(&self) -> Result<Vec<Conditions>, String> {
        Ok(chosen("link", LINKS, |link| link.name, &self.links)?.into_iter().copied().collect())
    }

    /// Reports if a case runs on a link: see [`Case::runs_on`]. A smoke run tries real TCP, without
    /// losses, with the few cases that are also for lossy links.
    pub(crate) fn runs_on(&self, case: &Case, link: Conditions) -> bool {
        match (self.smoke, link.is_real_tcp) {
            (true, true) => case.loss != Loss::Without,
            (true, false) => case.loss != Loss::Only,
            (false, _) => case.runs_on(link, !self.links.is_empty()),
        }
    }

    /// Most repeats of a case.
    pub(crate) fn repeats_max(&self) -> usize {
        if self.smoke { 2 } else { usize::MAX }
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

/// Lists all names that the options accept.
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
