//! The coordinator and its clients under faults: slow and malformed clients, stores that hang and
//! panic, coordinators that are down, killed workers.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::coordinator::{
    client, connect, done, exchange, poll, post, post_with, read, request, row, rows, start,
};
use crate::support::process::Process;
use crate::support::store::{Mode, TestStore};
use nix::sys::signal::Signal;
use proptest::prelude::*;
use worker_heartbeat::RunningCoordinator;
use worker_heartbeat::fleet::Registration;
use worker_heartbeat::{
    Coordinator, Error, FleetConfig, HeartbeatStore, HttpStore, MemoryStore, Registry, State,
    StoreErrorKind, Sweeper, WorkerHeartbeat,
};

const SECOND: Duration = Duration::from_secs(1);

// --- clients --------------------------------------------------------------------------------------

#[test]
fn large_bodies_are_refused() {
    let coordinator = start(&MemoryStore::new());
    let at = coordinator.local_addr();
    let body = |length: usize| {
        let mut body = br#"{"worker_id": "a"}"#.to_vec();
        body.resize(length, b' ');
        body
    };
    let path = "/api/worker/register";
    assert_eq!(post_with(at, path, "", &body(64 * 1024)).status, 200);
    for length in [64 * 1024 + 1, 200 * 1024, 4 * 1024 * 1024] {
        let reply = post_with(at, path, "", &body(length));
        assert_eq!(reply.status, 413, "{length}: {reply:?}");
        assert!(reply.error().contains("65536 bytes"), "{reply:?}");
    }
    // A request without a length.
    let mut chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    for _ in 0..100 {
        chunked += &format!("400\r\n{}\r\n", " ".repeat(1_024));
    }
    chunked += "0\r\n\r\n";
    assert_eq!(exchange(at, chunked.as_bytes()).unwrap().status, 413);
    let reply = post_with(at, "/api/store/beat", "", &body(4 * 1024 * 1024 + 1));
    assert_eq!(reply.status, 413, "{reply:?}");
    // A head without an end.
    let head = format!("POST {path} HTTP/1.1\r\nX: {}", "x".repeat(2_000_000));
    assert!(exchange(at, head.as_bytes()).is_none_or(|reply| reply.status == 431));
}

#[test]
fn slow_clients_are_disconnected_and_delay_no_others() {
    let coordinator = Coordinator::new(MemoryStore::new())
        .body_timeout(SECOND / 2)
        .serve("127.0.0.1:0")
        .unwrap();
    let at = coordinator.local_addr();
    let begun = Instant::now();
    // More clients than the limit for requests of one kind.
    let slow: Vec<_> = (0..40)
        .map(|n| {
            let path = ["/api/worker/register", "/api/store/beat"][n % 2];
            let mut stream = connect(at);
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{{");
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let mut heads: Vec<_> = (0..20).map(|_| connect(at)).collect();
    for stream in &mut heads {
        stream.write_all(b"POST /api/worker/reg").unwrap();
    }
    done(at, "register", r#"{"worker_id": "a"}"#);
    let asked = begun.elapsed();
    assert!(asked < 5 * SECOND, "{asked:?}");
    for mut stream in slow {
        // Sending single bytes does not extend the time.
        let _ = stream.write_all(b" ");
        let reply = read(stream).unwrap();
        assert_eq!(reply.status, 408, "{reply:?}");
        reply.error();
    }
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
    // Closed, with or without an answer.
    for stream in heads {
        assert!(read(stream).is_none_or(|reply| reply.status == 408));
    }
    assert!(begun.elapsed() < 40 * SECOND, "{:?}", begun.elapsed());
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let many: Vec<Registration> = (0..1_000)
        .map(|n| {
            let mut registration = Registration::new("t", n.to_string());
            registration.info.metadata = vec![
                ("note".into(), "x".repeat(1_000)),
                ("odd".into(), "\u{1}".repeat(1_000)),
            ];
            registration
        })
        .collect();
    store.register(&many).unwrap();
    let body = br#"{"version": 1, "what": {"limit": 1000}}"#;
    let list = request("POST", "/api/store/list", "", body);
    let page = exchange(coordinator.local_addr(), &list).unwrap();
    assert_eq!(page.status, 200);
    // More than the kernel buffers for a client that does not read.
    let mut stream = connect(coordinator.local_addr());
    let again = String::from_utf8(list)
        .unwrap()
        .replace("Connection: close\r\n", "");
    let pages = 10;
    stream.write_all(again.repeat(pages).as_bytes()).unwrap();
    thread::sleep(20 * SECOND);
    let came = read_lossy(stream).len();
    assert!(came < page.body.len() * pages, "{came} bytes after all");
}

/// Shared by all cases, so that the effects of one case would show in the others.
static MAD: LazyLock<RunningCoordinator> = LazyLock::new(|| {
    let coordinator = start(&MemoryStore::new());
    let at = coordinator.local_addr();
    for id in ["a", "b"] {
        done(at, "register", &format!(r#"{{"worker_id": "{id}"}}"#));
    }
    coordinator
});

fn path() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "/api/worker/register",
        "/api/worker/heartbeat",
        "/api/worker/stop",
        "/api/worker/claim",
        "/api/worker/renew",
        "/api/worker/release",
        "/api/store/register",
        "/api/store/beat",
        "/api/store/stop",
        "/api/store/list",
        "/api/store/sweep",
        "/api/store/purge",
        "/api/store/claim",
        "/api/store/renew",
        "/api/store/release",
    ]);
    prop_oneof![
        12 => known.prop_map(str::to_owned),
        1 => "/[a-z/.%0-9?=&]{0,40}",
    ]
}

/// JSON of names that are understood, and values of every kind.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("\"a\"".to_owned()),
        Just("\"b\"".to_owned()),
        Just("\"accepted\"".to_owned()),
        Just("1".to_owned()),
        Just("-1".to_owned()),
        Just("1e308".to_owned()),
        Just("18446744073709551615".to_owned()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    let name = prop::sample::select(vec![
        "worker_id",
        "incarnation",
        "worker_type",
        "group",
        "interval",
        "stale_after",
        "status",
        "metadata",
        "progress",
        "beats",
        "task",
        "run_id",
        "ttl_s",
        "fence",
        "version",
        "items",
        "what",
        "id",
        "explicit",
        "interval_s",
        "thresholds",
        "state",
        "heartbeat_age_s",
        "ending",
        "stopped",
        "cause",
        "ago_s",
        "limit",
        "after",
        "threshold_s",
        "watched_for_s",
        "killed",
        "gone",
        "dry_run",
        "worker",
        "process",
        "error",
        "odd",
    ]);
    leaf.prop_recursive(4, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((name.clone(), inner), 0..8).prop_map(|fields| {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| format!("\"{name}\":{value}"))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

/// Requests that are almost valid.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let with = |prefix: &'static str| {
        json().prop_map(move |json| match json.strip_prefix('{') {
            Some("}") | None => format!("{prefix}}}"),
            Some(rest) => format!("{prefix},{rest}"),
        })
    };
    prop_oneof![
        with(r#"{"worker_id":"a""#).prop_map(String::into_bytes),
        with(r#"{"worker_id":"a","run_id":"r","ttl_s":1,"fence":1"#).prop_map(String::into_bytes),
        json()
            .prop_map(|json| format!(r#"{{"version":1,"ttl_s":9,"items":[{json}]}}"#).into_bytes()),
        json().prop_map(|json| format!(r#"{{"version":1,"what":{json}}}"#).into_bytes()),
        json().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..300),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn whatever_is_asked_is_answered(path in path(), body in body()) {
        let begun = Instant::now();
        let reply = exchange(MAD.local_addr(), &request("POST", &path, "", &body));
        let reply = reply.expect("an answer");
        let fine = (200..500).contains(&reply.status) || reply.status == 503;
        prop_assert!(fine, "{reply:?}");
        if reply.status != 200 && !reply.body.is_empty() {
            let error: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
            let error = error["error"].as_str().unwrap();
            prop_assert!(!error.is_empty() && !error.chars().any(char::is_control), "{error:?}");
        }
        prop_assert!(begun.elapsed() < 20 * SECOND);
    }

    #[test]
    fn malformed_http_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut stream = connect(MAD.local_addr());
        let _ = stream.write_all(&bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        drop(read_lossy(stream));
    }
}

fn read_lossy(mut stream: std::net::TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
    answer
}

// --- stores ---------------------------------------------------------------------------------------

#[test]
fn a_hanging_panicking_or_failing_store_is_reported_and_the_coordinator_goes_on() {
    let store = TestStore::default();
    let coordinator = Coordinator::new(store.clone())
        .store_calls(2)
        .store_timeout(SECOND / 2)
        .serve("127.0.0.1:0")
        .unwrap();
    let at = coordinator.local_addr();
    done(at, "register", r#"{"worker_id": "a"}"#);
    let beat = || post(at, "heartbeat", r#"{"worker_id": "a"}"#);

    store.hang();
    let begun = Instant::now();
    let replies: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = (0..10).map(|_| scope.spawn(beat)).collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
    for reply in &replies {
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(reply.head.contains("retry-after: 1"), "{reply:?}");
    }
    let queued = replies
        .iter()
        .filter(|reply| reply.error().contains("too many calls to the store"));
    assert_eq!(queued.count(), 8, "two calls at a time");
    store.recover();
    poll("recovery", || (beat().status == 200).then_some(()));

    store.fail("secret.example is down\n\u{1b}[2J");
    let reply = beat();
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(!reply.body.contains("secret"), "{reply:?}");
    store.recover();

    store.set(Mode::Panicking);
    for _ in 0..5 {
        let reply = beat();
        assert_eq!(reply.status, 500, "{reply:?}");
        assert_eq!(reply.error(), "the store panicked");
    }
    store.recover();
    assert_eq!(beat().status, 200);
}

#[test]
fn dropping_it_ends_its_thread_and_frees_its_port_even_during_requests() {
    let store = TestStore::default();
    let coordinator = Coordinator::new(store.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    let at = coordinator.local_addr();
    done(at, "register", r#"{"worker_id": "a"}"#);
    let idle = connect(at);
    let mut half = connect(at);
    half.write_all(b"POST /api/worker/register HTTP/1.1\r\nContent-Length: 10\r\n\r\n{")
        .unwrap();
    store.hang();
    let asked = thread::spawn(move || {
        let body = br#"{"worker_id": "a"}"#;
        exchange(at, &request("POST", "/api/worker/heartbeat", "", body))
    });
    thread::sleep(SECOND / 5);
    let begun = Instant::now();
    drop(coordinator);
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
    // No client is left waiting.
    drop(asked.join().unwrap());
    drop(read_lossy(idle));
    drop(read_lossy(half));
    store.recover();
    drop(TcpListener::bind(at).expect("the port is free"));
    let again = Coordinator::new(store).serve(at).unwrap();
    done(again.local_addr(), "heartbeat", r#"{"worker_id": "a"}"#);
}

// --- processes with an HttpStore ------------------------------------------------------------------

fn worker(registry: &Registry, id: &str) -> WorkerHeartbeat {
    WorkerHeartbeat::builder("indexer")
        .id(id)
        .interval(SECOND / 2)
        .stale_after(2 * SECOND)
        .registry(registry)
        .start()
        .unwrap()
}

fn is_active(store: &impl HeartbeatStore, id: &str) -> Option<()> {
    let rows = rows(store);
    let row = rows.iter().find(|row| row.key.id == id)?;
    (row.health().state() == State::Active).then_some(())
}

fn again_at(at: SocketAddr, store: &MemoryStore) -> RunningCoordinator {
    poll("port", || Coordinator::new(store.clone()).serve(at).ok())
}

#[test]
fn after_a_restart_without_records_all_workers_register_again() {
    let first = MemoryStore::new();
    let coordinator = start(&first);
    let at = coordinator.local_addr();
    let registry = Registry::new();
    let attachment = registry
        .attach(client(&coordinator), FleetConfig::new())
        .unwrap();
    let workers = ["a", "b"].map(|id| worker(&registry, id));
    for hb in &workers {
        hb.beat();
    }
    for id in ["a", "b"] {
        poll("heartbeat", || is_active(&first, id));
    }
    drop(coordinator);
    poll("failure", || {
        (attachment.status().failures_in_a_row > 0).then_some(())
    });
    for hb in &workers {
        hb.beat();
        assert!(hb.is_recent(), "the worker is not affected");
    }
    let second = MemoryStore::new();
    let coordinator = again_at(at, &second);
    let begun = Instant::now();
    for id in ["a", "b"] {
        poll("registration", || is_active(&second, id));
    }
    let back = begun.elapsed();
    println!("all workers were active again after {back:?}");
    assert!(back < 5 * SECOND, "{back:?} for an interval of 500 ms");
    assert_eq!(registry.summary().total_active, 2);
    let lease = workers[0].claim("run", 60 * SECOND).unwrap().unwrap();
    assert!(lease.is_held());
    assert!(workers[1].claim("run", 60 * SECOND).unwrap().is_none());
    drop(lease);
    drop(workers);
    let stopped = || (row(&second, "a").health().state() == State::Stopped).then_some(());
    poll("end", stopped);
    drop(coordinator);
}

#[test]
fn a_refused_worker_does_not_silence_the_accepted_ones() {
    let store = MemoryStore::new();
    let coordinator = Coordinator::new(store.clone())
        .max_workers(1)
        .serve("127.0.0.1:0")
        .unwrap();
    let registry = Registry::new();
    let attachment = registry
        .attach(client(&coordinator), FleetConfig::new())
        .unwrap();
    let a = worker(&registry, "a");
    a.beat();
    poll("heartbeat", || is_active(&store, "a"));
    let lease = a.claim("run", 2 * SECOND).unwrap().unwrap();
    let b = worker(&registry, "b");
    b.beat();
    let refused = poll("refusal", || attachment.status().last_error);
    assert!(refused.contains("1 are allowed"), "{refused}");
    let begun = Instant::now();
    while begun.elapsed() < 4 * SECOND {
        a.beat();
        thread::sleep(SECOND / 10);
    }
    // Otherwise the worker would be stale by now, and stay stale.
    poll("heartbeat", || is_active(&store, "a"));
    poll("lease", || lease.is_held().then_some(()));
    assert_eq!(rows(&store).len(), 1);
}

/// The role of the killed process.
pub(crate) fn play(url: &str) {
    let registry = Registry::new();
    let _attachment = registry
        .attach(HttpStore::new(url).unwrap(), FleetConfig::new())
        .unwrap();
    let hb = worker(&registry, "victim");
    println!("\n@ready");
    loop {
        hb.beat();
        thread::sleep(SECOND / 10);
    }
}

#[test]
fn a_killed_workers_record_becomes_true() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let victim = Process::start(&format!("http://{}", coordinator.local_addr()));
    poll("heartbeat", || is_active(&store, "victim"));
    victim.signal(Signal::SIGKILL);
    let killed = Instant::now();
    poll("silence", || {
        (row(&store, "victim").health().state() == State::Stale).then_some(())
    });
    let silent = killed.elapsed();
    assert!(silent > SECOND / 2, "stale after {silent:?}, too early");
    // A sweeper on the same host, which also uses the coordinator, can prove the death.
    let report = Sweeper::new(client(&coordinator)).sweep().unwrap();
    assert_eq!(report.marked_offline, ["victim"]);
    let health = row(&store, "victim").health().to_string();
    assert!(
        health.starts_with("dead: its process was killed"),
        "{health}"
    );
    victim.wait();
}

#[test]
fn a_server_that_never_answers_fails_in_time_and_slows_no_worker() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", mute.local_addr().unwrap());
    let taken = Arc::new(AtomicBool::new(true));
    let taking = Arc::clone(&taken);
    mute.set_nonblocking(true).unwrap();
    let accepts = thread::spawn(move || {
        let mut kept = Vec::new();
        while taking.load(Ordering::Relaxed) {
            kept.extend(mute.accept().ok());
            thread::sleep(Duration::from_millis(5));
        }
    });
    let store = HttpStore::builder(url).timeout(SECOND / 2).build().unwrap();
    let begun = Instant::now();
    let error = store.summary().unwrap_err();
    let took = begun.elapsed();
    let kind = StoreErrorKind::Timeout;
    assert!(matches!(&error, Error::Store { kind: is, .. } if *is == kind));
    let source = std::error::Error::source(&error).expect("the error of the client");
    let (error, source) = (error.to_string(), source.to_string());
    assert!(!error.contains(&source), "{error}: {source}");
    assert!(took >= SECOND / 2 && took < 20 * SECOND, "{took:?}");
    assert!(error.starts_with("store: cannot list: "), "{error}");

    let registry = Registry::new();
    let attachment = registry.attach(store, FleetConfig::new()).unwrap();
    let hb = worker(&registry, "a");
    let begun = Instant::now();
    for n in 0..100_000 {
        hb.beat();
        if n % 100 == 0 {
            hb.update_task("run", "t", worker_heartbeat::Activity::Processing);
        }
    }
    let took = begun.elapsed();
    // Half a second a call, if they waited for the server.
    assert!(took < 60 * SECOND, "{took:?} for 100,000 beats");
    poll("failure", || {
        (attachment.status().failures > 1).then_some(())
    });
    assert!(hb.is_recent());
    let claimed = hb.claim("run-1", SECOND);
    assert!(matches!(claimed, Err(Error::Store { .. })), "{claimed:?}");
    let begun = Instant::now();
    drop(hb);
    drop(registry);
    assert!(begun.elapsed() < 20 * SECOND, "{:?}", begun.elapsed());
    taken.store(false, Ordering::Relaxed);
    accepts.join().unwrap();
}

#[test]
fn an_answer_that_is_not_a_coordinators_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let store = HttpStore::builder(&url)
        .timeout(5 * SECOND)
        .build()
        .unwrap();
    for (answer, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "not a coordinator's answer",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
            "302",
        ),
        (
            "HTTP/1.1 500 X\r\nContent-Length: 20\r\n\r\n{\"error\": \"a\\u001b\"}",
            "500: a\\u{1b}",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{",
            "",
        ),
        ("nonsense\r\n\r\n", ""),
        ("", ""),
    ] {
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 4_096];
                let _ = std::io::Read::read(&mut stream, &mut asked);
                let _ = stream.write_all(answer.as_bytes());
                thread::sleep(SECOND / 20);
            });
            store.purge(SECOND).unwrap_err().to_string()
        });
        assert!(error.contains(expected), "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
    drop(listener);
    let error = store.purge(SECOND).unwrap_err().to_string();
    assert!(error.starts_with("store: cannot purge: "), "{error}");
}

#[test]
fn the_router_can_be_mounted_in_an_application() {
    let store = MemoryStore::new();
    let routes = Coordinator::new(store.clone()).token("s3cret").router();
    let app = axum::Router::new().nest("/fleet", routes);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let url = format!("http://{}/fleet/", listener.local_addr().unwrap());
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = thread::spawn(move || {
        runtime.block_on(async {
            let serve = async {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let service = hyper_util::service::TowerToHyperService::new(app.clone());
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(stream, service);
                    tokio::spawn(connection);
                }
            };
            tokio::select! { _ = ended => (), () = serve => () }
        });
    });
    let client = HttpStore::builder(url).token("s3cret").build().unwrap();
    client.register(&[Registration::new("t", "a")]).unwrap();
    assert_eq!(rows(&store).len(), 1);
    end.send(()).unwrap();
    serving.join().unwrap();
}
