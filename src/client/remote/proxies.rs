//! Proxy settings: the environment variables that curl knows, and the proxy that they name for a
//! host. The platform's API, bridges and CDP all follow them; SSH over plain TCP does not, as with
//! ssh.

use std::fmt;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;

use crate::remote::error::RemoteError;
use crate::tree::path::escape;

/// Variables that name a proxy for hosts with TLS, for those without, and for both. The first
/// non-empty one counts.
const FOR_TLS: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];
const FOR_PLAIN: [&str; 2] = ["http_proxy", "HTTP_PROXY"];
const FOR_ALL: [&str; 2] = ["all_proxy", "ALL_PROXY"];

/// Variables that exempt hosts.
const EXEMPT: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Variable that a CGI program has. There a client sets `HTTP_PROXY` with the header `Proxy`.
const CGI: &str = "REQUEST_METHOD";

/// The proxy settings. Without TLS are `ws` and `http`, with TLS `wss` and `https`.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    tls: Option<Setting>,
    plain: Option<Setting>,
    exempt: Vec<Exemption>,
    /// The setting that `exempt` was read from.
    exempting: Option<Setting>,
}

/// A variable and its text, which may hold a password.
#[derive(Clone)]
struct Setting {
    variable: &'static str,
    text: String,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.variable)
    }
}

impl Proxies {
    /// No proxy for any host.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The settings of this process's environment.
    #[must_use]
    pub fn of_environment() -> Self {
        Self::of(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
    }

    /// The settings of these variables.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let setting = |names: [&'static str; 2]| {
            let mut names = names.into_iter();
            names.find_map(|variable| Some(Setting { variable, text: value(variable)? }))
        };
        let is_cgi = variable(CGI).is_some();
        let plain = setting(FOR_PLAIN).filter(|setting| !(is_cgi && setting.variable == "HTTP_PROXY"));
        let exempting = setting(EXEMPT);
        Self {
            tls: setting(FOR_TLS).or_else(|| setting(FOR_ALL)),
            plain: plain.or_else(|| setting(FOR_ALL)),
            exempt: exempting.as_ref().map(|setting| Exemption::list(&setting.text)).unwrap_or_default(),
            exempting,
        }
    }

    /// The settings for the user, without logins: `none`, or the proxies and the exempt hosts.
    ///
    /// # Errors
    /// A variable names no proxy that ksync can use.
    pub fn in_force(&self) -> Result<String, RemoteError> {
        let mut told = Vec::new();
        for (what, setting) in [("wss and https", &self.tls), ("ws and http", &self.plain)] {
            if let Some(setting) = setting {
                told.push(format!("{what} through {}", usable(setting)?));
            }
        }
        if told.is_empty() {
            return Ok("none".to_owned());
        }
        let exempting = self.exempting.as_ref();
        told.extend(
            exempting
                .map(|Setting { variable, text }| format!("except {} ({variable})", escape(text.as_bytes()))),
        );
        Ok(told.join(", "))
    }

    /// The proxy to this host; `None` for a direct connection. An exempt host needs no valid
    /// settings.
    ///
    /// # Errors
    /// The variable names no proxy that ksync can use.
    pub fn to(&self, is_encrypted: bool, host: &str, port: u16) -> Result<Option<Proxy>, RemoteError> {
        let Some(setting) = (if is_encrypted { &self.tls } else { &self.plain }) else { return Ok(None) };
        if self.exempt.iter().any(|exemption| exemption.covers(host, port)) {
            return Ok(None);
        }
        usable(setting).map(Some)
    }
}

fn usable(setting: &Setting) -> Result<Proxy, RemoteError> {
    let variable = setting.variable;
    Proxy::parse(setting).map_err(|reason| RemoteError::ProxySetting { variable, reason })
}

/// The protocol of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// `CONNECT` of HTTP.
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS 4: this side resolves the host's name.
    Socks4,
    /// SOCKS 4 whose proxy resolves the host's name.
    Socks4a,
    /// SOCKS 5: this side resolves the host's name.
    Socks5,
    /// SOCKS 5 whose proxy resolves the host's name.
    Socks5h,
}

impl Scheme {
    /// `socks` is version 5, as desktop settings mean it.
    const NAMES: [(&str, Self); 7] = [
        ("http", Self::Http),
        ("https", Self::Https),
        ("socks4", Self::Socks4),
        ("socks4a", Self::Socks4a),
        ("socks5", Self::Socks5),
        ("socks5h", Self::Socks5h),
        ("socks", Self::Socks5),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, scheme)| *scheme == self).map_or("", |(name, _)| name)
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks4 | Self::Socks4a | Self::Socks5 | Self::Socks5h => 1080,
        }
    }
}

/// A proxy. Neither `Display` nor `Debug` shows its login.
#[derive(Clone)]
pub struct Proxy {
    pub(crate) scheme: Scheme,
    /// Its host, without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// User name and password, decoded.
    pub(crate) login: Option<(Vec<u8>, Vec<u8>)>,
    variable: &'static str,
}

impl Proxy {
    /// Parses `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT]`, or tells the defect. No reason quotes
    /// what may be a password.
    fn parse(setting: &Setting) -> Result<Self, String> {
        let text = setting.text.as_str();
        let (scheme, rest) = match text.split_once("://") {
            Some((name, rest)) => (scheme(name)?, rest),
            None => (Scheme::Http, text),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (login, address) = match authority.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, authority),
        };
        let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => {
                (host, port.strip_prefix(':').or(Some(port).filter(|port| !port.is_empty())))
            }
            None => address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
        };
        let port = match port.filter(|port| !port.is_empty()) {
            Some(port) => port.parse().map_err(|_| "its port is not a number below 65536")?,
            None => scheme.default_port(),
        };
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        if !host.chars().all(|c| c.is_alphanumeric() || "-._:%".contains(c)) {
            return Err("its host cannot be that of a machine".to_owned());
        }
        let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (decoded(user), decoded(password))
        });
        Ok(Self { scheme, host: host.to_owned(), port, login, variable: setting.variable })
    }

    /// The variable that names the proxy.
    #[must_use]
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// The proxy's host and port, as in a URL.
    pub(crate) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// Host and port, as in a URL.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn scheme(name: &str) -> Result<Scheme, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if !name.chars().all(is_name) {
        return Err("it is not a URL".to_owned());
    }
    let known = Scheme::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    known.map(|(_, scheme)| *scheme).ok_or_else(|| {
        format!("its scheme is {name}, and ksync knows http, https, socks4, socks4a, socks5 and socks5h")
    })
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.authority();
        write!(f, "{}://{} ({})", self.scheme.name(), escape(address.as_bytes()), self.variable)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An entry of `NO_PROXY`: hosts, and a port if it names one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exemption {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    /// All hosts.
    All,
    /// The addresses that begin with these bits.
    Network(IpAddr, u32),
    /// This host and all below it.
    Domain(String),
}

impl Exemption {
    /// Parses a list. Commas and spaces separate its entries; an invalid one exempts nothing.
    fn list(text: &str) -> Vec<Self> {
        text.split(|c: char| c == ',' || c.is_whitespace()).filter_map(Self::parse).collect()
    }

    fn parse(entry: &str) -> Option<Self> {
        if let Some(hosts) = Hosts::numeric(entry) {
            return Some(Self { hosts, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let hosts = Hosts::numeric(host).or_else(|| Hosts::named(host))?;
        Some(Self { hosts, port })
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match (&self.hosts, host.parse::<IpAddr>()) {
            (Hosts::All, _) => true,
            (Hosts::Network(network, bits), Ok(address)) => is_in(address, *network, *bits),
            (Hosts::Domain(domain), Err(_)) => {
                host.strip_suffix(domain).is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            _ => false,
        }
    }
}

impl Hosts {
    fn numeric(text: &str) -> Option<Self> {
        let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address.parse().ok()?, Some(bits.parse().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let bits_max = if matches!(address, IpAddr::V4(_)) { 32 } else { 128 };
        let bits = bits.unwrap_or(bits_max);
        (bits <= bits_max).then_some(Self::Network(address, bits))
    }

    fn named(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        let name = text.strip_prefix('*').unwrap_or(text);
        let name = name.trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
        (!name.is_empty()).then_some(Self::Domain(name))
    }
}

/// Reports if the first `bits` of both addresses are the same.
fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differing = address.to_bits() ^ network.to_bits();
            differing.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Proxies::of(|name| value(name).map(|(_, text)| (*text).to_owned()))
    }

    /// The proxy to a host with TLS, and the one without.
    fn both(variables: &[(&str, &str)]) -> [String; 2] {
        [true, false].map(|is_encrypted| {
            let proxy = proxies(variables).to(is_encrypted, "vm.example", 2222).unwrap();
            proxy.map(|proxy| proxy.to_string()).unwrap_or_default()
        })
    }

    #[test]
    fn variables_count_in_the_order_of_curl() {
        let (a, b) = ("http://a:1", "http://b:2");
        for (variables, tls, plain) in [
            (&[][..], "", ""),
            (&[("HTTPS_PROXY", a)], "http://a:1 (HTTPS_PROXY)", ""),
            (&[("https_proxy", a), ("HTTPS_PROXY", b)], "http://a:1 (https_proxy)", ""),
            (&[("https_proxy", " "), ("HTTPS_PROXY", b)], "http://b:2 (HTTPS_PROXY)", ""),
            (&[("HTTP_PROXY", a)], "", "http://a:1 (HTTP_PROXY)"),
            (&[("HTTP_PROXY", a), ("REQUEST_METHOD", "GET")], "", ""),
            (&[("http_proxy", a), ("REQUEST_METHOD", "")], "", "http://a:1 (http_proxy)"),
            (&[("ALL_PROXY", a)], "http://a:1 (ALL_PROXY)", "http://a:1 (ALL_PROXY)"),
            (
                &[("ALL_PROXY", a), ("all_proxy", b), ("http_proxy", a)],
                "http://b:2 (all_proxy)",
                "http://a:1 (http_proxy)",
            ),
            (&[("ALL_PROXY", a), ("NO_PROXY", "vm.example")], "", ""),
            (&[("ALL_PROXY", "x://y"), ("no_proxy", "*")], "", ""),
        ] {
            assert_eq!(both(variables), [tls, plain], "{variables:?}");
        }
    }

    #[test]
    fn a_proxy_has_scheme_host_port_and_login() {
        for (text, shown, login) in [
            ("proxy", "http://proxy:80", None),
            ("proxy:3128/", "http://proxy:3128", None),
            ("HTTP://proxy", "http://proxy:80", None),
            ("https://proxy", "https://proxy:443", None),
            ("socks5h://[::1]", "socks5h://[::1]:1080", None),
            ("socks://[fe80::1]:9", "socks5://[fe80::1]:9", None),
            ("http://me@proxy:1", "http://proxy:1", Some(("me", ""))),
            ("http://me:pw@proxy:1", "http://proxy:1", Some(("me", "pw"))),
            ("me:p%40ss%3A%2525@proxy:1", "http://proxy:1", Some(("me", "p@ss:%25"))),
            ("http://me:p@ss@proxy:1?x#y", "http://proxy:1", Some(("me", "p@ss"))),
        ] {
            let proxy = proxies(&[("ALL_PROXY", text)]).to(true, "h", 1).unwrap().unwrap();
            assert_eq!(format!("{proxy}"), format!("{shown} (ALL_PROXY)"), "{text}");
            assert_eq!(format!("{proxy:?}"), format!("{proxy}"));
            let login =
                login.map(|(user, password)| (user.as_bytes().to_vec(), password.as_bytes().to_vec()));
            assert_eq!(proxy.login, login, "{text}");
        }
    }

    #[test]
    fn a_setting_that_is_no_proxy_is_refused_without_its_password() {
        for (text, reason) in [
            ("socks6://me:secret@proxy", "its scheme is socks6, and ksync knows http, https, socks4"),
            ("me:secret://proxy", "it is not a URL"),
            ("http://me:secret@", "it names no host"),
            ("http://", "it names no host"),
            ("http://me:secret@proxy:x", "its port is not a number"),
            ("http://me:secret@proxy:65536", "its port is not a number"),
            ("http://me:secret@a b", "its host cannot be that of a machine"),
            ("http://me:secret@[::1]x", "its port is not a number"),
        ] {
            let proxies = proxies(&[("https_proxy", text)]);
            let error = proxies.to(true, "h", 1).unwrap_err();
            let told = error.to_string();
            assert!(told.starts_with(&format!("could not use the proxy in https_proxy: {reason}")), "{told}");
            assert!(!format!("{error:?} {proxies:?} {}", error.hint()).contains("secret"), "{error:?}");
            assert!(proxies.to(false, "h", 1).unwrap().is_none(), "nothing asks for it");
        }
    }

    #[test]
    fn no_proxy_exempts_names_networks_and_ports() {
        for (list, host, is_exempt) in [
            ("*", "vm.example:2222", true),
            ("a, *", "10.0.0.1:1", true),
            ("example", "vm.example:2222", true),
            (".example", "vm.example:2222", true),
            (".example", "example:2222", true),
            ("*.example", "vm.example:2222", true),
            ("Example.", "VM.EXAMPLE.:2222", true),
            ("a b\tvm.example", "vm.example:2222", true),
            ("vm.example:2222", "vm.example:2222", true),
            ("vm.example:443", "vm.example:2222", false),
            ("ample", "vm.example:2222", false),
            ("vm.example", "example:2222", false),
            ("a.vm.example", "vm.example:2222", false),
            ("127.0.0.1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:2", "127.0.0.1:1", false),
            ("127.0.0.0/8", "127.9.8.7:1", true),
            ("127.0.0.0/9", "127.200.0.1:1", false),
            ("10.0.0.0/0", "192.168.0.1:1", true),
            ("10.0.0.0/33", "10.0.0.1:1", false),
            ("10.0.0.0/x", "10.0.0.1:1", false),
            ("0.0.1", "127.0.0.1:1", false),
            ("localhost", "127.0.0.1:1", false),
            ("127.0.0.1", "localhost:1", false),
            ("::1", "::1:1", true),
            ("[::1]", "::1:1", true),
            ("[::1]:1", "::1:1", true),
            ("[::1]:2", "::1:1", false),
            ("fe80::/10", "fe80::1:2:3:1", true),
            ("fe80::/10", "fec0::1:1", false),
            ("::/0", "fe80::1:1", true),
            ("::/0", "10.0.0.1:1", false),
            (",, ,:", "vm.example:2222", false),
        ] {
            let (name, port) = host.rsplit_once(':').unwrap();
            let proxies = proxies(&[("ALL_PROXY", "proxy"), ("NO_PROXY", list)]);
            let proxy = proxies.to(true, name, port.parse().unwrap()).unwrap();
            assert_eq!(proxy.is_none(), is_exempt, "{list:?} and {host}");
        }
    }
}
