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
            // As with rsync, the path of a missing SOURCE is one of a list.
            Some(23) if ["--relative", "-R"].contains(&name) => {
                accepted += 1;
                std::fs::remove_dir(world.path("dst")).unwrap();
            }
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
    assert!(accepted > 80 && answered > 60, "{accepted} {answered}");
    assert!(!world.path("dst").exists());
}

#[test]
fn options_that_need_nothing_give_the_same_copy() {
    let world = World::new();
    world.tree("src").file("a", "text").file("below/b", "more");
    let options = [
        "-as",
        "--mkpath",
        "--no-whole-file",
        "--no-motd",
        "--info=progress2",
        "--inc-recursive",
        "-8",
        "--blocking-io",
        "--outbuf=L",
        "--stderr=errors",
        "--no-owner",
        "--no-g",
        "--no-D",
        "--force",
        "--delete",
        "--partial-dir=.parts",
    ];
    let run = world.run([&options[..], &["src", "made/on/the/way"]].concat()).ok();
    world.assert_same("src", "made/on/the/way");
    assert!(!run.stderr.contains("warning") && !run.stderr.contains("does not copy"), "{}", run.stderr);
    let said = "ksync: ksync replaces a directory by a file only with --delete, and not with --force alone\n  \
                hint: Add --delete, or leave --force out.\n";
    world.run(["--force", "src", "dst"]).fails(1).says(said);
    assert!(!world.path("dst").exists());
}

#[test]
fn a_partial_directory_is_excluded_as_rsync_excludes_it() {
    let world = World::new();
    world.tree("src").file("a", "text").file("below/.parts/half", "x").file(".parts/half", "x");
    world.tree("dst").file(".parts/rest", "y");
    world.run(["-a", "--delete", "--yes", "--partial-dir=.parts", "src", "dst"]).ok();
    assert!(world.path("dst/a").exists() && world.path("dst/.parts/rest").exists());
    assert!(!world.path("dst/below/.parts").exists() && !world.path("dst/.parts/half").exists());
    world.run(["-a", "--partial-dir=.parts/", "src", "same"]).ok();
    assert!(world.path("same/a").exists() && !world.path("same/.parts").exists());
    // One outside of the tree excludes nothing, and an empty one is none.
    let outside = format!("--partial-dir={}", world.path("parts").display());
    for (option, destination) in
        [(outside.as_str(), "all"), ("--partial-dir=", "none"), ("--partial-dir=.", "dot")]
    {
        world.run(["-a", option, "src", destination]).ok();
        assert!(world.path(destination).join("below/.parts/half").exists(), "{option}");
    }
    assert!(!world.path("parts").exists());
}

#[test]
fn info_flags_are_the_options_that_they_mean() {
    let world = World::new();
    world.tree("src").file("a", "text");
    let shown = |option: &str, destination: &str| world.run([option, "src", destination]).ok().stdout;
    let lists = |text: &str| text.lines().any(|line| line.ends_with('a') && !line.contains("changed"));
    let (plain, verbose) = (shown("-t", "one"), shown("-v", "two"));
    assert!(!lists(&plain) && lists(&verbose), "{plain} {verbose}");
    assert!(lists(&shown("--info=name", "three")));
    let lines = |text: String| text.lines().count();
    assert_eq!(lines(shown("--info=stats2", "four")), lines(shown("--stats", "five")));
    assert_eq!(lines(shown("--info=progress2,stats1", "six")), lines(plain));
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
    ] {
        world.run(args).fails(1).says(said);
    }
}
