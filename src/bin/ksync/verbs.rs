//! What can be typed after a verb other than syncing.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

/// `ksync flush`.
#[derive(Debug, Args)]
pub(crate) struct FlushArgs {
    /// The local side of what is kept in sync
    #[arg(value_name = "PLACE", default_value = ".")]
    pub(crate) place: OsString,
    /// Give up after so long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

/// `ksync session`.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    pub(crate) verb: SessionVerb,
    #[command(flatten)]
    pub(crate) way: AccessArgs,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionVerb {
    /// Make a session, or take one from a pool; it becomes the current one
    Create {
        /// How long it stays without anybody in it, 10 to 259200
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=259_200))]
        timeout: u64,
        /// Without a screen
        #[arg(long)]
        headless: bool,
        /// A name, of which there is one at a time
        #[arg(long)]
        name: Option<String>,
        /// Take one from this pool, as it is
        #[arg(long, conflicts_with_all = ["timeout", "headless", "name"])]
        pool: Option<String>,
        /// One line of JSON
        #[arg(long)]
        json: bool,
    },
    /// List the active sessions; a star marks the current one
    List {
        /// One line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Show what is known of a session
    Show {
        /// Its id or name
        #[arg(default_value = "session")]
        session: String,
        /// As a Host block for ~/.ssh/config
        #[arg(long)]
        ssh_config: bool,
        /// One line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a session the current one: the one that session: means
    Use {
        /// Its id or name
        session: String,
    },
    /// Make its VM reachable by SSH, and tell how
    Setup {
        /// Its id or name
        #[arg(default_value = "session")]
        session: String,
        /// The JSON that `kernel browsers ssh ID --setup-only -o json` prints
        #[arg(long)]
        json: bool,
    },
    /// Delete a session with its files, or give it back to its pool to be made anew
    Delete {
        /// Its id or name
        #[arg(default_value = "session")]
        session: String,
    },
    /// Take back what ksync left on its VM, the key first of all
    Cleanup {
        /// Its id or name
        #[arg(default_value = "session")]
        session: String,
    },
}

/// `ksync proxy`.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// A bridge (wss://HOST:PORT) or a session
    #[arg(value_name = "URL-OR-SESSION")]
    pub(crate) place: String,
    #[command(flatten)]
    pub(crate) way: AccessArgs,
}

/// `ksync ssh`.
#[derive(Debug, Args)]
pub(crate) struct SshArgs {
    #[command(flatten)]
    pub(crate) way: AccessArgs,
    /// The session's id or name
    pub(crate) session: String,
    /// The command, as the shell there reads it; without one, a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// `ksync doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) way: AccessArgs,
    /// The session's id or name
    #[arg(default_value = "session")]
    pub(crate) session: String,
    /// Try the computer controls too, with two harmless actions
    #[arg(long)]
    pub(crate) full: bool,
    /// One line of JSON for each step
    #[arg(long)]
    pub(crate) json: bool,
}

/// How sessions are found and reached.
#[derive(Debug, Args)]
pub(crate) struct AccessArgs {
    /// The private key to log in with; without it, one of its own for each session
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) identity: Option<PathBuf>,
    /// Further roots to trust
    #[arg(long, value_name = "FILE", env = "KSYNC_CA_CERT", hide_env_values = true, global = true)]
    pub(crate) ca_cert: Option<PathBuf>,
    /// This text
    #[arg(short = 'h', long, action = ArgAction::Help, global = true)]
    help: Option<bool>,
}
