//! Runs the jobs one after the other, each with a view of its own.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;

use ksync::monitor::{Braked, Event, Quiet};
use ksync::sync::watch::{self, Listener, News};
use ksync::sync::{Job, Runner, SharedMonitor};
use ksync::wire::hello::Options;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::log_file::Logging;
use crate::plan::{self, Planning};
use crate::report::{self, CliError};
use crate::request::Request;
use crate::screen::warned;
use crate::view::{self, View};
use crate::{brake, json, nearest, out};

/// Runs `future` on this thread. By measurement, a single-threaded runtime is the cheapest for a
/// single connection; blocking work has threads of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::new(report::NOT_STARTED, format!("cannot start: {error}")))?;
    let done = runtime.block_on(future);
    // Threads that still wait for a disk or a dead peer must not delay the exit.
    runtime.shutdown_background();
    done
}

/// Runs the request and returns the exit code. An error in one sync skips the later ones, but a
/// SOURCE that is missing does not stop the others.
pub(crate) fn run(request: &Request) -> Result<u8, CliError> {
    let done = block_on(async {
        let mut signals = Signals::new()?;
        for warning in &request.warnings {
            if request.show.json {
                json::warn("endpoint", warning);
            } else if !request.show.quiet {
                out::note(&warned(warning));
            }
        }
        let (mut exit, mut runner) = (0, Runner::default());
        let (mut is_braked, mut agreed) = (false, None);
        if let (Some(plan::Use::Apply), Some(job)) = (&request.plan, request.jobs.first()) {
            match fits(job, request, &mut runner, &mut signals).await? {
                Fits::Braked => return Ok(report::BRAKE),
                Fits::Yes(consent) => agreed = consent,
            }
        }
        for job in &request.jobs {
            let mut job = job.clone();
            job.options.consent.agreed = agreed.or(job.options.consent.agreed);
            // The plan was carried out: another state is what it makes.
            job.options.plan = job.options.plan.filter(|_| !job.verifies);
            // Entries whose deletion waits for consent have been reported.
            job.options.delete &= !(job.verifies && is_braked);
            let ended = match with_consent(&job, request, &mut runner, &mut signals).await {
                Err(error) if error.exit == report::SELECTION && request.jobs.len() > 1 => {
                    if request.show.json {
                        json::report_error(&error);
                    }
                    out::note(&error.to_string());
                    report::PARTIAL
                }
                ended => ended?,
            };
            is_braked = ended == report::BRAKE;
            exit = worse(exit, ended);
        }
        runner.close().await;
        Ok(exit)
    });
    if let Err(error) = &done {
        request.log.iter().for_each(|log| log.line(&error.to_string()));
        if request.show.json {
            json::report_error(error);
        }
    }
    done
}

/// Runs a job. If deletions wait for consent and a user can be asked, asks, and repeats the job
/// after a yes. Only the deletions are left to do then. If more entries would go by then, asks
/// again.
async fn with_consent(
    job: &Job,
    request: &Request,
    runner: &mut Runner,
    signals: &mut Signals,
) -> Result<u8, CliError> {
    let mut job = job.clone();
    loop {
        let (exit, braked) = one(&job, request, runner, signals).await?;
        let Some(braked) = braked.filter(|braked| brake::can_ask(braked, request.show)) else {
            return Ok(exit);
        };
        let going = braked.going;
        if !asked(braked, signals).await? {
            return Ok(exit);
        }
        job.options.consent.agreed = Some(going);
    }
}

/// The answer to whether a plan still fits.
enum Fits {
    /// It does; the user agreed to this number of deletions, if they were asked.
    Yes(Option<u64>),
    /// It does, but its deletions wait for consent.
    Braked,
}

/// Compares both sides with the plan, in a dry run that shows nothing. A plan of deletions that
/// wait for consent is not carried out by halves.
async fn fits(
    job: &Job,
    request: &Request,
    runner: &mut Runner,
    signals: &mut Signals,
) -> Result<Fits, CliError> {
    let options = Options { dry_run: true, list_changes: false, ..job.options.clone() };
    let dry = Job { options, ..job.clone() };
    let running = runner.run_and_then(&dry, None, Arc::new(Quiet), Arc::new(|_: News<'_>| {}));
    let ended = tokio::select! {
        ended = running => ended.map_err(CliError::from),
        () = signals.wait() => Err(CliError::new(report::SIGNAL, "stopped by a signal")),
    };
    let ended = ended.map_err(|error| match error.exit {
        report::PLAN => CliError::new(error.exit, format!("{}: nothing was changed", error.what()))
            .with_hint(error.hint()),
        _ => error,
    });
    let Some(braked) = ended?.summary.braked else { return Ok(Fits::Yes(None)) };
    view::of(job, request.show, false).observe(Event::Braked(braked.clone()));
    if !brake::can_ask(&braked, request.show) {
        return Ok(Fits::Braked);
    }
    let going = braked.going;
    Ok(if asked(braked, signals).await? { Fits::Yes(Some(going)) } else { Fits::Braked })
}

/// Asks the user for consent.
async fn asked(braked: Braked, signals: &mut Signals) -> Result<bool, CliError> {
    let asking = tokio::task::spawn_blocking(move || brake::ask(&braked));
    tokio::select! {
        answer = asking => Ok(answer.unwrap_or(false)),
        () = signals.wait() => Err(CliError::new(report::SIGNAL, "stopped by a signal")),
    }
}

/// Runs a job once: the exit code, and the deletions that wait for consent.
async fn one(
    job: &Job,
    request: &Request,
    runner: &mut Runner,
    signals: &mut Signals,
) -> Result<(u8, Option<Braked>), CliError> {
    let view = view::of(job, request.show, request.live.is_some());
    let listening = Arc::clone(&view);
    let listener: Listener = Arc::new(move |news: News<'_>| listening.news(news));
    let planning = Arc::new(Planning::new(job, Arc::clone(&view) as SharedMonitor));
    let running = async {
        let monitor: SharedMonitor = match &request.log {
            _ if matches!(request.plan, Some(plan::Use::Make(..))) => Arc::clone(&planning) as SharedMonitor,
            // No line of a log tells a difference from a change.
            Some(log) if !job.verifies => Arc::new(Logging::begin(job, Arc::clone(&view), log)),
            _ => Arc::clone(&view) as SharedMonitor,
        };
        match &request.live {
            Some(live) => match watch::watch(job, live, monitor, listener).await? {},
            None => Ok(runner.run_and_then(job, request.after.as_ref(), monitor, listener).await?),
        }
    };
    let ended = tokio::select! {
        ended = running => ended,
        never = draw(&*view) => match never {},
        // A watch for a program that is gone would go on for ever.
        error = out::failed(), if request.live.is_some() && request.show.json => Err(error),
        () = signals.wait() => Err(CliError::new(report::SIGNAL, "stopped by a signal")
            .with_hint(Some("What has arrived is kept: the same command goes on from there."))),
    };
    view.finish();
    let report = ended.map_err(|error| nearest::hinted(error, &job.source))?;
    if let Some(plan::Use::Make(file, plan)) = &request.plan {
        planning.write(plan, file, job, &report)?;
    }
    view.report(&report);
    request.log.iter().for_each(|log| log.report(&report));
    let exit = report::exit_of(&report);
    Ok((exit, report.summary.braked.filter(|_| exit == report::BRAKE)))
}

async fn draw(screen: &dyn View) -> Infallible {
    loop {
        tokio::time::sleep(screen.period()).await;
        screen.tick();
    }
}

/// Catches Ctrl-C, SIGTERM and SIGHUP. After its creation it misses none of them.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    pub(crate) fn new() -> Result<Self, CliError> {
        let listen = || -> io::Result<_> {
            let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()];
            Ok([signal(interrupt)?, signal(terminate)?, signal(SignalKind::hangup())?])
        };
        listen()
            .map(Self)
            .map_err(|error| CliError::new(report::NOT_STARTED, format!("cannot wait for signals: {error}")))
    }

    /// Waits for any of these signals.
    pub(crate) async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The worse exit code of two complete runs: 44 before 25 before 23 before 24 before 47 before 0.
fn worse(a: u8, b: u8) -> u8 {
    const FROM_GOOD_TO_BAD: [u8; 6] = [0, report::COMMAND, 24, 23, report::BRAKE, report::VERIFICATION];
    let rank = |code| FROM_GOOD_TO_BAD.iter().position(|&known| known == code).unwrap_or(usize::MAX);
    if rank(a) > rank(b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_exit_code_of_several_runs_wins() {
        for (a, b, code) in [
            (0, 0, 0),
            (0, 24, 24),
            (23, 0, 23),
            (24, 23, 23),
            (24, 24, 24),
            (25, 23, 25),
            (24, 25, 25),
            (0, 25, 25),
            (25, 47, 25),
            (47, 25, 25),
            (47, 23, 23),
            (0, 47, 47),
            (0, 44, 44),
            (44, 25, 44),
        ] {
            assert_eq!(worse(a, b), code);
        }
    }
}
