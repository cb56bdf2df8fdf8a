//! The README's first program: a panic keeps its reason.
//!
//! ```text
//! cargo run --example 14_supervised_main
//! ```

use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};

fn main() -> Result<(), worker_heartbeat::Error> {
    let registry = Registry::global();
    let builder = WorkerHeartbeat::builder("importer").id("importer-1");
    let worker = Supervisor::new(registry).spawn(builder, |hb| {
        for (line, price) in ["12.50", "8.99", "n/a"].iter().enumerate() {
            let _task = hb.begin_task(format_args!("line-{}", line + 1), "reading a price");
            let price: f64 = price.parse().expect("a price is a number");
            println!("{price:.2}");
        }
        Ok(())
    })?;
    worker.join();
    println!("{}", registry.summary());
    Ok(())
}
