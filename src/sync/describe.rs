//! Texts of what the application implements: its errors, and everything that has a `Display`.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt::{self, Display, Write};
use std::io;
use std::sync::Arc;

use super::panics::catch;
use crate::error::{BoxError, Error};

/// The most causes of an error that are described. An error could be its own cause.
const MOST_CAUSES: usize = 32;

/// Writes what the application implements. Its [`Display`] may return an error, at which `to_string`
/// panics, or panic itself: what was written until then is kept and marked.
pub(crate) fn written(value: fmt::Arguments<'_>) -> String {
    let mut text = String::new();
    match catch(|| text.write_fmt(value)) {
        Ok(Ok(())) => {}
        Ok(Err(_)) => text.push_str("[incomplete: its Display returned an error]"),
        Err(_) => text.push_str("[incomplete: its Display panicked]"),
    }
    text
}

/// The cause of an error. A `source` that panics has none.
fn cause_of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    catch(|| error.source()).unwrap_or(None)
}

/// An error with what caused it.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = written(format_args!("{error}"));
    let mut cause = cause_of(error);
    for _ in 0..MOST_CAUSES {
        let Some(error) = cause else {
            break;
        };
        cause = cause_of(error);
        let reason = written(format_args!("{error}"));
        // Many errors already say what caused them.
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
    }
    text
}

/// Anything that is returned as an error, with what caused it if that can be found out.
pub(crate) fn describe<E: Display + 'static>(value: &E) -> String {
    match known_error(value) {
        Some(error) => chain(error),
        None => describe_text(value),
    }
}

/// Anything that is only known to have a text. The alternate form of some types, such as
/// `anyhow::Error`, has the causes.
pub(crate) fn describe_text(value: impl Display) -> String {
    written(format_args!("{value:#}"))
}

/// The value as an error, if it is of a type that is known to be one: what is only known as
/// [`Display`] cannot be asked whether it is an error.
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
