//! Callers that nobody invited: who may write, and whether probes are answered while strangers hold
//! what they like. Over real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use worker_heartbeat::fleet::Registration;
use worker_heartbeat::{Coordinator, HealthEndpoint, HeartbeatStore, MemoryStore};

use crate::support::coordinator::{
    PATIENCE, Reply, client, connect, exchange, poll, post_with, request, rows, start,
};
use crate::support::{SECOND, World};

/// What a probe of Kubernetes waits by default.
const PROBE_TIMEOUT: Duration = SECOND;

/// Each of these tests opens connections by the thousand.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8_192), most).unwrap();
    turn
}

fn get(address: SocketAddr, path: &str) -> Option<Reply> {
    exchange(address, &request("GET", path, "", b""))
}

/// Twenty probes, each of which must be answered, and in time unless the machine is busy.
#[track_caller]
fn assert_probes_are_answered(address: SocketAddr) {
    let probe = |n| {
        let begun = Instant::now();
        let reply = get(address, "/livez");
        assert_eq!(reply.map(|reply| reply.status), Some(200), "probe {n}");
        begun.elapsed()
    };
    let mut times: Vec<_> = (0..20).map(probe).collect();
    times.sort_unstable();
    assert!(times[times.len() / 2] < PROBE_TIMEOUT, "{times:?}");
}

/// A sample of the metrics that the endpoint serves.
#[cfg(feature = "prometheus")]
fn metric(address: SocketAddr, sample: &str) -> u64 {
    let body = get(address, "/metrics").unwrap().body;
    let line = body.lines().find_map(|line| {
        let value = line
            .strip_prefix("worker_heartbeat_")?
            .strip_prefix(sample)?;
        value.strip_prefix(' ')
    });
    line.unwrap_or_else(|| panic!("no {sample}: {body}"))
        .parse()
        .unwrap()
}

/// Opens connections that send this, and waits until the server has accepted all.
fn hold(address: SocketAddr, count: u64, bytes: &[u8]) -> Vec<TcpStream> {
    let connections = (0..count).map(|_| {
        let mut connection = connect(address);
        // It may have been closed already.
        let _ = connection.write_all(bytes);
        connection
    });
    let connections = connections.collect();
    #[cfg(feature = "prometheus")]
    poll("accepted connections", || {
        (metric(address, "http_accepted_connections_total") >= count).then_some(())
    });
    connections
}

fn endpoint(world: &World) -> HealthEndpoint {
    HealthEndpoint::new(&world.registry).coordinator(Coordinator::new(MemoryStore::new()))
}

#[test]
fn idle_connections_starve_no_probe() {
    let _turn = alone();
    let server = endpoint(&World::new()).serve("127.0.0.1:0").unwrap();
    let address = server.local_addr();
    let idle = hold(address, 1_200, b"");
    assert_probes_are_answered(address);
    // A connection that sends the beginning of a head waits for its client, too.
    let slow = hold(address, 2_400, b"GET /v1/workers HTTP/1.1\r\nHost: local");
    assert_probes_are_answered(address);
    drop((idle, slow));
}

#[test]
fn requests_whose_bodies_never_come_starve_no_probe() {
    let _turn = alone();
    let server = endpoint(&World::new()).serve("127.0.0.1:0").unwrap();
    let address = server.local_addr();
    let head =
        "POST /api/worker/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    let slow = hold(address, 1_200, head.as_bytes());
    assert_probes_are_answered(address);
    drop(slow);
}

#[test]
fn a_thousand_event_streams_starve_no_probe_and_64_go_on() {
    let _turn = alone();
    let server = endpoint(&World::new()).serve("127.0.0.1:0").unwrap();
    let address = server.local_addr();
    let head = "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let streams = hold(address, 1_000, head.as_bytes());
    assert_probes_are_answered(address);
    // A connection that got no stream was answered, or closed for another one.
    let is_stream = |mut connection: &TcpStream| {
        let mut status = [0; 12];
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.read_exact(&mut status).is_ok() && &status[9..] == b"200"
    };
    let open = streams.iter().filter(|connection| is_stream(connection));
    assert_eq!(open.count(), 64);
}

#[cfg(feature = "prometheus")]
#[test]
fn wrong_tokens_are_slow_counted_and_hold_no_place() {
    let _turn = alone();
    let store = MemoryStore::new();
    let world = World::new();
    let server = HealthEndpoint::new(&world.registry)
        .coordinator(Coordinator::new(store.clone()).token("s3cret"))
        .serve("127.0.0.1:0")
        .unwrap();
    let address = server.local_addr();
    let wrong = "Authorization: Bearer guess\r\n";
    let begun = Instant::now();
    let reply = post_with(address, "/api/worker/register", wrong, b"{}");
    assert_eq!(reply.status, 401);
    assert!(
        begun.elapsed() >= SECOND,
        "a wrong token was answered at once"
    );
    let head = format!("POST /api/worker/register HTTP/1.1\r\nHost: localhost\r\n{wrong}\r\n");
    let guesses = hold(address, 400, head.as_bytes());
    poll("counted guesses", || {
        (metric(address, "http_refused_total{reason=\"wrong_token\"}") == 401).then_some(())
    });
    assert_probes_are_answered(address);
    let more = hold(address, 1_200, head.as_bytes());
    assert_probes_are_answered(address);
    let right = "Authorization: Bearer s3cret\r\n";
    let begun = Instant::now();
    let reply = post_with(address, "/api/worker/register", right, b"{}");
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(
        begun.elapsed() < 20 * SECOND,
        "the right token waits for no wrong one"
    );
    drop((guesses, more));
    assert_eq!(
        metric(address, "http_refused_total{reason=\"stranger\"}"),
        0
    );
    assert_eq!(
        post_with(address, "/api/worker/register", "", b"{}").status,
        401
    );
    poll("the request without a token", || {
        (metric(address, "http_refused_total{reason=\"no_token\"}") == 1).then_some(())
    });
}

/// A request with this Host header and these headers.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let length = body.len();
    let bytes = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    exchange(address, bytes.as_bytes()).unwrap()
}

#[test]
fn without_a_token_only_local_callers_write_and_see_reasons() {
    let store = MemoryStore::new();
    store
        .register(&[Registration::new("indexer", "a")])
        .unwrap();
    let world = World::new();
    world
        .worker("poller")
        .id("p")
        .start()
        .unwrap()
        .fail("s3cret");
    let server = HealthEndpoint::new(&world.registry)
        .coordinator(Coordinator::new(store.clone()))
        .serve("127.0.0.1:0")
        .unwrap();
    let alone = start(&store);
    let address = server.local_addr();
    let purge = r#"{"version":1,"what":0.0}"#;
    let register = r#"{"worker_id":"b"}"#;
    for headers in [
        "Host: monitor.example.com\r\nX-Forwarded-For: 203.0.113.7\r\n",
        "Host: monitor.example.com\r\n",
        "Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\n",
        "Host: localhost\r\nForwarded: for=127.0.0.1\r\n",
        "Host: localhost\r\nVia: 1.1 proxy\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: localhost\r\nOrigin: http://evil.example\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
    ] {
        for at in [address, alone.local_addr()] {
            for (path, body) in [
                ("/api/store/purge", purge),
                ("/api/worker/register", register),
            ] {
                let reply = ask(at, "POST", path, headers, body);
                assert_eq!(reply.status, 403, "{path} {headers}: {reply:?}");
                assert!(reply.error().contains("without a token"), "{reply:?}");
            }
        }
        for path in [
            "/v1/worker/health",
            "/v1/worker/health?worker=p",
            "/v1/workers",
            "/livez",
        ] {
            let reply = ask(address, "GET", path, headers, "");
            assert!(
                !reply.body.contains("s3cret"),
                "{path} {headers}: {reply:?}"
            );
        }
        for path in [
            "/",
            "/v1/events",
            "/v1/worker/details?worker=p",
            "/v1/worker/death?worker=p",
        ] {
            let reply = ask(address, "GET", path, headers, "");
            assert_eq!(reply.status, 421, "{path} {headers}: {reply:?}");
        }
    }
    assert_eq!(rows(&store).len(), 1);
    for at in [address, alone.local_addr()] {
        let reply = ask(
            at,
            "POST",
            "/api/worker/register",
            "Host: localhost\r\n",
            register,
        );
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert!(client(&alone).purge(SECOND).is_ok());
}

#[test]
fn the_token_lets_a_caller_from_anywhere_see_reasons() {
    let world = World::new();
    world
        .worker("poller")
        .id("p")
        .start()
        .unwrap()
        .fail("s3cret");
    let server = HealthEndpoint::new(&world.registry)
        .coordinator(Coordinator::new(MemoryStore::new()).token("right"))
        .serve("0.0.0.0:0")
        .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], server.local_addr().port()));
    let paths = [
        "/v1/worker/health",
        "/v1/workers",
        "/v1/worker/details?worker=p",
    ];
    for path in paths {
        let sees = |headers: &str| {
            ask(address, "GET", path, headers, "")
                .body
                .contains("s3cret")
        };
        assert!(!sees("Host: localhost\r\n"), "{path}");
        assert!(
            sees("Host: monitor.example\r\nAuthorization: Bearer right\r\n"),
            "{path}"
        );
        let headers = "Host: localhost\r\nAuthorization: Bearer wrong\r\n";
        assert_eq!(ask(address, "GET", path, headers, "").status, 401, "{path}");
    }
    // A probe is answered at once, whatever it carries, and tells nobody whether a token is right.
    for token in ["right", "wrong"] {
        let headers = format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n");
        let reply = ask(address, "GET", "/livez", &headers, "");
        assert_eq!(reply.status, 503);
        assert!(!reply.body.contains("s3cret"), "{reply:?}");
    }
    // Credentials for a proxy are no token.
    let headers = "Host: localhost\r\nAuthorization: Basic dTpw\r\n";
    assert_eq!(ask(address, "GET", "/v1/workers", headers, "").status, 200);
}
