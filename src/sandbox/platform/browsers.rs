//! `/browsers`: creates, shows, renames and deletes sessions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{Answer, PlatformError, empty, json_answer, read_json};
use super::call::Asked;
use super::cloud::{Cloud, name_is_taken};
use super::faults::Fault;
use super::page;
use super::properties::Properties;
use super::query;
use super::session::{Session, Wish};

/// Range of `timeout_seconds`.
const TIMEOUT: std::ops::RangeInclusive<u64> = 10..=259_200;

/// Default of `timeout_seconds`.
const TIMEOUT_DEFAULT: u64 = 60;

/// Most tags of a session.
const TAGS_MAX: usize = 50;

/// Body of a creation.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Create {
    timeout_seconds: Option<u64>,
    headless: Option<bool>,
    stealth: Option<bool>,
    pub(super) name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    /// The properties that the emulator only keeps.
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Create {
    /// Checks the fields.
    ///
    /// # Errors
    /// 400 if a value is out of range or not offered, or if the name is empty.
    pub(super) fn wish(self) -> Result<Wish, PlatformError> {
        if self.name.as_ref().is_some_and(String::is_empty) {
            return Err(PlatformError::bad_request("name must not be empty"));
        }
        check_tags(self.tags.as_ref())?;
        let headless = self.headless.unwrap_or(false);
        Ok(Wish {
            timeout: timeout(self.timeout_seconds.unwrap_or(TIMEOUT_DEFAULT))?,
            headless,
            stealth: self.stealth.unwrap_or(false),
            name: self.name,
            tags: self.tags,
            properties: Properties::new(self.others, headless)?,
            pool: None,
            without_jwt: false,
            token_good_for: None,
        })
    }

    /// Applies a `PATCH` of a pool to the wish for its sessions.
    ///
    /// # Errors
    /// As for [`wish`](Self::wish).
    pub(super) fn change(self, wish: &mut Wish) -> Result<(), PlatformError> {
        let headless = self.headless.unwrap_or(wish.headless);
        let timeout = self.timeout_seconds.map(timeout).transpose()?;
        wish.properties.replace(self.others, headless)?;
        wish.headless = headless;
        wish.stealth = self.stealth.unwrap_or(wish.stealth);
        wish.timeout = timeout.unwrap_or(wish.timeout);
        Ok(())
    }
}

fn timeout(seconds: u64) -> Result<Duration, PlatformError> {
    if TIMEOUT.contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let (least, most) = (TIMEOUT.start(), TIMEOUT.end());
    Err(PlatformError::bad_request(format!("timeout_seconds must be between {least} and {most}")))
}

#[derive(Debug, Deserialize)]
struct Patch {
    name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    others: Map<String, Value>,
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
    let default = if includes_deleted(asked) { "all" } else { "active" };
    let status = asked.value("status").unwrap_or_else(|| default.to_owned());
    if !["active", "deleted", "all"].contains(&status.as_str()) {
        return Err(PlatformError::bad_request("status must be active, deleted or all"));
    }
    let mut browsers = Vec::new();
    if status != "active" {
        browsers.extend(cloud.deleted().iter().cloned());
    }
    if status != "deleted" {
        browsers.extend(cloud.sessions().iter().map(|session| session.describe(&cloud.host.time)));
    }
    browsers.retain(|browser| is_wanted(browser, asked));
    page::page(&browsers, asked)
}

/// Checks the description of a session against the filters of a list.
fn is_wanted(browser: &Value, asked: &Asked<'_>) -> bool {
    let text = |pointer| browser.pointer(pointer).and_then(Value::as_str);
    let texts =
        ["/name", "/session_id", "/profile/name", "/profile/id", "/proxy_id", "/proxy/id", "/pool/name"];
    page::has_text(asked, texts.into_iter().filter_map(text))
        && page::is_in_region(asked, text("/region").unwrap_or_default())
        && query::object(asked.query, "tags").all(|(name, value)| {
            let tag = browser.get("tags").and_then(|tags| tags.get(&name));
            tag.and_then(Value::as_str) == Some(&value)
        })
}

fn includes_deleted(asked: &Asked<'_>) -> bool {
    asked.value("include_deleted").as_deref() == Some("true")
}

/// `GET /browsers/{id_or_name}`.
pub(super) fn show(cloud: &Cloud, asked: &Asked<'_>) -> Result<Answer, PlatformError> {
    let is_it = |browser: &&Value| {
        ["session_id", "name"]
            .iter()
            .any(|field| browser.get(field).and_then(Value::as_str) == Some(asked.id))
    };
    match cloud.session(asked.id) {
        Ok(session) => Ok(described(cloud, &session)),
        Err(error) if !includes_deleted(asked) => Err(error),
        Err(error) => {
            let deleted = cloud.deleted();
            let found = deleted.iter().rev().find(is_it).ok_or(error)?;
            Ok(json_answer(StatusCode::OK, found))
        }
    }
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
    check_name(cloud, Some(&session.id), patch.name.as_deref())?;
    check_tags(patch.tags.as_ref())?;
    {
        let mut wish = session.wish();
        let headless = wish.headless;
        wish.properties.patch(patch.others, headless)?;
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

fn check_tags(tags: Option<&BTreeMap<String, String>>) -> Result<(), PlatformError> {
    if tags.is_some_and(|tags| tags.len() > TAGS_MAX) {
        return Err(PlatformError::bad_request(format!("at most {TAGS_MAX} tags are allowed")));
    }
    Ok(())
}

/// Checks that no other session has the name.
pub(super) fn check_name(
    cloud: &Cloud,
    own_id: Option<&str>,
    name: Option<&str>,
) -> Result<(), PlatformError> {
    let Some(name) = name else { return Ok(()) };
    match cloud.session(name) {
        Ok(other) if own_id != Some(other.id.as_str()) => Err(name_is_taken(name)),
        _ => Ok(()),
    }
}
