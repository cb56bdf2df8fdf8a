//! The `watch` command: sweeps a store continuously, and serves its health.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use worker_heartbeat::{
    Beacon, BoxError, Coordinator, Error, HealthEndpoint, HeartbeatStore, Metrics, Registry,
    RunningHealthEndpoint, Shutdown, Signal, SweepReport, Sweeper, SystemdNotifier,
    WorkerHeartbeat,
};

use crate::args::WatchArgs;
use crate::chain;
use crate::commands::CommandResult;
use crate::notify::Notifier;
use crate::printable::Age;
use crate::text::clean;
use crate::token;

/// The longest time that a sweep may take.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(30);
/// The most names in a log line.
const MOST_NAMES: usize = 5;

pub fn run(args: &WatchArgs) -> CommandResult {
    let store = args.store.open_or_create()?;
    let registry = Registry::global();
    let mut shutdown = Shutdown::builder();
    if args.token_file.is_some() {
        // SIGHUP is for the token.
        shutdown = shutdown.signals([Signal::Interrupt, Signal::Terminate, Signal::Quit]);
    }
    let shutdown = shutdown.install()?;
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
        failure: Arc::clone(&failure),
        failures_in_a_row: Mutex::default(),
    };
    let retention = match args.purge_after {
        Some(age) => args
            .retention
            .retention()
            .stopped(age)
            .dead(age)
            .replaced(None),
        None => args.retention.retention(),
    };
    let sweeper = Sweeper::new(Arc::clone(&store))
        .interval(args.interval)
        .threshold(args.threshold)
        .retention(retention);
    let metrics = Metrics::new(registry)
        .fleet(Arc::clone(&store))
        .sweeper(&sweeper);
    let server = serve(args, &store, &shutdown, failure, metrics, &sweeper)?;
    if let Some(server) = &server {
        log::info!("listening at http://{}/#view=fleet", server.local_addr());
    }
    let link = server
        .as_ref()
        .map(|server| format!("http://{}", server.local_addr()));
    let notifier = Notifier::start(&args.notify, Arc::clone(&store), link)?;
    let server = server.map(Arc::new);
    let reload = token::Reload::start(args.token_file.as_deref(), server.as_ref())?;
    let beacon = args
        .beacon
        .as_ref()
        .map(|file| Beacon::new(registry, file).sweeper(&sweeper).start())
        .transpose()?;
    let systemd = SystemdNotifier::start(registry)?;
    let running = sweeper
        .on_report({
            let swept = notifier.as_ref().map(Notifier::swept);
            move |result| {
                observer.observe(result);
                if let Some(swept) = &swept {
                    // It is told already.
                    let _ = swept.try_send(());
                }
            }
        })
        .start()?;
    log::info!(
        "sweeping {} every {}",
        clean(&format!("{store:?}")),
        Age(args.interval)
    );

    match shutdown.receiver().recv() {
        Ok(cause) => log::info!("ended by {cause}"),
        Err(_) => log::info!("ended"),
    }
    // This ends the sweeper's thread, and thereby its worker.
    drop(running);
    let report = shutdown.wait();
    drop((notifier, reload, server, beacon, systemd));
    Ok(report.exit_code())
}

/// Serves the dashboard, the probes and the coordinator if `--listen` is given.
fn serve(
    args: &WatchArgs,
    store: &Arc<dyn HeartbeatStore>,
    shutdown: &Shutdown,
    failure: StoreFailure,
    metrics: Metrics,
    sweeper: &Sweeper,
) -> Result<Option<RunningHealthEndpoint>, BoxError> {
    let Some(address) = &args.listen else {
        return Ok(None);
    };
    let mut coordinator = Coordinator::new(Arc::clone(store));
    if let Some(file) = &args.token_file {
        coordinator = coordinator.token(token::read(file)?);
    }
    let mut endpoint = HealthEndpoint::new(Registry::global())
        .shutdown(shutdown)
        .fleet(Arc::clone(store))
        .metrics(metrics)
        .sweeper(sweeper)
        .check("store", move || failure.lock().clone().map_or(Ok(()), Err))
        .coordinator(coordinator);
    if args.show_reasons {
        endpoint = endpoint.show_reasons(true);
    }
    Ok(Some(endpoint.serve(address.as_str())?))
}

/// The error of the last sweep, for the readiness check.
type StoreFailure = Arc<Mutex<Option<String>>>;

/// Receives the result of every sweep, on the sweeper's thread.
struct SweepObserver {
    hb: WorkerHeartbeat,
    failure: StoreFailure,
    failures_in_a_row: Mutex<u64>,
}

impl SweepObserver {
    fn observe(&self, result: &Result<SweepReport, Error>) {
        self.hb.bind_thread();
        self.hb.beat();
        let mut failures = self.failures_in_a_row.lock();
        match result {
            Ok(report) => {
                if std::mem::take(&mut *failures) > 0 {
                    log::info!("the store is reachable again");
                }
                log_report(report);
                *self.failure.lock() = None;
            }
            Err(error) => {
                let text = clean(&chain(error));
                if *failures == 0 {
                    log::warn!("{text}");
                }
                *failures += 1;
                *self.failure.lock() = Some(text);
            }
        }
    }
}

/// One line for each kind of change, however many workers it concerns.
fn log_report(report: &SweepReport) {
    match &report.marked_offline[..] {
        [] => {}
        [id] => log::warn!("worker {} marked offline", clean(id)),
        ids => log::warn!("{} workers marked offline: {}", ids.len(), few(ids)),
    }
    match &report.affected_groups[..] {
        [] => {}
        [group] => log::warn!("group {} is offline as a whole", clean(group)),
        groups => log::warn!(
            "{} groups are offline as a whole: {}",
            groups.len(),
            few(groups)
        ),
    }
    match &report.released_leases[..] {
        [] => {}
        [run] => log::info!("lease of {} released", clean(run)),
        runs => log::info!("{} leases released: {}", runs.len(), few(runs)),
    }
    match &report.busy[..] {
        [] => {}
        ids => log::warn!(
            "{} silent workers not marked, because other clients lock them: {}",
            ids.len(),
            few(ids)
        ),
    }
    if report.forgotten > 0 {
        log::info!("forgot {} workers that ended long ago", report.forgotten);
    }
}

/// The first few names, and whether there are more.
fn few(names: &[String]) -> String {
    let first: Vec<String> = names
        .iter()
        .take(MOST_NAMES)
        .map(|name| clean(name))
        .collect();
    let more = if names.len() > MOST_NAMES {
        ", …"
    } else {
        ""
    };
    format!("{}{more}", first.join(", "))
}
