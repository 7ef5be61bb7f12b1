//! `--json`: the events of a run. [`schema`](crate::world::schema) checks the form of each.

use std::ffi::OsString;

use serde_json::Value;

use crate::world::{Run, World, noise};

fn events(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_remote_run_tells_of_connection_agent_and_exit() {
    let world = World::new();
    world.tree("src").file("a", "text");
    for (from, to, is_first) in
        [("src".into(), world.far("up"), true), (world.far("src"), OsString::from("down"), false)]
    {
        let run = Run::of(world.ksync(["--json".into(), from, to])).ok();
        let events = events(&run);
        let [connected, agent] = ["connected", "agent"].map(|name| named(&events, name));
        assert_eq!((connected.len(), agent.len()), (1, 1), "{}", run.stdout);
        assert_eq!(connected[0]["kept"], false);
        assert!(connected[0]["round_trips"].as_u64().unwrap() > 0);
        assert_eq!(agent[0]["installed"], is_first);
        assert_eq!(agent[0]["bytes"].as_u64().unwrap() > 500_000, is_first);
        assert_eq!(events.last().unwrap()["event"], "summary");
        assert_eq!(events.last().unwrap()["exit"], 0);
    }
    let run = world.run(["--json", "src", "near"]).ok();
    assert!(!run.stdout.contains("\"connected\"") && !run.stdout.contains("\"agent\""), "{}", run.stdout);
}

#[test]
fn a_renamed_file_is_one_move() {
    let world = World::new();
    world.tree("src").file("old name", noise(1, 200_000)).file("other", "text");
    for (from, to) in [
        ("src".into(), "near".into()),
        ("src".into(), world.far("up")),
        (world.far("src"), OsString::from("down")),
    ] {
        let run =
            || Run::of(world.ksync(["--json".into(), "--delete".into(), from.clone(), to.clone()])).ok();
        std::fs::rename(world.path("src/new"), world.path("src/old name")).ok();
        run();
        std::fs::rename(world.path("src/old name"), world.path("src/new")).unwrap();
        let told = run();
        let events = events(&told);
        let moves = named(&events, "move");
        assert_eq!(moves.len(), 1, "{}", told.stdout);
        assert_eq!((&moves[0]["from"], &moves[0]["path"]), (&"old name".into(), &"new".into()));
        let others = [named(&events, "delete"), named(&events, "file")].concat();
        let others: Vec<&Value> = others.iter().map(|event| &event["path"]).collect();
        assert_eq!(others, [""], "only the directory's time: {}", told.stdout);
        assert_eq!(events.last().unwrap()["moved"], 1);
    }
}

#[test]
fn progress_is_told_at_the_end_of_the_content() {
    let world = World::new();
    world.tree("src").file("a", noise(2, 3_000_000)).file("b", "text");
    let limited = ["--json", "--bwlimit=1mb"].map(OsString::from);
    let run = Run::of(world.ksync(limited.into_iter().chain(["src".into(), world.far("up")]))).ok();
    let events = events(&run);
    let progress = named(&events, "progress");
    let last = progress.last().unwrap();
    assert_eq!(
        (&last["files"], &last["total_files"], &last["total_bytes"]),
        (&2.into(), &2.into(), &3_000_004.into())
    );
    // It takes three seconds.
    assert!(progress.len() >= 2, "{}", run.stdout);
    let bytes: Vec<u64> = progress.iter().map(|event| event["bytes"].as_u64().unwrap()).collect();
    assert!(bytes.is_sorted() && bytes[0] < 3_000_004, "{bytes:?}");
}

#[test]
fn a_run_without_content_has_a_plan_too() {
    let world = World::new();
    world.tree("src").link("l", "x");
    for _ in 0..2 {
        let run = world.run(["--json", "src", "dst"]).ok();
        let events = events(&run);
        let plans = named(&events, "plan");
        assert_eq!(plans.len(), 1, "{}", run.stdout);
        assert_eq!((&plans[0]["files"], &plans[0]["bytes"]), (&0.into(), &0.into()));
    }
}

#[test]
fn the_outcome_of_a_dry_run_is_planned() {
    let world = World::new();
    world.tree("src").file("a", "text");
    world.tree("dst").file("b", "text");
    let run = world.run(["--json", "-n", "--delete", "--yes", "src", "dst"]).ok();
    let events = events(&run);
    let outcomes = [named(&events, "file"), named(&events, "delete")].concat();
    assert!(
        outcomes.len() >= 2 && outcomes.iter().all(|event| event["outcome"] == "planned"),
        "{}",
        run.stdout
    );
    let run = world.run(["--json", "--delete", "--yes", "src", "dst"]).ok();
    assert!(run.stdout.contains("\"outcome\":\"done\"") && !run.stdout.contains("planned"), "{}", run.stdout);
}

#[test]
fn an_error_has_a_code_and_tells_if_a_retry_may_help() {
    let world = World::new();
    world.tree("src").file("a", "text");
    for (args, exit, code, is_retryable) in [
        (&["src"][..], 1, "usage", false),
        (&["--frobnicate", "src", "dst"], 1, "usage", false),
        (&["nowhere", "dst"], 3, "selection", false),
        (&["src", "ssh://127.0.0.1:1/x"], 10, "connection", true),
    ] {
        for at in [0, args.len()] {
            let mut args = args.to_vec();
            args.insert(at, "--json");
            let run = world.run(&args).fails(exit);
            let events = events(&run);
            let error = events.last().unwrap();
            assert_eq!((&error["event"], &error["exit"]), (&"error".into(), &exit.into()), "{}", run.stdout);
            assert_eq!((&error["code"], &error["retryable"]), (&code.into(), &is_retryable.into()));
            assert!(error["hint"].is_string(), "{error}");
        }
    }
}

#[test]
fn the_summary_has_the_exit_code_of_the_run() {
    let world = World::new();
    world.tree("src").file("a", "text");
    world.tree("dst").file("b", "text");
    let run = world.run(["--json", "--delete", "--max-delete=0", "src", "dst"]).fails(25);
    let told = events(&run);
    assert_eq!(told.last().unwrap()["exit"], 25);
    assert_eq!(named(&told, "error")[0]["code"], "brake");
    let run = world.run(["--json", "src", "nowhere", "dst"]).fails(23);
    let told = events(&run);
    let last = told.last().unwrap();
    assert!(last["exit"] == 23 || named(&told, "error").len() == 1, "{}", run.stdout);
}
