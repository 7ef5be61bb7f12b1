//! The real agent, fresh for one run or kept for many, and a client for it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use ksync::disk::baseline::Baseline;
use ksync::engine::{Config, Receiver as ReceivingEngine, RunError, Sender, Summary, Traffic};
use ksync::exchange::{Incoming, Receiving, Sending, run};
use ksync::monitor::{Event, Recorder};
use ksync::wire::flight;
use ksync::wire::hello::{self, MAGIC, Options, Request, Role};
use ksync::wire::keep::{self, Decoder, Kind, Record};
use tempfile::TempDir;

/// Timeout for anything on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Name of the baselines.
const KEY: [u8; 16] = [7; 16];

/// The agent's program in a directory of its own.
pub(super) struct Program {
    folder: TempDir,
}

/// Result of a run, as its client saw it.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) result: Result<Summary, RunError>,
    events: Vec<Event>,
}

impl Ran {
    /// All that two agents must have in common.
    pub(super) fn facts(&self) -> Vec<String> {
        let result = self.result.clone().map(|summary| Summary { traffic: Traffic::default(), ..summary });
        let told = self.events.iter().filter(|event| !matches!(event, Event::Written(_)));
        let mut facts: Vec<String> = told.map(|event| format!("{event:?}")).collect();
        // Several threads bring them.
        facts.sort();
        facts.push(format!("{result:?}"));
        facts
    }
}

/// A request, and the client's side of it.
pub(super) struct Order<'a> {
    pub(super) source: &'a Path,
    pub(super) target: &'a Path,
    /// True if the agent receives.
    pub(super) is_upload: bool,
    pub(super) options: Options,
    /// The client's store of baselines.
    pub(super) baselines: &'a Path,
}

impl Order<'_> {
    pub(super) fn request(&self) -> Request {
        let (role, path) =
            if self.is_upload { (Role::Receiver, self.target) } else { (Role::Sender, self.source) };
        Request {
            role,
            path: path.as_os_str().as_bytes().to_vec(),
            further: Vec::new(),
            options: self.options.clone(),
            baseline_key: Some(KEY),
            watch: None,
            timeout_ms: 0,
        }
    }

    /// Runs the client's side over these streams.
    fn run(&self, reader: impl Read + Send + 'static, mut writer: impl Write + Send + 'static) -> Ran {
        let options = &self.options;
        let config = Config { options: options.clone(), ..Config::default() };
        let recorder = Recorder::default();
        hello::write(&mut writer, Some(self.request())).unwrap();
        let baseline = Some(Baseline::new(self.baselines.to_owned(), &KEY));
        let incoming = Incoming::alone(reader);
        let result = if self.is_upload {
            let disk = Sending::new(self.source.to_owned(), options.clone()).with_baseline(baseline);
            run(incoming, writer, Sender::new(&config), disk, true, options.compress, &recorder)
        } else {
            let disk = Receiving::new(self.target.to_owned(), options.clone()).with_baseline(baseline);
            run(incoming, writer, ReceivingEngine::new(&config), disk, true, options.compress, &recorder)
        };
        Ran { result, events: recorder.events() }
    }
}

impl Program {
    pub(super) fn new() -> Self {
        let program = Self { folder: TempDir::new().unwrap() };
        // Only then the agent has a secret.
        fs::set_permissions(program.folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(&*ksync::agent().gzip).read_to_end(&mut bytes).unwrap();
        fs::write(program.path(), bytes).unwrap();
        fs::set_permissions(program.path(), fs::Permissions::from_mode(0o700)).unwrap();
        program
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Runs an order with an agent that was started for it.
    pub(super) fn run_fresh(&self, order: &Order<'_>) -> Ran {
        let mut command = Command::new(self.path());
        let mut child = piped(command.arg(flight::UNSEALED));
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut secret = Vec::new();
        output.read_until(b'\n', &mut secret).unwrap();
        assert!(secret.starts_with(flight::SECRET));
        let ran = order.run(output, child.stdin.take().unwrap());
        child.wait().unwrap();
        ran
    }

    /// Starts a kept agent.
    pub(super) fn keep(&self) -> Kept {
        Kept::of(Command::new(self.path()).arg(keep::ARGUMENT))
    }
}

fn piped(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let command = command.env("KSYNC_LOG", "debug");
    let begin = Instant::now();
    loop {
        match command.spawn() {
            // A process that another test starts holds the file open until its own program begins.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && begin.elapsed() < TIMEOUT => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result.unwrap(),
        }
    }
}

/// A kept agent, and the channel to it.
pub(super) struct Kept {
    child: Child,
    input: Arc<Mutex<Option<ChildStdin>>>,
    arriving: Arc<Mutex<Arriving>>,
    log: Arc<Mutex<Vec<String>>>,
}

/// The agent's output, as it arrives.
struct Arriving {
    records: Receiver<Record>,
    /// The rest of a record.
    data: io::Cursor<Vec<u8>>,
    /// The number of the run. A reader that a run left behind takes nothing of the next one.
    run: u64,
    is_over: bool,
}

impl Arriving {
    fn begin(&mut self) -> u64 {
        self.run += 1;
        self.is_over = false;
        self.run
    }

    fn next(&mut self) -> Record {
        self.records.recv_timeout(TIMEOUT).expect("a record")
    }
}

impl Kept {
    pub(super) fn of(command: &mut Command) -> Self {
        let mut child = piped(command);
        let mut output = child.stdout.take().unwrap();
        let (sink, records) = channel();
        thread::spawn(move || {
            let mut magic = [0; MAGIC.len()];
            output.read_exact(&mut magic).unwrap();
            assert_eq!(magic, MAGIC);
            let (mut decoder, mut bytes) = (Decoder::default(), vec![0; 100_000]);
            loop {
                let count = output.read(&mut bytes).unwrap();
                let mut rest = &bytes[..count];
                while let Some(record) = decoder.next(&mut rest).unwrap() {
                    let _ = sink.send(record);
                }
                if count == 0 {
                    return;
                }
            }
        });
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, errors) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
        thread::spawn(move || {
            errors.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line));
        });
        let input = Arc::new(Mutex::new(child.stdin.take()));
        let arriving = Arriving { records, data: io::Cursor::default(), run: 0, is_over: true };
        Self { child, input, arriving: Arc::new(Mutex::new(arriving)), log }
    }

    /// Writes to the channel.
    pub(super) fn write(&self, bytes: &[u8]) {
        self.input.lock().unwrap().as_ref().unwrap().write_all(bytes).unwrap();
    }

    /// Runs an order, and waits until the agent is ready for the next one.
    pub(super) fn run(&self, order: &Order<'_>) -> Ran {
        self.run_writing(order, &Arc::default())
    }

    /// The same, and records what the client writes.
    pub(super) fn run_writing(&self, order: &Order<'_>, written: &Arc<Mutex<Vec<u8>>>) -> Ran {
        let run = self.arriving.lock().unwrap().begin();
        let (input, written) = (Arc::clone(&self.input), Arc::clone(written));
        let reader = RunReader { run, arriving: Arc::clone(&self.arriving) };
        let ran = order.run(reader, RunWriter { input, written });
        self.wait_for_end();
        ran
    }

    /// Begins a run with these bytes of its stream and ends it there. Waits for the agent.
    pub(super) fn run_cut(&self, stream: &[u8]) {
        self.arriving.lock().unwrap().begin();
        self.write(&keep::encode_data(stream));
        self.write(&keep::encode(Kind::End, &[]).unwrap());
        self.wait_for_end();
    }

    fn wait_for_end(&self) {
        let mut arriving = self.arriving.lock().unwrap();
        while !arriving.is_over {
            arriving.is_over = arriving.next().kind == Kind::End;
        }
        arriving.data = io::Cursor::default();
    }

    /// Pings the agent, which is between two runs.
    pub(super) fn ping(&self) {
        self.write(&keep::encode(Kind::Ping, b"7").unwrap());
        let pong = self.arriving.lock().unwrap().next();
        assert_eq!((pong.kind, &*pong.payload), (Kind::Pong, &b"7"[..]));
    }

    /// The lines of the log so far that contain a text.
    pub(super) fn logged(&self, text: &str) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Waits until so many lines of the log contain a text.
    pub(super) fn wait_for_log(&self, text: &str, count: usize) {
        self.wait_until(|| self.logged(text).len() >= count, text);
    }

    /// Waits until something holds.
    pub(super) fn wait_until(&self, holds: impl Fn() -> bool, what: &str) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < TIMEOUT, "{what}: {:?}", self.log.lock().unwrap());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Numbers of threads and of open descriptors.
    pub(super) fn held(&self) -> (usize, usize) {
        let count = |name: &str| fs::read_dir(format!("/proc/{}/{name}", self.id())).unwrap().count();
        (count("task"), count("fd"))
    }

    /// Closes the agent's input, and waits for its end.
    pub(super) fn end(mut self) -> bool {
        self.input.lock().unwrap().take();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the bytes of a run.
struct RunReader {
    run: u64,
    arriving: Arc<Mutex<Arriving>>,
}

impl Read for RunReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut arriving = self.arriving.lock().unwrap();
        loop {
            if arriving.run != self.run {
                return Ok(0);
            }
            let count = arriving.data.read(buffer)?;
            if count > 0 || arriving.is_over || buffer.is_empty() {
                return Ok(count);
            }
            let record = arriving.next();
            match record.kind {
                Kind::Data => arriving.data = io::Cursor::new(record.payload),
                Kind::End => arriving.is_over = true,
                kind => panic!("{kind:?}"),
            }
        }
    }
}

/// Writes the bytes of a run, and its end.
struct RunWriter {
    input: Arc<Mutex<Option<ChildStdin>>>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl RunWriter {
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        let input = self.input.lock().unwrap();
        input.as_ref().ok_or(io::ErrorKind::BrokenPipe)?.write_all(bytes)
    }
}

impl Write for RunWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.lock().unwrap().extend_from_slice(bytes);
        self.put(&keep::encode_data(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        let _ = self.put(&keep::encode(Kind::End, &[]).unwrap());
    }
}
