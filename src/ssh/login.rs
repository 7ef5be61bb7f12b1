//! Login (RFC 4252): by public key, with or without asking first, or without proof.

use std::collections::VecDeque;

use crate::encoding::{
    Message, Reader, SERVICE_ACCEPT, SERVICE_REQUEST, USERAUTH_BANNER, USERAUTH_FAILURE, USERAUTH_PK_OK,
    USERAUTH_REQUEST, USERAUTH_SUCCESS,
};
use crate::error::SshError;

const SERVICE: &str = "ssh-userauth";
const NEXT_SERVICE: &str = "ssh-connection";

/// Text that all banners of a login may have together, in bytes. A short one counts as this many.
const BANNER_BYTES_MAX: usize = 64 << 10;
const BANNER_BYTES_EACH: usize = 64;

/// A key to log in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginKey {
    /// The algorithm of its signatures, such as `rsa-sha2-512` or
    /// `ssh-ed25519-cert-v01@openssh.com`.
    pub algorithm: String,
    /// The public key, or the certificate, as SSH encodes it.
    pub blob: Vec<u8>,
}

/// The server's answer to a login request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginReply {
    /// The server would accept this key.
    Acceptable,
    /// The login succeeded.
    Success,
    /// The server refused.
    Failure {
        /// The methods that may go on.
        methods: Vec<String>,
        /// The request was right, but the server wants more.
        partial: bool,
    },
}

/// A request without an answer yet.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Would this key do?
    Probe(Vec<u8>),
    Request,
}

#[derive(Debug, Default)]
pub(crate) struct Login {
    asked: VecDeque<Asked>,
    /// The server has answered the first message.
    pub(crate) is_accepted: bool,
    pub(crate) is_done: bool,
    banner_bytes: usize,
}

/// The server's answer during a login.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Nothing,
    Banner(String),
    Reply(LoginReply),
}

/// The beginning of each request for a login by key.
fn by_key(user: &str, key: &LoginKey, is_signed: bool) -> Message {
    let message = Message::new(USERAUTH_REQUEST).string(user).string(NEXT_SERVICE).string("publickey");
    message.boolean(is_signed).string(&key.algorithm).string(&key.blob)
}

/// The bytes that a key signs to log in.
pub(crate) fn to_sign(session_id: &[u8], user: &str, key: &LoginKey) -> Vec<u8> {
    Message::default().string(session_id).raw(&by_key(user, key, true).into_bytes()).into_bytes()
}

impl Login {
    /// The message that precedes all requests.
    pub(crate) fn service() -> Vec<u8> {
        Message::new(SERVICE_REQUEST).string(SERVICE).into_bytes()
    }

    pub(crate) fn probe(&mut self, user: &str, key: &LoginKey) -> Vec<u8> {
        self.asked.push_back(Asked::Probe(key.blob.clone()));
        by_key(user, key, false).into_bytes()
    }

    /// `signature` holds the algorithm and the signature proper, each as a string.
    pub(crate) fn signed(&mut self, user: &str, key: &LoginKey, signature: &[u8]) -> Vec<u8> {
        self.asked.push_back(Asked::Request);
        by_key(user, key, true).string(signature).into_bytes()
    }

    pub(crate) fn without_proof(&mut self, user: &str) -> Vec<u8> {
        self.asked.push_back(Asked::Request);
        Message::new(USERAUTH_REQUEST).string(user).string(NEXT_SERVICE).string("none").into_bytes()
    }

    /// Reports if a request waits for its answer.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(crate) fn take(&mut self, payload: &[u8]) -> Result<Heard, SshError> {
        let number = payload.first().copied().unwrap_or_default();
        let out_of_order = || SshError::OutOfOrder(number);
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        if number == SERVICE_ACCEPT {
            let is_ours = reader.string()? == SERVICE.as_bytes();
            let is_again = std::mem::replace(&mut self.is_accepted, true);
            return if is_ours && !is_again { Ok(Heard::Nothing) } else { Err(out_of_order()) };
        }
        if !self.is_accepted || self.is_done {
            return Err(out_of_order());
        }
        if number == USERAUTH_BANNER {
            let text = reader.text()?;
            self.banner_bytes += text.len().max(BANNER_BYTES_EACH);
            return if self.banner_bytes > BANNER_BYTES_MAX {
                Err(SshError::TooMuch("banners"))
            } else {
                Ok(Heard::Banner(text))
            };
        }
        let reply = match (number, self.asked.pop_front().ok_or_else(out_of_order)?) {
            (USERAUTH_SUCCESS, Asked::Request) => {
                self.asked.clear();
                self.is_done = true;
                LoginReply::Success
            }
            (USERAUTH_FAILURE, _) => {
                LoginReply::Failure { methods: reader.names()?, partial: reader.boolean()? }
            }
            (USERAUTH_PK_OK, Asked::Probe(blob)) => {
                reader.string()?;
                if reader.string()? != blob {
                    return Err(SshError::Malformed("it accepts a key that was not offered"));
                }
                LoginReply::Acceptable
            }
            _ => return Err(out_of_order()),
        };
        Ok(Heard::Reply(reply))
    }
}
