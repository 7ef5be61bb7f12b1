//! `ksync flush`: waits until everything that was saved has been copied.

use std::path::PathBuf;
use std::time::Duration;

use ksync::sync::watch::{NotFlushed, request_flush};

use crate::report::{BRAKE, CliError, NOT_STARTED, TIMEOUT, USAGE};
use crate::run::block_on;
use crate::verbs::FlushArgs;

/// Runs the flush.
pub(crate) fn run(args: &FlushArgs) -> Result<u8, CliError> {
    let local = PathBuf::from(&args.endpoint);
    let timeout = Duration::from_secs(args.timeout);
    block_on(async {
        request_flush(&local, timeout).await.map(|()| 0).map_err(|error| {
            let (exit, hint) = match &error {
                NotFlushed::NotWatched(_) => {
                    (USAGE, "Begin with ksync --watch, and name its local side here.")
                }
                NotFlushed::Late => {
                    (TIMEOUT, "Look at what the ksync that watches says, or give it more with --timeout.")
                }
                NotFlushed::Braked => (
                    BRAKE,
                    "Look at what the ksync that watches says; ksync --delete --yes SOURCE DEST deletes it.",
                ),
                NotFlushed::Ended => (NOT_STARTED, "Begin again with ksync --watch."),
                NotFlushed::Sync(_) => (NOT_STARTED, "Set HOME."),
            };
            CliError::caused(exit, &error).with_hint(Some(hint))
        })
    })
}
