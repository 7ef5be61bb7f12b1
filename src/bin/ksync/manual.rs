//! `ksync completions` and `ksync man`: both are made from the definition of the command line.

use clap::Command;
use clap_complete::shells;
use clap_mangen::Man;

use crate::args::help::{ENDPOINTS, ENVIRONMENT, EXAMPLES, EXIT, MAPPING};
use crate::config;

/// Bash: a word that is no option is a path, unless a verb comes first. The generated function
/// would offer options for it.
const BASH_PATHS: &str = r#"
_ksync_or_paths() {
    case " VERBS " in
        *" ${COMP_WORDS[1]} "*) _ksync "$@" ;;
        *)
            if [[ "$2" == -* || "${COMP_CWORD}" -eq 1 ]]; then
                _ksync "$@"
            else
                COMPREPLY=()
            fi
            ;;
    esac
}
complete -F _ksync_or_paths -o bashdefault -o default ksync
"#;

/// The schema of the lines of `--json`.
const EVENTS: &str = include_str!("../../../fixtures/schema/events.json");

/// The schema of the files of --plan.
const PLAN: &str = include_str!("../../../fixtures/schema/plan.json");

/// The generator's first lines, which define how an apostrophe is printed.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

impl Shell {
    /// The shell of this name. The error continues "takes".
    pub(crate) fn of(name: &str) -> Result<Self, &'static str> {
        match name {
            "bash" => Ok(Self::Bash),
            "zsh" => Ok(Self::Zsh),
            "fish" => Ok(Self::Fish),
            "powershell" => Ok(Self::Powershell),
            _ => Err("bash, zsh, fish or powershell"),
        }
    }
}

/// A published schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schema {
    Events,
    Config,
    Plan,
}

impl Schema {
    /// The schema of this name. The error continues "takes".
    pub(crate) fn of(name: &str) -> Result<Self, &'static str> {
        match name {
            "events" => Ok(Self::Events),
            "config" => Ok(Self::Config),
            "plan" => Ok(Self::Plan),
            _ => Err("events, config or plan"),
        }
    }
}

/// The text of a schema.
pub(crate) fn schema(command: &Command, schema: Schema) -> String {
    match schema {
        Schema::Events => EVENTS.to_owned(),
        Schema::Plan => PLAN.to_owned(),
        // A value without maps of other keys than texts is always written.
        Schema::Config => serde_json::to_string_pretty(&config::schema::schema(command)).unwrap_or_default(),
    }
}

/// The completion script of a shell.
pub(crate) fn completions(mut command: Command, shell: Shell) -> String {
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, "ksync", &mut script),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, "ksync", &mut script),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, "ksync", &mut script),
        Shell::Powershell => clap_complete::generate(shells::PowerShell, &mut command, "ksync", &mut script),
    }
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash {
        script.push_str(&BASH_PATHS.replace("VERBS", &verbs.join(" ")));
    }
    script
}

/// The man page of ksync.
pub(crate) fn page(command: Command) -> String {
    let mut text = PREAMBLE.to_owned();
    let verbs: Vec<Command> = command.get_subcommands().cloned().collect();
    let man = Man::new(command).manual("ksync");
    let part = |render: fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>| {
        let mut roff = Vec::new();
        // A vector takes everything.
        let _ = render(&man, &mut roff);
        let roff = String::from_utf8_lossy(&roff).into_owned();
        // Each part defines the apostrophe anew: once is enough.
        roff.strip_prefix(PREAMBLE).map_or_else(|| roff.clone(), str::to_owned)
    };
    text.push_str(&part(Man::render_title));
    text.push_str(&part(Man::render_name_section));
    text.push_str(&part(Man::render_synopsis_section));
    text.push_str(&part(Man::render_description_section));
    text.push_str(&format!(".PP\n{}", escaped(MAPPING)));
    text.push_str(&format!(".SH ENDPOINTS\n{}", as_typed(ENDPOINTS)));
    // The groups of the help are below one heading.
    text.push_str(&format!(".SH OPTIONS\n{}", part(Man::render_options_section).replace(".SH ", ".SS ")));
    text.push_str(".SH VERBS\n");
    text.push_str(&escaped("Each has a --help of its own. A directory of that name is ./NAME.\n"));
    for verb in verbs {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&tagged(&format!("ksync {}", verb.get_name()), &about));
    }
    text.push_str(&format!(".SH \"EXIT STATUS\"\n{}\n", escaped(EXIT)));
    text.push_str(".SH ENVIRONMENT\n");
    for (name, meaning) in ENVIRONMENT {
        text.push_str(&tagged(name, meaning));
    }
    text.push_str(".SH FILES\n");
    for (name, meaning) in FILES {
        text.push_str(&tagged(name, meaning));
    }
    text.push_str(&format!(".SH EXAMPLES\n{}", as_typed(EXAMPLES)));
    text.push_str(".SH \"SEE ALSO\"\nrsync(1), ssh(1), ssh_config(5)\n");
    text
}

const FILES: [(&str, &str); 5] = [
    (".ksyncignore", "Patterns of entries to exclude, in any directory of SOURCE."),
    (".ksync.toml", "Settings of the project in the current directory: dest, exclude and options."),
    ("~/.config/ksync/config.toml", "Settings of this user: any long option, as in timeout = 30."),
    ("~/.ssh/config, ~/.ssh/known_hosts", "Settings and keys of SSH hosts, as ssh reads them."),
    ("~/.local/state/ksync", "What is remembered between runs."),
];

fn tagged(tag: &str, text: &str) -> String {
    format!(".TP\n\\fB{}\\fR\n{}\n", escaped(tag), escaped(text))
}

/// Lines that are shown as they are.
fn as_typed(text: &str) -> String {
    format!(".nf\n{}.fi\n", escaped(text))
}

/// A text in which roff finds no command: no backslash, no minus that becomes a hyphen, and no dot
/// or quote at the start of a line.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for line in text.split_inclusive('\n') {
        if line.starts_with(['.', '\'']) {
            escaped.push_str("\\&");
        }
        escaped.push_str(&line.replace('\\', "\\e").replace('-', "\\-"));
    }
    escaped
}
