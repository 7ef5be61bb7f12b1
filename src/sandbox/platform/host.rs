//! The host of the VMs: what every session gets from its platform.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;

use russh::keys::PublicKey;
use tokio::sync::OnceCell;

use super::answer::PlatformError;
use super::authority::Authority;
use super::faults::Faults;
use super::path_filter;
use super::time::Time;
use crate::isolation::Isolation;
use crate::link_conditions::LinkConditions;
use crate::machine::Machine;
use crate::process::PATH;

/// A real sshd on this machine. It must accept the keys in the VMs' `authorized_keys`.
#[derive(Debug, Clone)]
pub struct Sshd {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// The public host key, in OpenSSH's one-line form.
    pub host_key: String,
}

/// The parts of a platform that do not know its sessions.
#[derive(Debug)]
pub(super) struct Host {
    /// Address of the API.
    pub(super) address: SocketAddr,
    /// Directory of the sessions' directories.
    pub(super) folder: PathBuf,
    /// `PATH` of the VMs without a world, made on first use.
    pub(super) search_path: OnceCell<OsString>,
    pub(super) isolation: Isolation,
    pub(super) conditions: LinkConditions,
    pub(super) client_key: Option<PublicKey>,
    pub(super) authority: Authority,
    pub(super) time: Time,
    pub(super) faults: Faults,
    /// URL of a Chromium that answers the CDP sockets.
    pub(super) chromium: Option<String>,
    /// The sshd in place of the VMs' own server.
    pub(super) sshd: Option<Sshd>,
}

impl Host {
    /// `PATH` of a VM. Without a world it is made on first use, because it may need thousands of
    /// links.
    pub(super) async fn search_path(&self, machine: &Machine) -> Result<&OsStr, PlatformError> {
        if machine.is_world() {
            return Ok(OsStr::new(PATH));
        }
        let make = || async {
            let folder = self.folder.clone();
            let made = tokio::task::spawn_blocking(move || path_filter::search_path(&folder)).await;
            made.map_err(PlatformError::internal)?.map_err(PlatformError::internal)
        };
        self.search_path.get_or_try_init(make).await.map(OsString::as_os_str)
    }
}
