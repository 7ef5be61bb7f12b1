//! `ksync completions` and `ksync man`: both are made from the definition of the command line.
//! Endpoints are completed by `ksync __complete`.

use clap::Command;
use clap_complete::shells;
use clap_mangen::Man;

use crate::args::help::{ENDPOINTS, ENVIRONMENT, EXAMPLES, EXIT, MAPPING};
use crate::config;

/// Bash: a word that is no option is an endpoint, unless a verb comes first. The generated function
/// would offer options for it. Readline replaces only what stands behind the last colon.
const BASH_ENDPOINTS: &str = r#"
_ksync_endpoints() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n' entry
    local word="${line##*[[:space:]]}"
    local -a found=($(ksync __complete "$word" 2>/dev/null))
    if [[ "$word" != *:* && ${#found[@]} -gt 0 ]]; then
        for entry in $(compgen -f -- "$word"); do
            if [[ -d "$entry" ]]; then entry+=/; fi
            found+=("$entry")
        done
    elif [[ "$COMP_WORDBREAKS" == *:* ]]; then
        found=("${found[@]#"${word%"${word##*:}"}"}")
    fi
    for entry in "${found[@]}"; do
        if [[ -n "$entry" ]]; then COMPREPLY+=("$(printf '%q' "$entry")"); fi
    done
    if [[ ${#found[@]} -gt 0 ]]; then compopt -o nospace 2>/dev/null; fi
}
_ksync_or_endpoints() {
    COMPREPLY=()
    case " VERBS " in
        *" ${COMP_WORDS[1]} "*) _ksync "$@" ;;
        *)
            if [[ "$2" == -* ]]; then
                _ksync "$@"
            else
                if [[ "${COMP_CWORD}" -eq 1 ]]; then _ksync "$@"; fi
                _ksync_endpoints
            fi
            ;;
    esac
}
complete -F _ksync_or_endpoints -o bashdefault -o default ksync
"#;

/// Zsh: the same. The generated function is the last one that is defined.
const ZSH_ENDPOINTS: &str = r#"
_ksync_endpoints() {
    local -a found
    found=(${(f)"$(ksync __complete "${(Q)PREFIX}" 2>/dev/null)"})
    if (( $#found )); then compadd -S '' -- $found; fi
    if [[ "$PREFIX" != *:* ]]; then _files; fi
}
_ksync_or_endpoints() {
    local -a verbs=(VERBS)
    if [[ "$PREFIX" == -* ]] || (( CURRENT > 2 && verbs[(Ie)$words[2]] )); then
        _ksync "$@"
    else
        if (( CURRENT == 2 )); then _ksync "$@"; fi
        _ksync_endpoints
    fi
}
"#;

/// The generated line for the endpoints of a run.
const ZSH_POSITIONAL: &str = "'::endpoints:_default' \\\n";

/// The generated end of the script for zsh.
const ZSH_END: &str = r#"
if [ "$funcstack[1]" = "_ksync" ]; then
    _ksync "$@"
else
    compdef _ksync ksync
fi
"#;

/// Fish adds the paths of this machine by itself.
const FISH_ENDPOINTS: &str = r"
complete -c ksync -n __fish_ksync_needs_command -a '(ksync __complete (commandline -ct) 2>/dev/null)'
";

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
    let script = String::from_utf8_lossy(&script).into_owned();
    let with_verbs = |part: &str| part.replace("VERBS", &verbs.join(" "));
    match shell {
        Shell::Bash => script + &with_verbs(BASH_ENDPOINTS),
        Shell::Zsh => {
            // The generator takes the verb for an endpoint, and the word behind it for the verb.
            let script = script.replace(ZSH_POSITIONAL, "").replace("$line[2]", "$line[1]");
            let end = ZSH_END
                .replace("    _ksync", "    _ksync_or_endpoints")
                .replace("compdef _ksync ", "compdef _ksync_or_endpoints ");
            script.replace(ZSH_END, &(with_verbs(ZSH_ENDPOINTS) + &end))
        }
        // Fish has no short option -@, and would complete nothing for it.
        Shell::Fish => script.replace(" @/", " ").replace(" -s @", "") + FISH_ENDPOINTS,
        Shell::Powershell => script,
    }
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
