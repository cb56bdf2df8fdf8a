//! How the workers of this process are, over HTTP: for people, for probes, for load balancers.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use serde_json::json;

use super::dashboard::{Dashboard, Subject};
use super::disclosure::Disclosure;
#[cfg(feature = "prometheus")]
use super::metrics::{self, Metrics};
use super::probes::{self, told};
use super::view::{Check, Views};
use crate::error::Error;
use crate::fleet::Coordinator;
use crate::fleet::HeartbeatStore;
use crate::net::server::{self, Server};
use crate::registry::Registry;
use crate::shutdown::Shutdown;

/// Tells over HTTP how the workers of a registry are.
///
/// | `GET` | answer |
/// | --- | --- |
/// | `/v1/worker/health` | `{"alive", "last_heartbeat", "state", "reason", …}` of the process; 503 unless all is well |
/// | `/v1/worker/health?worker=ID` | the same of one worker, with all that is known of it; 404 if there is none |
/// | `/v1/workers?after=ID&limit=N` | `total_active_workers`, `total_dead_workers`, `dead_workers`, `stats_by_type`, and the workers in the order of their ids, a page of 100 or `limit` (1000 at most) |
/// | `/livez` | 200, or 503 if a worker is given up or stalled, or the pacemaker is |
/// | `/readyz` | 200, or 503 also while workers are starting or missing, while the process drains, or when a [`check`](Self::check) fails |
/// | `/startupz` | 200 once every worker has started and is well, and those that are expected are there |
/// | `/metrics` | all of it for Prometheus (feature `prometheus`) |
/// | `/` | the dashboard: how the workers are, and why, on one page |
/// | `/v1/events?view=V&after=ID` | what happens, as server-sent events; with `view` (`process`, `fleet`) the workers' rows too; 503 if there are 64 streams |
/// | `/v1/worker/details?worker=ID&view=V` | what the dashboard shows of one worker |
/// | `/v1/worker/death?worker=ID&incarnation=N` | how it died, with its call stack; 403 if reasons are not shown |
///
/// The three probes answer `ok`; with `?verbose`, or when they fail, check by check. `?exclude=NAME`
/// leaves a check out. They are what Kubernetes calls a liveness, a readiness and a startup probe.
///
/// Probes and lists answer from a reading that is at most 50 ms old, and so in bounded time whoever
/// asks, and however often. The dashboard is told of changes about once a second, and shows 5,000
/// workers at most, those in the worst states.
///
/// While reasons are shown because the address is a loopback address, the last four are only for
/// who calls the host by a name that means itself, such as `localhost` (421 otherwise): a web page
/// that has a name of its own lead there is a stranger.
///
/// ```
/// use worker_heartbeat::{HealthEndpoint, Registry};
///
/// let server = HealthEndpoint::new(Registry::global()).serve("127.0.0.1:0")?;
/// println!("http://{}/livez", server.local_addr());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing is served before serve(), or before router() is mounted"]
pub struct HealthEndpoint {
    registry: Registry,
    shutdown: Option<Shutdown>,
    checks: Vec<(String, Check)>,
    fleet: Option<Arc<dyn HeartbeatStore>>,
    coordinator: Option<Coordinator>,
    show_reasons: Option<bool>,
    #[cfg(feature = "prometheus")]
    metrics: Option<Metrics>,
}

impl HealthEndpoint {
    /// An endpoint for the workers of this registry.
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            shutdown: None,
            checks: Vec::new(),
            fleet: None,
            coordinator: None,
            show_reasons: None,
            #[cfg(feature = "prometheus")]
            metrics: None,
        }
    }

    /// Once this shutdown has begun, the process is live, and not ready.
    pub fn shutdown(mut self, shutdown: &Shutdown) -> Self {
        self.shutdown = Some(shutdown.clone());
        self
    }

    /// Something else that has to be well for the process to be ready, such as a database. It is
    /// called at most every 50 ms, and only for `/readyz`, which waits for all checks together for at
    /// most 5 s. A panic counts as a failure.
    pub fn check(
        mut self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name.into(), Arc::new(check)));
        self
    }

    /// Tells of the workers of this store too, whatever process they are in, on the dashboard. How
    /// they are has no influence on the probes, which are of this process. The store is read each 2 s
    /// at most, and only while somebody watches.
    pub fn fleet(mut self, store: impl HeartbeatStore + 'static) -> Self {
        self.fleet = Some(Arc::new(store));
        self
    }

    /// Serves this coordinator, too, at the same address.
    pub fn coordinator(mut self, coordinator: Coordinator) -> Self {
        self.coordinator = Some(coordinator);
        self
    }

    /// Whether reasons, tasks, runs, metadata and call stacks are shown to whoever asks; states and ids
    /// always are. By default they are if it is [served](Self::serve) on a loopback address, to who
    /// calls it by a name that means this host, and has not come through a proxy that says so. Behind
    /// a proxy that does not, say `show_reasons(false)`.
    pub const fn show_reasons(mut self, show_reasons: bool) -> Self {
        self.show_reasons = Some(show_reasons);
        self
    }

    /// What `/metrics` answers (feature `prometheus`). By default, it tells of the registry, and of
    /// the [store](Self::fleet) if there is one; by type, not worker by worker.
    #[cfg(feature = "prometheus")]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The routes, to mount in an application of one's own. Its tokio runtime needs time enabled.
    pub fn router(&self) -> Router {
        let disclosure = self.disclosure(Disclosure::Nobody);
        self.routes(&self.dashboard(disclosure), disclosure)
    }

    /// Who may know reasons: as was decided, or else these.
    fn disclosure(&self, undecided: Disclosure) -> Disclosure {
        match self.show_reasons {
            Some(true) => Disclosure::Everybody,
            Some(false) => Disclosure::Nobody,
            None => undecided,
        }
    }

    fn dashboard(&self, disclosure: Disclosure) -> Arc<Dashboard> {
        Dashboard::new(Subject {
            registry: self.registry.clone(),
            shutdown: self.shutdown.clone(),
            fleet: self.fleet.clone(),
            disclosure,
        })
    }

    fn routes(&self, dashboard: &Arc<Dashboard>, disclosure: Disclosure) -> Router {
        let views = Views::new(
            self.registry.clone(),
            self.shutdown.clone(),
            self.checks.clone(),
        );
        let coordinator = self.coordinator.as_ref().map(Coordinator::router);
        let router = probes::router(views, disclosure).merge(dashboard.router());
        #[cfg(feature = "prometheus")]
        let router = router.merge(metrics::routes(self.scraped()));
        router
            .layer(middleware::from_fn(probes::in_time))
            // That has time limits of its own.
            .merge(coordinator.unwrap_or_default())
    }

    /// Those that were given, or what there is to tell.
    #[cfg(feature = "prometheus")]
    fn scraped(&self) -> Metrics {
        let own = || Metrics::new(&self.registry);
        match (&self.metrics, &self.fleet) {
            (Some(metrics), _) => metrics.clone(),
            (None, Some(store)) => own().fleet(Arc::clone(store)),
            (None, None) => own(),
        }
    }

    /// Serves at this address on a thread of its own, until what is returned is dropped: it answers
    /// even if the application's runtime is wedged.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is a [`coordinator`](Self::coordinator) that may not be served
    /// there; [`Error::Listen`] if the address cannot be listened at; [`Error::Thread`] if the thread
    /// cannot be started.
    pub fn serve(self, address: impl ToSocketAddrs + fmt::Debug) -> Result<HealthServer, Error> {
        let named = format!("{address:?}");
        let addresses = server::resolve(&address, &named)?;
        if let Some(coordinator) = &self.coordinator {
            coordinator.check_addresses(&addresses, &named)?;
        }
        let is_private = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        let private = addresses.iter().all(is_private);
        let disclosure = self.disclosure(if private {
            Disclosure::Locals
        } else {
            Disclosure::Nobody
        });
        let dashboard = self.dashboard(disclosure);
        let nothing = || async {
            told(
                StatusCode::NOT_FOUND,
                &json!({"error": "there is nothing here"}),
            )
        };
        let router = self.routes(&dashboard, disclosure).fallback(nothing);
        let server = Server::start(&addresses, &named, router)?;
        dashboard.start(server.runtime());
        Ok(HealthServer {
            _streams: Streams(dashboard),
            server,
        })
    }
}

impl fmt::Debug for HealthEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.checks.iter().map(|(name, _)| name).collect();
        f.debug_struct("HealthEndpoint")
            .field("checks", &names)
            .field("fleet", &self.fleet)
            .field("show_reasons", &self.show_reasons)
            .finish_non_exhaustive()
    }
}

/// A health endpoint at work; made by [`HealthEndpoint::serve`]. Dropping it ends its thread and
/// frees its port.
#[derive(Debug)]
#[must_use = "serving ends when this is dropped"]
pub struct HealthServer {
    /// Dropped first: the server waits for its answers.
    _streams: Streams,
    server: Server,
}

/// The streams of the dashboard, which never end by themselves.
struct Streams(Arc<Dashboard>);

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streams")
    }
}

impl HealthServer {
    /// Where it listens: the port that the system chose, if it was asked to.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }
}
