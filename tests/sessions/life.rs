//! Warnings about the end of a session: in time, and with a remedy.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::{Run, World};

/// Maximum age of a session, in seconds.
const AGE_MAX: u64 = 72 * 60 * 60;

/// Makes a session with the longest possible timeout.
fn lasting(platform: &Platform, world: &World) -> String {
    platform.create(world, &["--timeout", "259200"])
}

/// Makes a session whose token lives for `seconds`.
fn with_token_for(platform: &Platform, world: &World, seconds: u64) -> String {
    platform.fault(json!({ "call": "create", "token_seconds": seconds }));
    platform.create(world, &["--timeout", "100"])
}

/// Warning for a session with `minutes` left, and 40 to 59 seconds. No test here takes longer than
/// that tolerance.
fn age_warning(id: &str, minutes: u64) -> String {
    format!(
        "ksync: warning: session {id} ends in {minutes} minutes at the latest, and its files with it: no session gets \
         older than 72 hours\n  hint: Download the files you need, and go on in a new session: ksync session create.\n"
    )
}

fn token_warning(id: &str, left: &str) -> String {
    format!(
        "ksync: warning: session {id} may end {left}, and its files with it: the token that keeps it awake expires\n  \
         hint: Run ksync session setup {id}, which asks for another token.\n"
    )
}

fn timeout_warning(id: &str, left: &str) -> String {
    format!(
        "ksync: warning: session {id} may end {left}, and its files with it: it is not kept awake, and SSH does not \
         count as use\n  hint: Omit --no-keep-alive, or make the session with a longer --timeout.\n"
    )
}

/// API calls since the last look, without the keep-alive socket.
fn asked(platform: &Platform) -> Value {
    let mut calls = platform.calls();
    calls.as_object_mut().unwrap().remove("cdp");
    calls
}

#[test]
fn a_session_near_its_maximum_age_is_warned_about_even_from_the_store() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = lasting(&platform, &world);
    platform.advance(AGE_MAX - 599);
    let there = endpoint(&world, &id, "there");
    let mapping = format!("src → {there}\n");
    let run = platform.run(&world, &["src", &there]).ok();
    let preparations = "asking for the session\n\
        setting its VM up: a second, or a minute where something has to be installed\n";
    assert_eq!(run.stderr, format!("{preparations}{}{mapping}", age_warning(&id, 9)));

    platform.calls();
    platform.run(&world, &["src", &there]).ok().says(&format!("{}{mapping}", age_warning(&id, 9)));
    platform.run(&world, &["ssh", &id, "true"]).ok().says(&age_warning(&id, 9));
    platform.run(&world, &["proxy", &id]).ok().says(&age_warning(&id, 9));
    platform.run(&world, &["-q", "src", &there]).ok().says("");
    assert_eq!(asked(&platform), json!({}));
    platform.run(&world, &["doctor", &id]).ok().says(&age_warning(&id, 9));
}

#[test]
fn a_running_command_prints_the_warning_once() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = lasting(&platform, &world);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.advance(AGE_MAX - 15 * 60 - 2);
    platform.run(&world, &["session", "setup", &id]).ok();
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", world.path("go").display());
    let mut child: Child =
        platform.ksync(&world, &["ssh", &id, &wait]).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let first = format!("{}\n{}\n", told.next().unwrap(), told.next().unwrap());
    // A run that took long to start has a little less time left.
    assert!(first == age_warning(&id, 14) || first == age_warning(&id, 15), "{first}");
    fs::write(world.path("go"), "").unwrap();
    assert_eq!(told.next(), None);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_session_without_keep_alive_is_warned_about() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--timeout", "300"]);
    let there = endpoint(&world, &id, "there");
    platform.run(&world, &["src", &there]).ok();
    let mapping = format!("src → {there}\n");
    platform.run(&world, &["src", &there]).ok().says(&mapping);
    let run = platform.run(&world, &["--no-keep-alive", "src", &there]).ok();
    assert_eq!(run.stderr, format!("{}{mapping}", timeout_warning(&id, "in 5 minutes")));
    // With enough time left there is no warning.
    let id = platform.create(&world, &["--timeout", "3600"]);
    let there = endpoint(&world, &id, "there");
    platform.run(&world, &["src", &there]).ok();
    let run = platform.run(&world, &["--no-keep-alive", "src", &there]).ok();
    assert_eq!(run.stderr, format!("src → {there}\n"));
}

#[test]
fn a_token_that_expires_soon_is_warned_about() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = with_token_for(&platform, &world, 600);
    platform.run(&world, &["session", "setup", &id]).ok();
    // The token lasts ten minutes, and then the timeout runs.
    platform.run(&world, &["ssh", &id, "true"]).ok().says(&token_warning(&id, "in 11 minutes"));
}

#[test]
fn an_expired_token_is_renewed_or_warned_about_without_an_api_key() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = with_token_for(&platform, &world, 0);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.calls();
    platform.run(&world, &["ssh", &id, "true"]).ok();
    assert_eq!(asked(&platform), json!({ "get": 1 }), "while the connection is made");
    let mut without = platform.ksync(&world, &["ssh", &id, "true"]);
    without.env_remove("KERNEL_API_KEY").env_remove("KERNEL_BASE_URL");
    Run::of(without).ok().says(&token_warning(&id, "in 1 minute"));
}
