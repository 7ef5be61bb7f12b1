//! `~/.ssh/config`, held against `ssh -G` over generated configurations.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use ksync::remote::ssh_config::{
    self, AddressFamily, ConfigError, HostConfig, Query, SshAgent, load, local_user, names,
};

use crate::world::World;
use crate::world::skip::needs_programs;

/// Generated configurations; more with `KSYNC_SSH_CASES`.
const CASES: u64 = 400;

/// Random numbers by xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn of<'a>(&mut self, faces: &[&'a str]) -> &'a str {
        faces[self.roll(faces.len())]
    }
}

const PATTERNS: [&str; 12] = [
    "vm",
    "v*",
    "other",
    "!vm",
    "*",
    "?m",
    "real.example",
    "*.example",
    "Vm",
    "!*.example",
    "\"vm\"",
    "10.0.0.*",
];

const LISTS: [&str; 12] = [
    "vm",
    "v*,other",
    "!vm,*",
    "*",
    "real.example",
    "*.example",
    "Vm",
    "!other",
    "\"vm,other\"",
    "10.0.0.1",
    "me",
    "root,me",
];

const COMMANDS: [&str; 10] = [
    "true",
    "false",
    "\"test %h = real.example\"",
    "\"test %n = vm\"",
    "\"test %p = 22\"",
    "\"test %r = me && test %u != %%\"",
    "\"test -n %l -a -n %L -a %i -ge 0\"",
    "\"test %k = %h\"",
    "\"case %C in [0-7]*) ;; *) false; esac\"",
    "\"case %C in *[13579bdf]) ;; *) false; esac\"",
];

fn criterion(dice: &mut Dice) -> String {
    let not = dice.of(&["", "", "", "!"]);
    let between = dice.of(&[" ", " ", "=", "  "]);
    match dice.roll(9) {
        0 | 1 => format!("{not}host{between}{}", dice.of(&LISTS)),
        2 | 3 => format!("{not}originalhost{between}{}", dice.of(&LISTS)),
        4 => format!("{not}user{between}{}", dice.of(&LISTS)),
        5 => format!("{not}localuser{between}{}", dice.of(&["root", "me", "!root,*"])),
        6 => format!("{not}{}", dice.of(&["final", "canonical", "FINAL"])),
        7 => format!("{not}exec {}", dice.of(&COMMANDS)),
        _ => "Host *".to_owned(),
    }
}

fn line(dice: &mut Dice, included: &[PathBuf]) -> String {
    let number = dice.roll(4);
    match dice.roll(22) {
        0..=2 => (0..=dice.roll(3)).fold("Host".to_owned(), |line, _| line + " " + dice.of(&PATTERNS)),
        3..=6 => match dice.roll(8) {
            0 => dice
                .of(&[
                    "Match all",
                    "Match final all",
                    "Match !all",
                    "Match canonical all",
                    "Match user me all",
                ])
                .to_owned(),
            _ => (0..=dice.roll(3)).fold("Match".to_owned(), |line, _| line + " " + &criterion(dice)),
        },
        7 => match included.get(dice.roll(included.len() + 1)) {
            Some(file) => format!("Include {}", file.display()),
            None => "Include /no/such/file /no/dir/*".to_owned(),
        },
        8 | 9 => format!(
            "HostName {}",
            dice.of(&["real.example", "%h.example", "10.0.0.1", "Real.Example", "=vm", "\"%%h\""])
        ),
        10 => {
            format!("Port {}", dice.of(&["22", "2200", "=2201", " = 2202", "\"2203\"", "0", "many", "22 23"]))
        }
        11 => format!("User {}", dice.of(&["me", "root", "\"me too\"", "you # me"])),
        12 => format!("\tIdentityFile /k/{number}"),
        13 => format!("IdentityFile {}", dice.of(&["none", "\"/k/with blank\"", "'/k/x'", "/k/\\\\y"])),
        14 => format!("UserKnownHostsFile /u/{number} \"/u/b c\""),
        15 => format!("GlobalKnownHostsFile=/g/{number}"),
        16 => format!("HostKeyAlias alias{number}"),
        17 => format!("ProxyJump {}", dice.of(&["jump", "none", "me@jump:22,second"])),
        18 => format!("ProxyCommand {}", dice.of(&["nc %h %p", "none", "= nc \"%h\" %p"])),
        19 => format!("IdentitiesOnly {}", dice.of(&["yes", "no", "true", "perhaps"])),
        20 => format!("CertificateFile /c/{number}"),
        _ => match number {
            0 => format!("AddressFamily {}", dice.of(&["any", "inet", "inet6"])),
            1 => "BindAddress 127.0.0.1".to_owned(),
            2 => format!("IdentityAgent {}", dice.of(&["none", "/a/socket", "SSH_AUTH_SOCK"])),
            _ => dice
                .of(&["# Host vm", "", "   ", "ServerAliveInterval 5", "  # Match all", "LogLevel QUIET"])
                .to_owned(),
        },
    }
}

fn text(dice: &mut Dice, included: &[PathBuf], lines: usize) -> String {
    (0..dice.roll(lines) + 1).fold(String::new(), |text, _| text + &line(dice, included) + "\n")
}

/// The output of `ssh -G`, by keyword; an error if it refuses the configuration.
fn oracle(world: &World, config: &Path, query: &Query<'_>) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut command = world.command("ssh");
    command.arg("-G").arg("-F").arg(config);
    query.user.map(|user| command.args(["-l", user]));
    query.port.map(|port| command.args(["-p", &port.to_string()]));
    let output = command.arg(query.host).output().expect("ssh");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut values = BTreeMap::<String, Vec<String>>::new();
    for line in String::from_utf8(output.stdout).expect("text").lines() {
        let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
        values.entry(keyword.to_owned()).or_default().push(value.to_owned());
    }
    Ok(values)
}

/// ksync's reading of a configuration, in the form of `ssh -G`.
fn printed(config: &HostConfig) -> BTreeMap<&'static str, Vec<String>> {
    let joined = |files: &[PathBuf]| files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
    let mut values = BTreeMap::from([
        ("hostname", vec![config.host_name.clone()]),
        ("port", vec![config.port.unwrap_or(22).to_string()]),
        ("user", vec![config.user.clone().or_else(local_user).unwrap_or_default()]),
        ("identitiesonly", vec![if config.identities_only { "yes" } else { "no" }.to_owned()]),
        ("certificatefile", joined(&config.certificate_files)),
        ("hostkeyalias", config.host_key_alias.iter().cloned().collect()),
        ("bindaddress", config.bind_address.iter().cloned().collect()),
    ]);
    values.insert(
        "addressfamily",
        vec![
            match config.address_family {
                AddressFamily::Any => "any",
                AddressFamily::Inet => "inet",
                AddressFamily::Inet6 => "inet6",
            }
            .to_owned(),
        ],
    );
    values.insert(
        "identityagent",
        match &config.ssh_agent {
            SshAgent::OfEnvironment => Vec::new(),
            SshAgent::At(path) => vec![path.display().to_string()],
            SshAgent::Off => vec!["none".to_owned()],
        },
    );
    if let Some(files) = &config.identity_files {
        values.insert("identityfile", joined(files));
    }
    for (keyword, files) in [
        ("userknownhostsfile", &config.user_known_hosts_files),
        ("globalknownhostsfile", &config.global_known_hosts_files),
    ] {
        if let Some(files) = files {
            values.insert(keyword, vec![joined(files).join(" ")]);
        }
    }
    values
}

fn difference(ours: &HostConfig, theirs: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let has_proxy = theirs.contains_key("proxyjump") || theirs.contains_key("proxycommand");
    if has_proxy != ours.proxy.is_some() {
        return Some(format!("a proxy: {:?}, ssh: {has_proxy}", ours.proxy));
    }
    if ours.identity_files.is_none()
        && !theirs["identityfile"].iter().all(|file| file.starts_with("~/.ssh/id_"))
    {
        return Some(format!("the default keys, ssh: {:?}", theirs["identityfile"]));
    }
    printed(ours).into_iter().find_map(|(keyword, ours)| {
        let theirs = theirs.get(keyword).cloned().unwrap_or_default();
        let is_set = |value: &String| {
            !matches!(
                (keyword, value.as_str()),
                ("identityfile", "none") | ("identityagent", "SSH_AUTH_SOCK")
            )
        };
        let theirs: Vec<String> = theirs.into_iter().filter(is_set).collect();
        (theirs != ours).then(|| format!("{keyword} {ours:?}, ssh: {theirs:?}"))
    })
}

#[test]
fn a_configuration_means_what_it_means_to_ssh() {
    if !needs_programs(&["ssh"]) {
        return;
    }
    let world = World::new();
    let cases = std::env::var("KSYNC_SSH_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let (main, included) = (world.path("ssh_config"), [world.path("one"), world.path("two")]);
    let mut refused = 0;
    for case in 1..=cases {
        let mut dice = Dice(case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut shown = String::new();
        for (file, below, lines) in
            [(&included[1], &included[2..], 4), (&included[0], &included[1..], 4), (&main, &included[..], 12)]
        {
            let text = text(&mut dice, below, lines);
            write!(shown, "--- {}\n{text}", file.display()).expect("memory");
            std::fs::write(file, text).expect("a file");
        }
        let query = Query {
            host: dice.of(&["vm", "other", "Vm", "vm"]),
            user: [None, None, Some("me"), Some("root")][dice.roll(4)],
            port: [None, None, None, Some(2222)][dice.roll(4)],
            home: &world.home(),
        };
        let ours = load(&query, std::slice::from_ref(&main));
        let wrong = match (&ours, oracle(&world, &main, &query)) {
            (Ok(ours), Ok(theirs)) => difference(ours, &theirs),
            (Err(_), Err(_)) => {
                refused += 1;
                None
            }
            // ksync does not read what stands in a block that does not apply.
            (Ok(_), Err(error)) if is_inactive(&error) => None,
            (Ok(_), Err(error)) => Some(format!("accepted, ssh: {error}")),
            (Err(error), Ok(_)) => Some(format!("refused: {error}")),
        };
        if let Some(wrong) = wrong {
            panic!("case {case}: {query:?}: {wrong}\n{shown}");
        }
    }
    assert!(refused * 2 < cases, "most configurations were refused: {refused} of {cases}");
}

/// Errors that ssh also finds in blocks that do not apply.
fn is_inactive(error: &str) -> bool {
    ["Bad number", "unsupported option", "extra arguments", "Bad yes/no", "Bad port", "invalid"]
        .iter()
        .any(|text| error.contains(text))
}

fn config(world: &World, text: &str) -> Result<HostConfig, ConfigError> {
    world.tree("home/.ssh").file("config", text).mode("config", 0o600);
    let home = world.home();
    load(&Query { host: "vm", user: None, port: None, home: &home }, &[home.join(".ssh/config")])
}

#[test]
fn what_ksync_cannot_honour_is_refused_with_its_line() {
    let world = World::new();
    for (text, part) in [
        (
            "\nMatch localnetwork 10.0.0.0/8\n",
            "config:2: ksync does not know the Match criterion localnetwork",
        ),
        ("Match host vm command x\n", "does not know the Match criterion command"),
        ("Host vm\nBindInterface eth0\n", "config:2: BindInterface eth0: ksync cannot bind"),
        ("RevokedHostKeys /x\n", "RevokedHostKeys /x: "),
        ("CanonicalizeHostname yes\n", "ksync does not canonicalise host names"),
        ("PubkeyAuthentication no\n", "ksync logs in with keys only"),
        ("PreferredAuthentications password\n", "ksync logs in with keys only"),
        ("Port many\n", "config:1: Port many: it takes a number from 1 to 65535"),
        ("HostName %q\n", "config:1: HostName %q: it holds %q"),
        ("IdentityFile /%q\n", "it holds %q"),
        ("IdentityFile ${KSYNC_NO_SUCH}\n", "the variable KSYNC_NO_SUCH is not set"),
        ("Match exec \"kill $$\"\n", "was killed"),
        ("Match\n", "Match has no criterion"),
        ("Match all host vm\n", "all cannot be combined"),
        ("Host \"vm\n", "config:1: its quotes do not end"),
        ("Include [a-z]*\n", "wildcards * and ? only"),
    ] {
        let error = config(&world, text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for text in [
        // Of several criteria, one is not met, so the unknown one does not count.
        "Match localnetwork 10.0.0.0/8 host other\nPort many\n",
        "Match user nobody-else localnetwork 10.0.0.0/8\nBindInterface eth0\n",
        "Host other\nBindInterface eth0\nPort many\n",
        "CanonicalizeHostname no\nRevokedHostKeys none\nPubkeyAuthentication yes\n",
        "PreferredAuthentications publickey,password\nNewKeyword of tomorrow\n",
    ] {
        assert_eq!(config(&world, text).unwrap().port, None, "{text}");
    }
}

#[test]
fn a_command_in_a_file_that_others_can_change_is_not_run() {
    let world = World::new();
    let text = format!("Match exec \"touch {}\"\n", world.path("ran").display());
    config(&world, &text).unwrap();
    assert!(world.path("ran").exists());
    std::fs::remove_file(world.path("ran")).unwrap();
    world.tree("home/.ssh").mode("config", 0o666);
    let home = world.home();
    let query = Query { host: "vm", user: None, port: None, home: &home };
    let error = load(&query, &[home.join(".ssh/config")]).unwrap_err().to_string();
    assert!(error.contains("other users can change this file"), "{error}");
    assert!(!world.path("ran").exists());
}

#[test]
fn paths_are_expanded_with_the_final_host_and_user() {
    let world = World::new();
    let home = world.home().display().to_string();
    let text = "HostName %h.example\nUser me\nPort 7\nIdentityFile ~/k/%h-%n-%r-%p-%%\nIdentityFile %d/${KSYNC_TEST_HOME}x\n\
                UserKnownHostsFile ~/known\nIdentityAgent ~/agent\n";
    // A variable that every test process has.
    let text = text.replace("KSYNC_TEST_HOME", "PATH");
    let config = config(&world, &text).unwrap();
    let path = std::env::var("PATH").unwrap();
    let files = [format!("{home}/k/vm.example-vm-me-7-%"), format!("{home}/{path}x")].map(PathBuf::from);
    assert_eq!(config.identity_files.unwrap(), files);
    assert_eq!(config.user_known_hosts_files.unwrap(), [PathBuf::from(format!("{home}/known"))]);
    assert_eq!(config.ssh_agent, SshAgent::At(format!("{home}/agent").into()));
}

#[test]
fn only_a_literal_host_is_named() {
    let world = World::new();
    let home = world.home();
    world.tree("home/.ssh").file("more", "Match user x originalhost a,b\n").file(
        "config",
        "Host one *.two\nhost = \"three\"\nInclude mo*\nHost !four\nMatch host five exec true\n# Host six\n",
    );
    let is_named = |host| names(host, &home, &[ssh_config::files(&home)[0].clone()]);
    for host in ["one", "three", "a", "b", "five"] {
        assert!(is_named(host), "{host}");
    }
    for host in ["x.two", "four", "six", "x", "true", "One"] {
        assert!(!is_named(host), "{host}");
    }
}

#[test]
fn an_unreadable_configuration_is_not_taken_for_an_empty_one() {
    let world = World::new();
    let home = world.home();
    world.tree("home/.ssh").file("config", "Include config\nHost vm\nInclude x\n");
    std::fs::create_dir(home.join(".ssh/x")).unwrap();
    let at = |host| load(&Query { host, user: None, port: None, home: &home }, &[home.join(".ssh/config")]);
    assert!(matches!(at("vm"), Err(ConfigError::Unreadable { .. })));
    assert_eq!(at("other").unwrap().host_name, "other");
}
