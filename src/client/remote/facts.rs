//! Facts about hosts that make their next connection fast: the server, its key exchange, the user
//! key that it let in, and the agent that is installed there.
//!
//! They prove nothing. The host key is checked as ever, and facts that are wrong or lost cost one
//! connection more. Errors of the file are therefore ignored.
//!
//! The file has one line for each login on each host, newest first. A writer holds a lock while it
//! reads and replaces the file. A line that this version cannot read counts as unknown.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use ksync_ssh::{Facts, Guess, KEY_EXCHANGES};
use russh::keys::PublicKey;

use crate::private;
use crate::remote::hostkey::HostKeys;
use crate::remote::target::{Target, Transport};

/// First word of each line: the version of its fields.
const VERSION: &str = "1";

/// Logins that the file keeps; the oldest are dropped. A line has about 300 bytes.
const LOGINS_MAX: usize = 128;

/// Hex digits of a login's name, and longest text of a field.
const NAME_DIGITS: usize = 32;
const FIELD_BYTES_MAX: usize = 255;

/// A field that is not known.
const NONE: &str = "-";

/// Fast connections that may fail in a row, for a reason that may pass, before the host counts as
/// slow.
const FAILURES_MAX: u8 = 2;

/// Connections in order after which a host that is slow for such a reason is tried again.
const PENALTY: u8 = 16;

/// The number for a host that does not take the fast order: slow until it changes.
const LASTING: u8 = u8::MAX;

/// Factor by which a round trip must differ to be written again.
const ROUND_TRIP_FACTOR: u32 = 2;

/// The agent that a login found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledAgent {
    /// The SHA-256 of the program, in hex.
    pub sha256: String,
    /// It is in the directory that the short command looks into.
    pub is_in_cache: bool,
}

/// Facts about a login on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The server's identification: `SSH-2.0-OpenSSH_9.2p1`.
    pub server_id: String,
    /// The key exchange to offer.
    pub key_exchange: String,
    /// The algorithm of the host key.
    pub host_key: String,
    /// The key exchange was strict.
    pub is_strict: bool,
    /// The cipher was chosen that most servers have, so no other one need be offered.
    pub is_lean: bool,
    /// SHA-256 of the user key that was let in, in hex.
    pub user_key: Option<String>,
    /// Fast connections that failed in a row with these facts.
    pub failures: u8,
    /// A round trip.
    pub round_trip: Option<Duration>,
    /// The agent.
    pub agent: Option<InstalledAgent>,
}

impl HostFacts {
    /// Facts that provisioning knows before the first connection: `sshd`'s identification, its
    /// `kexalgorithms`, and public keys of the host and of the user as lines of OpenSSH. That the
    /// exchange is strict is assumed, and checked. Returns `None` if they allow no fast connection.
    #[must_use]
    pub fn provisioned(server_id: &str, key_exchanges: &str, host_key: &str, user_key: &str) -> Option<Self> {
        let offered: Vec<&str> = key_exchanges.split(',').map(str::trim).collect();
        let key_exchange = KEY_EXCHANGES.iter().find(|name| offered.contains(name))?;
        let user_key = PublicKey::from_openssh(user_key).ok()?.to_bytes().ok()?;
        let host_key = PublicKey::from_openssh(host_key).ok()?.algorithm();
        let host_key = if host_key.as_str() == "ssh-rsa" { "rsa-sha2-512" } else { host_key.as_str() };
        let facts = Self::negotiated(key_exchange, host_key, true, true);
        let facts = Self { server_id: server_id.to_owned(), user_key: Some(digest_of(&user_key)), ..facts };
        facts.allows_fast_order().then_some(facts)
    }

    /// Facts that a connection by ksync's own client has shown.
    pub(super) fn of(seen: &Facts, is_lean: bool) -> Self {
        let (guess, user_key) = (&seen.guess, seen.key.as_deref().map(digest_of));
        let facts = Self::negotiated(&guess.key_exchange, &guess.host_key, seen.is_strict, is_lean);
        let failures = if seen.is_slow { LASTING } else { 0 };
        Self { server_id: seen.server_id.clone(), user_key, failures, ..facts }
    }

    /// Facts that a key exchange has shown.
    pub(super) fn negotiated(key_exchange: &str, host_key: &str, is_strict: bool, is_lean: bool) -> Self {
        Self {
            server_id: String::new(),
            key_exchange: key_exchange.to_owned(),
            host_key: host_key.to_owned(),
            is_strict,
            is_lean,
            user_key: None,
            failures: 0,
            round_trip: None,
            agent: None,
        }
    }

    /// Notes that the host cannot be met in the fast order, as long as it chooses such algorithms.
    pub(super) fn refuses_fast_order(&mut self) {
        self.failures = LASTING;
    }

    /// Notes the user key that was let in.
    pub(super) fn admitted(&mut self, key: &[u8]) {
        self.user_key = Some(digest_of(key));
    }

    /// The same in the words of the SSH client.
    fn as_client(&self) -> Facts {
        let (key_exchange, host_key) = (self.key_exchange.clone(), self.host_key.clone());
        Facts {
            server_id: self.server_id.clone(),
            guess: Guess { key_exchange, host_key },
            is_strict: self.is_strict,
            key: None,
            is_slow: self.failures >= FAILURES_MAX,
        }
    }

    /// The order for the next connection.
    pub(super) fn order(&self) -> ksync_ssh::Order {
        self.as_client().order()
    }

    pub(super) fn allows_fast_order(&self) -> bool {
        self.order() != ksync_ssh::Order::Safe
    }

    /// Reports if this user key was let in.
    pub(super) fn let_in(&self, key: &[u8]) -> bool {
        self.user_key.as_deref() == Some(&digest_of(key))
    }

    /// Reports if the short command finds this agent.
    pub(super) fn has_agent(&self, sha256: &str) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.is_in_cache && agent.sha256 == sha256)
    }

    /// Reports if nothing has changed that could explain a failure.
    fn is_same_server(&self, other: &Self) -> bool {
        self.server_id == other.server_id
            && self.key_exchange == other.key_exchange
            && self.host_key == other.host_key
            && (self.is_strict, self.is_lean) == (other.is_strict, other.is_lean)
            && self.user_key == other.user_key
    }

    /// The facts after a connection that showed `seen`; `self` are those of before.
    fn then(self, mut seen: Self, way: Way) -> Self {
        // In order, the client lacks methods that this one has. It does not tell the list either.
        let is_gone = matches!(way, Way::Fast | Way::AfterFailure(Failure::Changed));
        if !is_gone && self.server_id == seen.server_id && rank(&self.key_exchange) < rank(&seen.key_exchange)
        {
            seen.key_exchange.clone_from(&self.key_exchange);
        }
        let failures = match way {
            Way::Fast => 0,
            Way::InOrder if self.is_same_server(&seen) => match self.failures {
                LASTING => LASTING,
                // A network that was bad for a while gets another chance.
                failures if failures >= FAILURES_MAX + PENALTY => FAILURES_MAX - 1,
                failures if failures >= FAILURES_MAX => failures + 1,
                failures => failures,
            },
            Way::InOrder => 0,
            // A fast connection failed, and nothing has changed that explains it.
            Way::AfterFailure(failure) if self.is_same_server(&seen) => match failure {
                Failure::MayPass => self.failures.saturating_add(1),
                Failure::Changed | Failure::Lasting => LASTING,
            },
            Way::AfterFailure(_) => 0,
        };
        let failures = failures.max(seen.failures);
        let round_trip = seen.round_trip.or(self.round_trip);
        Self { failures, round_trip, agent: seen.agent.or(self.agent), ..seen }
    }

    /// Reports if the difference is worth a write.
    fn differs(&self, other: &Self) -> bool {
        let is_near = match (self.round_trip, other.round_trip) {
            (Some(one), Some(two)) => one <= two * ROUND_TRIP_FACTOR && two <= one * ROUND_TRIP_FACTOR,
            (one, two) => one == two,
        };
        !is_near || Self { round_trip: None, ..self.clone() } != Self { round_trip: None, ..other.clone() }
    }

    fn to_line(&self, name: &str) -> Option<String> {
        let texts = [&self.server_id, &self.key_exchange, &self.host_key];
        let is_fit = |text: &&String| {
            !text.is_empty() && text.len() <= FIELD_BYTES_MAX && !text.contains(char::is_control)
        };
        if !texts.iter().all(is_fit) {
            return None;
        }
        let round_trip = self.round_trip.map_or_else(|| NONE.to_owned(), |time| time.as_micros().to_string());
        let agent = match &self.agent {
            Some(agent) => format!("{}{}", if agent.is_in_cache { "" } else { "elsewhere:" }, agent.sha256),
            None => NONE.to_owned(),
        };
        let (strict, lean) = (u8::from(self.is_strict), u8::from(self.is_lean));
        Some(format!(
            "{VERSION} {name} {} {} {strict} {lean} {} {} {round_trip} {agent} {}",
            self.key_exchange,
            self.host_key,
            self.user_key.as_deref().unwrap_or(NONE),
            self.failures,
            self.server_id,
        ))
    }

    /// Reads the fields behind a line's version and name. The identification comes last, because
    /// it may hold blanks.
    fn parse(fields: &str) -> Option<Self> {
        let mut fields = fields.splitn(9, ' ');
        let mut next = || fields.next().filter(|field| !field.is_empty() && field.len() <= FIELD_BYTES_MAX);
        let known = |field: &str| (field != NONE).then(|| field.to_owned());
        let flag = |field: &str| match field {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        let (key_exchange, host_key) = (next()?.to_owned(), next()?.to_owned());
        let (is_strict, is_lean) = (flag(next()?)?, flag(next()?)?);
        let user_key = known(next()?);
        let failures = next()?.parse().ok()?;
        let round_trip = match known(next()?) {
            Some(micros) => Some(Duration::from_micros(micros.parse().ok()?)),
            None => None,
        };
        let agent = known(next()?).map(|field| match field.strip_prefix("elsewhere:") {
            Some(sha256) => InstalledAgent { sha256: sha256.to_owned(), is_in_cache: false },
            None => InstalledAgent { sha256: field, is_in_cache: true },
        });
        let server_id = next()?.to_owned();
        Some(Self {
            server_id,
            key_exchange,
            host_key,
            is_strict,
            is_lean,
            user_key,
            failures,
            round_trip,
            agent,
        })
    }
}

/// The way in which a connection came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In the fast order.
    Fast,
    /// In order, because no other way was tried.
    InOrder,
    /// In order, after a fast connection failed.
    AfterFailure(Failure),
}

/// The kind of failure of a fast connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection was cut or silent.
    MayPass,
    /// The server has none of the remembered algorithms.
    Changed,
    /// The server did not take the fast order.
    Lasting,
}

/// Remembers facts about the host of `target`, in place of earlier ones.
pub fn remember(target: &Target, facts: HostFacts) {
    if let Some(login) = Login::of(target) {
        login.change(|_| Some(facts.clone()));
    }
}

/// The facts' place for one login.
#[derive(Debug, Clone)]
pub(super) struct Login {
    file: PathBuf,
    name: String,
}

impl Login {
    /// The place for this target, if it remembers facts. It is found again by what the pin is
    /// found by, and the user.
    pub(super) fn of(target: &Target) -> Option<Self> {
        let transport = match &target.transport {
            Transport::Tcp { host, port, .. } => format!("ssh {host} {port}"),
            Transport::WebSocket { url, .. } => url.clone(),
        };
        let trusted = match &target.host_keys {
            HostKeys::KnownHosts { host, port, .. } => format!("{host} {port}"),
            HostKeys::Exactly(keys) => keys.trim().to_owned(),
            HostKeys::PinOnFirstUse { endpoint, .. } => endpoint.clone(),
        };
        let mut name = digest_of(format!("{transport}\n{trusted}\n{}", target.user).as_bytes());
        name.truncate(NAME_DIGITS);
        Some(Self { file: target.facts.clone()?, name })
    }

    /// The facts, if there are any.
    pub(super) fn recall(&self) -> Option<HostFacts> {
        find(&private::read(&self.file).ok()?, &self.name)
    }

    /// Remembers what a connection has shown.
    pub(super) fn learn(&self, seen: HostFacts, way: Way) {
        self.change(|known| match known {
            Some(known) => Some(known.then(seen.clone(), way)),
            None => Some(seen.clone()),
        });
    }

    /// Forgets the user key, because the server has refused it.
    pub(super) fn forget_key(&self) {
        self.change(|known| known.map(|known| HostFacts { user_key: None, ..known }));
    }

    /// Remembers the agent that has answered. Where it is unknown if that is in the cache, what was
    /// known of the same agent stays.
    pub(super) fn found_agent(&self, sha256: &str, is_in_cache: Option<bool>) {
        self.change(|known| {
            let known = known?;
            let before = known.agent.as_ref().filter(|agent| agent.sha256 == sha256);
            let is_in_cache = is_in_cache.or(before.map(|agent| agent.is_in_cache)).unwrap_or(true);
            let agent = Some(InstalledAgent { sha256: sha256.to_owned(), is_in_cache });
            Some(HostFacts { agent, ..known })
        });
    }

    /// Changes the facts. Hosts that allow no fast connection whatever happens have none.
    fn change(&self, change: impl Fn(Option<HostFacts>) -> Option<HostFacts>) {
        let changed = || {
            let text = private::read(&self.file).unwrap_or_default();
            let known = find(&text, &self.name);
            let new = change(known.clone());
            let new = new.filter(|facts| HostFacts { failures: 0, ..facts.clone() }.allows_fast_order());
            let is_same = match (&known, &new) {
                (None, None) => true,
                (Some(known), Some(new)) => !known.differs(new),
                _ => false,
            };
            (!is_same).then_some((text, new))
        };
        if changed().is_none() {
            return;
        }
        let Ok(_lock) = lock(&self.file) else { return };
        let Some((text, new)) = changed() else { return };
        let line = new.and_then(|facts| facts.to_line(&self.name));
        let others = text.lines().filter(|line| fields(line, &self.name).is_none());
        let mut all = String::new();
        for line in line.as_deref().into_iter().chain(others).take(LOGINS_MAX) {
            let _ = writeln!(all, "{line}");
        }
        let _ = private::replace(&self.file, all.as_bytes());
    }
}

/// Locks the file against other writers, by a file beside it that is never replaced.
fn lock(file: &Path) -> std::io::Result<File> {
    let lock = private::grow(&file.with_extension("lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// The fields of a line about this login, if this version can read them.
fn fields<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.strip_prefix(VERSION)?.strip_prefix(' ')?.strip_prefix(name)?.strip_prefix(' ')
}

fn find(text: &str, name: &str) -> Option<HostFacts> {
    text.lines().find_map(|line| HostFacts::parse(fields(line, name)?))
}

/// The place of a key exchange in the order of preference.
fn rank(key_exchange: &str) -> usize {
    KEY_EXCHANGES.iter().position(|name| *name == key_exchange).unwrap_or(KEY_EXCHANGES.len())
}

/// SHA-256 in hex.
fn digest_of(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::remote::Keys;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn facts(server_id: &str) -> HostFacts {
        let kex = "sntrup761x25519-sha512@openssh.com,curve25519-sha256";
        HostFacts::provisioned(server_id, kex, KEY, KEY).unwrap()
    }

    const ID: &str = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3";

    fn target(file: PathBuf, user: &str) -> Target {
        Target {
            transport: Transport::tcp("vm".into(), 22),
            user: user.into(),
            host_keys: HostKeys::Exactly(KEY.into()),
            keys: Keys::default(),
            connect_timeout: Duration::ZERO,
            silence_timeout: Duration::ZERO,
            facts: Some(file),
        }
    }

    #[test]
    fn facts_of_each_login_are_kept_privately_and_survive_their_encoding() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/facts");
        let (root, me) = (target(file.clone(), "root"), target(file.clone(), "me"));
        let agent = InstalledAgent { sha256: "ab".repeat(32), is_in_cache: false };
        let whole = HostFacts {
            round_trip: Some(Duration::from_micros(1234)),
            agent: Some(agent),
            failures: 1,
            ..facts(ID)
        };
        remember(&root, whole.clone());
        remember(&me, HostFacts { is_lean: false, user_key: None, ..facts(ID) });
        assert_eq!(Login::of(&root).unwrap().recall(), Some(whole));
        let mine = Login::of(&me).unwrap().recall().unwrap();
        assert!(!mine.is_lean && mine.user_key.is_none() && mine.agent.is_none());
        assert_eq!(Login::of(&target(file.clone(), "other")).unwrap().recall(), None);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Login::of(&Target { facts: None, ..root }).is_none());
    }

    #[test]
    fn provisioning_prefers_post_quantum_and_names_the_user_key() {
        let facts = facts(ID);
        assert_eq!(facts.key_exchange, "sntrup761x25519-sha512@openssh.com");
        assert_eq!(facts.host_key, "ssh-ed25519");
        assert!(facts.let_in(&PublicKey::from_openssh(KEY).unwrap().to_bytes().unwrap()));
        assert!(!facts.let_in(b"another"));
        for id in ["SSH-2.0-OpenSSH_7.3", "SSH-2.0-dropbear_2022.83", ""] {
            assert_eq!(HostFacts::provisioned(id, "curve25519-sha256", KEY, KEY), None, "{id}");
        }
        assert_eq!(HostFacts::provisioned(ID, "diffie-hellman-group14-sha256", KEY, KEY), None);
        assert_eq!(HostFacts::provisioned(ID, "curve25519-sha256", "junk", KEY), None);
    }

    #[test]
    fn lines_that_are_damaged_or_of_another_version_count_as_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts");
        let login = Login::of(&target(file.clone(), "root")).unwrap();
        remember(&target(file.clone(), "root"), facts(ID));
        let good = std::fs::read_to_string(&file).unwrap();
        for cut in 0..good.len() - ID.len() {
            std::fs::write(&file, &good[..cut]).unwrap();
            assert_eq!(login.recall(), None, "{cut}");
        }
        for bad in [good.replacen('1', "2", 1), good.replace(" 1 1 ", " 1 x "), "\0\n".repeat(9)] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(login.recall(), None);
        }
        std::fs::write(&file, [0xff; 9]).unwrap();
        assert_eq!(login.recall(), None);
        remember(&target(file.clone(), "root"), facts(ID));
        assert_eq!(login.recall(), Some(facts(ID)));
    }

    #[test]
    fn a_host_is_slow_after_a_lasting_failure_or_two_that_may_pass() {
        let folder = tempfile::tempdir().unwrap();
        let login = Login::of(&target(folder.path().join("facts"), "root")).unwrap();
        let is_fast = || login.recall().unwrap().allows_fast_order();
        login.learn(facts(ID), Way::InOrder);
        assert!(is_fast());
        login.learn(facts(ID), Way::AfterFailure(Failure::MayPass));
        assert!(is_fast());
        login.learn(facts(ID), Way::Fast);
        login.learn(facts(ID), Way::AfterFailure(Failure::MayPass));
        assert!(is_fast());
        login.learn(facts(ID), Way::AfterFailure(Failure::MayPass));
        assert!(!is_fast());
        login.learn(facts(ID), Way::InOrder);
        assert!(!is_fast(), "a connection in order proves nothing");
        for _ in 0..PENALTY {
            login.learn(facts(ID), Way::InOrder);
        }
        assert!(is_fast(), "a bad network does not last");
        login.learn(facts(ID), Way::AfterFailure(Failure::Lasting));
        for _ in 0..300 {
            login.learn(facts(ID), Way::InOrder);
        }
        assert!(!is_fast());
        login.learn(facts("SSH-2.0-OpenSSH_9.9"), Way::InOrder);
        assert!(is_fast());
        login.learn(facts("SSH-2.0-OpenSSH_9.9"), Way::AfterFailure(Failure::Lasting));
        assert!(!is_fast());
        login.learn(facts(ID), Way::AfterFailure(Failure::Lasting));
        assert!(is_fast(), "the change explains the failure");
        login.learn(HostFacts { server_id: "SSH-2.0-Go".into(), ..facts(ID) }, Way::InOrder);
        assert_eq!(login.recall(), None);
    }

    #[test]
    fn the_agent_outlives_what_connections_show() {
        let folder = tempfile::tempdir().unwrap();
        let login = Login::of(&target(folder.path().join("facts"), "root")).unwrap();
        login.found_agent("ab", None);
        assert_eq!(login.recall(), None, "an agent alone makes nothing fast");
        login.learn(facts(ID), Way::InOrder);
        login.found_agent("ab", None);
        login.learn(facts(ID), Way::Fast);
        let known = login.recall().unwrap();
        assert!(known.has_agent("ab") && !known.has_agent("cd"));
        for is_in_cache in [Some(false), None] {
            login.found_agent("ab", is_in_cache);
            assert!(!login.recall().unwrap().has_agent("ab"), "{is_in_cache:?}");
        }
        login.found_agent("cd", None);
        assert!(login.recall().unwrap().has_agent("cd"));
        login.forget_key();
        assert_eq!(login.recall().unwrap().user_key, None);
    }

    #[test]
    fn many_writers_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts");
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let file = file.clone();
                scope.spawn(move || {
                    for number in 0..8 {
                        remember(&target(file.clone(), &format!("{writer} {number}")), facts(ID));
                    }
                });
            }
        });
        for (writer, number) in (0..8).flat_map(|writer| (0..8).map(move |number| (writer, number))) {
            let login = Login::of(&target(file.clone(), &format!("{writer} {number}"))).unwrap();
            assert_eq!(login.recall(), Some(facts(ID)), "{writer} {number}");
        }
    }

    #[test]
    fn the_newest_logins_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts");
        for number in 0..=LOGINS_MAX {
            remember(&target(file.clone(), &number.to_string()), facts(ID));
        }
        let recall = |user: &str| Login::of(&target(file.clone(), user)).unwrap().recall();
        assert_eq!(recall("0"), None);
        assert!(recall("1").is_some() && recall(&LOGINS_MAX.to_string()).is_some());
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), LOGINS_MAX);
    }
}
