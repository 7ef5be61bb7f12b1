//! `/browsers`: creates, shows, renames and deletes sessions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::HeaderName;
use serde::Deserialize;
use serde_json::Value;

use super::answer::{Answer, PlatformError, empty, json_answer, read_json, set};
use super::call::Asked;
use super::cloud::{Cloud, name_is_taken};
use super::faults::Fault;
use super::session::{Session, Wish};

/// Range of `timeout_seconds`.
const TIMEOUT: std::ops::RangeInclusive<u64> = 10..=259_200;

/// Default of `timeout_seconds`.
const TIMEOUT_DEFAULT: u64 = 60;

/// Default number of sessions per page.
const LIMIT_DEFAULT: usize = 20;

/// Most sessions per page.
const LIMIT_MAX: usize = 100;

/// Body of a creation. Its other fields concern browsers, which do not exist here.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Create {
    timeout_seconds: Option<u64>,
    headless: Option<bool>,
    stealth: Option<bool>,
    pub(super) name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
}

impl Create {
    /// Checks the fields.
    ///
    /// # Errors
    /// 400 if the timeout is out of range or the name is empty.
    pub(super) fn wish(self) -> Result<Wish, PlatformError> {
        let timeout_seconds = self.timeout_seconds.unwrap_or(TIMEOUT_DEFAULT);
        if !TIMEOUT.contains(&timeout_seconds) {
            let (least, most) = (TIMEOUT.start(), TIMEOUT.end());
            let message = format!("timeout_seconds must be between {least} and {most}");
            return Err(PlatformError::bad_request(message));
        }
        if self.name.as_ref().is_some_and(String::is_empty) {
            return Err(PlatformError::bad_request("name must not be empty"));
        }
        Ok(Wish {
            timeout: Duration::from_secs(timeout_seconds),
            headless: self.headless.unwrap_or(false),
            stealth: self.stealth.unwrap_or(false),
            name: self.name,
            tags: self.tags,
            pool: None,
            without_jwt: false,
            token_good_for: None,
        })
    }
}

#[derive(Debug, Deserialize)]
struct Patch {
    name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    timeout_seconds: Option<Value>,
}

/// `POST /browsers`.
pub(super) async fn create(
    cloud: &Arc<Cloud>,
    body: Incoming,
    fault: Option<&Fault>,
) -> Result<Answer, PlatformError> {
    let wish = Wish {
        without_jwt: fault.is_some_and(|fault| fault.without_jwt),
        token_good_for: fault.and_then(|fault| fault.token_seconds).map(Duration::from_secs),
        ..read_json::<Create>(body).await?.wish()?
    };
    let name = wish.name.clone();
    check_name(cloud, None, name.as_deref())?;
    let session = cloud.start(wish).await?;
    // Another request may have taken the name meanwhile.
    if let Err(error) = cloud.keep(Arc::clone(&session), name.as_deref()) {
        session.end().await;
        return Err(error);
    }
    Ok(described(cloud, &session))
}

/// `GET /browsers`.
pub(super) fn list(cloud: &Cloud, asked: &Asked<'_>) -> Result<Answer, PlatformError> {
    let status = asked.value("status").unwrap_or_else(|| "active".to_owned());
    if !["active", "deleted", "all"].contains(&status.as_str()) {
        return Err(PlatformError::bad_request("status must be active, deleted or all"));
    }
    let number = |name: &str, default: usize| match asked.value(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| PlatformError::bad_request(format!("invalid {name}"))),
    };
    let (limit, offset) = (number("limit", LIMIT_DEFAULT)?, number("offset", 0)?);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(PlatformError::bad_request(format!("limit must be between 1 and {LIMIT_MAX}")));
    }
    // The platform keeps no record of deleted sessions.
    let sessions = if status == "deleted" { Vec::new() } else { cloud.sessions() };
    let page: Vec<Value> =
        sessions.iter().skip(offset).take(limit).map(|session| session.describe(&cloud.host.time)).collect();
    let next = offset.saturating_add(page.len());
    let has_more = next < sessions.len();
    let mut answer = json_answer(StatusCode::OK, &page);
    set(&mut answer, HeaderName::from_static("x-has-more"), if has_more { "true" } else { "false" });
    // On the last page the platform answers 0.
    let next = if has_more { next } else { 0 };
    set(&mut answer, HeaderName::from_static("x-next-offset"), &next.to_string());
    Ok(answer)
}

/// `GET /browsers/{id_or_name}`.
pub(super) fn show(cloud: &Cloud, id: &str) -> Result<Answer, PlatformError> {
    Ok(described(cloud, &*cloud.session(id)?))
}

/// `DELETE /browsers/{id_or_name}`.
pub(super) async fn delete(cloud: &Cloud, id: &str) -> Result<Answer, PlatformError> {
    let session = cloud.session(id)?;
    cloud.end(&session.id).await;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `PATCH /browsers/{id_or_name}`.
pub(super) async fn patch(cloud: &Cloud, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let session = cloud.session(id)?;
    let patch: Patch = read_json(body).await?;
    if patch.timeout_seconds.is_some() {
        return Err(PlatformError::bad_request("timeout_seconds cannot be changed"));
    }
    check_name(cloud, Some(&session.id), patch.name.as_deref())?;
    {
        let mut wish = session.wish();
        // An empty name removes the name.
        if let Some(name) = patch.name {
            wish.name = Some(name).filter(|name| !name.is_empty());
        }
        wish.tags = patch.tags.or(wish.tags.take());
    }
    Ok(described(cloud, &session))
}

fn described(cloud: &Cloud, session: &Session) -> Answer {
    json_answer(StatusCode::OK, &session.describe(&cloud.host.time))
}

/// Checks that no other session has the name.
fn check_name(cloud: &Cloud, own_id: Option<&str>, name: Option<&str>) -> Result<(), PlatformError> {
    let Some(name) = name else { return Ok(()) };
    match cloud.session(name) {
        Ok(other) if own_id != Some(other.id.as_str()) => Err(name_is_taken(name)),
        _ => Ok(()),
    }
}
