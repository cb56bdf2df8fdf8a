//! Texts for people: one line, and ages as a person says them.

use std::fmt;
use std::time::Duration;

/// A text from outside, on one line, without characters that control a terminal, break a line or
/// change the direction in which it is read, so that it can neither break nor forge a log.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if is_unprintable(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                fmt::Write::write_char(f, character)?;
            }
        }
        Ok(())
    }
}

/// Control characters, line and paragraph separators, and what is invisible or changes the direction
/// of the text (Unicode's categories Cc, Zl, Zp and Cf).
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A duration as a person says it: the two largest units at most, `3 s`, `2 min 5 s`, `250 ms`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_in_two_units_at_most() {
        for (millis, said) in [
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
            assert_eq!(Age(Duration::from_millis(millis)).to_string(), said);
        }
        assert_eq!(Age(Duration::from_nanos(5)).to_string(), "1 ms");
    }
}
