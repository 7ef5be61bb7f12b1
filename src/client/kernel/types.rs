//! Requests and answers of the API. Fields that ksync does not know pass through.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::kernel::domain::{self, Vm};
use crate::kernel::error::ApiError;
use crate::tree::path::escape;

/// A session: one browser VM.
///
/// Its URLs hold tokens that open the VM to whoever has them, so its `Debug` shows no URL. It is
/// serialised as the API gave it, tokens included.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Browser {
    /// The session's id.
    pub session_id: String,
    /// The session's name, valid while the session lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// URL of Chromium's DevTools protocol (CDP). It holds a token.
    pub cdp_ws_url: String,
    /// Creation time in RFC 3339.
    pub created_at: String,
    /// True for a session without a screen.
    pub headless: bool,
    /// True for a session that hides its automation.
    pub stealth: bool,
    /// Idle timeout in seconds. SSH does not count as use.
    pub timeout_seconds: u64,
    /// The pool of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// URL of the VM's own API. It may hold a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// URL of the live view. It holds a token; a headless session has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub browser_live_view_url: Option<String>,
    /// Deletion time in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<String>,
    /// All other fields.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl Browser {
    /// Finds the VM that the session runs on.
    ///
    /// # Errors
    /// `cdp_ws_url` does not name a VM.
    pub fn vm(&self) -> Result<Vm, ApiError> {
        domain::vm(&self.cdp_ws_url).map_err(|source| ApiError::Domain {
            session: escape(self.session_id.as_bytes()).into_owned(),
            source,
        })
    }
}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browser")
            .field("session_id", &self.session_id)
            .field("name", &self.name)
            .field("created_at", &self.created_at)
            .field("headless", &self.headless)
            .field("stealth", &self.stealth)
            .field("timeout_seconds", &self.timeout_seconds)
            .field("pool", &self.pool)
            .field("deleted_at", &self.deleted_at)
            .finish_non_exhaustive()
    }
}

/// A pool of idle sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The pool's id.
    pub id: String,
    /// The pool's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Parameters of a new session, as the API takes them.
pub type Parameters = Map<String, Value>;

/// A command to run on a VM, without a shell. The VM keeps its output in memory until it has ended.
///
/// The call returns only when no process holds the command's output open any more. A background
/// process must therefore redirect its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exec {
    /// The program.
    pub command: String,
    /// The arguments.
    pub args: Vec<String>,
    /// Working directory, as an absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Additional environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Runs the command as root instead of the default user.
    pub as_root: bool,
    /// Timeout in seconds, after which the VM kills the command, but not its child processes.
    pub timeout_sec: u64,
}

/// Result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Exit code; -1 if a signal killed the command.
    pub exit_code: i32,
    /// The command's standard output.
    pub stdout: Vec<u8>,
    /// The command's standard error.
    pub stderr: Vec<u8>,
    /// Run time.
    pub duration: Duration,
}

impl Executed {
    /// Parses the API's answer.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Fields {
            exit_code: i32,
            #[serde(default)]
            stdout_b64: String,
            #[serde(default)]
            stderr_b64: String,
            #[serde(default)]
            duration_ms: f64,
        }
        let fields: Fields = serde_json::from_slice(text).ok()?;
        Some(Self {
            exit_code: fields.exit_code,
            stdout: BASE64.decode(fields.stdout_b64.as_bytes()).ok()?,
            stderr: BASE64.decode(fields.stderr_b64.as_bytes()).ok()?,
            duration: Duration::try_from_secs_f64(fields.duration_ms / 1000.0).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{
        "session_id": "htzv5orfit78e1m2biiifpbv",
        "cdp_ws_url": "wss://proxy.x.onkernel.com:8443/browser/cdp?jwt=a.secret.c",
        "webdriver_ws_url": "wss://proxy.x.onkernel.com/webdriver?jwt=a.secret.c",
        "browser_live_view_url": "https://proxy.x.onkernel.com/live?jwt=a.secret.c",
        "base_url": "https://proxy.x.onkernel.com/browser/kernel?jwt=a.secret.c",
        "created_at": "2026-08-01T12:00:00Z", "headless": true, "stealth": false, "timeout_seconds": 3600,
        "name": "mine", "pool": {"id": "p1", "name": null, "size": 3}, "usage": {"uptime_ms": 1},
        "a field of the future": [1, {"x": null}]
    }"#;

    #[test]
    fn a_browser_is_read_and_shows_no_token() {
        let browser: Browser = serde_json::from_str(FULL).unwrap();
        assert_eq!(browser.name.as_deref(), Some("mine"));
        assert_eq!(browser.pool, Some(Pool { id: "p1".into(), name: None }));
        assert_eq!((browser.headless, browser.stealth, browser.timeout_seconds), (true, false, 3600));
        assert_eq!(browser.deleted_at, None);
        let shown = format!("{browser:?} {browser:#?}");
        assert!(shown.contains("htzv5orfit78e1m2biiifpbv") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn fields_pass_through_and_empty_ones_are_left_out() {
        let browser: Browser = serde_json::from_str(FULL).unwrap();
        let mut given: Value = serde_json::from_str(FULL).unwrap();
        given["pool"] = serde_json::json!({ "id": "p1" });
        assert_eq!(serde_json::to_value(&browser).unwrap(), given);
    }

    #[test]
    fn unset_fields_are_not_sent() {
        let exec = Exec { command: "true".into(), timeout_sec: 5, ..Exec::default() };
        let text = serde_json::to_string(&exec).unwrap();
        assert_eq!(text, r#"{"command":"true","args":[],"as_root":false,"timeout_sec":5}"#);
    }

    #[test]
    fn output_is_bytes() {
        let text = br#"{"exit_code":-1,"stdout_b64":"/wAK","stderr_b64":"","duration_ms":1500}"#;
        let executed = Executed::parse(text).unwrap();
        assert_eq!((executed.exit_code, executed.stdout.as_slice()), (-1, &b"\xff\0\n"[..]));
        assert_eq!((executed.stderr.len(), executed.duration), (0, Duration::from_millis(1500)));
        for bad in [r#"{}"#, r#"{"exit_code":0,"stdout_b64":"?"}"#, "", "null"] {
            assert_eq!(Executed::parse(bad.as_bytes()), None, "{bad}");
        }
        assert!(Executed::parse(br#"{"exit_code":0,"duration_ms":-1}"#).is_some());
    }
}
