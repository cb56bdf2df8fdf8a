//! The counters of a registry, for any system of metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Registry;
use crate::health::SweepTotals;
use crate::registry::core::draining::Drains;

/// What has happened in a registry, counted for as long as it lives; made by
/// [`Registry::counters`]. Counters never go back, even when ended workers are forgotten.
///
/// [`each`](Self::each) passes them on to a system of metrics. With the `metrics` crate, call this
/// every few seconds, or whenever your exporter renders:
///
/// ```
/// # mod metrics {
/// #     pub struct Counter;
/// #     impl Counter { pub fn absolute(&self, _: u64) {} }
/// #     macro_rules! counter { ($name:expr, $labels:expr) => {{ let _ = ($name, $labels); metrics::Counter }} }
/// #     pub(crate) use counter;
/// # }
/// use worker_heartbeat::Registry;
///
/// fn export(registry: &Registry) {
///     registry.counters().each(|name, labels, value| {
///         let labels: Vec<_> = labels.iter().map(|(key, value)| (*key, value.to_string())).collect();
///         metrics::counter!(format!("worker_heartbeat_{name}"), &labels).absolute(value);
///     });
/// }
/// # export(&Registry::new());
/// ```
///
/// With OpenTelemetry, register one observable counter for each name; its callback takes the values
/// at the time of the collection:
///
/// ```
/// # struct KeyValue; impl KeyValue { fn new(_: &'static str, _: String) -> Self { Self } }
/// # struct Observer; impl Observer { fn observe(&self, _: u64, _: &[KeyValue]) {} }
/// # struct Builder; impl Builder {
/// #     fn with_callback(self, f: impl Fn(&Observer) + Send + Sync + 'static) -> Self { f(&Observer); self }
/// #     fn build(self) {}
/// # }
/// # struct Meter; impl Meter { fn u64_observable_counter(&self, _: String) -> Builder { Builder } }
/// use std::collections::BTreeSet;
/// use worker_heartbeat::Registry;
///
/// fn register(meter: &Meter, registry: &Registry) {
///     let mut names = BTreeSet::new();
///     registry.counters().each(|name, _, _| drop(names.insert(name)));
///     for wanted in names {
///         let registry = registry.clone();
///         meter
///             .u64_observable_counter(format!("worker_heartbeat.{wanted}"))
///             .with_callback(move |observer| {
///                 registry.counters().each(|name, labels, value| {
///                     if name == wanted {
///                         let labels = labels.iter();
///                         let labels = labels.map(|(key, value)| KeyValue::new(key, value.to_string()));
///                         observer.observe(value, &labels.collect::<Vec<_>>());
///                     }
///                 });
///             })
///             .build();
///     }
/// }
/// # let registry = Registry::new();
/// # let hb = worker_heartbeat::WorkerHeartbeat::builder("w").registry(&registry).start()?;
/// # register(&Meter, &registry);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
///
/// With `tracing`, whose OpenTelemetry layer takes fields that begin with `monotonic_counter.` as
/// counters, report the difference to the last call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Those of the workers, by type. The first 1,000 types are counted apart, the others as
    /// `(other)`.
    pub by_type: BTreeMap<String, TypeCounters>,
    /// Ended workers that were forgotten to bound the memory.
    pub forgotten_workers: u64,
    /// Events that were dropped because a subscriber did not read them in time.
    pub dropped_events: u64,
    /// Log lines that were left out because there were too many.
    pub suppressed_log_lines: u64,
    /// Ticks of the pacemaker.
    pub pacemaker_ticks: u64,
    /// Ticks that came more than a resolution late.
    pub pacemaker_late_ticks: u64,
    /// Total lateness of the ticks.
    pub pacemaker_lateness: Duration,
    /// Time that was not observed, and not charged to any worker.
    pub pacemaker_unobserved: Duration,
    /// Failed calls to the store.
    pub store_failures: u64,
    /// Leases that were granted.
    pub leases_claimed: u64,
    /// Leases that were lost while they were held.
    pub leases_lost: u64,
    /// Sweeps of the registry.
    pub sweeps: SweepTotals,
}

/// What has happened to the workers of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeCounters {
    /// Steps of progress.
    pub beats: u64,
    /// Incarnations that began.
    pub registrations: u64,
    /// Incarnations that replaced an ended one of the same worker.
    pub restarts: u64,
    /// Workers that their supervisor gave up.
    pub give_ups: u64,
    /// Deaths, by the [name](crate::DeathCause::name) of the cause; every cause is there.
    pub deaths: BTreeMap<&'static str, u64>,
    /// Warnings: a worker used three quarters of its allowance.
    pub late_warnings: u64,
    /// Warnings: a worker began to make progress more often than [allowed](crate::Builder::at_most).
    pub racing_warnings: u64,
    /// Convictions: a worker stalled.
    pub stalls: u64,
    /// Convictions: a worker was at a task for longer than its deadline.
    pub overdue_tasks: u64,
    /// Convictions: a worker became stale.
    pub stale_episodes: u64,
    /// Convictions: a worker made no progress within its startup grace.
    pub never_started: u64,
    /// Tasks that [failed](crate::TaskGuard::fail) while their worker went on.
    pub failed_tasks: u64,
    /// How long workers took to end once they were asked to stop.
    pub drains: Drains,
}

impl Registry {
    /// What has happened so far, as numbers that only grow. One pass over the workers, as for the
    /// [`summary`](Self::summary).
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// hb.beat();
    /// hb.fail("disk full");
    /// let counters = registry.counters();
    /// let mailers = &counters.by_type["mailer"];
    /// assert_eq!((mailers.registrations, mailers.beats), (1, 1));
    /// assert_eq!(mailers.deaths["failed"], 1);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.figures().counters
    }
}

impl Counters {
    /// Passes on each counter with its name, its labels and its value. The names are those of the
    /// Prometheus metrics, without their prefix and suffix; durations are in milliseconds.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let mut seen = Vec::new();
    /// registry.counters().each(|name, labels, value| {
    ///     if value > 0 && name == "registrations" {
    ///         seen.push(format!("{name} {labels:?} {value}"));
    ///     }
    /// });
    /// assert_eq!(seen, [r#"registrations [("worker_type", "mailer")] 1"#]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn each(&self, mut receive: impl FnMut(&'static str, &[(&'static str, &str)], u64)) {
        for (worker_type, of_type) in &self.by_type {
            let labels = [("worker_type", &**worker_type)];
            for (name, value) in of_type.totals() {
                receive(name, &labels, value);
            }
            let drains = &of_type.drains;
            for (bound, value) in &drains.buckets {
                let bound = format!("{:?}", bound.as_secs_f64());
                let labels = [labels[0], ("le", &*bound)];
                receive("drain_duration_bucket", &labels, *value);
            }
            receive("drain_duration_count", &labels, drains.count);
            let sum = u64::try_from(drains.sum.as_millis()).unwrap_or(u64::MAX);
            receive("drain_duration_sum_milliseconds", &labels, sum);
            for (cause, value) in &of_type.deaths {
                receive("deaths", &[labels[0], ("cause", cause)], *value);
            }
        }
        for (name, value) in self.totals() {
            receive(name, &[], value);
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (late, unobserved) = (self.pacemaker_lateness, self.pacemaker_unobserved);
        receive("pacemaker_lateness_milliseconds", &[], millis(late));
        receive("pacemaker_unobserved_milliseconds", &[], millis(unobserved));
        for (result, value) in [
            ("success", self.sweeps.successes),
            ("skipped", self.sweeps.skipped),
            ("failure", self.sweeps.failures),
        ] {
            receive("sweeps", &[("result", result)], value);
        }
    }

    /// Those without labels.
    fn totals(&self) -> [(&'static str, u64); 8] {
        [
            ("forgotten_workers", self.forgotten_workers),
            ("dropped_events", self.dropped_events),
            ("suppressed_log_lines", self.suppressed_log_lines),
            ("pacemaker_ticks", self.pacemaker_ticks),
            ("pacemaker_late_ticks", self.pacemaker_late_ticks),
            ("store_failures", self.store_failures),
            ("leases_claimed", self.leases_claimed),
            ("leases_lost", self.leases_lost),
        ]
    }
}

impl TypeCounters {
    /// Those that have no other label than the type.
    fn totals(&self) -> [(&'static str, u64); 12] {
        [
            ("beats", self.beats),
            ("drains_over_budget", self.drains.over_budget),
            ("registrations", self.registrations),
            ("restarts", self.restarts),
            ("give_ups", self.give_ups),
            ("late_warnings", self.late_warnings),
            ("racing_warnings", self.racing_warnings),
            ("stalls", self.stalls),
            ("overdue_tasks", self.overdue_tasks),
            ("stale_episodes", self.stale_episodes),
            ("never_started", self.never_started),
            ("failed_tasks", self.failed_tasks),
        ]
    }
}
