//! What sets up a schema, and brings it up to date.

use std::time::Duration;

use tokio_postgres::Client;

use super::error::{Trouble, within};
use super::settings::{Settings, filled};
use crate::registry::core::say;

/// In their order. What was released is never changed; what is to change gets a version of its own.
///
/// Versions 1 to 6 were those before the first release. Every statement can be run again, so a schema
/// of such a version becomes one of today's by running all of these.
const MIGRATIONS: [(i32, &str, &str); 7] = [
    (7, "tables", include_str!("sql/007_tables.sql")),
    (8, "judging", include_str!("sql/008_judging.sql")),
    (9, "sessions", include_str!("sql/009_sessions.sql")),
    (10, "workers", include_str!("sql/010_workers.sql")),
    (11, "leases", include_str!("sql/011_leases.sql")),
    (12, "sweep", include_str!("sql/012_sweep.sql")),
    (13, "views", include_str!("sql/013_views.sql")),
];
const NEWEST: i32 = MIGRATIONS[MIGRATIONS.len() - 1].0;
/// Others may have to finish the same before.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who comes second waits, and finds it done. `CREATE SCHEMA IF NOT EXISTS` asks for the right to
/// create one even if it is there.
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

/// Everything from this version on, without the transaction around it.
fn steps(schema: &str, from: i32) -> String {
    let mut text = String::new();
    for (version, name, sql) in MIGRATIONS {
        if version > from {
            text.push_str(&format!(
                "\n-- {version}: {name}\n\n{sql}\nINSERT INTO @schema@.schema_migrations \
                 (version, name) VALUES ({version}, '{name}') ON CONFLICT DO NOTHING;\n"
            ));
        }
    }
    filled(&text, schema)
}

/// Everything, for `psql`.
pub(super) fn script(schema: &str) -> String {
    let lock = filled(LOCK, schema);
    let steps = steps(schema, 0);
    format!("BEGIN;\n{lock}{steps}\nCOMMIT;\n")
}

/// Whether the schema is what this program knows; sets it up if it may.
pub(super) async fn check(client: &Client, settings: &Settings) -> Result<(), Trouble> {
    let version = within(settings.statement_timeout, version(client, settings)).await?;
    if version < NEWEST && settings.migrations {
        return within(PATIENCE, apply(client, settings)).await;
    }
    judge(version, settings)
}

fn judge(version: i32, settings: &Settings) -> Result<(), Trouble> {
    let schema = &settings.schema;
    match version {
        NEWEST => Ok(()),
        0 => Err(Trouble::Said(format!(
            "the schema {schema} is not set up; run what PostgresOptions::migration_sql() returns, or \
             leave migrations on"
        ))),
        older if older < NEWEST => Err(Trouble::Said(format!(
            "the schema {schema} is of version {older}, this program needs {NEWEST}; run what \
             PostgresOptions::migration_sql() returns, or leave migrations on"
        ))),
        newer => Err(Trouble::Said(format!(
            "the schema {schema} is of version {newer}, this program knows versions up to {NEWEST}; \
             use a newer worker-heartbeat"
        ))),
    }
}

/// 0 if there is none.
async fn version(client: &Client, settings: &Settings) -> Result<i32, Trouble> {
    let exists = "SELECT to_regclass('@schema@.schema_migrations') IS NOT NULL";
    let row = client.query_typed_one(&settings.sql(exists), &[]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let newest = "SELECT coalesce(max(version), 0) FROM @schema@.schema_migrations";
    let row = client.query_typed_one(&settings.sql(newest), &[]).await?;
    Ok(row.try_get(0)?)
}

/// A connection that breaks in the middle leaves nothing behind.
async fn apply(client: &Client, settings: &Settings) -> Result<(), Trouble> {
    client
        .batch_execute(&settings.sql(&format!("BEGIN; {LOCK}")))
        .await?;
    let version = version(client, settings).await?;
    if version < NEWEST {
        client
            .batch_execute(&steps(&settings.schema, version))
            .await?;
        client.batch_execute("COMMIT").await?;
        say(
            log::Level::Info,
            format_args!(
                "postgres: brought the schema {} from version {version} to {NEWEST}",
                settings.schema
            ),
        );
        return Ok(());
    }
    client.batch_execute("COMMIT").await?;
    judge(version, settings)
}
