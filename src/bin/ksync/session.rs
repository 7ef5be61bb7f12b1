//! `ksync session`: the browser sessions of a Kernel account, and their VMs.

use std::time::Duration;

use ksync::kernel::{Access, Browser, ConnectedVm, KernelError, NewBrowser, StoredSession};
use ksync::monitor::Warning;
use serde_json::{Value, json};

use crate::list::visible;
use crate::out;
use crate::report::CliError;
use crate::request;
use crate::screen::warned;
use crate::shell::quoted;
use crate::verbs::{SessionArgs, SessionVerb};

/// Timeout for a pool to provide a session.
const POOL_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs one of the verbs.
pub(crate) fn run(args: SessionArgs) -> Result<u8, CliError> {
    let access = request::access(&args.access)?;
    match args.verb {
        SessionVerb::Create { timeout, headless, name, pool, json } => {
            let new = NewBrowser { timeout_seconds: Some(timeout), headless, stealth: false, name };
            create(&access, &new, pool.as_deref(), json)
        }
        SessionVerb::List { json } => list(&access, json),
        SessionVerb::Show { session, ssh_config, json } => {
            let session = access.meant(&session)?;
            if ssh_config { show_ssh_config(&access, &session) } else { show(&access, &session, json) }
        }
        SessionVerb::Use { session } => choose(&access, &session),
        SessionVerb::Setup { session, json } => setup(&access, &session, json),
        SessionVerb::Delete { session } => delete(&access, &session),
        SessionVerb::Cleanup { session } => clean_up(&access, &session),
    }
}

fn create(access: &Access, new: &NewBrowser, pool: Option<&str>, json: bool) -> Result<u8, CliError> {
    let api = access.api()?;
    let browser = match pool {
        Some(pool) => api.acquire(pool, POOL_TIMEOUT).map_err(KernelError::from)?,
        None => api.create(new).map_err(KernelError::from)?,
    };
    access.store().set_current(&browser.session_id).map_err(|error| access.state_error(error))?;
    if json {
        out::result(&of_browser(&browser).to_string());
    } else {
        out::result(&browser.session_id);
        out::note(&format!(
            "ksync: session {} is there, and is what session: means from now on\n  \
             sync with it:  ksync ./dir session:/tmp/dir",
            browser.name.as_deref().unwrap_or(&browser.session_id)
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
    for browser in &browsers {
        if json {
            out::result(&of_browser(browser).to_string());
        } else {
            let mark = if is_current(browser) { '*' } else { ' ' };
            let kind = if browser.headless { "headless" } else { "headful" };
            let name = browser.name.as_deref().unwrap_or("-");
            out::result(&format!("{mark} {}  {name}  {kind}  {}", browser.session_id, browser.created_at));
        }
    }
    Ok(0)
}

fn show(access: &Access, session: &str, json: bool) -> Result<u8, CliError> {
    let browser = access.api()?.browser(session).map_err(KernelError::from)?;
    let mut told = of_browser(&browser);
    if let (Value::Object(fields), Some(stored)) = (&mut told, access.store().find(&browser.session_id)) {
        fields.insert("vm_domain".to_owned(), stored.vm_domain.into());
        fields.insert("host_key".to_owned(), stored.host_key.into());
    }
    if json {
        out::result(&told.to_string());
    } else if let Value::Object(fields) = told {
        for (name, value) in fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            out::result(&format!("{name}: {value}"));
        }
    }
    Ok(0)
}

/// Prints a Host block for `~/.ssh/config`.
fn show_ssh_config(access: &Access, session: &str) -> Result<u8, CliError> {
    let StoredSession { session_id, name, host_key, key_file, .. } = connected(access, session)?.stored;
    let host = name.unwrap_or_else(|| session_id.clone());
    let known_hosts =
        access.store().keep_host_key(&session_id, &host_key).map_err(|error| access.state_error(error))?;
    out::result(&format!(
        "Host {host}\n  HostName {session_id}\n  User root\n  ProxyCommand {} proxy {session_id}\n  \
         IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  StrictHostKeyChecking yes",
        quoted(&own_path()),
        quoted(&key_file.display().to_string()),
        quoted(&known_hosts.display().to_string()),
    ));
    Ok(0)
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
fn setup(access: &Access, session: &str, json: bool) -> Result<u8, CliError> {
    let session = access.meant(session)?;
    let ConnectedVm { stored, provisioned } = connected(access, &session)?;
    if json {
        let proxy = format!("{} proxy {}", quoted(&own_path()), stored.bridge_url());
        let key_file = stored.key_file.display().to_string();
        let told = json!({
            "vm_domain": stored.vm_domain,
            "session_id": stored.session_id,
            "ssh_key_file": key_file,
            "proxy_command": proxy,
            "ssh_command": format!("ssh -o 'ProxyCommand={proxy}' -i {} root@localhost", quoted(&key_file)),
        });
        out::result(&told.to_string());
    } else {
        let version = |version: Option<String>| version.unwrap_or_else(|| "of an unknown version".to_owned());
        out::result(&format!("{} answers at {}", stored.session_id, stored.bridge_url()));
        out::note(&format!(
            "ksync: sshd {}, bridge {}; installed: {}",
            version(provisioned.sshd),
            version(provisioned.websocat),
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
        Some(pool) => api.release(pool, &id, false),
        None => api.delete(&id),
    };
    if let Err(error) = deleted.map_err(KernelError::from) {
        // A pool does not tell what is missing.
        let is_gone = error.is_gone()
            || pool.is_some()
                && api.browser(&id).map_err(KernelError::from).is_err_and(|error| error.is_gone());
        return if is_gone { Ok(gone(access, &id)) } else { Err(error.into()) };
    }
    access.forget(&id);
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

/// A session's fields without secrets.
fn of_browser(browser: &Browser) -> Value {
    json!({
        "session_id": browser.session_id,
        "name": browser.name,
        "created_at": browser.created_at,
        "headless": browser.headless,
        "stealth": browser.stealth,
        "timeout_seconds": browser.timeout_seconds,
        "pool": browser.pool.as_ref().map(|pool| pool.id.as_str()),
        "live_view_url": browser.browser_live_view_url,
    })
}

fn own_path() -> String {
    std::env::current_exe().map_or_else(|_| "ksync".to_owned(), |path| path.display().to_string())
}
