//! The settings that the environment can give a worker.

use std::env;
use std::time::Duration;

use crate::error::Error;

/// The variable with the id of workers of this type: `COMPANY_RESEARCH_WORKER_ID` for
/// `company_research`.
pub(super) fn id_variable(worker_type: &str) -> String {
    let name: String = worker_type
        .chars()
        .map(|character| match character.to_ascii_uppercase() {
            upper if upper.is_ascii_alphanumeric() => upper,
            _ => '_',
        })
        .collect();
    name + "_WORKER_ID"
}

/// The value of a variable, if it is set.
pub(super) fn text(variable: &str) -> Result<Option<String>, Error> {
    match env::var(variable) {
        Ok(value) => Ok(Some(value)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(value)) => {
            Err(refused(variable, format!("{value:?}"), "Unicode text"))
        }
    }
}

/// The value of a variable as seconds, if it is set.
pub(super) fn seconds(variable: &str) -> Result<Option<Duration>, Error> {
    text(variable)?
        .map(|value| parse_seconds(&value).ok_or_else(|| not_seconds(variable, &value)))
        .transpose()
}

fn parse_seconds(value: &str) -> Option<Duration> {
    let seconds: f64 = value.trim().parse().ok()?;
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (!duration.is_zero()).then_some(duration)
}

fn not_seconds(variable: &str, value: &str) -> Error {
    refused(
        variable,
        format!("{value:?}"),
        "a number of seconds above zero, such as 30 or 0.5",
    )
}

/// Names the variable of a refused value.
pub(super) fn blame(variable: &str, error: Error) -> Error {
    match error {
        Error::Invalid { value, allowed, .. } => Error::Environment {
            variable: variable.to_owned(),
            value,
            allowed,
        },
        other => other,
    }
}

fn refused(variable: &str, value: String, allowed: &str) -> Error {
    Error::Environment {
        variable: variable.to_owned(),
        value,
        allowed: allowed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_names_its_variable() {
        assert_eq!(
            id_variable("company_research"),
            "COMPANY_RESEARCH_WORKER_ID"
        );
        assert_eq!(id_variable("a-b.c ä"), "A_B_C___WORKER_ID");
    }

    #[test]
    fn seconds_are_numbers_above_zero() {
        assert_eq!(parse_seconds("30"), Some(Duration::from_secs(30)));
        assert_eq!(parse_seconds(" 0.5 "), Some(Duration::from_millis(500)));
        for bad in ["", "x", "30s", "-1", "0", "NaN", "inf", "1e300", "0x10"] {
            assert_eq!(parse_seconds(bad), None, "{bad}");
        }
        assert_eq!(
            not_seconds("X", "30s").to_string(),
            "invalid environment variable X=\"30s\"; allowed: a number of seconds above zero, such as 30 or 0.5"
        );
    }
}
