//! What Prometheus is told.

mod fleet;
#[cfg(feature = "http")]
mod http;
mod process;
mod sheet;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry as PrometheusRegistry;

use crate::fleet::{HeartbeatStore, Sweeper};
use crate::registry::Registry;
use fleet::Fleet;
#[cfg(feature = "http")]
pub(super) use http::routes;
use sheet::Sheet;

/// The metrics of a registry for Prometheus: a collector that an application registers in its own
/// `prometheus_client` registry, or that `HealthEndpoint` (feature `http`) serves at
/// `/metrics`. The page [metrics](crate::guide::metrics) of the guide lists them.
///
/// Everything is computed when it is asked for. What is told is by type of worker; worker by worker
/// only [on request](Self::per_worker), because each id would make new time series. Tasks, runs and
/// reasons are never told.
///
/// Counters never go back while the registry lives, whoever is forgotten meanwhile. The first 1,000
/// types are counted apart; the others together, as `(other)`.
///
/// Any prometheus-client from 0.24 to 0.26 does, but it has to be the one of the application. Where
/// Cargo has chosen two, make them one: `cargo update -p prometheus-client@0.26.0 --precise 0.24.1`.
///
/// A scrape takes bounded time: one pass over the workers, at most 100 ms for a pacemaker that is
/// overdue, and at most 1 s for a [store](Self::fleet).
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
#[derive(Clone)]
#[must_use = "nothing is told before it is registered, or served"]
pub struct Metrics {
    registry: Registry,
    per_worker: bool,
    fleet: Option<Arc<Fleet>>,
    sweepers: Vec<Sweeper>,
}

impl Metrics {
    /// The content type of [`openmetrics`](Self::openmetrics).
    pub const OPENMETRICS: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";
    /// The content type of [`text`](Self::text).
    pub const TEXT: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// The metrics of this registry.
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            per_worker: false,
            fleet: None,
            sweepers: Vec::new(),
        }
    }

    /// Whether the workers are told one by one too, by their ids: the first 10,000, and how many
    /// are left out. By default they are not: each id makes new time series.
    pub const fn per_worker(mut self, per_worker: bool) -> Self {
        self.per_worker = per_worker;
        self
    }

    /// Tells of the workers of this store too, whatever process they are in. Enough of one process:
    /// the answers of all would be the same.
    ///
    /// It is read at a scrape, at most every 5 s and one reading at a time, on a thread of its own
    /// that ends with the reading. A scrape waits for it for at most 1 s.
    pub fn fleet(mut self, store: impl HeartbeatStore + 'static) -> Self {
        self.fleet = Some(Arc::new(Fleet::new(Arc::new(store))));
        self
    }

    /// Tells what came of the sweeps of this sweeper, its clones and what they start. It is given
    /// before it is [started](Sweeper::start).
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

    /// The metrics of now, in the text format of OpenMetrics 1.0: what Prometheus asks for. Its
    /// content type is [`OPENMETRICS`](Self::OPENMETRICS).
    #[must_use]
    pub fn openmetrics(&self) -> String {
        let mut registry = PrometheusRegistry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut written = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut written, &registry);
        written
    }

    /// The metrics of now, in the older text format of Prometheus, for tools that do not know
    /// OpenMetrics, such as `promtool check metrics`. Its content type is [`TEXT`](Self::TEXT).
    #[must_use]
    pub fn text(&self) -> String {
        sheet::plain(&self.openmetrics())
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = Sheet::new(encoder);
        process::encode(&mut sheet, &self.registry, &self.sweepers)?;
        if self.per_worker {
            process::encode_each(&mut sheet, &self.registry)?;
        }
        self.fleet
            .as_ref()
            .map_or(Ok(()), |fleet| fleet.encode(&mut sheet))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("registry", &self.registry)
            .field("per_worker", &self.per_worker)
            .field("fleet", &self.fleet)
            .field("sweepers", &self.sweepers)
            .finish()
    }
}
