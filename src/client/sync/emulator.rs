//! `sandbox:`: a VM emulator in this process, with the same connection as to any other VM.

#[cfg(feature = "sandbox")]
use crate::monitor::Warning;
use crate::remote::Connection;
#[cfg(feature = "sandbox")]
use crate::remote::{HostKeys, Keys, Proxies, Transport, connect};
#[cfg(feature = "sandbox")]
use crate::sandbox::{Isolation, LinkConditions, Options, Sandbox};
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, SharedMonitor};
#[cfg(feature = "sandbox")]
use crate::sync::target::{cache_dir, common};

/// A running emulator.
#[cfg(feature = "sandbox")]
pub(super) struct Emulator(Sandbox);

/// The emulator of a ksync that was built without one.
#[cfg(not(feature = "sandbox"))]
pub(super) enum Emulator {}

#[cfg(feature = "sandbox")]
impl Emulator {
    pub(super) async fn connect(
        connect_options: &ConnectOptions,
        monitor: &SharedMonitor,
    ) -> Result<(Connection, Self), SyncError> {
        let options = Options {
            listen: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
            home: cache_dir()?.join("sandbox"),
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
        Ok((connect(&target).await?, Self(sandbox)))
    }

    pub(super) async fn stop(self) {
        self.0.stop().await;
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

    pub(super) async fn stop(self) {
        match self {}
    }
}
