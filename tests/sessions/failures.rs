//! Failures of the API, and their messages.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::{Run, World};

fn code_of(platform: &Platform, world: &World, args: &[&str]) -> (i32, String) {
    let run = platform.run(world, args);
    (run.status.code().unwrap_or(-1), run.stderr)
}

#[test]
fn each_refusal_has_an_exit_code_and_a_hint() {
    let world = World::new();
    let platform = Platform::start(&world);
    for (status, code) in [(401, 40), (403, 40), (404, 41), (500, 5), (529, 5)] {
        let message = format!("the reason of {status}");
        let headers = json!({ "retry-after-ms": "10" });
        platform.fault(
            json!({ "call": "get", "status": status, "times": 9, "message": message, "headers": headers }),
        );
        let (found, said) = code_of(&platform, &world, &["session", "show", "abc"]);
        assert_eq!(found, code, "{status}: {said}");
        assert!(said.contains(&message) && said.contains("hint: "), "{said}");
        platform.ask("DELETE", "/_sandbox/faults", &Value::Null);
    }
}

#[test]
fn lost_output_is_an_error_of_every_verb() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    for args in [
        &["session", "list"][..],
        &["session", "list", "--json"],
        &["session", "show", &id],
        &["session", "use", &id],
        &["ssh", &id, "echo x"],
        &["doctor", &id],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = platform.ksync(&world, args);
        let ended = command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(11), "{args:?}: {said}");
        assert!(
            said.contains("cannot write to standard output: no space left on device\n"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn an_unknown_authority_is_no_question_of_the_firewall() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    let mut command = platform.ksync(&world, &["doctor", &id]);
    command.env_remove("KSYNC_CA_CERT");
    let run = Run::of(command).fails(10);
    assert!(
        run.stdout.contains("signed by an authority that this machine does not know\n"),
        "{}",
        run.stdout
    );
    let remedy = "remedy: For a private CA give its certificate with --ca-cert FILE, or name a file with all roots in \
                  SSL_CERT_FILE.\n";
    assert!(run.stdout.contains(remedy) && !run.stdout.contains("firewall"), "{}", run.stdout);
}

#[test]
fn temporary_failures_are_retried() {
    let world = World::new();
    let platform = Platform::start(&world);
    platform
        .fault(json!({ "call": "create", "status": 429, "times": 1, "headers": { "retry-after-ms": "10" } }));
    platform.create(&world, &[]);
    assert_eq!(platform.calls()["create"], json!(2));
    platform
        .fault(json!({ "call": "create", "status": 529, "times": 9, "headers": { "retry-after-ms": "10" } }));
    let (code, said) = code_of(&platform, &world, &["session", "create"]);
    assert_eq!((code, platform.calls()["create"].clone()), (5, json!(3)), "{said}");
}

#[test]
fn a_missing_key_is_reported_with_the_variable() {
    let world = World::new();
    world.tree("src").with_everything();
    for args in [&["src", "abc:/tmp/x"][..], &["session", "list"]] {
        let run = world.run(args);
        assert_eq!(run.status.code().unwrap_or(-1), 40, "{}", run.stderr);
        assert!(run.stderr.contains("KERNEL_API_KEY"), "{}", run.stderr);
    }
    let run = world.run(["src", "session:/tmp/x"]);
    assert_eq!(run.status.code().unwrap_or(-1), 1);
    assert!(run.stderr.contains("there is no current session"), "{}", run.stderr);
}

#[test]
fn a_name_that_no_session_has_may_be_that_of_an_ssh_host() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let (code, said) = code_of(&platform, &world, &["src", "web1:/srv"]);
    assert_eq!(code, 41, "{said}");
    assert!(said.contains("there is no session \"web1\"") && said.contains("user@web1:/path"), "{said}");
    // A session that was used from here and is gone is no SSH host.
    let id = platform.create(&world, &[]);
    platform.run(&world, &["src", &endpoint(&world, &id, "there")]).ok();
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
    let (code, said) = code_of(&platform, &world, &["src", &endpoint(&world, &id, "there")]);
    assert_eq!(code, 41, "{said}");
    assert!(!said.contains("SSH host"), "{said}");
}

#[test]
fn a_session_recreated_under_the_same_name_is_found() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let there = endpoint(&world, "mine", "there");
    let first = platform.create(&world, &["--name", "mine"]);
    platform.run(&world, &["src", &there]).ok();
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{first}"), &Value::Null).0, 204);
    let second = platform.create(&world, &["--name", "mine"]);
    assert_ne!(first, second);
    platform.run(&world, &["src", &there]).ok();
    let run = platform.run(&world, &["session", "show", "mine", "--json"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&run.stdout).unwrap()["session_id"], json!(second));
}

#[test]
fn a_host_other_than_the_one_named_by_the_api_is_refused() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    let root = platform.root(&id);
    let host_key = root.join("etc/ssh/ssh_host_ed25519_key.pub");
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJcS2Xc8cK2ZLxXlB2FKx2q4M4H6JqgJTc0nqvJg2aBy x\n";
    fs::write(&host_key, other).unwrap();
    let there = endpoint(&world, &id, "there");
    let run = platform.run(&world, &["src", &there]);
    assert_eq!(run.status.code().unwrap_or(-1), 43, "{}", run.stderr);
    assert!(!world.path("there").exists());
}

#[test]
fn a_failed_setup_reports_the_step() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    let root = platform.root(&id);
    fs::remove_file(root.join("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    let there = endpoint(&world, &id, "there");
    let run = platform.run(&world, &["src", &there]);
    assert_eq!(run.status.code().unwrap_or(-1), 42, "{}", run.stderr);
    assert!(run.stderr.contains("could not read the host key on the VM"), "{}", run.stderr);
}

#[test]
fn clients_that_set_a_vm_up_at_once_all_get_in() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    let others: Vec<World> = (0..3).map(|_| World::new()).collect();
    let running: Vec<_> = others
        .iter()
        .map(|other| {
            other.tree("src").with_everything();
            let there = endpoint(other, &id, "there");
            platform.ksync(other, &["src", &there]).spawn().unwrap()
        })
        .collect();
    for (mut child, other) in running.into_iter().zip(&others) {
        assert!(child.wait().unwrap().success());
        other.assert_same("src", "there");
    }
    let root = platform.root(&id);
    let keys = fs::read_to_string(root.join("root/.ssh/authorized_keys")).unwrap();
    assert_eq!(keys.lines().count(), 3, "{keys}");
}

#[test]
fn an_invalid_session_name_is_refused_before_any_call() {
    let world = World::new();
    let platform = Platform::start(&world);
    let run: Run = platform.run(&world, &["session", "show", "a/../b"]);
    assert_eq!(run.status.code().unwrap_or(-1), 1, "{}", run.stderr);
    assert_eq!(platform.calls(), json!({}));
}

#[test]
fn a_wait_that_the_api_asks_for_is_told() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    let busy = json!({ "call": "get", "status": 429, "headers": { "Retry-After": "3" } });
    let told = |id: &str| {
        format!(
            "could not look up the session \"{id}\": the API answered 429 (too_many_requests): rate limit exceeded; \
             trying again in 3 s"
        )
    };
    platform.fault(busy.clone());
    platform.run(&world, &["session", "show", &id]).ok().says(&format!("ksync: {}\n", told(&id)));
    platform.fault(busy.clone());
    let run = platform.run(&world, &["src", &endpoint(&world, &id, "there")]).ok();
    assert!(run.stderr.contains(&format!("\nksync: {}\n", told(&id))), "{}", run.stderr);
    // Another session, which was never used from here.
    let id = platform.create(&world, &[]);
    platform.fault(busy);
    let run = platform.run(&world, &["--json", "src", &endpoint(&world, &id, "there")]).ok();
    let mut events = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let retry = events.find(|event| event["event"] == "retry").unwrap();
    assert_eq!((&retry["message"], &retry["wait_ms"]), (&json!(told(&id)), &json!(3000.0)));
}

#[test]
fn a_wait_for_a_session_of_a_pool_is_told() {
    let world = World::new();
    let platform = Platform::start(&world);
    assert_eq!(platform.ask("POST", "/browser_pools", &json!({ "size": 1, "name": "swimmers" })).0, 201);
    platform.fault(json!({ "call": "acquire", "status": 204, "times": 1 }));
    let run = platform.run(&world, &["session", "create", "--pool", "swimmers"]).ok();
    let said = "ksync: no session of the pool \"swimmers\" is free yet; waiting for one, 299 s at most\n";
    assert!(run.stderr.starts_with(said), "{}", run.stderr);
}

#[test]
fn an_unreachable_session_may_have_ended_if_nobody_can_be_asked() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--name", "mine"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    let domain = platform.session(&id)["ssh_address"].as_str().unwrap().to_owned();
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
    let mut command = platform.ksync(&world, &["src", &endpoint(&world, &id, "there")]);
    command.env_remove("KERNEL_API_KEY");
    let run = Run::of(command).fails(10);
    let what = format!(
        "ksync: could not reach the session {id}, which may have ended: could not connect to wss://{domain}: connection \
         refused\n  hint: Set KERNEL_API_KEY, and run the same command again"
    );
    assert!(run.stderr.starts_with(&what), "{}", run.stderr);
}

#[test]
fn a_state_directory_that_takes_no_key_is_named() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    fs::write(world.path("state/ksync/keys"), "no directory").unwrap();
    let run = platform.run(&world, &["src", &endpoint(&world, &id, "there")]).fails(5);
    let what = format!(
        "ksync: could not make a key in {}: ",
        world.path(format!("state/ksync/keys/{id}")).display()
    );
    assert!(run.stderr.contains(&what), "{}", run.stderr);
    let hint = "  hint: Make the directory writable for you, or name another one with XDG_STATE_HOME.\n";
    assert!(run.stderr.ends_with(hint), "{}", run.stderr);
}
