//! The run's side: asks the keeper for its connection.

use std::convert::Infallible;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::log::debug;
use crate::remote::relay::{hear, tell};
use crate::remote::{Connection, Loan, NotLent};
use crate::sync::keeper::facts::Facts;
use crate::sync::keeper::message::{Answer, Ask, LentAgent, Purpose, Status};
use crate::sync::keeper::place::Place;

/// Silence after which a keeper counts as stuck. Its answers need no network, but a machine under
/// load takes its time.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Interval at which a run looks after its keeper.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Time in which a keeper answers, unless the machine is busy.
const ANSWERS_SOON: Duration = Duration::from_millis(10);

/// Borrows the connection of the keeper; `None` if there is none that lends it. A keeper that is
/// stopped never answers, so connect by yourself after a while.
pub(in crate::sync) async fn borrow(facts: &Facts, purpose: Purpose) -> Option<Connection> {
    let place = Place::of(&facts.name)?;
    let mut stream = place.connect().await?;
    tell(&mut stream, &Ask::Borrow(purpose)).await.ok()?;
    let answer = hear(&mut stream).await.ok()?;
    debug!("keeper step=borrow name={} answer={answer:?}", facts.name);
    let Answer::Lent { endpoint, round_trip_us, agent } = answer else { return None };
    let open = move || {
        let place = place.clone();
        Box::pin(async move { open(&place).await }) as _
    };
    let loan = Loan {
        target: facts.target.clone(),
        endpoint,
        round_trip: Duration::from_micros(round_trip_us),
        agent: agent.map(|_| stream),
        is_agent_ready: agent == Some(LentAgent::Ready),
        open: Box::new(open),
    };
    Some(Connection::lent(loan))
}

/// A connection that was dialled.
pub(in crate::sync) struct Dialled<T> {
    pub(in crate::sync) result: T,
    /// True if a keeper was asked, and had not answered by then.
    pub(in crate::sync) is_keeper_silent: bool,
}

/// Borrows or dials, whichever is done first. Dialling begins once borrowing takes longer than a
/// keeper needs.
pub(in crate::sync) async fn race<T>(
    borrowing: impl Future<Output = Option<Connection>>,
    dialling: impl Future<Output = T>,
) -> Result<Connection, Dialled<T>> {
    tokio::pin!(borrowing, dialling);
    let mut is_asked = true;
    if let Ok(lent) = timeout(ANSWERS_SOON, &mut borrowing).await {
        match lent {
            Some(connection) => return Ok(connection),
            None => is_asked = false,
        }
    }
    loop {
        tokio::select! {
            lent = &mut borrowing, if is_asked => match lent {
                Some(connection) => return Ok(connection),
                None => is_asked = false,
            },
            result = &mut dialling => return Err(Dialled { result, is_keeper_silent: is_asked }),
        }
    }
}

async fn open(place: &Place) -> Result<UnixStream, NotLent> {
    let mut stream = place.connect().await.ok_or(NotLent::Gone)?;
    let asked = async {
        tell(&mut stream, &Ask::Channel).await?;
        hear(&mut stream).await
    };
    match asked.await {
        Ok(Answer::Opened) => Ok(stream),
        Ok(Answer::Refused) => Err(NotLent::Refused),
        _ => Err(NotLent::Gone),
    }
}

/// The state of the keeper at a place; `None` if it does not answer.
pub(super) async fn status(place: &Place, within: Duration) -> Option<Status> {
    let mut stream = place.connect().await?;
    let asked = async {
        tell(&mut stream, &Ask::Status).await.ok()?;
        hear(&mut stream).await.ok()
    };
    timeout(within, asked).await.ok().flatten()
}

/// Looks after the keeper of a lent connection, as long as this is polled: if it stops answering,
/// it is killed, and what it has lent breaks.
pub(in crate::sync) async fn look_after(facts: &Facts) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        end_if_silent(facts).await;
    }
}

/// Kills a keeper that takes connections and does not answer: it is stopped, or stuck. Its agents
/// end with it, and release what they have locked.
pub(in crate::sync) async fn end_if_silent(facts: &Facts) {
    if let Some(place) = Place::of(&facts.name) {
        end_silent(&place).await;
    }
}

/// The same at a place. True if there is no keeper that answers.
pub(super) async fn end_silent(place: &Place) -> bool {
    let Some(stream) = place.connect().await else { return true };
    let is_silent = status(place, STUCK_AFTER).await.is_none();
    if is_silent {
        kill(&stream);
    }
    is_silent
}

/// Kills the process at the other end of a stream. The stream is still open, so the number is that
/// of this process.
pub(super) fn kill(stream: &UnixStream) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) {
        debug!("keeper step=kill pid={}", pid.as_raw_nonzero());
        let _ = kill_process(pid, Signal::KILL);
    }
}
