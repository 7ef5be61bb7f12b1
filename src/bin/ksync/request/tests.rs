use ksync::tree::transfer_rules::{Proof, TransferRules};

use super::*;
use crate::args::{Mode, parse};

fn built(line: &str) -> Result<Request, CliError> {
    let Ok(Mode::Sync(args)) = parse(line.split(' ').map(OsString::from)) else { panic!("{line}") };
    build(*args)
}

fn pairs(line: &str) -> Vec<String> {
    let jobs = built(line).unwrap().jobs;
    let sources = |job: &Job| job.sources().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    jobs.iter().map(|job| format!("{} > {}", sources(job), job.destination)).collect()
}

fn error(line: &str) -> String {
    let error = built(line).unwrap_err();
    assert_eq!(error.exit, USAGE, "{line}");
    error.to_string()
}

#[test]
fn one_source_goes_to_the_named_destination() {
    assert_eq!(pairs("ksync a sandbox:/b"), ["a > sandbox:/b"]);
    assert_eq!(pairs("ksync me@host:a b/"), ["me@host:a > b/"]);
}

#[test]
fn sources_on_one_machine_are_one_job() {
    for (line, jobs) in [
        ("ksync a/x y/ sandbox:/d", &["a/x y/ > sandbox:/d"][..]),
        ("ksync sandbox:/x y /no/d", &["sandbox:/x > /no/d/x", "y > /no/d/y"]),
        ("ksync vm:x y vm:z me@h:z2 /no/d", &["vm:x vm:z > /no/d", "y > /no/d/y", "me@h:z2 > /no/d/z2"]),
        ("ksync --delete vm:x vm:y /no/d", &["vm:x > /no/d/x", "vm:y > /no/d/y"]),
        // Only `src` is a directory: its deletions belong to it alone.
        ("ksync --delete src a b vm:/d", &["src > vm:/d/src", "a b > vm:/d"]),
    ] {
        assert_eq!(pairs(line), jobs, "{line}");
    }
}

#[test]
fn a_local_dot_gets_the_name_of_its_directory() {
    let here = std::env::current_dir().unwrap();
    let name = here.file_name().unwrap().to_str().unwrap();
    assert_eq!(pairs("ksync --delete . a sandbox:d")[0], format!(". > sandbox:d/{name}"));
}

#[test]
fn wrong_usage_is_reported_with_a_hint() {
    for (line, text) in [
        ("ksync -v", "there is no SOURCE and no DEST"),
        ("ksync a", "there is no DEST"),
        ("ksync a sandbox:b c@d:e", "both sandbox:b and c@d:e are remote"),
        ("ksync a :/b", "an endpoint that begins with : is in the VM of --setup, and there is none"),
        ("ksync --setup x a b", "--setup describes a VM, but no endpoint is in it"),
        ("ksync a/x b/x sandbox:/d", "two SOURCEs would both become sandbox:/d/x"),
        ("ksync sandbox: sandbox:/x d", "sandbox:. has no name that it could have in DEST"),
        ("ksync a b /dev/null", "/dev/null is not a directory, and several SOURCEs go into one"),
        ("ksync a http://b/c", "\"http://b/c\" is not an endpoint: its scheme is not ssh, ws or wss"),
        ("ksync -e rsh a b", "\"rsh\" is not a plain ssh (-e, --rsh), and ksync starts no remote shell"),
        ("ksync --host-key AAAA a b", "--host-key is not a public key"),
    ] {
        let error = error(line);
        let (what, hint) = error.split_once("\n  hint: ").unwrap_or_else(|| panic!("{error}"));
        assert_eq!(what, format!("ksync: {text}"));
        let begins = hint.starts_with(|c: char| c.is_uppercase()) || hint.starts_with("--");
        assert!(begins && hint.ends_with('.'), "{hint}");
    }
}

#[test]
fn a_directory_is_not_copied_onto_the_home_for_want_of_a_path() {
    for destination in ["host:", "me@host:", "session:", "sandbox:", "ssh://me@host", "wss://vm:2222/"] {
        let told = error(&format!("ksync src {destination}"));
        assert!(told.starts_with(&format!("ksync: {destination} names no directory")), "{told}");
        // A file, and several sources by name, may go there; as a source it means the home.
        built(&format!("ksync Cargo.toml {destination}")).unwrap();
        built(&format!("ksync src tests {destination}")).unwrap();
        built(&format!("ksync {destination} src")).unwrap();
    }
    assert!(error("ksync src host:").ends_with("hint: Write host:. for the home itself, or host:src."));
    for destination in ["host:.", "host:~", "host:site", "ssh://host/~"] {
        built(&format!("ksync src {destination}")).unwrap();
    }
}

#[test]
fn a_key_behind_i_is_refused_with_the_right_option() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let key = file("k", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
    let public = file("k.pub", "ssh-ed25519 AAAA me\n");
    for file in [&key, &public] {
        for line in [format!("ksync -i {file} a me@host:b"), format!("ksync -avi {file} a me@host:b")] {
            let told = format!("ksync: -i lists the changes, and {file} is a key\n  hint: A key is given by");
            assert!(error(&line).starts_with(&told), "{}", error(&line));
        }
    }
    assert!(error("ksync -i /no/.ssh/mine a me@host:b").contains("hint: A key is given by --identity"));
    let plain = file("plain", "-----");
    for line in [format!("ksync -i {plain} a d"), format!("ksync -iv {key} a d"), format!("ksync -i {key} d")]
    {
        built(&line).unwrap();
    }
}

#[test]
fn transfer_rules_are_those_of_rsync() {
    let rules = |line: &str| built(line).unwrap().jobs[0].options.transfer;
    assert_eq!(rules("ksync -W a b"), TransferRules::default());
    let all = TransferRules {
        update: true,
        existing: true,
        ignore_existing: true,
        size_max: Some(1024),
        size_min: Some(1),
        prune_empty: true,
        proof: Proof::Size,
        append: true,
    };
    let line = "ksync -uIm --existing --ignore-existing --size-only --max-size 1k --min-size=1b --append a b";
    assert_eq!(rules(line), all);
    assert_eq!(rules("ksync -I --no-whole-file a b").proof, Proof::None);
    assert!(built("ksync --force --delete-excluded a b").unwrap().jobs[0].options.delete);
    let excluded = built("ksync --delete-excluded a b").unwrap();
    assert!(excluded.jobs[0].options.delete && excluded.jobs[0].options.delete_excluded);
    assert!(error("ksync --delete-excluded a b c").starts_with("ksync: --delete-excluded takes one"));
    assert!(error("ksync -w -m a b").starts_with("ksync: --watch and --prune-empty-dirs exclude"));
}

#[test]
fn a_new_name_here_that_looks_remote_gets_a_hint() {
    let hint = |line: &str| built(line).unwrap().warnings.pop().map(|warning| warning.hint);
    let told = hint("ksync a me@host");
    assert_eq!(told.as_deref(), Some("A path on another machine has a colon: me@host:path."));
    assert!(hint("ksync a ./x::mod").is_some_and(|hint| hint.contains("host:path, with one colon")));
    for line in ["ksync a me@host:", "ksync a d", "ksync a ./me@host", "ksync a @", "ksync a src"] {
        assert_eq!(hint(line), None, "{line}");
    }
}

#[test]
fn consent_holds_the_typed_options() {
    let consent = |line: &str| built(line).unwrap().jobs[0].options.consent.clone();
    assert_eq!(consent("ksync --delete a b"), Consent::default());
    let all = consent(
        "ksync --delete -y --max-delete=0 --force-delete-in=/x --force-delete-in me@host:y a me@host:y",
    );
    let force_in = vec![ByteBuf::from(b"/x"), ByteBuf::from(b"y")];
    assert_eq!(all, Consent { yes: true, agreed: None, max_delete: Some(0), force_in });
    // A name that looks like a remote endpoint.
    assert_eq!(consent("ksync --force-delete-in=a:b a b").force_in, [ByteBuf::from(b"a:b")]);
}

#[test]
fn an_unreadable_file_is_named() {
    assert_eq!(
        error("ksync --exclude-from /no/file a b"),
        "ksync: cannot read /no/file: no such file or directory"
    );
}

#[test]
fn options_reach_both_ends() {
    let request = built("ksync -nci --fsync --delete --no-compress --exclude=x --timeout 0 a b").unwrap();
    let job = &request.jobs[0];
    let rules = vec![ksync::tree::filter::Rule::new(false, b"x".to_vec())];
    let options = Options {
        delete: true,
        dry_run: true,
        checksum: true,
        fsync: true,
        list_changes: true,
        rules,
        ..Options::default()
    };
    assert_eq!(job.options, options);
    assert_eq!(
        (job.connect_options.timeout, job.connect_options.connect_timeout),
        (NEVER, Duration::from_secs(30))
    );
    assert_eq!(request.show, Show { lists: true, itemize: true, progress: true, ..Show::default() });
    assert!(!built("ksync -nq a b").unwrap().jobs[0].options.list_changes);
    assert!(built("ksync a b").unwrap().jobs[0].options.compress);
    let connections = |line| built(line).unwrap().jobs[0].connect_options.connections;
    assert_eq!((connections("ksync a b"), connections("ksync -j 1 a b")), (None, Some(1)));
    assert_eq!(connections("ksync --connections 8 a b"), Some(8));
}
