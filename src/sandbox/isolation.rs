//! Isolation: whether programs of an emulated VM see files of their own, or those of this machine.

use std::fmt;

/// The requested isolation of an emulated VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// A world of its own: mounts and processes that this machine does not see. Where the system
    /// has no namespaces, the VM is only rooted in its directory: see [`Files::Rooted`].
    #[default]
    World,
    /// The files of this machine: programs of the VM read and write them.
    HostFiles,
}

/// The files that programs of an emulated VM see.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Files {
    /// Those of a world of its own.
    World {
        /// Reason why changes to the system's directories, such as `/usr`, last only until the VM
        /// ends; `None` if they stay in its directory.
        volatile: Option<String>,
    },
    /// Those of this machine, because there can be no world here. The VM's home lies in its
    /// directory, and the files API does not leave that.
    Rooted {
        /// Reason why there is no world.
        reason: String,
    },
    /// Those of this machine, as requested.
    Host,
}

impl Files {
    /// A warning for the user, with the remedy, if the VM is less than a world whose files stay.
    #[must_use]
    pub fn warning(&self) -> Option<(String, &'static str)> {
        match self {
            Self::Host | Self::World { volatile: None } => None,
            Self::World { volatile: Some(reason) } => Some((
                format!("the emulated VM loses its changes to /usr, /etc and /var at its end: {reason}"),
                "Use paths in /tmp, /root, /home or /srv, which stay.",
            )),
            Self::Rooted { reason } => Some((
                format!(
                    "the emulated VM has no files of its own, so its commands see and change those of this machine: {reason}"
                ),
                "Run as root, or allow unprivileged user namespaces.",
            )),
        }
    }
}

/// A reason from the system's messages: one line, without the noise around it.
pub(crate) fn reason(said: impl fmt::Display) -> String {
    let said = said.to_string();
    let line = said.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("dmesg"));
    let line = line.unwrap_or("the system gives no reason").trim_end_matches('.');
    // The number of an error is no help.
    line.split(" (os error ").next().unwrap_or(line).to_owned()
}
