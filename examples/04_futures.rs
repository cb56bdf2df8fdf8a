//! Futures are workers too: completed, failed, cancelled and panicked are four different ends.
//!
//! ```text
//! cargo run --example 04_futures
//! ```
//!
//! This one runs on tokio; any other executor will do.

use std::time::Duration;

use tokio::time::sleep;
use worker_heartbeat::{BoxError, Outcome, Probe, WorkerHeartbeat};

const MOMENT: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Each poll is a beat, so there is nothing to be called in the work itself.
    let (completed, task) = start("completes", async { sleep(MOMENT).await })?;
    task.await?;
    println!("{}: {}", completed.id(), completed.health());

    let (failed, task) = start("fails", async {
        sleep(MOMENT).await;
        Err::<(), _>("no route to host")
    })?;
    task.await?;
    println!("{}: {}", failed.id(), failed.health());

    let (cancelled, task) = start("waits", async { sleep(Duration::MAX).await })?;
    sleep(MOMENT).await;
    println!(
        "{}: {}, and now it is cancelled",
        cancelled.id(),
        cancelled.health()
    );
    task.abort();
    // Cancelled tasks are dropped by the executor, when it gets around to it.
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    println!("{}: {}", cancelled.id(), cancelled.health());

    let (panicked, task) = start("panics", async {
        sleep(MOMENT).await;
        panic!("the cache is poisoned")
    })?;
    task.await?;
    println!("{}: {}", panicked.id(), panicked.health());
    Ok(())
}

/// The panic is caught by `supervise`, and comes back as an error: the executor's task is unharmed.
fn start<F>(id: &str, work: F) -> Result<(Probe, tokio::task::JoinHandle<()>), BoxError>
where
    F: Future<Output: Outcome> + Send + 'static,
{
    let hb = WorkerHeartbeat::builder("future").id(id).start()?;
    let probe = hb.probe();
    let supervised = hb.supervise(work);
    let task = tokio::spawn(async {
        if let Err(error) = supervised.await {
            println!("supervise() returned: {error}");
        }
    });
    Ok((probe, task))
}
