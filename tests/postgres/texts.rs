//! Texts that the database cannot keep, and other values that it refuses.

use worker_heartbeat::fleet::Renewal;
use worker_heartbeat::{Activity, Coordinator, HttpStore};

use super::*;

/// A database of this encoding on the server of the tests.
fn database(encoding: &str) -> String {
    let name = schema(&encoding.to_lowercase());
    sql(
        url(),
        &format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        ),
    );
    let (server, _) = url().rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

fn store_in(database: &str) -> PostgresStore {
    PostgresOptions::new()
        .connect_timeout(60 * SECOND)
        .statement_timeout(60 * SECOND)
        .connect(database)
        .unwrap()
}

fn task(store: &impl HeartbeatStore, id: &str) -> Option<String> {
    store.find(id).unwrap().unwrap().status.task
}

#[test]
fn a_text_in_another_encoding_is_written_as_far_as_it_can_be_and_the_others_are_well() {
    for (encoding, kept, name) in [
        ("LATIN1", "Zürich ??? ?", "????"),
        ("WIN1252", "Zürich ??? ?", "????"),
        ("EUC_JP", "Zürich 日本語 ?", "日本語?"),
        ("SQL_ASCII", "Zürich 日本語 ✓", "日本語✓"),
    ] {
        let store = store_in(&database(encoding));
        let registry = Registry::new();
        let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
        let workers: Vec<_> = (0..10)
            .map(|n| {
                WorkerHeartbeat::builder("poller")
                    .id(format!("w-{n}"))
                    .metadata("place", if n == 3 { "日本語✓" } else { "here" })
                    .registry(&registry)
                    .start()
                    .unwrap()
            })
            .collect();
        for worker in &workers {
            worker.update_task("run-1", "plain", Activity::Processing);
        }
        workers[7].update_task("run-日", "Zürich 日本語 ✓", Activity::Processing);
        assert!(attachment.flush(60 * SECOND));
        assert_eq!(task(&store, "w-7").as_deref(), Some(kept), "{encoding}");
        assert_eq!(task(&store, "w-8").as_deref(), Some("plain"));
        let third = store.find("w-3").unwrap().unwrap();
        assert_eq!(third.info.metadata, [("place".to_owned(), name.to_owned())]);
        workers[5].fail("失敗 ✓");
        assert!(attachment.flush(60 * SECOND));
        let status = attachment.status();
        assert_eq!((status.failures, status.refused), (0, 0), "{status:?}");
        assert_eq!(status.replaced_texts > 0, encoding != "SQL_ASCII");
        let summary = store.summary().unwrap();
        assert_eq!(
            (summary.total_active, summary.total_dead),
            (9, 1),
            "{encoding}"
        );
    }
}

#[test]
fn a_name_in_another_encoding_is_refused_alone() {
    let store = store_in(&database("LATIN1"));
    let all = ["a", "名", "b"].map(|id| Registration::new("poller", id));
    let answers = store.register_each(&all).unwrap();
    let is_known: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(is_known, [true, false, true]);
    let refusal = answers[1].as_ref().unwrap_err().to_string();
    assert!(
        refusal.contains("名") && refusal.contains("encoding"),
        "{refusal}"
    );
    assert!(matches!(store.register(&all), Err(Error::Invalid { .. })));
    let a = answers[0].as_ref().unwrap().clone();
    let other = WorkerKey::new("名", a.incarnation);
    let beats = [&other, &a].map(|key| Beat::new(key.clone(), State::Idle));
    // Asked by a store that does not know yet what the encoding lacks.
    let fresh = || store_in_same(&store);
    assert_eq!(
        fresh().beat(&beats).unwrap(),
        [Answer::Unknown, Answer::Accepted]
    );
    let run = LeaseKey::new(a.clone(), "仕事", 7);
    let renewed = fresh()
        .try_renew(std::slice::from_ref(&run), SECOND)
        .unwrap();
    assert_eq!(renewed, [Renewal::Lost]);
    assert_eq!(fresh().release(&[run]).unwrap(), [false]);
    let refused = fresh().claim(&Claim::new(a.clone(), "仕事", 60 * SECOND));
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert!(fresh().find("名").unwrap().is_none());
    let named = WorkerFilter::new().worker_type("名");
    assert_eq!(fresh().list(&named).unwrap().len(), 0);
    let after = |id: &str| {
        let list = fresh().list(&WorkerFilter::new().after(id)).unwrap();
        let ids = list.into_iter().map(|worker| worker.key.id);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(after("a\u{10ffff}"), ["b"]);
    assert_eq!(after("名"), Vec::<String>::new());
    let stop = Stop::new(other, StoredEnding::stopped(&StopCause::Stop));
    assert_eq!(fresh().stop(&[stop]).unwrap(), [Answer::Unknown]);
}

/// Another store in the same database.
fn store_in_same(store: &PostgresStore) -> PostgresStore {
    let shown = format!("{store:?}");
    let (_, name) = shown.split_once("test_latin1").unwrap();
    let name = name
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .next();
    let (server, _) = url().rsplit_once('/').unwrap();
    store_in(&format!("{server}/test_latin1{}", name.unwrap()))
}

#[test]
fn a_coordinator_works_on_a_database_of_another_encoding() {
    let coordinator = Coordinator::new(store_in(&database("LATIN1")));
    let coordinator = coordinator.serve("127.0.0.1:0").unwrap();
    let address = format!("http://{}", coordinator.local_addr());
    let store = HttpStore::new(&address).unwrap();
    let all = ["a", "b"].map(|id| Registration::new("poller", id));
    let keys = store.register(&all).unwrap();
    let mut beats = keys.clone().map_beats();
    beats[0].status.task = Some("日本語".to_owned());
    assert_eq!(store.beat(&beats).unwrap(), [Answer::Accepted; 2]);
    assert_eq!(task(&store, "a").as_deref(), Some("???"));
    // Without an incarnation, the coordinator looks the worker up.
    let address = coordinator.local_addr().to_string();
    let post = |body: &str| {
        let request = format!(
            "POST /api/worker/heartbeat HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        support::text_http::exchange(&address, request.as_bytes()).status
    };
    assert_eq!(post("{\"worker_id\":\"b\",\"task\":\"日本\"}"), 200);
    assert_eq!(post("{\"worker_id\":\"名\"}"), 404);
}

trait Beats {
    fn map_beats(self) -> Vec<Beat>;
}

impl Beats for Vec<WorkerKey> {
    fn map_beats(self) -> Vec<Beat> {
        let beats = self.into_iter();
        beats.map(|key| Beat::new(key, State::Active)).collect()
    }
}

/// Such as constraints and triggers that an operator added.
#[test]
fn an_item_that_the_database_refuses_is_written_without_its_texts_or_refused_alone() {
    let name = schema("refused_items");
    let store = store(&name);
    let ids = ["a", "b", "c", "d"];
    let keys = ids.map(|id| register(&store, id)).to_vec();
    sql(
        url(),
        &format!(
            "ALTER TABLE {name}.worker_heartbeats ADD CHECK (current_task <> 'bad'), \
         ADD CHECK (worker_id <> 'c' OR last_heartbeat_at IS NULL), \
         ADD CHECK (ended_detail <> 'bad'), ADD CHECK (worker_group <> 'bad')"
        ),
    );
    let mut beats = keys.clone().map_beats();
    beats[1].status.task = Some("bad".to_owned());
    let answers = store.beat(&beats).unwrap();
    assert_eq!(
        answers,
        [
            Answer::Accepted,
            Answer::Accepted,
            Answer::Invalid,
            Answer::Accepted
        ]
    );
    assert_eq!(task(&store, "b"), None);
    let mut new = ["e", "f", "g"].map(|id| Registration::new("poller", id));
    new[1].info.group = "bad".to_owned();
    let registered = store.register_each(&new).unwrap();
    let is_known: Vec<bool> = registered.iter().map(Result::is_ok).collect();
    assert_eq!(is_known, [true, false, true]);
    let stops: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut ending = StoredEnding::stopped(&StopCause::Stop);
            ending.detail = (key.id == "d").then(|| "bad".to_owned());
            Stop::new(key.clone(), ending)
        })
        .collect();
    assert_eq!(store.stop(&stops).unwrap(), [Answer::Accepted; 4]);
}

/// A coordinator shares its connections among all workers.
#[test]
fn behind_a_coordinator_a_locked_worker_is_busy_and_the_others_do_not_wait() {
    let name = schema("locked_coordinator");
    let direct = store(&name);
    let coordinator = Coordinator::new(direct.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    let address = coordinator.local_addr().to_string();
    let store = HttpStore::new(format!("http://{address}")).unwrap();
    let keys = ["a", "b"].map(|id| worker(&direct, id));
    let leases = keys.clone().map(|key| {
        let run = format!("run-{}", key.id);
        match claim(&direct, &key, &run, 600 * SECOND) {
            ClaimAnswer::Granted(fence) => LeaseKey::new(key, run, fence),
            other => panic!("{other:?}"),
        }
    });
    let _locked = super::locks::lock_worker(&name, "a", "UPDATE");
    let beats = keys.clone().to_vec().map_beats();
    let answers = store.beat(&beats).unwrap();
    assert_eq!(answers, [Answer::Busy, Answer::Accepted]);
    let renewals = store.try_renew(&leases, 600 * SECOND).unwrap();
    assert_eq!(renewals, [Renewal::Busy, Renewal::Renewed]);
    assert!(super::locks::is_busy(&store.renew(&leases, 600 * SECOND)));
    let both = ["a", "c"].map(|id| Registration::new("poller", id));
    let registered = store.register_each(&both).unwrap();
    assert!(super::locks::is_busy(&registered[0]) && registered[1].is_ok());
    let claimed = store.claim(&Claim::new(keys[0].clone(), "run-2", 60 * SECOND));
    assert!(super::locks::is_busy(&claimed), "{claimed:?}");
    let post = |path: &str, body: &str| {
        let request = format!(
            "POST /api/worker/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        support::text_http::exchange(&address, request.as_bytes())
    };
    let calls = [
        ("heartbeat", r#"{"worker_id":"a"}"#.to_owned()),
        ("stop", r#"{"worker_id":"a"}"#.to_owned()),
        ("register", r#"{"worker_id":"a"}"#.to_owned()),
        (
            "claim",
            r#"{"worker_id":"a","run_id":"run-2","ttl_s":60}"#.to_owned(),
        ),
        (
            "renew",
            format!(
                r#"{{"worker_id":"a","run_id":"run-a","fence":{},"ttl_s":60}}"#,
                leases[0].fence
            ),
        ),
    ];
    for (path, body) in calls {
        let answer = post(path, &body);
        assert_eq!(answer.status, 503, "{path} {answer:?}");
        assert_eq!(answer.json()["code"], "busy", "{path}");
        assert_eq!(post("heartbeat", r#"{"worker_id":"b"}"#).status, 200);
    }
}

/// A database without an encoding does not check what another client sends.
#[test]
fn bytes_that_are_no_text_are_refused_alone() {
    let database = database("SQL_ASCII");
    let store = store_in(&database);
    register(&store, "a");
    let upsert = |arguments: &str| {
        let text = format!(
            "SET client_encoding = 'SQL_ASCII';
             SELECT worker_heartbeat.upsert_worker_heartbeat({arguments})"
        );
        support::postgres::try_sql(&database, &text)
    };
    upsert(r"'b', E'caf\303\251'").unwrap();
    for arguments in [
        r"E'bad\377', 'poller'",
        r"'b', E'bad\377'",
        r"'b', 'poller', 'active', E'bad\377'",
        r"'b', 'poller', 'active', 'run', E'bad\377'",
        r#"'b', 'poller', 'active', 'run', 'task', E'{"name": "bad\377"}'"#,
        r"'b', 'poller', 'active', 'run', 'task', '{}', E'bad\377'",
    ] {
        let error = upsert(arguments).unwrap_err();
        let error = error.as_db_error().unwrap().message();
        assert!(error.contains("invalid byte sequence"), "{error}");
    }
    assert_eq!(store.list(&WorkerFilter::default()).unwrap().len(), 2);
    assert_eq!(store.summary().unwrap().total, 2);
}
