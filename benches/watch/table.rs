//! The results, as text for people and as JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::figures::{bytes, median};
use crate::lab::machine::Machine;
use crate::subjects::Subject;
use crate::watchers::Watcher;

/// Measurements of one watcher.
pub(crate) struct Row {
    pub(crate) watcher: &'static Watcher,
    pub(crate) walls: Vec<Duration>,
    /// Bytes in both directions, one number per wall time.
    pub(crate) bytes: Vec<u64>,
    /// Reason for missing numbers.
    pub(crate) error: Option<String>,
}

impl Row {
    pub(crate) fn of(watcher: &'static Watcher) -> Row {
        Row { watcher, walls: Vec::new(), bytes: Vec::new(), error: None }
    }

    /// Records the last measurement.
    pub(crate) fn note(&mut self, wall: Duration, machine: &Machine) {
        let carried = machine.link.carried();
        self.walls.push(wall);
        self.bytes.push(carried.bytes());
    }

    /// Percentile of the wall times, in milliseconds.
    pub(crate) fn percentile(&self, hundredths: usize) -> Option<f64> {
        let mut walls = self.walls.clone();
        walls.sort();
        // Between two values the higher one counts.
        let at = (walls.len() * hundredths / 100).min(walls.len().saturating_sub(1));
        walls.get(at).filter(|_| self.error.is_none()).map(|wall| wall.as_secs_f64() * 1000.0)
    }

    pub(crate) fn median_bytes(&self) -> Option<u64> {
        median(self.bytes.iter().copied()).filter(|_| self.error.is_none())
    }
}

/// A single number, with its limit.
pub(crate) struct Fact {
    what: String,
    value: f64,
    unit: &'static str,
    asked: Option<f64>,
}

impl Fact {
    pub(crate) fn new(what: &str, value: f64, unit: &'static str) -> Fact {
        Fact { what: what.to_owned(), value, unit, asked: None }
    }

    pub(crate) fn asked(self, most: f64) -> Fact {
        Fact { asked: Some(most), ..self }
    }

    fn verdict(&self) -> Option<bool> {
        self.asked.map(|asked| self.value <= asked)
    }
}

/// One subject with its results.
pub(crate) struct Heat {
    pub(crate) subject: &'static Subject,
    /// Description of the change.
    pub(crate) change: Option<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) facts: Vec<Fact>,
}

impl Heat {
    pub(crate) fn ksync(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.watcher.is_ksync())
    }

    /// Median of the fastest peer, in milliseconds.
    pub(crate) fn best_peer(&self) -> Option<f64> {
        let peers = self.rows.iter().filter(|row| !row.watcher.is_ksync());
        peers.filter_map(|row| row.percentile(50)).min_by(f64::total_cmp)
    }

    /// Reports if ksync succeeded, at any speed.
    pub(crate) fn is_sound(&self) -> bool {
        self.rows.iter().all(|row| row.error.is_none() || !row.watcher.is_ksync())
    }
}

/// A heat as a table, followed by its limits.
pub(crate) fn of_heat(heat: &Heat) -> String {
    let Subject { name, about, link, .. } = heat.subject;
    let mut text = format!("\n{name} ({about}), {link}\n");
    if let Some(change) = &heat.change {
        let _ = writeln!(text, "  {change}");
    }
    if !heat.rows.is_empty() {
        line(&mut text, ["", "n", "median ms", "p95 ms", "min-max", "bytes", "of best"].map(str::to_owned));
    }
    let best = heat.best_peer();
    for row in &heat.rows {
        match &row.error {
            Some(error) => {
                let _ = writeln!(text, "  {:<14} ERROR: {error}", row.watcher.name);
            }
            None => line(&mut text, cells(row, best)),
        }
    }
    for fact in &heat.facts {
        let asked = fact.asked.map(|asked| format!("   asked: at most {}", number(asked)));
        let verdict = fact.verdict().map(|is_met| if is_met { ", met" } else { ", MISSED" });
        let value = number(fact.value);
        let line = format!("  {:<24} {value:>9} {:<12}{}", fact.what, fact.unit, asked.unwrap_or_default());
        let _ = writeln!(text, "{}{}", line.trim_end(), verdict.unwrap_or_default());
    }
    text
}

fn number(value: f64) -> String {
    let digits = if value >= 100.0 || value == 0.0 { 0 } else { 2 };
    format!("{value:.digits$}")
}

fn line(text: &mut String, cells: [String; 7]) {
    let [name, count, median, high, spread, bytes, ratio] = cells;
    let _ =
        writeln!(text, "  {name:<14} {count:>4} {median:>10} {high:>10} {spread:>15} {bytes:>10} {ratio:>8}");
}

fn cells(row: &Row, best: Option<f64>) -> [String; 7] {
    let shown = |value: Option<f64>| value.map_or("-".to_owned(), number);
    let ratio = row.percentile(50).zip(best).map(|(wall, best)| wall / best);
    [
        row.watcher.name.to_owned(),
        row.walls.len().to_string(),
        shown(row.percentile(50)),
        shown(row.percentile(95)),
        format!("{}-{}", shown(row.percentile(0)), shown(row.percentile(100))),
        row.median_bytes().map_or("-".to_owned(), bytes),
        shown(ratio),
    ]
}

/// All heats with every single sample.
pub(crate) fn json(heats: &[Heat], about: &[(String, String)]) -> String {
    let about: serde_json::Map<String, Value> =
        about.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let row = |row: &Row| {
        json!({
            "watcher": row.watcher.name,
            "command": row.watcher.about,
            "error": row.error,
            "median_ms": row.percentile(50),
            "p95_ms": row.percentile(95),
            "median_bytes": row.median_bytes(),
            "walls_ms": row.walls.iter().map(|wall| wall.as_secs_f64() * 1000.0).collect::<Vec<_>>(),
            "bytes": row.bytes,
        })
    };
    let fact = |fact: &Fact| {
        json!({
            "what": fact.what, "value": fact.value, "unit": fact.unit,
            "asked_at_most": fact.asked, "is_met": fact.verdict(),
        })
    };
    let heat = |heat: &Heat| {
        json!({
            "subject": heat.subject.name,
            "about": heat.subject.about,
            "link": heat.subject.link,
            "change": heat.change,
            "rows": heat.rows.iter().map(row).collect::<Vec<_>>(),
            "facts": heat.facts.iter().map(fact).collect::<Vec<_>>(),
        })
    };
    let heats: Vec<Value> = heats.iter().map(heat).collect();
    format!("{:#}\n", json!({ "about": about, "heats": heats }))
}
