//! The command line: one match on the mode. All work of a run is in the library; this program
//! parses arguments and prints.

mod args;
mod brake;
mod doctor;
mod flush;
mod json;
mod list;
mod live;
mod log;
mod out;
mod progress;
mod proxy;
mod report;
mod request;
mod rules;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod screen;
mod session;
mod shell;
mod ssh;
mod status;
mod units;
mod verbs;
mod view;

use std::process::ExitCode;

use args::Mode;

fn main() -> ExitCode {
    let parsed = args::parse(std::env::args_os());
    if let Ok(mode) = &parsed
        && let Err(error) = log::begin(mode)
    {
        out::note(&error.to_string());
        return ExitCode::from(error.exit);
    }
    let done = match parsed {
        Ok(Mode::Show(text)) => {
            out::result(&text);
            Ok(0)
        }
        Ok(Mode::Session(args)) => session::run(args),
        Ok(Mode::Ssh(args)) => ssh::run(&args),
        Ok(Mode::Doctor(args)) => doctor::run(&args),
        Ok(Mode::Proxy(args)) => proxy::run(&args),
        Ok(Mode::Flush(args)) => flush::run(&args),
        Ok(Mode::Sync(args)) => request::build(*args).and_then(|request| run::run(&request)),
        #[cfg(feature = "sandbox")]
        Ok(Mode::Sandbox(args)) => sandbox::run(&args),
        Err(error) => {
            out::note(&error);
            Ok(report::USAGE)
        }
    };
    let exit = done.unwrap_or_else(|error| {
        out::note(&error.to_string());
        error.exit
    });
    log::end(exit);
    ExitCode::from(exit)
}
