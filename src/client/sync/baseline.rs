//! Keys and directory of the client's baselines: see [`crate::disk::baseline`].

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::content::hash::Hasher;
use crate::disk::baseline::Baseline;
use crate::private;
use crate::sync::endpoint::Endpoint;
use crate::sync::job::Job;
use crate::sync::target::{session_of, state_dir};
use crate::wire::hello::Role;

/// Names a baseline on both sides. A key reveals nothing about its inputs.
pub(super) type Key = [u8; 16];

/// Length of the client's id in bytes.
const ID_BYTES: usize = 16;

/// The name of a job's baseline on both sides. `role` is the client's role and `local` its path.
/// `None` if no state directory is available.
///
/// Jobs that offer different entries of the same tree have different keys. So have the same paths
/// on different clients. Otherwise each job would overwrite a baseline that another one needs.
pub(super) fn key(job: &Job, role: Role, local: &Path) -> Option<Key> {
    if !job.further.is_empty() || job.options.files.is_some() || job.verifies || job.options.undo.is_own() {
        // Their offer is a part of the destination, and parts have no baseline. A verification
        // believes no record.
        return None;
    }
    let id = client_id(&state_dir().ok()?).ok()?;
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
    if let (Endpoint::Setup { .. }, Some(session)) = (remote, session_of(&job.connect_options)) {
        part(session.as_bytes());
    }
    part(remote.path());
    if job.options.gitignore {
        part(b"gitignore");
    }
    for rule in &job.options.rules {
        part(&rule.bits.to_le_bytes());
        part(&rule.pattern);
    }
    hasher.finish().as_bytes().first_chunk().copied()
}

/// The baseline of this key on this side, in the state directory.
pub(super) fn open(key: Option<Key>) -> Option<Baseline> {
    Some(Baseline::new(state_dir().ok()?.join("offers"), &key?))
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

/// The id that tells this client from others, created on first use.
pub(super) fn client_id(state: &Path) -> io::Result<[u8; ID_BYTES]> {
    let path = state.join("id");
    if let Ok(id) = read_id(&path) {
        return Ok(id);
    }
    let mut id = [0; ID_BYTES];
    aws_lc_rs::rand::fill(&mut id).map_err(io::Error::other)?;
    // If two processes start at once, one creates the id and both use it. An invalid file is
    // replaced.
    if private::make(&path, &id).is_err() && read_id(&path).is_err() {
        private::replace(&path, &id)?;
    }
    read_id(&path)
}

fn read_id(path: &Path) -> io::Result<[u8; ID_BYTES]> {
    // Reads at most one byte more than an id has, whatever the file holds.
    let mut bytes = Vec::with_capacity(ID_BYTES + 1);
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, ID_BYTES as u64 + 1), &mut bytes)?;
    bytes.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_client_has_one_private_id() {
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
    fn an_invalid_id_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in [&b""[..], b"short", &[7; 1000]] {
            fs::write(folder.path().join("id"), wrong).unwrap();
            let id = client_id(folder.path()).unwrap();
            assert_eq!(client_id(folder.path()).unwrap(), id);
        }
    }

    #[test]
    fn processes_that_start_at_once_agree_on_one_id() {
        let folder = tempfile::tempdir().unwrap();
        let id = client_id(folder.path()).unwrap();
        // Another process was faster, between our read and our creation.
        fs::write(folder.path().join("id.0.new"), [1; ID_BYTES]).unwrap();
        assert!(fs::hard_link(folder.path().join("id.0.new"), folder.path().join("id")).is_err());
        assert_eq!(client_id(folder.path()).unwrap(), id);
    }
}
