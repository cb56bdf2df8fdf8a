//! The README's async program: a future that fails is restarted, and given up with its reason.
//!
//! ```text
//! cargo run --example 15_supervised_future
//! ```

use std::time::Duration;

use worker_heartbeat::{Registry, Restart, Supervisor, WorkerHeartbeat};

#[tokio::main]
async fn main() -> Result<(), worker_heartbeat::Error> {
    let registry = Registry::global();
    let supervisor = Supervisor::new(registry).restart(Restart::on_failure().max(2));
    let builder = WorkerHeartbeat::builder("fetcher")
        .id("fetcher-1")
        .stall_after(Duration::from_secs(30));
    // Each poll is a beat. After an error or a panic, the closure makes the next future.
    let fetcher = supervisor.supervise(builder, |hb| async move {
        let _task = hb.begin_task("page-1", "fetching");
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err::<(), _>("502 Bad Gateway")
    })?;
    tokio::spawn(fetcher).await.expect("panics are contained");
    println!("{}", registry.summary());
    Ok(())
}
