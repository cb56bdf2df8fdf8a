//! A web service: probes beside its own routes, a worker behind them, one end for both.
//!
//! ```text
//! cargo run --example 09_axum --features http
//! cargo run --example 09_axum --features http -- 127.0.0.1:8080
//! curl -d 'example.com' localhost:8080/research; curl localhost:8080/v1/worker/health
//! ```
//!
//! Ctrl-C ends it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;
use worker_heartbeat::{
    BoxError, HealthEndpoint, Registry, Restart, Shutdown, Supervisor, WorkerHeartbeat,
};

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let address = std::env::args().nth(1);
    let registry = Registry::global();
    let shutdown = Shutdown::builder().install()?;
    let supervisor = Supervisor::new(registry).restart(Restart::on_failure());

    let (sender, orders) = mpsc::channel(100);
    let orders = Arc::new(Mutex::new(orders));
    // If it panics, or returns an error, it is told, and begins again with the next order.
    let builder = WorkerHeartbeat::builder("research").id("research-1");
    tokio::spawn(supervisor.supervise(builder, move |hb| research(hb, Arc::clone(&orders)))?);

    let health = HealthEndpoint::new(registry)
        .shutdown(&shutdown) // While it drains, it is live, and not ready.
        .show_reasons(true); // A router does not know who can reach it.
    let app = axum::Router::new()
        .route("/research", post(order))
        .with_state(sender)
        .merge(health.router());
    let listener =
        tokio::net::TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    println!("http://{}/readyz", listener.local_addr()?);

    let begun = shutdown.receiver();
    let ended = async move {
        // A channel that blocks, so not on a thread of the runtime.
        let _ = tokio::task::spawn_blocking(move || begun.recv()).await;
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(ended)
        .await?;
    // The worker has been asked to stop, and finishes its order.
    let report = tokio::task::spawn_blocking(move || shutdown.wait()).await?;
    println!("ended by {}: {}", report.cause, registry.summary());
    Ok(report.exit_code())
}

async fn order(State(orders): State<mpsc::Sender<String>>, company: String) -> StatusCode {
    match orders.try_send(company) {
        Ok(()) => StatusCode::ACCEPTED,
        // The worker does not keep up, or is gone: its health says which.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn research(hb: Arc<WorkerHeartbeat>, orders: Arc<Mutex<mpsc::Receiver<String>>>) {
    let mut orders = orders.lock().await;
    loop {
        hb.mark_idle();
        let company = tokio::select! {
            () = hb.wait_for_stop() => break,
            Some(company) = orders.recv() => company,
            else => break,
        };
        let task = hb.begin_task(&company, "researching");
        assert!(company != "panic", "nothing is known of {company}");
        for page in 1..=5 {
            task.progress(page, 5);
            sleep(Duration::from_millis(100)).await;
        }
        println!("{company} is researched");
    }
}
