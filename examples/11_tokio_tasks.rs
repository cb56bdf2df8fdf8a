//! Tokio tasks as workers: a task that fails is restarted, and keeps its record.
//!
//! ```text
//! cargo run --example 11_tokio_tasks
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;
use worker_heartbeat::{BoxError, Registry, Restart, Supervisor, WorkerHeartbeat};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let registry = Registry::global();
    let supervisor = Supervisor::new(registry).restart(
        Restart::on_failure()
            .max(3)
            .within(Duration::from_secs(60))
            .backoff(Duration::from_millis(20), Duration::from_secs(1)),
    );

    // Three tasks share a queue. They never call `beat()`: each poll is a beat.
    let (sender, queue) = mpsc::channel::<u32>(100);
    let queue = Arc::new(Mutex::new(queue));
    let mut tasks = Vec::new();
    for number in 1..=3 {
        let builder = WorkerHeartbeat::builder("fetcher")
            .id(format!("fetcher-{number}"))
            .stall_after(Duration::from_secs(30));
        let queue = Arc::clone(&queue);
        let worker = supervisor.supervise(builder, move |hb| fetch(hb, Arc::clone(&queue)))?;
        tasks.push((number, tokio::spawn(worker)));
    }
    for page in 1..=12 {
        sender.send(page).await?;
    }
    // The tasks return once the queue is empty.
    drop(sender);

    for (number, task) in tasks {
        println!("fetcher-{number}: {:?}", task.await?);
    }
    for worker in registry.workers() {
        let snapshot = worker.snapshot();
        println!(
            "{}: {}, restarts: {}",
            snapshot.id, snapshot.health, snapshot.restarts
        );
    }
    Ok(())
}

async fn fetch(
    hb: Arc<WorkerHeartbeat>,
    queue: Arc<Mutex<mpsc::Receiver<u32>>>,
) -> Result<(), BoxError> {
    loop {
        hb.mark_idle();
        let Some(page) = queue.lock().await.recv().await else {
            return Ok(());
        };
        let _task = hb.begin_task(format_args!("page-{page}"), "fetching");
        sleep(Duration::from_millis(30)).await;
        if page == 5 {
            // Recorded with its reason; the restarted worker goes on with the next page.
            return Err(format!("page {page}: 502 Bad Gateway").into());
        }
        println!("{} fetched page {page}", hb.id());
    }
}
