//! From a session's name to a VM that accepts ksync's key.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::api::Api;
use crate::kernel::bridge_image::BridgeImage;
use crate::kernel::diagnose::{self, Diagnosis};
use crate::kernel::error::{ApiError, ApiErrorKind};
use crate::kernel::keys::{Key, KeyError};
use crate::kernel::provision::{self, ProvisionError, Provisioned};
use crate::kernel::resources::{self, Resources};
use crate::kernel::session_store::{SessionStore, StoredSession, is_plain};
use crate::kernel::settings::Settings;
use crate::kernel::types::Browser;
use crate::kernel::waits::Waits;
use crate::private;
use crate::remote::{self, HostFacts, HostKeys, Keys, Proxies, Target, Transport};
use crate::tree::path::escape;

/// Name of the current session.
pub const CURRENT: &str = "session";

/// Facts needed to find sessions and to log in to them.
#[derive(Debug, Clone)]
pub struct Access {
    /// API settings. Without them ksync reaches only sessions in the store.
    pub api: Option<Settings>,
    /// Directory of sessions and keys.
    pub directory: PathBuf,
    /// Private key for the login; `None`: ksync makes one for each session.
    pub identity: Option<PathBuf>,
    /// Session that [`CURRENT`] means, if the user named one; otherwise the one chosen last.
    pub current: Option<String>,
    /// The bridge to upload to a VM without one.
    pub bridge: BridgeImage,
    /// Listener of the waits that the API asks for.
    pub waits: Waits,
}

/// Reason why a session cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The API is needed to look the session up, and there is no key for it.
    #[error("session \"{0}\" was never used from here, and there is no API key to look it up")]
    NoKey(String),
    /// The platform has no such session, and none was used under this name from here.
    #[error("there is no session \"{name}\"")]
    NoSuch {
        /// The name.
        name: String,
        /// The API's answer.
        source: Box<ApiError>,
    },
    /// There is no API key.
    #[error("there is no API key")]
    NoApi,
    /// The user chose no session.
    #[error("there is no current session")]
    NoCurrent,
    /// The name cannot be that of a session.
    #[error("\"{0}\" cannot be a session's id or name")]
    Name(String),
    /// The API call failed.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The API did not tell which session has a name now.
    #[error("could not find out which session is called \"{name}\" now")]
    Unconfirmed {
        /// The name.
        name: String,
        /// Id of the session that had the name when it was last used from here.
        before: String,
        /// The API's answer.
        source: Box<ApiError>,
    },
    /// There is no key for the login.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The VM could not be set up.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// The VM needs ksync's bridge, which could not be uploaded.
    #[error("could not bring a bridge to the VM, which has no websocat that runs and could not download one")]
    NotBrought(#[source] Box<ApiError>),
    /// The state directory is not writable.
    #[error("cannot write to the state directory {}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl From<ApiError> for KernelError {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

impl KernelError {
    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoKey(_) | Self::NoApi => 40,
            Self::NoCurrent | Self::Name(_) => 1,
            Self::Api(error)
            | Self::NoSuch { source: error, .. }
            | Self::Unconfirmed { source: error, .. } => error.exit_code(),
            Self::Key(KeyError::Unreadable { .. }) => 11,
            Self::Key(KeyError::NotMade { .. }) | Self::State { .. } => 5,
            Self::Provision(_) | Self::NotBrought(_) => 42,
        }
    }

    /// Advice for a user who runs `ksync doctor`, which it does not name.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Provision(ProvisionError::Busy) => Some("Try again in a minute.".to_owned()),
            Self::Provision(ProvisionError::NoSshd { .. }) => self.hint(),
            Self::Provision(ProvisionError::NoHostKey) => {
                Some("Take a new session: something on this VM disturbs its setup.".to_owned())
            }
            Self::Provision(_) => {
                Some("Mend what the message complains about on the VM, or take a new session.".to_owned())
            }
            Self::NotBrought(error) => Some(error.hint()),
            error => error.hint(),
        }
    }

    /// Advice for the user about the next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Api(error) => return Some(error.hint()),
            Self::Unconfirmed { before, source, .. } => {
                let hint = source.hint();
                return Some(format!(
                    "{hint} An id needs no API: the session that had the name is {before}."
                ));
            }
            Self::NoKey(name) => {
                let way = ssh_way(name);
                return Some(format!("Set KERNEL_API_KEY to a key of your Kernel account; {way}."));
            }
            Self::NoSuch { name, .. } => {
                return Some(format!("List what is there with ksync session list; {}.", ssh_way(name)));
            }
            Self::NoApi => "Set KERNEL_API_KEY to a key of your Kernel account.",
            Self::NoCurrent => "Name one: ksync session use ID, or KSYNC_SESSION=ID.",
            Self::Name(_) => "Run ksync session list: it shows those that there are.",
            Self::Key(KeyError::Unreadable { .. }) => "Name another one with --identity.",
            Self::Provision(ProvisionError::Busy) => "Run the same command again.",
            Self::Provision(ProvisionError::NoSshd { .. }) => {
                "Take an image with openssh-server, which newer ones have, or let the VM reach its package servers."
            }
            Self::Provision(_) | Self::NotBrought(_) => {
                "Run the same command again; ksync doctor SESSION tells which step fails."
            }
            Self::Key(KeyError::NotMade { .. }) | Self::State { .. } => {
                "Make the directory writable for you, or name another one with XDG_STATE_HOME."
            }
        };
        Some(hint.to_owned())
    }

    /// Reports if the session no longer exists.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.exit_code() == 41
    }
}

/// The way to write an endpoint that is no session.
fn ssh_way(name: &str) -> String {
    format!("an SSH host is written user@{name}:/path, or has a Host entry in ~/.ssh/config")
}

/// Progress of reaching a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// ksync asks the API for the session.
    LookUp,
    /// ksync sets the VM up.
    SetUp,
    /// ksync uploads its own bridge to a VM that has none and cannot download one.
    BringBridge,
}

/// A session that ksync looked up and set up.
#[derive(Debug, Clone)]
pub struct ConnectedVm {
    /// Connection data of the session.
    pub stored: StoredSession,
    /// Facts that the VM reported.
    pub provisioned: Provisioned,
}

impl Access {
    /// The session store.
    #[must_use]
    pub fn store(&self) -> SessionStore {
        SessionStore::new(self.directory.join("sessions"))
    }

    /// Checks that the state directory can be written.
    ///
    /// # Errors
    /// [`KernelError::State`].
    pub fn check_state(&self) -> Result<(), KernelError> {
        let probe = self.directory.join(format!("probe-{}", unique()));
        private::replace(&probe, b"")
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|source| self.state_error(source))
    }

    /// Makes a client of the API.
    ///
    /// # Errors
    /// [`KernelError::NoApi`], or the settings are unusable.
    pub fn api(&self) -> Result<Api, KernelError> {
        let api = Api::new(self.api.as_ref().ok_or(KernelError::NoApi)?)?;
        Ok(api.telling(self.waits.clone()))
    }

    /// Resolves `name` to an id or name.
    ///
    /// # Errors
    /// [`KernelError::NoCurrent`], or the text cannot be an id or name.
    pub fn meant(&self, name: &str) -> Result<String, KernelError> {
        let meant = if name == CURRENT {
            self.current.clone().or_else(|| self.store().current()).ok_or(KernelError::NoCurrent)?
        } else {
            name.to_owned()
        };
        // A slash is legal in a name. Components of dots could be a way to another resource.
        let is_text = !meant.is_empty()
            && meant.len() <= 256
            && !meant.chars().any(char::is_control)
            && meant.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if is_text { Ok(meant) } else { Err(KernelError::Name(escape(meant.as_bytes()).into_owned())) }
    }

    /// A session from the store, if its API and its key are the ones that this access uses.
    #[must_use]
    pub fn stored(&self, id_or_name: &str) -> Option<StoredSession> {
        let stored = self.store().find(id_or_name)?;
        let same_api = self.api.as_ref().is_none_or(|api| api.base_url == stored.base_url);
        let same_key = self.identity.as_ref().is_none_or(|identity| *identity == stored.key_file);
        (same_api && same_key && stored.key_file.exists()).then_some(stored)
    }

    /// Id of the session that `id_or_name` means now. The store's own answer holds for an id only:
    /// another session may have got the name since. Without an API key nobody can tell; the store
    /// is believed then, and `warn` gets a message and a hint.
    ///
    /// # Errors
    /// [`KernelError`]: the API does not know such a session, or cannot be asked.
    pub fn id_of(&self, id_or_name: &str, warn: impl FnOnce(String, String)) -> Result<String, KernelError> {
        match self.store().find(id_or_name) {
            Some(stored) if stored.session_id == id_or_name => Ok(stored.session_id),
            Some(stored) if self.api.is_none() => {
                let (what, hint) = unconfirmed(id_or_name, &stored);
                warn(what, hint);
                Ok(stored.session_id)
            }
            None if self.api.is_none() => Err(KernelError::NoKey(id_or_name.to_owned())),
            stored => Ok(self.confirm(id_or_name, stored.as_ref())?.session_id),
        }
    }

    /// Asks the API which session `id_or_name` means now, and stores the answer.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn confirm(&self, id_or_name: &str, stored: Option<&StoredSession>) -> Result<Browser, KernelError> {
        let browser = self.api()?.browser(id_or_name).map_err(|error| match (error.kind(), stored) {
            (ApiErrorKind::SessionGone, _) | (_, None) => KernelError::from(error),
            (_, Some(stored)) => KernelError::Unconfirmed {
                name: escape(id_or_name.as_bytes()).into_owned(),
                before: stored.session_id.clone(),
                source: Box::new(error),
            },
        })?;
        if let Some(name) = &browser.name {
            let store = self.store();
            store.rename(&browser.session_id, name).map_err(|source| self.state_error(source))?;
        }
        Ok(browser)
    }

    /// Asks the API for a session, sets its VM up, and stores it. This takes seconds, or a minute
    /// or two if the VM must install something first.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn connect(&self, id_or_name: &str, mut say: impl FnMut(Step)) -> Result<ConnectedVm, KernelError> {
        if self.api.is_none() {
            return Err(KernelError::NoKey(id_or_name.to_owned()));
        }
        let api = self.api()?;
        say(Step::LookUp);
        let browser = api.browser(id_or_name).map_err(|error| match error.kind() {
            ApiErrorKind::SessionGone if self.store().find(id_or_name).is_none() => {
                KernelError::NoSuch { name: id_or_name.to_owned(), source: Box::new(error) }
            }
            _ => error.into(),
        })?;
        self.set_up(&api, &browser, say)
    }

    /// Sets a session's VM up and stores the session.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn set_up(
        &self,
        api: &Api,
        browser: &Browser,
        mut say: impl FnMut(Step),
    ) -> Result<ConnectedVm, KernelError> {
        let vm = browser.vm()?;
        let key = match &self.identity {
            Some(file) => Key::named(file)?,
            None => Key::own(&self.keys(), self.key_name(browser)?)?,
        };
        say(Step::SetUp);
        let before = self.store().find(&browser.session_id);
        let known_host_key = before.as_ref().map(|stored| stored.host_key.clone());
        let mut authorized = before.map(|stored| stored.authorized).unwrap_or_default();
        let is_authorized = authorized.contains(&key.public);
        if !is_authorized {
            authorized.push(key.public.clone());
        }
        let executed = api.exec(&browser.session_id, &provision::provision(&key.public, None))?;
        let provisioned = match provision::read(&executed) {
            Err(ProvisionError::NoBridge { .. }) => {
                say(Step::BringBridge);
                bring_bridge(api, &browser.session_id, &key.public, self.bridge)?
            }
            result => result?,
        };
        let stored = StoredSession {
            session_id: browser.session_id.clone(),
            name: browser.name.clone(),
            pool: browser.pool.as_ref().map(|pool| pool.id.clone()),
            vm_domain: vm.domain.to_string(),
            host_key: provisioned.host_key.clone(),
            key_file: key.file,
            cdp_ws_url: browser.cdp_ws_url.clone(),
            base_url: self.api.as_ref().map(|api| api.base_url.clone()).unwrap_or_default(),
            created_at: Some(browser.created_at.clone()),
            timeout_seconds: Some(browser.timeout_seconds),
            authorized,
        };
        self.keep(&stored)?;
        // Connections to a known VM have shown more than the script tells.
        if !is_authorized || known_host_key.as_ref() != Some(&stored.host_key) {
            self.remember_facts(&stored, provisioned.facts(&key.public));
        }
        Ok(ConnectedVm { stored, provisioned })
    }

    /// Remembers what makes the first connection to a VM fast.
    fn remember_facts(&self, stored: &StoredSession, facts: Option<HostFacts>) {
        let Some(facts) = facts else { return };
        let url = stored.bridge_url();
        let target = Target {
            transport: Transport::WebSocket { url, ca_cert: None, proxies: Proxies::of_environment() },
            user: "root".to_owned(),
            host_keys: HostKeys::Exactly(stored.host_key.clone()),
            keys: Keys::default(),
            connect_timeout: Duration::ZERO,
            silence_timeout: Duration::ZERO,
            facts: Some(self.directory.join("facts")),
        };
        remote::remember(&target, facts);
    }

    /// Asks a session's VM, through the API, which of the services for SSH run there. This takes
    /// seconds.
    ///
    /// # Errors
    /// [`KernelError`]: the VM cannot be asked, or the session is gone.
    pub fn diagnose(&self, session_id: &str) -> Result<Diagnosis, KernelError> {
        Ok(diagnose::read(&self.api()?.exec(session_id, &diagnose::call())?))
    }

    /// Stores a session. Its name is not that of another one any more.
    fn keep(&self, stored: &StoredSession) -> Result<(), KernelError> {
        let store = self.store();
        let named = stored.name.as_ref().map_or(Ok(()), |name| store.rename(&stored.session_id, name));
        named.and_then(|()| store.keep(stored)).map_err(|source| self.state_error(source))
    }

    /// Asks a session's VM, through the API, for its free disk and memory.
    ///
    /// # Errors
    /// [`KernelError`]: the VM cannot be asked, or the session is gone.
    pub fn resources(&self, session_id: &str) -> Result<Resources, KernelError> {
        Ok(resources::read(&self.api()?.exec(session_id, &resources::call())?))
    }

    /// Stores what the API now tells of a session that was used before.
    pub fn refresh(&self, browser: &Browser) {
        if let Some(stored) = self.store().find(&browser.session_id) {
            // A store that cannot be written only costs the next run a request.
            let _ = self.keep(&stored.refreshed(browser));
        }
    }

    /// Removes ksync's traces from a session's VM, and forgets how to log in there. The session
    /// stays the current one, since it still has to be deleted. Returns its id.
    ///
    /// # Errors
    /// [`KernelError`]. Nothing is forgotten before a success.
    pub fn clean_up(&self, id_or_name: &str) -> Result<String, KernelError> {
        let api = self.api()?;
        let browser = api.browser(id_or_name)?;
        let id = browser.session_id;
        let stored = self.store().find(&id);
        // An older ksync recorded no keys.
        let file = stored.as_ref().map(|stored| &stored.key_file).filter(|file| file.exists());
        let own = is_plain(&id).then(|| self.keys().join(&id)).filter(|file| file.exists());
        let files = self.identity.iter().chain(file).chain(&own);
        let mut keys =
            files.map(|file| Ok(Key::named(file)?.public)).collect::<Result<Vec<_>, KernelError>>()?;
        keys.extend(stored.into_iter().flat_map(|stored| stored.authorized));
        keys.sort_unstable();
        keys.dedup();
        let executed = api.exec(&id, &provision::cleanup(&keys))?;
        if executed.exit_code != 0 {
            // The output has the same form as the other script's.
            provision::read(&executed)?;
        }
        self.store().forget_login(&id).map_err(|source| self.state_error(source))?;
        if is_plain(&id) {
            Key::forget(&self.keys(), &id);
        }
        Ok(id)
    }

    /// Forgets a session and deletes the key made for it.
    pub fn forget(&self, session_id: &str) {
        self.store().forget(session_id);
        if is_plain(session_id) {
            Key::forget(&self.keys(), session_id);
        }
    }

    fn keys(&self) -> PathBuf {
        self.directory.join("keys")
    }

    fn key_name<'a>(&self, browser: &'a Browser) -> Result<&'a str, KernelError> {
        let id = &browser.session_id;
        if is_plain(id) { Ok(id) } else { Err(KernelError::Name(escape(id.as_bytes()).into_owned())) }
    }

    /// Makes the error for a state directory that is not writable.
    pub fn state_error(&self, source: io::Error) -> KernelError {
        KernelError::State { path: self.directory.clone(), source }
    }
}

/// The message about a name that nobody can confirm, and a hint.
pub(crate) fn unconfirmed(name: &str, stored: &StoredSession) -> (String, String) {
    let (name, id) = (escape(name.as_bytes()), &stored.session_id);
    let what = format!(
        "\"{name}\" is taken for the session {id}, which was called so when it was last used from here: there is no \
         API key to ask"
    );
    (what, "Set KERNEL_API_KEY, or name the session by its id.".to_owned())
}

/// Uploads the bridge `image` to the VM, and sets the VM up with it.
fn bring_bridge(
    api: &Api,
    session_id: &str,
    public_key: &str,
    image: BridgeImage,
) -> Result<Provisioned, KernelError> {
    // The name is unique, because another client may upload a bridge at the same time.
    let file = provision::remote_path(&format!("{}.gz", unique()));
    api.write_file(session_id, &file, 0o600, image.gzip).map_err(|error| match error.kind() {
        ApiErrorKind::SessionGone | ApiErrorKind::NotAuthorised => error.into(),
        _ => KernelError::NotBrought(Box::new(error)),
    })?;
    let bridge = provision::Brought { sha256: image.sha256, file: &file };
    let executed = api.exec(session_id, &provision::provision(public_key, Some(bridge)))?;
    Ok(provision::read(&executed)?)
}

/// Makes a word that no other client makes at the same time.
fn unique() -> String {
    let mut bytes = [0; 8];
    // Without random numbers, the process id makes a collision unlikely enough.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format!("{:x}-{:016x}", std::process::id(), u64::from_le_bytes(bytes))
}
