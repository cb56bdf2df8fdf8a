//! Texts for a terminal: cleaned, and cut to a number of columns. Some characters take two columns,
//! and some are a part of the one before them.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::printable::{Age, CUT, Printable};

/// Escapes a text from outside for the terminal.
pub fn clean(text: &str) -> String {
    Printable(text).to_string()
}

/// How long ago, as all commands print it.
pub fn ago(age: Duration) -> String {
    format!("{} ago", Age(age))
}

/// Cuts the end of a text that takes more columns than there are.
pub fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    match columns {
        0 => String::new(),
        columns => format!("{}{CUT}", begin(text, columns - 1)),
    }
}

/// Cuts the middle: the ends of ids tell them apart.
pub fn cut_middle(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let Some(rest) = columns.checked_sub(1) else {
        return String::new();
    };
    let begin = begin(text, rest.div_ceil(2));
    let room = rest - begin.width();
    let starts = text.char_indices().map(|(start, _)| start);
    let fits = |start: &usize| {
        let end = text.get(*start..).unwrap_or_default();
        // Not in the middle of a character that consists of several.
        let is_whole = end
            .chars()
            .next()
            .is_none_or(|first| first.width() != Some(0));
        end.width() <= room && is_whole
    };
    let start = starts.skip(begin.chars().count()).find(fits);
    let end = start
        .and_then(|start| text.get(start..))
        .unwrap_or_default();
    format!("{begin}{CUT}{end}")
}

/// The longest beginning that takes at most so many columns.
fn begin(text: &str, columns: usize) -> &str {
    let ends = text.char_indices().map(|(start, _)| start);
    let ends = ends.chain([text.len()]);
    let fits = |end: &usize| text.get(..*end).is_some_and(|part| part.width() <= columns);
    let end = ends.take_while(fits).last().unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// Appends spaces up to this number of columns.
pub fn pad(text: &str, columns: usize) -> String {
    let padding = columns.saturating_sub(text.width());
    format!("{text}{:padding$}", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_fits_and_keeps_its_ends() {
        assert_eq!(cut("indexer", 7), "indexer");
        assert_eq!(cut("indexer-7", 5), "inde…");
        assert_eq!(cut_middle("fleet-billing-0017", 11), "fleet…-0017");
        assert_eq!(cut_middle("short", 11), "short");
        let texts = [
            "fleet-billing-0017",
            "検索検索検索検索-1",
            "e\u{301}te\u{301}e\u{301}te\u{301}",
            "🦀🦀🦀🦀",
        ];
        for text in texts {
            for columns in 0..12 {
                for part in [cut(text, columns), cut_middle(text, columns)] {
                    assert!(part.width() <= columns, "{part:?} in {columns}");
                }
            }
        }
    }
}
