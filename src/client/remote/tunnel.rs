//! A proxy's handshake: `CONNECT` of HTTP (RFC 9110), and SOCKS 4, 4a and 5 (RFC 1928 and 1929).
//! Behind it, the stream is a connection to the host.
//!
//! No step reads a byte too much: whatever follows the answer belongs to the host.

use std::io;
use std::net::IpAddr;

use data_encoding::BASE64;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::remote::proxies::{Proxy, Scheme, authority};
use crate::remote::proxy_error::ProxyError;
use crate::tree::path::escape;

/// Longest head of an HTTP answer, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Characters kept of the login methods that a proxy offers.
const METHODS_CHARS_MAX: usize = 80;

/// Names of the protocols, in errors.
const HTTP: &str = "an HTTP proxy";
const SOCKS4: &str = "a SOCKS4 proxy";
const SOCKS5: &str = "a SOCKS5 proxy";

/// The host that the proxy connects to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination<'a> {
    /// The name or address, without the brackets of an IPv6 address.
    pub(crate) host: &'a str,
    /// The port.
    pub(crate) port: u16,
    /// The address, where this side has to resolve the name.
    pub(crate) address: Option<IpAddr>,
}

impl Destination<'_> {
    /// Reports if a proxy of this scheme wants an address of the host.
    pub(crate) fn must_be_resolved(host: &str, scheme: Scheme) -> bool {
        matches!(scheme, Scheme::Socks4 | Scheme::Socks5) && host.parse::<IpAddr>().is_err()
    }

    fn ip(&self) -> Option<IpAddr> {
        self.address.or_else(|| self.host.parse().ok())
    }
}

impl From<io::Error> for ProxyError {
    fn from(error: io::Error) -> Self {
        Self::Closed(error)
    }
}

/// Asks the proxy at the other end of `stream` to connect to the host.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    to: Destination<'_>,
) -> Result<(), ProxyError> {
    match proxy.scheme {
        Scheme::Http | Scheme::Https => connect(stream, proxy, to).await,
        Scheme::Socks4 | Scheme::Socks4a => socks4(stream, proxy, to).await,
        Scheme::Socks5 | Scheme::Socks5h => socks5(stream, proxy, to).await,
    }
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    to: Destination<'_>,
) -> Result<(), ProxyError> {
    let to = authority(to.host, to.port);
    let version = env!("CARGO_PKG_VERSION");
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: ksync/{version}\r\n");
    if let Some((user, password)) = &proxy.login {
        let login = BASE64.encode(&[user.as_slice(), b":", password].concat());
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    send(stream, request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        head.push(stream.read_u8().await?);
        let begin = b"HTTP/";
        if head.len() > HEAD_BYTES_MAX || head.iter().zip(begin).any(|(byte, due)| byte != due) {
            return Err(ProxyError::Foreign(HTTP));
        }
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.split_ascii_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        None => Err(ProxyError::Foreign(HTTP)),
        Some(200..=299) => Ok(()),
        Some(status) => Err(ProxyError::of_status(status, &methods(&head))),
    }
}

/// The login methods in an HTTP answer: the first word of each.
fn methods(head: &str) -> String {
    let offers = head.lines().filter_map(|line| line.split_once(':'));
    let offers = offers.filter(|(name, _)| name.trim().eq_ignore_ascii_case("proxy-authenticate"));
    let names: Vec<_> = offers.filter_map(|(_, value)| value.split_ascii_whitespace().next()).collect();
    escape(names.join(", ").as_bytes()).chars().take(METHODS_CHARS_MAX).collect()
}

async fn socks4<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    to: Destination<'_>,
) -> Result<(), ProxyError> {
    let (address, name) = match to.ip() {
        Some(IpAddr::V4(address)) => (address.octets(), None),
        Some(IpAddr::V6(_)) => return Err(ProxyError::Unfit("SOCKS4 knows no IPv6 addresses")),
        // An address that cannot be real announces a name.
        None => ([0, 0, 0, 1], Some(to.host)),
    };
    let user = proxy.login.as_ref().map_or(&[][..], |(user, _)| user);
    if user.contains(&0) {
        return Err(ProxyError::Unfit("its user name has a zero byte"));
    }
    let mut request = [&[4, 1][..], &to.port.to_be_bytes(), &address, user, &[0]].concat();
    if let Some(name) = name {
        request.extend([name.as_bytes(), &[0]].concat());
    }
    send(stream, &request).await?;
    if stream.read_u8().await? != 0 {
        return Err(ProxyError::Foreign(SOCKS4));
    }
    let code = stream.read_u8().await?;
    let mut rest = [0; 6];
    match code {
        90 => stream.read_exact(&mut rest).await.map(|_| ()).map_err(ProxyError::from),
        91 => {
            Err(ProxyError::Unreachable("it refuses the connection, or does not reach the host".to_owned()))
        }
        92 | 93 => Err(ProxyError::Login("it refuses the user name".to_owned())),
        _ => Err(ProxyError::Foreign(SOCKS4)),
    }
}

async fn socks5<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    to: Destination<'_>,
) -> Result<(), ProxyError> {
    const NO_LOGIN: u8 = 0;
    const PASSWORD: u8 = 2;
    let methods = if proxy.login.is_some() { &[5, 2, PASSWORD, NO_LOGIN][..] } else { &[5, 1, NO_LOGIN] };
    send(stream, methods).await?;
    if stream.read_u8().await? != 5 {
        return Err(ProxyError::Foreign(SOCKS5));
    }
    match (stream.read_u8().await?, &proxy.login) {
        (NO_LOGIN, _) => {}
        (PASSWORD, Some((user, password))) => log_in(stream, user, password).await?,
        (_, None) => return Err(ProxyError::Login("it wants a login".to_owned())),
        (_, Some(_)) => {
            return Err(ProxyError::LoginMethod("it takes no user name with a password".to_owned()));
        }
    }
    let host = match to.ip() {
        Some(IpAddr::V4(address)) => [&[1][..], &address.octets()].concat(),
        Some(IpAddr::V6(address)) => [&[4][..], &address.octets()].concat(),
        None => [&[3][..], &with_length(to.host.as_bytes())?].concat(),
    };
    send(stream, &[&[5, 1, 0][..], &host, &to.port.to_be_bytes()].concat()).await?;
    if stream.read_u8().await? != 5 {
        return Err(ProxyError::Foreign(SOCKS5));
    }
    let code = stream.read_u8().await?;
    if code != 0 {
        return Err(of_code(code));
    }
    let _reserved = stream.read_u8().await?;
    // The proxy's own address on the other side, and its port.
    let length = match stream.read_u8().await? {
        1 => 4,
        3 => usize::from(stream.read_u8().await?),
        4 => 16,
        _ => return Err(ProxyError::Foreign(SOCKS5)),
    };
    stream.read_exact(&mut vec![0; length + 2]).await?;
    Ok(())
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    user: &[u8],
    password: &[u8],
) -> Result<(), ProxyError> {
    send(stream, &[&[1][..], &with_length(user)?, &with_length(password)?].concat()).await?;
    let _version = stream.read_u8().await?;
    match stream.read_u8().await? {
        0 => Ok(()),
        _ => Err(ProxyError::Login("it refuses the user name or the password".to_owned())),
    }
}

/// Some bytes behind their number.
fn with_length(bytes: &[u8]) -> Result<Vec<u8>, ProxyError> {
    let length = u8::try_from(bytes.len());
    let length =
        length.map_err(|_| ProxyError::Unfit("SOCKS5 takes names and passwords of 255 bytes at most"))?;
    Ok([&[length], bytes].concat())
}

/// The error for an answer of SOCKS 5.
fn of_code(code: u8) -> ProxyError {
    let unreachable = |text: &str| ProxyError::Unreachable(text.to_owned());
    match code {
        2 => ProxyError::Forbidden("its rules do not allow the connection".to_owned()),
        3 => unreachable("its network does not lead to the host"),
        4 => unreachable("it does not reach the host"),
        5 => unreachable("the host refuses its connection"),
        6 => unreachable("it gets no answer from the host"),
        1 => ProxyError::Unreachable("it failed to connect to the host".to_owned()),
        8 => ProxyError::Unfit("it does not take this kind of address"),
        code => ProxyError::Refused(format!("it answered with the error {code}")),
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::proxies::Proxies;

    fn proxy(text: &str) -> Proxy {
        Proxies::of(|name| (name == "ALL_PROXY").then(|| text.to_owned())).to(true, "h", 1).unwrap().unwrap()
    }

    /// Asks a proxy that gives these answers whatever it hears. Returns the result, what the proxy
    /// heard, and what is left of its answers.
    async fn asked(text: &str, host: &str, answers: &[u8]) -> (Result<(), ProxyError>, Vec<u8>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(100_000);
        far.write_all(answers).await.unwrap();
        let to = Destination { host, port: 443, address: None };
        let result = ask(&mut near, &proxy(text), to).await;
        let (mut heard, mut left) = (Vec::new(), Vec::new());
        near.shutdown().await.unwrap();
        far.read_to_end(&mut heard).await.unwrap();
        drop(far);
        near.read_to_end(&mut left).await.unwrap();
        (result, heard, left)
    }

    #[tokio::test]
    async fn each_protocol_asks_for_the_host_and_reads_no_byte_too_much() {
        let granted = &b"\x05\0\0\x01\x7f\0\0\x01\0\x50tail"[..];
        for (text, host, answers, request) in [
            (
                "socks5h://p",
                "h.io",
                [b"\x05\0", granted].concat(),
                b"\x05\x01\0\x05\x01\0\x03\x04h.io\x01\xbb".to_vec(),
            ),
            ("socks5://p", "::1", [b"\x05\0", granted].concat(), {
                [b"\x05\x01\0\x05\x01\0\x04", &[0; 15][..], b"\x01\x01\xbb"].concat()
            }),
            (
                "socks5://me:pw@p",
                "10.0.0.1",
                b"\x05\x02\x01\0\x05\0\0\x03\x02ab\0\x50tail".to_vec(),
                b"\x05\x02\x02\0\x01\x02me\x02pw\x05\x01\0\x01\x0a\0\0\x01\x01\xbb".to_vec(),
            ),
            (
                "socks4a://me@p",
                "h.io",
                b"\0\x5a\0\0\0\0\0\0tail".to_vec(),
                b"\x04\x01\x01\xbb\0\0\0\x01me\0h.io\0".to_vec(),
            ),
            (
                "socks4://p",
                "10.0.0.1",
                b"\0\x5a\0\0\0\0\0\0tail".to_vec(),
                b"\x04\x01\x01\xbb\x0a\0\0\x01\0".to_vec(),
            ),
        ] {
            let (result, heard, left) = asked(text, host, &answers).await;
            result.unwrap();
            assert_eq!(heard.escape_ascii().to_string(), request.escape_ascii().to_string(), "{text}");
            assert_eq!(left, b"tail", "{text}");
        }
        let answer = b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\ntail";
        let (result, heard, left) = asked("http://me:p%40@p", "::1", answer).await;
        result.unwrap();
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.starts_with("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n"), "{heard}");
        assert!(heard.ends_with("\r\nProxy-Authorization: Basic bWU6cEA=\r\n\r\n"), "{heard}");
        assert_eq!(left, b"tail");
        let (_, heard, _) = asked("http://p", "h", answer).await;
        assert!(!String::from_utf8(heard).unwrap().contains("Authorization"));
    }

    #[tokio::test]
    async fn each_refusal_has_its_text() {
        let login = "http://me:secret@p";
        for (text, answer, told) in [
            (login, &b"HTTP/1.1 407 x\r\n\r\n"[..], "it answered 407 Proxy Authentication Required"),
            (
                login,
                b"HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM abc\r\n\r\n",
                "it answered 407 Proxy Authentication Required, and takes Negotiate, NTLM only",
            ),
            (login, b"HTTP/1.1 403 x\r\n\r\n", "it answered 403 Forbidden"),
            (login, b"HTTP/1.1 502 x\n\n", "it answered 502 Bad Gateway"),
            (login, b"HTTP/1.1 799 x\r\n\r\n", "it answered 799 (an unknown status)"),
            (login, b"HTTP/1.1 OK\r\n\r\n", "it does not answer as an HTTP proxy does"),
            (login, b"SSH-2.0-x\r\n", "it does not answer as an HTTP proxy does"),
            (login, b"\x05", "it does not answer as an HTTP proxy does"),
            (login, b"HTTP/1.1 200 OK\r\n", "it closed the connection"),
            ("socks5://p", b"HTTP/1.1 400 x\r\n\r\n", "it does not answer as a SOCKS5 proxy does"),
            ("socks5://p", b"\x05\xff", "it wants a login"),
            ("socks5://p", b"\x05\x02", "it wants a login"),
            ("socks5://me:secret@p", b"\x05\xff", "it takes no user name with a password"),
            ("socks5://me:secret@p", b"\x05\x02\x01\x01", "it refuses the user name or the password"),
            ("socks5h://p", b"\x05\0\x05\x02\0\x01", "its rules do not allow the connection"),
            ("socks5h://p", b"\x05\0\x05\x05\0\x01", "the host refuses its connection"),
            ("socks5h://p", b"\x05\0\x05\x63\0\x01", "it answered with the error 99"),
            ("socks4a://p", b"\0\x5b", "it refuses the connection, or does not reach the host"),
            ("socks4a://p", b"\0\x5d", "it refuses the user name"),
            ("socks4a://p", b"\x05\0", "it does not answer as a SOCKS4 proxy does"),
        ] {
            let (near, mut far) = tokio::io::duplex(1000);
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
            let mut near = near;
            let to = Destination { host: "h.io", port: 443, address: None };
            let error = ask(&mut near, &proxy(text), to).await.unwrap_err();
            assert_eq!(error.to_string(), told, "{text} {}", answer.escape_ascii());
            let shown = format!("{error:?} {}", error.hint("ALL_PROXY", "h.io"));
            assert!(!shown.contains("secret"), "{shown}");
        }
        let long = format!("socks5://{}@p", "u".repeat(256));
        let (result, ..) = asked(&long, "h", b"\x05\x02").await;
        assert!(matches!(result, Err(ProxyError::Unfit(_))));
    }
}
