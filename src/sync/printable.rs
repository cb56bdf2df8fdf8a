//! Texts for logs, terminals and messages: escaped, of bounded length, with readable durations. Pure.

use std::fmt;
use std::time::Duration;

/// An untrusted text on one line. Escapes what controls a terminal, breaks a line or changes the
/// direction of reading, so that the text can neither break nor forge a log line.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if !is_printable(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                fmt::Write::write_char(f, character)?;
            }
        }
        Ok(())
    }
}

/// The characters that do not show themselves, or not only themselves: they control a terminal, end a
/// line, change the direction of reading, or are invisible. (Unicode's categories Cc, Zl, Zp and Cf,
/// the characters that are ignorable by default, and a letter that looks like a space.)
pub(crate) const UNPRINTABLE: [(char, char); 28] = [
    ('\0', '\u{1f}'),
    ('\u{7f}', '\u{9f}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Whether a character shows itself, and only itself.
pub(crate) fn is_printable(character: char) -> bool {
    let is_in = |(first, last): &(char, char)| (*first..=*last).contains(&character);
    matches!(character, ' '..='~') || !UNPRINTABLE.iter().any(is_in)
}

/// A duration in its two largest units at most: `3 s`, `2 min 5 s`, `250 ms`.
pub(crate) struct Age(pub(crate) Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (large, large_unit, small, small_unit) = match seconds {
            1..10 if self.0.subsec_millis() >= 100 => {
                return write!(f, "{seconds}.{} s", self.0.subsec_millis() / 100);
            }
            0 if self.0.is_zero() => return f.write_str("0 s"),
            0 => return write!(f, "{} ms", self.0.as_millis().max(1)),
            1..60 => return write!(f, "{seconds} s"),
            60..3_600 => (seconds / 60, "min", seconds % 60, "s"),
            3_600..86_400 => (seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
            _ => (seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
        };
        write!(f, "{large} {large_unit}")?;
        if small > 0 {
            write!(f, " {small} {small_unit}")?;
        }
        Ok(())
    }
}

/// Marks a text that was cut.
pub(crate) const CUT: char = '…';

/// The longest prefix of at most so many bytes that ends between two characters.
pub(crate) fn prefix(text: &str, longest: usize) -> &str {
    let mut end = longest.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Cuts a text that has more than so many bytes, and marks the cut.
pub(crate) fn cut(text: &mut String, longest: usize) {
    if text.len() > longest {
        text.truncate(prefix(text, longest.saturating_sub(CUT.len_utf8())).len());
        text.push(CUT);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn control_and_format_characters_are_escaped() {
        let text = Printable("a\nb\u{1b}[2J\u{202e}c").to_string();
        assert_eq!(text, "a\\nb\\u{1b}[2J\\u{202e}c");
        assert_eq!(Printable("grün 🦀 日本語").to_string(), "grün 🦀 日本語");
        for hidden in "\u{61c}\u{200b}\u{2028}\u{2066}\u{e0041}\u{e0100}\u{3164}\u{2800}".chars() {
            assert!(!is_printable(hidden), "{hidden:?}");
            let text = Printable(&hidden.to_string()).to_string();
            assert!(text.is_ascii(), "{text}");
        }
    }

    #[test]
    fn a_cut_text_ends_between_characters_within_its_limit() {
        assert_eq!(prefix("aä", 2), "a");
        let mut text = "ä".repeat(8);
        cut(&mut text, 16);
        assert!(!text.ends_with(CUT), "just short enough");
        cut(&mut text, 15);
        assert_eq!(text, "ääääää…");
    }

    #[test]
    fn ages_have_two_units_at_most() {
        for (millis, text) in [
            (0, "0 s"),
            (7, "7 ms"),
            (1_000, "1 s"),
            (1_099, "1 s"),
            (2_540, "2.5 s"),
            (12_900, "12 s"),
            (60_000, "1 min"),
            (125_000, "2 min 5 s"),
            (3_600_000, "1 h"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(Age(Duration::from_millis(millis)).to_string(), text);
        }
        assert_eq!(Age(Duration::from_nanos(5)).to_string(), "1 ms");
    }
}
