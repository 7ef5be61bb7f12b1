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
        json!({
            "id": self.id,
            "name": self.name,
            "created_at": rfc3339::format(self.created_at),
            "available_count": self.size.saturating_sub(self.lent.len()),
            "acquired_count": self.lent.len(),
            "browser_pool_config": {
                "size": self.size,
                "name": self.name,
                "headless": self.wish.headless,
                "stealth": self.wish.stealth,
                "timeout_seconds": self.wish.timeout.as_secs(),
            },
        })
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
