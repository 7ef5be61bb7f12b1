//! The API calls that ksync makes. Each blocks until it has its answer.

use std::fmt;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Method};

use crate::kernel::error::{ApiError, Call, Subject, quoted};
use crate::kernel::http::{Answer, Content, Http, Request};
use crate::kernel::settings::Settings;
use crate::kernel::types::{Browser, Exec, Executed, Parameters};
use crate::kernel::waits::Waits;
use crate::remote::Proxies;

/// Largest answer that ksync reads, in bytes.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Largest answer to `exec`, with the command's output, in bytes.
const EXEC_ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Longest id or name that ksync sends, in bytes. Real ones have less than 64.
const NAME_BYTES_MAX: usize = 255;

/// Sessions per page of the list: the API's maximum.
const PAGE_SESSIONS: u64 = 100;

/// Limit of pages that ksync reads.
const PAGES_MAX: usize = 100;

/// Slowest supported connection for writing a file, in bytes per second.
const UPLOAD_BYTES_PER_S_MIN: u64 = 32 * 1024;

/// Time for which ksync asks the API to hold a call that waits for a pool session.
const ACQUIRE_HOLD: Duration = Duration::from_secs(30);

/// Pause before the next request for a pool session, if the API did not hold the call.
const ACQUIRE_PAUSE: Duration = Duration::from_secs(1);

/// Characters that stay unencoded in a path segment.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A client of the platform's API. It keeps connections open between calls.
///
/// It holds the key, so its `Debug` shows nothing but the API's endpoint.
pub struct Api {
    http: Http,
}

impl Api {
    /// Prepares a client without connecting. It goes through the proxy that the environment names.
    ///
    /// # Errors
    /// The base URL, the key, the project, the CA file or the proxy is unusable.
    pub fn new(settings: &Settings) -> Result<Self, ApiError> {
        Self::through(settings, &Proxies::of_environment())
    }

    fn through(settings: &Settings, proxies: &Proxies) -> Result<Self, ApiError> {
        Ok(Self { http: Http::new(settings, proxies)? })
    }

    /// Returns the client with a listener of its waits.
    #[must_use]
    pub fn telling(mut self, waits: Waits) -> Self {
        self.http.waits = waits;
        self
    }

    /// How far the API's clock was ahead of this machine's at the last answer, in seconds, to
    /// within a second or so.
    #[must_use]
    pub fn ahead_s(&self) -> Option<f64> {
        self.http.ahead_s()
    }

    /// Creates a session. If the answer is lost, a session may exist that nobody knows of; its own
    /// timeout ends it.
    ///
    /// # Errors
    /// As for all calls; also if the platform has no capacity (529).
    pub fn create(&self, parameters: &Parameters) -> Result<Browser, ApiError> {
        let call = Call::new("create a session", Subject::Account);
        let answer = self.post(&call, "/browsers", parameters)?;
        self.parse(&call, &answer.body)
    }

    /// Looks a session up.
    ///
    /// # Errors
    /// As for all calls; also if the session does not exist.
    pub fn browser(&self, id_or_name: &str) -> Result<Browser, ApiError> {
        let call = Call::new(format!("look up the session {}", quoted(id_or_name)), Subject::Session);
        let path = path(&call, &["browsers", id_or_name])?;
        let answer = self.http.send(&call, &self.request(Method::GET, path, Content::Nothing))?;
        self.parse(&call, &answer.body)
    }

    /// Lists all active sessions.
    ///
    /// # Errors
    /// As for all calls; also if the list has no end.
    pub fn browsers(&self) -> Result<Vec<Browser>, ApiError> {
        let call = Call::new("list the sessions", Subject::Account);
        let mut browsers = Vec::new();
        let mut offset = 0;
        for _ in 0..PAGES_MAX {
            let path = format!("/browsers?status=active&limit={PAGE_SESSIONS}&offset={offset}");
            let answer = self.http.send(&call, &self.request(Method::GET, path, Content::Nothing))?;
            let page: Vec<Browser> = self.parse(&call, &answer.body)?;
            browsers.extend(page);
            match next_offset(&answer.headers) {
                None => return Ok(browsers),
                Some(next) if next > offset => offset = next,
                Some(_) => return Err(self.useless(call, "its pages go round in a circle")),
            }
        }
        Err(self.useless(call, "it has too many pages"))
    }

    /// Ends a session. Its files are lost.
    ///
    /// # Errors
    /// As for all calls; also if the session does not exist.
    pub fn delete(&self, id_or_name: &str) -> Result<(), ApiError> {
        let call = Call::new(format!("delete the session {}", quoted(id_or_name)), Subject::Session);
        let path = path(&call, &["browsers", id_or_name])?;
        self.http.send(&call, &self.request(Method::DELETE, path, Content::Nothing)).map(|_| ())
    }

    /// Takes a session out of a pool. Waits up to `timeout` until one is free. A pool's session
    /// takes fewer parameters than a new one.
    ///
    /// # Errors
    /// As for all calls; also if the pool does not exist, or no session became free.
    pub fn acquire(
        &self,
        pool: &str,
        timeout: Duration,
        parameters: &Parameters,
    ) -> Result<Browser, ApiError> {
        let mut parameters = parameters.clone();
        let call = Call::new(format!("acquire a session of the pool {}", quoted(pool)), Subject::Pool);
        let path = path(&call, &["browser_pools", pool, "acquire"])?;
        let (mut left, mut is_told) = (timeout, false);
        loop {
            let hold = left.clamp(Duration::from_secs(1), ACQUIRE_HOLD);
            parameters.insert("acquire_timeout_seconds".to_owned(), hold.as_secs().into());
            let content = self.json(&call, &parameters)?;
            let mut request = self.request(Method::POST, path.clone(), content);
            request.timeout = request.timeout.saturating_add(hold);
            let begin = Instant::now();
            let answer = self.http.send(&call, &request)?;
            // 204: no session is free yet.
            if answer.status != 204 {
                return self.parse(&call, &answer.body);
            }
            let held = begin.elapsed();
            let pause = ACQUIRE_PAUSE.saturating_sub(held);
            left = left.saturating_sub(held.max(ACQUIRE_PAUSE));
            if left.is_zero() {
                return Err(ApiError::NoneFree { call, after: timeout });
            }
            if !std::mem::replace(&mut is_told, true) {
                let (pool, most) = (quoted(pool), left.as_secs());
                let what =
                    format!("no session of the pool {pool} is free yet; waiting for one, {most} s at most");
                self.http.waits.tell(what, left);
            }
            (self.http.sleep)(pause);
        }
    }

    /// Returns a session to its pool. With `reuse`, the next user gets it unchanged, files
    /// included. Without, a new session replaces it.
    ///
    /// # Errors
    /// As for all calls; also if the pool does not exist.
    pub fn release(&self, pool: &str, session_id: &str, reuse: bool) -> Result<(), ApiError> {
        #[derive(Serialize)]
        struct Release<'a> {
            session_id: &'a str,
            reuse: bool,
        }
        let text = format!("release the session {} to the pool {}", quoted(session_id), quoted(pool));
        let call = Call::new(text, Subject::Pool);
        let path = path(&call, &["browser_pools", pool, "release"])?;
        self.post(&call, &path, &Release { session_id, reuse }).map(|_| ())
    }

    /// Runs a command on a session's VM and waits until it has ended. Like every call it may be
    /// retried, so the command must do no harm if it runs twice.
    ///
    /// # Errors
    /// As for all calls; also if the session does not exist, the program cannot be started, or it
    /// timed out. A command that exits with an error is no error of the call.
    pub fn exec(&self, id_or_name: &str, exec: &Exec) -> Result<Executed, ApiError> {
        let text = format!("run {} in the session {}", quoted(&exec.command), quoted(id_or_name));
        let call = Call::new(text, Subject::Session);
        let path = path(&call, &["browsers", id_or_name, "process", "exec"])?;
        let mut request = self.request(Method::POST, path, self.json(&call, exec)?);
        request.limit = EXEC_ANSWER_BYTES_MAX;
        let after = Duration::from_secs(exec.timeout_sec);
        request.timeout = after.saturating_add(self.http.timeout);
        // A retry would take as long again.
        request.is_final = |error| match error {
            ApiError::Refused { status_error, .. } => status_error.is_command_timeout(),
            ApiError::TimedOut { is_connecting, .. } => !is_connecting,
            _ => false,
        };
        let answer = self.http.send(&call, &request).map_err(|error| match error {
            ApiError::Refused { call, status_error } if status_error.is_command_timeout() => {
                ApiError::CommandTimedOut { call, after }
            }
            error => error,
        })?;
        Executed::parse(&answer.body).ok_or_else(|| self.useless(call, "it is not how a command ended"))
    }

    /// Writes a file on a session's VM, and creates its parent directories. It overwrites an
    /// existing file in place, so the program of a running process cannot be overwritten.
    ///
    /// # Errors
    /// As for all calls; also if the session does not exist or the file cannot be written.
    pub fn write_file(&self, id_or_name: &str, path: &str, mode: u32, bytes: &[u8]) -> Result<(), ApiError> {
        let text = format!("write {} in the session {}", quoted(path), quoted(id_or_name));
        let call = Call::new(text, Subject::File);
        let resource = self::path(&call, &["browsers", id_or_name, "fs", "write_file"])?;
        let resource = format!("{resource}?path={}&mode={mode:o}", utf8_percent_encode(path, PLAIN));
        let mut request = self.request(Method::PUT, resource, Content::Bytes(bytes));
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let sending = Duration::from_secs(length / UPLOAD_BYTES_PER_S_MIN);
        request.timeout = request.timeout.saturating_add(sending);
        self.http.send(&call, &request).map(|_| ())
    }

    /// Deletes a file on a session's VM.
    ///
    /// # Errors
    /// As for all calls; also if the session or the file does not exist.
    pub fn delete_file(&self, id_or_name: &str, path: &str) -> Result<(), ApiError> {
        #[derive(Serialize)]
        struct Delete<'a> {
            path: &'a str,
        }
        let text = format!("delete {} in the session {}", quoted(path), quoted(id_or_name));
        let call = Call::new(text, Subject::File);
        let resource = self::path(&call, &["browsers", id_or_name, "fs", "delete_file"])?;
        let content = self.json(&call, &Delete { path })?;
        self.http.send(&call, &self.request(Method::PUT, resource, content)).map(|_| ())
    }

    /// Runs a batch of computer controls on a session's VM: `{"actions": […]}`. The batch counts as
    /// use of the session.
    ///
    /// # Errors
    /// As for all calls; also if the session does not exist, or one of the actions failed.
    pub fn batch(&self, id_or_name: &str, actions: &serde_json::Value) -> Result<(), ApiError> {
        let text = format!("control the computer of the session {}", quoted(id_or_name));
        let call = Call::new(text, Subject::Session);
        let path = path(&call, &["browsers", id_or_name, "computer", "batch"])?;
        self.post(&call, &path, actions).map(|_| ())
    }

    fn post(&self, call: &Call, path: &str, content: &impl Serialize) -> Result<Answer, ApiError> {
        let content = self.json(call, content)?;
        self.http.send(call, &self.request(Method::POST, path.to_owned(), content))
    }

    fn request<'a>(&self, method: Method, path: String, content: Content<'a>) -> Request<'a> {
        let (limit, timeout) = (ANSWER_BYTES_MAX, self.http.timeout);
        Request { method, path, content, limit, timeout, is_final: |_| false }
    }

    fn json(&self, call: &Call, content: &impl Serialize) -> Result<Content<'static>, ApiError> {
        let reason = "the content cannot be written as JSON";
        let text = serde_json::to_vec(content);
        text.map(Content::Json).map_err(|_| ApiError::Argument { call: call.clone(), reason })
    }

    /// Parses an answer. The error tells the position of the defect, but not the text, because
    /// answers hold tokens.
    fn parse<T: DeserializeOwned>(&self, call: &Call, body: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let reason = format!("it is not the expected JSON, from line {line}, column {column} on");
            self.useless(call.clone(), &reason)
        })
    }

    fn useless(&self, call: Call, reason: &str) -> ApiError {
        ApiError::Answer { call, endpoint: self.http.endpoint().to_owned(), reason: reason.to_owned() }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("endpoint", &self.http.endpoint()).finish_non_exhaustive()
    }
}

/// Builds a path from these segments. No segment can become two, or a step up.
fn path(call: &Call, parts: &[&str]) -> Result<String, ApiError> {
    let mut path = String::new();
    for part in parts {
        let reason = match *part {
            "" => "a name is empty",
            "." | ".." => "a name consists of dots",
            part if part.len() > NAME_BYTES_MAX => "a name is too long",
            part => {
                path.push('/');
                path.extend(utf8_percent_encode(part, PLAIN));
                continue;
            }
        };
        return Err(ApiError::Argument { call: call.clone(), reason });
    }
    Ok(path)
}

/// Offset of the list's next page, if there is one.
fn next_offset(headers: &HeaderMap) -> Option<u64> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    text("X-Has-More").filter(|more| more.eq_ignore_ascii_case("true"))?;
    text("X-Next-Offset")?.parse().ok()
}

#[cfg(test)]
mod tests;
