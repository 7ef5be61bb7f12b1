//! From the name of a session to a VM that lets us in.

use std::io;
use std::path::PathBuf;

use crate::kernel::api::Api;
use crate::kernel::bridge_image::BridgeImage;
use crate::kernel::error::{ApiError, ApiErrorKind};
use crate::kernel::keys::{Key, KeyError};
use crate::kernel::known::{Known, Store};
use crate::kernel::look::{self, Look};
use crate::kernel::provision::{self, ProvisionError, Provisioned};
use crate::kernel::settings::Settings;
use crate::kernel::types::Browser;
use crate::tree::path::escape;

/// The name that stands for the current session.
pub const CURRENT: &str = "session";

/// What is needed to find sessions and to get into them.
#[derive(Debug, Clone)]
pub struct Access {
    /// The API; without a key only sessions that are remembered can be reached.
    pub api: Option<Settings>,
    /// Where sessions and keys are kept.
    pub directory: PathBuf,
    /// The private key to log in with; `None`: one of our own for each session.
    pub identity: Option<PathBuf>,
    /// The session that [`CURRENT`] means, if somebody said so; else the one chosen last.
    pub current: Option<String>,
}

/// Why a session cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The API is needed, and there is no key for it.
    #[error(
        "session \"{0}\" is not one that was used from here before, and there is no API key to look it up"
    )]
    NoKey(String),
    /// There is no API key.
    #[error("there is no API key")]
    NoApi,
    /// Nobody chose a session.
    #[error("there is no current session")]
    NoCurrent,
    /// What is named can be no session.
    #[error("\"{0}\" can be no session's id or name")]
    Name(String),
    /// The API.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// There is no key to log in with.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The VM could not be set up.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// The VM needs a bridge of ours, and it cannot be written there.
    #[error("could not bring a bridge to the VM, which has no websocat that runs and could not download one")]
    NotBrought(#[source] Box<ApiError>),
    /// What is to be remembered cannot be.
    #[error("could not write to {}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<ApiError> for KernelError {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

impl KernelError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoKey(_) | Self::NoApi => 40,
            Self::NoCurrent | Self::Name(_) => 1,
            Self::Api(error) => error.exit_code(),
            Self::Key(_) | Self::State { .. } => 11,
            Self::Provision(_) | Self::NotBrought(_) => 42,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Api(error) => return Some(error.hint()),
            Self::NoKey(_) | Self::NoApi => "set KERNEL_API_KEY to a key of your Kernel account",
            Self::NoCurrent => "name one: ksync session use ID, or KSYNC_SESSION=ID",
            Self::Name(_) => "ksync session list shows those that there are",
            Self::Key(_) => "name another one with --identity",
            Self::Provision(ProvisionError::Busy) => "run the same command again",
            Self::Provision(ProvisionError::NoSshd { .. }) => {
                "take an image with openssh-server, which newer ones have, or let the VM reach its package servers"
            }
            Self::Provision(_) | Self::NotBrought(_) => {
                "run the same command again; ksync doctor SESSION tells which step fails"
            }
            Self::State { .. } => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the session is not there any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.exit_code() == 41
    }
}

/// What is being done, for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The API is asked for the session.
    LookUp,
    /// The VM is being set up.
    SetUp,
    /// A bridge of ksync's own is brought to the VM, which has none and cannot download one.
    BringBridge,
}

/// A session that was looked up and set up.
#[derive(Debug, Clone)]
pub struct Reached {
    /// How to connect to it.
    pub known: Known,
    /// What the VM told.
    pub provisioned: Provisioned,
}

impl Access {
    /// Where sessions are remembered.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(self.directory.join("sessions"))
    }

    /// The API.
    ///
    /// # Errors
    /// [`KernelError::NoApi`], or the settings cannot be used.
    pub fn api(&self) -> Result<Api, KernelError> {
        Ok(Api::new(self.api.as_ref().ok_or(KernelError::NoApi)?)?)
    }

    /// The id or name that `name` stands for.
    ///
    /// # Errors
    /// [`KernelError::NoCurrent`], or it can be neither.
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

    /// A session that was used before, if it is the same API and the same key that is wanted.
    #[must_use]
    pub fn remembered(&self, id_or_name: &str) -> Option<Known> {
        let known = self.store().find(id_or_name)?;
        let same_api = self.api.as_ref().is_none_or(|api| api.base_url == known.base_url);
        let same_key = self.identity.as_ref().is_none_or(|identity| *identity == known.key_file);
        (same_api && same_key && known.key_file.exists()).then_some(known)
    }

    /// Asks the API for a session, sets its VM up, and remembers it. Takes seconds, and a minute or two where
    /// something has to be installed first.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn reach(&self, id_or_name: &str, mut say: impl FnMut(Step)) -> Result<Reached, KernelError> {
        if self.api.is_none() {
            return Err(KernelError::NoKey(id_or_name.to_owned()));
        }
        let api = self.api()?;
        say(Step::LookUp);
        let browser = api.browser(id_or_name)?;
        self.set_up(&api, &browser, say)
    }

    /// Sets a session's VM up and remembers it.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn set_up(
        &self,
        api: &Api,
        browser: &Browser,
        mut say: impl FnMut(Step),
    ) -> Result<Reached, KernelError> {
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
                bring_bridge(api, &browser.session_id, &key.public)?
            }
            result => result?,
        };
        let known = Known {
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
        self.store().keep(&known).map_err(|source| self.state_error(source))?;
        Ok(Reached { known, provisioned })
    }

    /// Asks a session's VM, through the API, what of all that others connect to runs there. Takes seconds.
    ///
    /// # Errors
    /// [`KernelError`]: it cannot be asked, or the session is gone.
    pub fn look(&self, session_id: &str) -> Result<Look, KernelError> {
        Ok(look::read(&self.api()?.exec(session_id, &look::look())?))
    }

    /// Takes back what ksync left on a session's VM, and forgets the session.
    ///
    /// # Errors
    /// [`KernelError`]; it is forgotten only if that was done.
    pub fn clean_up(&self, id_or_name: &str) -> Result<(), KernelError> {
        let api = self.api()?;
        let browser = api.browser(id_or_name)?;
        let known = self.store().find(&browser.session_id);
        let key = match (&self.identity, &known) {
            (Some(file), _) => Key::named(file)?,
            (None, Some(known)) => Key::named(&known.key_file)?,
            (None, None) => Key::own(&self.keys(), self.key_name(&browser)?)?,
        };
        let executed = api.exec(&browser.session_id, &provision::cleanup(&key.public))?;
        if executed.exit_code != 0 {
            // Its output has the form of the other script's.
            provision::read(&executed)?;
        }
        self.forget(&browser.session_id);
        Ok(())
    }

    /// Forgets a session, and the key that was made for it.
    pub fn forget(&self, session_id: &str) {
        self.store().forget(session_id);
        if crate::kernel::known::is_plain(session_id) {
            Key::forget(&self.keys(), session_id);
        }
    }

    fn keys(&self) -> PathBuf {
        self.directory.join("keys")
    }

    fn key_name<'a>(&self, browser: &'a Browser) -> Result<&'a str, KernelError> {
        let id = &browser.session_id;
        if crate::kernel::known::is_plain(id) {
            Ok(id)
        } else {
            Err(KernelError::Name(escape(id.as_bytes()).into_owned()))
        }
    }

    /// What says that the state directory cannot be written to.
    pub fn state_error(&self, source: io::Error) -> KernelError {
        KernelError::State { path: self.directory.clone(), source }
    }
}

/// Writes our own bridge to the VM, and sets it up with that.
fn bring_bridge(api: &Api, session_id: &str, public_key: &str) -> Result<Provisioned, KernelError> {
    let image = BridgeImage::embedded();
    // One who is at the same writes to a file of another name.
    let file = provision::place(&format!("{}.gz", unique()));
    api.write_file(session_id, &file, 0o600, image.gzip).map_err(|error| match error.kind() {
        ApiErrorKind::SessionGone | ApiErrorKind::NotAuthorised => error.into(),
        _ => KernelError::NotBrought(Box::new(error)),
    })?;
    let bridge = provision::Brought { sha256: image.sha256, file: &file };
    let executed = api.exec(session_id, &provision::provision(public_key, Some(bridge)))?;
    Ok(provision::read(&executed)?)
}

/// A word that nobody else comes up with at the same time.
fn unique() -> String {
    let mut bytes = [0; 8];
    // Where there are no random numbers, others are unlikely enough to have our number, too.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format!("{:x}-{:016x}", std::process::id(), u64::from_le_bytes(bytes))
}
