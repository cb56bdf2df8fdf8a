//! Texts as the database can keep them: in its encoding, and without zero characters.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::error::Failed;
use super::rows;
use crate::sync::log::log_line;

/// The characters that the encoding of the database lacks, as far as they are known. An UTF-8
/// database lacks none.
#[derive(Debug, Default)]
pub(super) struct Texts {
    missing: RwLock<HashSet<char>>,
    /// Some are missing.
    some: AtomicBool,
    replaced: AtomicU64,
}

impl Texts {
    /// The text, with a replacement for each character that the database cannot keep.
    pub(super) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let text = rows::text(text);
        if self.fits(&text) {
            return text;
        }
        self.replaced.fetch_add(1, Ordering::Relaxed);
        let missing = self.missing.read();
        let kept = |character| match character {
            character if missing.contains(&character) => '?',
            character => character,
        };
        Cow::Owned(text.chars().map(kept).collect())
    }

    pub(super) fn json(&self, metadata: &[(String, String)]) -> String {
        let fields = metadata
            .iter()
            .map(|(name, value)| (self.text(name).into_owned(), self.text(value).into()));
        Value::Object(fields.collect()).to_string()
    }

    /// Whether the database can keep the text as it is, as far as that is known.
    pub(super) fn fits(&self, text: &str) -> bool {
        if text.is_ascii() || !self.some.load(Ordering::Acquire) {
            return true;
        }
        let missing = self.missing.read();
        !text.chars().any(|character| missing.contains(&character))
    }

    /// The text up to the first character that the database is known to lack.
    pub(super) fn fitting_prefix<'a>(&self, text: &'a str) -> &'a str {
        if self.fits(text) {
            return text;
        }
        let missing = self.missing.read();
        let end = text.find(|character| missing.contains(&character));
        end.and_then(|end| text.get(..end)).unwrap_or(text)
    }

    /// How many texts were changed so far.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Asks the database which characters of these texts it lacks. Returns whether any of them was
    /// not known to be missing.
    pub(super) fn learn<'a>(
        &self,
        connection: &Connection,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<bool, Failed> {
        let texts = texts.into_iter().filter(|text| !text.is_ascii());
        let mut asked: BTreeSet<char> = texts.flat_map(str::chars).collect();
        let known = self.missing.read();
        asked.retain(|character| !character.is_ascii() && !known.contains(character));
        drop(known);
        let asked: Vec<Vec<u8>> = asked
            .into_iter()
            .map(|character| character.to_string().into_bytes())
            .collect();
        let found = connection.try_query(
            "check texts",
            true,
            "SELECT c FROM @schema@.missing_characters($1) c",
            &[(&asked, Type::BYTEA_ARRAY)],
        )?;
        let mut missing = self.missing.write();
        let mut first = None;
        for row in &found {
            let bytes: &[u8] = row
                .try_get(0)
                .map_err(|error| rows::unreadable("check texts", &error))?;
            let character = String::from_utf8_lossy(bytes).chars().next();
            if let Some(character) = character.filter(|character| missing.insert(*character)) {
                first.get_or_insert(character);
            }
        }
        drop(missing);
        if let Some(first) = first {
            if !self.some.swap(true, Ordering::AcqRel) {
                log_line(
                    log::Level::Warn,
                    format_args!(
                        "postgres: the encoding of the database lacks characters, such as {first:?}; \
                         each is stored as '?'"
                    ),
                );
            }
        }
        Ok(first.is_some())
    }
}

/// Workers that the log has named, so that each is named once.
#[derive(Debug, Default)]
pub(super) struct LoggedIds(Mutex<HashSet<String>>);

impl LoggedIds {
    /// Whether to name it now.
    pub(super) fn note(&self, id: &str) -> bool {
        /// No more are named, so that nothing grows without bound.
        const MOST: usize = 1_000;
        let mut logged = self.0.lock();
        logged.len() < MOST && logged.insert(id.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_characters_are_replaced_one_by_one() {
        let texts = Texts::default();
        assert_eq!(texts.text("Zürich ✓\0"), "Zürich ✓\u{fffd}");
        texts.missing.write().insert('✓');
        texts.some.store(true, Ordering::Release);
        assert_eq!(texts.text("Zürich ✓"), "Zürich ?");
        assert_eq!(texts.json(&[("✓".into(), "\"".into())]), "{\"?\":\"\\\"\"}");
        assert!(texts.fits("Zürich") && !texts.fits("✓"));
        assert_eq!(texts.fitting_prefix("ab✓c"), "ab");
        assert_eq!(texts.fitting_prefix("ab"), "ab");
        assert_eq!(texts.replaced(), 2);
    }
}
