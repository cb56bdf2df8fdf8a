//! A long job is cancelled at once when another process takes over its run. Two processes, one
//! coordinator. The first one is stopped with a real `kill -STOP`, and continued when the second one has
//! the run.
//!
//! ```text
//! cargo run --example 16_lost_lease --features http
//! ```

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    BoxError, Coordinator, FleetConfig, HttpStore, Lease, MemoryStore, Registry, WorkerHeartbeat,
};

const RUN: &str = "run-17";
/// Another worker can have the run this long after the holder was cut off.
const TTL: Duration = Duration::from_secs(2);
const PAGES: usize = 1_000;
/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => demonstrate(),
        ["worker", id, url] => tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?
            .block_on(work(id, url)),
        _ => Err("usage: 16_lost_lease".into()),
    }
}

// --- a worker process --------------------------------------------------------------------------------

async fn work(id: &str, url: &str) -> Result<(), BoxError> {
    Registry::global().attach(HttpStore::new(url)?, FleetConfig::new())?;
    let hb = WorkerHeartbeat::builder("crawler").id(id).start()?;
    let lease = loop {
        hb.mark_idle();
        match hb.claim_async(RUN, TTL).await? {
            Some(lease) => break lease,
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    println!("has {RUN}, fence {}", lease.fence());

    // Without a test of the lease in it: the job does not have to know.
    match lease.run_until_lost(job(&hb, &lease)).await {
        Ok(()) => println!("is done"),
        Err(loss) => println!("has stopped working on {RUN}: {loss}"),
    }
    Ok(())
}

/// A long job, in steps.
async fn job(hb: &WorkerHeartbeat, lease: &Lease) {
    let _connection = Connection;
    let task = hb.begin_task(lease.run_id(), "reading pages");
    for page in 1..=PAGES {
        task.progress(page, PAGES);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the job owns is dropped with it.
struct Connection;

impl Drop for Connection {
    fn drop(&mut self) {
        println!("closes its connection");
    }
}

// --- the demonstration -------------------------------------------------------------------------------

fn demonstrate() -> Result<(), BoxError> {
    let coordinator = Coordinator::new(MemoryStore::new()).serve("127.0.0.1:0")?;
    let url = format!("http://{}", coordinator.local_addr());
    let begun = Instant::now();
    let say = |text: &str| println!("{:4.1} s  {text}", begun.elapsed().as_secs_f64());
    let wait = |process: &Process, text: &str| -> Result<(), BoxError> {
        loop {
            let line = process.lines.recv_timeout(PATIENCE)?;
            say(&format!("{} {line}", process.id));
            if line.starts_with(text) {
                return Ok(());
            }
        }
    };
    let first = Process::start("worker-1", &url)?;
    wait(&first, "has run-17")?;
    let second = Process::start("worker-2", &url)?;

    say("kill -STOP worker-1");
    first.signal("-STOP")?;
    wait(&second, "has run-17")?;
    say("kill -CONT worker-1");
    let continued = Instant::now();
    first.signal("-CONT")?;
    wait(&first, "has stopped working")?;
    say(&format!(
        "that took {} ms; worker-2 goes on",
        continued.elapsed().as_millis()
    ));
    Ok(())
}

/// A worker process, and the lines that it prints; killed when it is dropped.
struct Process {
    id: &'static str,
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(id: &'static str, url: &str) -> Result<Self, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["worker", id, url])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("it has no stdout")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { id, child, lines })
    }

    fn signal(&self, name: &str) -> Result<(), BoxError> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status()?;
        if sent.success() {
            return Ok(());
        }
        Err(format!("kill {name} {pid} failed").into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
