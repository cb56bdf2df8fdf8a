//! A coordinator: workers in any language, on machines that reach no database, report over HTTP.
//!
//! ```text
//! cargo run --example coordinator --features http
//! ```
//!
//! It shows the life of one such worker, and ends. With `--listen` it serves until Ctrl-C, with the
//! token `s3cret`:
//!
//! ```text
//! cargo run --example coordinator --features http -- --listen 127.0.0.1:7717
//! curl -H 'Authorization: Bearer s3cret' localhost:7717/api/worker/register -d '{"worker_id": "gpu-7", "worker_type": "gpu", "capabilities": {"cuda": 12}}'
//! curl -H 'Authorization: Bearer s3cret' localhost:7717/api/worker/heartbeat -d '{"worker_id": "gpu-7", "status": "healthy", "current_load": 0.25}'
//! curl -H 'Authorization: Bearer s3cret' localhost:7717/api/worker/stop -d '{"worker_id": "gpu-7"}'
//! ```

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use worker_heartbeat::{BoxError, Coordinator, HeartbeatStore, MemoryStore, Sweeper};

const TOKEN: &str = "s3cret";

fn main() -> Result<ExitCode, BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let listen = match arguments[..] {
        [] => None,
        ["--listen", address] => Some(address),
        _ => {
            eprintln!("Usage: coordinator [--listen ADDRESS]");
            return Ok(ExitCode::from(2));
        }
    };

    let store = MemoryStore::new();
    // Marks silent workers offline. The coordinator itself does not sweep.
    let _sweeper = Sweeper::new(store.clone())
        .interval(Duration::from_millis(250))
        .start()?;
    let coordinator = Coordinator::new(store.clone())
        .token(TOKEN)
        .serve(listen.unwrap_or("127.0.0.1:0"))?;
    let url = format!("http://{}/api/worker", coordinator.local_addr());
    if listen.is_some() {
        println!("Requests need the header 'Authorization: Bearer {TOKEN}'. Press Ctrl-C to stop.");
        println!("{url}");
        loop {
            thread::park();
        }
    }
    show_a_life(&url, &store)?;
    Ok(ExitCode::SUCCESS)
}

fn show_a_life(url: &str, store: &MemoryStore) -> Result<(), BoxError> {
    println!("The coordinator listens on {url}\n");

    // A registration may hold any fields. Without a worker_id, the coordinator assigns one.
    let registration = r#"{"worker_id": "gpu-7", "tunnel_url": "https://gpu-7.example",
       "capabilities": {"vram_gb": 24}, "interval": 0.5, "stale_after": 1.5}"#;
    curl(url, "register", registration)?;
    let status = r#"{"worker_id": "gpu-7", "status": "healthy", "current_load": 0.25}"#;
    curl(url, "heartbeat", status)?;

    // One worker at a time holds a run. Every write of the run carries the fence.
    let claim = r#"{"worker_id": "gpu-7", "run_id": "run-1", "ttl_s": 60}"#;
    curl(url, "claim", claim)?;

    // Refusals say what to do.
    curl(url, "heartbeat", r#"{"worker_id": "gpu-8"}"#)?;
    curl(
        url,
        "heartbeat",
        r#"{"worker_id": "gpu-7", "incarnation": "one"}"#,
    )?;

    println!("The worker is silent for three seconds ...\n");
    thread::sleep(Duration::from_secs(3));
    println!("The store: {}\n", store.summary()?);
    curl(url, "heartbeat", status)?;
    Ok(())
}

/// Sends the request that it prints as a command.
fn curl(url: &str, action: &str, body: &str) -> Result<(), ureq::Error> {
    println!("$ curl -H 'Authorization: Bearer {TOKEN}' {url}/{action} -d '{body}'");
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .build();
    let mut answer = ureq::Agent::new_with_config(agent)
        .post(format!("{url}/{action}"))
        .header("Authorization", format!("Bearer {TOKEN}"))
        .send(body)?;
    let text = answer.body_mut().read_to_string()?;
    println!("{} {text}\n", answer.status().as_u16());
    Ok(())
}
