//! The grammar of endpoints.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Endpoint, EndpointErrorKind};

/// Parses an endpoint.
pub(super) fn parse(text: &OsStr) -> Result<Endpoint, EndpointErrorKind> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        Err(EndpointErrorKind::Empty)
    } else if bytes.contains(&0) {
        Err(EndpointErrorKind::Nul)
    } else if let Some((scheme, rest)) = split_scheme(bytes) {
        parse_url(scheme, rest)
    } else {
        parse_short(text)
    }
}

/// The part before the path of such a text, if the path is missing.
pub(super) fn without_path(text: &OsStr) -> Option<&[u8]> {
    let bytes = text.as_bytes();
    if let Some((_, rest)) = split_scheme(bytes) {
        let start = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let authority = rest.strip_suffix(b"/").unwrap_or(rest);
        return (!authority.contains(&b'/')).then_some(start);
    }
    let is_remote = parse_short(text).is_ok_and(|endpoint| endpoint.is_remote());
    (is_remote && bytes.ends_with(b":")).then_some(bytes)
}

/// `scheme://rest`, if the text has that form.
fn split_scheme(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let (scheme, rest) = bytes.split_at_checked(colon)?;
    let rest = rest.strip_prefix(b"://")?;
    let scheme = std::str::from_utf8(scheme).ok()?;
    let is_scheme = scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    // `x://y` with one letter is a drive, and `sandbox://tmp` has a path with two slashes.
    let is_word = matches!(scheme, "sandbox" | "session");
    (scheme.len() > 1 && is_scheme && !is_word).then_some((scheme, rest))
}

fn parse_url(scheme: &str, rest: &[u8]) -> Result<Endpoint, EndpointErrorKind> {
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "ssh" | "ws" | "wss" => {}
        "rsync" => return Err(EndpointErrorKind::Daemon),
        _ => return Err(EndpointErrorKind::Scheme),
    }
    let slash = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(slash).ok_or(EndpointErrorKind::NoHost)?;
    let (user, host_and_port) = split_user(authority)?;
    let (host, port) = split_port(host_and_port)?;
    let host = checked_host(host)?;
    // As in git's URLs: `/~/x` is below the home, `/x` is absolute.
    let path = match path.strip_prefix(b"/~") {
        Some(home) if home.is_empty() || home.starts_with(b"/") => {
            let below = home.iter().position(|&byte| byte != b'/').and_then(|start| home.get(start..));
            remote_path(below.unwrap_or_default())?
        }
        Some(_) => return Err(EndpointErrorKind::OtherHome),
        None => remote_path(path)?,
    };
    if scheme == "ssh" {
        return Ok(Endpoint::Ssh { user, host, port, path });
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    Ok(Endpoint::WebSocket { url: format!("{scheme}://{host}{port}"), user, path })
}

/// Parses an endpoint without a scheme.
fn parse_short(text: &OsStr) -> Result<Endpoint, EndpointErrorKind> {
    let bytes = text.as_bytes();
    let local = || Ok(Endpoint::Local(PathBuf::from(text)));
    // The colons of a bracketed address do not end the host.
    let brackets = bracket_end(bytes);
    let from = brackets.unwrap_or(0);
    let Some(colon) = bytes.iter().skip(from).position(|&byte| byte == b':').map(|at| at + from) else {
        return local();
    };
    let (Some(authority), Some(path)) = (bytes.get(..colon), bytes.get(colon + 1..)) else { return local() };
    if authority.contains(&b'/') {
        return local();
    }
    match authority {
        // `::1:/x` and `user@::1:/x`: an address without its brackets.
        [] | [.., b'@'] if path.starts_with(b":") => Err(EndpointErrorKind::Host),
        [] => Ok(Endpoint::Setup { path: remote_path(path)? }),
        [letter] if letter.is_ascii_alphabetic() => local(),
        _ if path.starts_with(b":") => Err(EndpointErrorKind::Daemon),
        b"sandbox" => Ok(Endpoint::Sandbox { path: remote_path(path)? }),
        _ => {
            let (user, host) = split_user(authority)?;
            if user.is_none() && brackets.is_none() {
                return Ok(Endpoint::Session { name: session_name(host)?, path: remote_path(path)? });
            }
            let (host, _) = split_port(host)?;
            Ok(Endpoint::Ssh { user, host: checked_host(host)?, port: None, path: remote_path(path)? })
        }
    }
}

/// The end of a bracketed address at the beginning, or after `user@`.
fn bracket_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.iter().position(|&byte| byte == b'/').unwrap_or(bytes.len());
    let authority = bytes.get(..end)?;
    let open = authority.iter().position(|&byte| byte == b'[')?;
    let starts_host = open == 0 || authority.get(open - 1) == Some(&b'@');
    let close = authority.iter().position(|&byte| byte == b']')?;
    // The colon must follow at once: `[draft]` and `[x]y:z` are ordinary names.
    (starts_host && authority.get(close + 1) == Some(&b':')).then_some(close)
}

/// `user@rest`. The last `@` counts, as with ssh, since a user name may contain one.
fn split_user(bytes: &[u8]) -> Result<(Option<String>, &[u8]), EndpointErrorKind> {
    let Some(at) = bytes.iter().rposition(|&byte| byte == b'@') else { return Ok((None, bytes)) };
    let (Some(user), Some(rest)) = (bytes.get(..at), bytes.get(at + 1..)) else {
        return Err(EndpointErrorKind::User);
    };
    let user = std::str::from_utf8(user).map_err(|_| EndpointErrorKind::User)?;
    if user.is_empty() || user.starts_with('-') || !user.chars().all(is_plain) {
        return Err(EndpointErrorKind::User);
    }
    Ok((Some(user.to_owned()), rest))
}

/// `host:port`, `[address]:port`, or either without the port. The brackets are removed.
fn split_port(bytes: &[u8]) -> Result<(&[u8], Option<u16>), EndpointErrorKind> {
    if let Some(rest) = bytes.strip_prefix(b"[") {
        let close = rest.iter().position(|&byte| byte == b']').ok_or(EndpointErrorKind::Host)?;
        let (host, after) = rest.split_at_checked(close).ok_or(EndpointErrorKind::Host)?;
        if !host.contains(&b':') {
            return Err(if host.is_empty() { EndpointErrorKind::NoHost } else { EndpointErrorKind::Host });
        }
        return match after {
            b"]" => Ok((host, None)),
            [b']', b':', port @ ..] => Ok((host, Some(parse_port(port)?))),
            _ => Err(EndpointErrorKind::Host),
        };
    }
    match bytes.iter().position(|&byte| byte == b':') {
        Some(colon) => match (bytes.get(..colon), bytes.get(colon + 1..)) {
            (Some(_), Some(port)) if port.contains(&b':') => Err(EndpointErrorKind::Host),
            (Some(host), Some(port)) => Ok((host, Some(parse_port(port)?))),
            _ => Err(EndpointErrorKind::Host),
        },
        None => Ok((bytes, None)),
    }
}

fn parse_port(bytes: &[u8]) -> Result<u16, EndpointErrorKind> {
    // `parse` would accept a sign.
    if !bytes.iter().all(u8::is_ascii_digit) {
        return Err(EndpointErrorKind::Port);
    }
    let port = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    port.filter(|&port| port != 0).ok_or(EndpointErrorKind::Port)
}

fn checked_host(bytes: &[u8]) -> Result<String, EndpointErrorKind> {
    if bytes.is_empty() {
        return Err(EndpointErrorKind::NoHost);
    }
    let host = std::str::from_utf8(bytes).map_err(|_| EndpointErrorKind::Host)?;
    let is_fine = !host.starts_with('-') && host.chars().all(|c| is_plain(c) && !"@[]?#\\".contains(c));
    if is_fine { Ok(host.to_owned()) } else { Err(EndpointErrorKind::Host) }
}

/// The name of a session, or of a host in the SSH configuration. A session may have any name; the
/// characters of a bracketed address are left to it.
fn session_name(bytes: &[u8]) -> Result<String, EndpointErrorKind> {
    if bytes.is_empty() {
        return Err(EndpointErrorKind::NoHost);
    }
    let name = std::str::from_utf8(bytes).map_err(|_| EndpointErrorKind::Host)?;
    let is_fine = |c| c == ' ' || (is_plain(c) && !"@[]".contains(c));
    let is_fine = !name.starts_with(['-', ' ']) && !name.ends_with(' ') && name.chars().all(is_fine);
    if is_fine { Ok(name.to_owned()) } else { Err(EndpointErrorKind::Host) }
}

/// True for characters that are neither control characters nor whitespace.
fn is_plain(character: char) -> bool {
    !character.is_control() && !character.is_whitespace()
}

/// The endpoint of `path` in the session `name`, whatever characters the name has.
pub(super) fn in_session(name: &str, path: &[u8]) -> Result<Endpoint, EndpointErrorKind> {
    if path.contains(&0) {
        return Err(EndpointErrorKind::Nul);
    }
    Ok(Endpoint::Session { name: name.to_owned(), path: remote_path(path)? })
}

/// Resolves a path on the other side. No shell expands it there, so `~` is resolved here: a
/// relative path is below the home.
fn remote_path(path: &[u8]) -> Result<Vec<u8>, EndpointErrorKind> {
    let path = match path {
        [b'~'] => b"",
        [b'~', b'/', rest @ ..] => rest,
        [b'~', ..] => return Err(EndpointErrorKind::OtherHome),
        _ => path,
    };
    Ok(if path.is_empty() { b".".to_vec() } else { path.to_vec() })
}
