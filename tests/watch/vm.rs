//! A VM emulator in a process of its own, and the line to it, which counts bytes and connections
//! and can be cut.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::watcher::{Direction, Watcher};
use crate::world::{World, wait_for};

/// A line to a listening port.
pub(crate) struct Line {
    pub(crate) port: u16,
    state: Arc<State>,
}

struct State {
    target: Mutex<SocketAddr>,
    bytes: AtomicU64,
    connections: AtomicUsize,
    is_down: AtomicBool,
    is_black: AtomicBool,
    /// Bytes per second in each direction; 0 is no limit.
    rate: AtomicU64,
    /// Ends all connections each time this many bytes have passed; 0 is never.
    cut_every: AtomicU64,
    /// True if the next cut is the last one.
    is_last: AtomicBool,
    passed: AtomicU64,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Line {
    pub(crate) fn to(port: u16) -> Line {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let state = Arc::new(State {
            target: Mutex::new((Ipv4Addr::LOCALHOST, port).into()),
            bytes: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            is_down: AtomicBool::new(false),
            is_black: AtomicBool::new(false),
            rate: AtomicU64::new(0),
            cut_every: AtomicU64::new(0),
            is_last: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            sockets: Mutex::default(),
        });
        let line =
            Line { port: listener.local_addr().expect("an address").port(), state: Arc::clone(&state) };
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if state.is_down.load(Ordering::SeqCst) {
                    continue;
                }
                let target = *state.target.lock().unwrap();
                let Ok(far) = TcpStream::connect(target) else { continue };
                state.connections.fetch_add(1, Ordering::SeqCst);
                let clone = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
                state.sockets.lock().unwrap().extend([clone(&near), clone(&far)]);
                for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
                    let state = Arc::clone(&state);
                    thread::spawn(move || carry(from, to, &state));
                }
            }
        });
        line
    }

    /// Sets the target port, from the next connection on.
    pub(crate) fn lead_to(&self, port: u16) {
        *self.state.target.lock().unwrap() = (Ipv4Addr::LOCALHOST, port).into();
    }

    /// TCP payload so far, in both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::SeqCst)
    }

    /// Number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Ends all connections. New ones are accepted at once.
    pub(crate) fn cut(&self) {
        self.state.cut();
    }

    /// Limits each direction to this many bytes per second; 0 is no limit.
    pub(crate) fn set_rate(&self, bytes: u64) {
        self.state.rate.store(bytes, Ordering::SeqCst);
    }

    /// Ends all connections each time this many bytes have passed; 0 is never.
    pub(crate) fn cut_every(&self, bytes: u64) {
        self.state.is_last.store(false, Ordering::SeqCst);
        self.state.passed.store(0, Ordering::SeqCst);
        self.state.cut_every.store(bytes, Ordering::SeqCst);
    }

    /// Ends all connections once, after this many bytes.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.cut_every(bytes);
        self.state.is_last.store(true, Ordering::SeqCst);
    }

    /// Ends new connections at once while `is_down`.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
        if is_down {
            self.cut();
        }
    }
}

impl Line {
    /// Drops all bytes while `is_black`, without closing anything. Dropped bytes make a connection
    /// useless.
    pub(crate) fn set_black(&self, is_black: bool) {
        self.state.is_black.store(is_black, Ordering::SeqCst);
    }
}

impl State {
    fn cut(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let _ = to.set_nodelay(true);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let rate = state.rate.load(Ordering::SeqCst);
        let room = if rate == 0 { buffer.len() } else { (rate as usize / 10).clamp(1, buffer.len()) };
        let Ok(count @ 1..) = from.read(&mut buffer[..room]) else { break };
        if rate > 0 {
            thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        state.bytes.fetch_add(count as u64, Ordering::SeqCst);
        let cut_every = state.cut_every.load(Ordering::SeqCst);
        if cut_every > 0 && state.passed.fetch_add(count as u64, Ordering::SeqCst) + count as u64 >= cut_every
        {
            state.passed.store(0, Ordering::SeqCst);
            if state.is_last.load(Ordering::SeqCst) {
                state.cut_every.store(0, Ordering::SeqCst);
            }
            state.cut();
            break;
        }
        if state.is_black.load(Ordering::SeqCst) {
            continue;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// A running `ksync sandbox`, reached over a line.
pub(crate) struct Vm<'w> {
    world: &'w World,
    pub(crate) line: Line,
    child: Child,
}

impl<'w> Vm<'w> {
    /// Starts a sandbox, and writes `vm.json` for `--setup`.
    pub(crate) fn start(world: &'w World) -> Vm<'w> {
        let (child, port, setup) = serve(world, 0);
        let line = Line::to(port);
        let setup = setup.replace(&format!(":{port}"), &format!(":{}", line.port));
        fs::write(world.path("vm.json"), setup).unwrap();
        Vm { world, line, child }
    }

    /// Ends the sandbox and starts another one in its place, with other keys.
    pub(crate) fn replace(&mut self) {
        self.end();
        let (child, port, _) = serve(self.world, 0);
        self.line.lead_to(port);
        self.child = child;
    }

    /// Starts a watch over the line, and waits until the destination is a copy.
    #[track_caller]
    pub(crate) fn watch(&self, direction: Direction, options: &[&str]) -> Watcher<'w> {
        let watcher = self.begin_watch(direction, options);
        watcher.event("ready");
        watcher
    }

    /// Starts a watch over the line.
    pub(crate) fn begin_watch(&self, direction: Direction, options: &[&str]) -> Watcher<'w> {
        let far = |name: &str| format!(":{}", self.world.path(name).display());
        let (source, destination) = match direction {
            Direction::Down => (far("src"), "dst".to_owned()),
            _ => ("src".to_owned(), far("dst")),
        };
        let mut command = self.world.ksync(["--watch", "--json", "--setup", "vm.json"]);
        command.args(options).args([source, destination]);
        Watcher::of(self.world, direction.near(), command)
    }

    /// The command for one sync over the line, not started yet.
    pub(crate) fn sync(&self, direction: Direction, options: &[&str]) -> Command {
        let far = |name: &str| format!(":{}", self.world.path(name).display());
        let (source, destination) = match direction {
            Direction::Down => (far("src"), "dst".to_owned()),
            _ => ("src".to_owned(), far("dst")),
        };
        let mut command = self.world.ksync(["--setup", "vm.json"]);
        command.args(options).args([source, destination]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The one agent that runs in the VM.
    #[track_caller]
    pub(crate) fn agent(&self) -> Pid {
        let home = self.world.path("vm");
        wait_for("one agent", || match programs_below(&home)[..] {
            [agent] => Some(agent),
            _ => None,
        })
    }

    pub(crate) fn end(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts a sandbox. Returns its port, and the setup that it printed.
fn serve(world: &World, port: u16) -> (Child, u16, String) {
    let mut command: Command =
        world.ksync(["sandbox", "--json", "--listen", &format!("127.0.0.1:{port}"), "--home"]);
    command.arg(world.path("vm")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("start");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    let told: Value = serde_json::from_str(&line).expect("one line of JSON");
    let setup = told["setup"].to_string();
    let digits = setup.split("ws://127.0.0.1:").nth(1).expect("a URL").chars();
    let digits: String = digits.take_while(char::is_ascii_digit).collect();
    (child, digits.parse().expect("a port"), setup)
}

/// Processes whose program is in this folder.
pub(crate) fn programs_below(folder: &Path) -> Vec<Pid> {
    let is_one = |process: &Path| fs::read_link(process.join("exe")).is_ok_and(|exe| exe.starts_with(folder));
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let number = |process: PathBuf| process.file_name()?.to_str()?.parse().ok();
    processes.filter(|process| is_one(process)).filter_map(number).filter_map(Pid::from_raw).collect()
}

/// Stops a process, and waits until each of its threads has stopped. A thread that still runs could
/// read events that are meant to pile up.
#[track_caller]
pub(crate) fn stop(process: Pid) {
    kill_process(process, Signal::STOP).expect("a signal");
    let stands = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        text.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    };
    let tasks = || fs::read_dir(format!("/proc/{process}/task")).expect("a process").map_while(Result::ok);
    wait_for("a process to stand still", || tasks().all(stands).then_some(()));
}

/// CPU time of a process so far, in hundredths of a second.
pub(crate) fn ticks(process: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Memory of a process in bytes, without mapped files.
pub(crate) fn memory_bytes(process: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
