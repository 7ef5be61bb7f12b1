//! The options of `ksync sandbox`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};

use crate::usage::number;

/// The options of `ksync sandbox`.
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// The loopback address to listen on; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0", value_parser = address)]
    pub(crate) listen: SocketAddr,
    /// The directory for the files of the VMs; by default one in ksync's state directory
    #[arg(long, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Let the VMs use this machine's files, and not those of a world of their own
    #[arg(long, env = "KSYNC_SANDBOX_HOST_FILES", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) host_files: bool,
    /// Speed of the sessions' clock: its seconds per real second
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = number(f64::MIN..=f64::MAX, "a number"))]
    pub(crate) time_scale: f64,
    /// A Chromium that answers the sessions' CDP: ws://HOST:PORT/... or http://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = chromium)]
    pub(crate) cdp: Option<String>,
    /// Print one line of JSON when the VM answers
    #[arg(long)]
    pub(crate) json: bool,
    /// Run in the background, and print the environment variables for eval "$(ksync sandbox
    /// --export)"; kill $KSYNC_SANDBOX_PID ends it
    #[arg(long, conflicts_with = "json")]
    pub(crate) export: bool,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

fn chromium(text: &str) -> Result<String, &'static str> {
    let is_url = ["ws://", "http://"].iter().any(|scheme| text.starts_with(scheme));
    is_url.then(|| text.to_owned()).ok_or("a URL, as in http://127.0.0.1:9222")
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address and a port, as in 127.0.0.1:0")
}
