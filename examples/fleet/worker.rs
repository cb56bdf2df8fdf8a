//! One worker process: it works on a run that no other worker holds, until it is killed.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use worker_heartbeat::{
    Activity, BoxError, FleetConfig, HeartbeatStore, Lease, Registry, WorkerHeartbeat,
};

const RUNS: [&str; 2] = ["run-1", "run-2"];
const STEP: Duration = Duration::from_millis(100);

/// Opens the store in this file or at this URL.
pub fn open(place: &str) -> Result<Arc<dyn HeartbeatStore>, BoxError> {
    #[cfg(feature = "postgres")]
    if place.starts_with("postgres") {
        return Ok(Arc::new(worker_heartbeat::PostgresStore::connect(place)?));
    }
    #[cfg(feature = "sqlite")]
    if !place.starts_with("postgres") {
        return Ok(Arc::new(worker_heartbeat::SqliteStore::open(place)?));
    }
    Err(format!("this example was built without the feature for {place:?}").into())
}

pub fn run(id: &str, store: Arc<dyn HeartbeatStore>) -> Result<(), BoxError> {
    let registry = Registry::global();
    registry.attach(store, FleetConfig::new())?;
    let hb = WorkerHeartbeat::builder("example")
        .id(id)
        .interval(Duration::from_secs(1))
        .start()?;
    loop {
        hb.mark_idle();
        match claim_any(&hb)? {
            Some(lease) => work(&hb, &lease),
            None => thread::sleep(2 * STEP),
        }
    }
}

fn claim_any(hb: &WorkerHeartbeat) -> Result<Option<Lease>, BoxError> {
    for run in RUNS {
        // The lease is renewed in the background, and survives a short outage of the store.
        if let Some(lease) = hb.claim(run, Duration::from_secs(30))? {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}

/// Works for as long as this worker certainly holds the run.
fn work(hb: &WorkerHeartbeat, lease: &Lease) {
    for step in 1.. {
        if !lease.is_held() {
            return;
        }
        hb.update_task(
            lease.run_id(),
            format_args!("step {step}, fence {}", lease.fence()),
            Activity::Processing,
        );
        thread::sleep(STEP);
    }
}
