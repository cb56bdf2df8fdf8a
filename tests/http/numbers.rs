//! A coordinator whose store has lost its data passes on no number that is lower than an earlier one.

use std::time::Duration;

use crate::support::coordinator::{done, post};
use crate::support::store::TestStore;
use worker_heartbeat::fleet::{Registration, WorkerFilter};
use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore, MockClock};

const HOUR: Duration = Duration::from_secs(3_600);

fn store(hours: u32) -> MemoryStore {
    let time = MockClock::new();
    time.advance(HOUR * hours);
    MemoryStore::with_clock(time.clock())
}

#[test]
fn numbers_that_go_back_are_refused_for_all_clients() {
    let lost = TestStore::new(store(1));
    let coordinator = Coordinator::new(lost.clone()).serve("127.0.0.1:0").unwrap();
    let at = coordinator.local_addr();
    let key = done(at, "register", r#"{"worker_id": "a"}"#);
    let claim = r#"{"worker_id": "a", "run_id": "run", "ttl_s": 60}"#;
    let fence = done(at, "claim", claim)["fence"].as_u64().unwrap();
    assert!(fence > key["incarnation"].as_u64().unwrap());

    let behind = store(0);
    lost.replace(behind.clone());
    let refused = post(at, "register", r#"{"worker_id": "a"}"#);
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains("numbers went back"), "{refused:?}");
    let client = HttpStore::new(format!("http://{at}")).unwrap();
    let refused = client.register(&[Registration::new("poller", "b")]);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("numbers went back")
    );
    // A worker that the store knows, and that the coordinator did not register.
    behind
        .register(&[Registration::new("poller", "a")])
        .unwrap();
    let refused = post(at, "claim", claim);
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains("numbers went back"), "{refused:?}");
    let rows = behind.list(&WorkerFilter::new()).unwrap();
    assert!(
        rows.iter().all(|row| row.lease_remaining.is_none()),
        "nobody holds the run: {rows:?}"
    );

    lost.replace(store(2));
    let key = done(at, "register", r#"{"worker_id": "a"}"#);
    assert!(key["incarnation"].as_u64().unwrap() > fence);
    assert!(done(at, "claim", claim)["fence"].as_u64().unwrap() > fence);
}
