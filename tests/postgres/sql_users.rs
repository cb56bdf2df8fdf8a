//! Programs in other languages, and roles with few rights.

use worker_heartbeat::fleet::{HeartbeatStore, Sweep, WorkerFilter};
use worker_heartbeat::{PostgresOptions, Registry, State};

use crate::store;
use crate::support::postgres::{own, schema, sql, try_sql, url};

#[test]
fn a_run_id_may_be_a_uuid() {
    let name = schema("uuid");
    let store = store(&name);
    let id = "'7b0c9a4e-1f6d-4c8e-9a53-2d1f0e6b8c77'";
    let typed = format!("{id}::uuid");
    for (n, run) in [&*typed, id, "NULL", "'run-1'", "'run-1'::text"]
        .into_iter()
        .enumerate()
    {
        sql(
            url(),
            &format!("SELECT {name}.upsert_worker_heartbeat('w-{n}', 't', 'active', {run})"),
        );
    }
    sql(
        url(),
        &format!("SELECT {name}.upsert_worker_heartbeat('w-5', 't', 'active', {typed}, 'task')"),
    );
    let named = format!(
        "SELECT {name}.upsert_worker_heartbeat(p_worker_id => 'w-6', p_worker_type => 't', \
         p_status => 'active', p_current_run_id => {typed}, p_worker_group => 'g')"
    );
    sql(url(), &named);
    // Without a status: named, and in its place.
    for (id, arguments) in [
        (
            "w-8",
            format!("p_current_run_id => {typed}, p_current_task => 'task'"),
        ),
        ("w-9", typed.clone()),
    ] {
        sql(
            url(),
            &format!("SELECT {name}.upsert_worker_heartbeat('{id}', 't', {arguments})"),
        );
    }
    let claim = format!(
        "SELECT (c).answer FROM (SELECT {name}.claim_run('w-9', incarnation, {typed}, 60000000) AS c
         FROM {name}.worker_heartbeats WHERE worker_id = 'w-9') claim"
    );
    assert_eq!(sql(url(), &claim), [["granted"]]);
    let leased = sql(url(), &format!("SELECT run_id FROM {name}.leases"));
    assert_eq!(leased, [[id.trim_matches('\'')]]);
    // Parameters of types that the driver does not know.
    let prepared = format!(
        "PREPARE beat AS SELECT {name}.upsert_worker_heartbeat($1, $2, $3, $4); \
         EXECUTE beat('w-7', 't', 'active', 'run-2')"
    );
    sql(url(), &prepared);
    let runs: Vec<_> = store
        .list(&WorkerFilter::new())
        .unwrap()
        .into_iter()
        .map(|worker| worker.status.run_id)
        .collect();
    let uuid = Some(id.trim_matches('\'').to_owned());
    let run = |text: &str| Some(text.to_owned());
    let expected = [
        uuid.clone(),
        uuid.clone(),
        None,
        run("run-1"),
        run("run-1"),
        uuid.clone(),
        uuid.clone(),
        run("run-2"),
        uuid.clone(),
        uuid,
    ];
    assert_eq!(runs, expected);
}

#[test]
fn what_programs_in_rust_cannot_have_is_refused_by_name() {
    let name = schema("refused");
    let store = store(&name);
    let (long, fits) = ("x".repeat(201), "x".repeat(200));
    for (field, arguments) in [
        ("worker_id", "'', 't'".to_owned()),
        ("worker_id", "NULL, 't'".to_owned()),
        ("worker_id", format!("'{}', 't'", "x".repeat(5_000))),
        ("worker_id", format!("'{long}', 't'")),
        ("worker_id", "E'a\\nb', 't'".to_owned()),
        ("worker_id", "E'a\\u0085b', 't'".to_owned()),
        ("worker_id", "' ', 't'".to_owned()),
        ("worker_id", "'a ', 't'".to_owned()),
        ("worker_id", "E'\\u3000a', 't'".to_owned()),
        ("worker_id", "E'a\\u202eb', 't'".to_owned()),
        ("worker_id", "E'a\\u061cb', 't'".to_owned()),
        ("worker_id", "E'a\\U000E0041b', 't'".to_owned()),
        ("worker_type", "'w', E'a\\u200b'".to_owned()),
        ("worker_type", "'w', ''".to_owned()),
        ("worker_type", format!("'w', '{long}'")),
        ("worker_group", "'w', 't', p_worker_group => ''".to_owned()),
        ("current_run_id", "'w', 't', 'active', ''".to_owned()),
        ("current_run_id", format!("'w', 't', 'active', '{long}'")),
        ("metadata", "'w', 't', p_metadata => 'null'".to_owned()),
        ("metadata", "'w', 't', p_metadata => '[1]'".to_owned()),
        ("metadata", "'w', 't', p_metadata => '7'".to_owned()),
        ("metadata", "'w', 't', p_metadata => '\"x\"'".to_owned()),
    ] {
        let call = format!("SELECT {name}.upsert_worker_heartbeat({arguments})");
        let error = try_sql(url(), &call).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "22023", "{arguments}");
        assert!(
            error.message().starts_with(&format!("{field}: ")),
            "{}",
            error.message()
        );
    }
    assert!(store.list(&WorkerFilter::new()).unwrap().is_empty());
    for arguments in [
        format!("'{fits}', '{fits}', 'active', '{fits}', p_worker_group => '{fits}'"),
        "'ä 漢 🦀', 't', p_metadata => NULL".to_owned(),
    ] {
        sql(
            url(),
            &format!("SELECT {name}.upsert_worker_heartbeat({arguments})"),
        );
    }
    assert_eq!(store.list(&WorkerFilter::new()).unwrap().len(), 2);
}

#[test]
fn a_worker_that_comes_back_after_a_sweep_keeps_what_it_said() {
    let name = schema("back");
    let store = store(&name);
    let first = format!(
        "SELECT {name}.upsert_worker_heartbeat('w', 't', 'active', NULL, NULL, '{{\"gpu\": \"a100\"}}', \
         'machine-7', '20 seconds')"
    );
    sql(url(), &first);
    let silence = format!(
        "UPDATE {name}.worker_heartbeats SET last_heartbeat_at = now() - interval '1 hour', \
         started_at = now() - interval '2 hours'"
    );
    sql(url(), &silence);
    assert_eq!(
        store.sweep(&Sweep::default()).unwrap().marked_offline,
        ["w"]
    );
    sql(
        url(),
        &format!("SELECT {name}.upsert_worker_heartbeat('w', 't')"),
    );
    let row = store.list(&WorkerFilter::new()).unwrap().remove(0);
    assert_eq!(row.health().state(), State::Active);
    assert_eq!(row.info.group, "machine-7");
    assert_eq!(row.info.metadata, [("gpu".to_owned(), "a100".to_owned())]);
    assert_eq!(row.info.thresholds.unwrap().stale_after.as_secs(), 20);
    let death = row.last_death.expect("it was lost");
    assert_eq!(death.ending.cause, "lost");
    let view = format!("SELECT last_death, last_death_at IS NOT NULL FROM {name}.v_active_workers");
    assert_eq!(sql(url(), &view), [["lost", "t"]]);
    // After a stop, it begins anew.
    sql(url(), &format!("SELECT {name}.stop_worker('w')"));
    sql(
        url(),
        &format!("SELECT {name}.upsert_worker_heartbeat('w', 't')"),
    );
    let row = store.list(&WorkerFilter::new()).unwrap().remove(0);
    assert_eq!(row.info.group, "local");
    assert!(row.info.thresholds.is_none() && row.info.metadata.is_empty());
    assert_eq!(row.last_death.unwrap().ending.cause, "lost");
}

/// The schema is the administrator's; the application has what `grants_sql` grants.
#[test]
fn a_role_with_the_documented_grants_can_do_everything_but_migrate() {
    let Some(cluster) = own() else { return };
    let admin = cluster.url();
    let options = || PostgresOptions::new().migrations(false);
    sql(&admin, &options().migration_sql().unwrap());
    sql(
        &admin,
        "CREATE ROLE \"odd \"\"role\" LOGIN PASSWORD 'x'; CREATE ROLE reader LOGIN PASSWORD 'x'; \
         REVOKE ALL ON DATABASE postgres FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC; \
         GRANT CONNECT ON DATABASE postgres TO \"odd \"\"role\", reader; \
         ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; \
         REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA worker_heartbeat FROM PUBLIC",
    );
    let (_, host) = admin.rsplit_once('@').unwrap();
    let as_role = |role: &str| format!("postgres://{role}:x@{host}");
    let refused = options().connect(&as_role("odd%20%22role"));
    assert!(refused.is_err(), "{refused:?}");
    sql(&admin, &options().grants_sql("odd \"role").unwrap());
    let store = options().connect(&as_role("odd%20%22role")).unwrap();
    worker_heartbeat::fleet::conformance::assert_conforms(&store);
    let registry = Registry::new();
    drop(registry);
    for role in ["", "a\0b", &"x".repeat(64)] {
        assert!(options().grants_sql(role).is_err(), "{role:?}");
    }
    sql(
        &admin,
        "GRANT USAGE ON SCHEMA worker_heartbeat TO reader; \
         GRANT SELECT ON ALL TABLES IN SCHEMA worker_heartbeat TO reader; \
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA worker_heartbeat TO reader",
    );
    let reader = options()
        .session_liveness(false)
        .connect(&as_role("reader"))
        .unwrap();
    assert!(reader.summary().unwrap().total > 0);
    assert!(reader.purge(std::time::Duration::ZERO).is_err());
}

#[test]
fn the_lives_of_workers_are_kept() {
    use crate::support::duties;
    duties::last_deaths_are_kept(&store(&schema("deaths")));
    duties::duplicates_are_refused_on_request(&store(&schema("duplicates")));
}
