//! `computer/batch`: there is no screen, so the actions are only checked, and sleeps are slept.

use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;

use super::answer::{Answer, PlatformError, empty, read_json};
use super::host::Host;
use super::session::Session;

/// Kinds of actions. Each has a field with its own name.
const TYPES: [&str; 8] =
    ["click_mouse", "move_mouse", "type_text", "press_key", "scroll", "drag_mouse", "set_cursor", "sleep"];

/// Longest sleep, in milliseconds.
const SLEEP_MAX: u64 = 30_000;

#[derive(Debug, Deserialize)]
struct Batch {
    actions: Vec<Value>,
}

/// `POST computer/batch`: runs the actions in their order, up to the first invalid one.
pub(super) async fn batch(host: &Host, session: &Session, body: Incoming) -> Result<Answer, PlatformError> {
    session.touch(host.time.now());
    let Batch { actions } = read_json(body).await?;
    for (index, action) in actions.iter().enumerate() {
        let refused =
            |what: &str| PlatformError::in_vm(StatusCode::BAD_REQUEST, format!("action {index}: {what}"));
        let kind = action.get("type").and_then(Value::as_str).unwrap_or_default();
        if !TYPES.contains(&kind) {
            return Err(refused(&format!("unknown type \"{kind}\"")));
        }
        let details = action.get(kind).filter(|details| details.is_object());
        let details = details.ok_or_else(|| refused(&format!("{kind} is required")))?;
        let number = |name| details.get(name).and_then(Value::as_u64);
        match kind {
            "sleep" => {
                let millis = number("duration_ms").filter(|millis| *millis <= SLEEP_MAX);
                let millis = millis.ok_or_else(|| refused("duration_ms must be between 0 and 30000"))?;
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            "move_mouse" | "click_mouse" if number("x").and(number("y")).is_none() => {
                return Err(refused("x and y are required"));
            }
            _ => {}
        }
    }
    session.touch(host.time.now());
    Ok(empty(StatusCode::OK))
}
