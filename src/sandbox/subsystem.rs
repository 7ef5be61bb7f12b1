//! Subsystems of the SSH server: programs that a client starts by a name.

use std::path::Path;

/// The places of OpenSSH's SFTP server on the usual systems.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
];

/// The command line that runs the subsystem `name`; `None` if there is none of this name, or if
/// this machine lacks its program.
pub(super) fn command(name: &str) -> Option<Vec<u8>> {
    let program = SFTP_SERVERS.iter().find(|path| Path::new(path).is_file())?;
    (name == "sftp").then(|| format!("exec {program}").into_bytes())
}
