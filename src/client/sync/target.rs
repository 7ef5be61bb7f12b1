//! From an endpoint to a connection target: host, transport, user, and trusted host keys.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kernel::{CURRENT, SessionStore, bridge_url};
use crate::private;
use crate::remote::ssh_config::{self, ConfigError, Query};
use crate::remote::{HostKeys, Keys, Proxies, Target, Transport};
use crate::sync::endpoint::{Endpoint, EndpointError, EndpointErrorKind};
use crate::sync::error::SyncError;
use crate::sync::job::ConnectOptions;
use crate::tree::path::escape;

/// Minimum silence after which the layers below the exchange give a connection up. On a slow link
/// one packet takes several seconds. A silent agent is detected by its missing heartbeats.
const SILENCE_MIN: Duration = Duration::from_secs(30);

/// The port of OpenSSH.
const SSH_PORT: u16 = 22;

/// Decides what `NAME:/path` means: a session that was used from here, else a host that the SSH
/// configuration names, else a session that only the platform knows.
#[must_use]
pub fn resolve(endpoint: Endpoint, connect_options: &ConnectOptions) -> Endpoint {
    resolve_by(endpoint, connect_options, is_host)
}

/// The same where the user asks for ssh (`-e ssh`): `NAME:/path` is on an SSH host then, unless
/// NAME is a session that was used from here.
#[must_use]
pub fn resolve_for_ssh(endpoint: Endpoint, connect_options: &ConnectOptions) -> Endpoint {
    resolve_by(endpoint, connect_options, |_| true)
}

fn resolve_by(
    endpoint: Endpoint,
    connect_options: &ConnectOptions,
    is_host: impl Fn(&str) -> bool,
) -> Endpoint {
    match endpoint {
        Endpoint::Session { name, path } if !is_session(&name, connect_options) && is_host(&name) => {
            Endpoint::Ssh { user: None, host: name, port: None, path }
        }
        endpoint => endpoint,
    }
}

/// Parses an endpoint. The name of a session that was used from here, or of the current one,
/// `session`, may have any characters: `a b/c:/tmp` is in the session `a b/c` then.
///
/// # Errors
/// The reason why the text is no endpoint.
pub fn parse(text: &OsStr, session: Option<&str>) -> Result<Endpoint, EndpointError> {
    let parsed = Endpoint::parse(text);
    let may_be_odd = match &parsed {
        // A path with a clear beginning is one.
        Ok(Endpoint::Local(_)) => !text.as_bytes().starts_with(b"/") && !text.as_bytes().starts_with(b"."),
        Ok(Endpoint::Session { path, .. }) => path.contains(&b':'),
        Ok(_) => false,
        Err(error) => matches!(error.kind, EndpointErrorKind::Host | EndpointErrorKind::Daemon),
    };
    if !may_be_odd || !text.as_bytes().contains(&b':') {
        return parsed;
    }
    let stored = state_dir().map(|state| SessionStore::new(state.join("sessions")).all()).unwrap_or_default();
    let mut names: Vec<String> = stored.into_iter().filter_map(|stored| stored.name).collect();
    names.extend(session.map(str::to_owned));
    // A single letter is a drive, and of two names the longer one is meant.
    names.retain(|name| name.len() > 1);
    names.sort_unstable_by_key(|name| std::cmp::Reverse(name.len()));
    names.iter().find_map(|name| Endpoint::in_session(text, name)).unwrap_or(parsed)
}

/// True if this name was used for a session from here, or is the current one's.
fn is_session(name: &str, connect_options: &ConnectOptions) -> bool {
    let stores =
        || state_dir().is_ok_and(|state| SessionStore::new(state.join("sessions")).find(name).is_some());
    name == CURRENT || connect_options.session.as_deref() == Some(name) || stores()
}

fn is_host(name: &str) -> bool {
    home("settings").is_ok_and(|home| ssh_config::names(name, &home, &ssh_config::files(&home)))
}

/// Machines that a user may mean, as they are written before a path: sessions that were used from
/// here, and hosts of the SSH configuration.
#[must_use]
pub fn machines() -> Vec<String> {
    let stored = state_dir().map(|state| SessionStore::new(state.join("sessions")).all()).unwrap_or_default();
    let hosts = home("settings").map(|home| ssh_config::hosts(&home, &ssh_config::files(&home)));
    let sessions =
        stored.iter().flat_map(|stored| [Some(&stored.session_id), stored.name.as_ref()]).flatten();
    let current = (!stored.is_empty()).then(|| CURRENT.to_owned());
    let mut machines: Vec<String> =
        sessions.cloned().chain(current).chain(hosts.unwrap_or_default()).collect();
    machines.sort_unstable();
    machines.dedup();
    machines
}

/// True if an endpoint can be reached without asking the platform, and without setting up an SSH
/// server there.
#[must_use]
pub fn is_reachable(endpoint: &Endpoint, connect_options: &ConnectOptions) -> bool {
    match endpoint {
        Endpoint::Local(_) | Endpoint::Setup { .. } => false,
        Endpoint::Session { name, .. } => is_session(name, connect_options),
        Endpoint::Sandbox { .. } | Endpoint::Ssh { .. } | Endpoint::WebSocket { .. } => true,
    }
}

/// The target of an endpoint that is neither local nor the sandbox nor a session.
pub(super) fn target(endpoint: &Endpoint, connect_options: &ConnectOptions) -> Result<Target, SyncError> {
    match endpoint {
        Endpoint::Ssh { user, host, port, .. } => ssh_target(user.as_deref(), host, *port, connect_options),
        Endpoint::WebSocket { url, user, .. } => {
            bridge_target(url.clone(), user.as_deref(), url.clone(), Vec::new(), connect_options)
        }
        Endpoint::Setup { path } => {
            let text = connect_options
                .setup
                .as_ref()
                .ok_or_else(|| SyncError::NoSetup(escape(path).into_owned()))?;
            let setup = Setup::parse(text)?;
            // A VM that was created anew under the same name is another one, with another key.
            let pinned_as = format!("{} {}", setup.session_id, setup.url);
            bridge_target(setup.url, None, pinned_as, vec![setup.key_file], connect_options)
        }
        Endpoint::Local(_) | Endpoint::Sandbox { .. } | Endpoint::Session { .. } => {
            Err(SyncError::BothRemote)
        }
    }
}

fn ssh_target(
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    connect_options: &ConnectOptions,
) -> Result<Target, SyncError> {
    let is_all_given = !connect_options.identities.is_empty() && connect_options.host_key.is_some();
    let home = match home("keys and settings") {
        // Nothing is read from there.
        Err(_) if is_all_given => PathBuf::from("/nonexistent"),
        home => home?,
    };
    let files = match &connect_options.ssh_config {
        None => ssh_config::files(&home).to_vec(),
        Some(none) if none.as_os_str().is_empty() => Vec::new(),
        Some(file) => {
            // The usual files may be missing, but not one that the user names.
            if let Err(error) = std::fs::File::open(file) {
                return Err(ConfigError::Unreadable { path: file.clone(), source: error }.into());
            }
            vec![file.clone()]
        }
    };
    let config = ssh_config::load(&Query { host, user, port, home: &home }, &files)?;
    if let Some(proxy) = config.proxy {
        return Err(SyncError::Proxy { host: host.to_owned(), proxy });
    }
    let port = config.port.unwrap_or(SSH_PORT);
    let files = config.known_hosts_files(&home);
    let host_keys = match (&connect_options.host_key, config.host_key_alias) {
        (Some(key), _) => HostKeys::Exactly(key.clone()),
        // An alias is a name without a port.
        (None, Some(host)) => HostKeys::KnownHosts { files, host, port: SSH_PORT },
        (None, None) => HostKeys::KnownHosts { files, host: config.host_name.clone(), port },
    };
    let mut target = common(connect_options, host_keys);
    let user = config.user.or_else(ssh_config::local_user).or_else(|| std::env::var("USER").ok());
    target.user = user.unwrap_or_else(|| "root".to_owned());
    if connect_options.identities.is_empty() {
        target.keys = Keys {
            files: config.identity_files.unwrap_or(target.keys.files),
            certificates: config.certificate_files,
            only_files: config.identities_only,
            ..target.keys
        };
    }
    target.keys.ssh_agent = config.ssh_agent;
    target.transport = Transport::Tcp {
        host: config.host_name,
        port,
        family: connect_options.address_family.unwrap_or(config.address_family),
        from: config.bind_address,
    };
    Ok(target)
}

/// The target of a bridge. A bridge has no name in `known_hosts`, so the key of the first
/// connection is pinned.
fn bridge_target(
    url: String,
    user: Option<&str>,
    pinned_as: String,
    identities: Vec<PathBuf>,
    connect_options: &ConnectOptions,
) -> Result<Target, SyncError> {
    let host_keys = match &connect_options.host_key {
        Some(key) => HostKeys::Exactly(key.clone()),
        None => HostKeys::PinOnFirstUse { store: state_dir()?.join("known_hosts"), endpoint: pinned_as },
    };
    let mut target = common(connect_options, host_keys);
    let (ca_cert, proxies) = (connect_options.ca_cert.clone(), Proxies::of_environment());
    target.transport = Transport::WebSocket { url, ca_cert, proxies };
    if let Some(user) = user {
        target.user = user.to_owned();
    }
    if connect_options.identities.is_empty() && !identities.is_empty() {
        target.keys = Keys::named(identities);
    }
    Ok(target)
}

/// The settings that all targets share.
pub(super) fn common(connect_options: &ConnectOptions, host_keys: HostKeys) -> Target {
    let keys = match connect_options.identities.as_slice() {
        [] => home("keys").map_or_else(|_| Keys::default(), |home| Keys::usual(&home)),
        named => Keys::named(named.to_vec()),
    };
    Target {
        transport: Transport::tcp(String::new(), SSH_PORT),
        user: "root".to_owned(),
        host_keys,
        keys,
        connect_timeout: connect_options.connect_timeout,
        silence_timeout: connect_options.timeout.max(SILENCE_MIN),
        // Forwards need a client that the fast order does not have.
        facts: state_dir().ok().filter(|_| !connect_options.forwards).map(|state| state.join("facts")),
    }
}

/// The Kernel CLI's description of a VM that it set up.
struct Setup {
    url: String,
    session_id: String,
    key_file: PathBuf,
}

impl Setup {
    fn parse(text: &[u8]) -> Result<Self, SyncError> {
        #[derive(serde::Deserialize)]
        struct Fields {
            vm_domain: Option<String>,
            session_id: Option<String>,
            ssh_key_file: Option<PathBuf>,
            proxy_command: Option<String>,
        }
        let fields: Fields =
            serde_json::from_slice(text).map_err(|error| SyncError::Setup(error.to_string()))?;
        // The command names the bridge exactly; with the domain alone, the port is the usual one.
        let words = fields.proxy_command.as_deref().unwrap_or_default().split_ascii_whitespace();
        let named = words.map(|word| word.trim_matches(['"', '\'']));
        let url = named.rev().find(|word| word.starts_with("wss://") || word.starts_with("ws://"));
        let url = match (url, fields.vm_domain) {
            (Some(url), _) => url.to_owned(),
            (None, Some(domain)) => bridge_url(&domain),
            (None, None) => return Err(SyncError::Setup("it names no VM".to_owned())),
        };
        let key_file = fields.ssh_key_file.ok_or_else(|| SyncError::Setup("it names no key".to_owned()))?;
        Ok(Self { url, session_id: fields.session_id.unwrap_or_default(), key_file })
    }
}

/// The state directory by the XDG rules, private to this user.
pub(super) fn state_dir() -> Result<PathBuf, SyncError> {
    let directory = xdg_dir("XDG_STATE_HOME", ".local/state", "known host keys")?;
    private::check(&directory).map_err(SyncError::State)?;
    Ok(directory)
}

/// The cache directory, for files that can be created again.
pub(super) fn cache_dir() -> Result<PathBuf, SyncError> {
    xdg_dir("XDG_CACHE_HOME", ".cache", "the sandbox")
}

/// The session of a setup, if it names one. It tells this VM from earlier ones of the same name.
pub(super) fn session_of(connect_options: &ConnectOptions) -> Option<String> {
    connect_options.setup.as_ref().and_then(|text| Setup::parse(text).ok()).map(|setup| setup.session_id)
}

fn xdg_dir(variable: &str, below_home: &str, what: &'static str) -> Result<PathBuf, SyncError> {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = named.map_or_else(|| home(what).map(|home| home.join(below_home)), Ok)?;
    Ok(base.join("ksync"))
}

fn home(what: &'static str) -> Result<PathBuf, SyncError> {
    std::env::home_dir().filter(|home| home != Path::new("")).ok_or(SyncError::NoHome(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_names_bridge_and_key() {
        let text = br#"{"vm_domain":"vm.example","session_id":"abc","ssh_key_file":"/k",
            "proxy_command":"websocat --binary wss://vm.example:2222","ssh_command":"ssh"}"#;
        let setup = Setup::parse(text).unwrap();
        assert_eq!((setup.url.as_str(), setup.session_id.as_str()), ("wss://vm.example:2222", "abc"));
        assert_eq!(setup.key_file, PathBuf::from("/k"));
        let bare = Setup::parse(br#"{"vm_domain":"vm.example","ssh_key_file":"/k"}"#).unwrap();
        assert_eq!(bare.url, "wss://vm.example:2222");
        let local =
            Setup::parse(br#"{"proxy_command":"websocat --binary 'ws://127.0.0.1:9'","ssh_key_file":"/k"}"#);
        assert_eq!(local.unwrap().url, "ws://127.0.0.1:9");
    }

    #[test]
    fn an_incomplete_setup_is_refused() {
        for text in [&b""[..], b"[]", b"{}", br#"{"vm_domain":"a"}"#, br#"{"ssh_key_file":"/k"}"#] {
            assert!(matches!(Setup::parse(text), Err(SyncError::Setup(_))));
        }
    }
}
