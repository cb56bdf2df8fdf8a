//! The metrics over HTTP.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use worker_heartbeat::{Activity, HealthEndpoint, Metrics, Registry, WorkerHeartbeat};

use crate::scrape::{Scrape, promtool};
use crate::support::coordinator::{Reply, exchange};
use crate::support::store::TestStore;
use crate::support::{SECOND, World};

pub fn get(address: SocketAddr, accept: &str) -> Reply {
    let request = format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{accept}connection: close\r\n\r\n");
    exchange(address, request.as_bytes()).unwrap()
}

#[test]
fn prometheus_is_answered_in_the_format_that_it_asks_for() {
    let world = World::new();
    let hb = world.worker("w").id("a").start().unwrap();
    hb.update_task("s3cret", "s3cret", Activity::Processing);
    hb.fail("s3cret");
    let server = HealthEndpoint::new(&world.registry)
        .serve("127.0.0.1:0")
        .unwrap();
    let plain = get(server.local_addr(), "");
    assert_eq!(plain.status, 200);
    let head = |kind: &str| format!("content-type: {kind}\r\n");
    assert!(plain.head.contains(&head(Metrics::TEXT)), "{plain:?}");
    promtool(&["check", "metrics"], &plain.body);
    let line = "deaths_total{worker_type=\"w\",cause=\"failed\"}";
    assert_eq!(Scrape::read(&plain.body).get(line), 1.0);
    assert!(!plain.body.contains("s3cret") && !plain.body.contains("worker_id"));
    assert!(!plain.body.contains("fleet_up"), "it has no store");
    // Prometheus 2 sends this header.
    let accept = "accept: application/openmetrics-text;version=1.0.0,\
                  application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5\r\n";
    let open = get(server.local_addr(), accept);
    assert!(open.head.contains(&head(Metrics::OPENMETRICS)), "{open:?}");
    assert!(open.body.ends_with("# EOF\n"));
    let posted = exchange(
        server.local_addr(),
        b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(posted.unwrap().status, 405);
}

#[test]
fn a_hanging_store_does_not_block_the_other_metrics() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    let store = TestStore::default();
    let server = HealthEndpoint::new(&world.registry)
        .fleet(store.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    {
        let _held = store.hold();
        let begun = Instant::now();
        let scrape = Scrape::read(&get(server.local_addr(), "").body);
        assert_eq!(scrape.get("fleet_up"), 0.0);
        assert_eq!(scrape.get("beats_total{worker_type=\"w\"}"), 1.0);
        assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
    }
}

#[test]
fn an_application_chooses_what_is_exported() {
    let world = World::new();
    let _hb = world.worker("w").id("a").start().unwrap();
    let metrics = Metrics::new(&world.registry).per_worker(true);
    let server = HealthEndpoint::new(&world.registry)
        .metrics(metrics)
        .serve("127.0.0.1:0")
        .unwrap();
    let reply = get(server.local_addr(), "");
    assert!(reply.body.contains("worker_id=\"a\""), "{reply:?}");
}

#[test]
fn concurrent_scrapes_share_one_reading() {
    // On the system's clock, no two scrapes are equal.
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("w")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    let server = HealthEndpoint::new(&registry).serve("127.0.0.1:0").unwrap();
    let address = server.local_addr();
    let begun = Instant::now();
    let replies: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..16)
            .map(|_| scope.spawn(move || (0..10).map(|_| get(address, "")).collect::<Vec<_>>()))
            .collect();
        let asked = asking.into_iter();
        asked.flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(replies.iter().all(|reply| reply.status == 200));
    let readings: BTreeSet<_> = replies.iter().map(|reply| &reply.body).collect();
    let most = begun.elapsed().as_millis() / 50 + 2;
    assert!(
        readings.len() as u128 <= most,
        "{} readings",
        readings.len()
    );
    assert!(
        most < 160,
        "the machine is too slow for this test to show a difference"
    );
}
