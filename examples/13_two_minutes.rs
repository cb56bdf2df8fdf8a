//! A liveness probe that fails when a worker hangs, as in the README.
//!
//! ```text
//! cargo run --example 13_two_minutes --features http
//! curl -i localhost:7718/livez
//! ```
//!
//! The probe fails after 7 s. Ctrl-C ends the example.

use std::time::Duration;

use worker_heartbeat::{HealthEndpoint, Registry, Supervisor, WorkerHeartbeat};

fn main() -> Result<(), worker_heartbeat::Error> {
    let registry = Registry::global();
    let builder = WorkerHeartbeat::builder("indexer")
        .id("indexer-1")
        .stall_after(Duration::from_secs(2));
    Supervisor::new(registry).spawn(builder, |hb| {
        let task = hb.begin_task("run-1", "indexing");
        for page in 1..=10 {
            task.progress(page, 10);
            std::thread::sleep(Duration::from_millis(500));
        }
        loop {
            std::thread::park(); // It hangs.
        }
    })?;
    let server = HealthEndpoint::new(registry).serve("127.0.0.1:7718")?;
    println!("http://{}/livez", server.local_addr());
    loop {
        std::thread::park();
    }
}
