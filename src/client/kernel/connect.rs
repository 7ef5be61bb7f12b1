//! From a session's name to a VM that accepts ksync's key.

use std::io;
use std::path::PathBuf;

use crate::kernel::api::Api;
use crate::kernel::bridge_image::BridgeImage;
use crate::kernel::diagnose::{self, Diagnosis};
use crate::kernel::error::{ApiError, ApiErrorKind};
use crate::kernel::keys::{Key, KeyError};
use crate::kernel::provision::{self, ProvisionError, Provisioned};
use crate::kernel::session_store::{SessionStore, StoredSession};
use crate::kernel::settings::Settings;
use crate::kernel::types::Browser;
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
    #[error("could not write to {}", path.display())]
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
            Self::Api(error) | Self::NoSuch { source: error, .. } => error.exit_code(),
            Self::Key(_) | Self::State { .. } => 11,
            Self::Provision(_) | Self::NotBrought(_) => 42,
        }
    }

    /// Advice for the user about the next step.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Api(error) => return Some(error.hint()),
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
            Self::Key(_) => "Name another one with --identity.",
            Self::Provision(ProvisionError::Busy) => "Run the same command again.",
            Self::Provision(ProvisionError::NoSshd { .. }) => {
                "Take an image with openssh-server, which newer ones have, or let the VM reach its package servers."
            }
            Self::Provision(_) | Self::NotBrought(_) => {
                "Run the same command again; ksync doctor SESSION tells which step fails."
            }
            Self::State { .. } => return None,
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

    /// Makes a client of the API.
    ///
    /// # Errors
    /// [`KernelError::NoApi`], or the settings are unusable.
    pub fn api(&self) -> Result<Api, KernelError> {
        Ok(Api::new(self.api.as_ref().ok_or(KernelError::NoApi)?)?)
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
        let is_text =
            !meant.is_empty() && meant.len() <= 256 && !meant.chars().any(|c| c.is_control() || c == '/');
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
        };
        self.store().keep(&stored).map_err(|source| self.state_error(source))?;
        Ok(ConnectedVm { stored, provisioned })
    }

    /// Asks a session's VM, through the API, which of the services for SSH run there. This takes
    /// seconds.
    ///
    /// # Errors
    /// [`KernelError`]: the VM cannot be asked, or the session is gone.
    pub fn diagnose(&self, session_id: &str) -> Result<Diagnosis, KernelError> {
        Ok(diagnose::read(&self.api()?.exec(session_id, &diagnose::call())?))
    }

    /// Removes ksync's traces from a session's VM, and forgets the session.
    ///
    /// # Errors
    /// [`KernelError`]. The session is forgotten only after a success.
    pub fn clean_up(&self, id_or_name: &str) -> Result<(), KernelError> {
        let api = self.api()?;
        let browser = api.browser(id_or_name)?;
        let stored = self.store().find(&browser.session_id);
        let key = match (&self.identity, &stored) {
            (Some(file), _) => Key::named(file)?,
            (None, Some(stored)) => Key::named(&stored.key_file)?,
            (None, None) => Key::own(&self.keys(), self.key_name(&browser)?)?,
        };
        let executed = api.exec(&browser.session_id, &provision::cleanup(&key.public))?;
        if executed.exit_code != 0 {
            // The output has the same form as the other script's.
            provision::read(&executed)?;
        }
        self.forget(&browser.session_id);
        Ok(())
    }

    /// Forgets a session and deletes the key made for it.
    pub fn forget(&self, session_id: &str) {
        self.store().forget(session_id);
        if crate::kernel::session_store::is_plain(session_id) {
            Key::forget(&self.keys(), session_id);
        }
    }

    fn keys(&self) -> PathBuf {
        self.directory.join("keys")
    }

    fn key_name<'a>(&self, browser: &'a Browser) -> Result<&'a str, KernelError> {
        let id = &browser.session_id;
        if crate::kernel::session_store::is_plain(id) {
            Ok(id)
        } else {
            Err(KernelError::Name(escape(id.as_bytes()).into_owned()))
        }
    }

    /// Makes the error for a state directory that is not writable.
    pub fn state_error(&self, source: io::Error) -> KernelError {
        KernelError::State { path: self.directory.clone(), source }
    }
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
