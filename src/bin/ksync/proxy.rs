//! `ksync proxy`: connects standard input and output to a bridge, for the `ProxyCommand` of ssh,
//! scp and sftp.

use std::time::{Duration, SystemTime};

use ksync::kernel::{Access, Expiry, KeepAlive, State, StoredSession};
use ksync::monitor::Warning;
use ksync::remote;

use crate::out;
use crate::report::CliError;
use crate::request;
use crate::run::{Signals, block_on};
use crate::screen::warned;
use crate::verbs::ProxyArgs;

/// The timeouts for opening the connection and for a silent bridge.
const TIMEOUT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);

/// Carries bytes until either side ends.
pub(crate) fn run(args: &ProxyArgs) -> Result<u8, CliError> {
    let ca_cert = args.access.ca_cert.clone();
    let is_url = args.target.contains("://");
    let access = if is_url { None } else { Some(request::access(&args.access)?) };
    let stored = access.as_ref().map(|access| stored(access, &args.target)).transpose()?;
    let url = stored.as_ref().map_or_else(|| args.target.clone(), StoredSession::bridge_url);
    if let Some(warning) = stored.as_ref().and_then(warning) {
        out::note(&warned(&warning));
    }
    block_on(async {
        let mut signals = Signals::new()?;
        let _alive = access.zip(stored).map(|(access, stored)| {
            KeepAlive::begin(&stored, &access, ca_cert.clone(), false, |state| {
                if let State::Lost(what, hint) | State::Expires(what, hint) = state {
                    out::note(&warned(&Warning { what, hint }));
                }
            })
        });
        let carried = tokio::select! {
            carried = remote::proxy(&url, ca_cert.as_deref(), TIMEOUT, SILENCE) => carried,
            () = signals.wait() => Ok(()),
        };
        carried.map(|()| 0).map_err(|error| CliError::from(ksync::sync::SyncError::from(error)))
    })
}

/// The session from the session store, if it is there: ssh then finds out if the entry still holds.
/// The API must confirm a name, which another session may have got since.
fn stored(access: &Access, target: &str) -> Result<StoredSession, CliError> {
    let warn = |what, hint| out::note(&warned(&Warning { what, hint }));
    let id = access.id_of(&access.meant(target)?, warn)?;
    match access.stored(&id) {
        Some(stored) => Ok(stored),
        None => Ok(access.connect(&id, |_| {})?.stored),
    }
}

/// A warning about a session that ends soon. Shown only at the start: later the terminal belongs to
/// another program.
fn warning(stored: &StoredSession) -> Option<Warning> {
    let now = SystemTime::now();
    let end = Expiry::of(stored).end(now, true).filter(|end| end.is_short_in(now).is_zero())?;
    let (what, hint) = end.told(stored.name.as_ref().unwrap_or(&stored.session_id), now);
    Some(Warning { what, hint })
}
