//! Messages about deletions that wait for consent, and the question for consent.

use std::io::{self, IsTerminal, Write};

use ksync::monitor::{Braked, Reason};
use ksync::sync::Job;
use ksync::sync::endpoint::Endpoint;

use crate::list;
use crate::request::Show;
use crate::units::{count, counted};

/// The kind of run in which deletions wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum In {
    /// A dry run.
    DryRun,
    /// A run that ends.
    Run,
    /// A watch.
    Watch,
}

/// The messages of one job about waiting deletions.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    source: Endpoint,
    destination: Endpoint,
    of: In,
}

impl Words {
    /// The messages of this job; `watches` is true for a watch.
    pub(crate) fn new(job: &Job, watches: bool) -> Self {
        let of = match (watches, job.options.dry_run) {
            (true, _) => In::Watch,
            (false, true) => In::DryRun,
            (false, false) => In::Run,
        };
        Self { source: job.source.clone(), destination: job.destination.clone(), of }
    }

    /// The kind of run in which the deletions wait.
    pub(crate) fn of(&self) -> In {
        self.of
    }

    /// The event and its reason, in a sentence.
    pub(crate) fn what(&self, braked: &Braked) -> String {
        let (source, destination, going) = (&self.source, &self.destination, entries(braked.going));
        let what = match self.of {
            In::DryRun => "the run would delete nothing and end with exit code 25",
            In::Run | In::Watch => "nothing was deleted",
        };
        let cause = match braked.reason {
            Reason::Protected => format!("{destination} is a home or a directory of the system"),
            Reason::Limit { limit } => format!("--max-delete {limit} allows less"),
            Reason::OtherMachine => "the session's VM is another one than at the last sync".to_owned(),
            Reason::Emptied => format!("{source} is empty and was not at the last sync"),
            Reason::OtherFilesystem => {
                format!("{source} is on another filesystem than at the last sync: is it mounted?")
            }
            Reason::Foreign => {
                format!("{destination} was never a copy of {source} made by ksync, and holds more than that")
            }
            Reason::Most => format!("more than half of the {} of {destination}", entries(braked.held)),
        };
        match braked.reason {
            Reason::Most => format!("{what}: {going} would go, {cause}"),
            _ => format!("{what}: {cause}; {going} would go"),
        }
    }

    /// The hint: how to consent.
    pub(crate) fn hint(&self, braked: &Braked) -> String {
        let consent = match braked.reason {
            Reason::Protected => {
                let path = ksync::tree::path::escape(self.destination.path()).into_owned();
                let path = if path.is_empty() { ".".to_owned() } else { path };
                return format!(
                    "Choose another DEST; where it is meant, --force-delete-in {path} deletes there."
                );
            }
            Reason::Limit { .. } => {
                format!("--max-delete {} or --yes deletes them.", count(braked.going).replace(',', ""))
            }
            _ => "--yes deletes them.".to_owned(),
        };
        match self.of {
            In::Watch => format!("If that is meant, run ksync --delete beside the watch: {consent}"),
            In::DryRun | In::Run => format!("If that is meant, {consent}"),
        }
    }

    /// The whole message for a terminal.
    pub(crate) fn text(&self, braked: &Braked) -> String {
        let mut lines = vec![format!("ksync: {}", list::visible(&self.what(braked)))];
        lines
            .extend(braked.head.iter().map(|doomed| format!("  {}", list::shown(doomed.what, &doomed.path))));
        let more = braked.going.saturating_sub(braked.head.len() as u64);
        if more > 0 {
            lines.push(format!("  and {} more", count(more)));
        }
        lines.push(format!("  hint: {}", list::visible(&self.hint(braked))));
        lines.join("\n")
    }
}

/// True if a user at the terminal may be asked for consent.
pub(crate) fn can_ask(braked: &Braked, show: Show) -> bool {
    // Deletions in a protected directory need its name on the command line.
    braked.reason != Reason::Protected
        && !show.json
        && !show.quiet
        && io::stdin().is_terminal()
        && io::stderr().is_terminal()
}

/// Asks for consent, and waits for the answer.
pub(crate) fn ask(braked: &Braked) -> bool {
    let _ = write!(io::stderr(), "Delete {}? [y/N] ", entries(braked.going));
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok_and(|_| is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn entries(number: u64) -> String {
    counted(number, "entry", "entries")
}

#[cfg(test)]
mod tests {
    use ksync::monitor::{Doomed, What};
    use ksync::sync::ConnectOptions;
    use ksync::wire::hello::Options;

    use super::*;

    fn words(destination: &str, of: In) -> Words {
        let job = Job {
            source: Endpoint::parse("./src".as_ref()).unwrap(),
            further: Vec::new(),
            destination: Endpoint::parse(destination.as_ref()).unwrap(),
            options: Options { dry_run: of == In::DryRun, ..Options::default() },
            connect_options: ConnectOptions::new(ksync::agent(), ksync::bridge()),
            verifies: false,
        };
        Words::new(&job, of == In::Watch)
    }

    fn braked(reason: Reason) -> Braked {
        let head = vec![
            Doomed { what: What::Directory, path: b"a".to_vec() },
            Doomed { what: What::File, path: b"a/\x1b[2J".to_vec() },
        ];
        Braked { reason, going: 1300, held: 2000, head }
    }

    #[test]
    fn waiting_deletions_are_reported_with_a_hint() {
        assert_eq!(
            words("dst", In::Run).text(&braked(Reason::Emptied)),
            "ksync: nothing was deleted: ./src is empty and was not at the last sync; 1,300 entries would go\n\
             \x20 a/\n  a/\\u{1b}[2J\n  and 1,298 more\n  hint: If that is meant, --yes deletes them."
        );
    }

    #[test]
    fn each_reason_has_its_own_text() {
        for (reason, part) in [
            (Reason::Protected, "sandbox:. is a home or a directory of the system; 1,300 entries"),
            (Reason::Limit { limit: 5 }, "--max-delete 5 allows less"),
            (Reason::OtherMachine, "another one than at the last sync"),
            (Reason::OtherFilesystem, "on another filesystem"),
            (Reason::Foreign, "was never a copy of ./src made by ksync"),
            (Reason::Most, "1,300 entries would go, more than half of the 2,000 entries of sandbox:."),
        ] {
            let text = words("sandbox:.", In::Run).text(&braked(reason));
            assert!(text.contains(part), "{text}");
        }
        let hint = words("sandbox:.", In::Run).hint(&braked(Reason::Protected));
        assert!(hint.contains("--force-delete-in ."), "{hint}");
        let dry = words("dst", In::DryRun).what(&braked(Reason::Most));
        assert!(dry.starts_with("the run would delete nothing and end with exit code 25: "), "{dry}");
    }

    #[test]
    fn only_a_yes_counts_as_consent() {
        for (answer, expected) in
            [("y\n", true), ("YES\n", true), ("\n", false), ("", false), ("n", false), ("yeah", false)]
        {
            assert_eq!(is_yes(answer), expected, "{answer}");
        }
    }
}
