//! The first flight: the bytes that the client sends to an agent before it knows whether the agent
//! is installed.
//!
//! OpenSSH accepts an exec request without a round trip, and nothing else. So the first flight
//! travels in the agent's command line. Every user of that machine can read command lines.
//! Therefore the client seals the first flight with a secret. The agent keeps that secret in its
//! private directory, and the client learnt it over an earlier connection.
//!
//! ```text
//!  CLIENT                                       AGENT
//!  exec agent exchange            ────────────► tells its secret; reads stdin
//!    ◄─────────────────────────── SECRET · hello
//!
//!  exec agent 'seal:NONCE:BYTES'  ────────────► opens it
//!    ◄────────────────────────────────────  hello
//!
//!  exec agent 'seal:NONCE:BYTES'  ────────────► cannot open it: its secret differs
//!    ◄─────────────────────────── SECRET · AGAIN
//!  line end · NONCE · line end · everything again ► skips all bytes before that line
//!    ◄────────────────────────────────────  hello
//! ```
//! The secret opens the first flight of one login only. Another user who repeats the command line
//! starts an agent of his own, which has another secret. The seal also binds the name of the
//! agent's file and the protocol's version, so no other build opens it.

use std::fmt;

use crate::content::hex::{from_hex, to_hex};
pub use crate::content::seal::{NONCE_BYTES, SECRET_BYTES, Secret};
use crate::wire::hello::VERSION;

/// The agent's answer where it cannot open the first flight: the client must send everything again.
pub const AGAIN: &[u8] = b"\0KSYNC-AGAIN\n";

/// Prefix by which the agent tells its secret; the secret's hex digits and a line end follow.
pub const SECRET: &[u8] = b"\0KSYNC-SECRET ";

/// The agent's argument where the client sends everything on stdin.
pub const UNSEALED: &str = "exchange";

/// Prefix of the agent's argument that holds a sealed first flight.
const SEALED: &str = "seal:";

/// The line by which an agent tells its secret.
#[must_use]
pub fn tell(secret: &Secret) -> Vec<u8> {
    [SECRET, secret.to_hex().as_bytes(), b"\n"].concat()
}

/// The name of an agent's file, made from the SHA-256 of its content.
#[must_use]
pub fn agent_name(sha256: &str) -> String {
    format!("agent-{sha256}")
}

/// A sealed first flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    nonce: [u8; NONCE_BYTES],
    bytes: Vec<u8>,
}

impl Sealed {
    /// Seals the first flight for the agent with this file name. The nonce must be random.
    #[must_use]
    pub fn new(secret: &Secret, nonce: [u8; NONCE_BYTES], agent: &str, flight: &[u8]) -> Option<Self> {
        let bytes = secret.seal(&nonce, &context(agent), flight)?;
        Some(Self { nonce, bytes })
    }

    /// Opens the flight; `None` if it was sealed with another secret or for another agent.
    #[must_use]
    pub fn open(&self, secret: &Secret, agent: &str) -> Option<Vec<u8>> {
        secret.open(&self.nonce, &context(agent), &self.bytes)
    }

    /// The line that the client sends before it repeats everything. No first flight contains it.
    #[must_use]
    pub fn marker(&self) -> Vec<u8> {
        [b"\n", to_hex(&self.nonce).as_bytes(), b"\n"].concat()
    }

    /// Parses the text that [`Display`](fmt::Display) writes.
    #[must_use]
    pub fn parse(argument: &str) -> Option<Self> {
        let (nonce, bytes) = argument.strip_prefix(SEALED)?.split_once(':')?;
        let nonce = from_hex(nonce.as_bytes())?.try_into().ok()?;
        Some(Self { nonce, bytes: from_hex(bytes.as_bytes())? })
    }
}

impl fmt::Display for Sealed {
    /// Writes the agent's argument.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SEALED}{}:{}", to_hex(&self.nonce), to_hex(&self.bytes))
    }
}

/// The seal's context: the protocol's version and the agent's file name.
fn context(agent: &str) -> Vec<u8> {
    format!("ksync first flight {VERSION} {agent}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_intended_agent_opens_a_sealed_flight() {
        let secret = Secret::new([7; SECRET_BYTES]);
        let sealed = Sealed::new(&secret, [1; NONCE_BYTES], &agent_name("ab"), b"/root/site .env").unwrap();
        let argument = sealed.to_string();
        assert!(!argument.contains("site") && !argument.contains(&to_hex(b"site")), "{argument}");
        let parsed = Sealed::parse(&argument).unwrap();
        assert_eq!(parsed, sealed);
        assert_eq!(parsed.open(&secret, "agent-ab").unwrap(), b"/root/site .env");
        assert_eq!(parsed.open(&secret, "agent-ac"), None);
        assert_eq!(parsed.open(&Secret::new([8; SECRET_BYTES]), "agent-ab"), None);
        assert_eq!(sealed.marker(), [b"\n", "01".repeat(NONCE_BYTES).as_bytes(), b"\n"].concat());
    }

    #[test]
    fn malformed_arguments_are_no_sealed_flight() {
        let nonce = "0".repeat(2 * NONCE_BYTES);
        for text in ["", "seal:", "seal:00:00", "lane:00", "0061", &format!("seal:{nonce}:0"), &nonce] {
            assert_eq!(Sealed::parse(text), None, "{text}");
        }
        assert!(Sealed::parse(&format!("seal:{nonce}:")).is_some());
    }
}
