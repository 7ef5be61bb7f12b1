//! `ksync doctor`: each step, and the remedy for each failure.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use crate::platform::Platform;
use crate::world::{Run, World};

/// The steps of a session that is well.
const STEPS: [&str; 13] = [
    "state directory",
    "proxy settings",
    "API key",
    "API",
    "clock",
    "session",
    "session life",
    "keep-alive",
    "VM",
    "connection",
    "disk and memory",
    "there and back",
    "computer controls",
];

fn start() -> (World, Platform, String) {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    (world, platform, id)
}

/// The doctor's steps, and the exit code.
fn examined(mut command: Command) -> (Vec<Value>, i32) {
    command.arg("--json");
    let run = Run::of(command);
    let steps = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (steps, run.status.code().unwrap_or(-1))
}

fn examine(platform: &Platform, world: &World) -> (Vec<Value>, i32) {
    examined(platform.ksync(world, &["doctor"]))
}

/// The step of this name: verdict, detail and remedy.
#[track_caller]
fn step<'a>(steps: &'a [Value], name: &str) -> (&'a str, &'a str, &'a str) {
    let step = steps.iter().find(|step| step["check"] == name);
    let step = step.unwrap_or_else(|| panic!("{name} in {steps:?}"));
    let text = |name: &str| step[name].as_str().unwrap_or_default();
    for part in ["detail", "remedy"] {
        assert!(!text(part).contains("doctor") && !text(part).contains("sent twice"), "{step}");
        assert!(!text(part).contains("same command"), "{step}");
    }
    (text("verdict"), text("detail"), text("remedy"))
}

#[test]
fn each_step_is_reported_with_its_figures() {
    let (world, platform, id) = start();
    let run = platform.run(&world, &["doctor", "--full", "--json"]).ok();
    let steps: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = steps.iter().map(|step| step["check"].as_str().unwrap()).collect();
    assert_eq!(names, STEPS);
    for (name, part) in [
        ("state directory", "state/ksync can be written"),
        ("proxy settings", "none"),
        ("clock", "of the API's"),
        ("session", &id),
        ("session life", "ends in 71 hours at the latest, and 5 minutes after it falls idle; the token"),
        ("keep-alive", "opens"),
        ("connection", "a round trip takes "),
        ("disk and memory", " free, memory "),
        ("there and back", " MB/s back"),
    ] {
        let (verdict, detail, remedy) = step(&steps, name);
        // The disk of the machine that runs the tests may be full.
        assert!(verdict == "ok" && remedy.is_empty() || name == "disk and memory", "{name}: {remedy}");
        assert!(detail.contains(part), "{name}: {detail}");
    }
    let left = platform.run(&world, &["ssh", &id, "ls -d /tmp/ksync-probe-* 2>/dev/null"]).stdout;
    assert_eq!(left, "");
}

#[test]
fn without_a_key_the_variable_is_named() {
    let (world, platform, _) = start();
    let mut command = platform.ksync(&world, &["doctor"]);
    command.env_remove("KERNEL_API_KEY");
    let run = Run::of(command).fails(40);
    assert!(
        run.stdout.contains(" failed") && run.stdout.contains("remedy: Set KERNEL_API_KEY"),
        "{}",
        run.stdout
    );
}

#[test]
fn proxy_settings_are_shown_without_passwords() {
    let world = World::new();
    let mut command = world.ksync(["doctor"]);
    command.env("HTTPS_PROXY", "http://me:secret@proxy.example:3128").env("NO_PROXY", "*");
    let (steps, code) = examined(command);
    let told = "wss and https through http://proxy.example:3128 (HTTPS_PROXY), except * (NO_PROXY)";
    assert_eq!((code, step(&steps, "proxy settings")), (40, ("ok", told, "")));

    let mut command = world.ksync(["doctor"]);
    command.env("ALL_PROXY", "gopher://me:secret@proxy.example");
    let (steps, code) = examined(command);
    let (verdict, detail, _) = step(&steps, "proxy settings");
    assert_eq!((code, verdict), (1, "failed"), "{detail}");
    assert!(detail.contains("ALL_PROXY") && !detail.contains("secret"), "{detail}");
}

#[test]
fn a_state_directory_that_cannot_be_written_names_the_variable() {
    let world = World::new();
    fs::write(world.path("file"), "").unwrap();
    let mut command = world.ksync(["doctor"]);
    command.env("XDG_STATE_HOME", world.path("file"));
    let (steps, code) = examined(command);
    let (verdict, detail, remedy) = step(&steps, "state directory");
    assert_eq!((verdict, steps.len()), ("failed", 1));
    assert_eq!(code, 5);
    assert!(detail.contains("file/ksync") && detail.ends_with("not a directory"), "{detail}");
    assert!(remedy.contains("XDG_STATE_HOME"), "{remedy}");
}

/// Answers each request on a stream with an empty list, and with this date.
fn answer_each(stream: impl Read + Write, date: &str) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line.trim_end().is_empty() {
            let answer = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\n\r\n[]");
            if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        line.clear();
    }
}

/// Serves an API whose clock has this date. Returns its base URL.
fn serve(date: String, tls: Option<Arc<ServerConfig>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:{}", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, date, tls) = (stream.unwrap(), date.clone(), tls.clone());
            thread::spawn(move || match tls {
                Some(tls) => {
                    answer_each(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream), &date)
                }
                None => answer_each(stream, &date),
            });
        }
    });
    url
}

/// The doctor's steps with this API.
fn of_api(world: &World, url: &str, ca_cert: Option<&str>) -> (Vec<Value>, i32) {
    let mut command = world.ksync(["doctor", "abc"]);
    command.env("KERNEL_BASE_URL", url).env("KERNEL_API_KEY", "sk_x");
    command.envs(ca_cert.map(|file| ("KSYNC_CA_CERT", world.path(file))));
    examined(command)
}

/// A time as in the header Date.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut command = Command::new("date");
    command.env("LC_ALL", "C").args(["-u", "-d", &format!("@{seconds}"), "+%a, %d %b %Y %H:%M:%S GMT"]);
    Run::of(command).ok().stdout.trim().to_owned()
}

#[test]
fn a_wrong_clock_is_noticed_by_the_date_of_the_api() {
    let world = World::new();
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    for (time, told) in [
        (now + 5 * hour - hour / 2, "this machine's clock is 4 hours behind the API's"),
        (now - 3 * hour - hour / 2, "this machine's clock is 3 hours ahead of the API's"),
    ] {
        let (steps, _) = of_api(&world, &serve(date(time), None), None);
        let (verdict, detail, remedy) = step(&steps, "clock");
        assert_eq!((verdict, detail), ("warning", told));
        assert!(remedy.starts_with("Check this machine's clock"), "{remedy}");
    }
    let (steps, _) = of_api(&world, &serve("soon".to_owned(), None), None);
    assert_eq!(step(&steps, "clock"), ("ok", "the API tells no time", ""));
}

/// TLS with a certificate that is valid in these years. The CA's certificate goes into a file.
fn certified(world: &World, file: &str, years: [i32; 2]) -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    fs::write(world.path(file), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key);
    Arc::new(config.unwrap())
}

#[test]
fn an_untrusted_certificate_names_the_clock_or_the_authority() {
    let world = World::new();
    for (years, ca_cert, told, advice) in [
        ([2090, 2091], Some("ca.pem"), "not valid yet", "Check this machine's clock."),
        ([2001, 2002], Some("ca.pem"), "expired", "Check this machine's clock; if it is right, the server"),
        (
            [2001, 2091],
            None,
            "authority that this machine does not know",
            "--ca-cert FILE, or name a file with all",
        ),
    ] {
        let url = serve("soon".to_owned(), Some(certified(&world, "ca.pem", years)));
        let (steps, code) = of_api(&world, &url, ca_cert);
        let (verdict, detail, remedy) = step(&steps, "API");
        assert_eq!((verdict, code), ("failed", 10), "{detail}");
        assert!(detail.contains(told) && remedy.contains(advice), "{detail}; {remedy}");
    }
}

#[test]
fn a_session_near_its_end_is_a_warning() {
    let (world, platform, _) = start();
    platform.create(&world, &["--timeout", "259200"]);
    platform.advance(72 * 3600 - 600);
    let (steps, code) = examine(&platform, &world);
    let (verdict, detail, remedy) = step(&steps, "session life");
    assert_eq!((verdict, code), ("warning", 0));
    assert!(
        detail.starts_with("ends in 9 minutes at the latest, and 72 hours after it falls idle"),
        "{detail}"
    );
    assert!(remedy.contains("go on in a new session"), "{remedy}");
}

#[test]
fn a_refused_keep_alive_fails_a_step_and_the_rest_goes_on() {
    let (world, platform, _) = start();
    platform.fault(json!({ "call": "cdp", "status": 403, "times": 1000 }));
    let (steps, code) = examine(&platform, &world);
    let (verdict, detail, remedy) = step(&steps, "keep-alive");
    assert_eq!((verdict, code, steps.len()), ("failed", 10, STEPS.len() - 1));
    assert!(detail.contains("403 Forbidden; the platform deletes the session 5 minutes after"), "{detail}");
    assert!(remedy.contains("no token that holds"), "{remedy}");
    assert_eq!(step(&steps, "there and back").0, "ok");
}

#[test]
fn a_login_that_is_cut_is_no_question_of_the_key() {
    let (world, platform, _) = start();
    platform.fault(json!({ "call": "bridge", "after_bytes": 3000, "times": 9 }));
    let (steps, code) = examine(&platform, &world);
    let (verdict, detail, remedy) = step(&steps, "connection");
    assert_eq!((verdict, code), ("failed", 10), "{detail}");
    assert!(
        remedy.contains("cuts the connection") || remedy.contains("look at the proxy"),
        "{detail}; {remedy}"
    );
    assert!(!remedy.contains("--identity"), "{remedy}");
}

/// Puts programs into the VM, which its commands find first.
fn programs(platform: &Platform, id: &str, programs: &[(&str, &str)]) {
    // The first command creates the directory of programs.
    platform.ask("POST", &format!("/browsers/{id}/process/exec"), &json!({ "command": "true" }));
    let directory = platform.root(id).parent().unwrap().join("bin");
    for (name, text) in programs {
        // Write it under another name first, because a program open for writing cannot run.
        fs::write(directory.join("new"), format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(directory.join("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(directory.join("new"), directory.join(name)).unwrap();
    }
}

#[test]
fn an_sshd_that_refuses_root_is_named_with_its_setting() {
    let (world, platform, id) = start();
    let host_key = fs::read_to_string(platform.root(&id).join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    // The setup succeeds, but the emulated sshd, which has no such setting, knows no key.
    let setup = format!("echo 'KSYNC host-key {}'", host_key.trim());
    for (root, told, advice) in [
        ("no", "sshd lets no root in (PermitRootLogin no)", "set PermitRootLogin to prohibit-password"),
        ("without-password", "sshd and its bridge run: could not log in", "AuthorizedKeysFile, AllowUsers"),
    ] {
        let sshd = format!("echo port 22; echo permitrootlogin {root}");
        programs(&platform, &id, &[("flock", &setup), ("sshd", &sshd)]);
        let (steps, code) = examine(&platform, &world);
        let (verdict, detail, remedy) = step(&steps, "connection");
        assert_eq!((verdict, code), ("failed", 40), "{detail}");
        assert!(detail.contains(told) && remedy.contains(advice), "{detail}; {remedy}");
        assert!(remedy.starts_with("The API let the key in"), "{remedy}");
    }
}

#[test]
fn a_full_disk_on_the_vm_is_a_warning() {
    let (world, platform, id) = start();
    programs(&platform, &id, &[("df", "echo header; echo /dev/vda 1000000 999000 1000 99% /")]);
    let (steps, code) = examine(&platform, &world);
    let (verdict, detail, remedy) = step(&steps, "disk and memory");
    assert_eq!((verdict, code), ("warning", 0));
    assert!(detail.starts_with("disk 1.0 MB of 1.0 GB free, memory "), "{detail}");
    assert!(remedy.starts_with("Make room on the VM"), "{remedy}");
}
