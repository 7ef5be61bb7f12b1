//! `computer/…`: a mouse, a keyboard and a clipboard. There is no screen behind them: actions are
//! checked as the VM checks them, and the emulator remembers their effects.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::{Answer, PlatformError, bytes_answer, empty, json_answer, read_json};
use super::call::Call;
use super::host::Host;
use super::png;
use super::screen::Screen;
use super::session::Session;

/// Longest sleep, in milliseconds.
const SLEEP_MAX: u64 = 30_000;

/// Half the size of the mouse pointer in a screenshot, in pixels.
const POINTER: u32 = 4;

const CLICK_BUTTONS: &[&str] = &["left", "right", "middle", "back", "forward"];
const CLICK_TYPES: &[&str] = &["down", "up", "click"];
const DRAG_BUTTONS: &[&str] = &["left", "middle", "right"];

#[derive(Debug, Deserialize)]
struct Batch {
    #[serde(default)]
    actions: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Click {
    x: i64,
    y: i64,
    button: Option<String>,
    click_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Move {
    x: i64,
    y: i64,
}

#[derive(Debug, Deserialize)]
struct Scroll {
    x: i64,
    y: i64,
    #[serde(default)]
    delta_x: i64,
    #[serde(default)]
    delta_y: i64,
}

#[derive(Debug, Deserialize)]
struct Drag {
    #[serde(default)]
    path: Vec<Vec<i64>>,
    button: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Keys {
    #[serde(default)]
    keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Text {
    text: String,
}

#[derive(Debug, Deserialize)]
struct Cursor {
    hidden: bool,
}

#[derive(Debug, Deserialize)]
struct Sleep {
    duration_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Screenshot {
    region: Option<Region>,
}

#[derive(Debug, Deserialize)]
struct Region {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

/// Answers a call to the computer controls. Each counts as activity.
pub(super) async fn answer(
    host: &Host,
    session: &Session,
    call: Call,
    body: Incoming,
) -> Result<Answer, PlatformError> {
    session.touch(host.time.now());
    let answer = match call {
        Call::Batch => batch(session, body).await,
        Call::Screenshot => screenshot(session, read_json(body).await?),
        Call::MousePosition => {
            let (x, y) = screen(session).mouse;
            Ok(json_answer(StatusCode::OK, &json!({ "x": x, "y": y })))
        }
        Call::ReadClipboard => Ok(json_answer(StatusCode::OK, &json!({ "text": screen(session).clipboard }))),
        Call::WriteClipboard => {
            let Text { text } = read_json(body).await?;
            screen(session).clipboard = text;
            Ok(empty(StatusCode::OK))
        }
        _ => {
            act(session, action(call), &read_json(body).await?).map_err(refused)?;
            Ok(match call {
                Call::SetCursor => json_answer(StatusCode::OK, &json!({ "ok": true })),
                _ => empty(StatusCode::OK),
            })
        }
    };
    session.touch(host.time.now());
    answer
}

/// The action of a single call.
const fn action(call: Call) -> &'static str {
    match call {
        Call::ClickMouse => "click_mouse",
        Call::MoveMouse => "move_mouse",
        Call::DragMouse => "drag_mouse",
        Call::TypeText => "type_text",
        Call::PressKey => "press_key",
        Call::Scroll => "scroll",
        Call::SetCursor => "set_cursor",
        _ => "",
    }
}

/// `POST computer/batch`: runs the actions in their order, up to the first invalid one. Each action
/// has its details in a field with the name of its type.
async fn batch(session: &Session, body: Incoming) -> Result<Answer, PlatformError> {
    let Batch { actions } = read_json(body).await?;
    if actions.is_empty() {
        return Err(refused("actions must contain at least one action".to_owned()));
    }
    for (index, action) in actions.iter().enumerate() {
        let kind = action.get("type").and_then(Value::as_str).unwrap_or_default();
        let refused = |what| refused(format!("actions[{index}] ({kind}): {what}"));
        let details = action.get(kind).filter(|details| details.is_object());
        match details {
            Some(details) if kind == "sleep" => {
                let Sleep { duration_ms } = parsed(details).map_err(refused)?;
                if duration_ms > SLEEP_MAX {
                    return Err(refused(format!("duration_ms must be <= {SLEEP_MAX}")));
                }
                tokio::time::sleep(Duration::from_millis(duration_ms)).await;
            }
            details => act(session, kind, details.unwrap_or(&Value::Null)).map_err(refused)?,
        }
    }
    Ok(empty(StatusCode::OK))
}

/// Runs an action.
///
/// # Errors
/// The VM's message for an invalid action.
fn act(session: &Session, kind: &str, details: &Value) -> Result<(), String> {
    let size = session.wish().properties.viewport();
    let mut screen = screen(session);
    if !matches!(
        kind,
        "click_mouse"
            | "move_mouse"
            | "drag_mouse"
            | "type_text"
            | "press_key"
            | "scroll"
            | "set_cursor"
            | "sleep"
    ) {
        return Err(format!("unsupported action type: {kind}"));
    }
    if details.is_null() {
        return Err(format!("{kind} field is required when type is {kind}"));
    }
    match kind {
        "click_mouse" => {
            let Click { x, y, button, click_type } = parsed(details)?;
            let to = point(x, y, size)?;
            supported("button", button, CLICK_BUTTONS)?;
            supported("click type", click_type, CLICK_TYPES)?;
            screen.mouse = to;
        }
        "move_mouse" => {
            let Move { x, y } = parsed(details)?;
            screen.mouse = point(x, y, size)?;
        }
        "scroll" => {
            let Scroll { x, y, delta_x, delta_y } = parsed(details)?;
            if (delta_x, delta_y) == (0, 0) {
                return Err("at least one of delta_x or delta_y must be non-zero".to_owned());
            }
            screen.mouse = point(x, y, size)?;
        }
        "drag_mouse" => {
            let Drag { path, button } = parsed(details)?;
            if path.len() < 2 {
                return Err("path must contain at least two points".to_owned());
            }
            let points = path.iter().enumerate().map(|(index, pair)| match **pair {
                [x, y] => point(x, y, size),
                _ => Err(format!("path[{index}] must be [x,y]")),
            });
            let points = points.collect::<Result<Vec<_>, _>>()?;
            supported("button", button, DRAG_BUTTONS)?;
            screen.mouse = points.last().copied().unwrap_or(screen.mouse);
        }
        "press_key" => {
            let Keys { keys } = parsed(details)?;
            if keys.is_empty() {
                return Err("keys must contain at least one key symbol".to_owned());
            }
        }
        "type_text" => {
            parsed::<Text>(details)?;
        }
        _ => {
            let Cursor { hidden } = parsed(details)?;
            screen.is_cursor_hidden = hidden;
        }
    }
    Ok(())
}

/// `POST computer/screenshot`: a white screen with a black mouse pointer.
fn screenshot(session: &Session, request: Screenshot) -> Result<Answer, PlatformError> {
    let (width, height) = session.wish().properties.viewport();
    let region = request.region.unwrap_or(Region { x: 0, y: 0, width, height });
    if region.width == 0 || region.height == 0 {
        return Err(refused("invalid region dimensions".to_owned()));
    }
    let ends = (region.x.saturating_add(region.width), region.y.saturating_add(region.height));
    if ends.0 > width || ends.1 > height {
        return Err(refused("region exceeds screen bounds".to_owned()));
    }
    let screen = screen(session);
    let is_white = |x: u32, y: u32| {
        let (x, y) = (x.saturating_add(region.x), y.saturating_add(region.y));
        screen.is_cursor_hidden || screen.mouse.0.abs_diff(x).max(screen.mouse.1.abs_diff(y)) > POINTER
    };
    let image = png::image(region.width, region.height, is_white).map_err(PlatformError::internal)?;
    Ok(bytes_answer("image/png", image))
}

fn screen(session: &Session) -> MutexGuard<'_, Screen> {
    session.screen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parsed<T: DeserializeOwned>(details: &Value) -> Result<T, String> {
    T::deserialize(details).map_err(|error| error.to_string())
}

/// Checks that a point is on the screen.
fn point(x: i64, y: i64, (width, height): (u32, u32)) -> Result<(u32, u32), String> {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
        return Err("coordinates must be non-negative".to_owned());
    };
    if x >= width || y >= height {
        let (x, y) = (width.saturating_sub(1), height.saturating_sub(1));
        return Err(format!("coordinates exceed screen bounds (max: {x}x{y})"));
    }
    Ok((x, y))
}

fn supported(what: &str, value: Option<String>, values: &[&str]) -> Result<(), String> {
    match value {
        Some(value) if !values.contains(&value.as_str()) => Err(format!("unsupported {what}: {value}")),
        _ => Ok(()),
    }
}

fn refused(message: String) -> PlatformError {
    PlatformError::in_vm(StatusCode::BAD_REQUEST, message)
}
