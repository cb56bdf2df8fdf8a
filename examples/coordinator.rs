//! A coordinator: workers in any language, and on machines that reach no database, say over HTTP
//! that they live.
//!
//! cargo run --example coordinator --features http
//!
//! It goes through the life of one such worker and ends. `-- --stay` keeps it listening, at
//! 127.0.0.1:7717, for requests of your own.

use std::error::Error;
use std::thread;
use std::time::Duration;

use worker_heartbeat::{Coordinator, HeartbeatStore, MemoryStore, Sweeper};

fn main() -> Result<(), Box<dyn Error>> {
    let stay = std::env::args().any(|argument| argument == "--stay");
    let store = MemoryStore::new();
    // Marks those offline that are not heard of any more.
    let _sweeper = Sweeper::new(store.clone())
        .interval(Duration::from_millis(250))
        .start()?;
    let coordinator = Coordinator::new(store.clone())
        .token("s3cret")
        .serve(if stay {
            "127.0.0.1:7717"
        } else {
            "127.0.0.1:0"
        })?;
    let url = format!("http://{}/api/worker", coordinator.local_addr());
    println!("The coordinator listens at {url}\n");

    // A worker says what it likes of itself, and is given its id.
    let registration = r#"{"worker_id": "gpu-7", "tunnel_url": "https://gpu-7.example",
       "capabilities": {"vram_gb": 24}, "interval": 0.5, "stale_after": 1.5}"#;
    curl(&url, "register", registration)?;
    let status = r#"{"worker_id": "gpu-7", "status": "healthy", "current_load": 0.25}"#;
    curl(&url, "heartbeat", status)?;

    // A run is one worker's at a time. The fence goes with every write that the run makes.
    let claim = r#"{"worker_id": "gpu-7", "run_id": "run-1", "ttl_s": 60}"#;
    curl(&url, "claim", claim)?;

    // What goes wrong is said.
    curl(&url, "heartbeat", r#"{"worker_id": "gpu-8"}"#)?;
    curl(
        &url,
        "heartbeat",
        r#"{"worker_id": "gpu-7", "incarnation": "one"}"#,
    )?;

    if stay {
        loop {
            thread::park();
        }
    }
    println!("Nothing is heard of it for three seconds ...\n");
    thread::sleep(Duration::from_secs(3));
    println!("The store: {}\n", store.summary()?);
    curl(&url, "heartbeat", status)?;
    Ok(())
}

/// Asks as `curl` would, and shows it.
fn curl(url: &str, what: &str, body: &str) -> Result<(), ureq::Error> {
    println!("$ curl -H 'Authorization: Bearer s3cret' {url}/{what} -d '{body}'");
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .build();
    let mut answer = ureq::Agent::new_with_config(agent)
        .post(format!("{url}/{what}"))
        .header("Authorization", "Bearer s3cret")
        .send(body)?;
    let text = answer.body_mut().read_to_string()?;
    println!("{} {text}\n", answer.status().as_u16());
    Ok(())
}
