//! The completions and the man page.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::world::skip::{needs_programs, path};
use crate::world::{Run, World};

/// A shell that finds `ksync`.
fn shell(world: &World, program: &str) -> Command {
    let folder = Path::new(env!("CARGO_BIN_EXE_ksync")).parent().unwrap().to_owned();
    let folders = [folder].into_iter().chain(std::env::split_paths(&path()).collect::<Vec<_>>());
    let mut shell = world.command(program);
    shell.env("PATH", std::env::join_paths(folders).unwrap());
    shell
}

/// Completes the last word of a command line under bash, as the key Tab does.
fn completed(world: &World, line: &str) -> BTreeSet<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let (last, previous) = (words.len() - 1, words[words.len() - 2]);
    let script = format!(
        "source ./completions || exit 9
         COMP_WORDS=({line}); COMP_CWORD={last}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}
         [ {last} -lt ${{#COMP_WORDS[@]}} ] || COMP_WORDS+=('')
         function=$(complete -p ksync | sed 's/.*-F \\([^ ]*\\).*/\\1/')
         \"$function\" ksync '{}' '{previous}'
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words[last],
    );
    let mut bash = shell(world, "bash");
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

/// Completes a command line in an interactive zsh, as the key Tab does, and returns what it then
/// shows.
fn shown_by_zsh(world: &World, line: &str) -> String {
    let script = format!(
        "zmodload zsh/zpty; zpty shell zsh -f -i
         zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; source ./completions; echo read''y'
         shown=; until [[ $shown == *ready* ]]; do zpty -r -t shell part && shown+=$part; sleep 0.05; done
         zpty -w -n shell $'{line}\\t\\t'; shown=
         for round in {{1..40}}; do zpty -r -t shell part && shown+=$part; sleep 0.05; done
         print -r -- $shown"
    );
    let mut zsh = shell(world, "zsh");
    zsh.args(["-f", "-c", &script]);
    Run::of(zsh).ok().stdout
}

#[test]
fn zsh_completes_endpoints_options_and_verbs() {
    if !needs_programs(&["zsh"]) {
        return;
    }
    let world = World::new();
    world.tree("far").file("alpha/x", "").file("alps", "").file("beta", "");
    world.tree("home/.ssh").file("config", "Host kiln kiln-2 *.internal\n");
    let script = world.run(["completions", "zsh"]).ok().stdout;
    world.tree(".").file("completions", script);
    let far = world.far("far").into_string().unwrap();
    let remote = format!("ksync ./a {far}/al");
    for (line, expected) in [
        ("ksync kil", &["kiln:", "kiln-2:"][..]),
        ("ksync --dele", &["--delete-excluded"]),
        ("ksync session cre", &["create"]),
        (&remote, &["alpha/", "alps"]),
    ] {
        let shown = shown_by_zsh(&world, line);
        for word in expected {
            assert!(shown.contains(word), "{line}: {word} in {shown:?}");
        }
    }
}

#[test]
fn fish_completes_endpoints_options_and_verbs() {
    if !needs_programs(&["fish"]) {
        return;
    }
    let world = World::new();
    world.tree("far").file("alpha/x", "").file("alps", "").file("beta", "");
    world.tree("home/.ssh").file("config", "Host kiln kiln-2 *.internal\n");
    let script = world.run(["completions", "fish"]).ok().stdout;
    world.tree(".").file("completions.fish", script);
    let far = world.far("far").into_string().unwrap();
    let remote = format!("ksync ./a {far}/al");
    let (directory, file) = (format!("{far}/alpha/"), format!("{far}/alps"));
    for (line, expected) in [
        ("ksync kil", &["kiln-2:", "kiln:"][..]),
        ("ksync --delete-e", &["--delete-excluded"]),
        ("ksync session cre", &["create"]),
        (&remote, &[&directory[..], &file]),
    ] {
        let mut fish = shell(&world, "fish");
        fish.args(["--no-config", "-c", &format!("source ./completions.fish; complete -C '{line}'")]);
        let shown = Run::of(fish).ok().stdout;
        let words: BTreeSet<&str> = shown.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(words, expected.iter().copied().collect(), "{line}");
    }
}

#[test]
fn bash_completes_hosts_and_paths_on_other_machines() {
    if !needs_programs(&["bash"]) {
        return;
    }
    let world = World::new();
    world.tree("far").file("alpha/x", "").file("two words", "").file(".hidden", "").file("beta", "");
    world.tree("home/.ssh").file("config", "Host kiln kiln-2 *.internal\nInclude more\n");
    world.tree("home/.ssh").file("more", "host forge\n");
    world.tree(".").file("kilt/x", "").file("other", "");
    let script = world.run(["completions", "bash"]).ok().stdout;
    world.tree(".").file("completions", script);
    let far = world.path("far").display().to_string();
    for (line, expected) in [
        ("ksync kil".to_owned(), &["kiln:", "kiln-2:", "kilt/"][..]),
        ("ksync ./a for".to_owned(), &["forge:"]),
        (format!("ksync sandbox:{far}/"), &["/alpha/", "/beta", "/two\\ words"]),
        (format!("ksync ./a sandbox:{far}/.h"), &["/.hidden"]),
        (format!("ksync ./a sandbox:{far}/nothing"), &[]),
        // No session of this name was used from here: nobody is asked for it.
        ("ksync ./a nosuch:/".to_owned(), &[]),
    ] {
        let prefix = if line.contains("sandbox:") { far.as_str() } else { "" };
        let expected: BTreeSet<String> = expected.iter().map(|entry| format!("{prefix}{entry}")).collect();
        assert_eq!(completed(&world, &line), expected, "{line}");
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
fn help_for_a_word_that_is_no_verb_names_it() {
    let world = World::new();
    let told = "ksync: ksync has no verb nosuch\n  hint: ksync --help lists the verbs.\n";
    assert_eq!(world.run(["help", "nosuch"]).fails(1).stderr, told);
    assert_eq!(world.run(["help", "session"]).ok().stdout, world.run(["session", "--help"]).ok().stdout);
    world.run(["help"]).ok();
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
