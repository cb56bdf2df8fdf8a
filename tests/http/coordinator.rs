//! The coordinator as workers in any language see it: its answers to each kind of client.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::coordinator::{
    client, done, exchange, metadata, poll, post, post_with, request, row, rows, start,
};
use worker_heartbeat::fleet::{Registration, Sweep, conformance};
use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore, State};

#[test]
fn a_store_behind_a_coordinator_conforms() {
    let coordinator = Coordinator::new(MemoryStore::new())
        .token("s3cret")
        .serve("127.0.0.1:0")
        .unwrap();
    let store = HttpStore::builder(format!("http://{}/", coordinator.local_addr()))
        .token("s3cret")
        .build()
        .unwrap();
    conformance::assert_conforms(&store);
}

#[test]
fn a_worker_in_any_language_is_seen() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    let body =
        r#"{"tunnel_url": "https://x", "capabilities": {"gpu": [1, 2]}, "n": 7, "no": null}"#;
    let given = done(at, "register", body);
    let id = given["worker_id"].as_str().unwrap();
    assert!(id.starts_with("worker-"), "{given}");
    assert_eq!(given["heartbeat_interval_s"], 30.0);
    assert_eq!(given["stale_after_s"], 90.0);
    assert!(given["incarnation"].as_u64().unwrap() > 0);
    let seen = row(&store, id);
    assert_eq!(metadata(&seen, "tunnel_url").unwrap(), "https://x");
    assert_eq!(metadata(&seen, "capabilities").unwrap(), r#"{"gpu":[1,2]}"#);
    assert_eq!(metadata(&seen, "n").unwrap(), "7");
    assert_eq!(metadata(&seen, "no"), None);
    assert_eq!(seen.info.thresholds, None, "the worker has none of its own");
    assert_eq!(seen.health().state(), State::Starting);

    let beat = format!(r#"{{"worker_id": "{id}", "status": "healthy", "current_load": 0.0}}"#);
    let answer = done(at, "heartbeat", &beat);
    assert_eq!(answer["incarnation"], given["incarnation"]);
    let seen = row(&store, id);
    assert_eq!(seen.health().state(), State::Active);
    assert_eq!(metadata(&seen, "current_load").unwrap(), "0.0");
    assert_eq!(metadata(&seen, "status"), None);
    assert_eq!(seen.status.beats, 1);

    let other = done(at, "register", "{}");
    assert_ne!(other["worker_id"], given["worker_id"]);

    done(at, "stop", &format!(r#"{{"worker_id": "{id}"}}"#));
    assert_eq!(row(&store, id).health().state(), State::Stopped);
    let again = done(at, "stop", &format!(r#"{{"worker_id": "{id}"}}"#));
    assert_eq!(again["already_ended"], true);
}

#[test]
fn known_fields_of_a_registration_are_applied() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let body = r#"{"worker_id": "a", "worker_type": "gpu", "group": "rack", "interval": 2,
        "stall_after": 60, "metadata": {"version": "1"}}"#;
    let given = done(coordinator.local_addr(), "register", body);
    assert_eq!(given["heartbeat_interval_s"], 2.0);
    assert_eq!(given["stale_after_s"], 6.0);
    let seen = row(&store, "a");
    assert_eq!(
        (&*seen.info.worker_type, &*seen.info.group),
        ("gpu", "rack")
    );
    let own = seen.info.thresholds.clone().unwrap();
    assert_eq!(own.stall_after, Some(Duration::from_secs(60)));
    assert_eq!(metadata(&seen, "version").unwrap(), "1");
}

#[test]
fn words_for_states_are_understood_leniently() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    done(at, "register", r#"{"worker_id": "a"}"#);
    for (word, state, kept) in [
        ("starting", State::Starting, None),
        ("Idle", State::Idle, None),
        ("BUSY", State::Processing, None),
        ("processing", State::Processing, None),
        ("stopping", State::Stopping, None),
        ("unhealthy", State::Stalled, None),
        ("ok", State::Active, None),
        ("dancing", State::Active, Some("dancing")),
        // After an unknown word was kept, later words are kept too.
        ("idle", State::Idle, Some("idle")),
    ] {
        let body = format!(r#"{{"worker_id": "a", "status": "{word}", "task": "t"}}"#);
        done(at, "heartbeat", &body);
        let seen = row(&store, "a");
        assert_eq!(seen.health().state(), state, "{word}");
        assert_eq!(metadata(&seen, "status").as_deref(), kept, "{word}");
        assert_eq!(seen.status.task.as_deref(), Some("t"));
    }
    done(at, "stop", r#"{"worker_id": "a", "error": "no disk"}"#);
    let health = row(&store, "a").health().to_string();
    assert!(health.starts_with("dead: failed: no disk"), "{health}");
}

#[test]
fn a_refusal_names_its_reason() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    let refused = |what, body: &str, status, code| {
        let reply = post(at, what, body);
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(reply.json()["code"], code, "{reply:?}");
        assert!(reply.error().contains("\"a\""), "{reply:?}");
        reply.error()
    };
    for what in ["heartbeat", "stop"] {
        let why = refused(what, r#"{"worker_id": "a"}"#, 404, "unknown");
        assert!(why.contains("POST /api/worker/register"), "{why}");
    }
    let first = done(at, "register", r#"{"worker_id": "a"}"#)["incarnation"].clone();
    done(at, "register", r#"{"worker_id": "a"}"#);
    let old = format!(r#"{{"worker_id": "a", "incarnation": {first}}}"#);
    refused("heartbeat", &old, 409, "superseded");
    refused("stop", &old, 409, "superseded");
    done(at, "heartbeat", r#"{"worker_id": "a"}"#);

    // Registered by a program that does not use this coordinator.
    store.register(&[Registration::new("worker", "a")]).unwrap();
    done(at, "heartbeat", r#"{"worker_id": "a"}"#);
    assert_eq!(row(&store, "a").health().state(), State::Active);

    let key = row(&store, "a").key;
    let mut sweep = Sweep::default();
    sweep.killed = vec![key];
    assert_eq!(store.sweep(&sweep).unwrap().marked_offline, ["a"]);
    let why = refused("heartbeat", r#"{"worker_id": "a"}"#, 409, "ended");
    assert!(why.contains("register it again"), "{why}");
    let claim = r#"{"worker_id": "a", "run_id": "r", "ttl_s": 1}"#;
    refused("claim", claim, 409, "ended");
    done(at, "register", r#"{"worker_id": "a"}"#);
    done(at, "heartbeat", r#"{"worker_id": "a"}"#);

    // Removed from the store without the coordinator.
    done(at, "stop", r#"{"worker_id": "a"}"#);
    assert_eq!(store.purge(Duration::ZERO).unwrap(), 1);
    refused("heartbeat", r#"{"worker_id": "a"}"#, 404, "unknown");
}

#[test]
fn an_id_whose_holder_is_alive_is_refused_on_request() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    let body = r#"{"worker_id": "a", "refuse_duplicate": true}"#;
    let first = done(at, "register", body)["incarnation"].clone();
    let reply = post(at, "register", body);
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.error().contains("living worker"), "{reply:?}");
    assert_eq!(row(&store, "a").key.incarnation, first.as_u64().unwrap());
    // It is an instruction, no metadata.
    assert_eq!(row(&store, "a").info.metadata, []);
    let odd = r#"{"worker_id": "b", "refuse_duplicate": "yes"}"#;
    let reply = post(at, "register", odd);
    assert!(reply.error().contains("refuse_duplicate"), "{reply:?}");
    done(at, "stop", r#"{"worker_id": "a"}"#);
    done(at, "register", body);
    // Without it, the latest one counts.
    let last = done(at, "register", r#"{"worker_id": "a"}"#)["incarnation"].clone();
    assert_eq!(row(&store, "a").key.incarnation, last.as_u64().unwrap());
}

#[test]
fn a_run_is_one_workers_at_a_time() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    for id in ["a", "b"] {
        done(at, "register", &format!(r#"{{"worker_id": "{id}"}}"#));
    }
    let claim = |id: &str| {
        let body = format!(r#"{{"worker_id": "{id}", "run_id": "run", "ttl_s": 60}}"#);
        done(at, "claim", &body)
    };
    let granted = claim("a");
    assert_eq!(granted["granted"], true);
    assert_eq!(claim("b")["granted"], false);
    done(at, "heartbeat", r#"{"worker_id": "a"}"#);
    assert_eq!(row(&store, "a").status.run_id.as_deref(), Some("run"));
    let lease = |what, id: &str, fence: &serde_json::Value| {
        let body =
            format!(r#"{{"worker_id": "{id}", "run_id": "run", "fence": {fence}, "ttl_s": 60}}"#);
        done(at, what, &body)
    };
    let fence = &granted["fence"];
    assert_eq!(lease("renew", "a", fence)["held"], true);
    assert_eq!(lease("renew", "b", fence)["held"], false);
    assert_eq!(lease("release", "b", fence)["released"], false);
    assert_eq!(lease("release", "a", fence)["released"], true);
    assert_eq!(lease("renew", "a", fence)["held"], false);
    done(at, "heartbeat", r#"{"worker_id": "a"}"#);
    assert_eq!(row(&store, "a").status.run_id, None);
    let next = claim("b");
    assert!(next["fence"].as_u64() > fence.as_u64());
}

#[test]
fn absurd_requests_are_refused_with_a_reason() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    let long = "x".repeat(2_000);
    let many: Vec<String> = (0..65).map(|n| format!("\"k{n}\": 1")).collect();
    let deep = format!("{{\"x\": {}1{}}}", "[".repeat(200), "]".repeat(200));
    for body in [
        String::new(),
        "nonsense".into(),
        "[]".into(),
        "7".into(),
        "null".into(),
        "{\"worker_id\": \"a\"".into(),
        "{\"worker_id\": \"\\ud800\"}".into(),
        r#"{"worker_id": 7}"#.into(),
        r#"{"worker_id": ""}"#.into(),
        r#"{"worker_id": "a\nb"}"#.into(),
        r#"{"worker_id": "a\u0000"}"#.into(),
        r#"{"worker_id": " "}"#.into(),
        r#"{"worker_id": "a\u202eb"}"#.into(),
        r#"{"worker_type": "a\u200b"}"#.into(),
        r#"{"group": "\u3000a"}"#.into(),
        format!(r#"{{"worker_id": "{long}"}}"#),
        format!(r#"{{"group": "{long}"}}"#),
        r#"{"worker_type": ""}"#.into(),
        r#"{"worker_type": "\u001b[2J"}"#.into(),
        r#"{"interval": -1}"#.into(),
        r#"{"interval": 0}"#.into(),
        r#"{"interval": 1e300}"#.into(),
        r#"{"interval": 1e999}"#.into(),
        r#"{"interval": NaN}"#.into(),
        r#"{"interval": "30"}"#.into(),
        r#"{"interval": 30, "stale_after": 31}"#.into(),
        r#"{"stall_after": 1e18}"#.into(),
        r#"{"metadata": 7}"#.into(),
        format!(r#"{{"note": "{long}"}}"#),
        format!(r#"{{"{long}": 1}}"#),
        r#"{"a\nb": 1}"#.into(),
        format!("{{{}}}", many.join(", ")),
        deep,
    ] {
        let reply = post(at, "register", &body);
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
        assert!(!reply.error().is_empty());
        assert!(!reply.error().chars().any(char::is_control), "{reply:?}");
    }
    assert!(rows(&store).is_empty());
    done(at, "register", r#"{"worker_id": "a"}"#);
    for (what, rest) in [
        ("heartbeat", r#""incarnation": -1"#),
        ("heartbeat", r#""incarnation": 1.5"#),
        ("heartbeat", r#""status": 7"#),
        ("heartbeat", r#""progress": [1]"#),
        ("heartbeat", r#""beats": 1e30"#),
        ("claim", r#""run_id": "r""#),
        ("claim", r#""ttl_s": 10"#),
        ("claim", r#""run_id": "r", "ttl_s": 1e9"#),
        ("claim", r#""run_id": "r", "ttl_s": -1"#),
        ("claim", r#""run_id": "", "ttl_s": 10"#),
        ("renew", r#""run_id": "r", "ttl_s": 10"#),
        ("release", r#""run_id": "r", "fence": "1""#),
    ] {
        let reply = post(at, what, &format!(r#"{{"worker_id": "a", {rest}}}"#));
        assert_eq!(reply.status, 400, "{what} {rest}: {reply:?}");
        assert!(!reply.error().is_empty());
    }
    // Heartbeats add to the known metadata, within a limit.
    let statuses: Vec<u16> = (0..70)
        .map(|n| {
            let body = format!(r#"{{"worker_id": "a", "key-{n}": {n}}}"#);
            post(at, "heartbeat", &body).status
        })
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 64);
    assert_eq!(statuses[69], 400);
    assert_eq!(row(&store, "a").info.metadata.len(), 64);
}

/// The same range everywhere, and the name that the client used.
#[test]
fn an_error_names_the_field_that_was_given() {
    let coordinator = start(&MemoryStore::new());
    let at = coordinator.local_addr();
    let year = 365 * 86_400;
    for (body, says) in [
        (
            r#"{"stale_after": 0}"#.to_owned(),
            "invalid stale_after: 0ns; allowed: 20ms to 365 days",
        ),
        (
            r#"{"stale_after_s": 0}"#.to_owned(),
            "invalid stale_after_s: 0ns; allowed: 20ms to 365 days",
        ),
        (
            format!(r#"{{"stale_after": {}}}"#, year + 1),
            "invalid stale_after: 31536001s; allowed: 20ms to 365 days",
        ),
        (
            format!(r#"{{"heartbeat_interval_s": {}}}"#, 12 * year),
            "invalid heartbeat_interval_s: 378432000s; allowed: 1ms to 365 days",
        ),
        (
            r#"{"interval_s": 0}"#.to_owned(),
            "invalid interval_s: 0ns; allowed: 1ms to 365 days",
        ),
        (
            r#"{"stall_after_s": "x"}"#.to_owned(),
            "stall_after_s has to be a number of seconds, 0 or more",
        ),
        (
            r#"{"startup_grace": -1}"#.to_owned(),
            "startup_grace has to be a number of seconds, 0 or more",
        ),
        (
            r#"{"interval": null, "interval_s": 30, "stale_after_s": 31}"#.to_owned(),
            "invalid stale_after_s: 31s; allowed: at least 2 x interval, which is 30s",
        ),
    ] {
        let reply = post(at, "register", &body);
        assert_eq!((reply.status, &*reply.error()), (400, says), "{body}");
    }
    done(at, "register", r#"{"worker_id": "a"}"#);
    let claim = r#"{"worker_id": "a", "run_id": "r", "ttl_s": 0}"#;
    let said = post(at, "claim", claim);
    assert!(
        said.error().starts_with("invalid ttl_s: 0ns; allowed: "),
        "{said:?}"
    );
}

#[test]
fn unknown_paths_and_methods_are_refused() {
    let coordinator = start(&MemoryStore::new());
    let at = coordinator.local_addr();
    for path in [
        "/",
        "/api/worker",
        "/api/worker/beat",
        "/api/store",
        "//",
        "/../etc",
    ] {
        let reply = post_with(at, path, "", b"{}");
        assert_eq!(reply.status, 404, "{path}");
        reply.error();
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "ODD"] {
        let reply = exchange(at, &request(method, "/api/worker/register", "", b"{}")).unwrap();
        assert_eq!(reply.status, 405, "{method}");
        assert!(reply.head.contains("allow: post"), "{reply:?}");
        reply.error();
    }
}

#[test]
fn another_version_of_the_protocol_is_refused_with_a_reason() {
    let coordinator = start(&MemoryStore::new());
    let at = coordinator.local_addr();
    for (path, body) in [
        ("beat", r#"{"version": 2, "items": []}"#),
        ("beat", r#"{"version": 2, "whatever": 1}"#),
        ("list", r#"{"version": 2, "what": {"limit": 1}}"#),
    ] {
        let reply = post_with(at, &format!("/api/store/{path}"), "", body.as_bytes());
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.error().contains("only version 1"), "{reply:?}");
    }
    let reply = post_with(at, "/api/store/purge", "", br#"{"version": 1, "what": -1}"#);
    assert_eq!(reply.status, 400, "{reply:?}");
}

#[test]
fn requests_without_the_token_are_refused() {
    let store = MemoryStore::new();
    let coordinator = Coordinator::new(store.clone())
        .token("s3cret")
        .serve("127.0.0.1:0")
        .unwrap();
    let at = coordinator.local_addr();
    for path in ["/api/worker/register", "/api/store/beat"] {
        for headers in [
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Bearer s3cre\r\n",
            "Authorization: Basic s3cret\r\n",
            "Authorization: Bearer s3cret\r\nAuthorization: Bearer x\r\n",
        ] {
            let reply = post_with(at, path, headers, b"{}");
            assert_eq!(reply.status, 401, "{headers:?}: {reply:?}");
            assert!(reply.head.contains("www-authenticate: bearer"), "{reply:?}");
            assert!(!reply.body.contains("s3cret"), "{reply:?}");
        }
    }
    assert!(rows(&store).is_empty());
    let right = "Authorization: Bearer s3cret\r\n";
    let reply = post_with(at, "/api/worker/register", right, b"{}");
    assert_eq!(reply.status, 200, "{reply:?}");

    let url = format!("http://{at}");
    let wrong = HttpStore::builder(&url).token("hunter2").build().unwrap();
    let error = wrong.summary().unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("token"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn without_a_token_web_pages_and_remote_clients_are_refused() {
    let coordinator = start(&MemoryStore::new());
    let origin = "Origin: http://evil.example\r\n";
    let reply = post_with(
        coordinator.local_addr(),
        "/api/worker/register",
        origin,
        b"{}",
    );
    assert_eq!(reply.status, 403, "{reply:?}");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let error = Coordinator::new(MemoryStore::new())
            .serve(address)
            .expect_err(address)
            .to_string();
        assert!(error.contains("without a token"), "{error}");
    }
    let empty = Coordinator::new(MemoryStore::new()).token("");
    let error = empty.serve("127.0.0.1:0").expect_err("empty").to_string();
    assert!(error.starts_with("invalid token"), "{error}");
    let open = Coordinator::new(MemoryStore::new()).token("s3cret");
    drop(open.serve("0.0.0.0:0").unwrap());

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Coordinator::new(MemoryStore::new())
        .serve(taken.local_addr().unwrap())
        .expect_err("taken")
        .to_string();
    assert!(error.starts_with("cannot listen at 127.0.0.1:"), "{error}");
}

#[test]
fn too_many_workers_are_refused_and_those_that_ended_long_ago_make_room() {
    let store = MemoryStore::new();
    let coordinator = Coordinator::new(store.clone())
        .max_workers(3)
        .serve("127.0.0.1:0")
        .unwrap();
    let at = coordinator.local_addr();
    let register = |id: &str| post(at, "register", &format!(r#"{{"worker_id": "{id}"}}"#));
    for id in ["a", "b", "c"] {
        assert_eq!(register(id).status, 200);
    }
    let full = register("d");
    assert_eq!(full.status, 429, "{full:?}");
    assert!(full.error().contains("3 are allowed"), "{full:?}");
    let batch = client(&coordinator).register(&[Registration::new("t", "e")]);
    assert!(batch.unwrap_err().to_string().contains("coordinator, 429"));
    // Known workers may register again, as often as they like.
    for _ in 0..5 {
        assert_eq!(register("a").status, 200);
    }
    assert_eq!(rows(&store).len(), 3);
    let stop = worker_heartbeat::fleet::Stop::new(
        row(&store, "b").key,
        worker_heartbeat::fleet::StoredEnding::stopped(&worker_heartbeat::StopCause::Stop),
    )
    .ago(Duration::from_secs(7_200));
    store.stop(&[stop]).unwrap();
    poll("room", || (register("d").status == 200).then_some(()));
    let ids: Vec<_> = rows(&store).into_iter().map(|row| row.key.id).collect();
    assert_eq!(ids, ["a", "c", "d"]);
}

#[test]
fn many_workers_take_many_requests() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let client = client(&coordinator);
    let wishes: Vec<Registration> = (0..3_000)
        .map(|n| {
            let mut registration = Registration::new("t", format!("w-{n:05}"));
            registration.info.metadata = vec![("note".into(), "\u{1}".repeat(1_000))];
            registration
        })
        .collect();
    let keys = client.register(&wishes).unwrap();
    assert!(
        keys.iter()
            .zip(&wishes)
            .all(|(key, wish)| key.id == wish.id)
    );
    let beats: Vec<_> = keys
        .iter()
        .map(|key| worker_heartbeat::fleet::Beat::new(key.clone(), State::Idle))
        .collect();
    assert_eq!(client.beat(&beats).unwrap().len(), 3_000);
    let listed = rows(&client);
    assert_eq!(listed.len(), 3_000);
    assert!(listed.is_sorted_by(|a, b| a.key.id < b.key.id));
    assert_eq!(client.summary().unwrap().total_active, 3_000);
    let mut some = worker_heartbeat::fleet::WorkerFilter::default();
    some.limit = 1_234;
    assert_eq!(client.list(&some).unwrap().len(), 1_234);
}

/// `cargo test --features http --test http how_many -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn how_many_heartbeats_a_second() {
    use std::io::{Read, Write};
    let coordinator = start(&MemoryStore::new());
    let at = coordinator.local_addr();
    let each = 5_000;
    for clients in [1, 4] {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for n in 0..clients {
                scope.spawn(move || {
                    done(at, "register", &format!(r#"{{"worker_id": "w-{n}"}}"#));
                    let body = format!(r#"{{"worker_id": "w-{n}", "status": "healthy", "current_load": 0.5}}"#);
                    let length = body.len();
                    let request = format!("POST /api/worker/heartbeat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
                    let mut stream = crate::support::coordinator::connect(at);
                    stream.set_nodelay(true).unwrap();
                    let mut answer = [0; 4_096];
                    for _ in 0..each {
                        stream.write_all(request.as_bytes()).unwrap();
                        let length = stream.read(&mut answer).unwrap();
                        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
                    }
                });
            }
        });
        let rate = f64::from(clients * each) / begun.elapsed().as_secs_f64();
        println!("{clients} connections: {rate:.0} heartbeats/s");
    }
}
