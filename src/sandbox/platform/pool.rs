//! A pool: sessions that wait for a user, and sessions that have one.

use std::collections::{BTreeSet, VecDeque};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::rfc3339;
use super::session::Wish;

/// A pool of sessions.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) size: usize,
    pub(super) wish: Wish,
    /// Percentage of the pool to fill per minute. The emulator makes sessions on demand.
    pub(super) fill_rate_per_minute: u32,
    pub(super) refresh_on_profile_update: Option<bool>,
    pub(super) created_at: SystemTime,
    pub(super) idle: VecDeque<String>,
    pub(super) lent: BTreeSet<String>,
}

/// Result of an attempt to acquire.
pub(super) enum Turn {
    /// A session that already exists.
    Idle(String),
    /// A session to be made, for which the pool has room.
    Fresh(Wish),
    Full,
}

impl Pool {
    /// The API's description of the pool.
    pub(super) fn describe(&self) -> Value {
        let properties = &self.wish.properties;
        let mut config = properties.requested().clone();
        let own = [
            ("size", json!(self.size)),
            ("fill_rate_per_minute", json!(self.fill_rate_per_minute)),
            ("headless", json!(self.wish.headless)),
            ("stealth", json!(self.wish.stealth)),
            ("timeout_seconds", json!(self.wish.timeout.as_secs())),
        ];
        config.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let optional = [
            ("name", self.name.as_ref().map(|name| json!(name))),
            ("refresh_on_profile_update", self.refresh_on_profile_update.map(|refresh| json!(refresh))),
        ];
        config.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        // The region is a field of the pool.
        config.remove("region");
        // There are no extensions here, so a name is its own id.
        let extensions = properties.requested().get("extensions").and_then(Value::as_array);
        let extension_ids =
            extensions.into_iter().flatten().filter_map(|one| one.get("id").or(one.get("name")));
        let mut value = json!({
            "id": self.id,
            "created_at": rfc3339::format(self.created_at),
            "available_count": self.size.saturating_sub(self.lent.len()),
            "acquired_count": self.lent.len(),
            "extension_ids": extension_ids.collect::<Vec<_>>(),
            "region": properties.region(),
            "browser_pool_config": config,
        });
        if let Some(fields) = value.as_object_mut() {
            let optional = [("name", self.name.as_deref()), ("profile_id", properties.profile())];
            fields.extend(
                optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))),
            );
        }
        value
    }

    /// Reports if the pool has this id or name.
    pub(super) fn is(&self, id_or_name: &str) -> bool {
        self.id == id_or_name || self.name.as_deref() == Some(id_or_name)
    }

    /// Takes an idle session, or else a place for a new one, under `ticket`.
    pub(super) fn turn(&mut self, ticket: &str) -> Turn {
        if let Some(id) = self.idle.pop_front() {
            self.lent.insert(id.clone());
            Turn::Idle(id)
        } else if self.lent.len() < self.size {
            self.lent.insert(ticket.to_owned());
            Turn::Fresh(Wish { pool: Some((self.id.clone(), self.name.clone())), ..self.wish.clone() })
        } else {
            Turn::Full
        }
    }

    /// Forgets a session that has ended.
    pub(super) fn forget(&mut self, session_id: &str) {
        self.lent.remove(session_id);
        self.idle.retain(|id| id != session_id);
    }
}
