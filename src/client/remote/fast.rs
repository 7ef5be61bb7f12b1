//! Connections in the fast order, to hosts that are remembered.
//!
//! ```text
//!  CLIENT                                                     OpenSSH's sshd
//!  id · KEXINIT · the only key exchange's first packet ─────►
//!    ◄────────────────────────────────── id · KEXINIT · KEX_REPLY · NEWKEYS
//!  checks the host key; only then:
//!  NEWKEYS · signed login · channel · command · its input ──►
//!    ◄────────────────────────────────── accepted · opened · the agent's answer
//! ```
//! [`begin`] goes as far as the host key. [`Trusted::log_in`] sends the rest in one flight, once
//! the caller has something to start. The command's input travels as data, so the command line
//! holds nothing of it.
//!
//! A server that has changed may not take this. Then there is one connection more, in order, and it
//! tells every error. A host key that is not trusted, a wrong signature and a broken strict key
//! exchange are final. `facts` has what is remembered, `ksync_ssh` the rules.

use std::pin::pin;
use std::time::Duration;

use ksync_ssh::{ConnectError, Fallback, OpenError, Order, SshError, fallback};
use russh::client::AuthResult;
use tokio::time::{Instant, sleep, timeout};

use crate::log::debug;
use crate::remote::agent::WRITE_BYTES_MAX;
use crate::remote::auth::{LoginOn, Logins};
use crate::remote::bootstrap::FLIGHT_BYTES_MAX;
use crate::remote::error::{ConnectionStatus, RemoteError};
use crate::remote::facts::{Failure, HostFacts, Login, Way};
use crate::remote::line::{Line, Wire};
use crate::remote::own::{self, Own, OwnReader, OwnWriter, Signed};
use crate::remote::pump::Waiting;
use crate::remote::session::{Reader, Session, Writer};
use crate::remote::ssh::Hooks;
use crate::remote::target::Target;
use crate::remote::tcp::GuardedStream;

/// Silence after a flight for which the connection is given up, or this many round trips. A server
/// that has answered once may take some time for the login itself.
const SILENCE: Duration = Duration::from_secs(2);
const SILENCE_ROUND_TRIPS: u32 = 4;
const LOGIN_SILENCE_FACTOR: u32 = 4;

/// Round trips of the key exchange. The agent starts half a round trip after the login was sent.
const KEY_EXCHANGE_ROUND_TRIPS: u32 = 1;

/// The progress of [`begin`].
pub(super) enum Begun {
    /// The host is trusted, and the login is ready to be sent.
    Trusted(Box<Trusted>),
    /// A login by a key that this host has not taken before has succeeded.
    LoggedIn(Box<Line>),
    /// Connect in order.
    InOrder(Way),
}

/// The result of a login.
pub(super) enum LoggedIn {
    /// It succeeded.
    Line(Box<Line>),
    /// Connect in order, after this failure.
    InOrder(Failure),
}

/// A connection to a host that has proved its identity.
pub(super) struct Trusted {
    pub(super) line: Line,
    own: Own,
    order: Order,
    logins: Logins,
    /// The place of the key that was let in before, and its signature.
    index: usize,
    signed: Signed,
    silence: Duration,
}

/// A command to start along with the login, and the agent's ends.
pub(super) struct Job<'a> {
    pub(super) command: String,
    pub(super) waiting: &'a mut Waiting,
    /// The channel, once the command was started.
    pub(super) started: Option<(Reader, Writer)>,
}

/// Connects in the fast order, if the facts allow it, up to the check of the host key.
pub(super) async fn begin(target: &Target, login: Option<&Login>) -> Result<Begun, RemoteError> {
    let known =
        login.and_then(Login::recall).filter(|known| own::is_known_by(&target.host_keys, &known.host_key));
    let Some(known) = known.filter(HostFacts::allows_fast_order) else {
        return Ok(Begun::InOrder(Way::InOrder));
    };
    let (endpoint, begin) = (target.endpoint()?, Instant::now());
    let (hooks, order) = (Hooks::default(), known.order());
    let Wire { stream, socket, status, round_trip, round_trips } = Wire::open(target).await?;
    let silence = SILENCE.max(SILENCE_ROUND_TRIPS * round_trip.max(known.round_trip.unwrap_or_default()));
    let stream = GuardedStream::new(stream, target.silence_timeout, status.clone());
    let settings = own::Settings {
        round_trip,
        silence: target.silence_timeout,
        host_keys: target.host_keys.clone(),
        order: order.clone(),
        is_lean: known.is_lean,
    };
    let exchange_begin = Instant::now();
    let shaking = own::handshake(stream, settings, status.clone(), hooks.shown.clone());
    let shaken = match timeout(silence.min(target.connect_timeout), shaking).await {
        Ok(shaken) => shaken,
        Err(_) => Err(ConnectError::Ssh(SshError::Silence)),
    };
    let own = match shaken {
        Ok(own) => own,
        Err(ConnectError::Ssh(error)) if may_go_on_in_order(&order, &error, false) => {
            return Ok(Begun::InOrder(Way::AfterFailure(failure(&error))));
        }
        Err(error) => return Err(own::explain(&endpoint, error, &status)),
    };
    let exchange = exchange_begin.elapsed();
    debug!("connect ok=true ms={} endpoint={endpoint} step=trust order=fast", begin.elapsed().as_millis());
    let mut session = Session::Own(own.clone());
    let mut logins = Logins::load(&session, &target.keys).await?;
    let round_trips = round_trips + KEY_EXCHANGE_ROUND_TRIPS;
    let line = |round_trips| {
        let line = Line::over(socket, Session::Own(own.clone()), status.clone(), &hooks, round_trips);
        line.took(exchange);
        line
    };
    let signing = async {
        let index = logins.position(|key| known.let_in(key))?;
        Some((index, logins.sign(&own, index, &target.user).await?))
    };
    // A person may have to confirm the signature.
    match timeout(target.connect_timeout, signing).await.ok().flatten() {
        Some((index, signed)) => {
            let line = line(round_trips);
            Ok(Begun::Trusted(Box::new(Trusted { line, own, order, logins, index, signed, silence })))
        }
        None => {
            let on = LoginOn {
                user: &target.user,
                endpoint: &endpoint,
                timeout: target.connect_timeout,
                status: &status,
            };
            logins.log_in(&mut session, &on, None).await?;
            // The login, and the channel.
            let round_trips = round_trips + session.login_round_trips() + 1;
            let mut line = line(round_trips);
            line.seen = own.facts();
            Ok(Begun::LoggedIn(Box::new(line)))
        }
    }
}

impl Trusted {
    /// Logs in, and starts the `job` along with it.
    ///
    /// # Errors
    /// The server lets none of the keys in, or opens no channel.
    pub(super) async fn log_in(
        mut self,
        target: &Target,
        login: Option<&Login>,
        job: Option<&mut Job<'_>>,
    ) -> Result<LoggedIn, RemoteError> {
        let begin = Instant::now();
        let result = match job {
            None => self.log_in_only(target, login).await,
            Some(job) => self.start(target, login, job).await,
        };
        match result {
            Ok(()) => {
                let mut line = self.line;
                line.took(begin.elapsed());
                self.own.round_trip().into_iter().for_each(|round_trip| line.took(round_trip));
                line.seen = self.own.facts();
                debug!("connect ok=true ms={} step=log-in order=fast", begin.elapsed().as_millis());
                Ok(LoggedIn::Line(Box::new(line)))
            }
            Err(Stopped::Ssh(error)) => {
                if may_go_on_in_order(&self.order, &error, self.own.has_opened()) {
                    return Ok(LoggedIn::InOrder(failure(&error)));
                }
                // This stores why it has ended.
                self.line.session.is_closed();
                Err(self.line.status.error(&target.endpoint()?))
            }
            Err(Stopped::Told(error)) => Err(error),
        }
    }

    async fn log_in_only(&mut self, target: &Target, login: Option<&Login>) -> Result<(), Stopped> {
        let result = {
            let asked = pin!(self.own.log_in(&target.user, &self.signed));
            Self::answer(&self.line.status, self.silence, asked).await?
        };
        self.judge(result, target, login).await
    }

    async fn start(
        &mut self,
        target: &Target,
        login: Option<&Login>,
        job: &mut Job<'_>,
    ) -> Result<(), Stopped> {
        let mut flight = job.waiting.take_queued();
        let (own, command) = (self.own.clone(), std::mem::take(&mut job.command));
        let started = own.start(&target.user, &self.signed, command, &flight);
        let (channel, sent) = match started {
            Ok(started) => started,
            Err(error) => {
                job.waiting.put_back(flight);
                return Err(Stopped::Ssh(error));
            }
        };
        debug!("agent step=start for=exchange flight=with-login bytes={}", flight.len());
        let (mut reader, writer) = channel.split();
        let sending = send_rest(job.waiting, &writer, &mut flight, sent);
        let opening = self.opened(target, login, &mut reader);
        let opened = tokio::select! {
            opened = opening => opened,
            never = sending => match never {},
        };
        match opened {
            Ok(()) => {
                job.waiting.sent(flight);
                job.started = Some((Reader::Own(reader), Writer::Own(writer)));
                Ok(())
            }
            Err(error) => {
                job.waiting.put_back(flight);
                Err(error)
            }
        }
    }

    /// Waits until the login has succeeded and the channel is open.
    async fn opened(
        &mut self,
        target: &Target,
        login: Option<&Login>,
        reader: &mut OwnReader,
    ) -> Result<(), Stopped> {
        let result = {
            let own = self.own.clone();
            let asked = pin!(own.login_result());
            Self::answer(&self.line.status, self.silence, asked).await?
        };
        self.judge(result, target, login).await?;
        match timeout(LOGIN_SILENCE_FACTOR * self.silence, reader.opened()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(OpenError::Refused { code, message })) => {
                let source = russh::Error::ChannelOpenFailure(own::refusal(code, message));
                Err(Stopped::Told(self.line.channel_error(&endpoint(target)?, source)))
            }
            Ok(Err(OpenError::Ssh(error))) => Err(Stopped::Ssh(error)),
            Err(_) => Err(Stopped::Ssh(SshError::Silence)),
        }
    }

    /// Waits for the answer to the login, as long as the server is not silent.
    async fn answer(
        status: &ConnectionStatus,
        silence: Duration,
        mut asked: std::pin::Pin<&mut impl Future<Output = Result<AuthResult, SshError>>>,
    ) -> Result<AuthResult, Stopped> {
        let before = status.heard_bytes();
        let mut heard = before;
        loop {
            let factor = if heard == before { 1 } else { LOGIN_SILENCE_FACTOR };
            tokio::select! {
                answer = &mut asked => return answer.map_err(Stopped::Ssh),
                () = sleep(factor * silence) => {
                    let now = status.heard_bytes();
                    if std::mem::replace(&mut heard, now) == now {
                        return Err(Stopped::Ssh(SshError::Silence));
                    }
                }
            }
        }
    }

    /// Handles the answer: after a refusal the other keys are offered, one by one.
    async fn judge(
        &mut self,
        result: AuthResult,
        target: &Target,
        login: Option<&Login>,
    ) -> Result<(), Stopped> {
        if matches!(result, AuthResult::Success) {
            debug!("auth method=publickey key={} accepted=true probe=false", self.index + 1);
            return Ok(());
        }
        if let Some(login) = login {
            login.forget_key();
        }
        let (endpoint, timeout) = (endpoint(target)?, target.connect_timeout);
        let status = self.line.status.clone();
        let on = LoginOn { user: &target.user, endpoint: &endpoint, timeout, status: &status };
        let logins = std::mem::take(&mut self.logins);
        let mut session = Session::Own(self.own.clone());
        logins.log_in(&mut session, &on, Some((self.index, result))).await.map_err(Stopped::Told)?;
        Ok(())
    }
}

/// Reason why a login did not succeed.
enum Stopped {
    Ssh(SshError),
    /// The error for the user.
    Told(RemoteError),
}

fn endpoint(target: &Target) -> Result<String, Stopped> {
    target.endpoint().map_err(Stopped::Told)
}

/// Sends what the flight left over, and what is written meanwhile, as long as it can be sent again.
async fn send_rest(
    waiting: &mut Waiting,
    writer: &OwnWriter,
    flight: &mut Vec<u8>,
    sent: usize,
) -> std::convert::Infallible {
    // An error shows at the login, too.
    let rest = flight.get(sent..).unwrap_or_default();
    let mut is_sent = writer.data(rest).await.is_ok();
    while is_sent && flight.len() + WRITE_BYTES_MAX <= FLIGHT_BYTES_MAX {
        let Some(bytes) = waiting.next_write().await else { break };
        flight.extend_from_slice(&bytes);
        is_sent = writer.data(&bytes).await.is_ok();
    }
    std::future::pending().await
}

/// Reports if a connection in order may do better. `ssh` there tells what a server is that is none.
fn may_go_on_in_order(order: &Order, error: &SshError, has_opened: bool) -> bool {
    let goes_on =
        matches!(error, SshError::NotSsh) || fallback(order, error, has_opened) == Fallback::InOrder;
    debug!("connect ok=false order=fast again={goes_on} error={error}");
    goes_on
}

fn failure(error: &SshError) -> Failure {
    match error {
        SshError::NoCommon { .. } => Failure::Changed,
        SshError::Guess(_) => Failure::Lasting,
        _ => Failure::MayPass,
    }
}
