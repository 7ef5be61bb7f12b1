//! The first flight: what the client says to an agent that it starts, before it knows whether there
//! is one.
//!
//! An exec request is the only thing that OpenSSH takes in without a round trip, so the first
//! flight travels in the agent's command line. Every user of that machine can read a command line.
//! So the first flight is sealed with a secret that the agent keeps in its private directory and
//! that the client learnt over an earlier connection.
//!
//! ```text
//!  CLIENT                                       AGENT
//!  exec agent exchange            ────────────► tells its secret; all that the client says comes as data
//!    ◄─────────────────────────── SECRET · hello
//!
//!  exec agent 'seal:NONCE:BYTES'  ────────────► opens it
//!    ◄────────────────────────────────────  hello
//!
//!  exec agent 'seal:NONCE:BYTES'  ────────────► cannot open it: its secret is another one
//!    ◄─────────────────────────── SECRET · AGAIN
//!  line end · NONCE · line end · all once more ► skips all that comes before that line
//!    ◄────────────────────────────────────  hello
//! ```
//! The secret opens the first flight of one login only: another user who repeats the command line
//! starts an agent of his own, which has another secret. The name of the agent's file and the
//! protocol's version are part of what is sealed, so that no other build opens it.

use std::fmt;

use crate::content::hex::{from_hex, to_hex};
pub use crate::content::seal::{NONCE_BYTES, SECRET_BYTES, Secret};
use crate::wire::hello::VERSION;

/// What the agent says where it cannot open the first flight: the client is to say all of it once
/// more.
pub const AGAIN: &[u8] = b"\0KSYNC-AGAIN\n";

/// What the agent says before its secret, whose digits and a line end follow.
pub const SECRET: &[u8] = b"\0KSYNC-SECRET ";

/// The agent's argument where all that the client says comes as data.
pub const UNSEALED: &str = "exchange";

/// Begins the agent's argument where it holds a sealed first flight.
const SEALED: &str = "seal:";

/// The word by which an agent tells its secret.
#[must_use]
pub fn tell(secret: &Secret) -> Vec<u8> {
    [SECRET, secret.to_hex().as_bytes(), b"\n"].concat()
}

/// The name of an agent's file, by the hash of what is in it.
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
    /// Seals the first flight to the agent of this file name, under a nonce that has to be random.
    #[must_use]
    pub fn new(secret: &Secret, nonce: [u8; NONCE_BYTES], agent: &str, flight: &[u8]) -> Option<Self> {
        let bytes = secret.seal(&nonce, &context(agent), flight)?;
        Some(Self { nonce, bytes })
    }

    /// What was sealed, if it was with this secret and for this agent.
    #[must_use]
    pub fn open(&self, secret: &Secret, agent: &str) -> Option<Vec<u8>> {
        secret.open(&self.nonce, &context(agent), &self.bytes)
    }

    /// What the client sends before all that it says once more: a line that no first flight holds.
    #[must_use]
    pub fn marker(&self) -> Vec<u8> {
        [b"\n", to_hex(&self.nonce).as_bytes(), b"\n"].concat()
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    #[must_use]
    pub fn parse(argument: &str) -> Option<Self> {
        let (nonce, bytes) = argument.strip_prefix(SEALED)?.split_once(':')?;
        let nonce = from_hex(nonce.as_bytes())?.try_into().ok()?;
        Some(Self { nonce, bytes: from_hex(bytes.as_bytes())? })
    }
}

impl fmt::Display for Sealed {
    /// The agent's argument.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SEALED}{}:{}", to_hex(&self.nonce), to_hex(&self.bytes))
    }
}

/// What a sealed first flight is bound to.
fn context(agent: &str) -> Vec<u8> {
    format!("ksync first flight {VERSION} {agent}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agent_that_it_is_for_opens_a_flight() {
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
    fn nothing_else_is_a_sealed_flight() {
        let nonce = "0".repeat(2 * NONCE_BYTES);
        for text in ["", "seal:", "seal:00:00", "lane:00", "0061", &format!("seal:{nonce}:0"), &nonce] {
            assert_eq!(Sealed::parse(text), None, "{text}");
        }
        assert!(Sealed::parse(&format!("seal:{nonce}:")).is_some());
    }
}
