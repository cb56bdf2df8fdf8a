//! Values that make no sense: refused at the door, and no harm where they are already.

use super::*;

fn refused(name: &str, statement: &str) -> String {
    let error = support::postgres::try_sql(url(), &statement.replace("$s", name)).unwrap_err();
    error.as_db_error().unwrap().message().to_owned()
}

#[test]
fn absurd_values_are_refused_with_a_reason() {
    let name = schema("absurd");
    let store = store(&name);
    worker(&store, "a");
    let upsert = |stale_after: &str| {
        refused(
            &name,
            &format!(
                "SELECT $s.upsert_worker_heartbeat('x', 't', p_stale_after => '{stale_after}')"
            ),
        )
    };
    for stale_after in ["9999 years", "101 years", "-1 s"] {
        let reason = upsert(stale_after);
        assert!(
            reason.contains("stale_after: ") && reason.contains("0 to 100 years"),
            "{reason}"
        );
    }
    for (column, value, reason) in [
        ("stale_after", "9999 years", "limits_are_0_to_100_years"),
        ("stall_after", "-1 s", "limits_are_0_to_100_years"),
        ("startup_grace", "200 years", "limits_are_0_to_100_years"),
        (
            "heartbeat_interval",
            "178000000 years",
            "limits_are_0_to_100_years",
        ),
        ("last_heartbeat_at", "infinity", "times_are_1900_to_2500"),
        ("last_progress_at", "-infinity", "times_are_1900_to_2500"),
        ("started_at", "0001-01-01 BC", "times_are_1900_to_2500"),
    ] {
        let update = format!("UPDATE $s.worker_heartbeats SET {column} = '{value}'");
        assert!(refused(&name, &update).contains(reason), "{column}");
        let insert = format!(
            "INSERT INTO $s.worker_heartbeats (worker_id, worker_type, incarnation, {column}) \
             VALUES ('y', 't', 1, '{value}')"
        );
        assert!(refused(&name, &insert).contains(reason), "{column}");
    }
    let lease = "INSERT INTO $s.leases VALUES ('r', 'a', 1, 1, 'infinity')";
    assert!(refused(&name, lease).contains("times_are_1900_to_2500"));
    // What is allowed, and the library's own longest limits.
    sql(
        url(),
        &format!(
            "SELECT {name}.upsert_worker_heartbeat('century', 't', p_stale_after => '100 years')"
        ),
    );
    let mut longest = Registration::new("poller", "longest");
    longest.info.interval = Duration::MAX;
    longest.info.thresholds = Some(Thresholds::new(Duration::MAX));
    let key = store.register(&[longest]).unwrap().remove(0);
    assert_eq!(beat(&store, &key), Answer::Accepted);
    assert_eq!(store.summary().unwrap().total_active, 3);
}

/// Without its constraints, as a schema of an earlier version: nothing fails for one row.
#[test]
fn a_bad_row_does_no_harm_and_a_migration_mends_it() {
    let name = schema("absurd_rows");
    let store = store(&name);
    let keys = ["a", "b"].map(|id| worker(&store, id));
    sql(url(), &format!(
        "ALTER TABLE {name}.worker_heartbeats DROP CONSTRAINT limits_are_0_to_100_years,
            DROP CONSTRAINT times_are_1900_to_2500;
         ALTER TABLE {name}.leases DROP CONSTRAINT times_are_1900_to_2500;
         INSERT INTO {name}.worker_heartbeats (worker_id, worker_type, incarnation, status,
            last_heartbeat_at, started_at, stale_after, heartbeat_interval, stall_after, startup_grace,
            metadata, restarts, beats, pid) VALUES
            ('bad-1', 't', 101, 'idle', 'infinity', '-infinity', '170000000 years', '-5 days',
                '-170000000 years', '9999 years', 'null', -7, -7, -1),
            ('bad-2', 't', 102, 'idle', '-infinity', 'infinity', '9999 years', '9999 years', NULL, NULL,
                '[1]', 9223372036854775807, 0, 9223372036854775807),
            ('bad-3', 't', 103, 'active', NULL, '200000-01-01', NULL, '1 s', NULL, NULL, '7', 0, 0, 0),
            ('bad-4', 't', 104, 'active', '-infinity', '4000-01-01 BC', NULL, '1 s', NULL, NULL,
                '\"text\"', 0, 0, 0);
         INSERT INTO {name}.leases VALUES ('r-1', 'bad-1', 101, 1, 'infinity'),
            ('r-2', 'a', {}, 2, 'infinity')",
        keys[0].incarnation
    ));
    let list = store.list(&WorkerFilter::new()).unwrap();
    assert_eq!(list.len(), 6);
    for worker in &list {
        if worker.key.id.starts_with("bad") {
            assert_eq!(worker.info.metadata, [], "{worker:?}");
        }
        assert!(store.find(&worker.key.id).unwrap().is_some());
    }
    assert_eq!(store.summary().unwrap().total, 6);
    for query in [
        "SELECT * FROM $s.v_active_workers",
        "SELECT * FROM $s.v_dead_workers",
        "SELECT * FROM $s.get_worker_stats()",
        "SELECT * FROM $s.detect_stale_workers()",
        "SELECT $s.belief_ends(w) FROM $s.worker_heartbeats w",
    ] {
        sql(url(), &query.replace("$s", &name));
    }
    // Metadata that is none takes on an entry.
    let mut all: Vec<Beat> = keys.map(|key| Beat::new(key, State::Idle)).to_vec();
    for (n, id) in [
        (101, "bad-1"),
        (102, "bad-2"),
        (103, "bad-3"),
        (104, "bad-4"),
    ] {
        let mut beat = Beat::new(WorkerKey::new(id, n), State::Idle);
        beat.metadata = vec![("place".into(), "here".into())];
        all.push(beat);
    }
    assert_eq!(store.beat(&all).unwrap(), [Answer::Accepted; 6]);
    let place = store.find("bad-1").unwrap().unwrap();
    assert_eq!(
        place.info.metadata,
        [("place".to_owned(), "here".to_owned())]
    );
    assert!(place.heartbeat_age.unwrap() < 60 * SECOND);
    sql(
        url(),
        &format!(
            "UPDATE {name}.worker_heartbeats SET last_heartbeat_at = '-infinity' WHERE worker_id = 'bad-4'"
        ),
    );
    let mut sweep = Sweep::default();
    sweep.dry_run = true;
    assert_eq!(store.sweep(&sweep).unwrap().marked_offline, ["bad-4"]);
    assert_eq!(
        store.sweep(&Sweep::default()).unwrap().marked_offline,
        ["bad-4"]
    );
    // As an upgrade does, which runs all migrations.
    sql(url(), &format!("DELETE FROM {name}.schema_migrations"));
    let store = super::store(&name);
    let bad = format!(
        "SELECT count(*) FROM {name}.worker_heartbeats WHERE stale_after > '36525 days' \
         OR NOT isfinite(started_at) OR NOT isfinite(last_heartbeat_at)"
    );
    assert_eq!(sql(url(), &bad), [["0"]]);
    assert_eq!(store.beat(&all[..3]).unwrap(), [Answer::Accepted; 3]);
}

#[test]
fn json_null_in_a_row_is_no_metadata() {
    let name = schema("null_metadata");
    let store = store(&name);
    let key = worker(&store, "a");
    let null = format!("UPDATE {name}.worker_heartbeats SET metadata = 'null'");
    sql(url(), &null);
    let metadata = || store.find("a").unwrap().unwrap().info.metadata;
    assert_eq!(metadata(), []);
    let place = [("place".to_owned(), "here".to_owned())];
    let mut beat = Beat::new(key, State::Idle);
    beat.metadata = place.to_vec();
    assert_eq!(store.beat(&[beat]).unwrap(), [Answer::Accepted]);
    assert_eq!(metadata(), place);
}
