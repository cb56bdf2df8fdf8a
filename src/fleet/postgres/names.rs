//! Names that become part of SQL.

use crate::error::Error;

/// The server truncates longer names, so two of them could become one.
pub(super) const LONGEST_NAME: usize = 63;

/// A name without quotes, backslashes and dollar signs is safe in any SQL.
pub(super) fn quoted(schema: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let allowed = !schema.is_empty()
        && schema.len() <= LONGEST_NAME
        && schema.chars().all(plain)
        && !schema.starts_with("pg_");
    if allowed {
        Ok(format!("\"{schema}\""))
    } else {
        Err(Error::invalid(
            "schema",
            format!("{schema:?}"),
            "1 to 63 ASCII letters, digits, `_` and `-`, not beginning with `pg_`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_schema_names_are_refused() {
        for name in ["worker_heartbeat", "pm_pipeline", "A-1", &"x".repeat(63)] {
            assert_eq!(quoted(name).unwrap(), format!("\"{name}\""));
        }
        for name in [
            "",
            "pg_catalog",
            "a b",
            "a\"b",
            "a'b",
            "a;b",
            "a$b",
            "ä",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(quoted(name).is_err(), "{name:?}");
        }
    }
}
