//! The progress of an upload over a slow link, on a terminal and without one.
//!
//! The link is the bottleneck: its bytes, and the time of the end, are what the progress is held
//! against.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::link::{Conditions, Link};
use crate::world::{Emulator, Run, Screen, Terminal, Tree, World, noise};

/// Width of a new [`Terminal`].
const COLUMNS: usize = 91;

const MB: f64 = 1e6;

/// An upload to an emulated VM behind a slow link.
struct Upload {
    world: World,
    _emulator: Emulator,
    link: Link,
}

impl Upload {
    /// The upload of a tree over a link of so many bytes per second. The agent is there already.
    fn new(bytes_per_second: f64, tree: impl FnOnce(Tree)) -> Upload {
        let world = World::new();
        tree(world.tree("src"));
        world.tree("first").file("a", "x");
        let emulator = Emulator::new(&world);
        let link = emulator.behind_link(&world);
        let upload = Upload { world, _emulator: emulator, link };
        Run::of(upload.command("first")).ok();
        let up_rate = Some((8.0 * bytes_per_second) as u64);
        upload.link.set(Conditions {
            up_rate,
            round_trip: Duration::from_millis(40),
            ..Conditions::default()
        });
        upload.link.reset();
        upload
    }

    fn command(&self, source: &str) -> Command {
        let mut endpoint = OsString::from(":");
        endpoint.push(self.world.path("dst"));
        self.world.ksync(["--setup=vm.json".into(), OsString::from(source), endpoint])
    }
}

/// A terminal, and the screen that it shows.
struct Shown {
    terminal: Terminal,
    screen: Screen,
    taken: usize,
}

impl Shown {
    fn new(upload: &Upload) -> Shown {
        let terminal = Terminal::new(&upload.world, &upload.command("src"));
        Shown { terminal, screen: Screen::new(COLUMNS), taken: 0 }
    }

    /// The rows that are shown now.
    fn rows(&mut self) -> Vec<String> {
        let output = self.terminal.output();
        // A control sequence may not be complete yet.
        let end = output.rfind('\r').map_or(self.taken, |at| at + 1).max(self.taken);
        self.screen.write(&output[self.taken..end]);
        self.taken = end;
        self.screen.rows()
    }

    /// Looks at the screen until the program ends.
    fn until_the_end(&mut self, mut look: impl FnMut(&mut Self, &[String])) {
        let begun = Instant::now();
        while !self.terminal.has_shown("ended with") {
            let rows = self.rows();
            look(self, &rows);
            assert!(begun.elapsed() < Duration::from_secs(60), "{rows:?}");
            std::thread::sleep(Duration::from_millis(30));
        }
        self.terminal.ends_with(0);
    }

    fn resize(&mut self, columns: u16) {
        self.rows();
        self.terminal.resize(columns, 17);
        self.screen.resize(columns.into());
    }
}

/// The number before a text, in this line.
fn before(line: &str, text: &str) -> Option<f64> {
    let (before, _) = line.split_once(text)?;
    before.rsplit([' ', '[', '(']).next()?.parse().ok()
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    line: String,
    written: f64,
    left: Option<f64>,
    carried: f64,
}

impl Sample {
    /// Asserts that it shows no more than the link carried, and from a third on the right remaining
    /// time. True if it shows one then.
    #[track_caller]
    fn assert_honest(&self, total: f64, end: Instant) -> bool {
        let Sample { at, line, written, left, carried } = self;
        assert!(written <= carried, "{line}: {carried} carried");
        // A message of a megabyte counts when all of it is there, and the link's ends buffer some
        // more.
        assert!(*written >= carried - 3.0 * MB, "{line}: {carried} carried");
        assert!(!line.contains("stalled"), "{line}");
        let really = (end - *at).as_secs_f64();
        let left = left.filter(|_| (total / 3.0..total * 0.9).contains(written));
        left.is_some_and(|left| {
            assert!((left - really).abs() <= 0.2 * really + 0.3, "{line}: {really:.1} s were left");
            true
        })
    }
}

#[test]
fn an_uploads_progress_is_what_the_other_side_has_written() {
    const SIZE: usize = 12_000_000;
    let upload = Upload::new(2e6, |tree| drop(tree.file("image", noise(1, SIZE))));
    let (mut shown, mut samples) = (Shown::new(&upload), Vec::new());
    shown.until_the_end(|_, rows| {
        let line = rows.last().cloned().unwrap_or_default();
        let Some(written) = before(&line, " MB of 12.0 MB").filter(|_| !line.contains("waiting")) else {
            return;
        };
        let carried = upload.link.carried().up_bytes as f64;
        let (left, at, written) = (before(&line, " s left"), Instant::now(), written * MB);
        samples.push(Sample { at, line, written, left, carried });
    });
    let end = Instant::now();
    let timed = samples.iter().filter(|sample| sample.assert_honest(SIZE as f64, end)).count();
    assert!(timed > 5, "{samples:?}");
    assert!(shown.terminal.has_shown(" 12.0 MB of 12.0 MB, waiting for the other side to finish"));
    let rows = shown.rows();
    assert!(rows[0].starts_with("src → "), "{rows:?}");
    assert!(rows[1].contains("; sent 12.0 MB in "), "{rows:?}");
    assert_eq!(rows[2..], ["ended with 0"], "nothing is left of the status line");
}

#[test]
fn a_resized_terminal_keeps_one_status_line_that_fits() {
    let upload = Upload::new(2e6, |tree| drop(tree.file("image-of-the-disk", noise(1, 8_000_000))));
    let mut shown = Shown::new(&upload);
    let mut sizes = [40, 120, 59, 25, 91, 50].into_iter();
    let (mut columns, mut resized, mut lines) = (COLUMNS, Instant::now(), Vec::new());
    shown.until_the_end(|shown, rows| {
        let is_status = |row: &&String| row.contains(" left") || row.contains(" MB of ");
        let status: Vec<_> = rows.iter().filter(is_status).collect();
        // A row of the old width may be on its way.
        if resized.elapsed() < Duration::from_millis(300) {
            return;
        }
        assert!(status.len() <= 1, "{rows:#?}");
        let Some(line) = status.first() else { return };
        assert!(line.chars().count() < columns, "{line}");
        lines.push((columns, line.to_string()));
        if let Some(size) = sizes.next() {
            shown.resize(size);
            (columns, resized) = (size.into(), Instant::now());
        }
    });
    let line = |columns| &lines.iter().find(|(width, _)| *width == columns).expect("a line").1;
    assert!(line(120).contains("image-of-the-disk") && line(120).starts_with('['), "{lines:#?}");
    assert!(line(59).contains(" MB of ") && !line(59).contains('['), "{lines:#?}");
    assert!(line(40).contains("MB/s") && !line(40).contains("image"), "{lines:#?}");
    let rows = shown.rows();
    assert_eq!(
        rows.iter().filter(|row| row.contains("MB/s") || row.contains(" left")).count(),
        0,
        "{rows:#?}"
    );
}

#[test]
fn many_small_files_are_counted() {
    let upload = Upload::new(5e5, |tree| {
        (0..1500).fold(tree, |tree, number| tree.file(format!("{number}"), noise(number, 1000)));
    });
    let (mut shown, mut counts) = (Shown::new(&upload), Vec::new());
    shown.until_the_end(|_, rows| {
        let line = rows.last().cloned().unwrap_or_default();
        counts.extend(before(&line.replace(',', ""), " of 1500 files"));
    });
    counts.dedup();
    assert!(counts.len() >= 3 && counts.is_sorted(), "{counts:?}");
}

#[test]
fn without_a_terminal_there_is_a_line_every_ten_seconds() {
    let upload = Upload::new(1e6, |tree| drop(tree.file("image", noise(1, 14_000_000))));
    let mut command = upload.command("src");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut samples = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap) {
        let Some(written) = before(&line, " MB of 14.0 MB (") else {
            assert!(line.starts_with("src → "), "{line}");
            continue;
        };
        let (at, carried) = (Instant::now(), upload.link.carried().up_bytes as f64);
        let left = before(&line, " s left, image");
        assert!(left.is_some(), "{line}");
        samples.push(Sample { at, line, written: written * MB, left, carried });
    }
    assert!(child.wait().unwrap().success());
    let end = Instant::now();
    let seconds = begun.elapsed().as_secs() as usize;
    assert!(samples.len() <= seconds / 10, "{samples:?} in {seconds} s");
    assert!(samples.iter().any(|sample| sample.assert_honest(14.0 * MB, end)), "{samples:?}");
}
