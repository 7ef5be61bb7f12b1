//! Faults on request: `POST /_sandbox/faults` sets failures or delays of the next calls.
//!
//! ```text
//! {"call":"create","status":529,"times":2}                    no capacity, twice
//! {"call":"exec","status":429,"headers":{"Retry-After":"1"}}  too many requests
//! {"status":500,"message_only":true,"message":"from inside"}  error of the next call of any kind
//! {"call":"get","delay_ms":3000}                              slow, but correct
//! {"call":"get","hang_up":true}                               connection closed without an answer
//! {"call":"bridge","after_bytes":100000}                      SSH connection reset at that byte
//! {"call":"bridge","freezes_in_standby":true}                 frozen while the VM is in standby
//! {"call":"bridge","status":403}                              HTTP status in place of a WebSocket
//! {"call":"bridge","delay_ms":60000}                          all bytes delayed by that time
//! {"call":"cdp","after_seconds":60}                           CDP socket reset, in platform time
//! {"call":"create","without_jwt":true}                        cdp_ws_url with the VM as host
//! {"call":"create","token_seconds":60}                        token that expires after that time
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hyper::StatusCode;
use hyper::header::HeaderName;
use serde::Deserialize;

use super::answer::{self, Answer, PlatformError};
use super::call::Call;

/// Most faults that may wait.
const PENDING_MAX: usize = 1000;

/// A fault of a call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    /// The affected call; without it, the next request of any kind.
    call: Option<Call>,
    /// Number of affected calls.
    #[serde(default = "once")]
    times: u32,
    /// Number of matching calls to spare first.
    #[serde(default)]
    skip: u32,
    /// Status of the answer; without it the call is answered as usual.
    pub(super) status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    code: Option<String>,
    message: Option<String>,
    /// Omits the code, as errors from inside a VM do.
    #[serde(default)]
    message_only: bool,
    /// Delay of the answer, in real milliseconds.
    #[serde(default)]
    pub(super) delay_ms: u64,
    #[serde(default)]
    pub(super) hang_up: bool,
    /// For a VM's port: bytes from the client after which the connection is reset.
    pub(super) after_bytes: Option<u64>,
    /// For a VM's port or a CDP socket: seconds of the platform's time after which the connection
    /// is reset.
    pub(super) after_seconds: Option<u64>,
    /// For a VM's port: freezes the connection both ways while the VM is in standby.
    #[serde(default)]
    pub(super) freezes_in_standby: bool,
    #[serde(default)]
    pub(super) without_jwt: bool,
    /// Lifetime of a new session's token, in the platform's time.
    pub(super) token_seconds: Option<u64>,
}

const fn once() -> u32 {
    1
}

impl Fault {
    /// The fault's answer in place of the correct one.
    pub(super) fn answer(&self) -> Option<Answer> {
        let status = StatusCode::from_u16(self.status?).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = self.message.clone().unwrap_or_else(|| told(status).1.to_owned());
        let code = self.code.clone().or_else(|| Some(told(status).0.to_owned()));
        let mut made = PlatformError { status, code: code.filter(|_| !self.message_only), message }.answer();
        for (name, value) in &self.headers {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                answer::set(&mut made, name, value);
            }
        }
        Some(made)
    }
}

/// Code and message of a status.
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
    /// Adds a fault. Returns false if too many wait.
    pub(super) fn add(&self, fault: Fault) -> bool {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = faults.len() < PENDING_MAX;
        if has_room {
            faults.push(fault);
        }
        has_room
    }

    /// Forgets all faults.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes the fault of a call: of several that match, the first added.
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
    fn a_fault_affects_its_own_calls_and_only_the_given_number() {
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
