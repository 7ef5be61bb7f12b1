//! Secrecy of command lines, which other users of the machine can read: they show nothing of the
//! copied files.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use data_encoding::{BASE64_NOPAD, HEXLOWER};

use crate::machine::Machine;
use crate::world::link::Link;
use crate::world::{Run, World, wait_for};

/// Markers in a name, a rule, a path and a content each.
const SECRETS: [&str; 5] =
    ["name-verysecret", "rule-verysecret", "path-verysecret", "content-verysecret", "saved-verysecret"];

/// Encodings of a secret in a command line.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned(), HEXLOWER.encode(secret.as_bytes())];
    for before in 0..3 {
        let text = BASE64_NOPAD.encode(&[&vec![0; before], secret.as_bytes()].concat());
        // The first and last digits depend on the neighbouring bytes.
        forms.push(text[4..text.len() - 4].to_owned());
    }
    forms
}

/// Polls all command lines, except those of `ksync` itself, which the user typed.
struct Spy {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Spy {
    fn start() -> Spy {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                for process in fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path())) {
                    let Ok(line) = fs::read(process.join("cmdline")) else { continue };
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if line.contains("ksync") && !line.starts_with(env!("CARGO_BIN_EXE_ksync")) {
                        kept.lock().unwrap().insert(line);
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Spy { stop, seen, thread: Some(thread) }
    }

    /// Command lines since the last call.
    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Spy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Asserts that command lines hold no secret, and that the world's agent is among them. Returns
/// true if its first flight was sealed. Other tests have agents too.
#[track_caller]
fn tell_nothing(world: &World, lines: &BTreeSet<String>, when: &str) -> bool {
    for secret in SECRETS {
        for form in forms(secret) {
            let line = lines.iter().find(|line| line.contains(&form));
            assert!(line.is_none(), "{when}: {secret} stands in {line:?}");
        }
    }
    let is_sealed = has_agent(world, lines, "seal:");
    assert!(is_sealed || has_agent(world, lines, "exchange"), "{when}: no agent was seen among {lines:?}");
    is_sealed
}

/// Reports if the world's agent appears in the command lines with this word.
fn has_agent(world: &World, lines: &BTreeSet<String>, word: &str) -> bool {
    let agents = format!("{}/agent-", world.path("machine/home/.cache/ksync").display());
    lines.iter().any(|line| line.starts_with(&agents) && line.contains(word))
}

/// A running watch, and the file with its output.
struct Client(Child, PathBuf);

impl Drop for Client {
    fn drop(&mut self) {
        if thread::panicking() {
            let told = fs::read(&self.1).unwrap_or_default();
            let _ = std::io::stderr().write_all(&[b"the watch told:\n", &told[..]].concat());
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_command_line_shows_a_name_a_rule_or_a_content() {
    shows_nothing(false);
}

#[test]
fn no_command_line_on_a_remembered_host_shows_a_name_or_a_content() {
    shows_nothing(true);
}

/// Keeps the world from remembering hosts, so that each connection is made in order.
fn forget(world: &World) {
    fs::create_dir_all(world.path("state/ksync/facts")).unwrap();
}

/// Runs all kinds of transfers. To a remembered host nothing need be sealed, because the first
/// flight is no part of the command line.
fn shows_nothing(is_remembered: bool) {
    let Some(machine) = Machine::start() else { return };
    let world = &machine.world;
    if !is_remembered {
        forget(world);
    }
    world.tree("src").file("name-verysecret", "content-verysecret").file("other", "content-verysecret");
    // An unsealed agent waits for its request for at least one round trip. That is long enough for
    // the spy to see it, even on a busy machine.
    let link = Link::delayed(([127, 0, 0, 1], machine.port), Duration::from_millis(50));
    let endpoint = |name: &str| format!("ssh://root@{}{}", link.address(), world.path(name).display());
    let key = fs::read_to_string(world.path("host-key.pub")).unwrap();
    let options = ["--identity", "key", "--host-key", key.trim(), "--exclude", "rule-verysecret", "--delete"];
    let run = |arguments: &[&str]| Run::of(world.ksync(options.iter().chain(arguments))).ok();
    let spy = Spy::start();
    let up = endpoint("path-verysecret");
    run(&["src", &up]);
    let first = spy.take();
    assert!(!tell_nothing(world, &first, "first upload"), "nothing to seal it with was known: {first:?}");
    // A sealed agent may exit before the spy sees it; then the run is repeated.
    let is_sealed = |when: &str, run: &dyn Fn()| {
        let mut lines = BTreeSet::new();
        wait_for(when, || {
            run();
            lines.append(&mut spy.take());
            let is_seen = ["seal:", "exchange"].iter().any(|word| has_agent(world, &lines, word));
            is_seen.then_some(())
        });
        assert!(tell_nothing(world, &lines, when) || is_remembered, "{when} was not sealed");
    };
    let count = Cell::new(0);
    is_sealed("second upload", &|| drop(run(&["src", &up])));
    is_sealed("upload of a change", &|| {
        count.set(count.get() + 1);
        fs::write(world.path("src/other"), format!("content-verysecret anew {}", count.get())).unwrap();
        run(&["src", &up]);
    });
    is_sealed("first download", &|| {
        let _ = fs::remove_dir_all(world.path("back-verysecret"));
        run(&[&up, "back-verysecret"]);
    });
    is_sealed("second download", &|| drop(run(&[&up, "back-verysecret"])));

    let mut watch = world.ksync(options);
    let told = world.path("told");
    watch.args(["--watch", "src", &up]).stdin(Stdio::null()).stdout(Stdio::null());
    watch.stderr(File::create(&told).unwrap());
    let client = Client(watch.spawn().unwrap(), told);
    let save = |text: &str| {
        fs::write(world.path("src/other"), text).unwrap();
        let far = world.path("path-verysecret/other");
        wait_for("a save", || (fs::read_to_string(&far).ok()? == text).then_some(()));
    };
    save("saved-verysecret");
    assert!(tell_nothing(world, &spy.take(), "watch") || is_remembered, "a watch was not sealed");
    link.cut();
    save("saved-verysecret again");
    assert!(tell_nothing(world, &spy.take(), "reconnect") || is_remembered, "a reconnect was not sealed");
    drop(client);
}

#[test]
fn a_wrong_secret_only_costs_time() {
    let Some(machine) = Machine::start() else { return };
    let world = &machine.world;
    let tree = (0..50).fold(world.tree("src"), |tree, number| tree.file(format!("name-{number}"), "text"));
    drop(tree);
    forget(world);
    machine.run(["src", &machine.ssh("dst")]).ok();
    let agents = world.path("machine/home/.cache/ksync");
    let (far, near) = (agents.join("secret"), world.path("state/ksync/secrets"));
    let secret = fs::read(&far).unwrap();
    let known = fs::read_to_string(&near).unwrap();
    assert!(known.contains(&HEXLOWER.encode(&secret)));
    for (number, spoil) in
        ["changed there", "gone there", "changed here", "gone here", "nonsense here"].into_iter().enumerate()
    {
        match spoil {
            "changed there" => fs::write(&far, [7; 32]).unwrap(),
            "gone there" => fs::remove_file(&far).unwrap(),
            "changed here" => {
                let known = fs::read_to_string(&near).unwrap();
                let (name, _) = known.split_once(' ').unwrap();
                fs::write(&near, format!("{name} {}\n", "7".repeat(64))).unwrap();
            }
            "gone here" => fs::remove_file(&near).unwrap(),
            _ => fs::write(&near, "nonsense\n").unwrap(),
        }
        fs::write(world.path("src/changed"), format!("{number}")).unwrap();
        machine.run(["src", &machine.ssh("dst")]).ok();
        machine.rsync_finds_no_difference("src", "dst");
        // Both sides have learnt the secret again.
        let known = fs::read_to_string(&near).unwrap();
        assert!(known.contains(&HEXLOWER.encode(&fs::read(&far).unwrap())), "{spoil}");
    }
}
