//! Comparison of ksync with common pipelines over the same tunnel.
//!
//! ```text
//! client (ksync, or ssh with websocat as ProxyCommand) ─► link ─► websocat ─► sshd ─► agent, rsync
//! ```
//! The link is a relay, which ends TCP next door, or a network in which each packet takes its time:
//! see `tests/world/link.rs` and `tests/world/network`. Everything runs on this machine, and the
//! harness makes it all: data, keys, home directories, sshd, websocat and the links. Contestants
//! take turns. The harness compares each result byte by byte with the source, and reports a wrong
//! one as an error without a number.
//! `cargo bench --bench peers -- --help` lists the options.
//!
//! The harness looks for programs in `KSYNC_PEERS_BIN`, in `PATH` and in the directories of sshd.
//!
//! A failure ends the bench with a panic. The tables go to standard output.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

mod cases;
mod contest;
mod contestants;
#[path = "../data/mod.rs"]
mod data;
#[path = "../lab/mod.rs"]
mod lab;
mod options;
mod picture;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use cases::{Case, Data};
use contest::{Contest, Heat};
use contestants::Contestant;
use lab::link::{Conditions, Network};
use lab::machine::{Direction, Machine};
use lab::{figures, is_interrupted};
use options::Options;

fn main() -> ExitCode {
    let options = Options::read();
    if options.list {
        print!("{}", options::list());
        return ExitCode::SUCCESS;
    }
    if !options.bench {
        // `cargo test --benches` must not take an hour.
        println!("nothing is measured without cargo bench");
        return ExitCode::SUCCESS;
    }
    lab::end_orderly_when_interrupted();
    match run(&options) {
        Ok(heats) if heats.iter().all(is_sound) && !is_interrupted() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reports if ksync succeeded; the table shows the peers' failures.
fn is_sound(heat: &Heat) -> bool {
    heat.rows.iter().all(|row| row.error.is_none() || !row.contestant.is_ksync())
}

fn run(options: &Options) -> Result<Vec<Heat>, String> {
    let (cases, mut links, wanted) = (options.cases()?, options.links()?, options.contestants()?);
    if let Some(missing) = lab::missing_program() {
        return Err(format!("{missing} is not installed: without it there is no machine to sync with"));
    }
    let contestants: Vec<&Contestant> = wanted.into_iter().filter(|one| one.missing().is_none()).collect();
    // All threads and programs of the bench are to be on the network.
    let wants_network = links.iter().any(|link| link.is_real_tcp);
    let network = if wants_network { Network::enter_or_skip() } else { None };
    links.retain(|link| network.is_some() || !link.is_real_tcp);
    let sizes = options.sizes();
    let needed = cases.iter().map(|case| sizes.bytes_needed(case.data)).max().unwrap_or(0);
    let machine = Machine::on(lab::place::world(options.work.as_deref(), needed), network, options.direct);
    let about = about(options, &machine)?;
    for (name, value) in &about {
        println!("{name}: {value}");
    }
    // Only its own case measures the installation of the agent.
    machine.put_agent_there()?;
    let mut heats = Vec::new();
    for &direction in options.directions() {
        for data in [Data::One, Data::Small, Data::Noise, Data::Large, Data::Tree] {
            let cases: Vec<&Case> = cases.iter().copied().filter(|case| case.data == data).collect();
            if !cases.is_empty() && !is_interrupted() {
                heats.extend(run_over(data, &cases, direction, &links, &contestants, options, &machine));
            }
        }
    }
    if let Some(file) = &options.json {
        fs::write(file, table::json(&heats, &about))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    if let Some(file) = &options.svg {
        fs::write(file, picture::draw(&heats, &about))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(heats)
}

/// The conditions of the measurement, and the missing programs.
fn about(options: &Options, machine: &Machine) -> Result<Vec<(String, String)>, String> {
    let mut about = vec![
        ("machine".to_owned(), figures::machine_line()),
        ("date".to_owned(), figures::today()),
        ("files on".to_owned(), lab::place::filesystem(&machine.world).to_owned()),
        ("rounds".to_owned(), options.runs.to_string()),
    ];
    if options.direct {
        about.push(("bridges".to_owned(), "none: plain SSH".to_owned()));
    }
    let mut seen = BTreeSet::new();
    for contestant in options.contestants()? {
        match contestant.missing() {
            Some(program) if seen.insert(program.to_owned()) => {
                about.push(("not installed".to_owned(), program.to_owned()));
            }
            Some(_) => {}
            None => about.extend(
                contestant
                    .version()
                    .filter(|version| seen.insert(version.clone()))
                    .map(|version| (contestant.name.to_owned(), version)),
            ),
        }
    }
    Ok(about)
}

/// Runs all cases over the same data, on every link.
fn run_over(
    data: Data,
    cases: &[&'static Case],
    direction: Direction,
    links: &[Conditions],
    contestants: &[&'static Contestant],
    options: &Options,
    machine: &Machine,
) -> Vec<Heat> {
    let (sizes, source) = (options.sizes(), machine.world.path("from"));
    let start = Instant::now();
    sizes.make(data, &source);
    eprintln!("made the data ({data:?}) in {:.1} s", start.elapsed().as_secs_f64());
    let mut contest =
        Contest::new(machine, direction, source.clone(), sizes.cut_after(), options.repeats_max());
    let mut heats = Vec::new();
    for &case in cases {
        let aside = machine.world.path("aside");
        let change = sizes.change(case.before, &source, &aside);
        let takes_part =
            |one: &&&Contestant| case.contestants.contains(&one.name) && options.takes_part(one, direction);
        let here: Vec<&Contestant> = contestants.iter().filter(takes_part).copied().collect();
        for &link in links.iter().filter(|&&link| !here.is_empty() && options.runs_on(case, link)) {
            eprintln!("{} {} {}", case.name, direction.name(), link.name);
            let rows = contest.run(case, link, &here, change.as_ref(), options.runs);
            if is_interrupted() {
                break;
            }
            let limit = contest::limit(&sizes, case, link, direction);
            let about = change.as_ref().map(|change| change.about.clone());
            let heat = Heat { case, link, direction, change: about, limit, rows };
            print!("{}", table::of_heat(&heat));
            heats.push(heat);
        }
        let _ = fs::remove_dir_all(aside);
    }
    contest.end();
    let _ = fs::remove_dir_all(source);
    heats
}
