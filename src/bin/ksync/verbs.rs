//! The arguments of all verbs other than syncing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use ksync::remote::Forward;

use crate::args::seconds;
use crate::create::CreateArgs;
use crate::manual::{Schema, Shell};
use crate::usage::number;

/// The paragraph about forwards in the help of `ksync ssh`.
const FORWARDS: &str = "\
-L, -R and -D are ssh's, may be given several times, and go with a command, a
shell or -N. BIND is an address of the listening side: localhost unless given, *
for all. An IPv6 address is in brackets, and /PATH is a Unix socket. A listener
that cannot be had ends ksync ssh (exit code 10), as ExitOnForwardFailure=yes.
Forwards end with the command.";

/// `ksync flush`.
#[derive(Debug, Args)]
pub(crate) struct FlushArgs {
    /// The local side of the watched pair
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) endpoint: OsString,
    /// Give up after this long
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds())]
    pub(crate) timeout: u64,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// `ksync session`.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    pub(crate) verb: SessionVerb,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// The verbs of `ksync session`.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionVerb {
    /// Create a session, or take one from a pool; it becomes the current one
    Create(Box<CreateArgs>),
    /// List the active sessions; a star marks the current one
    List {
        /// Print one line of JSON for each session
        #[arg(long)]
        json: bool,
    },
    /// Show the details of a session
    Show {
        /// The session's id or name
        #[arg(default_value = "session")]
        session: String,
        /// Print a Host block for ~/.ssh/config
        #[arg(long, conflicts_with = "json")]
        ssh_config: bool,
        /// Print the URL for CDP clients such as Playwright and Puppeteer; it holds a token
        #[arg(long, conflicts_with_all = ["json", "ssh_config"])]
        cdp_url: bool,
        /// Print one line of JSON with all fields of the platform's API, tokens included
        #[arg(long)]
        json: bool,
    },
    /// Make a session the current one: the one that session: means
    Use {
        /// The session's id or name
        session: String,
    },
    /// Make a session's VM reachable by SSH, and print how
    Setup {
        /// The session's id or name
        #[arg(default_value = "session")]
        session: String,
        /// Print the same JSON as `kernel browsers ssh ID --setup-only -o json`
        #[arg(long)]
        json: bool,
    },
    /// Delete a session with its files, or return it to its pool, which recreates it
    Delete {
        /// The session's id or name
        #[arg(default_value = "session")]
        session: String,
    },
    /// Remove everything that ksync left on a session's VM, the key first
    Cleanup {
        /// The session's id or name
        #[arg(default_value = "session")]
        session: String,
    },
}

impl SessionVerb {
    /// True if stdout gets JSON for programs.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Create(args) => args.json,
            Self::List { json } | Self::Show { json, .. } | Self::Setup { json, .. } => *json,
            Self::Use { .. } | Self::Delete { .. } | Self::Cleanup { .. } => false,
        }
    }
}

/// `ksync keep`.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct KeepVerbArgs {
    #[command(subcommand)]
    pub(crate) verb: KeepVerb,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// The verbs of `ksync keep`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeepVerb {
    /// List the connections that are kept
    List {
        /// Print one line of JSON for each connection
        #[arg(long)]
        json: bool,
    },
    /// Close the connections that are kept, or those to one endpoint
    Stop {
        /// An endpoint, as in host: or session:
        endpoint: Option<OsString>,
    },
    /// Keep the connection that the parameters on stdin describe
    #[command(hide = true)]
    Serve,
}

/// Minutes for which a connection is kept, unless an option says otherwise.
const KEEP_MINUTES: f64 = 10.0;

/// Options for the next runs.
#[derive(Debug, Args)]
pub(crate) struct KeepArgs {
    /// Keep the connection this long for the next run: 10, and that of sandbox: only if asked; 0 is
    /// not at all
    #[arg(long, value_name = "MINUTES", env = "KSYNC_KEEP", hide_env_values = true, value_parser = number(0.0..=1440.0, "minutes, 0 to 1440"),
          allow_negative_numbers = true)]
    keep: Option<f64>,
    /// Do not keep the connection, and use none that is kept
    #[arg(long)]
    no_keep: bool,
}

impl KeepArgs {
    /// The time for which a connection is kept, if it is.
    pub(crate) fn time(&self) -> Option<Duration> {
        let time = Duration::from_secs_f64(self.keep.unwrap_or(KEEP_MINUTES) * 60.0);
        (!self.no_keep && !time.is_zero()).then_some(time)
    }

    /// The same for an emulated VM: only if somebody asks for it.
    pub(crate) fn sandbox_time(&self) -> Option<Duration> {
        self.keep.and_then(|_| self.time())
    }
}

/// `ksync proxy`.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// A bridge (wss://HOST:PORT) or a session
    #[arg(value_name = "URL-OR-SESSION")]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// `ksync completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// bash, zsh, fish or powershell
    #[arg(value_name = "SHELL", value_parser = Shell::of)]
    pub(crate) shell: Shell,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// `ksync man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// `ksync config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Print one line of JSON for each setting
    #[arg(long)]
    pub(crate) json: bool,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// `ksync schema`.
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// events: the lines of --json; config: .ksync.toml and config.toml; plan: the file of --plan
    #[arg(value_name = "NAME", default_value = "events", value_parser = Schema::of)]
    pub(crate) schema: Schema,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// `ksync ssh`.
#[derive(Debug, Args)]
#[command(after_help = FORWARDS)]
pub(crate) struct SshArgs {
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// Forward a port of this machine to a host that the VM reaches; unlike in ssh, the port may be
    /// 0
    #[arg(short = 'L', value_name = "[BIND:]PORT:HOST:PORT", value_parser = Forward::local, allow_hyphen_values = true)]
    local: Vec<Forward>,
    /// Forward a port of the VM to a host that this machine reaches; without a host, to any by
    /// SOCKS
    #[arg(short = 'R', value_name = "[BIND:]PORT:HOST:PORT", value_parser = Forward::remote, allow_hyphen_values = true)]
    remote: Vec<Forward>,
    /// Forward connections to a port of this machine, by SOCKS, to any host that the VM reaches
    #[arg(short = 'D', value_name = "[BIND:]PORT", value_parser = Forward::dynamic, allow_hyphen_values = true)]
    dynamic: Vec<Forward>,
    /// Run no command: only forward, until Ctrl-C
    #[arg(short = 'N', conflicts_with = "command")]
    pub(crate) no_command: bool,
    #[command(flatten)]
    pub(crate) keep: KeepArgs,
    /// The session's id or name
    pub(crate) session: String,
    /// The command for the shell on the VM; without one, an interactive shell
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

impl SshArgs {
    /// All forwards.
    pub(crate) fn forwards(&self) -> Vec<Forward> {
        [&self.local, &self.remote, &self.dynamic].into_iter().flatten().cloned().collect()
    }
}

/// `ksync doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// The session's id or name
    #[arg(default_value = "session")]
    pub(crate) session: String,
    /// Also test the computer controls, with two harmless actions
    #[arg(long)]
    pub(crate) full: bool,
    /// Print one line of JSON for each step
    #[arg(long)]
    pub(crate) json: bool,
}

/// Settings for finding and reaching sessions.
#[derive(Debug, Args)]
pub(crate) struct AccessArgs {
    /// The private key file for the login; by default a separate one for each session
    #[arg(long, value_name = "FILE", global = true, display_order = 100)]
    pub(crate) identity: Option<PathBuf>,
    /// Additional root certificates
    #[arg(
        long,
        value_name = "FILE",
        env = "KSYNC_CA_CERT",
        hide_env_values = true,
        global = true,
        display_order = 101
    )]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Print this help
    #[arg(short = 'h', long, action = ArgAction::Help, global = true, display_order = 102)]
    help: Option<bool>,
}
