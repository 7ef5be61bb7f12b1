//! The agent: one side of an exchange over stdin and stdout, on the machine that `ksync` put it on.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use ksync::engine::{Config, Failure, Receiver, Sender, Summary};
use ksync::exchange::{Receiving, Sending, run};
use ksync::monitor::Quiet;
use ksync::wire::hello::{self, Order, Role};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--version") {
        let answered = io::Write::write_all(&mut io::stdout(), b"ksync-agent\n");
        return if answered.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // Why a run failed has been told over the wire.
    match serve() {
        Ok(Ok(_)) => ExitCode::SUCCESS,
        Ok(Err(_)) | Err(_) => ExitCode::FAILURE,
    }
}

/// Says hello, takes the order, runs it.
fn serve() -> io::Result<Result<Summary, Failure>> {
    // Unbuffered: frames are read and written whole.
    let mut reader = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut writer = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    hello::write(&mut writer, None)?;
    let order = hello::read(&mut reader).map_err(io::Error::other)?.order;
    let Some(Order { role, path, options }) = order else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client's hello holds no order"));
    };
    let path = expand_home(path);
    let compress = options.compress;
    let config = Config { options: options.clone(), relay: true };
    Ok(match role {
        Role::Sender => {
            let disk = Sending::new(path, options);
            run(reader, writer, Sender::new(&config), disk, false, compress, &Quiet)
        }
        Role::Receiver => {
            let disk = Receiving::new(path, options);
            run(reader, writer, Receiver::new(&config), disk, false, compress, &Quiet)
        }
    })
}

/// `~` and `~/…` are the home directory, as a shell would have it; other relative paths lie there anyway,
/// since that is where sshd starts us.
fn expand_home(path: Vec<u8>) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|_| path == b"~" || path.starts_with(b"~/"));
    match home {
        Some(home) => {
            PathBuf::from(home).join(OsString::from_vec(path.get(2..).unwrap_or_default().to_vec()))
        }
        None if path.is_empty() => PathBuf::from("."),
        None => PathBuf::from(OsString::from_vec(path)),
    }
}
