//! The screen of a terminal: a model of one that wraps its lines anew when it is resized.

/// The screen of a terminal, made from the bytes that a program wrote.
pub(crate) struct Screen {
    columns: usize,
    /// The lines. A longer one takes several rows.
    lines: Vec<Vec<char>>,
    line: usize,
    /// Position of the cursor in its line.
    at: usize,
    wraps: bool,
}

impl Screen {
    pub(crate) fn new(columns: usize) -> Screen {
        Screen { columns, lines: vec![Vec::new()], line: 0, at: 0, wraps: true }
    }

    /// Resizes the screen: each line wraps anew, and the cursor stays on its character.
    pub(crate) fn resize(&mut self, columns: usize) {
        self.columns = columns;
    }

    /// Takes in output. A control sequence that no status line needs fails.
    pub(crate) fn write(&mut self, mut text: &str) {
        while let Some(letter) = text.chars().next() {
            text = &text[letter.len_utf8()..];
            match letter {
                '\r' => self.at -= self.at % self.columns,
                '\n' => {
                    (self.line, self.at) = (self.line + 1, 0);
                    if self.line == self.lines.len() {
                        self.lines.push(Vec::new());
                    }
                }
                '\x1b' => {
                    let end = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap() + 1;
                    let (sequence, rest) = text.split_at(end);
                    text = rest;
                    match sequence {
                        "[J" => {
                            self.lines.truncate(self.line + 1);
                            self.lines[self.line].truncate(self.at);
                        }
                        "[?7l" => self.wraps = false,
                        "[?7h" => self.wraps = true,
                        other => panic!("an unknown control sequence: {other}"),
                    }
                }
                letter => self.put(letter),
            }
        }
    }

    fn put(&mut self, letter: char) {
        let line = &mut self.lines[self.line];
        line.resize(line.len().max(self.at + 1), ' ');
        line[self.at] = letter;
        if self.wraps || self.at % self.columns + 1 < self.columns {
            self.at += 1;
        }
    }

    /// The rows that are not empty.
    pub(crate) fn rows(&self) -> Vec<String> {
        let rows = self.lines.iter().flat_map(|line| line.chunks(self.columns));
        rows.map(|row| row.iter().collect()).collect()
    }
}
