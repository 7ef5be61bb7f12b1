//! `/browser_pools`: sessions to lend.
//!
//! The platform makes a session of a pool on its first use. While the session waits in the pool,
//! its clock stops. The next user finds its files, unless it was released with `reuse: false`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;

use super::answer::{Answer, PlatformError, empty, json_answer, read_json};
use super::browsers::Create;
use super::cloud::Cloud;
use super::pool::{Pool, Turn};
use super::rng;
use super::session::{Session, Wish};

/// Size of the largest pool.
const SIZE_MAX: usize = 100;

/// Default timeout of an acquisition, in seconds of the platform's time.
const ACQUIRE_DEFAULT: u64 = 60;

/// Poll interval of an acquisition.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
struct PoolCreate {
    size: usize,
    #[serde(flatten)]
    create: Create,
}

#[derive(Debug, Deserialize)]
struct Acquire {
    acquire_timeout_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Release {
    session_id: String,
    reuse: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Delete {
    force: Option<bool>,
}

/// `POST /browser_pools`.
pub(super) async fn create(cloud: &Cloud, body: Incoming) -> Result<Answer, PlatformError> {
    let PoolCreate { size, create } = read_json(body).await?;
    if !(1..=SIZE_MAX).contains(&size) {
        return Err(PlatformError::bad_request(format!("size must be between 1 and {SIZE_MAX}")));
    }
    // The name belongs to the pool, not to its sessions.
    let wish = create.wish()?;
    let name = wish.name.clone();
    let pool = Pool {
        id: rng::word(24).map_err(PlatformError::internal)?,
        name: name.clone(),
        size,
        wish: Wish { name: None, ..wish },
        created_at: SystemTime::now(),
        idle: VecDeque::new(),
        lent: BTreeSet::new(),
    };
    let answer = json_answer(StatusCode::CREATED, &pool.describe());
    let mut pools = cloud.pools();
    if let Some(name) = name.filter(|name| pools.iter().any(|pool| pool.is(name))) {
        let message = format!("a pool named {name} exists already");
        return Err(PlatformError::new(StatusCode::CONFLICT, "conflict", message));
    }
    pools.push(pool);
    Ok(answer)
}

/// `GET /browser_pools`.
pub(super) fn list(cloud: &Cloud) -> Answer {
    json_answer(StatusCode::OK, &cloud.pools().iter().map(Pool::describe).collect::<Vec<_>>())
}

/// `GET /browser_pools/{id_or_name}`.
pub(super) fn show(cloud: &Cloud, id: &str) -> Result<Answer, PlatformError> {
    with_pool(cloud, id, |pool| json_answer(StatusCode::OK, &pool.describe()))
}

/// `DELETE /browser_pools/{id_or_name}`: 409 while sessions are lent, unless forced.
pub(super) async fn delete(cloud: &Cloud, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let Delete { force } = read_json(body).await?;
    let pool = {
        let mut pools = cloud.pools();
        let index = pools.iter().position(|pool| pool.is(id)).ok_or_else(not_found)?;
        let is_busy = pools.get(index).is_some_and(|pool| !pool.lent.is_empty());
        if is_busy && force != Some(true) {
            return Err(PlatformError::new(
                StatusCode::CONFLICT,
                "conflict",
                "browsers of the pool are in use",
            ));
        }
        pools.remove(index)
    };
    for session_id in pool.idle.iter().chain(&pool.lent) {
        cloud.end(session_id).await;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /browser_pools/{id_or_name}/acquire`: 204 if no session became free in time.
pub(super) async fn acquire(cloud: &Arc<Cloud>, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let Acquire { acquire_timeout_seconds } = read_json(body).await?;
    let timeout = Duration::from_secs(acquire_timeout_seconds.unwrap_or(ACQUIRE_DEFAULT));
    let due = cloud.host.time.now().saturating_add(timeout);
    let ticket = rng::word(24).map_err(PlatformError::internal)?;
    loop {
        match with_pool(cloud, id, |pool| pool.turn(&ticket))? {
            Turn::Idle(session_id) => {
                let session = cloud.session(&session_id)?;
                session.leave(cloud.host.time.now());
                return Ok(lent(cloud, &session));
            }
            Turn::Fresh(wish) => {
                let made = cloud.start(wish).await;
                let recorded = with_pool(cloud, id, |pool| {
                    pool.lent.remove(&ticket);
                    pool.lent.extend(made.as_ref().ok().map(|session| session.id.clone()));
                });
                let session = made?;
                // The pool may have been deleted meanwhile, without this session.
                if let Err(error) = recorded.and_then(|()| cloud.keep(Arc::clone(&session), None)) {
                    session.end().await;
                    return Err(error);
                }
                return Ok(lent(cloud, &session));
            }
            Turn::Full if cloud.host.time.now() >= due => return Ok(empty(StatusCode::NO_CONTENT)),
            Turn::Full => {
                let left = due.saturating_sub(cloud.host.time.now());
                tokio::select! {
                    () = cloud.host.time.sleep(left) => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        }
    }
}

/// `POST /browser_pools/{id_or_name}/release`.
pub(super) async fn release(cloud: &Cloud, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let Release { session_id, reuse } = read_json(body).await?;
    let session = cloud.session(&session_id)?;
    let reuse = reuse.unwrap_or(true);
    let was_lent = with_pool(cloud, id, |pool| {
        let was_lent = pool.lent.contains(&session.id);
        if was_lent && reuse {
            pool.lent.remove(&session.id);
            pool.idle.push_back(session.id.clone());
            session.join();
        }
        was_lent
    })?;
    if !was_lent {
        return Err(PlatformError::bad_request("the browser was not acquired from this pool"));
    }
    if !reuse {
        cloud.end(&session.id).await;
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

fn lent(cloud: &Cloud, session: &Session) -> Answer {
    json_answer(StatusCode::OK, &session.describe(&cloud.host.time))
}

fn with_pool<T>(cloud: &Cloud, id: &str, act: impl FnOnce(&mut Pool) -> T) -> Result<T, PlatformError> {
    cloud.pools().iter_mut().find(|pool| pool.is(id)).map(act).ok_or_else(not_found)
}

fn not_found() -> PlatformError {
    PlatformError::not_found("browser pool")
}
