//! The client of a coordinator behind proxies: with limits for bodies, with faults, and with answers of
//! their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::coordinator::{done, post, rows, start};
use crate::support::proxy::{Proxy, Reaction, answer};
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, LeaseKey, Registration, Stop, StoredEnding, Sweep, WorkerKey,
};
use worker_heartbeat::{
    DeathCause, Error, FleetConfig, HeartbeatStore, HttpStore, MemoryStore, Registry, State,
    StopCause, StoreErrorKind, WorkerHeartbeat,
};

const SECOND: Duration = Duration::from_secs(1);
const KIB: usize = 1024;

fn registrations(count: usize, metadata: usize) -> Vec<Registration> {
    (0..count)
        .map(|n| {
            let mut registration = Registration::new("indexer", format!("indexer-{n:04}"));
            let entries = 0..metadata.div_ceil(1_000);
            registration.info.metadata = entries
                .map(|entry| (format!("note-{entry}"), "x".repeat(metadata.min(1_000))))
                .collect();
            registration
        })
        .collect()
}

fn beats(keys: &[WorkerKey], task: usize) -> Vec<Beat> {
    let beat = |key: &WorkerKey| {
        let mut beat = Beat::new(key.clone(), State::Processing);
        beat.status.task = Some("t".repeat(task));
        beat
    };
    keys.iter().map(beat).collect()
}

fn kind(error: &Error) -> Option<StoreErrorKind> {
    match error {
        Error::Store { kind, .. } => Some(*kind),
        _ => None,
    }
}

fn refusal(error: &str) -> Reaction {
    let body = format!("{{\"error\":\"{error}\"}}");
    Reaction::Answer(answer(400, "application/json", &body))
}

// --- bodies ---------------------------------------------------------------------------------------

#[test]
fn twelve_hundred_workers_stay_well_behind_a_proxy_with_a_small_limit() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::limited(coordinator.local_addr(), 64 * KIB);
    let registry = Registry::new();
    let workers: Vec<_> = (0..1_200)
        .map(|n| {
            let hb = WorkerHeartbeat::builder("indexer")
                .id(format!("indexer-{n:04}"))
                .metadata("note", "x".repeat(900))
                .registry(&registry)
                .start()
                .unwrap();
            hb.beat();
            hb
        })
        .collect();
    let client = HttpStore::new(proxy.url()).unwrap();
    let attachment = registry.attach(client, FleetConfig::new()).unwrap();
    assert!(attachment.flush(60 * SECOND), "{:?}", attachment.status());
    let active = |store: &MemoryStore| {
        let rows = rows(store);
        rows.iter().filter(|row| row.health().is_recent()).count()
    };
    assert_eq!(active(&store), 1_200);
    drop(proxy.take());
    for hb in &workers {
        hb.update_task("run", "again", worker_heartbeat::Activity::Processing);
    }
    assert!(attachment.flush(60 * SECOND), "{:?}", attachment.status());
    assert_eq!(attachment.status().failures, 0);
    // The size that was accepted is remembered.
    let bodies = proxy.take();
    assert!(bodies.iter().all(|seen| seen.body.len() <= 64 * KIB));
    let again = rows(&store);
    let again = again.iter().map(|row| row.status.task.as_deref());
    assert_eq!(again.filter(|task| *task == Some("again")).count(), 1_200);
}

#[test]
fn no_body_is_larger_than_256_kib_unless_one_item_is() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::limited(coordinator.local_addr(), usize::MAX);
    let client = HttpStore::new(proxy.url()).unwrap();
    let mut many = registrations(500, 2_000);
    let huge = (0..64).map(|n| (format!("n{n}"), "\u{1}".repeat(1_000)));
    many[250].info.metadata = huge.collect();
    let keys = client.register(&many).unwrap();
    let bodies = proxy.take();
    let large = bodies.iter().filter(|seen| seen.body.len() > 256 * KIB);
    assert_eq!(large.count(), 1, "the one that is larger by itself");
    assert_eq!(keys.len(), 500);
    assert!(keys.iter().zip(&many).all(|(key, own)| key.id == own.id));
    let stops: Vec<Stop> = keys
        .iter()
        .map(|key| {
            let error = "e".repeat(3_000);
            let ending = StoredEnding::dead(&DeathCause::Failed { error });
            Stop::new(key.clone(), ending)
        })
        .collect();
    client.beat(&beats(&keys, 3_000)).unwrap();
    client.stop(&stops).unwrap();
    let leases: Vec<_> = keys
        .iter()
        .map(|key| LeaseKey::new(key.clone(), "r".repeat(500), 1))
        .collect();
    client.renew(&leases, SECOND).unwrap();
    client.release(&leases).unwrap();
    let bodies = proxy.take();
    assert!(bodies.len() > 10);
    assert!(bodies.iter().all(|seen| seen.body.len() <= 256 * KIB));
}

#[test]
fn a_proxy_that_refuses_without_reading_the_body_is_sent_smaller_ones() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::hasty(coordinator.local_addr(), 32 * KIB);
    // More than the kernel buffers, so that the client may see the end of the connection in place of
    // the answer.
    let client = HttpStore::builder(proxy.url())
        .max_request_bytes(4 * KIB * KIB)
        .build()
        .unwrap();
    let keys = client.register(&registrations(4_000, 1_000)).unwrap();
    assert_eq!(keys.len(), 4_000);
    assert_eq!(rows(&store).len(), 4_000);
    let answers = client.beat(&beats(&keys, 1_000)).unwrap();
    assert!(answers.iter().all(|answer| *answer == Answer::Accepted));
}

#[test]
fn an_item_beyond_the_limit_is_sent_without_its_long_texts() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::limited(coordinator.local_addr(), 2 * KIB);
    let client = HttpStore::new(proxy.url()).unwrap();
    let mut many = registrations(20, 100);
    many[7] = registrations(8, 20_000).remove(7);
    let keys = client.register(&many).unwrap();
    let rows = || rows(&store);
    assert_eq!(rows().len(), 20);
    let long = &rows()[7].info.metadata;
    assert!(
        long.iter().all(|(_, value)| value.len() < 1_000),
        "{long:?}"
    );
    assert!(rows()[8].info.metadata[0].1 == "x".repeat(100));
    let mut sent = beats(&keys, 10);
    sent[3].status.task = Some("t".repeat(4_000));
    sent[3].status.reason = Some("r".repeat(4_000));
    for _ in 0..3 {
        let answers = client.beat(&sent).unwrap();
        assert!(answers.iter().all(|answer| *answer == Answer::Accepted));
    }
    let task = rows()[3].status.task.clone().unwrap_or_default();
    assert!(task.starts_with("ttt") && task.ends_with('…'), "{task}");
    let error = "e".repeat(9_000);
    let ending = StoredEnding::dead(&DeathCause::Failed { error });
    let stopped = client.stop(&[Stop::new(keys[3].clone(), ending)]).unwrap();
    assert_eq!(stopped, [Answer::Accepted]);
    assert_eq!(rows()[3].health().state(), State::Dead);
    assert_eq!(client.items_reduced(), 5);
}

#[test]
fn a_sweeps_lists_are_sent_in_parts() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::limited(coordinator.local_addr(), 32 * KIB);
    let client = HttpStore::new(proxy.url()).unwrap();
    let keys = client.register(&registrations(3_000, 0)).unwrap();
    let mut sweep = Sweep::default();
    sweep.gone = keys[..2_000].to_vec();
    sweep.killed = keys[1_000..].to_vec();
    sweep.watched_for = Duration::ZERO;
    let report = client.sweep(&sweep).unwrap();
    assert!(report.success);
    assert_eq!(report.marked_offline.len(), 3_000);
    assert_eq!(report.affected_groups, ["local"]);
    assert!(rows(&store).iter().all(|row| row.ending.is_some()));
    let accepted = proxy.take();
    assert!(accepted.len() > 3, "{}", accepted.len());
}

#[test]
fn the_limit_of_bodies_is_checked() {
    for bytes in [0, 1_023, 4 * KIB * KIB + 1] {
        let refused = HttpStore::builder("http://localhost").max_request_bytes(bytes);
        let error = refused.build().unwrap_err().to_string();
        assert!(error.starts_with("invalid max_request_bytes: "), "{error}");
    }
}

// --- several coordinators -------------------------------------------------------------------------

#[test]
fn coordinators_behind_a_load_balancer_serve_one_store() {
    let store = MemoryStore::new();
    let coordinators = [start(&store), start(&store)];
    let [a, b] = coordinators.each_ref().map(|one| one.local_addr());
    let worker = r#"{"worker_id": "w", "worker_type": "t"}"#;
    done(a, "register", worker);
    done(b, "heartbeat", r#"{"worker_id": "w", "from": "b"}"#);
    // What the first one remembers of it is out of date.
    done(b, "register", worker);
    done(a, "heartbeat", r#"{"worker_id": "w", "from": "a"}"#);
    let claim = r#"{"worker_id": "w", "run_id": "r", "ttl_s": 60}"#;
    let claimed = done(a, "claim", claim);
    let lease = |ttl: &str| {
        let fence = &claimed["fence"];
        format!(r#"{{"worker_id": "w", "run_id": "r", "fence": {fence}{ttl}}}"#)
    };
    assert_eq!(done(b, "renew", &lease(r#", "ttl_s": 60"#))["held"], true);
    assert_eq!(done(a, "release", &lease(""))["released"], true);
    done(b, "stop", r#"{"worker_id": "w"}"#);
    assert_eq!(post(a, "heartbeat", r#"{"worker_id": "w"}"#).status, 409);
    assert_eq!(rows(&store).len(), 1);
}

// --- one bad item ---------------------------------------------------------------------------------

#[test]
fn one_bad_item_does_not_fail_the_others() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::new(coordinator.local_addr(), |seen| {
        if seen.body.contains("indexer-0042") {
            refusal("worker indexer-0042: it is not welcome")
        } else {
            Reaction::Forward
        }
    });
    let client = HttpStore::new(proxy.url()).unwrap();
    let all = registrations(100, 0);
    let registered = client.register_each(&all).unwrap();
    for (n, key) in registered.iter().enumerate() {
        let error = key.as_ref().err().map(ToString::to_string);
        assert_eq!(error.is_some(), n == 42, "{n}: {error:?}");
        assert!(error.is_none_or(|error| error.contains("not welcome")));
    }
    assert!(matches!(client.register(&all), Err(Error::Invalid { .. })));
    let mut keys = store.register(&all).unwrap();
    let one_invalid = |answers: Vec<Answer>| {
        for (n, answer) in answers.iter().enumerate() {
            let expected = [Answer::Accepted, Answer::Invalid][usize::from(n == 42)];
            assert_eq!(*answer, expected, "{n}");
        }
    };
    one_invalid(client.beat(&beats(&keys, 10)).unwrap());
    let leases: Vec<_> = keys
        .iter()
        .map(|key| {
            let claim = Claim::new(key.clone(), format!("run-{}", key.id), 60 * SECOND);
            match store.claim(&claim).unwrap() {
                worker_heartbeat::fleet::ClaimAnswer::Granted(fence) => {
                    LeaseKey::new(claim.worker, claim.run_id, fence)
                }
                other => panic!("{other:?}"),
            }
        })
        .collect();
    let renewals = client.try_renew(&leases, 60 * SECOND).unwrap();
    for (n, renewal) in renewals.iter().enumerate() {
        use worker_heartbeat::fleet::Renewal;
        let expected = [Renewal::Renewed, Renewal::Busy][usize::from(n == 42)];
        assert_eq!(*renewal, expected, "{n}");
    }
    let released = client.release(&leases).unwrap();
    assert_eq!(released.iter().filter(|released| **released).count(), 99);
    let stop = |key: WorkerKey| Stop::new(key, StoredEnding::stopped(&StopCause::Completed));
    let stops: Vec<_> = keys.drain(..).map(stop).collect();
    one_invalid(client.stop(&stops).unwrap());
    // The search for one item among a hundred takes few requests.
    drop(proxy.take());
    one_invalid(
        client
            .beat(&beats(&store_keys(&store), 10))
            .unwrap_or_default(),
    );
    assert!(proxy.take().len() < 25);
}

fn store_keys(store: &MemoryStore) -> Vec<WorkerKey> {
    let all = registrations(100, 0);
    store.register(&all).unwrap()
}

#[test]
fn if_all_are_refused_the_search_ends() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::new(coordinator.local_addr(), |_| refusal("none is welcome"));
    let client = HttpStore::new(proxy.url()).unwrap();
    let keys = store.register(&registrations(1_000, 0)).unwrap();
    let answers = client.beat(&beats(&keys, 10)).unwrap();
    assert!(answers.iter().all(|answer| *answer == Answer::Invalid));
    let asked = proxy.take().len();
    assert!(asked < 150, "{asked} requests");
    // A proxy's refusal is none of the coordinator, and does not concern an item.
    let page = "<html>400 Bad Request</html>";
    let proxy = Proxy::new(coordinator.local_addr(), move |_| {
        Reaction::Answer(answer(400, "text/html", page))
    });
    let client = HttpStore::new(proxy.url()).unwrap();
    let error = client.beat(&beats(&keys, 10)).unwrap_err();
    assert!(error.to_string().contains("400"), "{error}");
    assert_eq!(proxy.take().len(), 1);
}

// --- failures -------------------------------------------------------------------------------------

#[test]
fn what_was_accepted_before_a_failure_is_accepted() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let proxy = Proxy::new(coordinator.local_addr(), move |_| {
        // Each third one.
        if counted.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
            Reaction::Answer(answer(503, "text/html", "<html>no server</html>"))
        } else {
            Reaction::Forward
        }
    });
    let client = HttpStore::builder(proxy.url())
        .max_request_bytes(8 * KIB)
        .build()
        .unwrap();
    let all = registrations(200, 0);
    let first = client.register_each(&all).unwrap();
    let done = first.iter().take_while(|key| key.is_ok()).count();
    assert!(done > 10 && done < 200, "{done}");
    for key in &first[done..] {
        let error = key.as_ref().unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }
    assert_eq!(rows(&store).len(), done);
    let keys = store.register(&all).unwrap();
    count.store(0, Ordering::SeqCst);
    let answers = client.beat(&beats(&keys, 10)).unwrap();
    let accepted = answers.iter().filter(|answer| **answer == Answer::Accepted);
    let accepted = accepted.count();
    let busy = answers.iter().filter(|answer| **answer == Answer::Busy);
    assert!(accepted > 10 && accepted + busy.count() == 200);
    // The failure of the first part is the failure of the call.
    count.store(2, Ordering::SeqCst);
    let error = client.beat(&beats(&keys, 10)).unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");

    // An uploader comes to its end in spite of it.
    let registry = Registry::new();
    let workers: Vec<_> = (0..200)
        .map(|n| {
            let builder = WorkerHeartbeat::builder("mailer").id(format!("mailer-{n}"));
            builder.registry(&registry).start().unwrap()
        })
        .collect();
    let attachment = registry.attach(client, FleetConfig::new()).unwrap();
    crate::support::coordinator::poll("registration", || {
        (attachment.status().registered == 200).then_some(())
    });
    drop(workers);
}

#[test]
fn a_rate_limit_is_not_answered_with_more_requests() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = Proxy::new(coordinator.local_addr(), |_| {
        let answer = "HTTP/1.1 429 X\r\nRetry-After: 17\r\nContent-Length: 4\r\n\r\nslow";
        Reaction::Answer(answer.into())
    });
    let client = HttpStore::new(proxy.url()).unwrap();
    let error = client.register(&registrations(1_000, 0)).unwrap_err();
    assert_eq!(kind(&error), Some(StoreErrorKind::Busy), "{error}");
    assert!(error.to_string().contains("17 s"), "{error}");
    assert_eq!(proxy.take().len(), 1);
}

#[test]
fn a_connection_that_is_closed_when_it_is_used_again_is_replaced() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    // A server that is tired of a connection, and closes it when the next request is on its way.
    let proxy = Proxy::new(coordinator.local_addr(), |seen| {
        if seen.before_here > 0 {
            Reaction::Close
        } else {
            Reaction::Forward
        }
    });
    let client = HttpStore::new(proxy.url()).unwrap();
    let keys = client.register(&registrations(3, 0)).unwrap();
    for _ in 0..5 {
        client.beat(&beats(&keys, 10)).unwrap();
        client.list(&Default::default()).unwrap();
    }
    assert!(proxy.take().len() > 11);
    // A coordinator that has gone is not asked for ever.
    let gone = Proxy::new(coordinator.local_addr(), |_| Reaction::Close);
    let client = HttpStore::new(gone.url()).unwrap();
    let error = client.beat(&beats(&keys, 10)).unwrap_err();
    assert_eq!(kind(&error), Some(StoreErrorKind::Unreachable), "{error}");
    assert_eq!(gone.take().len(), 2);
    // A claim that may have been granted is not repeated.
    let claim = Claim::new(keys[0].clone(), "run", SECOND);
    let client = HttpStore::new(gone.url()).unwrap();
    client.claim(&claim).unwrap_err();
    assert_eq!(gone.take().len(), 1);
    client.claim(&claim.attempt(7)).unwrap_err();
    assert_eq!(gone.take().len(), 2);
}

#[test]
fn answers_of_others_are_failures_that_say_what_is_wrong() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let page = "<html>\u{1b}[31m</html>";
    let gzip = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\u{1f}\u{8}x";
    let moved = "HTTP/1.1 308 X\r\nLocation: https://fleet.example/api?key=hunter2\r\n\
                 Content-Length: 0\r\n\r\n";
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"answers\":[";
    let cases: Vec<(Vec<u8>, &[&str], StoreErrorKind)> = vec![
        (
            answer(502, "text/html", page),
            &["502", "proxy"],
            StoreErrorKind::Unreachable,
        ),
        (
            answer(503, "text/html", page),
            &["503", "proxy"],
            StoreErrorKind::Busy,
        ),
        (
            answer(504, "text/html", page),
            &["504", "proxy"],
            StoreErrorKind::Timeout,
        ),
        (
            answer(404, "text/plain", ""),
            &["404", "/api/store/beat"],
            StoreErrorKind::Incompatible,
        ),
        (
            answer(405, "text/plain", ""),
            &["405", "/api/store/beat"],
            StoreErrorKind::Incompatible,
        ),
        (
            answer(403, "text/html", page),
            &["403"],
            StoreErrorKind::Denied,
        ),
        (
            answer(200, "text/html", page),
            &["text/html"],
            StoreErrorKind::Incompatible,
        ),
        (
            answer(204, "text/html", ""),
            &["204"],
            StoreErrorKind::Incompatible,
        ),
        (gzip.into(), &["gzip"], StoreErrorKind::Incompatible),
        (
            moved.into(),
            &["308", "https://fleet.example/api"],
            StoreErrorKind::Incompatible,
        ),
        (short.into(), &["incomplete"], StoreErrorKind::Unreachable),
    ];
    let keys = store.register(&registrations(10, 0)).unwrap();
    for (bytes, expected, of_kind) in cases {
        let answered = bytes.clone();
        let proxy = Proxy::new(coordinator.local_addr(), move |_| {
            Reaction::Last(answered.clone())
        });
        let client = HttpStore::new(proxy.url()).unwrap();
        let error = client.beat(&beats(&keys, 10)).unwrap_err();
        let text = error.to_string();
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(kind(&error), Some(of_kind), "{text}");
        assert_eq!(proxy.take().len(), 1, "{text}");
    }
    // An answer without an end.
    let proxy = Proxy::new(coordinator.local_addr(), |_| {
        Reaction::Endless(" ".repeat(64 * KIB))
    });
    let client = HttpStore::new(proxy.url()).unwrap();
    let error = client.beat(&beats(&keys, 10)).unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}

#[test]
fn interim_answers_and_old_versions_of_http_are_understood() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let keys = store.register(&registrations(10, 0)).unwrap();
    for before in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
    ] {
        let proxy = Proxy::new(coordinator.local_addr(), move |_| Reaction::Before(before));
        let client = HttpStore::new(proxy.url()).unwrap();
        for _ in 0..3 {
            // Not the answer to the request before.
            let answers = client.beat(&beats(&keys, 10)).unwrap();
            assert_eq!(answers, [Answer::Accepted; 10], "{before}");
            assert_eq!(client.list(&Default::default()).unwrap().len(), 10);
        }
    }
    let proxy = Proxy::new(coordinator.local_addr(), |_| {
        let answers = r#"{"answers":["accepted","accepted"]}"#;
        Reaction::Last(format!("HTTP/1.0 200 OK\r\n\r\n{answers}").into())
    });
    let client = HttpStore::new(proxy.url()).unwrap();
    let answers = client.beat(&beats(&keys[..2], 10)).unwrap();
    assert_eq!(answers, [Answer::Accepted; 2]);
    assert_eq!(client.beat(&beats(&keys[..2], 10)).unwrap().len(), 2);
}
