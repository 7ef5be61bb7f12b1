//! The completions and the man page.

use std::collections::BTreeSet;

use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// Completes the last word of a command line under bash, as the key Tab does.
fn completed(world: &World, line: &str) -> BTreeSet<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let (last, previous) = (words.len() - 1, words[words.len() - 2]);
    let script = format!(
        "source ./completions || exit 9
         COMP_WORDS=({line}); COMP_CWORD={last}
         [ {last} -lt ${{#COMP_WORDS[@]}} ] || COMP_WORDS+=('')
         function=$(complete -p ksync | sed 's/.*-F \\([^ ]*\\).*/\\1/')
         \"$function\" ksync '{}' '{previous}'
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words[last],
    );
    let mut bash = world.command("bash");
    bash.args(["--norc", "--noprofile", "-c", &script]);
    let run = Run::of(bash).ok();
    assert_eq!(run.stderr, "");
    run.stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_long_options_and_verbs_and_leaves_paths_to_itself() {
    if !needs_programs(&["bash"]) {
        return;
    }
    let world = World::new();
    let script = world.run(["completions", "bash"]).ok().stdout;
    world.tree(".").file("completions", script);
    let mut check = world.command("bash");
    check.args(["-n", "completions"]);
    Run::of(check).ok();
    for (line, expected) in [
        ("ksync --dele", &["--delete", "--delete-excluded"][..]),
        ("ksync --del", &["--del", "--delete", "--delete-excluded"]),
        ("ksync ./a --dry", &["--dry-run"]),
        ("ksync ./a --rs", &["--rsh", "--rsync-path"]),
        ("ksync sess", &["session"]),
        ("ksync comp", &["completions"]),
        ("ksync session cre", &["create"]),
        ("ksync session list --js", &["--json"]),
        // Bash completes these as paths.
        ("ksync ./a ", &[]),
        ("ksync ./a ./", &[]),
        ("ksync -n ", &[]),
        // Refused, or without an effect.
        ("ksync --mkp", &[]),
        ("ksync --daem", &[]),
    ] {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(completed(&world, line), expected, "{line}");
    }
}

#[test]
fn each_shell_gets_its_own_script() {
    let world = World::new();
    for (shell, part) in [
        ("zsh", "#compdef ksync"),
        ("fish", "complete -c ksync"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = world.run(["completions", shell]).ok().stdout;
        for word in [part, "delete", "dry-run", "session", "doctor"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let run = world.run(["completions", "tcsh"]).fails(1);
    let said = "ksync: SHELL takes bash, zsh, fish or powershell, and not \"tcsh\"\n";
    assert!(run.stderr.starts_with(said), "{}", run.stderr);
}

#[test]
fn the_man_page_has_the_usual_sections_and_every_option_of_the_help() {
    let world = World::new();
    let page = world.run(["man"]).ok().stdout;
    assert!(page.lines().any(|line| line.starts_with(".TH ksync 1")), "{page}");
    assert_eq!(page.matches(".ds Aq").count(), 2);
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    let expected = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "ENDPOINTS",
        "OPTIONS",
        "VERBS",
        "\"EXIT STATUS\"",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "\"SEE ALSO\"",
    ];
    assert_eq!(sections, expected);
    // A minus stands as `\-`, so that it can be searched and copied.
    let plain = page.replace("\\-", "-");
    let help = world.run(["--help"]).ok().stdout;
    let is_option = |line: &&str| line.trim_start().starts_with('-');
    let options: BTreeSet<&str> = help
        .lines()
        .filter(is_option)
        .filter_map(|line| line.split([' ', ',', '.']).find(|word| word.starts_with("--")))
        .collect();
    assert!(options.len() > 30 && options.contains("--force-delete-in"), "{options:?}");
    for option in options {
        assert!(plain.contains(option), "{option}");
    }
    for verb in [
        "session",
        "ssh",
        "proxy",
        "doctor",
        "flush",
        "keep",
        "undo",
        "apply",
        "verify",
        "sandbox",
        "completions",
        "man",
    ] {
        assert!(plain.contains(&format!("\\fBksync {verb}\\fR")), "{verb}");
    }
    // A line that starts with a dot is a command of roff, and these are all.
    let commands: BTreeSet<&str> = page
        .lines()
        .filter(|line| line.starts_with(['.', '\'']))
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    let known =
        [".TH", ".SH", ".SS", ".TP", ".PP", ".RS", ".RE", ".IP", ".br", ".sp", ".nf", ".fi", ".ie", ".el"];
    let odd: Vec<&&str> = commands.iter().filter(|command| !known.contains(command)).collect();
    assert!(odd.is_empty(), "{odd:?}");
}

#[test]
fn the_short_help_fits_one_screen() {
    let world = World::new();
    let help = world.run(["-h"]).ok().stdout;
    assert!(help.lines().count() <= 24 && help.lines().all(|line| line.chars().count() <= 80), "{help}");
    assert!(help.contains("Usage: ksync [OPTIONS] SOURCE... DEST\n"), "{help}");
    assert!(
        help.ends_with("ksync --help has all options and verbs, ksync help VERB those of a verb.\n"),
        "{help}"
    );
    assert!(world.run(["--help"]).ok().stdout.lines().count() > 100);
}
