//! Programs of several versions on one schema, and schemas that other programs use, too.

use std::sync::mpsc::channel;
use std::thread;

use tokio_postgres::NoTls;
use worker_heartbeat::fleet::{Answer, ClaimAnswer, Sweep, WorkerFilter};
use worker_heartbeat::{Error, HeartbeatStore, PostgresOptions, PostgresStore};

use crate::support::postgres::{schema, sql, url};
use crate::{SECOND, beat, claim, register, store, worker};

fn connected(name: &str, migrations: bool) -> Result<PostgresStore, Error> {
    let options = PostgresOptions::new().schema(name).migrations(migrations);
    // A name by which the server's connections can be told apart.
    options.connect(&format!("{}?application_name={name}", url()))
}

fn run(name: &str, text: &str) -> Vec<Vec<String>> {
    sql(url(), &text.replace("$s", &format!("\"{name}\"")))
}

/// The first upgraded instance migrates the schema while the others still run.
#[test]
fn an_older_program_goes_on_after_a_migration_that_only_adds() {
    let name = schema("additive");
    let store = connected(&name, true).unwrap();
    let key = worker(&store, "a");
    run(
        &name,
        "ALTER TABLE $s.worker_heartbeats ADD COLUMN later text DEFAULT 'x';
         INSERT INTO $s.schema_migrations (version, name, oldest_program)
         SELECT 99, 'of the future', max(version) FROM $s.schema_migrations",
    );
    // All connections break, and are opened again.
    let broken = sql(
        url(),
        &format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"
        ),
    );
    assert!(!broken.is_empty());
    assert_eq!(beat(&store, &key), Answer::Accepted);
    let answer = claim(&store, &key, "run", 60 * SECOND);
    assert!(matches!(answer, ClaimAnswer::Granted(_)), "{answer:?}");
    assert!(store.sweep(&Sweep::default()).unwrap().success);
    assert_eq!(store.list(&WorkerFilter::default()).unwrap().len(), 1);
    for migrations in [true, false] {
        register(&connected(&name, migrations).unwrap(), "b");
    }
    run(
        &name,
        "UPDATE $s.schema_migrations SET oldest_program = 98 WHERE version = 99",
    );
    for migrations in [true, false] {
        let error = connected(&name, migrations).unwrap_err().to_string();
        assert!(
            error.contains("of version 99, for programs that know version 98"),
            "{error}"
        );
    }
}

/// A migration needs some tables for itself. Everything that needs them after it waits behind it.
#[test]
fn a_migration_that_waits_for_a_long_transaction_does_not_stop_heartbeats() {
    let name = schema("waiting");
    let running = store(&name);
    let key = worker(&running, "a");
    run(
        &name,
        "DELETE FROM $s.schema_migrations; INSERT INTO $s.schema_migrations VALUES (13, 'older')",
    );
    let (hold, held) = channel::<()>();
    let (is_reading, reading) = channel();
    let table = format!("\"{name}\".worker_heartbeats");
    let reader = {
        let table = table.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(url(), NoTls).await.unwrap();
                tokio::spawn(connection);
                let read = format!("BEGIN; SELECT count(*) FROM {table}");
                client.batch_execute(&read).await.unwrap();
                is_reading.send(()).unwrap();
                let _ = held.recv();
                client.batch_execute("COMMIT").await.unwrap();
            });
        })
    };
    reading.recv().unwrap();
    let migrating = {
        let name = name.clone();
        thread::spawn(move || connected(&name, true).map(|_| ()))
    };
    let waits = format!(
        "SELECT 1 FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted \
         AND mode = 'AccessExclusiveLock'"
    );
    for _ in 0..3 {
        while sql(url(), &waits).is_empty() {
            assert!(!migrating.is_finished(), "it did not wait");
            thread::yield_now();
        }
        // Busy: it came while the migration held the queue, and is kept.
        let answer = beat(&running, &key);
        assert!(
            matches!(answer, Answer::Accepted | Answer::Busy),
            "{answer:?}"
        );
    }
    assert!(
        !migrating.is_finished(),
        "the transaction still holds the table"
    );
    drop(hold);
    reader.join().unwrap();
    migrating.join().unwrap().unwrap();
    assert_eq!(beat(&running, &key), Answer::Accepted);
}

#[test]
fn tables_of_another_program_are_named_and_left_alone() {
    for (table, columns) in [
        // Of Rails, of Ecto, of golang-migrate.
        ("schema_migrations", "version varchar PRIMARY KEY"),
        (
            "schema_migrations",
            "version bigint PRIMARY KEY, inserted_at timestamp",
        ),
        (
            "schema_migrations",
            "version bigint PRIMARY KEY, dirty boolean NOT NULL",
        ),
        // Of Laravel.
        (
            "sessions",
            "id varchar PRIMARY KEY, user_id bigint, payload text",
        ),
        ("leases", "id bigint PRIMARY KEY"),
    ] {
        let name = schema("shared");
        run(
            &name,
            &format!("CREATE SCHEMA $s; CREATE TABLE $s.{table} ({columns})"),
        );
        let error = connected(&name, true).unwrap_err().to_string();
        let told = format!("a table {table} of another program; use a schema of its own");
        assert!(error.contains(&told), "{error}");
        let tables = "SELECT tablename FROM pg_tables WHERE schemaname = '$s'";
        assert_eq!(sql(url(), &tables.replace("$s", &name)), [[table]]);
    }
}
