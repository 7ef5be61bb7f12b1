//! The options that rsync has and ksync has not: what to use instead of each.

/// An option of rsync.
struct Foreign {
    /// All spellings, separated by blanks.
    names: &'static str,
    /// The replacement, in a sentence.
    instead: &'static str,
}

const fn foreign(names: &'static str, instead: &'static str) -> Foreign {
    Foreign { names, instead }
}

const OWNERS: &str = "leave it out, -o and --chown set owners where ksync runs as root";
const DEVICES: &str = "ksync copies no devices and special files; use rsync where they matter";
const ATTRIBUTES: &str = "run the agent as root and use -o, -g and -D";
const DAEMON: &str = "ksync speaks to no rsync daemon; reach the machine over SSH: user@host:/path";
const BATCH: &str = "ksync writes no batch files; -n lists what would change";
const IN_PLACE: &str = "ksync writes into no devices; use rsync or dd for that";

const FOREIGN: &[Foreign] = &[
    foreign("--debug", "use -vv"),
    foreign("--daemon --password-file --early-input --address --port --sockopts", DAEMON),
    foreign(
        "--no-implied-dirs",
        "leave it out, --files-from and -R always take over modes and times of directories",
    ),
    foreign("--write-devices", IN_PLACE),
    foreign("--dirs -d --old-dirs --old-d", "use --exclude '/*/*' to copy one level"),
    foreign(
        "--munge-links",
        "ksync changes no target of a link; --safe-links leaves out those that lead out of the tree",
    ),
    foreign(
        "--keep-dirlinks -K --insecure-links --confine-root",
        "ksync follows no link in DEST; name the real directory as DEST",
    ),
    foreign("--fake-super", ATTRIBUTES),
    foreign("--super --copy-as", OWNERS),
    foreign("--copy-devices --drop-D", DEVICES),
    foreign("--atimes -U --open-noatime --crtimes -N", "ksync copies modification times only"),
    foreign(
        "--omit-dir-times -O --omit-link-times -J",
        "ksync always copies times, of directories and links, too",
    ),
    foreign("--preallocate", "leave it out, ksync looks for room before it writes"),
    foreign("--fuzzy", "leave it out, ksync finds moved and copied files in DEST by itself"),
    foreign("--delete-missing-args --ignore-missing-args", "name only a SOURCE that exists"),
    foreign("--ignore-errors", "ksync deletes nothing after an incomplete scan of SOURCE"),
    foreign(
        "--temp-dir -T --delay-updates",
        "leave it out, ksync stages in DEST/.ksync and keeps what has arrived",
    ),
    foreign("--modify-window -@", "use -c to compare by content where DEST keeps no exact times"),
    foreign("--old-args", "leave it out, no name passes through a shell"),
    foreign("--remote-option -M --protocol", "leave it out, ksync brings its own agent of the same version"),
    foreign("--stop-after --stop-at", "use timeout(1); what has arrived is not sent twice"),
    foreign("--write-batch --only-write-batch --read-batch", BATCH),
    foreign("--iconv", "ksync copies names as the bytes that they are"),
];

/// The answer to an option of rsync that ksync lacks. `name` is one spelling without a value.
pub(crate) fn instead(name: &str) -> Option<&'static str> {
    let find = |name: &str| FOREIGN.iter().find(|option| option.names.split(' ').any(|known| known == name));
    if let Some(option) = find(name) {
        return Some(option.instead);
    }
    let negated = name.strip_prefix("--no-")?;
    match negated {
        "times" | "t" => Some("ksync always copies times"),
        "mkpath" => Some("ksync always makes DEST's missing parents"),
        "recursive" | "r" => Some("use --exclude '/*/*' to copy one level"),
        "archive" | "a" | "OPTION" => Some("ksync always copies directories, modes, times and links"),
        "verbose" | "v" | "itemize-changes" | "i" | "quiet" | "q" => {
            Some("leave the option out that it negates")
        }
        _ => {
            let dashes = if negated.chars().count() == 1 { "-" } else { "--" };
            find(&format!("{dashes}{negated}")).map(|_| "leave it out, ksync does not do this")
        }
    }
}
