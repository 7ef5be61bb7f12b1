//! Faults on request: `POST /_sandbox/faults` says what the next calls meet instead of, or besides, an answer.
//!
//! ```text
//! {"call":"create","status":529,"times":2}                         no capacity, twice
//! {"call":"exec","status":429,"headers":{"Retry-After":"1"}}       too many requests
//! {"status":500,"message_only":true,"message":"from inside"}       whatever is called next
//! {"call":"get","delay_ms":3000}                                   slow, but right
//! {"call":"get","hang_up":true}                                    the connection ends without an answer
//! {"call":"bridge","after_bytes":100000}                           the SSH connection is reset there
//! {"call":"bridge","freezes_in_standby":true}                      it stands still while the VM stands by
//! {"call":"bridge","status":403}                                   no WebSocket, but HTTP with that status
//! {"call":"bridge","delay_ms":60000}                               everything arrives so much later
//! {"call":"cdp","after_seconds":60}                                so is the CDP socket, in platform time
//! {"call":"create","without_jwt":true}                             a cdp_ws_url whose host is the VM's domain
//! {"call":"create","token_seconds":60}                             one that opens the socket for so long only
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hyper::StatusCode;
use hyper::header::HeaderName;
use serde::Deserialize;

use super::answer::{self, Answer, Refusal};
use super::routes::Call;

/// The most faults that wait at a time.
const PENDING_MAX: usize = 1000;

/// What a call meets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    /// Which call; without one the next, whatever it is.
    call: Option<Call>,
    /// How often.
    #[serde(default = "once")]
    times: u32,
    /// How many such calls are spared first.
    #[serde(default)]
    skip: u32,
    /// The status of the answer; without one the call is answered as ever.
    pub(super) status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    code: Option<String>,
    message: Option<String>,
    /// An error as those from inside of a VM are: without a code.
    #[serde(default)]
    message_only: bool,
    /// How long the answer takes, in real milliseconds.
    #[serde(default)]
    pub(super) delay_ms: u64,
    #[serde(default)]
    pub(super) hang_up: bool,
    /// A VM's port: the connection is reset after so many bytes from the client.
    pub(super) after_bytes: Option<u64>,
    /// A VM's port or a CDP socket: it is reset after so many seconds of the platform's time.
    pub(super) after_seconds: Option<u64>,
    /// A VM's port: nothing arrives, either way, while the VM is in standby.
    #[serde(default)]
    pub(super) freezes_in_standby: bool,
    #[serde(default)]
    pub(super) without_jwt: bool,
    /// How long the token of a new session is good, in the platform's time.
    pub(super) token_seconds: Option<u64>,
}

const fn once() -> u32 {
    1
}

impl Fault {
    /// The answer that it makes instead of the right one.
    pub(super) fn answer(&self) -> Option<Answer> {
        let status = StatusCode::from_u16(self.status?).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = self.message.clone().unwrap_or_else(|| told(status).1.to_owned());
        let code = self.code.clone().or_else(|| Some(told(status).0.to_owned()));
        let mut made = Refusal { status, code: code.filter(|_| !self.message_only), message }.answer();
        for (name, value) in &self.headers {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                answer::set(&mut made, name, value);
            }
        }
        Some(made)
    }
}

/// The code and the message that go with a status.
fn told(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 => ("bad_request", "bad request"),
        401 => ("unauthorized", "invalid API key"),
        403 => ("forbidden", "your plan does not allow this"),
        404 => ("not_found", "browser not found"),
        409 => ("conflict", "conflict"),
        410 => ("gone", "browser is gone"),
        422 => ("unprocessable_entity", "unprocessable entity"),
        429 => ("too_many_requests", "rate limit exceeded"),
        529 => ("no_capacity", "no capacity available, try again later"),
        _ => ("internal_error", "internal server error"),
    }
}

/// The faults that wait for their calls.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    /// Adds one; false when too many wait.
    pub(super) fn add(&self, fault: Fault) -> bool {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = faults.len() < PENDING_MAX;
        if has_room {
            faults.push(fault);
        }
        has_room
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What a call meets now: of several that fit, the one that came first.
    pub(super) fn take(&self, call: Call) -> Option<Fault> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|fault| fault.times > 0);
        let fault =
            faults.iter_mut().find(|fault| fault.call.map_or(call.is_request(), |wanted| wanted == call))?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        Some(fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        serde_json::from_str(text).expect("a fault")
    }

    #[test]
    fn a_fault_meets_its_own_calls_so_often_and_no_others() {
        let faults = Faults::default();
        assert!(faults.add(fault(r#"{"call":"create","status":529,"times":2,"skip":1}"#)));
        assert!(faults.add(fault(r#"{"status":500}"#)));
        let statuses = [Call::Create, Call::Create, Call::Create, Call::Get, Call::Create]
            .map(|call| faults.take(call).and_then(|fault| fault.status));
        assert_eq!(statuses, [None, Some(529), Some(529), Some(500), None]);
        assert!(serde_json::from_str::<Fault>(r#"{"stauts":500}"#).is_err());
        faults.add(fault("{}"));
        faults.clear();
        assert!(faults.take(Call::Get).is_none());
    }
}
