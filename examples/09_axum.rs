//! A web service: probes beside its own routes, a worker behind them, one shutdown for both.
//!
//! ```text
//! cargo run --example 09_axum --features http
//! cargo run --example 09_axum --features http -- 127.0.0.1:8080
//! curl -d 'example.com' localhost:8080/research
//! curl localhost:8080/v1/worker/health
//! ```
//!
//! Ctrl-C ends the example. An order for `panic` makes the worker panic; its supervisor restarts it.

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
    // If it panics or returns an error, that is recorded, and it restarts with the next order.
    let builder = WorkerHeartbeat::builder("research").id("research-1");
    tokio::spawn(supervisor.supervise(builder, move |hb| research(hb, Arc::clone(&orders)))?);

    let health = HealthEndpoint::new(registry)
        .shutdown(&shutdown) // While the process drains, it is live but not ready.
        .show_reasons(true); // By default a router shows none: it does not know its address.
    let app = axum::Router::new()
        .route("/research", post(order))
        .with_state(sender)
        .merge(health.router());
    let listener =
        tokio::net::TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await?;
    println!("Press Ctrl-C to stop.");
    println!("http://{}/readyz", listener.local_addr()?);

    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown.requested_async())
        .await?;
    // The worker was asked to stop, and finishes its order.
    let report = shutdown.wait_async().await;
    println!("ended by {}: {}", report.cause, registry.summary());
    Ok(report.exit_code())
}

async fn order(State(orders): State<mpsc::Sender<String>>, company: String) -> StatusCode {
    match orders.try_send(company) {
        Ok(()) => StatusCode::ACCEPTED,
        // The worker is too slow, or has ended: its health says which.
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
