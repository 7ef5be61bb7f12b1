//! One HTTP call: its request, timeout, size limit and retries.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE};
use ureq::http::{HeaderMap, HeaderValue, Method, Response, request};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, AsSendBody, Body, Timeout};

use crate::kernel::api_key::ApiKey;
use crate::kernel::error::{ApiError, Call, StatusError, Subject};
use crate::kernel::proxy::ProxyConnector;
use crate::kernel::retry::{Advice, Decision, Outcome, decide, http_date};
use crate::kernel::settings::{Base, Settings};
use crate::kernel::tls::TlsConnector;
use crate::kernel::waits::Waits;
use crate::log::debug;
use crate::remote::{Proxies, ProxyError, RemoteError, client_config};
use crate::tree::path::escape;

/// Header that names the project by its id or name.
const PROJECT_HEADER: &str = "X-Kernel-Project";

/// Longest connect timeout.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// Longest timeout of a call: no session, and so no command, lasts longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(72 * 60 * 60);

/// Bytes read of an answer that refuses the call.
const REFUSAL_BYTES_MAX: u64 = 64 * 1024;

/// HTTP client for the API.
pub(super) struct Http {
    agent: Agent,
    base: Base,
    key: ApiKey,
    authorization: HeaderValue,
    project: Option<HeaderValue>,
    /// Timeout of a call that takes no time by itself.
    pub(super) timeout: Duration,
    /// Sleep function; tests replace it.
    pub(super) sleep: fn(Duration),
    /// Listener of the waits before retries.
    pub(super) waits: Waits,
    /// How far the API's clock was ahead of this machine's at the last answer, in seconds.
    ahead: Mutex<Option<f64>>,
}

/// A request.
pub(super) struct Request<'a> {
    /// The method.
    pub(super) method: Method,
    /// Path after the base URL, encoded.
    pub(super) path: String,
    /// The body.
    pub(super) content: Content<'a>,
    /// Size limit of the answer, in bytes.
    pub(super) limit: u64,
    /// Timeout until the answer is complete.
    pub(super) timeout: Duration,
    /// Selects errors that are never retried, even if the rules allow it.
    pub(super) is_final: fn(&ApiError) -> bool,
}

/// The body of a request.
pub(super) enum Content<'a> {
    /// No body.
    Nothing,
    /// JSON text.
    Json(Vec<u8>),
    /// Arbitrary bytes.
    Bytes(&'a [u8]),
}

/// An answer with a success status.
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The whole body.
    pub(super) body: Vec<u8>,
}

impl Http {
    /// Prepares a client without connecting.
    pub(super) fn new(settings: &Settings, proxies: &Proxies) -> Result<Self, ApiError> {
        let base = Base::parse(&settings.base_url)?;
        let authorization = settings.key.header().map_err(|reason| ApiError::Key { reason })?;
        let project = settings.project.as_deref().map(HeaderValue::from_str).transpose().map_err(|_| {
            let call = Call::new("name the project", Subject::Account);
            ApiError::Argument { call, reason: "it does not fit in a header" }
        })?;
        let tls = base.encrypted.then(|| client_config(settings.ca_cert.as_deref(), &base.endpoint));
        let tls = tls.transpose()?;
        // A proxy must not get the key unencrypted.
        let proxy = if base.encrypted { proxies.to(true, &base.host, base.port)? } else { None };
        // The connector opens the tunnel. This only tells ureq to leave the host's name to it.
        let named = proxy.as_ref().and_then(|proxy| ureq::Proxy::new(&proxy.authority()).ok());
        let config = Agent::config_builder()
            .proxy(named)
            .http_status_as_error(false)
            // A redirect would take the key along.
            .max_redirects(0)
            .user_agent(concat!("ksync/", env!("CARGO_PKG_VERSION")))
            .accept("application/json");
        let endpoint = base.endpoint.clone();
        let connector = ProxyConnector { proxy, tls: tls.clone(), endpoint }
            .chain(TcpConnector::default())
            .chain(TlsConnector(tls));
        Ok(Self {
            agent: Agent::with_parts(config.build(), connector, DefaultResolver::default()),
            base,
            key: settings.key.clone(),
            authorization,
            project,
            timeout: settings.timeout,
            sleep: thread::sleep,
            waits: Waits::default(),
            ahead: Mutex::default(),
        })
    }

    /// The API's endpoint, for display.
    pub(super) fn endpoint(&self) -> &str {
        &self.base.endpoint
    }

    /// Makes a call, and retries it by the rules of [`decide`].
    pub(super) fn send(&self, call: &Call, request: &Request<'_>) -> Result<Answer, ApiError> {
        let mut attempts = 0;
        loop {
            let begin = Instant::now();
            let result = self.send_once(call, request);
            let ms = begin.elapsed().as_millis();
            // A query may hold a path of the VM or a token.
            let path = request.path.split('?').next().unwrap_or_default();
            let error = match result {
                Ok(answer) => {
                    debug!("api status={} ms={ms} call={} {path}", answer.status, request.method);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            attempts += 1;
            let outcome = outcome(&error);
            debug!("api failed={} ms={ms} call={} {path}", outcome.label(), request.method);
            match decide(attempts, outcome, random_fraction()) {
                Decision::RetryAfter(delay) if !(request.is_final)(&error) => {
                    debug!("wait ms={} why=api attempt={attempts}", delay.as_millis());
                    self.waits.retry(&error, begin.elapsed(), delay);
                    (self.sleep)(delay);
                }
                _ => return Err(error),
            }
        }
    }

    fn send_once(&self, call: &Call, request: &Request<'_>) -> Result<Answer, ApiError> {
        let failed = |error| self.unanswered(call, request, error);
        let begin = SystemTime::now();
        let builder = self.builder(request);
        let mut response = match &request.content {
            Content::Nothing => self.run(builder, (), request.timeout),
            Content::Json(text) => {
                self.run(builder.header(CONTENT_TYPE, "application/json"), text.as_slice(), request.timeout)
            }
            Content::Bytes(bytes) => {
                self.run(builder.header(CONTENT_TYPE, "application/octet-stream"), *bytes, request.timeout)
            }
        }
        .map_err(failed)?;
        self.compare_clocks(begin, response.headers());
        let status = response.status();
        if status.is_success() {
            let body =
                response.body_mut().with_config().limit(request.limit).read_to_vec().map_err(failed)?;
            return Ok(Answer { status: status.as_u16(), headers: response.headers().clone(), body });
        }
        if status.is_redirection() {
            let (call, endpoint) = (call.clone(), self.base.endpoint.clone());
            return Err(ApiError::Redirected { call, endpoint, status: status.as_u16() });
        }
        Err(self.refused(call, response))
    }

    /// How far the API's clock is ahead of this machine's, in seconds, if an answer told its time.
    pub(super) fn ahead_s(&self) -> Option<f64> {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the time in an answer with the clock here. The API read its clock between the
    /// request and now, and cut the fraction of the second off.
    fn compare_clocks(&self, begin: SystemTime, headers: &HeaderMap) {
        let told = headers.get(DATE).and_then(|value| http_date(value.to_str().ok()?));
        #[allow(clippy::cast_precision_loss)]
        let ahead = told.and_then(|theirs| {
            let seconds = |time: SystemTime| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64());
            let (first, last) = (seconds(begin)?, seconds(SystemTime::now())?);
            Some(theirs as f64 + 0.5 - (first + last) / 2.0)
        });
        if ahead.is_some() {
            *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
        }
    }

    fn builder(&self, request: &Request<'_>) -> request::Builder {
        let builder = request::Builder::new()
            .method(request.method.clone())
            .uri(format!("{}{}", self.base.url, request.path))
            .header(AUTHORIZATION, &self.authorization);
        match &self.project {
            Some(project) => builder.header(PROJECT_HEADER, project),
            None => builder,
        }
    }

    fn run(
        &self,
        builder: request::Builder,
        content: impl AsSendBody,
        timeout: Duration,
    ) -> Result<Response<Body>, ureq::Error> {
        let request = builder.body(content)?;
        // ureq panics if it cannot add the timeout to the current time.
        let timeout = timeout.min(TIMEOUT_MAX);
        let connect_timeout = Some(connect_timeout(timeout));
        let config = self.agent.configure_request(request);
        let config = config.timeout_resolve(connect_timeout).timeout_connect(connect_timeout);
        self.agent.run(config.timeout_global(Some(timeout)).build())
    }

    /// Makes the error for an answer that refuses the call.
    fn refused(&self, call: &Call, mut response: Response<Body>) -> ApiError {
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let advice = Advice::read(header, SystemTime::now());
        let mut body = Vec::new();
        // The status is enough. A connection lost here merely shortens the explanation.
        let _ = response.body_mut().as_reader().take(REFUSAL_BYTES_MAX).read_to_end(&mut body);
        let status_error = StatusError::read(status, &body, advice, &self.key);
        ApiError::Refused { call: call.clone(), status_error }
    }

    /// Makes the error for a missing or partial answer.
    fn unanswered(&self, call: &Call, request: &Request<'_>, error: ureq::Error) -> ApiError {
        let (call, endpoint) = (call.clone(), self.base.endpoint.clone());
        let text = |error: &ureq::Error| escape(self.key.hide_in(&error.to_string()).as_bytes()).into_owned();
        match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                let after = connect_timeout(request.timeout);
                ApiError::TimedOut { call, endpoint, after, is_connecting: true }
            }
            ureq::Error::Timeout(_) => {
                ApiError::TimedOut { call, endpoint, after: request.timeout, is_connecting: false }
            }
            ureq::Error::Io(source) => match source.downcast::<RemoteError>() {
                Ok(mut source) => {
                    if let RemoteError::Proxy { source, .. } = &mut source
                        && let ProxyError::TimedOut(after) = source.as_mut()
                    {
                        *after = connect_timeout(request.timeout);
                    }
                    ApiError::Proxy { call, source: Box::new(source) }
                }
                Err(source) if source.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) => {
                    ApiError::Untrusted { call, endpoint, source: source.into() }
                }
                Err(source) => ApiError::Unreachable { call, endpoint, source },
            },
            error @ (ureq::Error::HostNotFound | ureq::Error::ConnectionFailed) => {
                ApiError::Unreachable { call, endpoint, source: io::Error::other(text(&error)) }
            }
            ureq::Error::BodyExceedsLimit(limit) => {
                ApiError::Answer { call, endpoint, reason: format!("it is longer than {limit} bytes") }
            }
            error => ApiError::Answer { call, endpoint, reason: text(&error) },
        }
    }
}

/// Connect timeout of a call with this timeout: at most half of it, so that the error tells which
/// part timed out.
fn connect_timeout(timeout: Duration) -> Duration {
    CONNECT_TIMEOUT_MAX.min(timeout / 2)
}

/// Meaning of an error for a retry.
fn outcome(error: &ApiError) -> Outcome {
    match error {
        ApiError::Unreachable { .. } | ApiError::TimedOut { .. } => Outcome::NoAnswer,
        ApiError::Proxy { source, .. } if source.is_retryable() => Outcome::NoAnswer,
        ApiError::Refused { status_error, .. } => {
            Outcome::Answer { status: status_error.status, advice: status_error.advice }
        }
        _ => Outcome::Final,
    }
}

/// Returns a random number from 0 to 1, or 0.5 if there is none. The delay need not be secret.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
