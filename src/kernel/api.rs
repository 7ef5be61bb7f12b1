//! The calls that ksync makes. Each blocks until it has its answer.

use std::fmt;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Method};

use crate::kernel::error::{ApiError, Call, Subject, quoted};
use crate::kernel::http::{Answer, Content, Http, Request};
use crate::kernel::settings::Settings;
use crate::kernel::types::{Browser, Exec, Executed, NewBrowser};

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// The largest answer that is read of a command, with its output, in bytes.
const EXEC_ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The longest id or name that is sent, in bytes. Real ones have less than 64.
const NAME_BYTES_MAX: usize = 255;

/// How many sessions a page of the list has: as many as the API gives at once.
const PAGE_SESSIONS: u64 = 100;

/// How many pages are read. Whoever has more sessions has another trouble.
const PAGES_MAX: usize = 100;

/// How slow a connection may be that a file is written over, in bytes a second.
const UPLOAD_BYTES_PER_S_MIN: u64 = 32 * 1024;

/// How long the API is asked to hold a call that waits for a session of a pool.
const ACQUIRE_HOLD: Duration = Duration::from_secs(30);

/// How long to wait before asking again for a session of a pool, if the API did not.
const ACQUIRE_PAUSE: Duration = Duration::from_secs(1);

/// What stays as it is in a part of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A client of the platform's API. It keeps connections open between calls.
///
/// The key is in it, so its `Debug` shows nothing but where the API is.
pub struct Api {
    http: Http,
}

impl Api {
    /// Prepares for calls; makes no connection yet.
    ///
    /// # Errors
    /// Where the base URL, the key, the project or the file of roots cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ApiError> {
        Ok(Self { http: Http::new(settings)? })
    }

    /// Makes a session. Where an answer gets lost on the way, it may be that one was made that nobody knows
    /// of; it ends by its own timeout.
    ///
    /// # Errors
    /// As all calls; also where there is no capacity (529).
    pub fn create(&self, browser: &NewBrowser) -> Result<Browser, ApiError> {
        let call = Call::new("create a browser", Subject::Account);
        let answer = self.post(&call, "/browsers", browser)?;
        self.parse(&call, &answer.body)
    }

    /// Looks a session up.
    ///
    /// # Errors
    /// As all calls; also where it is not there.
    pub fn browser(&self, id_or_name: &str) -> Result<Browser, ApiError> {
        let call = Call::new(format!("look up the session {}", quoted(id_or_name)), Subject::Session);
        let path = path(&call, &["browsers", id_or_name])?;
        let answer = self.http.send(&call, &self.request(Method::GET, path, Content::Nothing))?;
        self.parse(&call, &answer.body)
    }

    /// Lists all sessions that are active.
    ///
    /// # Errors
    /// As all calls; also where the list has no end.
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
    /// As all calls; also where it is not there.
    pub fn delete(&self, id_or_name: &str) -> Result<(), ApiError> {
        let call = Call::new(format!("delete the session {}", quoted(id_or_name)), Subject::Session);
        let path = path(&call, &["browsers", id_or_name])?;
        self.http.send(&call, &self.request(Method::DELETE, path, Content::Nothing)).map(|_| ())
    }

    /// Takes a session out of a pool, and waits up to `patience` until one is free.
    ///
    /// # Errors
    /// As all calls; also where the pool is not there, or none became free.
    pub fn acquire(&self, pool: &str, patience: Duration) -> Result<Browser, ApiError> {
        #[derive(Serialize)]
        struct Acquire {
            acquire_timeout_seconds: u64,
        }
        let call = Call::new(format!("acquire a session of the pool {}", quoted(pool)), Subject::Pool);
        let path = path(&call, &["browser_pools", pool, "acquire"])?;
        let mut left = patience;
        loop {
            let hold = left.clamp(Duration::from_secs(1), ACQUIRE_HOLD);
            let content = self.json(&call, &Acquire { acquire_timeout_seconds: hold.as_secs() })?;
            let mut request = self.request(Method::POST, path.clone(), content);
            request.timeout = request.timeout.saturating_add(hold);
            let begin = Instant::now();
            let answer = self.http.send(&call, &request)?;
            // Nothing free yet.
            if answer.status != 204 {
                return self.parse(&call, &answer.body);
            }
            let held = begin.elapsed();
            let pause = ACQUIRE_PAUSE.saturating_sub(held);
            left = left.saturating_sub(held.max(ACQUIRE_PAUSE));
            if left.is_zero() {
                return Err(ApiError::NoneFree { call, after: patience });
            }
            (self.http.sleep)(pause);
        }
    }

    /// Gives a session back to its pool. With `reuse` the next one gets it as it is, files and all; without,
    /// a new one takes its place.
    ///
    /// # Errors
    /// As all calls; also where the pool is not there.
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

    /// Runs a command on a session's VM and waits until it has ended. It may run more than once: it is made
    /// again as any call is, so it must do no harm then.
    ///
    /// # Errors
    /// As all calls; also where the session is not there, the program cannot be started, or it took longer
    /// than it may. A command that fails is no error.
    pub fn exec(&self, id_or_name: &str, exec: &Exec) -> Result<Executed, ApiError> {
        let text = format!("run {} in the session {}", quoted(&exec.command), quoted(id_or_name));
        let call = Call::new(text, Subject::Session);
        let path = path(&call, &["browsers", id_or_name, "process", "exec"])?;
        let mut request = self.request(Method::POST, path, self.json(&call, exec)?);
        request.limit = EXEC_ANSWER_BYTES_MAX;
        let after = Duration::from_secs(exec.timeout_sec);
        request.timeout = after.saturating_add(self.http.timeout);
        // It would take as long again.
        request.is_final = |error| match error {
            ApiError::Refused { refusal, .. } => refusal.is_command_timeout(),
            ApiError::TimedOut { is_connecting, .. } => !is_connecting,
            _ => false,
        };
        let answer = self.http.send(&call, &request).map_err(|error| match error {
            ApiError::Refused { call, refusal } if refusal.is_command_timeout() => {
                ApiError::CommandTimedOut { call, after }
            }
            error => error,
        })?;
        Executed::parse(&answer.body).ok_or_else(|| self.useless(call, "it is not how a command ended"))
    }

    /// Writes a file on a session's VM, and the directories above it. What is there is overwritten in place,
    /// so a program that runs cannot be.
    ///
    /// # Errors
    /// As all calls; also where the session is not there or the file cannot be written.
    pub fn write_file(&self, id_or_name: &str, path: &str, mode: u32, bytes: &[u8]) -> Result<(), ApiError> {
        let text = format!("write {} in the session {}", quoted(path), quoted(id_or_name));
        let call = Call::new(text, Subject::File);
        let place = self::path(&call, &["browsers", id_or_name, "fs", "write_file"])?;
        let place = format!("{place}?path={}&mode={mode:o}", utf8_percent_encode(path, PLAIN));
        let mut request = self.request(Method::PUT, place, Content::Bytes(bytes));
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let sending = Duration::from_secs(length / UPLOAD_BYTES_PER_S_MIN);
        request.timeout = request.timeout.saturating_add(sending);
        self.http.send(&call, &request).map(|_| ())
    }

    /// Deletes a file on a session's VM.
    ///
    /// # Errors
    /// As all calls; also where the session or the file is not there.
    pub fn delete_file(&self, id_or_name: &str, path: &str) -> Result<(), ApiError> {
        #[derive(Serialize)]
        struct Delete<'a> {
            path: &'a str,
        }
        let text = format!("delete {} in the session {}", quoted(path), quoted(id_or_name));
        let call = Call::new(text, Subject::File);
        let place = self::path(&call, &["browsers", id_or_name, "fs", "delete_file"])?;
        let content = self.json(&call, &Delete { path })?;
        self.http.send(&call, &self.request(Method::PUT, place, content)).map(|_| ())
    }

    /// Lets a session's VM do a batch of computer controls, `{"actions": […]}`. It counts as use of the
    /// session.
    ///
    /// # Errors
    /// As all calls; also where the session is not there, or one of the actions failed.
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
        let reason = "what is to be sent does not fit into JSON";
        let text = serde_json::to_vec(content);
        text.map(Content::Json).map_err(|_| ApiError::Argument { call: call.clone(), reason })
    }

    /// Reads an answer. The error says where it stopped, and not at what: there are tokens in answers.
    fn parse<T: DeserializeOwned>(&self, call: &Call, body: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let reason =
                format!("it is not the JSON that it should be, from line {line}, column {column} on");
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

/// A path of these parts. None of them can become two, or a step up.
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

/// Where the next page of a list begins, if there is one.
fn next_offset(headers: &HeaderMap) -> Option<u64> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    text("X-Has-More").filter(|more| more.eq_ignore_ascii_case("true"))?;
    text("X-Next-Offset")?.parse().ok()
}

#[cfg(test)]
mod tests;
