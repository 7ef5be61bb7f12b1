//! `ksync session`: the sessions of a Kernel account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ksync::kernel::{Access, Browser, ConnectedVm, KernelError, StoredSession};
use ksync::monitor::Warning;
use serde_json::{Map, Value, json};

use crate::create::{self, CreateArgs};
use crate::list::visible;
use crate::out;
use crate::report::CliError;
use crate::request;
use crate::screen::warned;
use crate::shell::{quoted, ssh_argument};
use crate::verbs::{SessionArgs, SessionVerb};

/// Timeout for a pool to provide a session.
const POOL_TIMEOUT: Duration = Duration::from_secs(300);

/// Fields with URLs that open the session to whoever has them.
const TOKENS: [&str; 4] = ["base_url", "browser_live_view_url", "cdp_ws_url", "webdriver_ws_url"];

/// Those of them that are of no use to eyes.
const SOCKETS: [&str; 2] = ["cdp_ws_url", "webdriver_ws_url"];

/// Runs one of the verbs.
pub(crate) fn run(args: SessionArgs) -> Result<u8, CliError> {
    let access = request::access(&args.access)?;
    match args.verb {
        SessionVerb::Create(args) => create(&access, &args),
        SessionVerb::List { json } => list(&access, json),
        SessionVerb::Show { session, ssh_config, cdp_url, json } => {
            let session = access.meant(&session)?;
            match (ssh_config, cdp_url) {
                (true, _) => {
                    show_ssh_config(&access, &session, &proxy_command(args.access.ca_cert.as_deref()))
                }
                (_, true) => show_cdp_url(&access, &session),
                _ => show(&access, &session, json),
            }
        }
        SessionVerb::Use { session } => choose(&access, &session),
        SessionVerb::Setup { session, json } => {
            setup(&access, &session, &proxy_command(args.access.ca_cert.as_deref()), json)
        }
        SessionVerb::Delete { session } => delete(&access, &session),
        SessionVerb::Cleanup { session } => clean_up(&access, &session),
    }
}

fn create(access: &Access, args: &CreateArgs) -> Result<u8, CliError> {
    let mut parameters = create::parameters(args)?;
    let api = access.api()?;
    let browser = match &args.pool {
        Some(pool) => {
            let timeout = parameters.remove("acquire_timeout_seconds").and_then(|seconds| seconds.as_u64());
            api.acquire(pool, timeout.map_or(POOL_TIMEOUT, Duration::from_secs), &parameters)
        }
        None => api.create(&parameters),
    }
    .map_err(KernelError::from)?;
    access.store().set_current(&browser.session_id).map_err(|error| access.state_error(error))?;
    if args.json {
        out::result(&Value::Object(fields(&browser)).to_string());
    } else {
        out::result(&browser.session_id);
        out::note(&format!(
            "ksync: session {} is there, and is what session: means from now on\n  \
             sync with it:  ksync ./dir session:/tmp/dir",
            visible(browser.name.as_deref().unwrap_or(&browser.session_id))
        ));
    }
    Ok(0)
}

fn list(access: &Access, json: bool) -> Result<u8, CliError> {
    let browsers = access.api()?.browsers().map_err(KernelError::from)?;
    let current = access.meant(ksync::kernel::CURRENT).ok();
    let is_current = |browser: &Browser| {
        current.as_ref().is_some_and(|id| *id == browser.session_id || Some(id) == browser.name.as_ref())
    };
    if json {
        for browser in &browsers {
            let mut fields = fields(browser);
            fields.retain(|name, _| !TOKENS.contains(&name.as_str()));
            out::result(&Value::Object(fields).to_string());
        }
        return Ok(0);
    }
    if browsers.is_empty() {
        out::note("ksync: there is no active session");
        return Ok(0);
    }
    let width = browsers.iter().map(|browser| browser.session_id.len()).max().unwrap_or_default();
    // The name comes last, so that a session without one has no empty column.
    out::result(&format!("  {:width$}  SCREEN    {:20}  NAME", "SESSION", "CREATED"));
    for browser in &browsers {
        let mark = if is_current(browser) { '*' } else { ' ' };
        let kind = if browser.headless { "headless" } else { "headful" };
        let (id, name) = (visible(&browser.session_id), visible(browser.name.as_deref().unwrap_or_default()));
        let line = format!("{mark} {id:width$}  {kind:8}  {:20}  {name}", visible(&browser.created_at));
        out::result(line.trim_end());
    }
    Ok(0)
}

fn show(access: &Access, session: &str, json: bool) -> Result<u8, CliError> {
    let browser = access.api()?.browser(session).map_err(KernelError::from)?;
    let mut fields = fields(&browser);
    if let Some(stored) = access.store().find(&browser.session_id) {
        fields.insert("vm_domain".to_owned(), stored.vm_domain.into());
        fields.insert("host_key".to_owned(), stored.host_key.into());
    }
    if json {
        out::result(&Value::Object(fields).to_string());
        return Ok(0);
    }
    let empty = [json!(""), json!([]), json!({})];
    fields.retain(|name, value| !SOCKETS.contains(&name.as_str()) && !empty.contains(value));
    let first = ["session_id", "name"].into_iter().filter_map(|name| fields.remove_entry(name));
    let first: Vec<_> = first.collect();
    for (name, value) in first.into_iter().chain(fields) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out::result(&format!("{}: {}", visible(&name), visible(&value)));
    }
    Ok(0)
}

/// Prints the URL for CDP clients.
fn show_cdp_url(access: &Access, session: &str) -> Result<u8, CliError> {
    out::result(&access.api()?.browser(session).map_err(KernelError::from)?.cdp_ws_url);
    Ok(0)
}

/// Prints a Host block for `~/.ssh/config`.
fn show_ssh_config(access: &Access, session: &str, proxy: &str) -> Result<u8, CliError> {
    let stored = connected(access, session)?.stored;
    let known_hosts = known_hosts(access, &stored)?;
    let StoredSession { session_id, name, key_file, .. } = stored;
    // ssh takes no host with a space or a special character.
    let is_host = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let host = name.filter(is_host).unwrap_or_else(|| session_id.clone());
    out::result(&format!(
        "Host {host}\n  HostName {session_id}\n  User root\n  ProxyCommand {proxy} {session_id}\n  \
         IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  StrictHostKeyChecking yes",
        ssh_argument(&key_file.display().to_string()),
        ssh_argument(&known_hosts.display().to_string()),
    ));
    Ok(0)
}

/// Writes the file of a session's host key for ssh.
fn known_hosts(access: &Access, stored: &StoredSession) -> Result<PathBuf, KernelError> {
    let kept = access.store().keep_host_key(&stored.session_id, &stored.host_key);
    kept.map_err(|error| access.state_error(error))
}

fn choose(access: &Access, session: &str) -> Result<u8, CliError> {
    // An id in the session store needs no API request.
    let warn = |what, hint| out::note(&warned(&Warning { what, hint }));
    let id = access.id_of(&access.meant(session)?, warn)?;
    access.store().set_current(&id).map_err(|error| access.state_error(error))?;
    out::result(&id);
    Ok(0)
}

/// Prints the official CLI's description of a VM that it has set up, with ksync as the proxy.
fn setup(access: &Access, session: &str, proxy: &str, json: bool) -> Result<u8, CliError> {
    let session = access.meant(session)?;
    let ConnectedVm { stored, provisioned } = connected(access, &session)?;
    if json {
        let proxy = format!("{proxy} {}", stored.bridge_url());
        let known_hosts = known_hosts(access, &stored)?;
        // The host is named by its session, since each one on this machine is localhost.
        let options = [
            format!("ProxyCommand={proxy}"),
            format!("HostKeyAlias={}", stored.session_id),
            format!("UserKnownHostsFile={}", ssh_argument(&known_hosts.display().to_string())),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("IdentityFile={}", ssh_argument(&stored.key_file.display().to_string())),
            "IdentitiesOnly=yes".to_owned(),
        ];
        let options = options.map(|option| format!("-o {} ", quoted(&option))).concat();
        let told = json!({
            "vm_domain": stored.vm_domain,
            "session_id": stored.session_id,
            "ssh_key_file": stored.key_file.display().to_string(),
            "proxy_command": proxy,
            "ssh_command": format!("ssh {options}root@localhost"),
        });
        out::result(&told.to_string());
    } else {
        out::result(&format!("{} answers at {}", stored.session_id, stored.bridge_url()));
        out::note(&format!(
            "ksync: sshd {}, bridge {}; installed: {}",
            provisioned.sshd.as_deref().unwrap_or("of an unknown version"),
            provisioned.bridge(),
            if provisioned.installed.is_empty() {
                "nothing".to_owned()
            } else {
                provisioned.installed.join(", ")
            },
        ));
    }
    Ok(0)
}

fn delete(access: &Access, session: &str) -> Result<u8, CliError> {
    let session = access.meant(session)?;
    let api = access.api()?;
    // A name may belong to another session by now, so only the API knows which one to delete.
    let stored = access.store().find(&session).filter(|stored| stored.session_id == session);
    let (id, pool) = match stored {
        Some(stored) => (stored.session_id, stored.pool),
        None => match api.browser(&session).map_err(KernelError::from) {
            Ok(browser) => (browser.session_id, browser.pool.map(|pool| pool.id)),
            Err(error) if error.is_gone() => return Ok(gone(access, &session)),
            Err(error) => return Err(error.into()),
        },
    };
    let deleted = match &pool {
        // Another user gets the session next, so nothing of ours may stay in it.
        Some(pool) => api.release(pool, &id, false).map(|()| "returned to its pool, which makes it anew"),
        None => api.delete(&id).map(|()| "deleted, with its files"),
    };
    let done = match deleted.map_err(KernelError::from) {
        Ok(done) => done,
        Err(error) => {
            // A pool does not tell what is missing.
            let is_gone = error.is_gone()
                || pool.is_some()
                    && api.browser(&id).map_err(KernelError::from).is_err_and(|error| error.is_gone());
            return if is_gone { Ok(gone(access, &id)) } else { Err(error.into()) };
        }
    };
    access.forget(&id);
    let id = visible(&id);
    let named = if session == id { id } else { format!("{} ({id})", visible(&session)) };
    out::note(&format!("ksync: session {named} is {done}"));
    Ok(0)
}

/// Reports that there is nothing to delete: what was wanted is so.
fn gone(access: &Access, session: &str) -> u8 {
    access.forget(session);
    out::note(&format!("ksync: there is no session {} any more: nothing was deleted", visible(session)));
    0
}

fn clean_up(access: &Access, session: &str) -> Result<u8, CliError> {
    let session = access.meant(session)?;
    match access.clean_up(&session) {
        Ok(id) => out::note(&format!(
            "ksync: nothing of ksync is left in session {id}, which runs on; ksync session delete ends it"
        )),
        Err(error) if error.is_gone() => {
            let shown = visible(&session);
            access.forget(&session);
            out::note(&format!("ksync: there is no session {shown} any more: nothing was left to clean up"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}

fn connected(access: &Access, session: &str) -> Result<ConnectedVm, KernelError> {
    access.connect(session, |step| {
        use ksync::kernel::Step;
        out::note(match step {
            Step::LookUp => "ksync: asking for the session",
            Step::SetUp => "ksync: setting the VM up",
            Step::BringBridge => "ksync: bringing a bridge: the VM has no websocat and cannot download it",
        });
    })
}

/// A session's fields, without empty ones.
fn fields(browser: &Browser) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(browser) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.retain(|_, value| !value.is_null());
    fields
}

/// `ksync proxy` as a ProxyCommand, where `%` begins a token.
fn proxy_command(ca_cert: Option<&Path>) -> String {
    let own = std::env::current_exe().map_or_else(|_| "ksync".to_owned(), |path| path.display().to_string());
    let ca_cert = ca_cert.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
    let ca_cert = ca_cert.map(|file| format!(" --ca-cert {}", quoted(&file.display().to_string())));
    format!("{} proxy{}", quoted(&own), ca_cert.unwrap_or_default()).replace('%', "%%")
}
