//! One sync after the other, each with a screen of its own.

use std::future::Future;
use std::io;
use std::sync::Arc;

use ksync::sync::{self, Job};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::out;
use crate::report::{self, Complaint};
use crate::request::{Request, Show};
use crate::screen::{self, Screen};

/// Runs `future` on this thread: measured, a runtime of one thread is the cheapest for a single connection,
/// and what blocks has threads of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Complaint>>) -> Result<T, Complaint> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Complaint::new(report::NOT_STARTED, format!("cannot start: {error}")))?;
    let done = runtime.block_on(future);
    // Threads that still wait for a disk or a dead peer must not hold up the end.
    runtime.shutdown_background();
    done
}

/// Does what was requested; the answer is the exit code. What ends one sync early ends the ones after it.
pub(crate) fn run(request: &Request) -> Result<u8, Complaint> {
    block_on(async {
        let mut signals = Signals::new()?;
        let mut exit = 0;
        for job in &request.jobs {
            exit = worse(exit, one(job, request.show, &mut signals).await?);
        }
        Ok(exit)
    })
}

async fn one(job: &Job, show: Show, signals: &mut Signals) -> Result<u8, Complaint> {
    let screen = Arc::new(Screen::new(job, show));
    let ended = tokio::select! {
        ended = sync::run(job, Arc::<Screen>::clone(&screen)) => ended.map_err(Complaint::from),
        never = draw(&screen) => match never {},
        () = signals.wait() => Err(Complaint::new(report::SIGNAL, "stopped by a signal")
            .with_hint(Some("what has arrived is kept: the same command goes on from there"))),
    };
    screen.finish();
    let report = ended?;
    let direction = screen::direction(job);
    if !show.quiet {
        out::result(&report::line(&report, direction));
        if show.stats {
            out::result(&report::stats(&report, direction));
        }
    }
    Ok(report::exit_code(&report.summary))
}

async fn draw(screen: &Screen) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(screen.period());
    // The first comes at once, when there is nothing to show.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        screen.tick();
    }
}

/// Ctrl-C, a kill, or the end of the terminal. From the moment that this is made none of them is missed.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    pub(crate) fn new() -> Result<Self, Complaint> {
        let listen = || -> io::Result<_> {
            let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()];
            Ok([signal(interrupt)?, signal(terminate)?, signal(SignalKind::hangup())?])
        };
        listen()
            .map(Self)
            .map_err(|error| Complaint::new(report::NOT_STARTED, format!("cannot wait for signals: {error}")))
    }

    /// Waits for any of them.
    pub(crate) async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Of two exit codes of complete runs the one that says more is amiss: 23 before 24 before 0.
fn worse(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 { a.max(b) } else { a.min(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_runs_the_worst_code_stays() {
        for (a, b, code) in [(0, 0, 0), (0, 24, 24), (23, 0, 23), (24, 23, 23), (24, 24, 24)] {
            assert_eq!(worse(a, b), code);
        }
    }
}
