//! The platform's API: sessions, and the processes that run in them. This layer knows neither the
//! engine, the disk nor SSH. It finds the VM and prepares it; `remote` then connects to it.
//!
//! ```text
//! connect                  from a session's name to a VM that accepts ksync's key
//!  ├─ session_store, keys  sessions used before, and the keys for them
//!  ├─ provision            sets the VM up for SSH
//!  ├─ bridge_image         the bridge to upload to a VM that has none
//!  ├─ diagnose, resources  diagnosis of a VM if SSH fails; its free disk and memory
//!  └─ keep_alive, expiry   keep-alive and expiry of a session
//! api ── types, domain     calls, their arguments and answers
//!  └─ http ── retry        one call, with its retries
//!      ├─ settings         address and key of the API
//!      ├─ proxy            the same proxies as `remote`
//!      ├─ waits            waits that the API asks for, told to the user
//!      └─ tls              the same TLS roots as `remote`
//! ```
//!
//! An [`Api`] makes the calls that ksync needs. Each call blocks until it has an answer or an
//! [`ApiError`], and always ends. Four rules hold throughout:
//!
//! - ksync sends the key to the configured host only. It sends the key unencrypted only to this
//!   machine, never follows a redirect with it, and shows it in no error, `Debug` or log;
//! - the same holds for the tokens in the URLs of a [`Browser`];
//! - ksync reads every answer with a size limit, and escapes and cuts its text before showing it;
//! - an unknown field is no error, and no name becomes part of a path unencoded.

mod api;
mod api_key;
mod bridge_image;
mod connect;
mod diagnose;
mod domain;
mod error;
mod expiry;
mod http;
mod keep_alive;
mod keys;
mod provision;
mod proxy;
mod resources;
mod retry;
mod session_store;
mod settings;
#[cfg(test)]
mod testing;
mod tls;
mod types;
mod waits;

pub use api::Api;
pub use api_key::ApiKey;
pub use bridge_image::BridgeImage;
pub(crate) use connect::unconfirmed;
pub use connect::{Access, CURRENT, ConnectedVm, KernelError, Step};
pub use diagnose::Diagnosis;
pub use domain::{DomainError, Vm, VmDomain};
pub use error::{ApiError, ApiErrorKind, Call, StatusError};
pub use expiry::{Cause, End, Expiry, SHORT};
pub use keep_alive::{KeepAlive, State, keep_alive_remedy};
pub use keys::{Key, KeyError};
pub use provision::{ProvisionError, Provisioned};
pub use resources::{Resources, Room};
pub use session_store::{SessionStore, StoredSession, bridge_url};
pub use settings::{DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Settings};
pub use types::{Browser, Exec, Executed, Parameters, Pool};
pub use waits::Waits;
