//! A coordinator with many workers: it asks its store, and an older one is asked for pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use worker_heartbeat::fleet::{Beat, Registration, WorkerFilter};
use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore, State};

use crate::support::coordinator::{client, post};
use crate::support::store::ReadCounter;

const COUNT: usize = 5_000;

/// Workers that are well, and one that is stale and has the last id of all.
fn filled() -> MemoryStore {
    let store = MemoryStore::new();
    let ids = (0..COUNT)
        .map(|n| format!("w-{n:05}"))
        .chain(["z-stale".to_owned()]);
    let workers: Vec<_> = ids.map(|id| Registration::new("poller", id)).collect();
    let keys = store.register(&workers).unwrap();
    let mut beats: Vec<_> = keys
        .into_iter()
        .map(|key| Beat::new(key, State::Idle))
        .collect();
    beats[COUNT].heartbeat_age = Some(std::time::Duration::from_secs(1_000));
    store.beat(&beats).unwrap();
    store
}

#[test]
fn a_first_registration_and_a_summary_list_no_worker() {
    let store = ReadCounter::new(&filled());
    let coordinator = Coordinator::new(store.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    let body = r#"{"worker_id": "new", "worker_type": "poller"}"#;
    let reply = post(coordinator.local_addr(), "register", body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let summary = client(&coordinator).summary().unwrap();
    assert_eq!((summary.total, summary.total_dead), (COUNT + 2, 1));
    assert_eq!(summary.dead_workers[0].id, "z-stale");
    let worst = client(&coordinator)
        .worst_first(&WorkerFilter::new().limit(2))
        .unwrap();
    let ids: Vec<_> = worst.iter().map(|worker| &*worker.key.id).collect();
    assert_eq!(ids, ["z-stale", "new"]);
    assert_eq!(store.listed(), 0);
}

#[test]
fn a_worst_first_list_has_as_many_pages_as_it_needs() {
    let coordinator = Coordinator::new(filled()).serve("127.0.0.1:0").unwrap();
    let worst = client(&coordinator)
        .worst_first(&WorkerFilter::new().limit(2_500))
        .unwrap();
    let ids: Vec<_> = worst.iter().map(|worker| worker.key.id.clone()).collect();
    let expected = (0..2_499).map(|n| format!("w-{n:05}"));
    assert_eq!(
        ids,
        ["z-stale".to_owned()]
            .into_iter()
            .chain(expected)
            .collect::<Vec<_>>()
    );
}

/// A coordinator that does not know the newer requests, and counts them.
async fn older(request: Request<Body>, next: Next, newer: Arc<AtomicUsize>) -> Response {
    if ["/api/store/counts", "/api/store/worst_first"].contains(&request.uri().path()) {
        newer.fetch_add(1, Ordering::SeqCst);
        return StatusCode::NOT_FOUND.into_response();
    }
    next.run(request).await
}

#[test]
fn an_older_coordinator_is_asked_for_pages() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let newer = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&newer);
    let router = Coordinator::new(filled())
        .router()
        .layer(middleware::from_fn(move |request, next| {
            older(request, next, Arc::clone(&counter))
        }));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await });
    let store = HttpStore::new(format!("http://{address}")).unwrap();
    let summary = store.summary().unwrap();
    assert_eq!((summary.total, summary.total_dead), (COUNT + 1, 1));
    assert_eq!(summary.dead_workers[0].id, "z-stale");
    let worst = store.worst_first(&WorkerFilter::new().limit(1)).unwrap();
    assert_eq!(worst[0].key.id, "z-stale");
    assert!(newer.load(Ordering::SeqCst) >= 2);
    let wrong = HttpStore::new(format!("http://{address}/nowhere")).unwrap();
    assert!(wrong.counts().is_err(), "a wrong path is an error");
}
