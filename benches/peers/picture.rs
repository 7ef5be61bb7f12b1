//! The table as a picture. Each case and link has a bar for ksync, one for the best peer, and a
//! mark for the link's lower bound. Each pair has its own scale, because only ratios can be
//! compared.

use std::fmt::Write;

use crate::contest::{Heat, Row};
use crate::lab::link::LINKS;

const WIDTH: usize = 840;
const MARGIN: usize = 20;
/// Position of the bars, and length of the longest bar of a pair.
const BARS_X: usize = 130;
const BARS_WIDTH: f64 = 430.0;
const RATIO_X: usize = WIDTH - MARGIN;
const BAR_HEIGHT: usize = 11;
const PAIR_HEIGHT: usize = 34;

/// Colours of medium lightness, readable on white and on black. An image does not know the colour
/// of its page, and not every viewer supports a dark mode.
const STYLE: &str = "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#6e7681}\
    .title{font-size:16px;font-weight:600}.case{font-size:13px;font-weight:600}.end{text-anchor:end}\
    .ksync{fill:#2f81f7}.peer{fill:#a0a8b0}.limit{stroke:#d97706;stroke-width:2}\
    .won{font-weight:600;fill:#2f81f7}.lost{fill:#e5484d;font-weight:600}";

/// Draws all heats with at least one peer.
pub(crate) fn draw(heats: &[Heat], about: &[(String, String)]) -> String {
    let mut canvas = Canvas { body: String::new(), y: MARGIN + 10 };
    canvas.head();
    let mut case = None;
    for heat in heats.iter().filter(|heat| heat.best_peer().is_some()) {
        let title = format!("{}: {}", heat.case.name, heat.case.about);
        if case.as_ref() != Some(&title) {
            canvas.y += 12;
            canvas.text(MARGIN, "case", &title);
            canvas.y += 10;
            case = Some(title);
        }
        canvas.pair(heat);
    }
    canvas.caption(heats, about);
    canvas.finish()
}

struct Canvas {
    body: String,
    /// Position of the next element.
    y: usize,
}

impl Canvas {
    fn text(&mut self, x: usize, class: &str, text: &str) {
        let _ = writeln!(
            self.body,
            "<text x=\"{x}\" y=\"{}\" class=\"{class}\">{}</text>",
            self.y,
            escaped(text)
        );
    }

    /// Draws a bar of `length`, with its upper edge `below` the current position.
    fn bar(&mut self, below: usize, length: f64, class: &str) {
        let y = self.y + below;
        let _ = writeln!(
            self.body,
            "<rect x=\"{BARS_X}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" class=\"{class}\"/>",
            length.max(1.0)
        );
    }

    fn mark(&mut self, x: f64, height: usize) {
        let (from, to) = (self.y, self.y + height);
        let _ = writeln!(
            self.body,
            "<line x1=\"{x:.1}\" y1=\"{from}\" x2=\"{x:.1}\" y2=\"{to}\" class=\"limit\"/>"
        );
    }

    fn head(&mut self) {
        self.text(MARGIN, "title", "ksync and the best peer over the same tunnel: median wall time, seconds");
        self.y += 12;
        let y = self.y;
        for (x, class, text) in [(MARGIN, "ksync", "ksync"), (110, "peer", "best peer")] {
            let _ = writeln!(
                self.body,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{BAR_HEIGHT}\" height=\"{BAR_HEIGHT}\" class=\"{class}\"/>"
            );
            self.y = y + 10;
            self.text(x + 17, "faint", text);
            self.y = y;
        }
        self.mark(220.0, BAR_HEIGHT);
        self.y = y + 10;
        self.text(
            230,
            "faint",
            "what the link takes without a kept connection: four round trips, and its rate",
        );
        self.text(RATIO_X, "faint end", "ksync / best peer");
        self.y += 8;
    }

    /// Draws ksync and the best peer, one below the other.
    fn pair(&mut self, heat: &Heat) {
        let walls =
            (heat.ksync().and_then(Row::wall), heat.best_peer().and_then(|row| Some((row, row.wall()?))));
        let (ksync, Some((peer, peer_wall))) = walls else { return };
        let longest = ksync.unwrap_or(0.0).max(peer_wall);
        let length = |wall: f64| wall / longest * BARS_WIDTH;
        if let Some(wall) = ksync {
            self.bar(0, length(wall), "ksync");
        }
        self.bar(BAR_HEIGHT + 2, length(peer_wall), "peer");
        if let Some(limit) = heat.limit.map(|limit| limit.as_secs_f64()).filter(|limit| *limit <= longest) {
            self.mark(BARS_X as f64 + length(limit), 2 * BAR_HEIGHT + 2);
        }
        self.labels(heat, ksync, peer, peer_wall, length);
        self.y += PAIR_HEIGHT;
    }

    fn labels(
        &mut self,
        heat: &Heat,
        ksync: Option<f64>,
        peer: &Row,
        peer_wall: f64,
        length: impl Fn(f64) -> f64,
    ) {
        let top = self.y;
        let behind = |wall: f64| BARS_X + 6 + length(wall) as usize;
        self.y = top + 10;
        match ksync {
            Some(wall) => self.text(behind(wall), "", &format!("{wall:.2}")),
            None => self.text(BARS_X, "lost", "ksync: no result that verifies"),
        }
        self.y = top + 23;
        self.text(behind(peer_wall), "faint", &format!("{peer_wall:.2} {}", peer.contestant.name));
        self.y = top + 16;
        self.text(MARGIN + 10, "faint", &format!("{} {}", heat.link.name, heat.direction.name()));
        if let Some(wall) = ksync {
            let class = if wall < peer_wall { "won end" } else { "lost end" };
            self.text(RATIO_X, class, &format!("{:.2}", wall / peer_wall));
        }
        self.y = top;
    }

    /// Writes the conditions of the measurement, one per line.
    fn caption(&mut self, heats: &[Heat], about: &[(String, String)]) {
        self.y += 14;
        for (name, value) in about {
            self.text(MARGIN, "faint", &format!("{name}: {value}"));
            self.y += 16;
        }
        for link in LINKS.iter().filter(|link| heats.iter().any(|heat| heat.link.name == link.name)) {
            self.text(MARGIN, "faint", &format!("{}: {}", link.name, link.about));
            self.y += 16;
        }
    }

    fn finish(self) -> String {
        let height = self.y + MARGIN;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-label=\"ksync beside its best peer\">\n\
             <style>{STYLE}</style>\n{}</svg>\n",
            self.body
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
