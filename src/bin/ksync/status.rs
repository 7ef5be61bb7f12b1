//! The status line: the last line of a terminal, which is drawn again and again.
//!
//! indicatif draws it, on a terminal of our own. After each drawing the cursor returns to the
//! beginning of the line. A terminal that becomes narrower cuts the line or wraps it. Either way
//! all of it is behind the cursor, where the next drawing erases it.

use std::io::{self, Write, stderr};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use rustix::termios::tcgetwinsize;

/// Width of a terminal that does not tell it.
const COLUMNS: u16 = 80;

/// Drawings per second that indicatif lets through: more than anybody asks for.
const DRAWINGS_MAX: u8 = 100;

/// Erases everything from the cursor to the end of the screen.
const ERASE: &str = "\x1b[J";

/// A line that is longer than the terminal is wide must not wrap: the terminal may have become
/// narrower a moment ago.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Shows that the program is alive.
const SPINNER: [&str; 4] = ["|", "/", "-", "\\"];

/// A status line on stderr.
#[derive(Debug, Default)]
pub(crate) struct StatusLine {
    /// The line on the screen, if there is one.
    bar: Option<ProgressBar>,
    turns: usize,
}

impl StatusLine {
    /// Draws the line, which may be this many columns wide.
    pub(crate) fn draw(&mut self, line: impl FnOnce(usize) -> String) {
        // The last column stays free: a cursor behind it is in different places on different
        // terminals.
        let line = line(usize::from(columns_of_terminal()) - 1);
        let bar = self.bar.get_or_insert_with(|| {
            let target = ProgressDrawTarget::term_like_with_hz(Box::new(LastLine::default()), DRAWINGS_MAX);
            let style = ProgressStyle::with_template("{msg}");
            ProgressBar::with_draw_target(None, target)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        bar.set_message(line);
    }

    /// Draws a text behind a spinner.
    pub(crate) fn spin(&mut self, text: &str) {
        let spinner = SPINNER.get(self.turns % SPINNER.len()).unwrap_or(&" ");
        self.turns += 1;
        self.draw(|width| cut(&format!("{spinner} {text}"), width));
    }

    /// True if the line is on the screen.
    pub(crate) fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// Prints something above the line.
    pub(crate) fn above(&mut self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Removes the line.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn columns_of_terminal() -> u16 {
    tcgetwinsize(stderr()).ok().map(|size| size.ws_col).filter(|&columns| columns > 0).unwrap_or(COLUMNS)
}

/// The last line of the terminal behind stderr, as indicatif sees it: a drawing at a time, with the
/// cursor at the beginning before and after.
#[derive(Debug, Default)]
struct LastLine {
    drawing: Mutex<String>,
}

impl LastLine {
    fn add(&self, text: &str) -> io::Result<()> {
        self.drawing.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
        Ok(())
    }

    /// Takes the drawing, with what leads the cursor back.
    fn take(&self) -> String {
        let line = std::mem::take(&mut *self.drawing.lock().unwrap_or_else(PoisonError::into_inner));
        // indicatif fills the line up with blanks.
        format!("\r{NO_WRAP}{}{WRAP}{ERASE}\r", line.trim_end())
    }
}

impl TermLike for LastLine {
    fn width(&self) -> u16 {
        columns_of_terminal()
    }

    fn move_cursor_up(&self, _lines: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _lines: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _columns: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _columns: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    /// A drawing erases the line before anyway.
    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    /// Writes all at once, so that other output does not come in between.
    fn flush(&self) -> io::Result<()> {
        let mut stderr = stderr().lock();
        stderr.write_all(self.take().as_bytes())?;
        stderr.flush()
    }
}

/// Columns of a text on a terminal. A character that is not ASCII counts as two: it may be as wide.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(letter: char) -> usize {
    if letter.is_ascii() { 1 } else { 2 }
}

/// The beginning of a text, as much as fits.
pub(crate) fn cut(text: &str, width: usize) -> String {
    let mut used = 0;
    let fits = |letter: &char| {
        used += columns(*letter);
        used <= width
    };
    text.chars().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_the_width_of_its_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!((cut("äöü", 5).as_str(), width("äöü")), ("äö", 6));
    }

    #[test]
    fn drawn_line_leaves_the_cursor_at_its_beginning() {
        let line = LastLine::default();
        line.write_str("\r").unwrap();
        line.write_str("x y").unwrap();
        line.write_str("      ").unwrap();
        assert_eq!(line.take(), "\r\x1b[?7l\rx y\x1b[?7h\x1b[J\r");
        assert_eq!(line.take(), "\r\x1b[?7l\x1b[?7h\x1b[J\r");
    }
}
