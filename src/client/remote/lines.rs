//! Output as lines.

/// Longest line passed on as one, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Splits incoming bytes into lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Adds bytes, and passes on the lines that they complete, without line ends.
    pub fn push(&mut self, bytes: &[u8], hear: &mut impl FnMut(&[u8])) {
        for &byte in bytes {
            if byte != b'\n' {
                self.0.push(byte);
            }
            if byte == b'\n' || self.0.len() == LINE_BYTES_MAX {
                hear(self.0.strip_suffix(b"\r").unwrap_or(&self.0));
                self.0.clear();
            }
        }
    }

    /// Passes on a last line without a line end.
    pub fn end(self, hear: &mut impl FnMut(&[u8])) {
        if !self.0.is_empty() {
            hear(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_split_at_line_ends_and_at_the_length_limit() {
        let mut heard = Vec::new();
        let mut hear = |line: &[u8]| heard.push(line.to_vec());
        let mut lines = Lines::default();
        for bytes in [&b"a\nb"[..], b"", b"c\r\n\n", &[b'x'; LINE_BYTES_MAX + 1], b"\nend"] {
            lines.push(bytes, &mut hear);
        }
        lines.end(&mut hear);
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(heard, [&b"a"[..], b"bc", b"", &long, b"x", b"end"]);
    }
}
