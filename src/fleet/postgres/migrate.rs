//! Migrations: set up a schema, and bring it up to date.

use std::time::Duration;

use tokio_postgres::Client;

use super::error::{PgError, with_timeout};
use super::settings::{Settings, expand};
use crate::sync::log::log_line;

/// In their order. A released migration is never changed; a change is a new migration.
///
/// Versions 1 to 13 are from before the first release. Every statement can be run again, so running
/// all of these brings a schema of such a version up to date.
const MIGRATIONS: [(i32, &str, &str); 7] = [
    (14, "tables", include_str!("sql/tables.sql")),
    (15, "judging", include_str!("sql/judging.sql")),
    (16, "sessions", include_str!("sql/sessions.sql")),
    (17, "workers", include_str!("sql/workers.sql")),
    (18, "leases", include_str!("sql/leases.sql")),
    (19, "sweep", include_str!("sql/sweep.sql")),
    (20, "views", include_str!("sql/views.sql")),
];
const LATEST: i32 = MIGRATIONS[MIGRATIONS.len() - 1].0;
/// Includes the wait for other processes that migrate the same schema.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Concurrent migrations wait for each other. `CREATE SCHEMA IF NOT EXISTS` would need the right to
/// create a schema even if it exists.
const LOCK: &str = "\
SELECT pg_advisory_xact_lock(hashtextextended('worker_heartbeat migrate @schema@', 0));
DO $$ BEGIN
    IF to_regnamespace('@schema@') IS NULL THEN
        CREATE SCHEMA @schema@;
    END IF;
    IF to_regclass('@schema@.schema_migrations') IS NULL THEN
        CREATE TABLE @schema@.schema_migrations (
            version integer PRIMARY KEY,
            name text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
    END IF;
END $$;
";

/// The migrations after version `from`, without a transaction around them.
fn migrations(schema: &str, from: i32) -> String {
    let mut text = String::new();
    for (version, name, sql) in MIGRATIONS {
        if version > from {
            text.push_str(&format!(
                "\n-- {version}: {name}\n\n{sql}\nINSERT INTO @schema@.schema_migrations \
                 (version, name) VALUES ({version}, '{name}') ON CONFLICT DO NOTHING;\n"
            ));
        }
    }
    expand(&text, schema)
}

/// All migrations as one script, for `psql`.
pub(super) fn script(schema: &str) -> String {
    let lock = expand(LOCK, schema);
    let migrations = migrations(schema, 0);
    format!("BEGIN;\n{lock}{migrations}\nCOMMIT;\n")
}

/// Checks that the schema is of the version that this program needs, and migrates it if that is
/// switched on.
pub(super) async fn check(client: &Client, settings: &Settings) -> Result<(), PgError> {
    let version = with_timeout(settings.statement_timeout, version(client, settings)).await?;
    if version < LATEST && settings.migrations {
        return with_timeout(TIMEOUT, apply(client, settings)).await;
    }
    check_version(version, settings)
}

fn check_version(version: i32, settings: &Settings) -> Result<(), PgError> {
    let schema = &settings.schema;
    match version {
        LATEST => Ok(()),
        0 => Err(PgError::Other(format!(
            "the schema {schema} is not set up; run what PostgresOptions::migration_sql() returns, or \
             leave migrations on"
        ))),
        older if older < LATEST => Err(PgError::Other(format!(
            "the schema {schema} is of version {older}, this program needs {LATEST}; run what \
             PostgresOptions::migration_sql() returns, or leave migrations on"
        ))),
        newer => Err(PgError::Other(format!(
            "the schema {schema} is of version {newer}, this program knows versions up to {LATEST}; \
             use a newer worker-heartbeat"
        ))),
    }
}

/// 0 if there is none.
async fn version(client: &Client, settings: &Settings) -> Result<i32, PgError> {
    let exists = "SELECT to_regclass('@schema@.schema_migrations') IS NOT NULL";
    let row = client.query_typed_one(&settings.sql(exists), &[]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let newest = "SELECT coalesce(max(version), 0) FROM @schema@.schema_migrations";
    let row = client.query_typed_one(&settings.sql(newest), &[]).await?;
    Ok(row.try_get(0)?)
}

/// In one transaction: a connection that breaks in the middle leaves nothing behind.
async fn apply(client: &Client, settings: &Settings) -> Result<(), PgError> {
    client
        .batch_execute(&settings.sql(&format!("BEGIN; {LOCK}")))
        .await?;
    let version = version(client, settings).await?;
    if version < LATEST {
        client
            .batch_execute(&migrations(&settings.schema, version))
            .await?;
        client.batch_execute("COMMIT").await?;
        log_line(
            log::Level::Info,
            format_args!(
                "postgres: migrated the schema {} from version {version} to {LATEST}",
                settings.schema
            ),
        );
        return Ok(());
    }
    client.batch_execute("COMMIT").await?;
    check_version(version, settings)
}
