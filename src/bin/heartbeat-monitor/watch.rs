//! The `watch` command: sweeps a store continuously, and serves its health.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use worker_heartbeat::{
    Beacon, BoxError, Coordinator, Error, HealthEndpoint, HeartbeatStore, Metrics, Registry,
    RunningHealthEndpoint, Shutdown, SweepReport, Sweeper, SystemdNotifier, WorkerHeartbeat,
};

use crate::args::WatchArgs;
use crate::chain;
use crate::commands::CommandResult;
use crate::table::clean;

/// The longest time that a sweep may take.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(30);
const PURGE_INTERVAL: Duration = Duration::from_secs(600);

pub fn run(args: &WatchArgs) -> CommandResult {
    let store = args.store.open_or_create()?;
    let registry = Registry::global();
    let shutdown = Shutdown::builder().install()?;
    // The sweeper is itself a worker. It beats after every sweep, even a failed one, so it stalls only
    // if the store hangs.
    let hb = WorkerHeartbeat::builder("sweeper")
        .id("heartbeat-monitor")
        .stall_after(args.interval.saturating_add(SWEEP_TIMEOUT))
        .startup_grace(SWEEP_TIMEOUT)
        .start()?;
    let failure: StoreFailure = Arc::new(Mutex::new(Some("not swept yet".to_owned())));
    let observer = SweepObserver {
        hb,
        store: Arc::clone(&store),
        purge_after: args.purge_after,
        failure: Arc::clone(&failure),
        progress: Mutex::default(),
    };
    let sweeper = Sweeper::new(Arc::clone(&store))
        .interval(args.interval)
        .threshold(args.threshold);
    let metrics = Metrics::new(registry)
        .fleet(Arc::clone(&store))
        .sweeper(&sweeper);
    let server = serve(args, &store, &shutdown, failure, metrics)?;
    if let Some(server) = &server {
        log::info!("listening at http://{}/#view=fleet", server.local_addr());
    }
    let beacon = args
        .beacon
        .as_ref()
        .map(|file| Beacon::new(registry, file).start())
        .transpose()?;
    let systemd = SystemdNotifier::start(registry)?;
    let running = sweeper
        .on_report(move |result| observer.observe(result))
        .start()?;
    log::info!(
        "sweeping {} every {:?}",
        clean(&format!("{store:?}")),
        args.interval
    );

    match shutdown.receiver().recv() {
        Ok(cause) => log::info!("ended by {cause}"),
        Err(_) => log::info!("ended"),
    }
    // This ends the sweeper's thread, and thereby its worker.
    drop(running);
    let report = shutdown.wait();
    drop((server, beacon, systemd));
    Ok(report.exit_code())
}

/// Serves the dashboard, the probes and the coordinator if `--listen` is given.
fn serve(
    args: &WatchArgs,
    store: &Arc<dyn HeartbeatStore>,
    shutdown: &Shutdown,
    failure: StoreFailure,
    metrics: Metrics,
) -> Result<Option<RunningHealthEndpoint>, BoxError> {
    let Some(address) = args.listen else {
        return Ok(None);
    };
    let mut coordinator = Coordinator::new(Arc::clone(store));
    if let Some(file) = &args.token_file {
        let token = fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        coordinator = coordinator.token(token.trim());
    }
    let mut endpoint = HealthEndpoint::new(Registry::global())
        .shutdown(shutdown)
        .fleet(Arc::clone(store))
        .metrics(metrics)
        .check("store", move || failure.lock().clone().map_or(Ok(()), Err))
        .coordinator(coordinator);
    if args.show_reasons {
        endpoint = endpoint.show_reasons(true);
    }
    Ok(Some(endpoint.serve(address)?))
}

/// The error of the last sweep, for the readiness check.
type StoreFailure = Arc<Mutex<Option<String>>>;

/// Receives the result of every sweep, on the sweeper's thread.
struct SweepObserver {
    hb: WorkerHeartbeat,
    store: Arc<dyn HeartbeatStore>,
    purge_after: Option<Duration>,
    failure: StoreFailure,
    progress: Mutex<SweepProgress>,
}

#[derive(Default)]
struct SweepProgress {
    failures_in_a_row: u64,
    last_purge: Option<Instant>,
}

impl SweepObserver {
    fn observe(&self, result: &Result<SweepReport, Error>) {
        self.hb.bind_thread();
        self.hb.beat();
        let mut progress = self.progress.lock();
        match result {
            Ok(report) => {
                if std::mem::take(&mut progress.failures_in_a_row) > 0 {
                    log::info!("the store is reachable again");
                }
                log_report(report);
                *self.failure.lock() = None;
            }
            Err(error) => {
                let text = clean(&chain(error));
                if progress.failures_in_a_row == 0 {
                    log::warn!("{text}");
                }
                progress.failures_in_a_row += 1;
                *self.failure.lock() = Some(text);
            }
        }
        let last_purge = progress.last_purge;
        let is_due = result.is_ok() && last_purge.is_none_or(|at| at.elapsed() >= PURGE_INTERVAL);
        if let Some(age) = self.purge_after.filter(|_| is_due) {
            progress.last_purge = Some(Instant::now());
            match self.store.purge(age) {
                Ok(0) => {}
                Ok(count) => log::info!("deleted {count} workers that ended long ago"),
                Err(error) => log::warn!("{}", clean(&chain(&error))),
            }
        }
    }
}

fn log_report(report: &SweepReport) {
    for id in &report.marked_offline {
        log::warn!("worker {} marked offline", clean(id));
    }
    for group in &report.affected_groups {
        log::warn!("group {} is offline as a whole", clean(group));
    }
    for run in &report.released_leases {
        log::info!("lease of {} released", clean(run));
    }
}
