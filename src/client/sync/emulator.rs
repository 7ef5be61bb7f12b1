//! `sandbox:`: a VM emulator in this process, with the same connection as to any other VM.

#[cfg(feature = "sandbox")]
use std::ffi::OsStr;
#[cfg(feature = "sandbox")]
use std::os::unix::ffi::OsStrExt;
#[cfg(feature = "sandbox")]
use std::path::{Component, Path, PathBuf};

#[cfg(feature = "sandbox")]
use crate::monitor::Warning;
use crate::remote::Connection;
#[cfg(feature = "sandbox")]
use crate::remote::{HostKeys, Keys, Proxies, Transport, connect};
#[cfg(feature = "sandbox")]
use crate::sandbox::{Files, Isolation, LinkConditions, Options, Sandbox};
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, SharedMonitor};
#[cfg(feature = "sandbox")]
use crate::sync::target::{cache_dir, common};

/// A running emulator.
#[cfg(feature = "sandbox")]
pub(super) struct Emulator {
    sandbox: Sandbox,
    home: PathBuf,
}

/// The emulator of a ksync that was built without one.
#[cfg(not(feature = "sandbox"))]
pub(super) enum Emulator {}

#[cfg(feature = "sandbox")]
impl Emulator {
    pub(super) async fn connect(
        connect_options: &ConnectOptions,
        monitor: &SharedMonitor,
    ) -> Result<(Connection, Self), SyncError> {
        let home = cache_dir()?.join("sandbox");
        let options = Options {
            listen: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
            home: home.clone(),
            isolation: if connect_options.host_files { Isolation::HostFiles } else { Isolation::World },
            conditions: LinkConditions::default(),
        };
        let sandbox = Sandbox::start(options).await.map_err(|error| SyncError::Sandbox(Box::new(error)))?;
        if let Some((what, hint)) = sandbox.files().warning() {
            monitor.warn(Warning { what, hint: hint.to_owned() });
        }
        let mut target = common(connect_options, HostKeys::Exactly(sandbox.host_key()));
        // No proxy leads into this process.
        let proxies = Proxies::none();
        target.transport = Transport::WebSocket { url: sandbox.url(), ca_cert: None, proxies };
        let text = Some(sandbox.client_key().to_owned());
        target.keys = Keys { text, only_files: true, must_be_usable: true, ..Keys::default() };
        Ok((connect(&target).await?, Self { sandbox, home }))
    }

    /// Refuses a path outside of the VM's directory, if the VM has no files of its own.
    pub(super) fn admit(&self, path: &[u8]) -> Result<(), SyncError> {
        let path = Path::new(OsStr::from_bytes(path));
        let home = self.home.canonicalize().unwrap_or_else(|_| self.home.clone());
        let is_inside = path.is_relative() || path.starts_with(&home) || path.starts_with(&self.home);
        let climbs = path.components().any(|component| component == Component::ParentDir);
        if !matches!(self.sandbox.files(), Files::Rooted { .. }) || (is_inside && !climbs) {
            return Ok(());
        }
        Err(SyncError::OutsideSandbox { path: path.to_owned(), home })
    }

    pub(super) async fn stop(self) {
        self.sandbox.stop().await;
    }
}

#[cfg(not(feature = "sandbox"))]
impl Emulator {
    pub(super) async fn connect(
        _connect_options: &ConnectOptions,
        _monitor: &SharedMonitor,
    ) -> Result<(Connection, Self), SyncError> {
        Err(SyncError::NoSandbox)
    }

    pub(super) fn admit(&self, _path: &[u8]) -> Result<(), SyncError> {
        match *self {}
    }

    pub(super) async fn stop(self) {
        match self {}
    }
}
