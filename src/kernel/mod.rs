//! The platform's API: sessions, and what runs in them. Knows neither the engine nor the disk, and nothing of
//! SSH: it finds the VM and prepares it, `remote` goes there.
//!
//! ```text
//! reach ─ known, keys      from a name to a VM that lets us in
//!  ├─ provision            what makes it do so
//!  ├─ bridge_image         what is put there where it has no bridge
//!  ├─ look                 what it says of itself when nobody gets in
//!  └─ alive, life          what keeps it awake, and for how long
//! api ── types, domain     what is asked and answered
//!  └─ http ── retry        one call, made again where that helps
//!      ├─ settings         where the API is, and who asks
//!      └─ tls              the roots that `remote` trusts too
//! ```
//!
//! An [`Api`] makes the calls that ksync needs, each blocking until it has an answer or an [`ApiError`], for
//! which there is always an end. What holds throughout:
//!
//! - the key goes to the configured host alone: never in clear but to this machine, never along with a
//!   redirect, and into no error, no `Debug` and no log;
//! - the same goes for the tokens in the URLs of a [`Browser`];
//! - every answer is read with a limit, and what it says is escaped and cut before it is shown;
//! - a field that is not known is not an error, and no name ever becomes part of a path unencoded.

mod alive;
mod api;
mod bridge_image;
mod domain;
mod error;
mod http;
mod keys;
mod known;
mod life;
mod look;
mod provision;
mod reach;
mod retry;
mod settings;
#[cfg(test)]
mod testing;
mod tls;
mod types;

pub use alive::KeepAlive;
pub use api::Api;
pub use bridge_image::BridgeImage;
pub use domain::{DomainError, Vm, VmDomain};
pub use error::{ApiError, ApiErrorKind, Call, Refusal};
pub use keys::{Key, KeyError};
pub use known::{Known, Store, bridge_url};
pub use life::{Cause, End, Life, SHORT};
pub use look::Look;
pub use provision::{ProvisionError, Provisioned};
pub use reach::{Access, CURRENT, KernelError, Reached, Step};
pub use settings::{ApiKey, DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Settings};
pub use types::{Browser, Exec, Executed, NewBrowser, Pool};
