//! Timeouts of the steps of connecting.

use std::time::Duration;

use tokio::time::Instant;

use crate::log::debug;
use crate::remote::error::RemoteError;

/// Timeout for closing the session cleanly.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `work` with a timeout.
pub(super) async fn within<T>(
    timeout: Duration,
    verb: &'static str,
    endpoint: &str,
    work: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    let begin = Instant::now();
    let result = match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(RemoteError::TimedOut { verb, endpoint: endpoint.into(), after: timeout }),
    };
    let (ms, is_ok) = (begin.elapsed().as_millis(), result.is_ok());
    debug!("connect ok={is_ok} ms={ms} endpoint={endpoint} step={verb}");
    result
}
