//! The health of this process over HTTP: for probes, load balancers and people.

mod readings;
mod routes;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use axum::Router;
use axum::middleware;

use self::readings::{Check, Readings};
use super::dashboard::{Dashboard, Subject};
use super::disclosure::Disclosure;
use super::fleet_events;
#[cfg(feature = "prometheus")]
use super::metrics::{self, Metrics};
use super::policies::Policies;
use crate::error::Error;
use crate::fleet::{Coordinator, HeartbeatStore, Sweeper};
use crate::health::Policy;
use crate::net::caller::Callers;
use crate::net::connections::ConnectionCounts;
use crate::net::response::{RequestError, with_timeout};
use crate::net::server::{self, Server};
use crate::registry::Registry;
use crate::shutdown::Shutdown;

/// Serves the health of a registry's workers over HTTP.
///
/// | `GET` | response |
/// | --- | --- |
/// | `/v1/worker/health` | `{"alive", "last_heartbeat", "state", "reason", …}` of the process; 503 unless all workers are healthy |
/// | `/v1/worker/health?worker=ID` | the same of one worker, with its details; 404 if it doesn't exist |
/// | `/v1/workers?after=ID&limit=N&view=V` | `total_active_workers`, `total_dead_workers`, `dead_workers`, `stats_by_type`, and the workers sorted by id, in pages of 100 or `limit` (at most 1000): of the [store](Self::fleet) if there is one, and of the process with `view=process`; of a store, also `state`, `type`, `group` and `q` select workers |
/// | `/livez` | 200; 503 if a worker is offline or stalled, or the pacemaker doesn't tick |
/// | `/readyz` | 200; 503 also while workers are starting or missing, while the process shuts down, or when a [`check`](Self::check) fails |
/// | `/startupz` | 200 once every worker has started and is healthy, and all expected workers exist |
/// | `/v1/fleet/events?after=N&before=N&limit=N&level=L&worker=ID&type=T&group=G` | `events` of the store in the order in which it recorded them, the `cursor` to read on from with `after`, and whether there are `more`; without `after`, the latest 100 or `limit` (at most 1000); 404 if the store keeps none |
/// | `/metrics` | the metrics for Prometheus (feature `prometheus`) |
/// | `/` | the dashboard: the state of every worker, and the reasons |
/// | `/v1/events?view=V&after=ID` | events as server-sent events; with `view` (`process`, `fleet`) also the workers' rows, of those that `state`, `type`, `group` and `q` select; 503 if 64 streams are open |
/// | `/v1/worker/details?worker=ID&view=V` | the details that the dashboard shows of one worker |
/// | `/v1/worker/death?worker=ID&incarnation=N` | the cause of its death with the call stack; 403 if reasons are not shown |
///
/// The probes answer `ok`. With `?verbose`, and when they fail, they list their checks.
/// `?exclude=NAME` skips a check. A [`policy`](Self::policy) says what fails them. They serve as Kubernetes' liveness, readiness and startup probes.
///
/// Probes and lists share readings that are at most 50 ms old, so the response time stays bounded
/// under any load. The dashboard is updated about once a second. A page of it has at most 1,000
/// workers, the worst first.
///
/// While reasons are shown because the address is a loopback address, the dashboard's routes (the
/// last four) require a Host header that names this host, such as `localhost`; other requests get
/// 421. This blocks DNS rebinding.
///
/// ```
/// use worker_heartbeat::{HealthEndpoint, Registry};
///
/// let server = HealthEndpoint::new(Registry::global()).serve("127.0.0.1:0")?;
/// println!("http://{}/livez", server.local_addr());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "requests are served only after serve(), or once router() is mounted"]
pub struct HealthEndpoint {
    registry: Registry,
    shutdown: Option<Shutdown>,
    checks: Vec<(String, Check)>,
    fleet: Option<Arc<dyn HeartbeatStore>>,
    coordinator: Option<Coordinator>,
    show_reasons: Option<bool>,
    policies: Policies,
    #[cfg(feature = "prometheus")]
    metrics: Option<Metrics>,
}

impl HealthEndpoint {
    /// An endpoint for the workers of `registry`.
    ///
    /// ```
    /// use worker_heartbeat::{HealthEndpoint, Registry};
    ///
    /// let server = HealthEndpoint::new(Registry::global()).serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            shutdown: None,
            checks: Vec::new(),
            fleet: None,
            coordinator: None,
            show_reasons: None,
            policies: Policies::default(),
            #[cfg(feature = "prometheus")]
            metrics: None,
        }
    }

    /// Reports the process as not ready, but still live, once this shutdown has begun.
    ///
    /// ```
    /// use worker_heartbeat::{HealthEndpoint, Registry, Shutdown};
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// let server = HealthEndpoint::new(Registry::global()).shutdown(&shutdown).serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn shutdown(mut self, shutdown: &Shutdown) -> Self {
        self.shutdown = Some(shutdown.clone());
        self
    }

    /// Which states of which workers fail a probe. The [preset](Policy) decides which: `liveness` is for
    /// `/livez`, `startup` for `/startupz`, `readiness` for `/readyz`, `health` and `strict` for
    /// `/v1/worker/health` and the dashboard. Call it once for each.
    ///
    /// What the last policy tolerates, the probes without a policy of their own tolerate, too: a worker that
    /// is no reason to send no more work is no reason to restart the process.
    ///
    /// What is tolerated is shown with `?verbose`, as are types that the policy names and no worker has.
    ///
    /// ```
    /// use worker_heartbeat::{HealthEndpoint, Policy, Registry};
    ///
    /// let server = HealthEndpoint::new(Registry::global())
    ///     .policy(Policy::readiness().ignore_type("batch").tolerate_dead(2))
    ///     .serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.add(policy);
        self
    }

    /// Adds the condition for readiness that this sweeper is up to date: [`Sweeper::check`]. Sweeps that
    /// are skipped, or fail, for too long make the process unready. Call it before `start()`, which
    /// consumes the sweeper.
    ///
    /// ```
    /// use worker_heartbeat::{HealthEndpoint, MemoryStore, Registry, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new());
    /// let endpoint = HealthEndpoint::new(Registry::global()).sweeper(&sweeper);
    /// let sweeper = sweeper.start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn sweeper(self, sweeper: &Sweeper) -> Self {
        let sweeper = sweeper.clone();
        self.check("sweeper", move || sweeper.check())
    }

    /// Adds a condition for readiness, such as a database connection. `/readyz` calls `check` at
    /// most every 50 ms and waits at most 5 s for all checks together. A panic counts as a failure.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use worker_heartbeat::{HealthEndpoint, Registry};
    ///
    /// let connected = Arc::new(AtomicBool::new(false));
    /// let is_connected = Arc::clone(&connected);
    /// let server = HealthEndpoint::new(Registry::global())
    ///     .check("database", move || match is_connected.load(Ordering::Relaxed) {
    ///         true => Ok(()),
    ///         false => Err("not connected yet".to_owned()),
    ///     })
    ///     .serve("127.0.0.1:0")?;
    /// connected.store(true, Ordering::Relaxed); // from now on, /readyz answers ok
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn check(
        mut self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name.into(), Arc::new(check)));
        self
    }

    /// Adds the workers of this store, from all processes, to the dashboard, which opens on them, and to
    /// `/v1/workers`. They don't affect the probes, which cover this process. The store is read at most every 2 s, and only while a
    /// dashboard is open.
    ///
    /// ```
    /// use worker_heartbeat::{FleetConfig, HealthEndpoint, MemoryStore, Registry};
    ///
    /// let store = MemoryStore::new();
    /// let registry = Registry::new();
    /// registry.attach(store.clone(), FleetConfig::new())?;
    /// let server = HealthEndpoint::new(&registry).fleet(store).serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn fleet(mut self, store: impl HeartbeatStore + 'static) -> Self {
        self.fleet = Some(Arc::new(store));
        self
    }

    /// Serves this coordinator at the same address.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, HealthEndpoint, MemoryStore, Registry};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret");
    /// let server = HealthEndpoint::new(Registry::global())
    ///     .coordinator(coordinator)
    ///     .serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn coordinator(mut self, coordinator: Coordinator) -> Self {
        self.coordinator = Some(coordinator);
        self
    }

    /// Whether responses contain reasons, tasks, runs, metadata and call stacks. States and ids are
    /// always shown.
    ///
    /// By default they are shown to callers with the token of the [`coordinator`](Self::coordinator),
    /// and, if the endpoint is [served](Self::serve) on a loopback address, to callers on this host.
    /// Callers that use another Host name, come through a declared proxy, or act for a web page of
    /// another origin, are not on this host. Behind a proxy that adds no headers, use
    /// `show_reasons(false)`. Probes show reasons to callers on this host only.
    ///
    /// ```
    /// use worker_heartbeat::{HealthEndpoint, Registry};
    ///
    /// let server = HealthEndpoint::new(Registry::global()).show_reasons(false).serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn show_reasons(mut self, show_reasons: bool) -> Self {
        self.show_reasons = Some(show_reasons);
        self
    }

    /// What `/metrics` serves (feature `prometheus`). The default is the metrics of the registry,
    /// and of the [store](Self::fleet) if there is one, by worker type.
    ///
    /// ```
    /// use worker_heartbeat::{HealthEndpoint, Metrics, Registry};
    ///
    /// let registry = Registry::global();
    /// let server = HealthEndpoint::new(registry)
    ///     .metrics(Metrics::new(registry).per_worker(true))
    ///     .serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[cfg(feature = "prometheus")]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The routes, to mount in an axum application. Its tokio runtime needs time enabled.
    ///
    /// ```
    /// use axum::Router;
    /// use axum::routing::get;
    /// use worker_heartbeat::{HealthEndpoint, Registry};
    ///
    /// let health = HealthEndpoint::new(Registry::global());
    /// let application: Router = Router::new()
    ///     .route("/orders", get(|| async { "no orders" }))
    ///     .merge(health.router());
    /// ```
    pub fn router(&self) -> Router {
        let disclosure = self.disclosure(Disclosure::Token);
        let connections = Arc::default();
        self.routes(&self.dashboard(disclosure), disclosure, &connections)
    }

    fn disclosure(&self, default: Disclosure) -> Disclosure {
        match self.show_reasons {
            Some(true) => Disclosure::Always,
            Some(false) => Disclosure::Never,
            None => default,
        }
    }

    fn dashboard(&self, disclosure: Disclosure) -> Arc<Dashboard> {
        Dashboard::new(Subject {
            registry: self.registry.clone(),
            shutdown: self.shutdown.clone(),
            fleet: self.fleet.clone(),
            disclosure,
            policy: self.policies.health(),
            callers: self.callers(),
        })
    }

    fn callers(&self) -> Callers {
        let coordinator = self.coordinator.as_ref();
        coordinator.map_or_else(Callers::default, |coordinator| {
            coordinator.callers().clone()
        })
    }

    fn routes(
        &self,
        dashboard: &Arc<Dashboard>,
        disclosure: Disclosure,
        connections: &Arc<ConnectionCounts>,
    ) -> Router {
        let coordinator = self.coordinator.as_ref().map(Coordinator::router);
        let router = routes::router(Readings::new(self), disclosure, self.callers());
        let router = router.merge(dashboard.router());
        let events = fleet_events::router(self.fleet.clone(), disclosure, self.callers());
        let router = router.merge(events);
        #[cfg(feature = "prometheus")]
        let router = router.merge(metrics::routes(self.served_metrics(connections)));
        #[cfg(not(feature = "prometheus"))]
        let _ = connections;
        router
            .layer(middleware::from_fn(with_timeout))
            // The coordinator has time limits of its own.
            .merge(coordinator.unwrap_or_default())
    }

    #[cfg(feature = "prometheus")]
    fn served_metrics(&self, connections: &Arc<ConnectionCounts>) -> Metrics {
        let metrics = self.metrics.clone().unwrap_or_else(|| {
            let metrics = Metrics::new(&self.registry);
            match &self.fleet {
                Some(store) => metrics.fleet(Arc::clone(store)),
                None => metrics,
            }
        });
        let metrics = metrics.connections(connections);
        match &self.coordinator {
            Some(coordinator) => metrics.coordinator(coordinator),
            None => metrics,
        }
    }

    /// Serves at this address on a dedicated thread until the returned server is dropped, so that
    /// it responds even if the application's runtime is blocked.
    ///
    /// ```
    /// use worker_heartbeat::{Error, HealthEndpoint, Registry};
    ///
    /// let server = HealthEndpoint::new(Registry::global()).serve("127.0.0.1:0")?;
    /// let taken = HealthEndpoint::new(Registry::global()).serve(server.local_addr());
    /// assert!(matches!(taken, Err(Error::Listen { .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the [`coordinator`](Self::coordinator) must not be served at this
    /// address, or if a [`policy`](Self::policy) contradicts itself; [`Error::Listen`] if the address is not available; [`Error::Thread`] if the thread
    /// can't be started.
    pub fn serve(
        self,
        address: impl ToSocketAddrs + fmt::Debug,
    ) -> Result<RunningHealthEndpoint, Error> {
        self.policies.check()?;
        let display = format!("{address:?}");
        let addresses = server::resolve(&address, &display)?;
        if let Some(coordinator) = &self.coordinator {
            coordinator.check_addresses(&addresses, &display)?;
        }
        let is_loopback = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        let disclosure = self.disclosure(if addresses.iter().all(is_loopback) {
            Disclosure::Trusted
        } else {
            Disclosure::Token
        });
        let dashboard = self.dashboard(disclosure);
        let connections = Arc::default();
        let not_found = || async { RequestError::not_found("no such route") };
        let router = self.routes(&dashboard, disclosure, &connections);
        let router = router.fallback(not_found);
        let server = Server::start(&addresses, &display, router, connections)?;
        dashboard.start(server.runtime());
        Ok(RunningHealthEndpoint {
            callers: self.callers(),
            dashboard,
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

/// A running health endpoint, returned by [`HealthEndpoint::serve`]. Dropping it ends its thread and
/// frees its port.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
/// use worker_heartbeat::{HealthEndpoint, Registry, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// hb.beat();
/// let server = HealthEndpoint::new(Registry::global()).serve("127.0.0.1:0")?;
///
/// let mut probe = TcpStream::connect(server.local_addr())?;
/// probe.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
/// let mut response = String::new();
/// probe.read_to_string(&mut response)?;
/// assert!(response.starts_with("HTTP/1.1 200 OK"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the server stops when this is dropped"]
pub struct RunningHealthEndpoint {
    callers: Callers,
    dashboard: Arc<Dashboard>,
    server: Server,
}

impl RunningHealthEndpoint {
    /// The address with the actual port, if port 0 was requested.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Replaces the token of the [`coordinator`](HealthEndpoint::coordinator), from the next request on: the old one is wrong then. Event streams that are
    /// open go on.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, HealthEndpoint, MemoryStore, Registry};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret");
    /// let server = HealthEndpoint::new(Registry::global())
    ///     .coordinator(coordinator)
    ///     .serve("127.0.0.1:0")?;
    /// server.replace_token("n3w s3cret")?;
    /// assert!(server.replace_token("").is_err());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is empty, or if there was no token before.
    pub fn replace_token(&self, token: impl Into<String>) -> Result<(), Error> {
        self.callers.replace_token(token.into())
    }
}

impl Drop for RunningHealthEndpoint {
    fn drop(&mut self) {
        // The server waits for its responses, and the dashboard's streams never end by themselves.
        self.dashboard.close();
    }
}

impl fmt::Debug for RunningHealthEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningHealthEndpoint")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
