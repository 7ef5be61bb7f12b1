//! The results, as text for people and as JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::contest::{Heat, Outcome, Row};
use crate::lab::figures::bytes;

/// A heat as a table, the fastest row first.
pub(crate) fn of_heat(heat: &Heat) -> String {
    let mut text = format!(
        "\n{} ({}), {}, {}: {}\n",
        heat.case.name,
        heat.case.about,
        heat.direction.name(),
        heat.link.name,
        heat.link.about,
    );
    if let Some(change) = &heat.change {
        let _ = writeln!(text, "  {change}");
    }
    if let Some(limit) = heat.limit {
        let _ = writeln!(text, "  the link's own limit: {:.2} s", limit.as_secs_f64());
    }
    let columns = ["", "wall s", "min-max", "of best", "up", "down", "RSS here", "RSS there"];
    line(&mut text, columns.map(str::to_owned));
    let best = heat.best_peer().and_then(Row::wall);
    let mut rows: Vec<&Row> = heat.rows.iter().collect();
    rows.sort_by(|one, other| {
        let wall = |row: &Row| row.wall().unwrap_or(f64::INFINITY);
        wall(one).total_cmp(&wall(other))
    });
    for row in rows {
        match &row.error {
            Some(error) => {
                let _ = writeln!(text, "  {:<14} ERROR: {error}", row.contestant.name);
            }
            None => line(&mut text, cells(row, best)),
        }
    }
    text.push_str(&first_contact(heat));
    text
}

fn line(text: &mut String, cells: [String; 8]) {
    let [name, wall, spread, ratio, up, down, here, there] = cells;
    let _ = writeln!(
        text,
        "  {name:<14} {wall:>8} {spread:>15} {ratio:>8} {up:>10} {down:>10} {here:>9} {there:>9}"
    );
}

fn cells(row: &Row, best: Option<f64>) -> [String; 8] {
    let shown = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    };
    // Zero means a process too short to be sampled, or work done within sshd.
    let size = |what: &dyn Fn(&Outcome) -> u64| {
        row.median(what).filter(|&count| count > 0).map_or("-".to_owned(), bytes)
    };
    let walls = || row.outcomes.iter().map(|outcome| outcome.wall.as_secs_f64());
    let (least, most) = (walls().fold(f64::INFINITY, f64::min), walls().fold(0.0, f64::max));
    [
        row.contestant.name.to_owned(),
        shown(row.wall(), 3),
        format!("{least:.3}-{most:.3}"),
        shown(row.wall().zip(best).map(|(wall, best)| wall / best), 2),
        size(&|outcome| outcome.carried.up_bytes),
        size(&|outcome| outcome.carried.down_bytes),
        size(&|outcome| outcome.peaks.client),
        size(&|outcome| outcome.peaks.far),
    ]
}

/// Cost of the first contact, if it was measured.
fn first_contact(heat: &Heat) -> String {
    let find =
        |anew| heat.rows.iter().find(|row| row.contestant.is_ksync() && row.contestant.is_anew() == anew);
    let (Some(anew), Some(warm)) = (find(true), find(false)) else { return String::new() };
    let (Some(anew_wall), Some(warm_wall)) = (anew.wall(), warm.wall()) else { return String::new() };
    let wire = |row: &Row| row.median(|outcome| outcome.carried.bytes());
    let extra = anew_wall - warm_wall;
    let more = wire(anew).unwrap_or(0).saturating_sub(wire(warm).unwrap_or(0));
    let mut text = format!("  first contact costs {extra:.3} s and {} more on the wire", bytes(more));
    let trip = heat.link.round_trip.as_secs_f64();
    if let Some(rate) = heat.link.up_rate {
        let carrying = more as f64 * 8.0 / rate as f64;
        text += &format!(": {carrying:.3} s for these and {:.1} round trips", (extra - carrying) / trip);
    }
    text + "\n"
}

/// All heats with every single run.
pub(crate) fn json(heats: &[Heat], about: &[(String, String)]) -> String {
    let about: serde_json::Map<String, Value> =
        about.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let heats: Vec<Value> = heats.iter().map(heat_json).collect();
    format!("{:#}\n", json!({ "about": about, "heats": heats }))
}

fn heat_json(heat: &Heat) -> Value {
    let run = |outcome: &Outcome| {
        json!({
            "wall_s": outcome.wall.as_secs_f64(),
            "up_bytes": outcome.carried.up_bytes,
            "down_bytes": outcome.carried.down_bytes,
            "connections": outcome.carried.connections,
            "client_rss_bytes": outcome.peaks.client,
            "far_rss_bytes": outcome.peaks.far,
        })
    };
    let row = |row: &Row| {
        json!({
            "contestant": row.contestant.name,
            "command": row.contestant.about,
            "error": row.error,
            "wall_s": row.wall(),
            "runs": row.outcomes.iter().map(run).collect::<Vec<_>>(),
        })
    };
    json!({
        "case": heat.case.name,
        "about": heat.case.about,
        "change": heat.change,
        "way": heat.direction.name(),
        "link": heat.link.name,
        "loss": heat.link.loss,
        "real_tcp": heat.link.is_real_tcp,
        "repeats": heat.case.repeats,
        "round_trip_s": heat.link.round_trip.as_secs_f64(),
        "limit_s": heat.limit.map(|limit| limit.as_secs_f64()),
        "rows": heat.rows.iter().map(row).collect::<Vec<_>>(),
    })
}
