//! Installing the agent, over the same channel on which it then speaks.
//!
//! 1. The command is one line of POSIX shell ([`command`]). It starts the agent, if the agent is
//!    there, in a private directory, under a name that holds its SHA-256.
//! 2. The client does not wait. Its first bytes to the agent travel in the command line, sealed, as
//!    the last argument. All further bytes go over the channel, and ksync keeps up to
//!    [`FLIGHT_BYTES_MAX`] of them. Without a secret to seal with, all bytes go over the channel
//!    (see [`flight`](crate::wire::flight)), and along with the login in the fast order.
//! 3. If the agent is missing, the shell prints NEED. The client sends a marker line that nobody
//!    else can know, then the compressed agent, then its bytes to the agent once more. The shell
//!    skips everything up to the marker, installs the agent and execs it. The shell may print NEED
//!    again, e.g. if a disk was full, and FAIL if it gives up.
//! 4. Where the agent is known to be there, the command holds a short script. It checks and starts
//!    the agent like the whole one. Otherwise it prints LOAD, skips its input up to the marker, and
//!    reads the whole script from the next line.
//! 5. The agent's first bytes are [`MAGIC`]. Everything before them is noise of the login shell.
//!
//! An installed agent therefore costs no round trip of its own, and a missing one costs one.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::log;
use crate::remote::agent_image::{AgentImage, BLOCK_BYTES};
use crate::tree::path::escape;
use crate::wire::flight::{AGAIN, NONCE_BYTES, SECRET, SECRET_BYTES, Sealed, Secret, UNSEALED, agent_name};
use crate::wire::hello::MAGIC;
use crate::wire::lanes::Token;

/// Bytes kept of the first flight, to be sent again after the agent.
pub(super) const FLIGHT_BYTES_MAX: usize = 64 * 1024;

/// Bytes of the first flight that travel in the command line. OpenSSH opens a channel with an empty
/// window, so bytes on the channel wait one round trip. Bytes in the command line do not.
pub(super) const COMMAND_FLIGHT_BYTES_MAX: usize = 8 * 1024;

/// Bytes that a login shell may print before the agent's first bytes.
pub(super) const NOISE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of that noise shown in an error.
const SHOWN_NOISE_BYTES: usize = 256;

/// Longest FAIL reason shown, in bytes.
const REASON_BYTES_MAX: usize = 2048;

/// Limit of NEED requests: one for each directory that the shell tries.
pub(super) const NEEDS_MAX: usize = 4;

/// Hex digits of a secret.
const SECRET_DIGITS: usize = 2 * SECRET_BYTES;

const NEED: &[u8] = b"\0KSYNC-NEED\n";
const LOAD: &[u8] = b"\0KSYNC-LOAD\n";
const FAIL: &[u8] = b"\0KSYNC-FAIL ";
const SCRIPT: &str = include_str!("bootstrap.sh");
const SHORT_SCRIPT: &str = include_str!("short.sh");

/// The command's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// It holds the script that can install the agent.
    Whole,
    /// It holds a script that finds the agent in the usual directory, and asks for the whole script
    /// where that fails.
    Short,
}

/// Purpose of an agent.
pub(super) enum Purpose {
    /// An exchange; with the sealed first flight, if it could be sealed.
    Exchange(Option<Sealed>),
    /// A further lane of an exchange.
    Lane(Token),
    /// One exchange after another: see [`wire::keep`](crate::wire::keep).
    Keep,
}

impl Purpose {
    /// The purpose as pairs for the log.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Exchange(Some(_)) => "for=exchange flight=in-command-line",
            Self::Exchange(None) => "for=exchange flight=over-channel why=no-secret",
            Self::Lane(_) => "for=lane",
            Self::Keep => "for=keep",
        }
    }
}

impl fmt::Display for Purpose {
    /// Formats the agent's argument.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(Some(first)) => write!(formatter, "{first}"),
            Self::Exchange(None) => formatter.write_str(UNSEALED),
            Self::Lane(token) => write!(formatter, "lane:{token}"),
            Self::Keep => formatter.write_str("keep"),
        }
    }
}

/// Builds the line that the server executes, where all users can read it. The line holds a constant
/// script, a hash, a number, the marker, and either the sealed first flight or a token. It holds no
/// name, no path and no content. If this side logs, the line also asks the agent to log. With
/// `as_root`, sudo starts the agent, and never asks for a password.
pub(super) fn command(
    image: &AgentImage,
    marker: &str,
    purpose: &Purpose,
    form: Form,
    as_root: bool,
) -> String {
    let script = one_line(match form {
        Form::Whole => SCRIPT,
        Form::Short => SHORT_SCRIPT,
    });
    let blocks = image.gzip.len().div_ceil(BLOCK_BYTES);
    // `env` also works in login shells that have no other way to set a variable for one command.
    let env = if log::is_on() { format!("env {}={} ", log::VARIABLE, log::LEVEL) } else { String::new() };
    let sudo = if as_root { "sudo -n " } else { "" };
    format!("exec {sudo}{env}sh -c '{script}' ksync {} {blocks} {marker} '{purpose}'", image.sha256)
}

/// The whole script for a short one that asked for it: one line, behind the marker.
pub(super) fn loaded(marker: &str) -> String {
    format!("\n{marker}\n{}\n", one_line(SCRIPT))
}

fn one_line(script: &str) -> String {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.collect::<Vec<_>>().join(" ")
}

/// Makes a marker: a line that no first flight holds.
pub(super) fn marker() -> Option<String> {
    Some(token()?.to_string())
}

/// Returns a token for the lanes of one exchange, or `None` if this machine gives no random number.
#[must_use]
pub fn token() -> Option<Token> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(Token::new(bytes))
}

/// Seals the first flight to the agent `image`.
pub(super) fn seal(secret: &Secret, image: &AgentImage, first: &[u8]) -> Option<Sealed> {
    let mut nonce = [0; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut nonce).ok()?;
    Sealed::new(secret, nonce, &agent_name(&image.sha256), first)
}

/// Next item in the other side's output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing yet.
    Nothing,
    /// The shell asks for the agent.
    Need,
    /// The short script asks for the whole one.
    Load,
    /// The agent could not open the sealed first flight, and waits for a plain copy.
    Again,
    /// The agent reports its secret.
    Secret(Secret),
    /// The agent's output, from its first byte on.
    Agent(Bytes),
    /// The shell gave up, for this reason.
    Fail(String),
    /// Too much other output; this is its beginning.
    Noise(String),
}

/// Finds the agent's output among that of a login shell.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    buffer: BytesMut,
    /// Bytes skipped as noise.
    noise: usize,
    beginning: Vec<u8>,
}

impl Scanner {
    /// Adds one SSH packet, which is small enough to be kept whole. Call [`Scanner::next`] until it
    /// finds nothing; then the buffer is nearly empty.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next item from the output.
    pub(super) fn next(&mut self) -> Found {
        loop {
            let Some(start) = self.buffer.iter().position(|&byte| byte == 0) else {
                let all = self.buffer.len();
                return self.skip(all);
            };
            if let Some(noise) = self.skip_to(start) {
                return noise;
            }
            if self.buffer.starts_with(&MAGIC) {
                return Found::Agent(self.buffer.split().freeze());
            }
            if self.buffer.starts_with(NEED) {
                let _ = self.buffer.split_to(NEED.len());
                return Found::Need;
            }
            if self.buffer.starts_with(LOAD) {
                let _ = self.buffer.split_to(LOAD.len());
                return Found::Load;
            }
            if self.buffer.starts_with(AGAIN) {
                let _ = self.buffer.split_to(AGAIN.len());
                return Found::Again;
            }
            if let Some(text) = self.buffer.strip_prefix(SECRET) {
                if text.len() <= SECRET_DIGITS {
                    return Found::Nothing;
                }
                let secret = text.get(..SECRET_DIGITS).and_then(Secret::from_hex);
                if let Some(secret) = secret.filter(|_| text.get(SECRET_DIGITS) == Some(&b'\n')) {
                    let _ = self.buffer.split_to(SECRET.len() + SECRET_DIGITS + 1);
                    return Found::Secret(secret);
                }
            }
            if let Some(reason) = self.buffer.strip_prefix(FAIL) {
                let end = reason.iter().position(|&byte| byte == b'\n');
                if end.is_none() && reason.len() < REASON_BYTES_MAX {
                    return Found::Nothing;
                }
                let end = end.unwrap_or(REASON_BYTES_MAX).min(REASON_BYTES_MAX);
                return Found::Fail(escape(reason.get(..end).unwrap_or(reason)).into_owned());
            }
            if [&MAGIC[..], NEED, LOAD, FAIL, AGAIN, SECRET].iter().any(|word| word.starts_with(&self.buffer))
            {
                return Found::Nothing;
            }
            if let Some(noise) = self.skip_to(1) {
                return noise;
            }
        }
    }

    /// Beginning of the noise, for an error; empty if there was none.
    pub(super) fn beginning(&self) -> String {
        escape(&self.beginning).into_owned()
    }

    fn skip(&mut self, count: usize) -> Found {
        self.skip_to(count).unwrap_or(Found::Nothing)
    }

    fn skip_to(&mut self, count: usize) -> Option<Found> {
        let skipped = self.buffer.split_to(count);
        let room = SHOWN_NOISE_BYTES.saturating_sub(self.beginning.len());
        self.beginning.extend(skipped.iter().take(room));
        self.noise += count;
        (self.noise > NOISE_BYTES_MAX).then(|| Found::Noise(self.beginning()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&[u8]]) -> Vec<Found> {
        let mut scanner = Scanner::default();
        let mut found = Vec::new();
        for piece in pieces {
            scanner.push(piece);
            loop {
                match scanner.next() {
                    Found::Nothing => break,
                    end @ (Found::Agent(_) | Found::Fail(_) | Found::Noise(_)) => {
                        found.push(end);
                        return found;
                    }
                    need => found.push(need),
                }
            }
        }
        found
    }

    #[test]
    fn the_agent_is_found_behind_any_noise_at_any_cut() {
        let output = b"Welcome!\r\n\0\0KSYN\0KSYNC-\0KSYNC-NEED\nmore\0KSYNC\r\nhello\0KSYNC-NEED\n";
        let expected = [Found::Need, Found::Agent(Bytes::from_static(b"\0KSYNC\r\nhello\0KSYNC-NEED\n"))];
        assert_eq!(scan(&[output]), expected);
        for cut in 0..output.len() - 17 {
            let (head, tail) = output.split_at(cut);
            assert_eq!(scan(&[head, tail]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_secret_and_a_request_for_the_flight_are_found_at_any_cut() {
        let secret = Secret::new([0xab; SECRET_BYTES]);
        let told = crate::wire::flight::tell(&secret);
        let output =
            [b"noise\0KSYNC-SECRET zz".as_slice(), &[b'z'; 80], &told, AGAIN, &MAGIC, b"hello"].concat();
        let agent = [&MAGIC[..], b"hello"].concat();
        let expected = [Found::Secret(secret), Found::Again, Found::Agent(agent.into())];
        for cut in 0..output.len() - 13 {
            let (head, tail) = output.split_at(cut);
            assert_eq!(scan(&[head, tail]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn the_command_shows_nothing_of_a_sealed_flight() {
        let image = AgentImage { sha256: "ab".repeat(32).into(), gzip: Bytes::from_static(b"x") };
        let secret = Secret::new([7; SECRET_BYTES]);
        let flight = b"/root/site .env API_KEY=sk-verysecret".repeat(100);
        let seal = || seal(&secret, &image, &flight).unwrap();
        let line = command(&image, "feed", &Purpose::Exchange(Some(seal())), Form::Whole, false);
        let argument = line.rsplit('\'').nth(1).unwrap();
        assert_eq!(
            Sealed::parse(argument).unwrap().open(&secret, &agent_name(&image.sha256)),
            Some(flight.clone())
        );
        for part in flight.windows(4) {
            let digits: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!argument.contains(&digits) && !argument.contains(std::str::from_utf8(part).unwrap()));
        }
        assert_ne!(seal(), seal());
    }

    #[test]
    fn the_reason_of_a_failure_is_escaped_and_bounded() {
        let found = scan(&[b"\0KSYNC-FAIL /tmp: no\x1b[2J", b" way\nrest"]);
        assert_eq!(found, [Found::Fail("/tmp: no\\u{1b}[2J way".into())]);
        let mut long = b"\0KSYNC-FAIL ".to_vec();
        long.resize(100_000, b'x');
        assert_eq!(scan(&[&long]), [Found::Fail("x".repeat(REASON_BYTES_MAX))]);
    }

    #[test]
    fn endless_noise_is_an_error_that_quotes_the_noise() {
        for piece in [&[b'n'; 4096][..], &[0; 4096], b"\0KSYNC-"] {
            let mut scanner = Scanner::default();
            let mut pushed = 0;
            let beginning = loop {
                scanner.push(piece);
                pushed += piece.len();
                match scanner.next() {
                    Found::Nothing => assert!(pushed <= NOISE_BYTES_MAX + piece.len()),
                    Found::Noise(beginning) => break beginning,
                    other => panic!("{other:?}"),
                }
            };
            assert!(beginning.starts_with(&*escape(&piece[..4])));
            assert!(scanner.buffer.len() <= piece.len());
        }
    }

    #[test]
    fn the_command_is_one_line_that_any_login_shell_can_pass_on() {
        let image =
            AgentImage { sha256: "ab".repeat(32).into(), gzip: Bytes::from(vec![0; 2 * BLOCK_BYTES]) };
        for (form, bytes_max) in [(Form::Whole, 8192), (Form::Short, 600)] {
            let command = command(&image, "feed", &Purpose::Exchange(None), form, false);
            let script = command.strip_prefix("exec sh -c '").unwrap();
            let (script, arguments) = script.split_once('\'').unwrap();
            assert_eq!(arguments, format!(" ksync {} 2 feed 'exchange'", "ab".repeat(32)));
            assert!(!script.contains(['\n', '!', '\'']) && !script.contains("\\\\"), "{script}");
            assert!(command.len() < bytes_max);
        }
    }

    #[test]
    fn each_marker_is_different() {
        assert_ne!(marker().unwrap(), marker().unwrap());
        assert_eq!(marker().unwrap().len(), 32);
    }
}
