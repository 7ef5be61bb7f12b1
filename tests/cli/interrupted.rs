//! Content that was staged before an unplanned end is not sent again.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Run, World, noise, wait_for};

const SIZE: usize = 200 << 20;

/// Bytes that are staged before a process is killed.
const STAGED_BYTES: u64 = 24 << 20;

/// Staged content is recognised by blocks of a megabyte, and the last one may be incomplete.
const BLOCK_BYTES: u64 = 1 << 20;

fn world_with_a_large_file() -> World {
    let world = World::new();
    world.tree("src").file("large", noise(5, SIZE)).file("small", "text");
    world
}

fn start(world: &World, source: &OsString, destination: &OsString) -> Child {
    let mut command = world.ksync([source, destination]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start")
}

/// The length of the largest staged file in `dst`; `None` if there is none.
fn staged_bytes(world: &World) -> Option<u64> {
    let staged = fs::read_dir(world.path("dst/.ksync")).ok()?;
    staged.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.len()).max()
}

/// Waits until some of the large file is staged.
fn staged_enough(world: &World) -> u64 {
    wait_for("staged content", || staged_bytes(world).filter(|&bytes| bytes >= STAGED_BYTES))
}

/// The running agents of this world: processes whose program is in its far home.
fn agents(world: &World) -> Vec<Pid> {
    let home = world.far_home();
    let is_agent =
        |process: &Path| fs::read_link(process.join("exe")).is_ok_and(|exe| exe.starts_with(&home));
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let number = |process: PathBuf| process.file_name()?.to_str()?.parse().ok();
    processes.filter(|process| is_agent(process)).filter_map(number).filter_map(Pid::from_raw).collect()
}

/// Runs again, and asserts that the staged content is reused.
#[track_caller]
fn resumes(world: &World, source: &OsString, destination: &OsString, staged: u64) {
    assert!(!world.path("dst/large").exists(), "it was too late: all had arrived");
    let stats = world.sync(source, destination);
    world.assert_same("src", "dst");
    assert!(stats.matched_bytes + BLOCK_BYTES > staged, "{staged} bytes were staged: {stats:?}");
    assert!(stats.sent_bytes + staged < SIZE as u64 + 2 * BLOCK_BYTES, "{staged} were staged: {stats:?}");
    assert!(stats.wire_bytes() + staged < SIZE as u64 * 101 / 100, "{staged} were staged: {stats:?}");
    assert!(!world.path("dst/.ksync").exists());
}

fn killed_client_resumes(world: &World, source: &OsString, destination: &OsString) {
    let mut client = start(world, source, destination);
    let staged = staged_enough(world);
    client.kill().expect("kill");
    client.wait().expect("wait");
    resumes(world, source, destination, staged);
    wait_for("the end of the first agent", || agents(world).is_empty().then_some(()));
}

fn killed_agent_resumes(world: &World, source: &OsString, destination: &OsString) {
    let client = start(world, source, destination);
    let staged = staged_enough(world);
    let [agent] = agents(world)[..] else { panic!("one agent runs") };
    kill_process(agent, Signal::KILL).expect("kill");
    let run = Run::end_of(client).fails(12);
    assert!(run.stderr.contains("ksync: the agent was killed (signal 9) after it had started\n  hint: Perhaps the machine there is out of memory"), "{}", run.stderr);
    resumes(world, source, destination, staged);
}

#[test]
fn an_upload_whose_client_was_killed_resumes_without_resending() {
    let world = world_with_a_large_file();
    killed_client_resumes(&world, &"src".into(), &world.far("dst"));
}

#[test]
fn a_download_whose_client_was_killed_resumes_without_resending() {
    let world = world_with_a_large_file();
    killed_client_resumes(&world, &world.far("src"), &"dst".into());
}

#[test]
fn an_upload_whose_agent_was_killed_resumes_without_resending() {
    let world = world_with_a_large_file();
    killed_agent_resumes(&world, &"src".into(), &world.far("dst"));
}

#[test]
fn a_download_whose_agent_was_killed_resumes_without_resending() {
    let world = world_with_a_large_file();
    killed_agent_resumes(&world, &world.far("src"), &"dst".into());
}

#[test]
fn ctrl_c_exits_with_20_and_keeps_staged_content() {
    let world = world_with_a_large_file();
    let (source, destination) = ("src".into(), world.far("dst"));
    let client = start(&world, &source, &destination);
    let staged = staged_enough(&world);
    let id = i32::try_from(client.id()).ok().and_then(Pid::from_raw).expect("an id");
    kill_process(id, Signal::INT).expect("kill");
    let run = Run::end_of(client).fails(20);
    assert_eq!(run.stdout, "");
    assert!(
        run.stderr.ends_with(
            "ksync: stopped by a signal\n  hint: What has arrived is kept: the same command goes on from there.\n"
        ),
        "{}",
        run.stderr
    );
    resumes(&world, &source, &destination, staged);
}

#[test]
fn tampered_staged_content_is_fetched_again() {
    let world = world_with_a_large_file();
    let (source, destination) = ("src".into(), world.far("dst"));
    let mut client = start(&world, &source, &destination);
    staged_enough(&world);
    client.kill().expect("kill");
    client.wait().expect("wait");
    wait_for("the end of the agent", || agents(&world).is_empty().then_some(()));
    let parts = fs::read_dir(world.path("dst/.ksync")).expect("staged").map(|entry| entry.unwrap().path());
    let part = parts.max_by_key(|part| part.metadata().unwrap().len()).expect("a part");
    let mut content = fs::read(&part).unwrap();
    content[5_000_000] ^= 1;
    fs::write(&part, content).unwrap();
    world.sync(&source, &destination);
    world.assert_same("src", "dst");
}
