//! Runs: one exchange after another over one channel of [records](crate::wire::keep), on the side
//! of the kept agent.
//!
//! No thread stands between the channel and a run. The run's own reader takes the records from the
//! channel, and its own writer puts records there. When a run is over, [`Runs::next`] takes what
//! its reader left, up to the client's `End`.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::exchange::lanes::{Action, Lane, Outlet};
use crate::log::debug;
use crate::wire::hello::Request;
use crate::wire::keep::{Decoder, Kind, Record, encode, encode_data};

/// Bytes that one read takes from the channel: a full record, and a little more.
const READ_BYTES: usize = 68 << 10;

/// A channel on which runs follow each other.
pub struct Runs {
    input: Arc<Mutex<Input>>,
    output: Arc<Mutex<Output>>,
}

/// The streams of one run.
pub struct Run {
    /// Reads what the run's client sends, to its end.
    pub input: Lane,
    /// Writes to the run's client, until the run is over.
    pub output: Outlet,
}

/// Called with each request that is likely to come.
type Warm = dyn FnMut(Request) + Send;

struct Input {
    channel: Lane,
    /// Bytes of the channel from `at` on that are not decoded yet.
    bytes: Vec<u8>,
    at: usize,
    decoder: Decoder,
    output: Arc<Mutex<Output>>,
    warm: Box<Warm>,
    /// The number of the last run that has begun.
    run: u64,
    /// True until the client's `End` of that run.
    is_open: bool,
    /// Bytes of that run from `given` on that nobody has read yet.
    data: Vec<u8>,
    given: usize,
}

struct Output {
    channel: Outlet,
    /// The run that may write; `None` between two runs.
    run: Option<u64>,
}

/// An arrival on the channel, for a run.
enum Came {
    Data(Vec<u8>),
    End,
    /// The channel itself has ended.
    Nothing,
}

impl Runs {
    /// Makes a channel of these streams. `warm` is called with each request that is likely to come.
    #[must_use]
    pub fn new(input: Lane, output: Outlet, warm: impl FnMut(Request) + Send + 'static) -> Self {
        let output = Arc::new(Mutex::new(Output { channel: output.holding(), run: None }));
        let input = Input {
            channel: input,
            bytes: Vec::new(),
            at: 0,
            decoder: Decoder::default(),
            output: Arc::clone(&output),
            warm: Box::new(warm),
            run: 0,
            is_open: false,
            data: Vec::new(),
            given: 0,
        };
        Self { input: Arc::new(Mutex::new(input)), output }
    }

    /// Waits for the next run; `None` once the channel has ended. Skips what is left of the run
    /// before, which must be [finished](Self::finish).
    ///
    /// # Errors
    /// The channel fails, or holds something else than records.
    pub fn next(&self) -> io::Result<Option<Run>> {
        let mut input = lock(&self.input);
        input.skip()?;
        let data = loop {
            match input.take()? {
                Came::Data(data) => break data,
                Came::End => lock(&self.output).put(Kind::End, &[])?,
                Came::Nothing => return Ok(None),
            }
        };
        input.run += 1;
        let run = input.run;
        (input.is_open, input.data, input.given) = (true, data, 0);
        lock(&self.output).run = Some(run);
        let (reading, writing) = (Arc::clone(&self.input), Arc::clone(&self.output));
        Ok(Some(Run {
            input: Lane::of(move |buffer| lock(&reading).read(run, buffer)),
            output: Outlet::of(move |action| lock(&writing).act(run, action)),
        }))
    }

    /// Ends the run in the direction to the client. What its threads still write is dropped.
    ///
    /// # Errors
    /// The channel fails.
    pub fn finish(&self) -> io::Result<()> {
        let mut output = lock(&self.output);
        output.run = None;
        output.put(Kind::End, &[])
    }
}

impl Input {
    /// Reads for the run of this number.
    fn read(&mut self, run: u64, buffer: &mut [u8]) -> io::Result<usize> {
        // A reader that a run left behind must not take the bytes of the next one.
        while self.run == run && self.is_open {
            let rest = self.data.get(self.given..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            if let (Some(taken), Some(room)) = (rest.get(..count), buffer.get_mut(..count))
                && count > 0
            {
                room.copy_from_slice(taken);
                self.given += count;
                return Ok(count);
            }
            if buffer.is_empty() {
                break;
            }
            match self.take()? {
                Came::Data(data) => (self.data, self.given) = (data, 0),
                Came::End => self.end(),
                Came::Nothing => break,
            }
        }
        Ok(0)
    }

    /// Skips what is left of a run.
    fn skip(&mut self) -> io::Result<()> {
        while self.is_open {
            match self.take()? {
                Came::Data(_) => {}
                Came::End | Came::Nothing => self.end(),
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.is_open = false;
        (self.data, self.given) = (Vec::new(), 0);
    }

    /// Waits for the next record that belongs to a run, and handles those before it.
    fn take(&mut self) -> io::Result<Came> {
        loop {
            let Some(record) = self.record()? else { return Ok(Came::Nothing) };
            match record.kind {
                Kind::Data => return Ok(Came::Data(record.payload)),
                Kind::End => return Ok(Came::End),
                Kind::Ping => lock(&self.output).put(Kind::Pong, &record.payload)?,
                Kind::Warm => match record.request() {
                    Ok(request) => (self.warm)(request),
                    Err(error) => debug!("warm ok=false why={error}"),
                },
                Kind::Pong => return Err(malformed("a record in the wrong direction")),
            }
        }
    }

    /// Waits for the next record; `None` at the end of the channel.
    fn record(&mut self) -> io::Result<Option<Record>> {
        loop {
            let mut rest = self.bytes.get(self.at..).unwrap_or_default();
            let record = self.decoder.next(&mut rest).map_err(malformed)?;
            self.at = self.bytes.len() - rest.len();
            if record.is_some() {
                return Ok(record);
            }
            // Between two records the buffer goes: an idle agent stays small.
            self.bytes.clear();
            self.bytes.shrink_to(READ_BYTES);
            self.bytes.resize(READ_BYTES, 0);
            self.at = 0;
            let count = loop {
                match self.channel.read(&mut self.bytes) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            self.bytes.truncate(count);
            if count == 0 {
                let is_whole = self.decoder.is_between_records();
                return if is_whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

impl Output {
    /// Acts for a run. What it writes last, without a flush, leaves together with its `End`.
    fn act(&mut self, run: u64, action: Action<'_>) -> io::Result<()> {
        match action {
            _ if self.run != Some(run) => Err(io::ErrorKind::BrokenPipe.into()),
            Action::Write(bytes) => self.channel.write_all(&encode_data(bytes)),
            Action::Flush => self.channel.flush(),
        }
    }

    fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.channel.write_all(&encode(kind, payload).map_err(malformed)?)?;
        self.channel.flush()
    }
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds a lock can panic half-way through a change.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::wire::hello::{Options, Role};
    use crate::wire::keep::encode_warm;

    /// A channel that holds these records, and what is written to it.
    fn runs(records: &[Vec<u8>]) -> (Runs, Arc<Mutex<Vec<u8>>>) {
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let sink = Arc::clone(&written);
        let output = Outlet::of(move |action| {
            if let Action::Write(bytes) = action {
                lock(&sink).extend_from_slice(bytes);
            }
            Ok(())
        });
        (Runs::new(Lane::new(io::Cursor::new(records.concat())), output, drop), written)
    }

    fn end() -> Vec<u8> {
        encode(Kind::End, &[]).unwrap()
    }

    fn text(lane: &mut Lane) -> String {
        let mut text = String::new();
        lane.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn runs_follow_each_other_and_each_end_has_an_answer() {
        let ping = encode(Kind::Ping, b"7").unwrap();
        let one = [encode_data(b"on"), ping.clone(), encode_data(b"e"), end()];
        let two = [end(), ping, encode_data(b"two"), end()];
        let (runs, written) = runs(&[one.concat(), two.concat()]);
        let mut first = runs.next().unwrap().unwrap();
        assert_eq!(text(&mut first.input), "one");
        first.output.write_all(b"1").unwrap();
        runs.finish().unwrap();
        let mut second = runs.next().unwrap().unwrap();
        assert_eq!(text(&mut second.input), "two");
        assert_eq!(first.output.write_all(b"late").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(text(&mut first.input), "", "the reader of the first run is left behind");
        second.output.write_all(b"2").unwrap();
        runs.finish().unwrap();
        assert!(runs.next().unwrap().is_none());
        let pong = encode(Kind::Pong, b"7").unwrap();
        let due = [pong.clone(), encode_data(b"1"), end(), end(), pong, encode_data(b"2"), end()];
        assert_eq!(*lock(&written), due.concat());
    }

    #[test]
    fn answers_without_a_flush_leave_in_one_write_with_the_end() {
        let writes: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let sink = Arc::clone(&writes);
        let output = Outlet::of(move |action| {
            if let Action::Write(bytes) = action {
                lock(&sink).push(bytes.to_vec());
            }
            Ok(())
        });
        let input = [encode_data(b"1"), end(), encode_data(b"2"), end()].concat();
        let runs = Runs::new(Lane::new(io::Cursor::new(input)), output, drop);
        let mut run = runs.next().unwrap().unwrap();
        run.output.write_all(b"hello").unwrap();
        run.output.write_all(b"done").unwrap();
        drop(run);
        runs.finish().unwrap();
        let mut run = runs.next().unwrap().unwrap();
        run.output.write_all(b"hello").unwrap();
        run.output.flush().unwrap();
        run.output.write_all(b"done").unwrap();
        runs.finish().unwrap();
        let [hello, done] = [b"hello".as_slice(), b"done"].map(encode_data);
        let one = [&hello[..], &done, &end()].concat();
        assert_eq!(*lock(&writes), [one, hello, [done, end()].concat()]);
    }

    #[test]
    fn run_that_ends_early_leaves_nothing_to_the_next_one() {
        let (runs, _) = runs(&[encode_data(b"one"), encode_data(b"more"), end(), encode_data(b"two"), end()]);
        let mut first = runs.next().unwrap().unwrap();
        first.input.read_exact(&mut [0]).unwrap();
        runs.finish().unwrap();
        assert_eq!(text(&mut runs.next().unwrap().unwrap().input), "two");
    }

    #[test]
    fn reader_left_behind_gives_way_at_the_clients_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        let runs = Runs::new(Lane::new(reader), Outlet::new(io::sink()), drop);
        writer.write_all(&encode_data(b"one")).unwrap();
        let mut first = runs.next().unwrap().unwrap();
        let left = thread::spawn(move || text(&mut first.input));
        runs.finish().unwrap();
        writer.write_all(&[encode_data(b"rest"), end(), encode_data(b"two"), end()].concat()).unwrap();
        assert_eq!(text(&mut runs.next().unwrap().unwrap().input), "two");
        assert!("onerest".starts_with(&left.join().unwrap()));
    }

    #[test]
    fn channel_without_records_is_an_error() {
        for bytes in [b"\0KSYNC\r\n".to_vec(), encode(Kind::Pong, &[]).unwrap(), vec![0, 0, 0, 9, 1]] {
            let (runs, _) = runs(&[encode_data(b"x"), bytes.clone()]);
            let mut run = runs.next().unwrap().unwrap();
            assert!(run.input.read_to_end(&mut Vec::new()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn likely_request_is_passed_on_and_garbage_in_its_place_is_not() {
        let request = Request {
            role: Role::Sender,
            path: b"site".to_vec(),
            further: Vec::new(),
            options: Options::default(),
            baseline_key: None,
            watch: None,
            timeout_ms: 0,
        };
        let records = [encode(Kind::Warm, b"\xff").unwrap(), encode_warm(&request).unwrap()].concat();
        let (warmed, seen) = channel();
        let warm = move |request| warmed.send(request).unwrap();
        let runs = Runs::new(Lane::new(io::Cursor::new(records)), Outlet::new(io::sink()), warm);
        assert!(runs.next().unwrap().is_none());
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [request]);
    }
}
