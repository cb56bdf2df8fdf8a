//! Texts that the application's code writes: of its errors and of its `Display` implementations.

use std::error::Error as StdError;
use std::fmt::{self, Display, Write};

use super::catch::catch;

/// The limit on the causes of an error that are described. An error could be its own cause.
const MOST_CAUSES: usize = 32;

/// Like `to_string`, for the application's code. Its [`Display`] may return an error, at which
/// `to_string` panics, or panic itself: the text until then is kept and marked.
pub(crate) fn written(value: fmt::Arguments<'_>) -> String {
    let mut text = String::new();
    write_to(&mut text, value);
    text
}

/// As [`written`], into a buffer.
pub(crate) fn write_to(text: &mut String, value: fmt::Arguments<'_>) {
    match catch(|| text.write_fmt(value)) {
        Ok(Ok(())) => {}
        Ok(Err(_)) => text.push_str("[incomplete: its Display returned an error]"),
        Err(_) => text.push_str("[incomplete: its Display panicked]"),
    }
}

/// The source of an error. A `source` method that panics counts as none.
fn cause_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    catch(|| error.source()).unwrap_or(None)
}

/// An error with its causes.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = written(format_args!("{error}"));
    let mut cause = cause_of(error);
    for _ in 0..MOST_CAUSES {
        let Some(error) = cause else {
            break;
        };
        cause = cause_of(error);
        let reason = written(format_args!("{error}"));
        // Many errors already include their causes.
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
    }
    text
}

/// A value that is only known to have a text. The alternate form of some types, such as
/// `anyhow::Error`, has the causes.
pub(crate) fn describe_text(value: impl Display) -> String {
    written(format_args!("{value:#}"))
}
