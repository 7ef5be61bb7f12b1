use super::*;

fn parsed(line: &str) -> Result<Mode, CliError> {
    parse(line.split(' ').map(OsString::from))
}

fn sync(line: &str) -> SyncArgs {
    match parsed(line) {
        Ok(Mode::Sync(args)) => *args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_command_definition_is_valid() {
    accepted::declare(Cli::command()).debug_assert();
}

#[test]
fn rsyncs_common_options_are_accepted() {
    let args = sync("ksync -avzPh --delete-after -e x -n --itemize-changes a b");
    assert_eq!(args.endpoints, ["a", "b"]);
    assert!(args.accepted.delete_after && args.what.dry_run && args.output.itemize_changes);
    assert_eq!((args.output.verbose, args.connection.rsh), (1, Some("x".into())));
    for line in ["ksync -rtlp a b", "ksync -aa -vv a b", "ksync --del a b", "ksync a b --partial -i"] {
        assert_eq!(sync(line).endpoints, ["a", "b"], "{line}");
    }
}

#[test]
fn the_last_of_two_contradicting_options_counts() {
    assert!(sync("ksync -z --no-compress a b").what.no_compress);
    assert!(!sync("ksync --no-compress -z a b").what.no_compress);
    assert!(sync("ksync -P --no-progress a b").output.no_progress);
    assert!(!sync("ksync --no-progress --progress a b").output.no_progress);
    assert!(!sync("ksync --no-progress -P a b").output.no_progress);
}

#[test]
fn max_delete_takes_a_number_from_zero_on() {
    assert_eq!(sync("ksync --max-delete=5 a b").what.max_delete, Some(5));
    assert_eq!(sync("ksync --max-delete 0 a b").what.max_delete, Some(0));
    for wrong in ["--max-delete=-1", "--max-delete -1", "--max-delete=x", "--max-delete="] {
        let told = parsed(&format!("ksync {wrong} a b")).unwrap_err().to_string();
        assert!(told.starts_with("ksync: --max-delete takes a number of entries, 0 or more"), "{told}");
    }
}

#[test]
fn a_verb_counts_only_in_the_first_place() {
    assert!(matches!(parsed("ksync sandbox --json"), Ok(Mode::Sandbox(SandboxArgs { json: true, .. }))));
    assert_eq!(sync("ksync a sandbox").endpoints, ["a", "sandbox"]);
    assert_eq!(sync("ksync ./sandbox b").endpoints, ["./sandbox", "b"]);
    assert_eq!(sync("ksync -- -a -b").endpoints, ["-a", "-b"]);
}

#[test]
fn h_alone_prints_help_and_with_others_changes_nothing() {
    assert!(matches!(parsed("ksync -h"), Ok(Mode::Show(text)) if text == help::SHORT));
    assert!(matches!(parsed("ksync --help"), Ok(Mode::Show(text)) if text.contains("Examples:")));
    assert!(matches!(parsed("ksync sandbox --help"), Ok(Mode::Show(text)) if text.contains("--listen")));
    assert!(matches!(parsed("ksync --version"), Ok(Mode::Show(text)) if text.starts_with("ksync ")));
    assert_eq!(sync("ksync -h a b").endpoints, ["a", "b"]);
}

#[test]
fn every_verb_has_a_help_of_its_own() {
    let (command, mut verbs) = (Cli::command(), Vec::new());
    for verb in command.get_subcommands() {
        verbs.push(verb.get_name().to_owned());
        verbs.extend(verb.get_subcommands().map(|below| format!("{} {}", verb.get_name(), below.get_name())));
    }
    assert!(verbs.len() > 10, "{verbs:?}");
    for (verb, flag) in verbs.iter().flat_map(|verb| [(verb, "-h"), (verb, "--help")]) {
        let help = parsed(&format!("ksync {verb} {flag}"));
        let is_its_own = |text: &String| text.contains(&format!("Usage: ksync {verb}"));
        assert!(matches!(&help, Ok(Mode::Show(text)) if is_its_own(text)), "{verb} {flag}: {help:?}");
    }
}

#[test]
fn help_fits_eighty_columns() {
    let Ok(Mode::Show(text)) = parsed("ksync --help") else { panic!("no help") };
    for line in text.lines().chain(help::SHORT.lines()) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn the_short_help_is_one_screen_of_options_that_exist() {
    let command = Cli::command();
    assert!(help::SHORT.lines().count() <= 24);
    let options = help::SHORT.lines().filter(|line| line.starts_with("  -") || line.starts_with("      -"));
    let mut count = 0;
    for line in options {
        let long = line.split(' ').find_map(|word| word.strip_prefix("--")).unwrap();
        let option = command.get_arguments().find(|option| option.get_long() == Some(long));
        let option = option.unwrap_or_else(|| panic!("--{long}"));
        let short = line.strip_prefix("  -").and_then(|rest| rest.chars().next());
        assert_eq!(option.get_short(), short.filter(|c| *c != '-' && *c != ' '), "--{long}");
        count += 1;
    }
    assert_eq!(count, 10);
}

fn refused(line: &str) -> String {
    let error = parsed(line).unwrap_err();
    assert_eq!(error.exit, crate::report::USAGE);
    error.to_string()
}

#[test]
fn an_unknown_option_is_an_error_that_names_it() {
    let hint = "hint: ksync --help lists all options.";
    assert_eq!(
        refused("ksync --frobnicate a b"),
        format!("ksync: there is no option --frobnicate\n  {hint}")
    );
    assert_eq!(refused("ksync -nQ a b"), format!("ksync: there is no option -Q\n  {hint}"));
    assert_eq!(
        refused("ksync --cheksum a b"),
        "ksync: there is no option --cheksum\n  hint: There is --checksum; ksync --help lists all options."
    );
    // A verb has options of its own.
    assert_eq!(
        refused("ksync ssh -H abc"),
        "ksync: there is no option -H\n  hint: ksync ssh --help lists all options."
    );
}

#[test]
fn a_typo_never_leads_to_an_option_that_deletes() {
    let (command, mut tried) = (Cli::command(), 0);
    let names = command.get_arguments().flat_map(|argument| {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        argument.get_long().into_iter().chain(aliases).map(str::to_owned).collect::<Vec<_>>()
    });
    for name in names.collect::<Vec<_>>() {
        for at in 0..name.len() {
            for typo in [
                format!("{}{}", &name[..at], &name[at + 1..]),
                format!("{}x{}", &name[..at], &name[at + 1..]),
                format!("{}{}{}", &name[..=at], &name[at..=at], &name[at + 1..]),
            ] {
                let Err(error) = parsed(&format!("ksync --{typo} a b")) else { continue };
                tried += 1;
                let hint = error.hint().unwrap_or_default();
                for word in ["delete", "--del", "remove", "force", "--yes"] {
                    assert!(!hint.contains(word), "--{typo}: {error}");
                }
                assert!(!error.to_string().contains("tip:"), "{error}");
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

#[test]
fn wrong_values_are_named_with_what_the_option_takes() {
    for (line, text) in [
        ("ksync --timeout=-1 a b", "--timeout takes seconds, 0 or more, and not \"-1\""),
        ("ksync --timeout -1 a b", "--timeout takes seconds, 0 or more, and not \"-1\""),
        ("ksync --contimeout=x a b", "--contimeout takes seconds, 0 or more, and not \"x\""),
        ("ksync -@ x a b", "--modify-window takes seconds, -1 to 86400, and not \"x\""),
        ("ksync --retries=1.5 a b", "--retries takes a number, 0 or more, and not \"1.5\""),
        ("ksync --debounce=101 a b", "--debounce takes milliseconds, 0 to 100, and not \"101\""),
        ("ksync -j=0 a b", "--connections takes a number from 1 to 8, and not \"0\""),
        ("ksync -j -1 a b", "--connections takes a number from 1 to 8, and not \"-1\""),
        ("ksync --connections=9 a b", "--connections takes a number from 1 to 8, and not \"9\""),
        ("ksync --timeout= a b", "--timeout takes seconds, 0 or more, and not \"\""),
        ("ksync flush --timeout=x", "--timeout takes seconds, 0 or more, and not \"x\""),
        ("ksync session create --timeout 9", "--timeout takes seconds, 10 to 259200, and not \"9\""),
        (
            "ksync sandbox --listen=x",
            "--listen takes an address and a port, as in 127.0.0.1:0, and not \"x\"",
        ),
        ("ksync sandbox --time-scale=x", "--time-scale takes a number, and not \"x\""),
        ("ksync sandbox --cdp=x", "--cdp takes a URL, as in http://127.0.0.1:9222, and not \"x\""),
        ("ksync a b --exclude", "--exclude needs a value"),
        ("ksync --checksum=1 a b", "--checksum takes no value"),
        ("ksync --poll a b", "--watch is missing"),
        ("ksync proxy", "URL-OR-SESSION is missing"),
        ("ksync completions", "SHELL is missing"),
        ("ksync completions sh", "SHELL takes bash, zsh, fish or powershell, and not \"sh\""),
        ("ksync session use", "SESSION is missing"),
        ("ksync session lst", "ksync session has no verb lst"),
        ("ksync session", "ksync session needs a verb"),
        ("ksync --exec x --on-change y a b", "--exec cannot be used with --on-change"),
    ] {
        let told = refused(line);
        let (what, hint) = told.split_once("\n  hint: ").unwrap_or_else(|| panic!("{told}"));
        assert_eq!(what, format!("ksync: {text}"), "{line}");
        assert!(hint.ends_with('.') && !hint.contains("--ca-cert"), "{line}: {hint}");
    }
    assert_eq!(
        refused("ksync proxy"),
        "ksync: URL-OR-SESSION is missing\n  hint: Write ksync proxy URL-OR-SESSION; ksync proxy --help has the \
         options."
    );
}

#[test]
fn forwards_stand_before_or_behind_the_session_and_not_in_the_command() {
    let ssh = |line: &str| match parsed(line) {
        Ok(Mode::Ssh(args)) => args,
        other => panic!("{line}: {other:?}"),
    };
    for line in [
        "ksync ssh -L 1:a:2 -R 3:b:4 vm -D 5 ls -L 6",
        "ksync ssh -L1:a:2 vm -R3:b:4 -D5 -- ls -L 6",
        "ksync ssh vm -D 5 -R 3:b:4 -L 1:a:2 ls -L 6",
    ] {
        let args = ssh(line);
        let told = args.forwards().iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected =
            ["localhost:1 here to a:2 there", "localhost:3 there to b:4 here", "SOCKS on localhost:5 here"];
        assert_eq!(told, expected, "{line}");
        assert_eq!((args.session.as_str(), args.command.len()), ("vm", 3), "{line}");
    }
    assert!(ssh("ksync ssh -N vm").no_command);
    assert_eq!(
        refused("ksync ssh -N vm ls").split('\n').next(),
        Some("ksync: -N cannot be used with COMMAND")
    );
    assert_eq!(
        refused("ksync ssh vm -L 80:web").split('\n').next(),
        Some("ksync: -L takes [BIND:]PORT:HOST:PORT, and not \"80:web\"")
    );
}

#[test]
fn a_verb_of_a_later_version_is_no_source() {
    for line in ["ksync run", "ksync run x y", "ksync -n run"] {
        let verb = line.split(' ').find(|word| usage::LATER.contains(word)).unwrap();
        let hint = format!("hint: ksync --help lists the verbs; an entry of that name here is ./{verb}.");
        assert_eq!(refused(line), format!("ksync: ksync has no verb {verb} yet\n  {hint}"));
    }
    assert_eq!(sync("ksync ./verify b").endpoints, ["./verify", "b"]);
    assert_eq!(sync("ksync a verify").endpoints, ["a", "verify"]);
    // This package has such a directory.
    assert_eq!(sync("ksync src b").endpoints, ["src", "b"]);
}

#[test]
fn help_is_a_verb_of_its_own() {
    assert!(matches!(parsed("ksync help"), Ok(Mode::Show(text)) if text.contains("Examples:")));
    assert!(matches!(parsed("ksync help proxy"), Ok(Mode::Show(text)) if text.contains("ksync proxy")));
    let nested = parsed("ksync help session create");
    assert!(matches!(nested, Ok(Mode::Show(text)) if text.contains("ksync session create")));
}

#[test]
fn the_endpoint_behind_i_is_known() {
    let behind = |line: &str| sync(line).behind_i;
    for line in ["ksync -i k a b", "ksync -avi k a b", "ksync a -i k b", "ksync --itemize-changes k a b"] {
        assert_eq!(behind(line).as_deref(), Some("k".as_ref()), "{line}");
    }
    for line in ["ksync k a b", "ksync -iv k a b", "ksync -i -n k a b", "ksync k a b -i"] {
        assert_eq!(behind(line), None, "{line}");
    }
}

#[test]
fn options_that_change_nothing_are_accepted() {
    for option in [
        "--mkpath",
        "-s",
        "--protect-args",
        "--secluded-args",
        "--no-whole-file",
        "--no-W",
        "-W",
        "--no-motd",
        "--partial-dir=.p",
        "--partial-dir .p",
        "--info=progress2",
        "--info=name,stats2",
        "--inc-recursive",
        "--no-inc-recursive",
        "--i-r",
        "--no-i-r",
        "--blocking-io",
        "--outbuf=L",
        "--outbuf n",
        "-8",
        "--8-bit-output",
        "--stderr=errors",
        "--stderr=c",
        "-S",
        "--sparse --no-S",
        "-E --numeric-ids",
        "--no-owner",
        "--no-o",
        "--no-group",
        "--no-g",
        "--no-D",
        "--no-devices",
        "--no-specials",
        "-avzs",
        "--trust-sender",
        "--cc=md5",
        "--zl=9",
        "-B 4096",
        "-D --no-D",
        "-og --no-o --no-g",
        "--devices --specials --no-D",
        "--owner --no-owner",
    ] {
        let args = sync(&format!("ksync {option} a b"));
        assert_eq!(args.endpoints, ["a", "b"], "{option}");
        assert_eq!(args.metadata.options().unwrap(), None, "{option}");
    }
    assert!(sync("ksync --force --delete a b").accepted.force);
    assert_eq!(sync("ksync --partial-dir=x --partial-dir=y a b").accepted.partial_dir.as_deref(), Some("y"));
    let info = sync("ksync --info=progress0,name --info=progress2 a b").accepted.info;
    assert_eq!((info.progress, info.names, info.stats), (Some(true), Some(true), None));
    for (line, text) in [
        ("--outbuf=x", "--outbuf takes N, L or B, and not \"x\""),
        ("--stderr=all", "--stderr takes errors or client: results go to stdout, all else to stderr, and"),
        (
            "--info=del2",
            "--info takes progress, name, stats and none, each with a level, as in progress2,stats2",
        ),
    ] {
        assert!(refused(&format!("ksync {line} a b")).starts_with(&format!("ksync: {text}")), "{line}");
    }
}

#[test]
fn metadata_options_are_those_of_rsync() {
    let options = |line: &str| sync(&format!("ksync {line} a b")).metadata.options().unwrap();
    let given = |line: &str| *options(line).unwrap_or_default();
    let all = given("-rlptgoD");
    assert!(all.owner && all.group && all.devices && all.specials && !all.numeric_ids);
    assert!(!given("-goD --no-o").owner && given("--no-o --owner").owner);
    let specials = given("--no-D --specials");
    assert!(specials.specials && !specials.devices);
    let chown = given("--chown=web:www");
    assert!(chown.owner && chown.group && chown.users.len() == 1 && chown.groups.len() == 1);
    assert!(!given("--chown=:www").owner && !given("--chown=web:").group);
    assert_eq!(given("--chmod=D755 --chmod=F644,go-w").chmod.len(), 3);
    assert!(given("-HAX").hard_links && given("-HAX").acls && given("-HAX").xattrs);
    assert!(given("--no-perms -E").no_perms && !given("--no-perms -A").no_perms);
    assert!(options("-a").is_none() && options("-H --no-H").is_none());
    for (line, text) in [
        ("--chown=", "--chown takes USER:GROUP, USER or :GROUP, and not \"\""),
        ("--chmod=u+q", "--chmod takes changes of modes, and not \"u+q\""),
        ("--usermap=a", "--usermap takes FROM:TO with commas in between, and not \"a\""),
        ("--groupmap=a:b,", "--groupmap takes FROM:TO with commas in between, and not \"\""),
    ] {
        let error = sync(&format!("ksync {line} a b")).metadata.options().unwrap_err();
        assert_eq!((error.to_string().contains(text), error.exit), (true, 1), "{line}: {error}");
    }
}
