//! The workers: three work, one waits, and four go wrong.

use std::collections::HashMap;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc as async_mpsc;
use worker_heartbeat::{
    Activity, BoxError, Builder, Probe, Registry, Restart, Snapshot, Supervisor, WorkerHeartbeat,
};

use crate::checksum::{Checksum, checksum, files_below};

/// Short, so that the stalls show soon. For a real worker, choose a multiple of the longest time
/// between two beats.
const STALL_AFTER: Duration = Duration::from_secs(2);
/// A pause after each file, so that its name can be read.
const READING_PACE: Duration = Duration::from_millis(100);
const CHECKSUMMERS: usize = 2;
/// The metadata field that describes what a worker does.
pub const ROLE: &str = "role";

/// All workers, and what they need to run.
pub struct Farm {
    /// In the order of the table.
    probes: Vec<Probe>,
    /// The idle and the hanging worker wait for messages on these; none is ever sent.
    lines: Vec<Sender<String>>,
    /// Dropped last: the future among the workers runs on it.
    _runtime: Runtime,
}

impl Farm {
    pub fn start(registry: &Registry) -> Result<Self, BoxError> {
        let supervisor = Supervisor::new(registry);
        let restarting = supervisor.clone().restart(
            Restart::on_failure()
                .max(3)
                .within(Duration::from_secs(60))
                .backoff(Duration::from_millis(300), Duration::from_secs(5)),
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()?;
        let (results, collected) = async_mpsc::channel(16);
        let (letters, mailbox) = mpsc::channel();
        let (answers, gateway) = mpsc::channel();

        let mut probes = Vec::new();
        for part in 0..CHECKSUMMERS {
            let results = results.clone();
            let builder = worker("checksum", "works").id(format!("checksum-{}", part + 1));
            let spawned =
                supervisor.spawn(builder, move |hb| checksum_files(hb, part, &results))?;
            probes.push(spawned.probe());
        }
        let collected = Arc::new(tokio::sync::Mutex::new(collected));
        let collector = supervisor.supervise(worker("collector", "works as a future"), {
            move |hb| collect(hb, Arc::clone(&collected))
        })?;
        probes.extend(registry.get("collector"));
        runtime.spawn(collector);

        let threads = [
            supervisor.spawn(worker("mailer", "waits for work"), move |hb| {
                send_letters(hb, &mailbox)
            })?,
            supervisor.spawn(worker("importer", "panics in its set-up"), import)?,
            supervisor.spawn(worker("payments", "hangs in a call"), move |hb| {
                pay(hb, &gateway)
            })?,
            supervisor.spawn(worker("search", "spins"), search)?,
            restarting.spawn(worker("uploader", "fails repeatedly"), upload)?,
        ];
        probes.extend(threads.iter().map(|worker| worker.probe()));
        Ok(Self {
            probes,
            lines: vec![letters, answers],
            _runtime: runtime,
        })
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.probes.iter().map(Probe::snapshot).collect()
    }

    /// Ends the blocking calls of the idle and the hanging worker.
    pub fn hang_up(&mut self) {
        self.lines.clear();
    }
}

fn worker(worker_type: &str, role: &str) -> Builder {
    WorkerHeartbeat::builder(worker_type)
        .id(worker_type)
        .stall_after(STALL_AFTER)
        .metadata(ROLE, role)
}

/// Works: checksums one worker's share of the files below the current directory, in endless passes.
fn checksum_files(
    hb: &WorkerHeartbeat,
    part: usize,
    results: &async_mpsc::Sender<Checksum>,
) -> Result<(), BoxError> {
    let here = Path::new(".");
    for pass in 1.. {
        let mine: Vec<PathBuf> = files_below(here, || hb.beat())
            .into_iter()
            .skip(part)
            .step_by(CHECKSUMMERS)
            .collect();
        if mine.is_empty() {
            hb.mark_idle();
            thread::sleep(Duration::from_secs(1));
        } else {
            checksum_pass(hb, &format!("pass-{pass}"), &mine, results)?;
        }
        if hb.stop_requested() {
            break;
        }
    }
    Ok(())
}

fn checksum_pass(
    hb: &WorkerHeartbeat,
    run_id: &str,
    files: &[PathBuf],
    results: &async_mpsc::Sender<Checksum>,
) -> Result<(), BoxError> {
    let task = hb.begin_task(run_id, "");
    for (done, path) in files.iter().enumerate() {
        let name = path.strip_prefix(".").unwrap_or(path).to_string_lossy();
        hb.update_task(run_id, &name, Activity::Processing);
        task.progress(done, files.len());
        let go_on = || {
            hb.beat();
            !hb.stop_requested()
        };
        // A file that vanished or cannot be read is skipped.
        let result = checksum(path, go_on).unwrap_or_default();
        if hb.stop_requested() {
            return Ok(());
        }
        if let Some(result) = result {
            results
                .blocking_send(result)
                .map_err(|_| "the collector has ended")?;
        }
        thread::sleep(READING_PACE);
    }
    Ok(())
}

/// Works as a future: collects the checksums and counts changed files. Each poll is a beat.
async fn collect(
    hb: Arc<WorkerHeartbeat>,
    results: Arc<tokio::sync::Mutex<async_mpsc::Receiver<Checksum>>>,
) {
    let mut results = results.lock().await;
    let mut known = HashMap::new();
    let (mut bytes, mut changed) = (0, 0_u64);
    // Large files make results rare; the ticks keep it making progress.
    let mut ticks = tokio::time::interval(STALL_AFTER / 4);
    loop {
        let (files, kilobytes) = (known.len(), bytes / 1_000);
        hb.update_task(
            "checksums",
            format_args!("{files} files, {kilobytes} kB, {changed} changed"),
            Activity::Processing,
        );
        tokio::select! {
            () = hb.wait_for_stop() => return,
            Some(Checksum { path, bytes: length, crc }) = results.recv() => {
                bytes += length;
                let before = known.insert(path, crc);
                changed += u64::from(before.is_some_and(|before| before != crc));
            }
            _ = ticks.tick() => {}
        }
    }
}

/// Waits for work, and says so: it is well for as long as that lasts.
fn send_letters(hb: &WorkerHeartbeat, mailbox: &Receiver<String>) -> Result<(), BoxError> {
    hb.mark_idle();
    while let Ok(letter) = mailbox.recv() {
        let _task = hb.begin_task(&letter, "sending a letter");
    }
    Ok(())
}

/// Panics before its first beat.
fn import(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    let port: u16 = "http".parse().expect("IMPORT_PORT must be a number");
    while !hb.stop_requested() {
        let _task = hb.begin_task("import-1", format_args!("listening on port {port}"));
    }
    Ok(())
}

/// Hangs in a call without a timeout.
fn pay(hb: &WorkerHeartbeat, gateway: &Receiver<String>) -> Result<(), BoxError> {
    let _task = hb.begin_task("order-17", "waiting for the bank's answer");
    match gateway.recv() {
        Ok(_) => Err("the bank refused".into()),
        // Only the end of the tour ends the call.
        Err(_) => Ok(()),
    }
}

/// Spins: it works, and never beats. It checks for the stop request only so that the tour can end.
fn search(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    let _task = hb.begin_task("search-1", "looking for an odd perfect number");
    for number in (3_u64..).step_by(2) {
        let divisors = (1..=number / 3).filter(|divisor| number % *divisor == 0);
        if hb.stop_requested() || divisors.sum::<u64>() == number {
            break;
        }
    }
    Ok(())
}

/// Fails, is restarted, and fails again, until its supervisor gives up.
fn upload(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    const CLOSED: &str = "127.0.0.1:1";
    let _task = hb.begin_task("upload-1", "sending the checksums");
    // Long enough to be seen at work.
    thread::sleep(Duration::from_millis(300));
    TcpStream::connect(CLOSED).map_err(|error| format!("cannot connect to {CLOSED}: {error}"))?;
    Err(format!("{CLOSED} refused the checksums").into())
}
