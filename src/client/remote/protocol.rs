//! The protocol that a server speaks, recognised from its first bytes.

use std::fmt;

use crate::tree::path::escape;

/// Characters of a server's first line that an error quotes.
const LINE_CHARS_MAX: usize = 80;

/// The transport that the user's endpoint names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// SSH over TCP.
    Ssh,
    /// SSH in a WebSocket.
    SshBehindBridge,
    /// A WebSocket without TLS.
    Ws,
    /// TLS, for a WebSocket.
    Wss,
    /// A WebSocket in TLS.
    WsInTls,
}

impl Wanted {
    /// Reports if a server of this protocol can be the wanted one.
    pub(super) fn allows(self, protocol: &Protocol) -> bool {
        match self {
            Self::Ssh | Self::SshBehindBridge => *protocol == Protocol::Ssh,
            Self::Ws | Self::WsInTls => *protocol == Protocol::Http,
            Self::Wss => *protocol == Protocol::Tls,
        }
    }
}

impl fmt::Display for Wanted {
    /// Formats the step that failed, after "could not".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ssh | Self::SshBehindBridge => "agree on an SSH session with",
            Self::Ws | Self::Wss | Self::WsInTls => "open a WebSocket to",
        })
    }
}

/// A protocol. Its `Display` continues a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// SSH.
    Ssh,
    /// TLS.
    Tls,
    /// HTTP without TLS: a web server or a bridge.
    Http,
    /// The protocol of rsync's daemon.
    Rsync,
    /// A protocol that greets with this line.
    Line(String),
    /// A binary protocol.
    Binary,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh => f.write_str("it is an SSH server"),
            Self::Tls => f.write_str("it speaks TLS"),
            Self::Http => f.write_str("it is a web server or a WebSocket bridge, without TLS"),
            Self::Rsync => f.write_str("it is an rsync daemon"),
            Self::Line(line) => write!(f, "it answers \"{line}\""),
            Self::Binary => f.write_str("it answers in an unknown protocol"),
        }
    }
}

impl Protocol {
    /// Recognises a protocol from the first bytes of a server. `None` if there are too few, or if
    /// they may precede an SSH server's greeting.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let text = bytes.trim_ascii_start().to_ascii_lowercase();
        let starts_with = |start: &str| text.starts_with(start.as_bytes());
        let is_reply = matches!(bytes, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'-', ..]);
        let has_line = bytes.contains(&b'\n');
        match bytes {
            // An alert or a handshake record, of version 3.x.
            [0x15 | 0x16, 3, _, ..] => Some(Self::Tls),
            // Other lines may precede the greeting.
            _ if bytes.starts_with(b"SSH-") || bytes.windows(5).any(|part| part == b"\nSSH-") => {
                Some(Self::Ssh)
            }
            _ if ["http/", "<!doctype html", "<html"].into_iter().any(starts_with) => Some(Self::Http),
            _ if starts_with("@rsyncd:") => Some(Self::Rsync),
            // Mail, files and news; the mailbox protocols; Redis; VNC.
            _ if has_line && (is_reply || ["* ok", "+ok", "-err", "rfb "].into_iter().any(starts_with)) => {
                Some(Self::Line(first_line(bytes)))
            }
            _ if bytes.iter().any(|&byte| byte < b' ' && !b"\t\r\n\x1b\x08".contains(&byte)) => {
                Some(if bytes.len() > 2 { Self::Binary } else { return None })
            }
            _ => None,
        }
    }

    /// Advice for a user who wanted another transport to the server at `authority`.
    pub(super) fn hint(&self, wanted: Wanted, authority: &str) -> String {
        match (wanted, self) {
            (Wanted::Ws | Wanted::Wss, Self::Ssh) => format!("Write ssh://user@{authority}/path."),
            (Wanted::Ws, Self::Tls) => format!("Write wss://{authority}/path."),
            (Wanted::Wss, Self::Http) => {
                format!("Write ws://{authority}/path, if the network in between can be trusted.")
            }
            (Wanted::Ssh, Self::Http | Self::Tls) => {
                let scheme = if *self == Self::Tls { "wss" } else { "ws" };
                format!(
                    "If it is a bridge to an SSH server, write {scheme}://{authority}/path; else check the port."
                )
            }
            (Wanted::SshBehindBridge, _) => "The bridge must lead to an SSH server.".to_owned(),
            (_, Self::Rsync) => "Use the SSH server of that host: user@host:/path.".to_owned(),
            _ => "Check the host and the port.".to_owned(),
        }
    }
}

/// The first line of a server's answer, for an error.
pub(super) fn first_line(bytes: &[u8]) -> String {
    let line = bytes.trim_ascii_start().split(|&byte| byte == b'\n').next().unwrap_or_default();
    escape(line.trim_ascii_end()).chars().take(LINE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_recognised_from_their_first_bytes() {
        let line = |text: &str| Some(Protocol::Line(text.to_owned()));
        for (bytes, protocol) in [
            (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], Some(Protocol::Ssh)),
            (b"\x15\x03\x01\x00\x02\x02\x46", Some(Protocol::Tls)),
            (b"\x16\x03\x03\x00\x7a\x02", Some(Protocol::Tls)),
            (b"HTTP/1.1 502 Bad Gateway\r\n", Some(Protocol::Http)),
            (b"<!DOCTYPE HTML>\n<html>", Some(Protocol::Http)),
            (b"\r\n<html><head>", Some(Protocol::Http)),
            (b"@RSYNCD: 31.0 sha512\n", Some(Protocol::Rsync)),
            (b"220 mx.example ESMTP \x1b[2J\r\n", line("220 mx.example ESMTP \\u{1b}[2J")),
            (b"220-two lines\r\n220 ready\r\n", line("220-two lines")),
            (b"* OK IMAP4rev1\r\n", line("* OK IMAP4rev1")),
            (b"+OK pop3\r\n", line("+OK pop3")),
            (b"-ERR unknown command\r\n", line("-ERR unknown command")),
            (b"RFB 003.008\n", line("RFB 003.008")),
            (b"J\0\0\0\n8.0.36\0", Some(Protocol::Binary)),
            // Lines that may precede SSH's greeting, and the packet behind it.
            (b"Welcome\r\nSSH-2.0-x\r\n\0\0\x01\x0c", Some(Protocol::Ssh)),
            (b"Welcome to host\r\n", None),
            (b"220", None),
            (b"", None),
        ] {
            assert_eq!(Protocol::of(bytes), protocol, "{}", bytes.escape_ascii());
        }
    }
}
