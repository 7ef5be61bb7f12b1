//! The command line: one match on the mode. All work of a run is in the library; this program
//! parses arguments and prints.

mod accepted;
mod args;
mod brake;
mod calendar;
mod codes;
mod complete;
mod config;
mod create;
mod doctor;
mod endpoints;
mod files;
mod flush;
mod foreign;
mod format;
mod json;
mod keep;
mod list;
mod list_only;
mod live;
mod log;
mod log_file;
mod manual;
mod misplaced_key;
mod nearest;
mod out;
mod plan;
mod progress;
mod proxy;
mod relative;
mod report;
mod request;
mod rsh;
mod rules;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod screen;
mod session;
mod shell;
mod size;
mod ssh;
mod status;
mod units;
mod usage;
mod verbs;
mod view;

use std::process::ExitCode;

use args::Mode;
use report::CliError;

fn main() -> ExitCode {
    if let Some(word) = complete::word(std::env::args_os()) {
        complete::print(&word);
        return ExitCode::SUCCESS;
    }
    let parsed = args::parse_with(std::env::args_os(), &config::Settings::load);
    // A command line that cannot be parsed may ask for JSON nevertheless.
    let is_json =
        parsed.as_ref().map_or_else(|_| std::env::args_os().any(|arg| arg == "--json"), Mode::is_json);
    let done = done(parsed, is_json);
    let lost = out::failure(is_json).filter(|error| done.as_ref().err() != Some(error));
    let mut exit = done.unwrap_or_else(|error| {
        out::note(&error.to_string());
        error.exit
    });
    if let Some(error) = lost {
        out::note(&error.to_string());
        exit = if exit == 0 { error.exit } else { exit };
    }
    log::end(exit);
    ExitCode::from(exit)
}

fn done(parsed: Result<Mode, CliError>, is_json: bool) -> Result<u8, CliError> {
    if is_json {
        out::check()?;
    }
    let told = |error: CliError| {
        if is_json {
            json::report_error(&error);
        }
        error
    };
    let mode = parsed.map_err(told)?;
    log::begin(&mode).map_err(told)?;
    match mode {
        Mode::Show(text) => {
            out::result(&text);
            Ok(0)
        }
        Mode::Session(args) => session::run(args),
        Mode::Ssh(args) => ssh::run(&args),
        Mode::Doctor(args) => doctor::run(&args),
        Mode::Proxy(args) => proxy::run(&args),
        Mode::Flush(args) => flush::run(&args),
        Mode::Keep(args) => keep::run(&args),
        Mode::Config(args) => config::show::run(&args),
        Mode::Sync(mut args) => {
            let listing = list_only::asked(&mut args).map_err(told)?;
            let request = request::build(*args).map_err(told)?;
            match listing {
                Some(form) => list_only::run(&request, form),
                None => run::run(&request),
            }
        }
        #[cfg(feature = "sandbox")]
        Mode::Sandbox(args) => sandbox::run(&args),
    }
}
