//! The state that all calls share: the host, the sessions and the pools.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use hyper::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;

use super::answer::PlatformError;
use super::call::Call;
use super::host::Host;
use super::life::Stage;
use super::pool::Pool;
use super::session::{Session, Wish};
use super::{query, rfc3339};

/// Most deleted sessions that stay on record.
const DELETED_MAX: usize = 1000;

/// Serves the HTTP connections of a listener until the task is aborted. The id is that of the
/// session that has this address, if it is a session's own.
///
/// The cloud holds this function, because a request may make a session with such an address. The
/// future is boxed, because it would contain itself.
pub(super) type Serve = fn(Arc<Cloud>, TcpListener, Option<String>) -> BoxFuture<'static, ()>;

/// A platform: its host, and the lists of what its callers made.
#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) api_key: String,
    pub(super) host: Arc<Host>,
    serve: Serve,
    calls: Mutex<BTreeMap<Call, u64>>,
    sessions: Mutex<Vec<Arc<Session>>>,
    pools: Mutex<Vec<Pool>>,
    /// Descriptions of the deleted sessions, the oldest first.
    deleted: Mutex<VecDeque<Value>>,
}

impl Cloud {
    /// Makes a platform without sessions, whose sessions' own addresses `serve` serves.
    pub(super) fn new(host: Host, api_key: String, serve: Serve) -> Cloud {
        Cloud {
            api_key,
            host: Arc::new(host),
            serve,
            calls: Mutex::default(),
            sessions: Mutex::default(),
            pools: Mutex::default(),
            deleted: Mutex::default(),
        }
    }

    /// All sessions, the oldest first.
    pub(super) fn sessions(&self) -> Vec<Arc<Session>> {
        self.listed().clone()
    }

    /// Finds a session by id or name.
    pub(super) fn session(&self, id_or_name: &str) -> Result<Arc<Session>, PlatformError> {
        let sessions = self.listed();
        let by_id = sessions.iter().find(|session| session.id == id_or_name);
        let named = || sessions.iter().find(|session| session.wish().name.as_deref() == Some(id_or_name));
        by_id.or_else(named).cloned().ok_or_else(|| PlatformError::not_found("browser"))
    }

    /// Finds the session of the `jwt` in a query.
    ///
    /// # Errors
    /// 401 if no session has the token, or if it has expired.
    pub(super) fn session_of_token(&self, query: Option<&str>) -> Result<Arc<Session>, PlatformError> {
        let jwt = query::value(query, "jwt").unwrap_or_default();
        let now = self.host.time.now();
        let is_good = |session: &Session| session.token.as_ref() == Some(&jwt) && now < session.token_expires;
        let found = self.listed().iter().find(|session| is_good(session)).cloned();
        found.ok_or_else(|| {
            let message = "no such session, or it has ended";
            PlatformError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
        })
    }

    /// Descriptions of the deleted sessions, the oldest first.
    pub(super) fn deleted(&self) -> MutexGuard<'_, VecDeque<Value>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a session that is not on the list yet.
    ///
    /// # Errors
    /// As for [`Session::start`].
    pub(super) async fn start(self: &Arc<Self>, wish: Wish) -> Result<Arc<Session>, PlatformError> {
        let serve = |listener, id| tokio::spawn((self.serve)(Arc::clone(self), listener, Some(id)));
        Session::start(&self.host, wish, serve).await
    }

    /// Adds a session to the list, unless another one has its name.
    pub(super) fn keep(&self, session: Arc<Session>, name: Option<&str>) -> Result<(), PlatformError> {
        let mut sessions = self.listed();
        if let Some(name) = name
            && sessions.iter().any(|other| other.wish().name.as_deref() == Some(name))
        {
            return Err(name_is_taken(name));
        }
        sessions.push(session);
        Ok(())
    }

    /// Ends a session, if it still exists.
    pub(super) async fn end(&self, id: &str) {
        let session = {
            let mut sessions = self.listed();
            let index = sessions.iter().position(|session| session.id == id);
            index.map(|index| sessions.remove(index))
        };
        for pool in self.pools().iter_mut() {
            pool.forget(id);
        }
        if let Some(session) = session {
            self.record(session.describe(&self.host.time));
            session.end().await;
        }
    }

    /// Puts a deleted session on record.
    fn record(&self, mut description: Value) {
        if let Some(fields) = description.as_object_mut() {
            fields.insert("deleted_at".to_owned(), rfc3339::format(SystemTime::now()).into());
            fields.insert("usage_status".to_owned(), "ready".into());
        }
        let mut deleted = self.deleted();
        deleted.push_back(description);
        if deleted.len() > DELETED_MAX {
            deleted.pop_front();
        }
    }

    /// Ends the sessions whose time is over.
    pub(super) async fn reap(&self) {
        let now = self.host.time.now();
        for session in self.sessions() {
            if session.stage(now) == Stage::Over {
                self.end(&session.id).await;
            }
        }
    }

    /// Drops all sessions, which hold the cloud that holds them.
    pub(super) fn forget_sessions(&self) {
        self.listed().clear();
    }

    fn listed(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pools(&self) -> MutexGuard<'_, Vec<Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, call: Call) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(call).or_default() += 1;
    }

    pub(super) fn calls(&self) -> BTreeMap<Call, u64> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_calls(&self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// 409: another session has the name.
pub(super) fn name_is_taken(name: &str) -> PlatformError {
    PlatformError::new(StatusCode::CONFLICT, "conflict", format!("a browser named {name} is active already"))
}
