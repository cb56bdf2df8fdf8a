//! Texts that the application's code writes: of its errors and of its `Display` implementations.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt::{self, Display, Write};
use std::io;
use std::sync::Arc;

use super::panics::catch;
use crate::error::{BoxError, Error};

/// The limit on the causes of an error that are described. An error could be its own cause.
const MOST_CAUSES: usize = 32;

/// Like `to_string`, for the application's code. Its [`Display`] may return an error, at which
/// `to_string` panics, or panic itself: the text until then is kept and marked.
pub(crate) fn written(value: fmt::Arguments<'_>) -> String {
    let mut text = String::new();
    match catch(|| text.write_fmt(value)) {
        Ok(Ok(())) => {}
        Ok(Err(_)) => text.push_str("[incomplete: its Display returned an error]"),
        Err(_) => text.push_str("[incomplete: its Display panicked]"),
    }
    text
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

/// Any value that is returned as an error, with its causes if they are known.
pub(crate) fn describe<E: Display + 'static>(value: &E) -> String {
    match known_error(value) {
        Some(error) => chain(error),
        None => describe_text(value),
    }
}

/// A value that is only known to have a text. The alternate form of some types, such as
/// `anyhow::Error`, has the causes.
pub(crate) fn describe_text(value: impl Display) -> String {
    written(format_args!("{value:#}"))
}

/// The value as an error, if its type is known to be one: a value that is only known as [`Display`]
/// can't be asked for its source.
pub(crate) fn known_error(value: &dyn Any) -> Option<&(dyn StdError + 'static)> {
    None.or_else(|| value.downcast_ref().map(|error: &BoxError| &**error as _))
        .or_else(|| {
            let error = value.downcast_ref::<Box<dyn StdError + Send>>();
            error.map(|error| &**error as _)
        })
        .or_else(|| {
            let error = value.downcast_ref::<Box<dyn StdError>>();
            error.map(|error| &**error as _)
        })
        .or_else(|| {
            let error = value.downcast_ref::<Arc<dyn StdError + Send + Sync>>();
            error.map(|error| &**error as _)
        })
        .or_else(|| value.downcast_ref::<io::Error>().map(|error| error as _))
        .or_else(|| value.downcast_ref::<Error>().map(|error| error as _))
}
