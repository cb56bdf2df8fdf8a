//! A database whose clock is set while workers are watched.

use std::time::Duration;

use worker_heartbeat::fleet::{Answer, Sweep};
use worker_heartbeat::{HeartbeatStore, PostgresOptions, PostgresStore, Sweeper};

use crate::support::postgres::{role, schema, sql, url};
use crate::{SECOND, beat, worker};

/// A schema whose role sees a clock that can be set.
struct Place {
    name: String,
    url: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let name = schema(name);
        let url = role(&name, "");
        let place = Self { name, url };
        place.run(
            "CREATE SCHEMA $s_clock; CREATE TABLE $s_clock.set (forward interval);
             INSERT INTO $s_clock.set VALUES ('0');
             CREATE FUNCTION $s_clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
                 $$ SELECT pg_catalog.now() + (SELECT forward FROM $s_clock.set) $$;
             GRANT USAGE ON SCHEMA $s_clock TO $s; GRANT SELECT ON $s_clock.set TO $s;
             ALTER ROLE $s SET search_path = $s_clock, pg_catalog",
        );
        place
    }

    fn run(&self, text: &str) -> Vec<Vec<String>> {
        sql(url(), &text.replace("$s", &self.name))
    }

    fn store(&self) -> PostgresStore {
        PostgresOptions::new()
            .schema(&self.name)
            .statement_timeout(60 * SECOND)
            .connect(&self.url)
            .unwrap()
    }

    fn set(&self, forward: &str) {
        self.run(&format!("UPDATE $s_clock.set SET forward = '{forward}'"));
    }
}

#[test]
fn a_clock_that_is_set_forward_convicts_no_worker() {
    let place = Place::new("forward");
    let store = place.store();
    let key = worker(&store, "a");
    let sweeper = Sweeper::new(store.clone()).watched_for(Duration::MAX);
    assert_eq!(sweeper.sweep().unwrap().marked_offline, [""; 0]);
    place.set("1 hour");
    let error = sweeper.sweep().unwrap_err().to_string();
    assert!(
        error.contains("clock of the database was set forward"),
        "{error}"
    );
    // It is told once, and the silence is counted anew.
    assert_eq!(sweeper.sweep().unwrap().marked_offline, [""; 0]);
    assert_eq!(beat(&store, &key), Answer::Accepted);
}

#[test]
fn a_clock_that_is_set_back_hides_no_silence() {
    let place = Place::new("back");
    let store = place.store();
    let key = worker(&store, "a");
    let silent = worker(&store, "silent");
    place.set("1 hour");
    for key in [&key, &silent] {
        assert_eq!(beat(&store, key), Answer::Accepted);
    }
    assert!(store.sweep(&Sweep::default()).unwrap().success);
    place.set("0");
    // Heartbeats of the future count from now on.
    store.sweep(&Sweep::default()).unwrap();
    place.set("80 seconds");
    assert_eq!(beat(&store, &key), Answer::Accepted);
    place.set("100 seconds");
    // Another process, which has not seen the clock before.
    let swept = place.store().sweep(&Sweep::default()).unwrap();
    assert_eq!(swept.marked_offline, ["silent"]);
}

#[test]
fn a_sweep_of_the_future_replaces_none() {
    let place = Place::new("future");
    let mut sweep = Sweep::default();
    sweep.unless_swept_within = Some(60 * SECOND);
    sweep.watched_for = 7_200 * SECOND;
    place.set("1 hour");
    assert!(place.store().sweep(&sweep).unwrap().success);
    place.set("0");
    sweep.watched_for = SECOND;
    let store = place.store();
    assert_eq!(store.sweep(&sweep).unwrap().recently_swept, None);
    assert!(store.sweep(&sweep).unwrap().recently_swept.is_some());
}

/// As after an outage of the server: nobody was heard meanwhile.
#[test]
fn a_cleanup_after_a_restart_of_the_server_charges_no_time_before_it() {
    let place = Place::new("restarted");
    let store = place.store();
    let key = worker(&store, "a");
    let started = |ago: &str| {
        place.run(&format!(
            "CREATE OR REPLACE FUNCTION $s_clock.pg_postmaster_start_time() RETURNS timestamptz
                 LANGUAGE sql STABLE AS $$ SELECT now() - interval '{ago}' $$"
        ));
    };
    let cleanup = || {
        let cleanup = "SELECT worker_id FROM $s.cleanup_stale_workers(60)";
        sql(&place.url, &cleanup.replace("$s", &place.name))
    };
    // The outage lasted two hours, and the schema is older than that.
    place.run(
        "UPDATE $s.worker_heartbeats SET last_heartbeat_at = now() - interval '2 h';
         UPDATE $s.schema_migrations SET applied_at = now() - interval '1 day'",
    );
    started("59 min");
    assert!(cleanup().is_empty());
    assert_eq!(beat(&store, &key), Answer::Accepted);
    place.run("UPDATE $s.worker_heartbeats SET last_heartbeat_at = now() - interval '2 h'");
    started("61 min");
    assert_eq!(cleanup(), [["a"]]);
}
