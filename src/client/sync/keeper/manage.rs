//! `ksync keep list` and `ksync keep stop`.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use crate::remote::relay::tell;
use crate::sync::endpoint::Endpoint;
use crate::sync::job::ConnectOptions;
use crate::sync::keeper::ask::{kill, status};
use crate::sync::keeper::facts::Facts;
use crate::sync::keeper::message::{Ask, Status};
use crate::sync::keeper::place::Place;

/// Timeout for the state of a keeper.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Timeout for the end of a keeper that was asked to end.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Time for a keeper that starts to listen: so many times the pause.
const STARTS_ATTEMPTS: u32 = 100;
const STARTS_PAUSE: Duration = Duration::from_millis(50);

/// A keeper that runs.
pub struct Kept {
    place: Place,
    /// Its state; `None` if it does not answer.
    pub status: Option<Status>,
}

/// All keepers of this user that have connected.
pub async fn list() -> Vec<Kept> {
    let mut kept = all().await;
    kept.retain(|kept| kept.place.has_socket());
    kept
}

/// All keepers of this user, with those that are still connecting.
async fn all() -> Vec<Kept> {
    let mut kept = Vec::new();
    for place in Place::all() {
        let status = status(&place, ANSWERS_WITHIN).await;
        // A killed keeper leaves its socket, and no lock.
        if status.is_some() || place.is_taken() {
            kept.push(Kept { place, status });
        }
    }
    kept
}

/// Ends all keepers, or those of one endpoint. Returns their number.
pub async fn stop(endpoint: Option<(&Endpoint, &ConnectOptions)>) -> usize {
    let named = endpoint.map(|(endpoint, connect_options)| {
        let name = Facts::of(endpoint, connect_options).map(|facts| facts.name);
        (endpoint.clone().with_path(b"").to_string(), name)
    });
    let mut stopped = 0;
    for Kept { place, status } in all().await {
        let is_meant = named.as_ref().is_none_or(|(endpoint, name)| {
            status.as_ref().is_some_and(|status| status.endpoint == *endpoint)
                || name.as_deref() == Some(place.name())
        });
        if is_meant {
            end(&place).await;
            stopped += 1;
        }
    }
    stopped
}

/// Asks a keeper to end, and kills it if it does not.
async fn end(place: &Place) {
    let mut attempts = 0;
    let mut stream = loop {
        match place.connect().await {
            Some(stream) => break stream,
            None if !place.is_taken() || attempts == STARTS_ATTEMPTS => return,
            None => sleep(STARTS_PAUSE).await,
        }
        attempts += 1;
    };
    let asked = async {
        tell(&mut stream, &Ask::Stop).await?;
        // The end of the process closes the stream.
        stream.read(&mut [0]).await
    };
    if timeout(ENDS_WITHIN, asked).await.is_err() {
        kill(&stream);
    }
}
