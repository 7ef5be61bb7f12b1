//! What is answered: bodies, and errors of both kinds that the platform has.

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

/// The largest body of a request that is read as a whole, in bytes.
const REQUEST_MAX: usize = 8 << 20;

/// A body that is there or comes in pieces.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer.
pub(super) type Answer = Response<Body>;

/// Why a call has no other answer than an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The platform's own errors have one; those from inside of a VM have only a message.
    pub(super) code: Option<String>,
    pub(super) message: String,
}

impl Refusal {
    /// An error of the platform.
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Refusal {
        Refusal { status, code: Some(code.to_owned()), message: message.into() }
    }

    /// A request that makes no sense.
    pub(super) fn bad_request(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// Something that is not there.
    pub(super) fn not_found(what: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "not_found", format!("{what} not found"))
    }

    /// A fault of the stand-in itself.
    pub(super) fn internal(error: impl std::fmt::Display) -> Refusal {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", error.to_string())
    }

    /// An error from inside of a VM.
    pub(super) fn in_vm(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, code: None, message: message.into() }
    }

    /// The error as an answer.
    pub(super) fn answer(&self) -> Answer {
        let body = match &self.code {
            Some(code) => json!({ "code": code, "message": self.message }),
            None => json!({ "message": self.message }),
        };
        json_answer(self.status, &body)
    }
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    with_bytes(status, Bytes::new())
}

/// An answer of some other type.
pub(super) fn bytes_answer(content_type: &str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = with_bytes(StatusCode::OK, bytes.into());
    set(&mut answer, CONTENT_TYPE, content_type);
    answer
}

/// An answer in JSON. What cannot be said in JSON is `null`.
pub(super) fn json_answer(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut answer =
        with_bytes(status, serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec()).into());
    set(&mut answer, CONTENT_TYPE, "application/json");
    answer
}

/// An answer whose body comes in pieces.
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

/// Sets a header; a value that cannot be one is left out.
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

/// Reads a request's body of up to `limit` bytes.
///
/// # Errors
/// 400 when it is too long or breaks off.
pub(super) async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, Refusal> {
    let collected = Limited::new(body, limit).collect().await;
    Ok(collected.map_err(|error| Refusal::bad_request(error.to_string()))?.to_bytes())
}

/// Reads a request's body as JSON; none is an empty object.
///
/// # Errors
/// 400 when it is no JSON, is too long or breaks off, 422 when it is JSON of another kind.
pub(super) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let bytes = read_body(body, REQUEST_MAX).await?;
    let value: Value = if bytes.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(&bytes)
            .map_err(|error| Refusal::bad_request(format!("request body has an error: {error}")))?
    };
    serde_json::from_value(value).map_err(|error| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable_entity", error.to_string())
    })
}
