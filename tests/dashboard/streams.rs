//! The dashboard's routes over plain sockets: limits, malformed requests, slow watchers, and the
//! end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::support::coordinator::{Reply, connect, exchange, poll, request};
use crate::support::farm::{Farm, Site};
use crate::support::store::TestStore;
use proptest::prelude::*;
use worker_heartbeat::fleet::{Beat, Registration};
use worker_heartbeat::{HealthEndpoint, HeartbeatStore, MemoryStore, State};

static TURNS: RwLock<()> = RwLock::new(());

fn together() -> RwLockReadGuard<'static, ()> {
    TURNS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Measurements of the process must not include other tests.
fn alone() -> RwLockWriteGuard<'static, ()> {
    TURNS.write().unwrap_or_else(PoisonError::into_inner)
}

/// As from a browser that was sent to this very host.
fn ask(address: SocketAddr, path: &str) -> Reply {
    let bytes = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    exchange(address, bytes.as_bytes()).expect(path)
}

/// A stream, after its head.
struct Watcher {
    lines: BufReader<TcpStream>,
    status: u16,
    head: String,
}

impl Watcher {
    fn new(address: SocketAddr, path: &str, headers: &str) -> Self {
        let mut stream = connect(address);
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        loop {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line.to_ascii_lowercase());
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            lines,
            status,
            head,
        }
    }

    /// The next line with this prefix; `None` if the stream ended.
    fn next(&mut self, beginning: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(rest) = line.strip_prefix(beginning) {
                return Some(rest.trim().to_owned());
            }
        }
    }
}

/// A stream that is open as long as this exists.
pub fn watch(address: SocketAddr) -> impl Sized {
    Watcher::new(address, "/v1/events", "")
}

fn started(site: &Site) -> SocketAddr {
    site.server.local_addr()
}

#[test]
fn the_page_needs_nothing_else_and_forbids_everything_else() {
    let _turn = together();
    let farm = Farm::new();
    let site = farm.serve();
    let page = ask(started(&site), "/");
    assert_eq!(page.status, 200);
    for wanted in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(page.head.contains(wanted), "{wanted}: {}", page.head);
    }
    assert!(!page.head.contains("unsafe"), "{}", page.head);
    for outside in ["http://", "https://", "//cdn", "@import", "url("] {
        let allowed = page.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!allowed.contains(outside), "{outside}");
    }
    assert!(!page.body.contains("{{"), "a placeholder was not filled");
    let nonce = |page: &Reply| {
        let (_, rest) = page.head.split_once("script-src 'nonce-").unwrap();
        rest.split('\'').next().unwrap().to_owned()
    };
    assert!(
        page.body
            .contains(&format!("<script nonce=\"{}\">", nonce(&page)))
    );
    assert_ne!(nonce(&page), nonce(&ask(started(&site), "/")));
}

#[test]
fn events_continue_after_the_last_one_received() {
    let _turn = together();
    let farm = Farm::new();
    let site = farm.serve();
    let mut first = Watcher::new(started(&site), "/v1/events", "");
    assert!(
        first.head.contains("content-type: text/event-stream"),
        "{}",
        first.head
    );
    let a = farm.worker("x").id("a").start().unwrap();
    let seen = first.next("id: ").unwrap();
    assert!(first.next("data: ").unwrap().contains("\"registered\""));
    a.fail("one");
    assert!(first.next("data: ").unwrap().contains("failed: one"));
    drop(first);
    let header = format!("Last-Event-ID: {seen}\r\n");
    let mut second = Watcher::new(started(&site), "/v1/events", &header);
    assert!(second.next("data: ").unwrap().contains("failed: one"));
    let mut third = Watcher::new(started(&site), &format!("/v1/events?after={seen}"), "");
    assert!(third.next("data: ").unwrap().contains("failed: one"));
    let mut strange = Watcher::new(started(&site), "/v1/events", "Last-Event-ID: x-7\r\n");
    assert!(strange.next("data: ").unwrap().contains("registered"));
}

#[test]
fn the_number_of_streams_is_limited() {
    let _turn = together();
    let farm = Farm::new();
    let site = farm.serve();
    let address = started(&site);
    let mut watchers: Vec<Watcher> = (0..64)
        .map(|_| Watcher::new(address, "/v1/events?view=process", ""))
        .collect();
    assert!(watchers.iter().all(|watcher| watcher.status == 200));
    let refused = ask(address, "/v1/events");
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 10"), "{}", refused.head);
    assert_eq!(ask(address, "/").status, 200, "other requests are served");
    assert!(watchers[63].next("data: ").unwrap().contains("\"rows\""));
    watchers.pop();
    // A slot is free as soon as the server notices that the client left.
    poll("free place", || {
        let again = Watcher::new(address, "/v1/events", "");
        (again.status == 200).then_some(())
    });
}

#[test]
fn a_watcher_that_reads_nothing_costs_nothing() {
    let _turn = alone();
    let farm = Farm::new();
    let long = "x".repeat(150);
    let workers: Vec<_> = (0..2_000)
        .map(|n| farm.worker("x").id(format!("{n}-{long}")).start().unwrap())
        .collect();
    let site = farm.serve();
    let address = started(&site);
    // Some MB for each client, which none of them ever reads.
    let slow: Vec<Watcher> = (0..40)
        .map(|_| Watcher::new(address, "/v1/events?view=process", ""))
        .collect();
    let mut quick = Watcher::new(address, "/v1/events", "");
    let before = resident();
    for _ in 0..5 {
        workers.iter().for_each(|hb| hb.beat());
        // The interval of the dashboard's own readings.
        std::thread::sleep(Duration::from_secs(1));
    }
    workers[7].fail("seen by who reads");
    let begun = Instant::now();
    while !quick.next("data: ").unwrap().contains("seen by who reads") {}
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(ask(address, "/livez").status, 503);
    let grown = resident().saturating_sub(before);
    println!(
        "40 watchers that read nothing: {} kB more after 5 s",
        grown / 1024
    );
    assert!(grown < 64 << 20, "{grown} bytes");
    let begun = Instant::now();
    drop(site);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "they do not delay the end"
    );
    drop(slow);
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

#[test]
fn everything_ends_with_the_server() {
    // Less than a server waits for streams that do not end by themselves.
    let _turn = alone();
    let farm = Farm::new();
    let hb = farm.worker("x").id("a").start().unwrap();
    let store = Arc::new(MemoryStore::new());
    let site = farm.serve_with(|endpoint| endpoint.fleet(store.clone()));
    let mut watchers = ["process", "fleet"].map(|view| {
        let mut watcher = Watcher::new(started(&site), &format!("/v1/events?view={view}"), "");
        while !watcher.next("data: ").unwrap().contains("\"total\"") {}
        watcher
    });
    assert!(Arc::strong_count(&store) > 1);
    let begun = Instant::now();
    drop(site);
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(Arc::strong_count(&store), 1, "nothing keeps it");
    for watcher in &mut watchers {
        while watcher.next("data: ").is_some() {}
    }
    hb.fail("later");
}

#[test]
fn a_router_has_a_background_task_only_while_it_exists() {
    let _turn = together();
    let farm = Farm::new();
    let _hb = farm.worker("x").id("a").start().unwrap();
    let store = Arc::new(MemoryStore::new());
    let router = HealthEndpoint::new(&farm.registry)
        .fleet(Arc::clone(&store))
        .show_reasons(true)
        .router();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        use hyper_util::service::TowerToHyperService;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || {
            let mut watcher = Watcher::new(address, "/v1/events?view=process", "");
            watcher.next("data: ").unwrap()
        });
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(router.clone());
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await;
        drop(served);
        assert!(client.join().unwrap().contains("\"rows\""));
        drop(router);
        let begun = Instant::now();
        while Arc::strong_count(&store) > 1 {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the background task still runs"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_hanging_store_blocks_no_other_request() {
    let _turn = together();
    let farm = Farm::new();
    let hb = farm.worker("x").id("a").start().unwrap();
    hb.beat();
    let store = TestStore::default();
    store.hang();
    let site = farm.serve_with(|endpoint| endpoint.fleet(store.clone()));
    let address = started(&site);
    let mut fleet = Watcher::new(address, "/v1/events?view=fleet", "");
    while !fleet.next("data: ").unwrap().contains("\"silent\"") {}
    let mut process = Watcher::new(address, "/v1/events?view=process", "");
    while !process.next("data: ").unwrap().contains("\"total\"") {}
    assert_eq!(ask(address, "/livez").status, 200);
    store.recover();
    while !fleet.next("data: ").unwrap().contains("\"total\"") {}
}

#[test]
fn a_request_with_another_host_name_is_refused() {
    let _turn = together();
    let farm = Farm::new();
    farm.panics("x", "a", "s3cret");
    let paths = [
        "/",
        "/v1/events",
        "/v1/worker/details?worker=a",
        "/v1/worker/death?worker=a",
    ];
    let site = farm.serve();
    for path in paths {
        let bytes =
            format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        let reply = exchange(started(&site), bytes.as_bytes()).unwrap();
        assert_eq!(reply.status, 421, "{path}: {reply:?}");
        assert!(!reply.body.contains("s3cret"));
    }
    assert!(
        ask(started(&site), "/v1/worker/death?worker=a")
            .body
            .contains("s3cret")
    );
    // A custom disclosure also decides for whom reasons are shown.
    let open = farm.serve_with(|endpoint| endpoint.show_reasons(false));
    let page = exchange(started(&open), &request("GET", "/", "", b"")).unwrap();
    assert_eq!(page.status, 200);
    let stack = ask(started(&open), "/v1/worker/death?worker=a");
    assert_eq!(stack.status, 403);
    let details = ask(started(&open), "/v1/worker/details?worker=a");
    assert_eq!(details.status, 200);
    assert!(!(details.body + &stack.body).contains("s3cret"));
}

#[test]
fn each_death_has_its_call_stack() {
    let _turn = together();
    let farm = Farm::new();
    farm.panics("x", "a", "the first");
    let site = farm.serve();
    let address = started(&site);
    // The first reading subscribes: later events are kept with their incarnation.
    farm.panics("x", "a", "the second");
    farm.panics("x", "a", "the third");
    let death = |query: &str| ask(address, &format!("/v1/worker/death?worker=a{query}"));
    assert!(death("").body.contains("the third"));
    poll("second death", || {
        death("&incarnation=2")
            .body
            .contains("the second")
            .then_some(())
    });
    assert!(death("&incarnation=3").body.contains("the third"));
    for (query, status) in [
        ("&incarnation=9", 404),
        ("&incarnation=x", 400),
        ("&incarnation=-1", 400),
    ] {
        assert_eq!(death(query).status, status, "{query}");
    }
    assert_eq!(ask(address, "/v1/worker/death?worker=b").status, 404);
    assert_eq!(ask(address, "/v1/worker/death").status, 400);
    let failed = farm.worker("x").id("f").start().unwrap();
    failed.fail("no disk");
    assert_eq!(ask(address, "/v1/worker/death?worker=f").status, 404);
}

#[test]
fn with_very_many_workers_the_worst_are_shown() {
    let _turn = together();
    let farm = Farm::new();
    let workers: Vec<_> = (0..6_000)
        .map(|n| {
            let hb = farm.worker("x").id(format!("w{n}")).start().unwrap();
            hb.beat();
            hb
        })
        .collect();
    workers[5_999].fail("the last of all");
    let site = farm.serve();
    let mut watcher = Watcher::new(started(&site), "/v1/events?view=process", "");
    let reading = loop {
        let data = watcher.next("data: ").unwrap();
        if data.contains("the last of all") && data.contains("\"not_shown\"") {
            break data;
        }
    };
    let reading: serde_json::Value = serde_json::from_str(&reading).unwrap();
    assert_eq!(reading["head"]["not_shown"], 5_000);
    assert_eq!(reading["head"]["total"], 6_000);
    assert_eq!(reading["rows"].as_array().unwrap().len(), 1_000);
}

#[test]
fn of_a_very_large_store_the_worst_are_shown_with_their_details() {
    let _turn = together();
    let farm = Farm::new();
    let store = MemoryStore::new();
    let ids = (0..20_500)
        .map(|n| format!("w-{n:05}"))
        .chain(["z-stale".to_owned()]);
    let workers: Vec<_> = ids.map(|id| Registration::new("poller", id)).collect();
    let keys = store.register(&workers).unwrap();
    let mut beats: Vec<_> = keys
        .into_iter()
        .map(|key| Beat::new(key, State::Idle))
        .collect();
    // The last one by id.
    beats[20_500].heartbeat_age = Some(Duration::from_secs(1_000));
    store.beat(&beats).unwrap();
    let site = farm.serve_with(|endpoint| endpoint.fleet(store));
    let address = started(&site);
    let mut watcher = Watcher::new(address, "/v1/events?view=fleet", "");
    let reading = loop {
        let data = watcher.next("data: ").unwrap();
        if data.contains("\"total\"") {
            break data;
        }
    };
    let reading: serde_json::Value = serde_json::from_str(&reading).unwrap();
    let head = &reading["head"];
    assert_eq!(
        (&head["total"], &head["states"]["stale"]),
        (&20_501.into(), &1.into())
    );
    assert_eq!(head["not_shown"], 19_501);
    let rows = reading["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1_000);
    assert!(
        rows.iter().any(|row| row["id"] == "z-stale"),
        "the stale one is not shown"
    );
    for id in ["z-stale", "w-20499"] {
        let reply = ask(
            address,
            &format!("/v1/worker/details?view=fleet&worker={id}"),
        );
        assert_eq!(
            (reply.status, &reply.json()["id"]),
            (200, &id.into()),
            "{reply:?}"
        );
    }
    let missing = ask(address, "/v1/worker/details?view=fleet&worker=w-2049");
    assert_eq!(missing.status, 404, "{missing:?}");
}

#[test]
fn no_query_makes_it_panic() {
    let _turn = together();
    let farm = Farm::new();
    farm.panics("x", "a", "on purpose");
    let site = farm.serve_with(|endpoint| endpoint.fleet(MemoryStore::new()));
    let address = started(&site);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let path = prop_oneof![
        Just("/"),
        Just("/v1/events"),
        Just("/v1/worker/details"),
        Just("/v1/worker/death")
    ];
    let query = "((worker|view|after|incarnation|[!-\"$-~]{1,5})=(a|fleet|process|[0-9]{1,12}|[!-\"$-~]{0,40})&){0,4}";
    let strategy = (path, query, "[ -~]{0,60}");
    runner
        .run(&strategy, |(path, query, last)| {
            let mut stream = connect(address);
            let bytes = format!(
                "GET {path}?{query} HTTP/1.1\r\nHost: {address}\r\nLast-Event-ID: {last}\r\n\r\n"
            );
            stream.write_all(bytes.as_bytes()).unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            let status = String::from_utf8_lossy(&answer[9..]).into_owned();
            prop_assert!(
                ["200", "400", "404", "503"].contains(&status.as_str()),
                "{path}?{query}: {status}"
            );
            Ok(())
        })
        .unwrap();
    assert_eq!(ask(address, "/").status, 200);
}

/// Seconds of a processor that this process has used.
fn used() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |n| fields.split(' ').nth(n).unwrap().parse::<f64>().unwrap();
    // A tick is a hundredth of a second.
    (ticks(11) + ticks(12)) / 100.0
}

#[test]
fn a_thousand_workers_without_a_viewer_cost_little() {
    let _turn = alone();
    let farm = Farm::new();
    let _workers: Vec<_> = (0..1_000)
        .map(|n| {
            let hb = farm.worker("x").id(format!("w{n}")).start().unwrap();
            hb.beat();
            hb
        })
        .collect();
    let _site = farm.serve();
    let before = used();
    // The interval of the dashboard's own readings.
    std::thread::sleep(Duration::from_secs(5));
    let share = (used() - before) / 5.0;
    println!(
        "1000 workers without a viewer: {:.1} % of a core",
        share * 100.0
    );
    assert!(share < 1.5, "{share}");
}
