//! Three worker processes share two runs. One is killed with SIGKILL: a sweep marks it dead and
//! releases its run, and the spare worker takes over.
//!
//! ```text
//! cargo run --example fleet --features sqlite
//! cargo run --example fleet --features postgres -- --postgres postgres://user@localhost/database
//! ```

mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{BoxError, HeartbeatStore, StoredWorker, Sweeper};

const WORKERS: [&str; 3] = ["worker-1", "worker-2", "worker-3"];
/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["worker", id, place] => worker::run(id, worker::open(place)?),
        [] => with_temporary_file(demonstrate),
        ["--postgres", url] => demonstrate(url),
        _ => Err("usage: fleet [--postgres URL]".into()),
    }
}

/// Calls `action` with a file in a directory that is removed afterwards.
fn with_temporary_file(action: impl FnOnce(&str) -> Result<(), BoxError>) -> Result<(), BoxError> {
    let directory = std::env::temp_dir().join(format!("fleet-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file: PathBuf = directory.join("fleet.db");
    let result = action(&file.to_string_lossy());
    std::fs::remove_dir_all(&directory)?;
    result
}

fn demonstrate(place: &str) -> Result<(), BoxError> {
    let begun = Instant::now();
    let say = |text: &str| println!("{:5.1} s  {text}", begun.elapsed().as_secs_f64());
    // A sweeper may run in any process; here it runs in the parent of the workers.
    let _sweeper = Sweeper::new(worker::open(place)?)
        .interval(Duration::from_secs(1))
        .start()?;
    let store = worker::open(place)?;

    say("three processes start");
    let mut children = BTreeMap::new();
    for id in WORKERS {
        children.insert(id, Process::start(id, place)?);
    }
    let holders = wait(&*store, "two working and one waiting", |workers| {
        let holders = workers.iter().filter(|worker| holds(worker)).count();
        workers.len() == 3 && holders == 2 && workers.iter().all(|w| w.health().is_recent())
    })?;
    for worker in &holders {
        say(&format!("  {}", line(worker)));
    }

    let victim = holders.iter().find(|worker| holds(worker));
    let victim = victim.ok_or("no worker holds a run")?.key.id.clone();
    let run = run_of(&holders, &victim);
    if let Some(child) = children.get_mut(&*victim) {
        say(&format!("kill -9 {} ({victim}, at {run})", child.0.id()));
        child.0.kill()?;
    }
    let killed = Instant::now();

    let workers = wait(&*store, "the death to be recorded", |workers| {
        workers
            .iter()
            .any(|worker| worker.key.id == victim && worker.health().state().is_offline())
    })?;
    for worker in workers.iter().filter(|worker| worker.key.id == victim) {
        say(&format!("  {}", line(worker)));
    }
    say(&format!(
        "the record is true after {:.1} s",
        killed.elapsed().as_secs_f64()
    ));

    let workers = wait(&*store, "another worker to take over", |workers| {
        workers.iter().any(|worker| {
            worker.key.id != victim
                && holds(worker)
                && worker.status.run_id.as_deref() == Some(&*run)
        })
    })?;
    for worker in &workers {
        say(&format!("  {}", line(worker)));
    }
    say(&format!(
        "{run} goes on after {:.1} s",
        killed.elapsed().as_secs_f64()
    ));

    drop(children);
    println!("{}", store.summary()?);
    Ok(())
}

/// A worker process; killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(id: &str, place: &str) -> Result<Self, BoxError> {
        let program = std::env::current_exe()?;
        Ok(Self(
            Command::new(program).args(["worker", id, place]).spawn()?,
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(
    store: &dyn HeartbeatStore,
    what: &str,
    is_met: impl Fn(&[StoredWorker]) -> bool,
) -> Result<Vec<StoredWorker>, BoxError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut workers = store.list(&WorkerFilter::default())?;
        workers.retain(|worker| WORKERS.contains(&&*worker.key.id));
        if is_met(&workers) {
            return Ok(workers);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(format!("waited in vain for {what}").into())
}

fn holds(worker: &StoredWorker) -> bool {
    worker.lease_remaining.is_some()
}

fn run_of(workers: &[StoredWorker], id: &str) -> String {
    let worker = workers.iter().find(|worker| worker.key.id == id);
    worker
        .and_then(|worker| worker.status.run_id.clone())
        .unwrap_or_default()
}

fn line(worker: &StoredWorker) -> String {
    let run = match (&worker.status.run_id, worker.lease_remaining) {
        (Some(run), Some(_)) => format!(", holds {run}"),
        _ => String::new(),
    };
    format!("{}: {}{run}", worker.key.id, worker.health())
}
