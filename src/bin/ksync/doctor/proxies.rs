//! The proxy settings in the environment.

/// The variables that name proxies, and the one that names exceptions. The name in lower case
/// counts as well.
const PROXIES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];
const EXCEPTIONS: &str = "NO_PROXY";

/// The proxy settings in force, without passwords.
pub(super) fn in_force(variable: impl Fn(&str) -> Option<String>) -> String {
    let set = |name: &str| {
        let named =
            |name: String| variable(&name).filter(|value| !value.is_empty()).map(|value| (name, value));
        named(name.to_owned()).or_else(|| named(name.to_lowercase()))
    };
    let proxies: Vec<_> = PROXIES.iter().filter_map(|name| set(name)).collect();
    if proxies.is_empty() {
        return "none".to_owned();
    }
    let mut told: Vec<_> = proxies.iter().map(|(name, url)| format!("{name}={}", public(url))).collect();
    told.extend(set(EXCEPTIONS).map(|(name, value)| format!("{name}={value}")));
    ksync::tree::path::escape(told.join(", ").as_bytes()).into_owned()
}

/// A proxy's URL without the user name and the password.
fn public(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let user = if host.len() < authority.len() { "***@" } else { "" };
    format!("{scheme}://{user}{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_named_without_their_passwords() {
        let told = |set: &[(&str, &str)]| {
            in_force(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(told(&[]), "none");
        assert_eq!(told(&[("NO_PROXY", "*"), ("HTTPS_PROXY", "")]), "none");
        let set = [
            ("https_proxy", "http://me:secret@p:3128/x"),
            ("ALL_PROXY", "socks5://s:1080"),
            ("no_proxy", "a,b"),
        ];
        assert_eq!(told(&set), "https_proxy=http://***@p:3128, ALL_PROXY=socks5://s:1080, no_proxy=a,b");
        assert_eq!(told(&[("HTTP_PROXY", "p:3128")]), "HTTP_PROXY=http://p:3128");
    }
}
