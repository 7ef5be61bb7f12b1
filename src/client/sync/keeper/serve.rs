//! The keeper's process.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{interval, timeout};

use crate::kernel::BridgeImage;
use crate::kernel::KernelError;
use crate::log::debug;
use crate::monitor::Quiet;
use crate::remote::relay::{hear, tell};
use crate::remote::{self, AgentImage, Connection, RemoteError, SpareChannel, Target};
use crate::sync::emulator::Emulator;
use crate::sync::endpoint::Endpoint;
use crate::sync::job::{ConnectOptions, SharedMonitor};
use crate::sync::keeper::ask::end_silent;
use crate::sync::keeper::facts::Facts;
use crate::sync::keeper::message::{Answer, Ask, LentAgent, Purpose, Status};
use crate::sync::keeper::place::{Lock, Place, is_ours};
use crate::sync::keeper::pool::Pool;
use crate::sync::keeper::start::Parameters;
use crate::sync::kernel::{Session, access};
use crate::sync::target::state_dir;

/// Silence after which the connection counts as lost. It is probed three times as often.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Age of the last sign of life up to which the connection is lent for a command without a ping: a
/// command must not run twice. The probes come more often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(12);

/// Interval of the keeper's checks of itself.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Shortest time between two looks at keys and known hosts.
const CHECK_EVERY: Duration = Duration::from_secs(20);

/// Shortest time between two questions to the platform's API.
const ASK_API_EVERY: Duration = Duration::from_secs(60);

/// Difference between the wall clock and the one that stands still while this machine sleeps, from
/// which on it has slept.
const SLEPT_MIN: Duration = Duration::from_secs(10);

/// Timeout for the question of a process that has connected.
const ASKS_WITHIN: Duration = Duration::from_secs(5);

/// Attempts to take the lock, and the time between two.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// The state of a keeper.
struct Keeper {
    parameters: Parameters,
    connect_options: ConnectOptions,
    session: Option<Session>,
    connection: Arc<Connection>,
    pool: Pool,
    /// An open channel for the next command, so that it takes one round trip.
    spare: Mutex<Option<SpareChannel>>,
    begin: Instant,
    users: AtomicUsize,
    served: AtomicU64,
    last_use: Mutex<Instant>,
    last_sign: Mutex<(u64, Instant)>,
    asked_api: Mutex<Option<Instant>>,
    /// Set once no further run may be served.
    is_over: AtomicBool,
    over: Notify,
    /// Streams of processes that wait for the end.
    waiting: Mutex<Vec<UnixStream>>,
}

/// Runs a keeper until it ends by itself. Ends at once if the facts differ from those of the run
/// that started it, or if there is a keeper already.
///
/// # Errors
/// The host cannot be reached, or there is no place for the socket.
pub async fn serve(parameters: Parameters, agent: AgentImage, bridge: BridgeImage) -> io::Result<()> {
    let connect_options = parameters.connect_options(agent, bridge);
    let facts = Facts::of(&parameters.endpoint, &connect_options);
    let Some(facts) = facts.filter(|facts| facts.name == parameters.name) else { return Ok(()) };
    let place = Place::of(&facts.name).ok_or(io::ErrorKind::NotFound)?;
    let lock = match Lock::inherited(&place) {
        Some(lock) => Some(lock),
        None => lock_or_replace(&place).await?,
    };
    let Some(lock) = lock else { return Ok(()) };
    let signals = [signal(SignalKind::hangup())?, signal(SignalKind::terminate())?];
    let (connection, emulator) = match &facts.endpoint {
        Endpoint::Sandbox { .. } => {
            let nobody: SharedMonitor = Arc::new(Quiet);
            let connected = Emulator::connect(&connect_options, &nobody).await.map_err(io::Error::other)?;
            (connected.0, Some(connected.1))
        }
        _ => {
            let target = Target { silence_timeout: SILENCE_MAX, ..facts.target };
            (remote::connect(&target).await.map_err(io::Error::other)?, None)
        }
    };
    let connection = match state_dir() {
        Ok(state) => connection.with_secrets(state.join("secrets")),
        Err(_) => connection,
    };
    let connection = Arc::new(connection);
    let now = Instant::now();
    let keeper = Arc::new(Keeper {
        pool: Pool::new(Arc::clone(&connection), connect_options.agent.clone()),
        session: facts.session,
        connect_options,
        connection: Arc::clone(&connection),
        spare: Mutex::default(),
        begin: now,
        users: AtomicUsize::new(0),
        served: AtomicU64::new(0),
        last_use: Mutex::new(now),
        last_sign: Mutex::new((0, now)),
        asked_api: Mutex::default(),
        is_over: AtomicBool::new(false),
        over: Notify::new(),
        waiting: Mutex::default(),
        parameters,
    });
    let served = serve_until_over(&keeper, lock, signals).await;
    connection.goodbye().await;
    if let Some(emulator) = emulator {
        emulator.stop().await;
    }
    served
}

/// Serves until the keeper is over.
async fn serve_until_over(keeper: &Arc<Keeper>, lock: Lock, signals: [Signal; 2]) -> io::Result<()> {
    let [mut hangup, mut terminate] = signals;
    if !keeper.pool.warm(keeper.parameters.request.as_ref()).await {
        return Ok(());
    }
    keeper.refill().await;
    let listening = lock.listen()?;
    debug!("keeper step=listen name={}", keeper.parameters.name);
    let mut looks = interval(LOOK_EVERY);
    let mut clock = Clock::new();
    let mut checked = Instant::now();
    loop {
        tokio::select! {
            accepted = listening.listener.accept() => match accepted {
                Ok((stream, _)) if is_ours(&stream) => drop(tokio::spawn(Arc::clone(keeper).answer(stream))),
                Ok(_) => {}
                // Too many open files, for example.
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            },
            _ = looks.tick() => {
                keeper.note_signs();
                if clock.has_slept() || !listening.is_there() || keeper.is_idle() {
                    break;
                }
                if checked.elapsed() >= CHECK_EVERY {
                    checked = Instant::now();
                    if !keeper.is_still_right() {
                        break;
                    }
                }
            }
            () = keeper.over.notified() => break,
            error = keeper.connection.lost() => {
                debug!("keeper step=lost error={error}");
                break;
            }
            _ = hangup.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    debug!("keeper step=end served={}", keeper.served.load(Ordering::Relaxed));
    // Without the socket, the next run connects by itself at once.
    drop(lock);
    Ok(())
}

/// Takes the lock of a place, and kills a keeper that has it and does not answer. `None` if one has
/// it that does.
async fn lock_or_replace(place: &Place) -> io::Result<Option<Lock>> {
    for _ in 0..LOCK_ATTEMPTS {
        let taken = place.lock()?;
        if taken.is_some() || !end_silent(place).await {
            return Ok(taken);
        }
        // A keeper that starts does not listen yet, and one that was killed takes a moment to end.
        tokio::time::sleep(LOCK_WAIT).await;
    }
    Ok(None)
}

/// Tells a sleep of this machine by its two clocks.
struct Clock {
    wall: SystemTime,
    running: Instant,
}

impl Clock {
    fn new() -> Self {
        Self { wall: SystemTime::now(), running: Instant::now() }
    }

    /// True if the machine has slept since the last call.
    fn has_slept(&mut self) -> bool {
        let last = std::mem::replace(self, Self::new());
        // A wall clock that was set back tells nothing.
        let wall = self.wall.duration_since(last.wall).unwrap_or_default();
        wall.saturating_sub(self.running - last.running) >= SLEPT_MIN
    }
}

impl Keeper {
    /// Answers the question of a process.
    async fn answer(self: Arc<Self>, mut stream: UnixStream) {
        let Ok(Ok(ask)) = timeout(ASKS_WITHIN, hear(&mut stream)).await else { return };
        debug!("keeper step=asked ask={ask:?}");
        match ask {
            Ask::Status => drop(tell(&mut stream, &self.status()).await),
            Ask::Stop => {
                lock(&self.waiting).push(stream);
                self.end();
            }
            Ask::Channel => {
                let _use = self.begin_use();
                self.lend(stream).await;
            }
            Ask::Borrow(purpose) => {
                let _use = self.begin_use();
                if !self.may_lend(purpose).await {
                    let _ = tell(&mut stream, &Answer::No).await;
                    return;
                }
                Arc::clone(&self).ask_api();
                self.served.fetch_add(1, Ordering::Relaxed);
                match purpose {
                    Purpose::Command => drop(tell(&mut stream, &self.lent(None)).await),
                    Purpose::Exchange => match self.pool.reserve() {
                        Some(reserved) => {
                            let agent =
                                if reserved.is_ready() { LentAgent::Ready } else { LentAgent::Starting };
                            if tell(&mut stream, &self.lent(Some(agent))).await.is_ok() {
                                reserved.serve(stream).await;
                            }
                        }
                        None => drop(tell(&mut stream, &Answer::No).await),
                    },
                }
            }
        }
    }

    fn lent(&self, agent: Option<LentAgent>) -> Answer {
        let micros = self.connection.round_trip().as_micros();
        Answer::Lent {
            endpoint: self.connection.endpoint().to_owned(),
            round_trip_us: u64::try_from(micros).unwrap_or(u64::MAX),
            agent,
        }
    }

    fn status(&self) -> Status {
        let is_used = self.users.load(Ordering::Relaxed) > 0;
        let idle = if is_used { Duration::ZERO } else { lock(&self.last_use).elapsed() };
        Status {
            endpoint: self.parameters.endpoint.to_string(),
            pid: std::process::id(),
            age_seconds: self.begin.elapsed().as_secs(),
            idle_seconds: idle.as_secs(),
            served: self.served.load(Ordering::Relaxed),
            keep_seconds: self.parameters.keep.as_secs(),
        }
    }

    /// Marks the keeper as used, until the result is dropped.
    fn begin_use(self: &Arc<Self>) -> Use {
        self.users.fetch_add(1, Ordering::Relaxed);
        Use(Arc::clone(self))
    }

    /// True if the connection may be lent. An exchange can be repeated over another connection, and
    /// its agent's first answer is the proof that this one lives. A command cannot be repeated, so
    /// it needs a recent sign of life.
    async fn may_lend(&self, purpose: Purpose) -> bool {
        if self.is_over.load(Ordering::Relaxed) || self.connection.is_closed() {
            return false;
        }
        self.note_signs();
        let sign = lock(&self.last_sign).1;
        purpose == Purpose::Exchange
            || sign.elapsed() < SIGN_OF_LIFE
            || self.connection.spare_channel().await.is_ok()
    }

    /// Notes if something was received.
    fn note_signs(&self) {
        let heard = self.connection.heard_bytes();
        let mut last = lock(&self.last_sign);
        if heard != last.0 {
            *last = (heard, Instant::now());
        }
    }

    /// Lends a channel: the spare one, or another.
    async fn lend(self: &Arc<Self>, mut stream: UnixStream) {
        let spare = lock(&self.spare).take().and_then(|mut spare| spare.is_open().then_some(spare));
        let opened = match spare {
            Some(spare) => Ok(spare),
            None => self.connection.spare_channel().await,
        };
        match opened {
            Ok(channel) => {
                let refilling = Arc::clone(self);
                tokio::spawn(async move { refilling.refill().await });
                if tell(&mut stream, &Answer::Opened).await.is_ok() {
                    self.connection.lend(channel, stream).await;
                }
            }
            Err(RemoteError::Channel { .. }) => drop(tell(&mut stream, &Answer::Refused).await),
            Err(_) => {}
        }
    }

    /// Opens the spare channel.
    async fn refill(&self) {
        if let Ok(channel) = self.connection.spare_channel().await {
            lock(&self.spare).get_or_insert(channel);
        }
    }

    fn is_idle(&self) -> bool {
        self.users.load(Ordering::Relaxed) == 0 && lock(&self.last_use).elapsed() >= self.parameters.keep
    }

    /// True if a run would still look for this keeper.
    fn is_still_right(&self) -> bool {
        Facts::of(&self.parameters.endpoint, &self.connect_options)
            .is_some_and(|facts| facts.name == self.parameters.name)
    }

    /// Asks the API, in the background and at most once a minute, if the session is still there.
    /// Ends if it is not, or if its name means another one.
    fn ask_api(self: Arc<Self>) {
        let Some(Session { meant, stored }) = &self.session else { return };
        let mut asked = lock(&self.asked_api);
        if self.connect_options.api.is_none() || asked.is_some_and(|last| last.elapsed() < ASK_API_EVERY) {
            return;
        }
        *asked = Some(Instant::now());
        drop(asked);
        let (meant, stored) = (meant.clone(), stored.clone());
        let keeper = Arc::clone(&self);
        spawn_blocking(move || {
            let Ok(access) = access(&keeper.connect_options) else { return };
            let is_same = match access.confirm(&meant, Some(&stored)) {
                Ok(browser) => browser.session_id == stored.session_id,
                Err(error) => !KernelError::is_gone(&error),
            };
            if !is_same {
                keeper.end();
            }
        });
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.over.notify_one();
    }
}

/// A use of the keeper.
struct Use(Arc<Keeper>);

impl Drop for Use {
    fn drop(&mut self) {
        *lock(&self.0.last_use) = Instant::now();
        self.0.users.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_a_wall_clock_that_runs_ahead() {
        let mut clock = Clock::new();
        assert!(!clock.has_slept());
        clock.wall = SystemTime::now() - Duration::from_secs(11);
        assert!(clock.has_slept());
        assert!(!clock.has_slept());
        clock.wall = SystemTime::now() + Duration::from_secs(60);
        assert!(!clock.has_slept());
    }
}
