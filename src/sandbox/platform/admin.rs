//! `/_sandbox/…`: what tests ask of the stand-in itself. Needs no key; whoever is on this machine could do
//! as much without it.
//!
//! | call | |
//! |---|---|
//! | `POST faults`, `DELETE faults` | what the next calls meet (see `faults`); nothing any more |
//! | `GET calls`, `DELETE calls` | `{"total":N,"calls":{"exec":2,…}}`: how often each was made; from zero again |
//! | `GET clock`, `POST clock {"advance_seconds":60}` | `{"now_seconds":…}`: the platform's time; moves it forward |
//! | `DELETE sessions/ID/port` | the VM's port refuses connections from then on |
//! | `GET sessions/ID` | `{"stage":"standby",…}`: where its clock is, its directory on this machine, its address |

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::Cloud;
use super::answer::{Answer, Refusal, empty, json_answer, read_json};
use super::faults::Fault;

/// The longest jump of the clock, in seconds: a year.
const JUMP_MAX: f64 = 366.0 * 86_400.0;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jump {
    advance_seconds: f64,
}

/// Answers a request below `/_sandbox`.
pub(super) async fn answer(
    cloud: &Arc<Cloud>,
    method: Method,
    path: &[&str],
    body: Incoming,
) -> Result<Answer, Refusal> {
    let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
    match *path {
        ["faults"] if post => {
            let fault: Fault = read_json(body).await?;
            let has_room = cloud.faults.add(fault);
            if has_room { Ok(empty(StatusCode::NO_CONTENT)) } else { Err(Refusal::bad_request("too many")) }
        }
        ["faults"] if delete => {
            cloud.faults.clear();
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
                .map_err(|error| Refusal::bad_request(error.to_string()))?;
            cloud.time.advance(jump);
            // Who asked for it need not wait for the next look at the clocks.
            cloud.reap().await;
            Ok(clock(cloud))
        }
        ["sessions", id] if get => {
            let session = cloud.session(id)?;
            let value = json!({
                "stage": session.stage(cloud.time.now()),
                "root": session.root,
                "ssh_address": session.address.to_string(),
            });
            Ok(json_answer(StatusCode::OK, &value))
        }
        ["sessions", id, "port"] if delete => {
            cloud.session(id)?.close_port();
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::not_found("route")),
    }
}

fn clock(cloud: &Cloud) -> Answer {
    json_answer(StatusCode::OK, &json!({ "now_seconds": cloud.time.now().as_secs_f64() }))
}
