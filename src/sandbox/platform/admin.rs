//! `/_sandbox/…`: requests of tests to the emulator itself. They need no key, because every user of
//! this machine could do the same without it. Web pages are refused: a browser on this machine
//! would send their requests too.
//!
//! | call | |
//! |---|---|
//! | `POST faults`, `DELETE faults` | adds a fault (see `faults`); removes all |
//! | `GET calls`, `DELETE calls` | `{"total":N,"calls":{"exec":2,…}}`: counts; resets them |
//! | `GET clock` | `{"now_seconds":…}`: platform time |
//! | `POST clock {"advance_seconds":60}` | advances it |
//! | `DELETE sessions/ID/port` | makes the VM's port refuse connections |
//! | `GET sessions/ID` | `{"stage":"standby",…}`: stage, directory on this machine, address |

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::answer::{Answer, PlatformError, empty, json_answer, read_json};
use super::cloud::Cloud;
use super::faults::Fault;

/// Longest advance of the clock, in seconds: a year.
const JUMP_MAX: f64 = 366.0 * 86_400.0;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jump {
    advance_seconds: f64,
}

/// Refuses the requests of web pages. A browser adds `Origin` to every `POST` and `DELETE`. A page
/// that resolves its own name to this address (DNS rebinding) has that name in `Host`.
///
/// # Errors
/// 403 for a request with `Origin`, or with a `Host` that is not a loopback address.
pub(super) fn refuse_web_pages(headers: &HeaderMap) -> Result<(), PlatformError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let is_local = host.is_some_and(|host| {
        let name = host.host().trim_matches(['[', ']']);
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    if is_local && !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    Err(PlatformError::new(StatusCode::FORBIDDEN, "forbidden", "web pages cannot control the emulator"))
}

/// Answers a request below `/_sandbox`.
pub(super) async fn answer(
    cloud: &Arc<Cloud>,
    method: Method,
    path: &[&str],
    body: Incoming,
) -> Result<Answer, PlatformError> {
    let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
    match *path {
        ["faults"] if post => {
            let fault: Fault = read_json(body).await?;
            let has_room = cloud.host.faults.add(fault);
            if has_room {
                Ok(empty(StatusCode::NO_CONTENT))
            } else {
                Err(PlatformError::bad_request("too many"))
            }
        }
        ["faults"] if delete => {
            cloud.host.faults.clear();
            Ok(empty(StatusCode::NO_CONTENT))
        }
        ["calls"] if get => {
            let calls = cloud.calls();
            let total: u64 = calls.values().sum();
            Ok(json_answer(StatusCode::OK, &json!({ "total": total, "calls": calls })))
        }
        ["calls"] if delete => {
            cloud.forget_calls();
            Ok(empty(StatusCode::NO_CONTENT))
        }
        ["clock"] if get => Ok(clock(cloud)),
        ["clock"] if post => {
            let Jump { advance_seconds } = read_json(body).await?;
            let jump = Duration::try_from_secs_f64(advance_seconds.min(JUMP_MAX))
                .map_err(|error| PlatformError::bad_request(error.to_string()))?;
            cloud.host.time.advance(jump);
            // End overdue sessions at once, so that the caller need not wait for the next check.
            cloud.reap().await;
            Ok(clock(cloud))
        }
        ["sessions", id] if get => {
            let session = cloud.session(id)?;
            let value = json!({
                "stage": session.stage(cloud.host.time.now()),
                "root": session.root,
                "ssh_address": session.address.to_string(),
            });
            Ok(json_answer(StatusCode::OK, &value))
        }
        ["sessions", id, "port"] if delete => {
            cloud.session(id)?.close_port();
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(PlatformError::not_found("route")),
    }
}

fn clock(cloud: &Cloud) -> Answer {
    json_answer(StatusCode::OK, &json!({ "now_seconds": cloud.host.time.now().as_secs_f64() }))
}
