//! Sweeps a store for ever, and serves what it sees.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use worker_heartbeat::{
    Beacon, BoxError, Coordinator, Error, HealthEndpoint, HealthServer, HeartbeatStore, Metrics,
    Registry, Shutdown, SweepReport, Sweeper, SystemdNotifier, WorkerHeartbeat,
};

use crate::args::Watch;
use crate::commands::Done;
use crate::table::clean;

/// What a sweep may take beyond its interval.
const SWEEP_TIME: Duration = Duration::from_secs(30);
/// How often the workers that ended long ago are looked for.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);

pub fn run(watch: &Watch) -> Done {
    let store = watch.store.make()?;
    let registry = Registry::global();
    let shutdown = Shutdown::builder().install()?;
    // Who watches the workers is a worker, too: it beats with each sweep, whether that went well or
    // not, and hangs when its store does.
    let hb = WorkerHeartbeat::builder("sweeper")
        .id("heartbeat-monitor")
        .stall_after(watch.interval.saturating_add(SWEEP_TIME))
        .startup_grace(SWEEP_TIME)
        .start()?;
    let trouble: Trouble = Arc::new(Mutex::new(Some("it was not swept yet".to_owned())));
    let sweeping = Sweeping {
        hb,
        store: Arc::clone(&store),
        purge_after: watch.purge_after,
        trouble: Arc::clone(&trouble),
        so_far: Mutex::default(),
    };
    let sweeper = Sweeper::new(Arc::clone(&store))
        .interval(watch.interval)
        .threshold(watch.threshold.threshold);
    let metrics = Metrics::new(registry)
        .fleet(Arc::clone(&store))
        .sweeper(&sweeper);
    let server = serve(watch, &store, &shutdown, &trouble, metrics)?;
    if let Some(server) = &server {
        log::info!("listening at http://{}/#view=fleet", server.local_addr());
    }
    let beacon = watch
        .beacon
        .as_ref()
        .map(|file| Beacon::new(registry, file).start())
        .transpose()?;
    let systemd = SystemdNotifier::start(registry)?;
    let running = sweeper
        .on_report(move |swept| sweeping.note(swept))
        .start()?;
    log::info!(
        "sweeping {} each {:?}",
        clean(&format!("{store:?}")),
        watch.interval
    );

    let cause = shutdown.receiver().recv();
    log::info!(
        "ended{}",
        cause
            .map(|cause| format!(" by {cause}"))
            .unwrap_or_default()
    );
    // Ends the sweeper's thread, and with it the worker.
    drop(running);
    let report = shutdown.wait();
    drop((server, beacon, systemd));
    Ok(report.exit_code())
}

/// Serves the dashboard, the probes and the coordinator, if that is asked for.
fn serve(
    watch: &Watch,
    store: &Arc<dyn HeartbeatStore>,
    shutdown: &Shutdown,
    trouble: &Trouble,
    metrics: Metrics,
) -> Result<Option<HealthServer>, BoxError> {
    let Some(address) = watch.listen else {
        return Ok(None);
    };
    let mut coordinator = Coordinator::new(Arc::clone(store));
    if let Some(file) = &watch.token_file {
        let token = fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        coordinator = coordinator.token(token.trim());
    }
    let trouble = Arc::clone(trouble);
    let mut endpoint = HealthEndpoint::new(Registry::global())
        .shutdown(shutdown)
        .fleet(Arc::clone(store))
        .metrics(metrics)
        .check("store", move || trouble.lock().clone().map_or(Ok(()), Err))
        .coordinator(coordinator);
    if watch.show_reasons {
        endpoint = endpoint.show_reasons(true);
    }
    Ok(Some(endpoint.serve(address)?))
}

/// What is wrong with the store, as the last sweep found it.
type Trouble = Arc<Mutex<Option<String>>>;

/// What goes on beside the sweeps, on their thread.
struct Sweeping {
    hb: WorkerHeartbeat,
    store: Arc<dyn HeartbeatStore>,
    purge_after: Option<Duration>,
    trouble: Trouble,
    /// Sweeps that failed in a row, and the last purge.
    so_far: Mutex<(u64, Option<Instant>)>,
}

impl Sweeping {
    fn note(&self, swept: &Result<SweepReport, Error>) {
        self.hb.bind_thread();
        self.hb.beat();
        let mut so_far = self.so_far.lock();
        let (failures, purged) = &mut *so_far;
        match swept {
            Ok(report) => {
                if std::mem::take(failures) > 0 {
                    log::info!("the store answers again");
                }
                tell(report);
                *self.trouble.lock() = None;
            }
            Err(error) => {
                let text = clean(&error.to_string());
                if *failures == 0 {
                    log::warn!("{text}");
                }
                *failures += 1;
                *self.trouble.lock() = Some(text);
            }
        }
        let is_due = swept.is_ok() && purged.is_none_or(|at| at.elapsed() >= PURGE_INTERVAL);
        if let Some(age) = self.purge_after.filter(|_| is_due) {
            *purged = Some(Instant::now());
            match self.store.purge(age) {
                Ok(0) => {}
                Ok(count) => log::info!("{count} forgotten that ended long ago"),
                Err(error) => log::warn!("{}", clean(&error.to_string())),
            }
        }
    }
}

fn tell(report: &SweepReport) {
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
