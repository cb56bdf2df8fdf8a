//! Migrations: set up a schema, and bring it up to date.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::error::{PgError, with_timeout};
use super::settings::{Settings, expand};
use super::transaction;
use crate::sync::log::log_line;

/// In their order. A released migration is never changed; a change is a new migration.
///
/// Versions 1 to 13 are from before the first release. Every statement can be run again, so running
/// all of these brings a schema of such a version up to date.
const MIGRATIONS: [(i32, &str, &str); 10] = [
    (14, "tables", include_str!("sql/tables.sql")),
    (15, "numbers", include_str!("sql/numbers.sql")),
    (16, "judging", include_str!("sql/judging.sql")),
    (17, "sessions", include_str!("sql/sessions.sql")),
    (18, "workers", include_str!("sql/workers.sql")),
    (19, "leases", include_str!("sql/leases.sql")),
    (20, "sweep", include_str!("sql/sweep.sql")),
    (21, "reads", include_str!("sql/reads.sql")),
    (22, "views", include_str!("sql/views.sql")),
    (23, "events", include_str!("sql/events.sql")),
];
const LATEST: i32 = MIGRATIONS[MIGRATIONS.len() - 1].0;
/// The oldest program, by the latest version that it knows, that may use the schema as these
/// migrations leave it. A migration that only adds keeps this number, so that instances of both
/// versions work during an upgrade. One that removes or changes what older programs use raises it.
const OLDEST_PROGRAM: i32 = LATEST;
/// Includes the wait for other processes that migrate the same schema.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a migration waits for a table that another transaction uses. Heartbeats wait behind it
/// meanwhile, so the wait is short, and is repeated after a pause in which they are served.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Concurrent migrations wait for each other. `CREATE SCHEMA IF NOT EXISTS` would need the right to
/// create a schema even if it exists. Tables of the same names that another program created are not
/// taken for this crate's. Notices that a column is there already would fill the log.
const LOCK: &str = "\
SELECT pg_advisory_xact_lock(hashtextextended('worker_heartbeat migrate @schema@', 0));
SET LOCAL lock_timeout = @lock_timeout@;
SET LOCAL client_min_messages = warning;
DO $$
DECLARE
    v_table text;
BEGIN
    IF to_regnamespace('@schema@') IS NULL THEN
        CREATE SCHEMA @schema@;
    END IF;
    IF to_regclass('@schema@.schema_migrations') IS NULL THEN
        FOREACH v_table IN ARRAY ARRAY['worker_heartbeats', 'leases', 'sessions',
            'deferred_heartbeats', 'endings', 'fleet_events'] LOOP
            IF to_regclass('@schema@.' || v_table) IS NOT NULL THEN
                RAISE EXCEPTION 'the schema has a table % of another program; use a schema of its own',
                    v_table USING ERRCODE = 'duplicate_table';
            END IF;
        END LOOP;
        CREATE TABLE @schema@.schema_migrations (
            version integer PRIMARY KEY,
            name text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
    END IF;
    -- The oldest program that may use the schema since then, by the latest version that it knows.
    ALTER TABLE @schema@.schema_migrations ADD COLUMN IF NOT EXISTS oldest_program integer;
END $$;
";
/// The versions in the table, if it is this crate's. NULL in `oldest_program`: of that version itself.
const VERSIONS: &str = "\
SELECT m.version, coalesce((to_jsonb(m) ->> 'oldest_program')::integer, m.version)
FROM @schema@.schema_migrations m ORDER BY m.version DESC LIMIT 1";
/// Whether there is a table of migrations, and whether it is this crate's. Other tools use the same
/// name with other columns.
const IS_OWN: &str = "\
SELECT to_regclass('@schema@.schema_migrations') IS NOT NULL, (
    SELECT count(*) = 3 FROM pg_attribute a
    WHERE a.attrelid = to_regclass('@schema@.schema_migrations')
    AND (a.attname, a.atttypid) IN (('version', 'pg_catalog.int4'::regtype),
        ('name', 'pg_catalog.text'::regtype), ('applied_at', 'pg_catalog.timestamptz'::regtype)))";

/// The migrations after version `from`, without a transaction around them.
fn migrations(schema: &str, from: i32) -> String {
    let mut text = String::new();
    for (version, name, sql) in MIGRATIONS {
        if version > from {
            text.push_str(&format!(
                "\n-- {version}: {name}\n\n{sql}\nINSERT INTO @schema@.schema_migrations \
                 (version, name, oldest_program) VALUES ({version}, '{name}', {OLDEST_PROGRAM}) \
                 ON CONFLICT DO NOTHING;\n"
            ));
        }
    }
    expand(&text, schema)
}

/// All migrations as one script, for `psql`.
pub(super) fn script(schema: &str) -> String {
    let lock = expand(&lock(), schema);
    let migrations = migrations(schema, 0);
    format!("BEGIN;\n{lock}{migrations}\nCOMMIT;\n")
}

fn lock() -> String {
    let timeout = LOCK_TIMEOUT.as_millis().to_string();
    LOCK.replace("@lock_timeout@", &timeout)
}

/// What the table of migrations says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Version {
    /// 0 if there is none.
    newest: i32,
    /// The oldest program that may use the schema.
    oldest_program: i32,
}

/// Checks that this program may use the schema, and migrates an older one if that is switched on.
pub(super) async fn check(client: &Client, settings: &Settings) -> Result<(), PgError> {
    let version = with_timeout(settings.statement_timeout, async {
        client.batch_execute(&settings.begin).await?;
        let version = version(client, settings).await?;
        client.batch_execute("COMMIT").await?;
        Ok::<_, PgError>(version)
    })
    .await?;
    if version.newest < LATEST && settings.migrations {
        return with_timeout(TIMEOUT, apply(client, settings)).await;
    }
    check_version(version, settings)
}

fn check_version(version: Version, settings: &Settings) -> Result<(), PgError> {
    let schema = &settings.schema;
    match version.newest {
        0 => Err(PgError::Other(format!(
            "the schema {schema} is not set up; run what PostgresOptions::migration_sql() returns, or \
             leave migrations on"
        ))),
        older if older < LATEST => Err(PgError::Other(format!(
            "the schema {schema} is of version {older}, this program needs {LATEST}; run what \
             PostgresOptions::migration_sql() returns, or leave migrations on"
        ))),
        newer if version.oldest_program > LATEST => Err(PgError::Other(format!(
            "the schema {schema} is of version {newer}, for programs that know version {} or later; \
             this one knows versions up to {LATEST}; use a newer worker-heartbeat",
            version.oldest_program
        ))),
        _ => Ok(()),
    }
}

async fn version(client: &Client, settings: &Settings) -> Result<Version, PgError> {
    let row = client.query_typed_one(&settings.sql(IS_OWN), &[]).await?;
    match (row.try_get(0)?, row.try_get(1)?) {
        (false, _) => return Ok(Version::default()),
        (true, false) => {
            return Err(PgError::Other(format!(
                "the schema {} has a table schema_migrations of another program; use a schema of its \
                 own",
                settings.schema
            )));
        }
        (true, true) => {}
    }
    let rows = client.query_typed(&settings.sql(VERSIONS), &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Version::default());
    };
    Ok(Version {
        newest: row.try_get(0)?,
        oldest_program: row.try_get(1)?,
    })
}

/// Migrates. Where another transaction uses a table, it tries again for as long as the time limit
/// allows.
async fn apply(client: &Client, settings: &Settings) -> Result<(), PgError> {
    let started = Instant::now();
    loop {
        match apply_once(client, settings).await {
            Err(error)
                if error.is_lock_timeout()
                    && started.elapsed() + 3 * LOCK_TIMEOUT + LOCK_PAUSE < TIMEOUT =>
            {
                client.batch_execute("ROLLBACK").await?;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// In one transaction: a connection that breaks in the middle leaves nothing behind.
async fn apply_once(client: &Client, settings: &Settings) -> Result<(), PgError> {
    let begin = transaction::begin(TIMEOUT);
    client
        .batch_execute(&settings.sql(&format!("{begin}; {}", lock())))
        .await?;
    let version = version(client, settings).await?;
    if version.newest < LATEST {
        client
            .batch_execute(&migrations(&settings.schema, version.newest))
            .await?;
        client.batch_execute("COMMIT").await?;
        log_line(
            log::Level::Info,
            format_args!(
                "postgres: migrated the schema {} from version {} to {LATEST}",
                settings.schema, version.newest
            ),
        );
        return Ok(());
    }
    client.batch_execute("COMMIT").await?;
    check_version(version, settings)
}
