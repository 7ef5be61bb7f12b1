//! The order of packets, and the facts about a host that allow a fast one.
//!
//! | order | round trips to the first output, over plain TCP |
//! |---|---|
//! | safe | TCP, KEXINIT, key exchange, login, channel, command: 6 |
//! | fast | TCP, key exchange, everything else: 3 |
//!
//! The safe order keeps to the RFCs, and every server takes it. The fast one sends the first packet
//! of the only key exchange that is offered along with KEXINIT, and a channel with its command
//! along with the signed login. It needs a server that was seen before, and is OpenSSH.

use crate::error::SshError;

/// Number that OpenSSH's sshd gives its first channel.
pub(crate) const OPENSSH_FIRST_CHANNEL: u32 = 0;

/// First version of OpenSSH whose reading of a whole flight is known.
const OPENSSH_MIN: (u32, u32) = (7, 4);

/// The only algorithms that a fast order offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guess {
    /// The key exchange.
    pub key_exchange: String,
    /// The type of host key, with the hash of its signature.
    pub host_key: String,
}

/// The order of packets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Order {
    /// Each packet waits for what it depends on.
    #[default]
    Safe,
    /// Packets depend on what is remembered of the host.
    Fast(Guess),
}

impl Order {
    pub(crate) const fn guess(&self) -> Option<&Guess> {
        match self {
            Self::Safe => None,
            Self::Fast(guess) => Some(guess),
        }
    }
}

/// Facts about a host, from an earlier connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The server's identification.
    pub server_id: String,
    /// The algorithms to offer next time.
    pub guess: Guess,
    /// The key exchange was strict.
    pub is_strict: bool,
    /// The public key that was let in.
    pub key: Option<Vec<u8>>,
    /// The fast order failed with these facts, or offers no cipher that this host has.
    pub is_slow: bool,
}

impl Facts {
    /// The order for the next connection.
    #[must_use]
    pub fn order(&self) -> Order {
        if self.is_strict && !self.is_slow && is_known_openssh(&self.server_id) {
            Order::Fast(self.guess.clone())
        } else {
            Order::Safe
        }
    }

    /// Reports if a channel may follow a login with this key at once: only if it was let in before.
    /// Behind a login that fails, many servers hang up.
    #[must_use]
    pub fn allows_early_channel(&self, key: &[u8]) -> bool {
        self.order() != Order::Safe && self.key.as_deref() == Some(key)
    }

    /// The facts to remember after a connection in the safe order that followed a failed fast one.
    /// If nothing has changed, the fast order itself does not work there, until the server's
    /// identification changes.
    #[must_use]
    pub fn after_fallback(&self, seen: Self) -> Self {
        let is_slow = seen.is_slow || self.server_id == seen.server_id && self.guess == seen.guess;
        Self { is_slow, ..seen }
    }

    /// The facts to remember after a connection that did not fall back.
    #[must_use]
    pub fn after(&self, seen: Self) -> Self {
        let is_same = self.server_id == seen.server_id && self.guess == seen.guess;
        let is_slow = seen.is_slow || self.is_slow && is_same;
        Self { is_slow, ..seen }
    }
}

/// Reports if a server is an OpenSSH of a version whose behaviour is known.
fn is_known_openssh(id: &str) -> bool {
    let Some(version) = id.strip_prefix("SSH-2.0-OpenSSH_") else { return false };
    let mut numbers = version.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OPENSSH_MIN,
        _ => false,
    }
}

/// The step after a failed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Connect once more, in the safe order.
    InOrder,
    /// Report the error.
    Never,
}

/// Decides what to do after `error`. `has_opened` tells if a channel was opened.
///
/// A wrong host key or signature and a broken strict key exchange are never tried again, whatever
/// the order was. In the safe order nothing is: there is no other one.
#[must_use]
pub fn fallback(order: &Order, error: &SshError, has_opened: bool) -> Fallback {
    if *order == Order::Safe || has_opened {
        return Fallback::Never;
    }
    match error {
        SshError::Guess(_)
        | SshError::NoCommon { .. }
        | SshError::Disconnected { .. }
        | SshError::Io(_)
        | SshError::Closed
        | SshError::Silence => Fallback::InOrder,
        SshError::NotSsh
        | SshError::Length { .. }
        | SshError::Malformed(_)
        | SshError::OutOfOrder(_)
        | SshError::NotStrict(_)
        | SshError::TooMuch(_)
        | SshError::Tampered
        | SshError::Signature
        | SshError::HostKeyChanged
        | SshError::HostKeyRefused
        | SshError::Crypto => Fallback::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(server_id: &str) -> Facts {
        let guess = Guess { key_exchange: "curve25519-sha256".into(), host_key: "ssh-ed25519".into() };
        Facts { server_id: server_id.into(), guess, is_strict: true, key: Some(vec![1]), is_slow: false }
    }

    #[test]
    fn only_a_strict_openssh_from_7_4_on_is_met_in_the_fast_order() {
        for (id, is_fast) in [
            ("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", true),
            ("SSH-2.0-OpenSSH_7.4", true),
            ("SSH-2.0-OpenSSH_10.0", true),
            ("SSH-2.0-OpenSSH_7.3p1", false),
            ("SSH-2.0-OpenSSH_6.10", false),
            ("SSH-2.0-OpenSSH_", false),
            ("SSH-2.0-OpenSSH_for_Windows_9.5", false),
            ("SSH-2.0-dropbear_2022.83", false),
        ] {
            assert_eq!(facts(id).order() != Order::Safe, is_fast, "{id}");
        }
        let id = "SSH-2.0-OpenSSH_9.2p1";
        assert_eq!(Facts { is_strict: false, ..facts(id) }.order(), Order::Safe);
        assert_eq!(Facts { is_slow: true, ..facts(id) }.order(), Order::Safe);
        assert!(facts(id).allows_early_channel(&[1]));
        assert!(!facts(id).allows_early_channel(&[2]));
        assert!(!facts("SSH-2.0-Go").allows_early_channel(&[1]));
    }

    #[test]
    fn a_host_is_slow_only_until_it_changes() {
        let (old, new) = (facts("SSH-2.0-OpenSSH_9.2p1"), facts("SSH-2.0-OpenSSH_9.9p1"));
        assert!(!old.after_fallback(new.clone()).is_slow);
        let slow = old.after_fallback(old.clone());
        assert!(slow.is_slow);
        assert!(slow.after(old.clone()).is_slow);
        assert!(!slow.after(new.clone()).is_slow);
        // The host has no cipher that the fast order offers.
        assert!(old.after(Facts { is_slow: true, ..new.clone() }).is_slow);
        assert!(old.after_fallback(Facts { is_slow: true, ..new.clone() }).is_slow);
        let other = Guess { key_exchange: "mlkem768x25519-sha256".into(), ..old.guess.clone() };
        assert!(!slow.after(Facts { guess: other, ..old }).is_slow);
    }

    #[test]
    fn an_attack_is_never_answered_by_another_try() {
        let order = facts("SSH-2.0-OpenSSH_9.2p1").order();
        for error in [
            SshError::Signature,
            SshError::HostKeyRefused,
            SshError::HostKeyChanged,
            SshError::NotStrict(2),
            SshError::Tampered,
        ] {
            assert_eq!(fallback(&order, &error, false), Fallback::Never, "{error}");
        }
        let ended = SshError::Disconnected { code: 2, message: String::new() };
        for error in [SshError::Guess("x"), SshError::Closed, SshError::Silence, ended] {
            assert_eq!(fallback(&order, &error, false), Fallback::InOrder, "{error}");
            assert_eq!(fallback(&order, &error, true), Fallback::Never, "{error}");
            assert_eq!(fallback(&Order::Safe, &error, false), Fallback::Never, "{error}");
        }
    }
}
