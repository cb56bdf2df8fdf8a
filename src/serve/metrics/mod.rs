//! Metrics for Prometheus.

mod encoder;
mod fleet;
#[cfg(feature = "http")]
mod http;
mod registry;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry as PrometheusRegistry;

#[cfg(feature = "http")]
use crate::fleet::Coordinator;
use crate::fleet::{HeartbeatStore, Sweeper};
#[cfg(feature = "http")]
use crate::net::connections::ConnectionCounts;
use crate::registry::Registry;
use encoder::Encoder;
use fleet::FleetMetrics;
#[cfg(feature = "http")]
use http::HttpFigures;
#[cfg(feature = "http")]
pub(super) use http::routes;

/// The metrics of a registry for Prometheus: a collector that an application registers in its own
/// `prometheus_client` registry, or that `HealthEndpoint` (feature `http`) serves at
/// `/metrics`. The page [metrics](crate::guide::metrics) of the guide lists them.
///
/// All values are computed at the scrape and aggregated by worker type. Samples of single workers are
/// [opt-in](Self::per_worker), because each id creates new time series. Tasks, runs and reasons are
/// never exported.
///
/// Counters never decrease while the registry lives, even when ended workers are dropped. The first
/// 1,000 types have samples of their own; the others share the type `(other)`.
///
/// prometheus-client 0.24 to 0.26 is supported, but it must be the version of the application. If
/// Cargo selects two versions, unify them: `cargo update -p prometheus-client@0.26.0 --precise 0.24.1`.
///
/// The duration of a scrape is bounded: one pass over the workers, at most 100 ms for an overdue
/// pacemaker, and at most 1 s for a [store](Self::fleet).
///
/// ```
/// use worker_heartbeat::{Metrics, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new(); // Registry::global() in an application
/// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
/// hb.beat();
///
/// let mut application = prometheus_client::registry::Registry::default();
/// application.register_collector(Box::new(Metrics::new(&registry)));
///
/// let mut text = String::new();
/// prometheus_client::encoding::text::encode(&mut text, &application)?;
/// assert!(text.contains("worker_heartbeat_beats_total{worker_type=\"indexer\"} 1\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "metrics are exported only once they are registered or served"]
pub struct Metrics {
    registry: Registry,
    per_worker: bool,
    fleet: Option<Arc<FleetMetrics>>,
    sweepers: Vec<Sweeper>,
    #[cfg(feature = "http")]
    http: HttpFigures,
}

impl Metrics {
    /// The content type of [`openmetrics`](Self::openmetrics).
    pub const OPENMETRICS: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";
    /// The content type of [`text`](Self::text).
    pub const TEXT: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// The metrics of this registry.
    ///
    /// ```
    /// use worker_heartbeat::{Metrics, Registry};
    ///
    /// let metrics = Metrics::new(Registry::global());
    /// assert!(metrics.openmetrics().ends_with("# EOF\n"));
    /// ```
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            per_worker: false,
            fleet: None,
            sweepers: Vec::new(),
            #[cfg(feature = "http")]
            http: HttpFigures::default(),
        }
    }

    /// Whether single workers have samples of their own, by id: at most 10,000 workers, and the number
    /// of the others. The default is no: each id creates new time series.
    ///
    /// ```
    /// use worker_heartbeat::{Metrics, Registry, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// let metrics = Metrics::new(Registry::global()).per_worker(true);
    /// assert!(metrics.openmetrics().contains("mailer-1"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn per_worker(mut self, per_worker: bool) -> Self {
        self.per_worker = per_worker;
        self
    }

    /// Adds the workers of this store, from all processes. Use it in one process only: others would
    /// export the same values.
    ///
    /// A scrape asks the store for its [counts](HeartbeatStore::counts), unless it did so within the
    /// last second, in a background thread that ends with the reading. It waits for them at most 1 s,
    /// and not at all while the store takes longer than that: it then exports the latest counts, with
    /// their age. If the store hangs, other metrics are still exported.
    ///
    /// ```
    /// use worker_heartbeat::{MemoryStore, Metrics, Registry};
    ///
    /// let metrics = Metrics::new(Registry::global()).fleet(MemoryStore::new());
    /// assert!(metrics.openmetrics().contains("worker_heartbeat_fleet_"));
    /// ```
    pub fn fleet(mut self, store: impl HeartbeatStore + 'static) -> Self {
        self.fleet = Some(Arc::new(FleetMetrics::new(Arc::new(store))));
        self
    }

    /// Adds the results of this sweeper's sweeps, and of those of its clones and of the running
    /// sweepers that they [start](Sweeper::start). Call it before `start()`, which consumes the sweeper.
    ///
    /// ```
    /// use worker_heartbeat::{MemoryStore, Metrics, Registry, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new());
    /// let metrics = Metrics::new(Registry::global()).sweeper(&sweeper);
    /// let sweeper = sweeper.start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn sweeper(mut self, sweeper: &Sweeper) -> Self {
        self.sweepers.push(sweeper.clone());
        self
    }

    /// Adds the requests that this coordinator, or a clone of it, has refused. An endpoint that serves
    /// a coordinator and metrics adds them by itself.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, MemoryStore, Metrics, Registry};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret");
    /// let metrics = Metrics::new(Registry::global()).coordinator(&coordinator);
    /// let coordinator = coordinator.serve("127.0.0.1:0")?;
    /// assert!(metrics.text().contains("http_refused_total{reason=\"wrong_token\"} 0"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[cfg(feature = "http")]
    pub fn coordinator(mut self, coordinator: &Coordinator) -> Self {
        self.http.add_refusals(&coordinator.callers().refusals);
        self
    }

    /// Adds the connections of a server.
    #[cfg(feature = "http")]
    pub(super) fn connections(mut self, connections: &Arc<ConnectionCounts>) -> Self {
        self.http.connections = Some(Arc::clone(connections));
        self
    }

    /// The present metrics in the text format of OpenMetrics 1.0, which Prometheus prefers. The
    /// content type is [`OPENMETRICS`](Self::OPENMETRICS).
    ///
    /// ```
    /// use worker_heartbeat::{Metrics, Registry, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// hb.beat();
    /// let text = Metrics::new(Registry::global()).openmetrics();
    /// assert!(text.contains("worker_heartbeat_beats_total{worker_type=\"mailer\"} 1\n"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn openmetrics(&self) -> String {
        let mut registry = PrometheusRegistry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut encoded = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut encoded, &registry);
        encoded
    }

    /// The present metrics in the older text format of Prometheus, for tools that don't support
    /// OpenMetrics, such as `promtool check metrics`. The content type is [`TEXT`](Self::TEXT).
    ///
    /// ```
    /// use worker_heartbeat::{Metrics, Registry};
    ///
    /// let text = Metrics::new(Registry::global()).text();
    /// println!("Content-Type: {}\n\n{text}", Metrics::TEXT);
    /// ```
    #[must_use]
    pub fn text(&self) -> String {
        encoder::prometheus_text(&self.openmetrics())
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = Encoder::new(encoder);
        registry::encode(&mut encoder, &self.registry, &self.sweepers)?;
        if self.per_worker {
            registry::encode_workers(&mut encoder, &self.registry)?;
        }
        #[cfg(feature = "http")]
        self.http.encode(&mut encoder)?;
        match &self.fleet {
            Some(fleet) => fleet.encode(&mut encoder),
            None => Ok(()),
        }
    }
}
