//! Both ends together, over pipes.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::{Entrance, Joining, Lane, Merged, OpenLanes, Striped};
use crate::wire::frame::{FrameReader, FrameWriter, Next};
use crate::wire::lanes::{Announcement, SEGMENT_BYTES_MAX, Token, encode_segment};

const FRAME_BYTES: usize = 300_000;

fn announcement(lanes: u8) -> Announcement {
    Announcement { token: Token::new([7; 16]), lanes }
}

/// A frame that repeats its own number.
fn frame(number: usize) -> Vec<u8> {
    number.to_le_bytes().repeat(FRAME_BYTES / 8)
}

/// Offers this many lanes and passes the entrance on to the test.
struct Opener {
    lanes: usize,
    entrances: mpsc::Sender<Entrance>,
    /// Set once so much waits that lanes pay.
    filled: Arc<AtomicBool>,
}

impl OpenLanes for Opener {
    fn worthwhile(&self) -> usize {
        self.lanes
    }

    fn open(&self, entrance: Entrance) -> Option<Announcement> {
        self.entrances.send(entrance).unwrap();
        Some(announcement(self.lanes as u8))
    }

    fn fills(&self) {
        assert!(!self.filled.swap(true, Ordering::SeqCst), "it fills once");
    }
}

/// Pauses before each write, like a lane that waits for its window, and breaks after `writes_left`
/// of them.
struct Slow {
    pipe: PipeWriter,
    pause: Duration,
    writes_left: usize,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        thread::sleep(self.pause);
        self.writes_left = self.writes_left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        self.pipe.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

/// One further lane: its delay before opening, its pause per write, and the writes until it breaks.
#[derive(Clone, Copy)]
struct Speed {
    opens_after: Duration,
    pause: Duration,
    writes: usize,
}

const FAST: Speed = Speed { opens_after: Duration::ZERO, pause: Duration::ZERO, writes: usize::MAX };

/// The result of writing, and the frames that were read until the end or an error.
struct Passed {
    written: io::Result<()>,
    frames: usize,
    error: Option<String>,
    /// Segments that each further lane carried.
    carried: Vec<usize>,
    announced: bool,
    filled: bool,
}

/// Writes `count` frames over a main lane and these; reads them back and checks each.
fn pass(count: usize, lanes: &[Speed]) -> Passed {
    let (main_reader, main) = io::pipe().unwrap();
    let (entrances, opened) = mpsc::channel();
    let main = Slow { pipe: main, pause: Duration::from_millis(2), writes_left: usize::MAX };
    let filled = Arc::new(AtomicBool::new(false));
    let opener = Opener { lanes: lanes.len() + 1, entrances, filled: Arc::clone(&filled) };
    let writing = thread::spawn(move || {
        let mut frames = FrameWriter::new(Striped::new(Box::new(main), Box::new(opener)), false);
        (0..count).try_for_each(|number| frames.write(&frame(number)))?;
        frames.flush()
    });
    let mut frames = FrameReader::new(Lane::new(main_reader));
    let mut passed = Passed {
        written: Ok(()),
        frames: 0,
        error: None,
        carried: Vec::new(),
        announced: false,
        filled: false,
    };
    let counts: Vec<_> = lanes.iter().map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let error = loop {
        match frames.read_next() {
            Ok(Next::Frame(content)) => {
                assert!(content == frame(passed.frames), "frame {} is another", passed.frames);
                passed.frames += 1;
            }
            Ok(Next::Lanes(told)) => {
                assert_eq!(told, announcement(lanes.len() as u8 + 1));
                passed.announced = true;
                let (main, unpacker) = frames.into_parts();
                let (merged, joining) = Merged::new(main, told);
                frames = FrameReader::continuing(Lane::new(merged), unpacker);
                let entrance = opened.recv().unwrap();
                for (speed, count) in lanes.iter().zip(&counts) {
                    open(*speed, joining.clone(), entrance.clone(), Arc::clone(count));
                }
            }
            Err(error) => break error,
        }
    };
    passed.error =
        (!matches!(error, crate::wire::frame::FrameError::Closed)).then(|| crate::exchange::chain(&error));
    drop(frames);
    passed.written = writing.join().unwrap();
    passed.filled = filled.load(Ordering::SeqCst);
    passed.carried = counts.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    passed
}

fn open(speed: Speed, joining: Joining, entrance: Entrance, count: Arc<AtomicUsize>) {
    let (reader, writer) = io::pipe().unwrap();
    thread::spawn(move || {
        thread::sleep(speed.opens_after);
        let reader = Counted { pipe: reader, count };
        // The answer to a lane goes out when it has been added.
        if joining.add(Lane::new(reader)) {
            entrance.add(Box::new(Slow { pipe: writer, pause: speed.pause, writes_left: speed.writes }));
        }
    });
}

/// Counts segments by the one-byte read with which each header begins.
struct Counted {
    pipe: PipeReader,
    count: Arc<AtomicUsize>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.pipe.read(buffer)?;
        self.count.fetch_add(usize::from(read == 1), Ordering::SeqCst);
        Ok(read)
    }
}

#[test]
fn lanes_of_any_speed_bring_everything_in_order() {
    let quick = Speed { pause: Duration::from_millis(2), ..FAST };
    let slow = Speed { pause: Duration::from_millis(10), ..FAST };
    let late = Speed { opens_after: Duration::from_millis(20), ..quick };
    let passed = pass(120, &[quick, slow, late, slow]);
    passed.written.unwrap();
    assert_eq!((passed.frames, passed.error), (120, None));
    assert!(passed.announced && passed.filled);
    assert!(passed.carried.iter().all(|&segments| segments > 0), "{:?}", passed.carried);
    assert!(passed.carried[0] > passed.carried[1], "the faster lane carries more: {:?}", passed.carried);
}

#[test]
fn lanes_that_never_come_are_not_missed() {
    let never = Speed { opens_after: Duration::from_secs(3600), ..FAST };
    let passed = pass(40, &[never, FAST, never]);
    passed.written.unwrap();
    assert_eq!((passed.frames, passed.error), (40, None));
    assert!(passed.carried[0] == 0 && passed.carried[1] > 0, "{:?}", passed.carried);
}

#[test]
fn short_stream_announces_no_lanes() {
    let passed = pass(2, &[FAST, FAST]);
    assert_eq!((passed.frames, passed.announced, passed.filled), (2, false, false));
}

#[test]
fn stream_without_backlog_never_fills() {
    let (mut reader, main) = io::pipe().unwrap();
    let reading = thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    let (entrances, _opened) = mpsc::channel();
    let filled = Arc::new(AtomicBool::new(false));
    let opener = Opener { lanes: 8, entrances, filled: Arc::clone(&filled) };
    let mut frames = FrameWriter::new(Striped::new(Box::new(main), Box::new(opener)), false);
    for number in 0..100 {
        frames.write(&frame(number)).unwrap();
        // As slow as the maker of the frames.
        thread::sleep(Duration::from_millis(1));
    }
    drop(frames);
    assert!(reading.join().unwrap().unwrap() > 100 * (FRAME_BYTES as u64 + 4));
    assert!(!filled.load(Ordering::SeqCst));
}

#[test]
fn broken_lane_ends_the_stream_and_no_frame_is_wrong() {
    for writes in [0, 1, 5, 20] {
        let breaks = Speed { writes, ..FAST };
        let passed = pass(400, &[FAST, breaks]);
        assert!(passed.written.is_err(), "{writes}");
        // `pass` checked each of those that arrived.
        assert!(passed.frames < 400);
    }
}

/// Reads the lanes of a hostile peer to the end; returns the number of bytes and the error.
fn read(lanes: &[Vec<u8>]) -> (usize, Option<String>) {
    let mut lanes = lanes.iter().map(|lane| Lane::new(io::Cursor::new(lane.clone())));
    let (mut merged, joining) = Merged::new(lanes.next().unwrap(), announcement(8));
    lanes.for_each(|lane| assert!(joining.add(lane)));
    let mut all = Vec::new();
    let error = merged.read_to_end(&mut all).err().map(|error| error.to_string());
    (all.len(), error)
}

#[test]
fn invalid_segment_numbers_are_an_error() {
    let segment = |number| encode_segment(number, b"text");
    let lane = |numbers: &[u64]| numbers.iter().flat_map(|&number| segment(number)).collect::<Vec<_>>();
    assert_eq!(read(&[lane(&[0, 3]), lane(&[1, 2, 4])]), (20, None));
    for (lanes, came, told) in [
        (vec![lane(&[0, 0])], 4, "segment 0 came late, or twice"),
        // Depending on which thread is faster, segment 1 is found missing behind 2, or late.
        (vec![lane(&[0, 2, 1])], 4, "segment 1 "),
        // Missing: no lane can bring it any more.
        (vec![lane(&[0, 2]), lane(&[3])], 4, "segment 1 did not come"),
        (vec![lane(&[1])], 0, "segment 0 did not come"),
        (vec![lane(&[0, u64::MAX])], 4, "segment 1 did not come"),
        (vec![lane(&[u64::MAX, u64::MAX])], 0, ""),
        (vec![lane(&[0]), vec![1; 9]], 4, "a lane broke"),
        (vec![lane(&[0]), encode_segment(1, &vec![0; SEGMENT_BYTES_MAX + 1])], 4, "131072 are allowed"),
    ] {
        let (bytes, error) = read(&lanes);
        let error = error.unwrap_or_else(|| panic!("{told}: no error"));
        assert!(bytes <= came && error.contains(told), "{bytes}, {error}, not {told}");
    }
}

#[test]
fn number_on_two_lanes_is_an_error_in_either_order() {
    let (reader, mut writer) = io::pipe().unwrap();
    let (mut merged, joining) = Merged::new(Lane::new(reader), announcement(2));
    let (second, mut second_writer) = io::pipe().unwrap();
    assert!(joining.add(Lane::new(second)));
    second_writer.write_all(&encode_segment(0, b"second")).unwrap();
    let mut text = [0; 6];
    merged.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"second");
    writer.write_all(&encode_segment(0, b"first!")).unwrap();
    assert_eq!(merged.read_exact(&mut text).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

/// Segments without end, none of which has its turn; counts the bytes that were read.
struct Endless {
    rest: Vec<u8>,
    next: u64,
    count: Arc<AtomicUsize>,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = encode_segment(self.next, &vec![0; SEGMENT_BYTES_MAX]);
            self.next += 1;
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        self.count.fetch_add(count, Ordering::SeqCst);
        Ok(count)
    }
}

#[test]
fn lanes_that_run_ahead_are_held_back_and_memory_is_bounded() {
    let (reader, mut main) = io::pipe().unwrap();
    let (mut merged, joining) = Merged::new(Lane::new(reader), announcement(8));
    let count = Arc::new(AtomicUsize::new(0));
    for lane in 1..8 {
        let endless = Endless { rest: Vec::new(), next: lane << 32, count: Arc::clone(&count) };
        assert!(joining.add(Lane::new(endless)));
    }
    assert!(!joining.is_open() && !joining.add(Lane::new(io::empty())), "eight were announced");
    main.write_all(&encode_segment(0, b"x")).unwrap();
    merged.read_exact(&mut [0]).unwrap();
    let mut seen = 0;
    // Wait until they stand still.
    while seen != count.load(Ordering::SeqCst) || seen == 0 {
        seen = count.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(50));
    }
    assert!(seen <= 7 * ((2 << 20) + SEGMENT_BYTES_MAX + 16 * 12), "{seen}");
}

#[test]
fn reader_that_stops_lets_all_lanes_go() {
    let (reader, main) = io::pipe().unwrap();
    let (merged, joining) = Merged::new(Lane::new(reader), announcement(2));
    let (lane, mut writer) = io::pipe().unwrap();
    assert!(joining.add(Lane::new(lane)));
    drop(merged);
    assert!(!joining.add(Lane::new(io::empty())));
    // Its thread ends, and with it the reading end.
    let mut segment = Ok(());
    while segment.is_ok() {
        segment = writer.write_all(&encode_segment(1, &[0; 1000]));
    }
    drop(main);
}
