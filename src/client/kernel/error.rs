//! `ApiError`: the reason why a call to the platform's API failed, and a hint what to do about it.

use std::fmt;
use std::io;
use std::time::Duration;

use serde_json::Value;

use crate::kernel::api_key::ApiKey;
use crate::kernel::domain::DomainError;
use crate::kernel::retry::Advice;
use crate::remote::{ErrorKind, RemoteError, TlsError};
use crate::tree::path::escape;

/// Characters kept of an API message. The API answers in sentences; a script's output arrives in
/// another field.
const MESSAGE_CHARS_MAX: usize = 500;

/// Characters kept of a name.
const NAME_CHARS_MAX: usize = 80;

/// Error of an API call.
///
/// Texts from the other side are escaped and cut before they get in here, and never hold the key.
/// An endpoint contains scheme, host and port only.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The base URL is unusable or unsafe for the key.
    #[error("could not use the base URL of the Kernel API: {reason}")]
    BaseUrl {
        /// The defect of the URL.
        reason: &'static str,
    },
    /// The key is malformed.
    #[error("could not use the Kernel API key: {reason}")]
    Key {
        /// The defect of the key.
        reason: &'static str,
    },
    /// An argument of the call is invalid.
    #[error("could not {call}: {reason}")]
    Argument {
        /// The call.
        call: Call,
        /// The defect of the argument.
        reason: &'static str,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] RemoteError),
    /// The connection failed.
    #[error("could not {call}: the connection to {endpoint} failed")]
    Unreachable {
        /// The call.
        call: Call,
        /// The API's endpoint.
        endpoint: String,
        /// The cause.
        source: io::Error,
    },
    /// The proxy gave no connection to the API.
    #[error("could not {call}")]
    Proxy {
        /// The call.
        call: Call,
        /// The cause.
        source: Box<RemoteError>,
    },
    /// The TLS handshake failed on either side.
    #[error("could not {call}: {endpoint} cannot be trusted")]
    Untrusted {
        /// The call.
        call: Call,
        /// The API's endpoint.
        endpoint: String,
        /// The cause.
        source: TlsError,
    },
    /// The call timed out.
    #[error("could not {call}: no answer from {endpoint} within {} s", after.as_secs_f32())]
    TimedOut {
        /// The call.
        call: Call,
        /// The API's endpoint.
        endpoint: String,
        /// The timeout.
        after: Duration,
        /// True if the connect itself timed out.
        is_connecting: bool,
    },
    /// The API refused the call.
    #[error("could not {call}: {status_error}")]
    Refused {
        /// The call.
        call: Call,
        /// The API's answer.
        status_error: StatusError,
    },
    /// The API, or a proxy in front of it, answered with a redirect.
    #[error("could not {call}: {endpoint} answered with a redirect ({status}), which is refused")]
    Redirected {
        /// The call.
        call: Call,
        /// The API's endpoint.
        endpoint: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is invalid for this call.
    #[error("could not {call}: the answer of {endpoint} is invalid: {reason}")]
    Answer {
        /// The call.
        call: Call,
        /// The API's endpoint.
        endpoint: String,
        /// The defect of the answer.
        reason: String,
    },
    /// The command timed out.
    #[error("could not {call}: it did not end within {} s", after.as_secs())]
    CommandTimedOut {
        /// The call.
        call: Call,
        /// The timeout.
        after: Duration,
    },
    /// No session of the pool became free.
    #[error("could not {call}: none became free within {} s", after.as_secs_f32())]
    NoneFree {
        /// The call.
        call: Call,
        /// The time waited.
        after: Duration,
    },
    /// The session does not name its VM.
    #[error("could not find the VM of the session {session}")]
    Domain {
        /// The session.
        session: String,
        /// The cause.
        source: DomainError,
    },
}

/// Category of an [`ApiError`]: one for each exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiErrorKind {
    /// The request makes no sense (exit 1).
    Usage,
    /// The platform gives no session, or the session is unusable (exit 5).
    CouldNotStart,
    /// The network failed, or a protocol on it (exit 10).
    Socket,
    /// A file on the VM failed (exit 11).
    FileIo,
    /// The answer did not come in time (exit 30).
    Timeout,
    /// The connection did not come up in time (exit 35).
    ConnectTimeout,
    /// The API rejects the key (exit 40).
    NotAuthorised,
    /// The session does not exist, or no longer (exit 41).
    SessionGone,
}

impl ApiError {
    /// Category of this error.
    #[must_use]
    pub fn kind(&self) -> ApiErrorKind {
        match self {
            Self::BaseUrl { .. } | Self::Argument { .. } => ApiErrorKind::Usage,
            Self::Key { .. } => ApiErrorKind::NotAuthorised,
            Self::Tls(error) if error.kind() == ErrorKind::Usage => ApiErrorKind::Usage,
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                ApiErrorKind::ConnectTimeout
            }
            Self::Proxy { source, .. } if source.kind() == ErrorKind::ConnectTimeout => {
                ApiErrorKind::ConnectTimeout
            }
            Self::Proxy { .. } => ApiErrorKind::Socket,
            Self::Tls(_) | Self::Unreachable { .. } | Self::Untrusted { .. } | Self::Redirected { .. } => {
                ApiErrorKind::Socket
            }
            Self::TimedOut { is_connecting: true, .. } => ApiErrorKind::ConnectTimeout,
            Self::TimedOut { .. } | Self::CommandTimedOut { .. } => ApiErrorKind::Timeout,
            Self::Refused { call, status_error } => {
                match (status_error.status, call.subject_of(status_error)) {
                    (401 | 403, _) => ApiErrorKind::NotAuthorised,
                    (404 | 410, Subject::Session) => ApiErrorKind::SessionGone,
                    (404 | 410, Subject::File) => ApiErrorKind::FileIo,
                    _ => ApiErrorKind::CouldNotStart,
                }
            }
            Self::Answer { .. } | Self::NoneFree { .. } | Self::Domain { .. } => ApiErrorKind::CouldNotStart,
        }
    }

    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            ApiErrorKind::Usage => 1,
            ApiErrorKind::CouldNotStart => 5,
            ApiErrorKind::Socket => 10,
            ApiErrorKind::FileIo => 11,
            ApiErrorKind::Timeout => 30,
            ApiErrorKind::ConnectTimeout => 35,
            ApiErrorKind::NotAuthorised => 40,
            ApiErrorKind::SessionGone => 41,
        }
    }

    /// Reports if a retry a moment later may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::NoneFree { .. } => true,
            Self::Proxy { source, .. } => source.is_retryable(),
            Self::Refused { status_error, .. } => matches!(status_error.status, 408 | 409 | 429 | 500..),
            _ => false,
        }
    }

    /// The HTTP status, if the API refused the call.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status_error, .. } => Some(status_error.status),
            _ => None,
        }
    }

    /// Advice for the user about the next step.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::BaseUrl { .. } => {
                "Write KERNEL_BASE_URL as https://host, or http://127.0.0.1:port on this machine."
            }
            Self::Key { .. } => "Set KERNEL_API_KEY to a key from the dashboard of Kernel.",
            Self::Argument { .. } => "Check how it is spelled.",
            Self::Tls(error) => return error.hint(),
            Self::Proxy { source, .. } => return source.hint(),
            Self::Unreachable { .. } => {
                "Check the network, and KERNEL_BASE_URL if it is set; HTTPS_PROXY names a proxy if the network needs one."
            }
            Self::Untrusted { source, .. } => return source.hint(),
            Self::TimedOut { .. } => "Try again in a moment.",
            Self::Refused { call, status_error } => return status_error.hint(call),
            Self::Redirected { .. } => "Check KERNEL_BASE_URL: it must be the address of the API itself.",
            Self::Answer { .. } => {
                "Check that KERNEL_BASE_URL leads to the API, and that ksync is up to date."
            }
            Self::CommandTimedOut { .. } => "Try again: a VM that has just started can be slow.",
            Self::NoneFree { .. } => "Release a session of the pool, make the pool larger, or wait longer.",
            Self::Domain { .. } => "Check that ksync is up to date.",
        }
        .into()
    }
}

/// A call to the API: a description, and the object that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    text: String,
    subject: Subject,
}

/// The object that is missing if the API answers "not found".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// No named object.
    Account,
    /// A session.
    Session,
    /// A pool.
    Pool,
    /// A file, or its session.
    File,
}

impl Call {
    /// Makes a call that `verb` describes, e.g. "create a session".
    pub(super) fn new(verb: impl Into<String>, subject: Subject) -> Self {
        Self { text: verb.into(), subject }
    }

    /// The object that is missing if the API answers "not found". The platform's answers have a
    /// code; those of the VM behind it have none.
    fn subject_of(&self, status_error: &StatusError) -> Subject {
        match self.subject {
            Subject::File if status_error.code.is_some() => Subject::Session,
            subject => subject,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A name for display, in quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", cut(&escape(name.as_bytes()), NAME_CHARS_MAX))
}

/// An answer of the API that refuses the call.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusError {
    /// The HTTP status.
    pub status: u16,
    /// The API's error code.
    pub code: Option<String>,
    /// The API's message, which may be empty.
    pub message: String,
    /// The API's advice about a retry.
    pub(super) advice: Advice,
}

impl StatusError {
    /// Parses an answer. The platform's body is `{"code", "message", "details"}`, the VM's is
    /// `{"message"}`, and a proxy's may be anything.
    pub(super) fn read(status: u16, body: &[u8], advice: Advice, key: &ApiKey) -> Self {
        let for_eyes = |text: &str| cut(&escape(key.hide_in(text).trim().as_bytes()), MESSAGE_CHARS_MAX);
        let (code, message) = match serde_json::from_slice::<Value>(body) {
            Ok(value) => (text_at(&value, "/code").map(for_eyes), json_message(&value)),
            Err(_) => (None, page_message(&String::from_utf8_lossy(body))),
        };
        Self { status, code, message: for_eyes(&message), advice }
    }

    /// The delay that the API asks for, of any length.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.advice.delay()
    }

    /// Reports if the VM killed the command after its timeout.
    pub(super) fn is_command_timeout(&self) -> bool {
        self.status == 500 && self.message.contains("process timed out")
    }

    fn hint(&self, call: &Call) -> String {
        match (self.status, call.subject_of(self)) {
            (401, _) => "Check KERNEL_API_KEY: the key is mistyped, expired or revoked.",
            (403, _) => "Use a key that may do this (KERNEL_API_KEY, KERNEL_PROJECT), or check what the plan includes.",
            (404 | 410, Subject::Session) => {
                "List what is there with ksync session list. When a session ends, its files end with it."
            }
            (404 | 410, Subject::Pool) => "Check the name of the pool.",
            (404 | 410, Subject::File) => "Check the path on the VM.",
            (404 | 410, Subject::Account) => "Check KERNEL_BASE_URL: it must be the address of the API itself.",
            (409, _) => "Try again; if a name is taken, choose another one.",
            (429, _) => {
                let delay = self.retry_after().unwrap_or(Duration::from_secs(60)).as_secs_f64().ceil();
                return format!("Try again in {delay} s: the API limits how often it is asked.");
            }
            (529, _) => "Try again in a few minutes: there is no capacity for another session.",
            (408 | 500.., _) => "Try again in a moment: the trouble is on the platform's side.",
            _ => "Change what the message complains about.",
        }
        .into()
    }
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API answered {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// Message of a JSON body, with its details.
fn json_message(value: &Value) -> String {
    let main = ["/message", "/error/message", "/error", "/inner_error/message"];
    let mut message =
        main.iter().find_map(|pointer| text_at(value, pointer)).unwrap_or_default().trim().to_owned();
    let details = value.get("details").and_then(Value::as_array).into_iter().flatten();
    for detail in details.filter_map(|detail| text_at(detail, "/message")).take(3) {
        message.push_str(if message.is_empty() { "" } else { "; " });
        message.push_str(detail.trim());
    }
    message
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str().filter(|text| !text.trim().is_empty())
}

/// Message of another body: the title of a page, or the first line of a text.
fn page_message(text: &str) -> String {
    let text = text.trim();
    if text.starts_with('<') {
        let title = text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        title.map(|(title, _)| title.trim().to_owned()).unwrap_or_default()
    } else {
        text.lines().next().unwrap_or_default().to_owned()
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_error(status: u16, body: &str) -> StatusError {
        StatusError::read(status, body.as_bytes(), Advice::default(), &ApiKey::new("sk_secret"))
    }

    #[test]
    fn all_bodies_are_read() {
        for (body, text) in [
            (r#"{"code":"bad_request","message":"no"}"#, "the API answered 400 (bad_request): no"),
            (
                r#"{"code":"x","message":"no","details":[{"code":"a","message":"b"},{"code":"c"}],"inner_error":{}}"#,
                "the API answered 400 (x): no; b",
            ),
            (r#"{"message":"process timed out"}"#, "the API answered 400: process timed out"),
            (r#"{"error":"no"}"#, "the API answered 400: no"),
            (r#"{"error":{"message":"no"}}"#, "the API answered 400: no"),
            (r#"{"message":"","inner_error":{"message":"deep"}}"#, "the API answered 400: deep"),
            (r#"{"code":5,"message":{"a":1}}"#, "the API answered 400"),
            ("[1]", "the API answered 400"),
            ("null", "the API answered 400"),
            ("", "the API answered 400"),
            (
                "<html><head><title>\n502 Bad Gateway </title></head><body>x</body>",
                "the API answered 400: 502 Bad Gateway",
            ),
            ("<p>x", "the API answered 400"),
            ("upstream connect error\nmore", "the API answered 400: upstream connect error"),
        ] {
            assert_eq!(status_error(400, body).to_string(), text, "{body}");
        }
    }

    #[test]
    fn an_api_message_is_escaped_and_cut_and_hides_the_key() {
        let said =
            status_error(400, r#"{"code":"\u001b[2J","message":"bad key sk_secret \u001b]0;x\u0007"}"#);
        assert_eq!(said.to_string(), r"the API answered 400 (\u{1b}[2J): bad key *** \u{1b}]0;x\u{7}");
        let said = status_error(500, &format!("é{}", "x".repeat(100_000)));
        assert_eq!(said.message.chars().count(), MESSAGE_CHARS_MAX + 1);
        assert!(said.message.ends_with("x…"));
    }

    #[test]
    fn each_refusal_has_its_exit_code_and_its_hint() {
        let platform = r#"{"code":"not_found","message":"no"}"#;
        let from_vm = r#"{"message":"no"}"#;
        for (status, subject, body, exit, hint) in [
            (400, Subject::Account, platform, 5, "the message"),
            (401, Subject::Session, platform, 40, "KERNEL_API_KEY"),
            (403, Subject::Account, platform, 40, "plan"),
            (404, Subject::Session, platform, 41, "session list"),
            (404, Subject::Session, from_vm, 41, "session list"),
            (410, Subject::Session, platform, 41, "session list"),
            (404, Subject::Pool, platform, 5, "pool"),
            (404, Subject::File, platform, 41, "session list"),
            (404, Subject::File, from_vm, 11, "path"),
            (404, Subject::Account, platform, 5, "KERNEL_BASE_URL"),
            (409, Subject::Account, platform, 5, "another"),
            (422, Subject::Account, platform, 5, "the message"),
            (429, Subject::Account, platform, 5, "in 60 s"),
            (500, Subject::Session, from_vm, 5, "in a moment"),
            (529, Subject::Account, platform, 5, "capacity"),
        ] {
            let call = Call::new("do it", subject);
            let error = ApiError::Refused { call, status_error: status_error(status, body) };
            assert_eq!(error.exit_code(), exit, "{error:?}");
            assert!(error.hint().contains(hint), "{}", error.hint());
            assert_eq!(error.status(), Some(status));
            assert_eq!(error.is_retryable(), matches!(status, 409 | 429 | 500 | 529), "{error:?}");
        }
    }
}
