//! The texts of the help. `-h` fits one screen, `--help` has everything, and the man page takes its
//! sections from here, too.

/// `ksync -h`: the ten options that matter most, on a screen of 80 columns and 24 lines.
pub(crate) const SHORT: &str = "\
Makes DEST a copy of SOURCE and sends only what changed.

Usage: ksync [OPTIONS] SOURCE... DEST

  ksync ./site sandbox:/tmp/site              try it: an emulated VM, here
  ksync -n --delete ./site me@host:/srv/site  what would change over there?

SOURCE and DEST: ./dir, me@host:/dir, session:/dir, sandbox:/dir, wss://host/dir

  -n, --dry-run          show what would change, and change nothing
      --delete           delete entries of DEST that SOURCE does not have
      --exclude PATTERN  exclude entries that match; rsync's patterns
  -c, --checksum         compare by content, not by size and time
  -v, --verbose          list each change; -i in rsync's eleven letters
  -w, --watch            send each change a moment after it is saved
      --exec CMD         run CMD there after a sync that changed something
  -e, --rsh SSH          settings of ssh, as in 'ssh -p 2222 -i FILE'
      --identity FILE    the private key for the login
      --json             print one JSON object per line, for programs

ksync --help has all options and verbs, ksync help VERB those of a verb.
";

/// Examples, as in a shell.
pub(crate) const EXAMPLES: &str = "  \
  ksync ./site sandbox:/tmp/site              try it: an emulated VM, here
  ksync -n --delete ./site me@host:/srv/site  what would change over there?
  ksync -w ./site session:/srv/site           and each save, a moment later
  ksync session create                        a session, by KERNEL_API_KEY
  ksync ./site session:/tmp/site              into it
  ksync wss://host:2222/tmp/out ./out         from a VM to this machine
";

/// The forms of an endpoint.
pub(crate) const ENDPOINTS: &str = "  \
  ./dir  /dir             on this machine
  sandbox:/dir            in the emulated VM that ksync carries
  session:/dir            in the current Kernel session; else ID:/dir, NAME:/dir
  :/dir                   in the VM that --setup describes
  user@host:/dir          on an SSH host; with a port ssh://user@host:22/dir
  wss://host:2222/dir     on an SSH host behind a WebSocket bridge
";

/// The meaning of the endpoints for each other.
pub(crate) const MAPPING: &str = "\
A directory becomes DEST itself, with or without a trailing slash. A file goes
into a DEST that is a directory or ends in a slash. Several SOURCEs go into DEST
by name. A remote path without a leading slash is below the remote home.
";

/// The exit codes that a script asks for.
pub(crate) const EXIT: &str = "\
0 done, 1 usage, 23 some entries failed, 24 source files vanished,
25 deletions wait for consent, 26 a side is not as it was planned for, 44 a
verification found differences; others say why there was no run.";

/// Variables that a run reads.
pub(crate) const ENVIRONMENT: [(&str, &str); 9] = [
    ("KERNEL_API_KEY", "The key of the platform's API, for sessions."),
    ("KERNEL_BASE_URL", "The address of that API, if not the usual one."),
    ("KERNEL_PROJECT", "The project of new sessions."),
    ("KSYNC_CA_CERT", "As --ca-cert."),
    ("KSYNC_KEEP", "As --keep."),
    ("KSYNC_LOG", "With the value debug, as -vv."),
    ("KSYNC_SESSION", "The session that session: means."),
    ("KSYNC_<OPTION>", "As the long option, as in KSYNC_MAX_DELETE=5 or KSYNC_CHECKSUM=true."),
    ("SSH_AUTH_SOCK", "The socket of ssh-agent."),
];

/// The template of `--help`. It starts with the most common uses.
pub(super) fn template() -> String {
    format!(
        "{{about}}

{{usage-heading}} {{usage}}

Examples:
{EXAMPLES}
Endpoints:
{ENDPOINTS}{MAPPING}
{{all-args}}

Exit status: {EXIT} Further verbs,
each with a --help of its own: ksync session, ssh, proxy, doctor, flush, keep,
apply, undo, verify, sandbox, completions, man, config, schema.
"
    )
}
