//! The options of rsync: each is accepted, or answered in one line by its name.

use std::collections::BTreeSet;
use std::process::Command;

use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// The spellings of all options in the output of `rsync --help`, each with a value if it takes one.
fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().skip_while(|line| *line != "Options").skip(1);
    let mut options = BTreeSet::new();
    for line in lines.take_while(|line| line.starts_with(['-', ' '])) {
        let (names, text) = line.split_once("  ").unwrap_or((line, ""));
        let aka = text.split_once("(aka ").and_then(|(_, rest)| rest.split_once(')')).map(|(name, _)| name);
        let value =
            names.split_once('=').map(|(_, value)| value.split([',', ' ']).next().unwrap_or_default());
        for name in names.split(", ").chain(aka).map(|name| name.split(['=', ' ']).next().unwrap_or_default())
        {
            if name.starts_with('-') {
                options.insert(match value {
                    Some("FILE") => format!("{name} /dev/null"),
                    Some(_) => format!("{name} 1"),
                    None => name.to_owned(),
                });
            }
        }
    }
    options
}

#[test]
fn every_option_of_rsync_is_accepted_or_answered_by_name() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let help = Run::of({
        let mut rsync = world.command("rsync");
        rsync.arg("--help");
        rsync
    });
    let mut options = options(&help.stdout);
    assert!(
        options.len() > 200 && options.contains("--link-dest 1") && options.contains("-H"),
        "{options:?}"
    );
    for negated in
        ["perms", "p", "times", "links", "recursive", "owner", "o", "D", "specials", "H", "whole-file"]
    {
        options.insert(format!("--no-{negated}"));
    }
    for shows in ["--help", "-h", "--version", "-V"] {
        options.remove(shows);
    }
    let (mut accepted, mut answered) = (0, 0);
    for option in &options {
        let mut ksync: Command = world.ksync(option.split(' '));
        ksync.args(["missing", "dst"]);
        let run = Run::of(ksync);
        let name = option.split(' ').next().unwrap();
        match run.status.code() {
            // The endpoints are at fault, not the option.
            Some(3) => accepted += 1,
            Some(1) => {
                answered += 1;
                let (what, rest) = run.stderr.split_once('\n').unwrap();
                assert!(what.starts_with("ksync: ") && what.contains(name), "{option}: {}", run.stderr);
                assert!(!what.contains("no option"), "{option}: {}", run.stderr);
                assert!(rest.is_empty() || rest.starts_with("  hint: "), "{option}: {}", run.stderr);
            }
            other => panic!("{option}: {other:?} {}", run.stderr),
        }
    }
    assert!(accepted > 30 && answered > 100, "{accepted} {answered}");
    assert!(!world.path("dst").exists());
}

#[test]
fn unknown_options_are_answered_like_all_errors() {
    let world = World::new();
    for (args, said) in [
        (
            &["--deleet", "a", "b"][..],
            "ksync: there is no option --deleet\n  hint: ksync --help lists all options.\n",
        ),
        (
            &["--max-delet=5", "a", "b"],
            "ksync: there is no option --max-delet\n  hint: ksync --help lists all options.\n",
        ),
        (
            &["--backup-dir=x", "a", "b"],
            "ksync: there is no --backup-dir: ksync keeps no old versions; copy DEST first, or use restic or borg\n",
        ),
        (
            &["-avHX", "a", "b"],
            "ksync: there is no -H: ksync copies each name as a file of its own; use rsync where hard links matter\n",
        ),
    ] {
        world.run(args).fails(1).says(said);
    }
}
