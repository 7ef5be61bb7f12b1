//! Answers: bodies, and the platform's two kinds of errors.

use std::io;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Largest request body read as a whole, in bytes.
const REQUEST_MAX: usize = 8 << 20;

/// A body that is complete or streamed.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) type Answer = Response<Body>;

/// An error answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlatformError {
    pub(super) status: StatusCode,
    /// Error code of the platform; errors from inside a VM have none.
    pub(super) code: Option<String>,
    pub(super) message: String,
}

impl PlatformError {
    /// Makes an error of the platform.
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> PlatformError {
        PlatformError { status, code: Some(code.to_owned()), message: message.into() }
    }

    /// Makes the error for an invalid request.
    pub(super) fn bad_request(message: impl Into<String>) -> PlatformError {
        PlatformError::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// Makes the error for a missing object.
    pub(super) fn not_found(what: &str) -> PlatformError {
        PlatformError::new(StatusCode::NOT_FOUND, "not_found", format!("{what} not found"))
    }

    /// Makes the error for a failure of the emulator itself.
    pub(super) fn internal(error: impl std::fmt::Display) -> PlatformError {
        PlatformError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", error.to_string())
    }

    /// Makes an error from inside a VM.
    pub(super) fn in_vm(status: StatusCode, message: impl Into<String>) -> PlatformError {
        PlatformError { status, code: None, message: message.into() }
    }

    /// Turns the error into an answer.
    pub(super) fn answer(&self) -> Answer {
        let body = match &self.code {
            Some(code) => json!({ "code": code, "message": self.message }),
            None => json!({ "message": self.message }),
        };
        json_answer(self.status, &body)
    }
}

/// Makes an answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    with_bytes(status, Bytes::new())
}

/// Makes an answer of another content type.
pub(super) fn bytes_answer(content_type: &str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = with_bytes(StatusCode::OK, bytes.into());
    set(&mut answer, CONTENT_TYPE, content_type);
    answer
}

/// Makes an answer in JSON. A value without a JSON form becomes `null`.
pub(super) fn json_answer(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut answer =
        with_bytes(status, serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec()).into());
    set(&mut answer, CONTENT_TYPE, "application/json");
    answer
}

/// Makes an answer with a streamed body.
pub(super) fn streamed(
    content_type: &str,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Answer {
    use futures_util::StreamExt as _;
    let mut answer =
        Response::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync());
    set(&mut answer, CONTENT_TYPE, content_type);
    answer
}

/// Sets a header; an invalid value is ignored.
pub(super) fn set(answer: &mut Answer, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

fn with_bytes(status: StatusCode, bytes: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// Reads a request body of at most `limit` bytes.
///
/// # Errors
/// 400 if the body is too long or truncated.
pub(super) async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, PlatformError> {
    let collected = Limited::new(body, limit).collect().await;
    Ok(collected.map_err(|error| PlatformError::bad_request(error.to_string()))?.to_bytes())
}

/// Reads a request body as JSON; an empty body is an empty object.
///
/// # Errors
/// 400 if the body is not JSON, too long or truncated; 422 if its JSON has another shape.
pub(super) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, PlatformError> {
    let bytes = read_body(body, REQUEST_MAX).await?;
    let value: Value = if bytes.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(&bytes)
            .map_err(|error| PlatformError::bad_request(format!("request body has an error: {error}")))?
    };
    serde_json::from_value(value).map_err(|error| {
        PlatformError::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable_entity", error.to_string())
    })
}
