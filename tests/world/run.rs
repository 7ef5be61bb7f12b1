//! A finished run of `ksync`, and the numbers of `--stats`.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{schema, wait_for};

/// Exit status and output of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Runs a command to its end, with an empty input.
    #[track_caller]
    pub(crate) fn of(mut command: Command) -> Run {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Run::end_of(command.spawn().expect("start"))
    }

    /// Waits for the end of a process that was started with pipes for its output.
    #[track_caller]
    pub(crate) fn end_of(mut child: Child) -> Run {
        fn drain(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).expect("output");
                String::from_utf8(bytes).expect("UTF-8 only")
            })
        }
        let stdout = drain(child.stdout.take().expect("stdout"));
        let stderr = drain(child.stderr.take().expect("stderr"));
        let status = wait_for("the end of a run", || child.try_wait().expect("wait"));
        let run =
            Run { status, stdout: stdout.join().expect("stdout"), stderr: stderr.join().expect("stderr") };
        // Every event that any test sees has the published form.
        schema::check_events(&run.stdout);
        run
    }

    /// Asserts the exit code 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Run {
        self.fails(0)
    }

    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Run {
        assert_eq!(self.status.code(), Some(code), "stdout:\n{}stderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts the whole standard error.
    #[track_caller]
    pub(crate) fn says(self, stderr: &str) -> Run {
        assert_eq!(self.stderr, stderr);
        self
    }

    /// Last line of the results before `--stats`, or of the whole output.
    #[track_caller]
    pub(crate) fn summary(&self) -> &str {
        let before = self.stdout.split("\nentries: ").next().unwrap_or_default();
        before.lines().last().unwrap_or_default()
    }

    /// The numbers of `--stats`.
    #[track_caller]
    pub(crate) fn stats(&self) -> Stats {
        let field = |name: &str| {
            let line = self.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in:\n{}", self.stdout)).trim().to_owned()
        };
        let number = |text: &str| -> u64 {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            digits.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
        };
        let bytes = |name: &str| {
            let text = field(name);
            // A size below a thousand bytes has no exact number in brackets: 437 B.
            number(text.split_once('(').map_or(text.as_str(), |(_, exact)| exact))
        };
        Stats {
            summary: self.summary().to_owned(),
            entries: number(&field("entries")),
            total_bytes: bytes("total size"),
            sent_bytes: bytes("sent content"),
            matched_bytes: bytes("matched content"),
            wire_up_bytes: bytes("wire up"),
            wire_down_bytes: bytes("wire down"),
            agent: field("agent"),
        }
    }
}

/// The numbers of `--stats`.
#[derive(Debug)]
pub(crate) struct Stats {
    /// The summary line above the numbers.
    pub(crate) summary: String,
    pub(crate) entries: u64,
    pub(crate) total_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) matched_bytes: u64,
    pub(crate) wire_up_bytes: u64,
    pub(crate) wire_down_bytes: u64,
    pub(crate) agent: String,
}

impl Stats {
    /// All bytes over SSH, in both directions.
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.wire_up_bytes + self.wire_down_bytes
    }
}
