//! Where the client remembers what was offered, and under which name: see [`crate::disk::memory`].

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::content::hash::Hasher;
use crate::disk::memory::Memory;
use crate::private;
use crate::sync::{Endpoint, Job, target};
use crate::wire::hello::Role;

/// Names a memory on both sides. It tells nothing to who does not know what went into it.
pub(super) type Key = [u8; 16];

/// Bytes of what tells one client from another.
const ID_BYTES: usize = 16;

/// The name under which both sides remember what a job offers, `role` being the client's part and `local` its
/// path; `None` where there is no place to keep it.
///
/// Jobs that offer different entries of the same tree have different names, and so have the same paths on
/// different clients: else each would overwrite what the other one needs.
pub(super) fn key(job: &Job, role: Role, local: &Path) -> Option<Key> {
    let id = client_id(&target::state_dir().ok()?).ok()?;
    let local = fs::canonicalize(local).or_else(|_| std::path::absolute(local)).ok()?;
    let remote = if role == Role::Sender { &job.destination } else { &job.source };
    let mut hasher = Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&id);
    part(&[role as u8, u8::from(job.options.checksum)]);
    part(local.as_os_str().as_bytes());
    part(where_to(remote).as_bytes());
    if let (Endpoint::Setup { .. }, Some(session)) = (remote, target::session_of(&job.way)) {
        part(session.as_bytes());
    }
    part(remote.path());
    for rule in &job.options.rules {
        part(&[u8::from(rule.include)]);
        part(&rule.pattern);
    }
    hasher.finish().as_bytes().first_chunk().copied()
}

/// The memory of this name on this side, in the directory where our number is.
pub(super) fn open(key: Option<Key>) -> Option<Memory> {
    Some(Memory::new(target::state_dir().ok()?.join("offers"), &key?))
}

/// An endpoint without its path.
pub(super) fn where_to(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Local(_) => String::new(),
        Endpoint::Sandbox { .. } => "sandbox".to_owned(),
        Endpoint::Session { name, .. } => format!("session {name}"),
        Endpoint::Ssh { user, host, port, .. } => format!("ssh {user:?} {host} {port:?}"),
        Endpoint::WebSocket { url, user, .. } => format!("ws {user:?} {url}"),
        Endpoint::Setup { .. } => "setup".to_owned(),
    }
}

/// What tells this client from others, made when it is first asked for.
fn client_id(state: &Path) -> io::Result<[u8; ID_BYTES]> {
    let path = state.join("id");
    if let Ok(id) = read_id(&path) {
        return Ok(id);
    }
    let mut id = [0; ID_BYTES];
    aws_lc_rs::rand::fill(&mut id).map_err(io::Error::other)?;
    // Of two that begin at once one wins, and both go by its number. What is no number is replaced.
    if private::make(&path, &id).is_err() && read_id(&path).is_err() {
        private::replace(&path, &id)?;
    }
    read_id(&path)
}

fn read_id(path: &Path) -> io::Result<[u8; ID_BYTES]> {
    // Only the number's own length is looked at, whatever is there.
    let mut bytes = Vec::with_capacity(ID_BYTES + 1);
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, ID_BYTES as u64 + 1), &mut bytes)?;
    bytes.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_client_has_one_private_number() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state/ksync");
        let id = client_id(&state).unwrap();
        assert_eq!(client_id(&state).unwrap(), id);
        assert_ne!(client_id(&folder.path().join("other")).unwrap(), id);
        let names: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["id"]);
        assert_eq!(fs::metadata(state.join("id")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_number_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in [&b""[..], b"short", &[7; 1000]] {
            fs::write(folder.path().join("id"), wrong).unwrap();
            let id = client_id(folder.path()).unwrap();
            assert_eq!(client_id(folder.path()).unwrap(), id);
        }
    }

    #[test]
    fn clients_that_begin_at_once_agree() {
        let folder = tempfile::tempdir().unwrap();
        let id = client_id(folder.path()).unwrap();
        // Another one was faster between our looking and our making.
        fs::write(folder.path().join("id.0.new"), [1; ID_BYTES]).unwrap();
        assert!(fs::hard_link(folder.path().join("id.0.new"), folder.path().join("id")).is_err());
        assert_eq!(client_id(folder.path()).unwrap(), id);
    }
}
