//! Output at the end of a run: the summary line, `--stats`, errors, and the exit code.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use ksync::engine::Summary;
use ksync::exchange::{chain, plain};
use ksync::kernel::KernelError;
use ksync::monitor::ProblemKind;
use ksync::sync::{Report, SyncError};
use ksync::wire::message::Tally;

use crate::list::visible;
use crate::units::{bytes, count, counted, span};

/// Exit code: wrong usage.
pub(crate) const USAGE: u8 = 1;
/// Exit code: SOURCE cannot be read.
pub(crate) const SELECTION: u8 = 3;
/// Exit code: something could not be started.
pub(crate) const NOT_STARTED: u8 = 5;
/// Exit code: a file could not be written.
pub(crate) const FILE: u8 = 11;
/// Exit code: some entries failed.
pub(crate) const PARTIAL: u8 = 23;
/// Exit code: deletions wait for consent, and everything else is done.
pub(crate) const BRAKE: u8 = 25;
/// Exit code: a plan no longer fits.
pub(crate) const PLAN: u8 = 26;
/// Exit code: a timeout.
pub(crate) const TIMEOUT: u8 = 30;
/// Exit code: a verification found differences.
pub(crate) const VERIFICATION: u8 = 44;
/// Exit code: the command of `--exec` or `--on-change` failed.
pub(crate) const COMMAND: u8 = 47;
/// Exit code: ended by a signal.
pub(crate) const SIGNAL: u8 = 20;
/// Exit code: source files vanished, and nothing else failed.
const VANISHED: u8 = 24;

/// The direction of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To another machine.
    Up,
    /// From another machine.
    Down,
    /// On this machine.
    Local,
}

impl Direction {
    fn participle(self) -> &'static str {
        match self {
            Self::Up => "sent",
            Self::Down => "received",
            Self::Local => "copied",
        }
    }

    fn infinitive(self) -> &'static str {
        match self {
            Self::Up => "send",
            Self::Down => "receive",
            Self::Local => "copy",
        }
    }
}

/// An error of the command, for people: the event, its cause and a remedy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CliError {
    /// The exit code.
    pub(crate) exit: u8,
    what: String,
    hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(exit: u8, what: impl Into<String>) -> Self {
        Self { exit, what: plain(&what.into()), hint: None }
    }

    pub(crate) fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: USAGE, what: plain(&what.into()), hint: Some(hint.into()) }
    }

    pub(crate) fn with_hint(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hint = hint.map(Into::into);
        self
    }

    /// The event and its cause.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// The remedy.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The error and its causes on one line.
    pub(crate) fn caused(exit: u8, error: &dyn Error) -> Self {
        Self::new(exit, chain(error))
    }
}

impl From<SyncError> for CliError {
    fn from(error: SyncError) -> Self {
        Self::caused(error.exit_code(), &error).with_hint(error.hint())
    }
}

impl From<KernelError> for CliError {
    fn from(error: KernelError) -> Self {
        Self::caused(error.exit_code(), &error).with_hint(error.hint())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ksync: {}", visible(&self.what))?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {}", visible(hint)),
            None => Ok(()),
        }
    }
}

/// The summary line of a run or a dry run.
pub(crate) fn line(report: &Report, direction: Direction) -> String {
    let Summary { tally, problem_count, .. } = &report.summary;
    if report.verified {
        verified_line(report)
    } else if report.dry_run {
        dry_line(tally, *problem_count, direction)
    } else {
        done_line(tally, *problem_count, report.elapsed, direction)
    }
}

fn done_line(tally: &Tally, problems: u64, elapsed: Duration, direction: Direction) -> String {
    match changes(tally) {
        Some((_, kinds)) => format!(
            "{}, {}: {kinds}; {} {} in {}",
            counted(tally.entries, "entry", "entries"),
            bytes(tally.total_bytes),
            direction.participle(),
            bytes(tally.sent_bytes),
            span(elapsed)
        ),
        None if problems > 0 => format!(
            "nothing changed; {} {} in {}",
            direction.participle(),
            bytes(tally.sent_bytes),
            span(elapsed)
        ),
        None => unchanged(tally, problems),
    }
}

fn verified_line(report: &Report) -> String {
    let Summary { tally, problem_count, .. } = &report.summary;
    let all = format!("{}, {}", counted(tally.entries, "entry", "entries"), bytes(tally.total_bytes));
    let result = match report.differences() {
        0 if *problem_count > 0 => "no difference found, but not everything was compared".to_owned(),
        0 => "verified, no difference".to_owned(),
        differences => counted(differences, "difference", "differences"),
    };
    format!("{all}: {result}; both sides hashed in {}", span(report.elapsed))
}

/// The error of a verification that found differences.
pub(crate) fn differing(report: &Report, source: &str, destination: &str) -> Option<CliError> {
    let number = counted(report.differences(), "difference", "differences");
    let told = format!("{source} and {destination} differ: {number}");
    match exit_of(report) {
        VERIFICATION => Some(CliError::new(VERIFICATION, told).with_hint(Some(
            "If SOURCE is right, run ksync --checksum, which trusts no size and time; -n shows the changes.",
        ))),
        _ => None,
    }
}

fn dry_line(tally: &Tally, problems: u64, direction: Direction) -> String {
    match changes(tally) {
        // Only the transfer shows how much of the content the destination has already.
        Some((changed, kinds)) => format!(
            "would change {} ({kinds}) and {} up to {} of {}",
            counted(changed, "entry", "entries"),
            direction.infinitive(),
            bytes(tally.sent_bytes),
            bytes(tally.total_bytes)
        ),
        None => unchanged(tally, problems),
    }
}

fn unchanged(tally: &Tally, problems: u64) -> String {
    if problems > 0 {
        return "nothing changed".to_owned();
    }
    match tally.entries {
        0 => "nothing to do: the source is empty".to_owned(),
        1 => "nothing to do: 1 entry is in place".to_owned(),
        entries => format!("nothing to do: {} entries are in place", count(entries)),
    }
}

/// The number of changes, and the kinds; `None` if there are none.
fn changes(tally: &Tally) -> Option<(u64, String)> {
    let Tally { created, updated, adjusted, deleted, moved, .. } = *tally;
    let (created, deleted) = (created.saturating_sub(moved), deleted.saturating_sub(moved));
    let kinds = [
        (created, "new"),
        (updated, "changed"),
        (moved, "moved"),
        (adjusted, "adjusted"),
        (deleted, "deleted"),
    ];
    let present = kinds.iter().filter(|(number, _)| *number > 0);
    let text: Vec<_> = present.map(|(number, kind)| format!("{} {kind}", count(*number))).collect();
    (!text.is_empty()).then(|| (created + updated + moved + adjusted + deleted, text.join(", ")))
}

/// The output of `--stats`.
pub(crate) fn stats(report: &Report, direction: Direction) -> String {
    let agent = (direction != Direction::Local).then_some(report.agent_installed_bytes);
    stats_block(report, agent)
}

fn stats_block(report: &Report, agent: Option<u64>) -> String {
    let Report { summary: Summary { tally, traffic, .. }, wire_up_bytes, wire_down_bytes, elapsed, .. } =
        report;
    let exact = |number: u64| match number {
        0..1000 => bytes(number),
        _ => format!("{} ({} bytes)", bytes(number), count(number)),
    };
    let [up, down] = [*wire_up_bytes, *wire_down_bytes].map(exact);
    let wire_bytes = wire_up_bytes + wire_down_bytes;
    let (compressed, round_trips) = if wire_bytes == 0 {
        ("not needed".to_owned(), "none".to_owned())
    } else {
        (
            format!("{} to {}", bytes(traffic.raw_bytes), bytes(wire_bytes)),
            format!("{} to connect, {} to agree", report.connect_round_trips, traffic.waits),
        )
    };
    let agent = match agent {
        None => "not needed".to_owned(),
        Some(0) => "was there".to_owned(),
        Some(size) => format!("installed, {}", bytes(size)),
    };
    [
        ("entries", count(tally.entries)),
        ("total size", exact(tally.total_bytes)),
        ("sent content", exact(tally.sent_bytes)),
        ("matched content", exact(tally.matched_bytes)),
        ("moved files", count(tally.moved)),
        ("copied files", count(tally.copied)),
        ("wire up", up),
        ("wire down", down),
        ("compressed", compressed),
        ("round trips", round_trips),
        ("agent", agent),
        ("elapsed", span(*elapsed)),
    ]
    .map(|(name, value)| format!("{:<17}{value}\n", format!("{name}:")))
    .concat()
}

/// The exit code of a job that came to its end. A dry run itself stopped nothing; its report has
/// named the exit code of a real run.
pub(crate) fn exit_of(report: &Report) -> u8 {
    if report.command_status.is_some_and(|status| status != 0) {
        return COMMAND;
    }
    if report.verified && report.differences() > 0 {
        return VERIFICATION;
    }
    let braked = report.summary.braked.clone().filter(|_| !report.dry_run);
    exit_code(&Summary { braked, ..report.summary.clone() })
}

/// The exit code of a complete run. Braked deletions take precedence: each problem has been
/// reported already.
pub(crate) fn exit_code(summary: &Summary) -> u8 {
    if summary.braked.is_some() {
        return BRAKE;
    }
    let all_are_known = summary.problem_count == summary.problems.len() as u64;
    if summary.problem_count == 0 {
        0
    } else if all_are_known && summary.problems.iter().all(|problem| problem.kind == ProblemKind::Vanished) {
        VANISHED
    } else {
        PARTIAL
    }
}

#[cfg(test)]
mod tests {
    use ksync::engine::Traffic;
    use ksync::monitor::Problem;

    use super::*;

    const SECOND: Duration = Duration::from_millis(800);

    fn tally() -> Tally {
        Tally {
            entries: 1234,
            total_bytes: 3_412_345,
            created: 3,
            updated: 2,
            deleted: 7,
            sent_bytes: 1_200_000,
            ..Tally::default()
        }
    }

    #[test]
    fn the_summary_line_counts_changes_and_sent_bytes() {
        assert_eq!(
            done_line(&tally(), 0, SECOND, Direction::Up),
            "1,234 entries, 3.4 MB: 3 new, 2 changed, 7 deleted; sent 1.2 MB in 0.8 s"
        );
        let adjusted = Tally { entries: 1, total_bytes: 10, adjusted: 1, ..Tally::default() };
        assert_eq!(
            done_line(&adjusted, 0, SECOND, Direction::Down),
            "1 entry, 10 B: 1 adjusted; received 0 B in 0.8 s"
        );
    }

    #[test]
    fn a_dry_run_prints_would() {
        assert_eq!(
            dry_line(&tally(), 0, Direction::Up),
            "would change 12 entries (3 new, 2 changed, 7 deleted) and send up to 1.2 MB of 3.4 MB"
        );
    }

    #[test]
    fn the_summary_line_explains_why_nothing_changed() {
        let same = |entries| Tally { entries, ..Tally::default() };
        let told = |entries, problems| done_line(&same(entries), problems, SECOND, Direction::Up);
        assert_eq!(told(1234, 0), "nothing to do: 1,234 entries are in place");
        assert_eq!(told(1, 0), "nothing to do: 1 entry is in place");
        assert_eq!(told(0, 0), "nothing to do: the source is empty");
        assert_eq!(told(5, 1), "nothing changed; sent 0 B in 0.8 s");
        assert_eq!(dry_line(&same(2), 0, Direction::Up), "nothing to do: 2 entries are in place");
    }

    #[test]
    fn stats_print_every_number() {
        let report = Report {
            summary: Summary {
                tally: tally(),
                traffic: Traffic { raw_bytes: 4_000_000, waits: 2 },
                ..Summary::default()
            },
            elapsed: SECOND,
            wire_up_bytes: 1_250_000,
            wire_down_bytes: 980,
            connect_round_trips: 8,
            ..Report::default()
        };
        assert_eq!(
            stats_block(&report, Some(632_000)),
            "entries:         1,234\n\
             total size:      3.4 MB (3,412,345 bytes)\n\
             sent content:    1.2 MB (1,200,000 bytes)\n\
             matched content: 0 B\n\
             moved files:     0\n\
             copied files:    0\n\
             wire up:         1.2 MB (1,250,000 bytes)\n\
             wire down:       980 B\n\
             compressed:      4.0 MB to 1.3 MB\n\
             round trips:     8 to connect, 2 to agree\n\
             agent:           installed, 632.0 kB\n\
             elapsed:         0.8 s\n"
        );
        assert!(stats_block(&report, Some(0)).contains("agent:           was there\n"));
        let local = stats_block(&Report::default(), None);
        for line in
            ["agent:           not needed\n", "compressed:      not needed\n", "round trips:     none\n"]
        {
            assert!(local.contains(line), "{local}");
        }
    }

    #[test]
    fn problems_change_the_exit_code() {
        let ended = |problem_kinds: &[ProblemKind], more: u64| {
            let problem = |&kind| Problem { kind, path: Vec::new(), cause: String::new() };
            let problems: Vec<_> = problem_kinds.iter().map(problem).collect();
            let problem_count = problems.len() as u64 + more;
            exit_code(&Summary { problems, problem_count, ..Summary::default() })
        };
        assert_eq!(ended(&[], 0), 0);
        assert_eq!(ended(&[ProblemKind::Vanished, ProblemKind::Vanished], 0), 24);
        assert_eq!(ended(&[ProblemKind::Vanished, ProblemKind::Unreadable], 0), 23);
        assert_eq!(ended(&[ProblemKind::Vanished], 1), 23);
    }

    #[test]
    fn an_error_prints_its_causes_once_and_a_hint() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect to \x1b[2J")]
        struct Outer(#[from] Middle);
        #[derive(Debug, thiserror::Error)]
        #[error("opening the socket: {0}")]
        struct Middle(#[source] std::io::Error);

        let error = Outer(Middle(std::io::Error::other("no route")));
        let error = CliError::caused(10, &error).with_hint(Some("check the network"));
        assert_eq!(error.exit, 10);
        assert_eq!(
            error.to_string(),
            "ksync: cannot connect to \\u{1b}[2J: opening the socket: no route\n  hint: check the network"
        );
    }
}
