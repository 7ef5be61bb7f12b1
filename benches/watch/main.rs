//! Latency of a save in watch mode, and the cost of waiting for one.
//!
//! ```text
//! client (ksync, or ssh with websocat as ProxyCommand) ─► link ─► websocat ─► sshd ─► agent, rsync
//! ```
//! The machine is that of the bench `peers`. ksync and each peer keep their own copy of a tree. The
//! bench makes saves in turn, one at a time. A save counts from just before the file is written
//! until the bench reads the new content at the destination. At the end the bench compares each
//! copy byte by byte with its source. `cargo bench --bench watch -- --help` lists the options.
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

mod checkout;
#[path = "../data/mod.rs"]
mod data;
mod idle;
#[path = "../lab/mod.rs"]
mod lab;
mod options;
mod saves;
mod subjects;
mod table;
mod watchers;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use lab::figures;
use lab::machine::Machine;
use options::Options;
use subjects::Data;
use table::Heat;
use watchers::Watcher;

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
        Ok(heats) if heats.iter().all(Heat::is_sound) && !lab::is_interrupted() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Vec<Heat>, String> {
    let (subjects, wanted) = (options.subjects()?, options.watchers()?);
    if let Some(missing) = lab::missing_program() {
        return Err(format!("{missing} is not installed: without it there is no machine to sync with"));
    }
    let machine = Machine::start(lab::place::world(options.work.as_deref(), options.bytes_needed()));
    let about = about(&wanted, &machine);
    for (name, value) in &about {
        println!("{name}: {value}");
    }
    machine.put_agent_there()?;
    let watchers: Vec<&Watcher> = wanted.into_iter().filter(|one| one.missing().is_none()).collect();
    let mut heats = Vec::new();
    for data in [Data::Small, Data::Large, Data::Tree] {
        let subjects: Vec<_> = subjects.iter().copied().filter(|subject| subject.data == data).collect();
        if subjects.is_empty() || lab::is_interrupted() {
            continue;
        }
        subjects::make(data, &machine, &watchers, options);
        for subject in subjects {
            eprintln!("{}", subject.name);
            let heat = subjects::run(subject, &machine, &watchers, options);
            if lab::is_interrupted() {
                break;
            }
            print!("{}", table::of_heat(&heat));
            heats.push(heat);
        }
        subjects::remove(data, &machine, &watchers);
    }
    if let Some(file) = &options.json {
        fs::write(file, table::json(&heats, &about))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(heats)
}

/// The conditions of the measurement, and the missing programs.
fn about(watchers: &[&'static Watcher], machine: &Machine) -> Vec<(String, String)> {
    let mut about = vec![
        ("machine".to_owned(), figures::machine_line()),
        ("date".to_owned(), figures::today()),
        ("files on".to_owned(), lab::place::filesystem(&machine.world).to_owned()),
    ];
    let mut seen = BTreeSet::new();
    for watcher in watchers {
        let (name, value) = match watcher.missing() {
            Some(program) => ("not installed", Some(program.to_owned())),
            None => (watcher.name, watcher.version()),
        };
        about.extend(value.filter(|value| seen.insert(value.clone())).map(|value| (name.to_owned(), value)));
    }
    about
}
