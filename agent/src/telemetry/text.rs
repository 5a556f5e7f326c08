//! Making text from the network fit for a log line.

use std::fmt::{self, Display, Write};

/// `value` as text of at most about `max` bytes in which nothing can break a line, move a
/// terminal's cursor or turn the reading direction; what was cut off is marked with `…`.
///
/// Quotes and backslashes stay as they are: the log formats quote on their own.
pub(crate) fn printable(value: &dyn Display, max: usize) -> String {
    let mut sink = Printable {
        out: String::new(),
        max,
    };
    if write!(sink, "{value}").is_err() {
        sink.out.push('…');
    }
    sink.out
}

/// Escapes as it goes, and refuses to go on when it is full, so that a long value is never
/// written out as a whole first.
struct Printable {
    out: String,
    max: usize,
}

impl Write for Printable {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.out.len() + c.len_utf8() > self.max {
                return Err(fmt::Error);
            }
            match c {
                '"' | '\'' | '\\' => self.out.push(c),
                // Escapes control, format and other characters that do not print.
                c => self.out.extend(c.escape_debug()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped() {
        let hostile = "a\r\nb\t\u{1b}[31m \u{9b}0m \u{202e}c \"d\" \\ é";
        assert_eq!(
            printable(&hostile, 200),
            r#"a\r\nb\t\u{1b}[31m \u{9b}0m \u{202e}c "d" \ é"#
        );
    }

    #[test]
    fn long_text_is_cut_and_marked() {
        assert_eq!(printable(&"abcdef", 6), "abcdef");
        assert_eq!(printable(&"abcdefg", 6), "abcdef…");
        let flood = printable(&"\u{1b}".repeat(1_000_000), 512);
        assert!(flood.len() < 530, "{} bytes", flood.len());
        assert!(printable(&"é".repeat(100), 15).ends_with("é…"));
    }
}
