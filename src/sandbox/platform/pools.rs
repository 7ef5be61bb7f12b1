//! `/browser_pools`: sessions to lend.
//!
//! The platform makes a session of a pool on its first use. While the session waits in the pool,
//! its clock stops. The next user finds its files, unless it was released with `reuse: false`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, PlatformError, empty, json_answer, read_json};
use super::browsers::{self, Create};
use super::call::Asked;
use super::cloud::Cloud;
use super::page;
use super::pool::{Pool, Turn};
use super::rng;
use super::session::{Session, Wish};

/// Size of the largest pool.
const SIZE_MAX: usize = 100;

/// Default timeout of an acquisition, in seconds of the platform's time.
const ACQUIRE_DEFAULT: u64 = 60;

/// Default percentage of a pool to fill per minute.
const FILL_RATE_DEFAULT: u32 = 25;

/// Poll interval of an acquisition.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
struct PoolCreate {
    size: usize,
    fill_rate_per_minute: Option<u32>,
    refresh_on_profile_update: Option<bool>,
    #[serde(flatten)]
    create: Create,
}

#[derive(Debug, Deserialize)]
struct PoolPatch {
    size: Option<usize>,
    fill_rate_per_minute: Option<u32>,
    refresh_on_profile_update: Option<bool>,
    discard_all_idle: Option<bool>,
    region: Option<String>,
    expected_network: Option<Value>,
    #[serde(flatten)]
    create: Create,
}

/// Body of an acquisition. Everything but the timeout is for this lease only.
#[derive(Debug, Deserialize)]
struct Acquire {
    acquire_timeout_seconds: Option<u64>,
    name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Properties that an acquisition may set, besides the name and the tags.
const LEASED: [&str; 3] = ["profile", "start_url", "telemetry"];

impl Acquire {
    /// Gives a session the properties of the lease.
    fn apply(&self, wish: &mut Wish) -> Result<(), PlatformError> {
        let headless = wish.headless;
        wish.properties.patch(self.others.clone(), headless)?;
        wish.name.clone_from(&self.name);
        wish.tags.clone_from(&self.tags);
        Ok(())
    }
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
    let PoolCreate { size, fill_rate_per_minute, refresh_on_profile_update, create } =
        read_json(body).await?;
    check_size(size)?;
    // The name belongs to the pool, not to its sessions.
    let wish = create.wish()?;
    let name = wish.name.clone();
    let has_profile = wish.properties.profile().is_some();
    let pool = Pool {
        id: rng::word(24).map_err(PlatformError::internal)?,
        name: name.clone(),
        size,
        wish: Wish { name: None, ..wish },
        fill_rate_per_minute: fill_rate_per_minute.unwrap_or(FILL_RATE_DEFAULT),
        refresh_on_profile_update: refresh_on_profile_update.or(has_profile.then_some(true)),
        created_at: SystemTime::now(),
        idle: VecDeque::new(),
        lent: BTreeSet::new(),
    };
    let answer = json_answer(StatusCode::CREATED, &pool.describe());
    let mut pools = cloud.pools();
    check_name(&pools, None, name.as_deref())?;
    pools.push(pool);
    Ok(answer)
}

fn check_size(size: usize) -> Result<(), PlatformError> {
    if (1..=SIZE_MAX).contains(&size) {
        return Ok(());
    }
    Err(PlatformError::bad_request(format!("size must be between 1 and {SIZE_MAX}")))
}

/// Checks that no other pool has the name.
fn check_name(pools: &[Pool], own_id: Option<&str>, name: Option<&str>) -> Result<(), PlatformError> {
    let Some(name) = name else { return Ok(()) };
    if pools.iter().any(|pool| pool.is(name) && own_id != Some(pool.id.as_str())) {
        let message = format!("a pool named {name} exists already");
        return Err(PlatformError::new(StatusCode::CONFLICT, "conflict", message));
    }
    Ok(())
}

/// `GET /browser_pools`.
pub(super) fn list(cloud: &Cloud, asked: &Asked<'_>) -> Result<Answer, PlatformError> {
    let wanted_name = asked.value("name").map(|name| name.to_lowercase());
    // The query is part of a name, or an id.
    let has_text = |pool: &Pool| {
        asked.value("query").as_ref() == Some(&pool.id)
            || page::has_text(asked, pool.name.as_deref().into_iter())
    };
    let is_wanted = |pool: &&Pool| {
        let name = pool.name.as_deref().unwrap_or_default().to_lowercase();
        wanted_name.as_ref().is_none_or(|wanted| *wanted == name)
            && page::is_in_region(asked, pool.wish.properties.region())
            && has_text(pool)
    };
    let pools: Vec<Value> = cloud.pools().iter().filter(is_wanted).map(Pool::describe).collect();
    page::page(&pools, asked)
}

/// `PATCH /browser_pools/{id_or_name}`: concerns the sessions that are made afterwards.
pub(super) async fn patch(cloud: &Cloud, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let mut patch: PoolPatch = read_json(body).await?;
    if patch.region.is_some() {
        return Err(PlatformError::bad_request("region cannot be changed"));
    }
    patch.size.map_or(Ok(()), check_size)?;
    // An empty name changes nothing.
    let name = patch.create.name.take().filter(|name| !name.is_empty());
    let (answer, discarded) = {
        let mut pools = cloud.pools();
        let own_id =
            pools.iter().find(|pool| pool.is(id)).map(|pool| pool.id.clone()).ok_or_else(not_found)?;
        check_name(&pools, Some(&own_id), name.as_deref())?;
        let pool = pools.iter_mut().find(|pool| pool.id == own_id).ok_or_else(not_found)?;
        // A precondition: what the caller last saw.
        let network = pool.wish.properties.requested().get("network").cloned().unwrap_or(json!({}));
        if patch.expected_network.is_some_and(|expected| expected != network) {
            let message = "the network configuration has changed";
            return Err(PlatformError::new(StatusCode::CONFLICT, "stale_network", message));
        }
        patch.create.change(&mut pool.wish)?;
        pool.name = name.or(pool.name.take());
        pool.size = patch.size.unwrap_or(pool.size);
        pool.fill_rate_per_minute = patch.fill_rate_per_minute.unwrap_or(pool.fill_rate_per_minute);
        pool.refresh_on_profile_update = patch.refresh_on_profile_update.or(pool.refresh_on_profile_update);
        let discards = patch.discard_all_idle == Some(true);
        let discarded = if discards { std::mem::take(&mut pool.idle) } else { VecDeque::new() };
        (json_answer(StatusCode::OK, &pool.describe()), discarded)
    };
    end_all(cloud, discarded).await;
    Ok(answer)
}

/// `POST /browser_pools/{id_or_name}/flush`: discards the idle sessions.
pub(super) async fn flush(cloud: &Cloud, id: &str) -> Result<Answer, PlatformError> {
    let idle = with_pool(cloud, id, |pool| std::mem::take(&mut pool.idle))?;
    end_all(cloud, idle).await;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn end_all(cloud: &Cloud, ids: impl IntoIterator<Item = String>) {
    for id in ids {
        cloud.end(&id).await;
    }
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
    end_all(cloud, pool.idle.into_iter().chain(pool.lent)).await;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /browser_pools/{id_or_name}/acquire`: 204 if no session became free in time.
pub(super) async fn acquire(cloud: &Arc<Cloud>, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let mut lease: Acquire = read_json(body).await?;
    lease.others.retain(|name, _| LEASED.contains(&name.as_str()));
    lease.apply(&mut with_pool(cloud, id, |pool| pool.wish.clone())?)?;
    let timeout = Duration::from_secs(lease.acquire_timeout_seconds.unwrap_or(ACQUIRE_DEFAULT));
    let due = cloud.host.time.now().saturating_add(timeout);
    let ticket = rng::word(24).map_err(PlatformError::internal)?;
    loop {
        browsers::check_name(cloud, None, lease.name.as_deref())?;
        match with_pool(cloud, id, |pool| pool.turn(&ticket))? {
            Turn::Idle(session_id) => {
                let session = cloud.session(&session_id)?;
                lease.apply(&mut session.wish())?;
                session.leave(cloud.host.time.now());
                return Ok(lent(cloud, &session));
            }
            Turn::Fresh(mut wish) => {
                let applied = lease.apply(&mut wish);
                let made = match applied {
                    Ok(()) => cloud.start(wish).await,
                    Err(error) => Err(error),
                };
                let recorded = with_pool(cloud, id, |pool| {
                    pool.lent.remove(&ticket);
                    pool.lent.extend(made.as_ref().ok().map(|session| session.id.clone()));
                });
                let session = made?;
                // The pool may have been deleted meanwhile, without this session, and another
                // request may have taken the name.
                let name = lease.name.as_deref();
                if let Err(error) = recorded.and_then(|()| cloud.keep(Arc::clone(&session), name)) {
                    cloud.end(&session.id).await;
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
    let (was_lent, reuse) = with_pool(cloud, id, |pool| {
        let was_lent = pool.lent.contains(&session.id);
        let mut wish = session.wish();
        // A session with a profile of its lease's own is not used again.
        let has_own_profile = wish.properties.profile() != pool.wish.properties.profile();
        let reuse = reuse.unwrap_or(true) && !has_own_profile;
        if was_lent && reuse {
            wish.name = None;
            wish.tags = None;
            wish.properties.reset_telemetry(&pool.wish.properties);
            pool.lent.remove(&session.id);
            pool.idle.push_back(session.id.clone());
            session.join();
        }
        (was_lent, reuse)
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
