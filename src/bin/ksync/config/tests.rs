use std::collections::HashMap;

use super::*;
use crate::args::{self, Mode, SyncArgs};

fn project() -> Origin {
    Origin::Project("/p/.ksync.toml".into())
}

fn user() -> Origin {
    Origin::User("/u/config.toml".into())
}

fn settings(variables: &[(&str, &str)], project_text: &str, user_text: &str) -> Result<Settings, CliError> {
    let command = args::command();
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    let mut all = environment(&command, |name| variables.get(name).map(OsString::from))?;
    all.extend(file::parse(&command, project_text, &project())?);
    all.extend(file::parse(&command, user_text, &user())?);
    let mut settings = Settings { all, ..Settings::default() };
    settings.mark();
    Ok(settings)
}

fn sync(line: &str, settings: &Settings) -> SyncArgs {
    let args = line.split(' ').map(OsString::from);
    match args::parse_with(args, &|_, _| Ok(settings.clone())) {
        Ok(Mode::Sync(args)) => *args,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(variables: &[(&str, &str)], project_text: &str, user_text: &str) -> String {
    settings(variables, project_text, user_text).unwrap_err().to_string()
}

#[test]
fn a_higher_source_wins() {
    let settings = settings(
        &[("KSYNC_TIMEOUT", "1")],
        "timeout = 2\nretries = 2",
        "timeout = 3\nretries = 3\ncontimeout = 3",
    );
    let settings = settings.unwrap();
    let args = sync("ksync a b", &settings).connection;
    assert_eq!((args.timeout, args.retries, args.contimeout), (Some(1), 2, Some(3)));
    assert_eq!(sync("ksync --timeout 9 a b", &settings).connection.timeout, Some(9));
    let overridden: Vec<&str> =
        settings.all.iter().filter(|setting| setting.is_overridden).map(|setting| &*setting.key).collect();
    assert_eq!(overridden, ["timeout", "retries", "timeout"]);
}

#[test]
fn a_flag_is_turned_off_by_any_higher_source() {
    let on = settings(&[], "delete = true\nverbose = true", "").unwrap();
    let args = sync("ksync a b", &on);
    assert!(args.what.delete && args.output.verbose == 1);
    assert!(!sync("ksync --no-delete a b", &on).what.delete);
    assert!(sync("ksync --no-delete --delete a b", &on).what.delete);
    let off = settings(&[("KSYNC_DELETE", "false")], "delete = true", "delete = true").unwrap();
    assert!(!sync("ksync a b", &off).what.delete);
    let off = settings(&[], "no-compress = true", "compress = true").unwrap();
    assert!(sync("ksync a b", &off).what.no_compress && !sync("ksync -z a b", &off).what.no_compress);
}

#[test]
fn rules_add_up_behind_those_of_the_command_line() {
    let all = settings(&[("KSYNC_EXCLUDE", "e1\ne2")], "exclude = ['p']\ninclude = 'q'", "exclude = ['u']")
        .unwrap();
    let rules = sync("ksync --include x a b", &all).rules;
    let shown: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
    let patterns = ["\"x\"", "\"e1\"", "\"e2\"", "\"p\"", "\"q\"", "\"u\""];
    assert_eq!(shown.len(), patterns.len(), "{shown:?}");
    assert!(shown.iter().zip(patterns).all(|(rule, pattern)| rule.contains(pattern)), "{shown:?}");
}

#[test]
fn the_current_directory_goes_to_the_project_s_destination() {
    let settings = settings(&[], "dest = 'host:/srv'\nchecksum = true", "").unwrap();
    let args = sync("ksync -n", &settings);
    assert!(args.endpoints == [".", "host:/srv"] && args.what.checksum && args.what.dry_run);
    assert_eq!(sync("ksync a b", &settings).endpoints, ["a", "b"]);
}

#[test]
fn settings_of_a_watch_wait_for_a_watch() {
    let polls = settings(&[], "poll = true", "").unwrap();
    assert!(!sync("ksync a b", &polls).watch.poll && sync("ksync -w a b", &polls).watch.poll);
    let both = settings(&[], "poll = true\nwatch = true", "").unwrap();
    assert!(sync("ksync a b", &both).watch.poll && !sync("ksync --no-watch a b", &both).watch.poll);
    let runs = settings(&[], "", "exec = 'x'").unwrap();
    let args = sync("ksync --on-change y a b", &runs).watch;
    assert_eq!((args.exec, args.on_change.as_deref()), (None, Some("y")));
}

#[test]
fn a_project_s_file_sets_nothing_that_harms_this_machine() {
    for key in [
        "exec = 'x'",
        "on-change = 'x'",
        "identity = ['k']",
        "host-key = 'x y'",
        "setup = 'f'",
        "ca-cert = 'f'",
        "rsh = 'ssh'",
        "links = true",
        "yes = true",
        "force-delete-in = ['/']",
        "exclude-from = ['/etc/passwd']",
        "quiet = true",
        "json = true",
    ] {
        let told = refused(&[], key, "");
        let name = key.split(' ').next().unwrap();
        let expected =
            format!("ksync: /p/.ksync.toml: the key {name} may not stand in the file of a project");
        assert!(told.starts_with(&expected), "{told}");
    }
    for url in ["wss://h/x", "ssh://h/x"] {
        assert!(refused(&[], &format!("dest = '{url}'"), "").contains("dest may not be a URL"));
    }
}

#[test]
fn consent_is_given_on_the_command_line_only() {
    assert!(refused(&[], "", "yes = true").contains("only the command line may give yes"));
    assert!(refused(&[("KSYNC_YES", "1")], "", "").starts_with("ksync: KSYNC_YES: only the command line"));
    assert!(refused(&[("KSYNC_NO_CONFIG", "1")], "", "").contains("may give --no-config"));
}

#[test]
fn an_error_names_the_file_the_key_and_the_nearest_key() {
    for (project_text, user_text, told) in [
        (
            "chcksum = true",
            "",
            "/p/.ksync.toml: there is no key chcksum\n  hint: There is checksum; ksync schema",
        ),
        ("", "max_delete = 1", "/u/config.toml: there is no key max_delete\n  hint: There is max-delete;"),
        // A typo leads to nothing that deletes.
        (
            "delte = true",
            "",
            "/p/.ksync.toml: there is no key delte\n  hint: ksync schema config lists all keys.",
        ),
        ("", "dest = 'a'", "/u/config.toml: dest is a key for the file of a project"),
        ("timeout = -1", "", "/p/.ksync.toml: timeout takes seconds, 0 or more, and not \"-1\""),
        ("timeout = true", "", "/p/.ksync.toml: timeout takes a text or a number"),
        ("delete = 'yes'", "", "/p/.ksync.toml: delete takes true or false"),
        ("exclude = [true]", "", "/p/.ksync.toml: exclude takes a list of texts"),
        ("a = 1\nb = ", "", "/p/.ksync.toml: line 2: "),
    ] {
        let text = refused(&[], project_text, user_text);
        assert!(text.starts_with(&format!("ksync: {told}")), "{text}");
        let hint = text.split_once("\n  hint: ").unwrap().1;
        assert!(hint.starts_with(char::is_uppercase) || hint.starts_with("ksync "), "{hint}");
    }
    assert!(
        refused(&[("KSYNC_DELETE", "x")], "", "").contains("KSYNC_DELETE takes true or false, and not \"x\"")
    );
}

#[test]
fn every_long_option_can_be_set_or_is_left_to_the_command_line() {
    let command = args::command();
    for option in command.get_arguments().filter(|arg| is_key(arg)) {
        let key = option.get_long().unwrap();
        let text = match option.get_action() {
            ArgAction::SetTrue | ArgAction::Count => format!("{key} = true"),
            _ => format!("{key} = \"\\u0001\""),
        };
        match settings(&[], "", &text) {
            Ok(settings) => assert_eq!(settings.all[0].key, key),
            Err(error) => {
                let told = error.to_string();
                let is_wrong_value = told.contains(&format!(": {key} takes "));
                let is_consent =
                    COMMAND_LINE.contains(&key) && told.contains("only the command line may give");
                assert!(is_wrong_value || is_consent, "{told}");
            }
        }
    }
}
