//! Supervised futures: completed, failed, cancelled and panicked are four different ends.
//!
//! ```text
//! cargo run --example 04_futures
//! ```
//!
//! This example uses tokio; any executor will do.

use std::time::Duration;

use tokio::time::sleep;
use worker_heartbeat::{BoxError, Outcome, Probe, WorkerHeartbeat};

const MOMENT: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Each poll is a beat, so the work itself calls nothing.
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
    println!("{}: {}; cancelling it", cancelled.id(), cancelled.health());
    task.abort();
    // The executor drops a cancelled task later, not within `abort`.
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

/// `supervise` catches a panic and returns it as an error: the task of the executor completes.
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
