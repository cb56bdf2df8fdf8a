//! A store behind a coordinator, over HTTP.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::batch::{Answered, Batches, json};
use super::builder::HttpStoreBuilder;
use super::reduce::Reduce;
use super::response::{Failure, Head, Scope, unanswered, unreadable};
use super::wire::{self, One, Page, Registered, Renewed, SweepRequest};
use crate::error::{Error, StoreErrorKind};
use crate::fleet::defaults::processes_by_list;
use crate::fleet::pages::{advance, counts_of_pages, summary_of_counts, worst_of_pages};
use crate::fleet::store::claim_and_release;
use crate::fleet::{
    Answer, Beat, Claim, ClaimAnswer, EventFilter, EventPage, FleetCounts, HeartbeatStore,
    LeaseKey, ProcessIdentity, Registration, Renewal, Stop, StoredWorker, Sweep, WorkerFilter,
    WorkerKey,
};
use crate::health::{Summary, SweepReport};
use crate::serial::Seconds;

/// Fits a page with the worker that ended it.
const LARGEST_ANSWER: u64 = 2 * wire::LARGEST_PAGE as u64;
/// Fits the report of a sweep of very many workers.
const LARGEST_REPORT: u64 = 64 * 1024 * 1024;
/// A [`HeartbeatStore`] behind a [`Coordinator`](crate::Coordinator): for workers without access to a
/// database.
///
/// Each call has a limit for the connection and one for its total time; each answer has a size limit.
/// Redirections are not followed, and no proxy of the environment is used, so the token reaches only
/// the coordinator. A clone shares its connections.
///
/// Requests about many workers are cut by their size: see
/// [`max_request_bytes`](HttpStoreBuilder::max_request_bytes). A worker that the coordinator, or a proxy
/// before it, refuses does not affect others: it is sent again without its long texts, and if it is
/// refused still, it alone is not stored. It is logged once for each worker, and
/// [`items_reduced`](Self::items_reduced) counts it.
///
/// ```no_run
/// use worker_heartbeat::{FleetConfig, HttpStore, Registry};
///
/// let store = HttpStore::builder("https://coordinator.example:8443").token("s3cret").build()?;
/// Registry::global().attach(store, FleetConfig::new())?;
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
pub struct HttpStore {
    pub(super) base: String,
    pub(super) authorization: Option<String>,
    pub(super) agent: ureq::Agent,
    pub(super) batches: Arc<Batches>,
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore")
            .field("url", &self.base)
            .finish_non_exhaustive()
    }
}

impl HttpStore {
    /// A store behind the coordinator at this URL, such as `http://10.0.0.5:7717`, with a path if the
    /// coordinator is mounted below one.
    ///
    /// ```
    /// use worker_heartbeat::HttpStore;
    ///
    /// let store = HttpStore::builder("http://10.0.0.5:7717").token("s3cret").build()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn builder(url: impl Into<String>) -> HttpStoreBuilder {
        HttpStoreBuilder::new(url.into())
    }

    /// As [`builder`](Self::builder), without a token and with the default time limits.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).serve("127.0.0.1:0")?;
    /// let store = HttpStore::new(format!("http://{}", coordinator.local_addr()))?;
    /// assert_eq!(store.summary()?.total, 0);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL is not allowed.
    pub fn new(url: impl Into<String>) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// How many registrations, heartbeats, ends and leases the coordinator, or a proxy before it,
    /// refused one by one since the store was built: those that were sent without their long texts, and
    /// those that were not stored. Clones share the count.
    ///
    /// ```
    /// use worker_heartbeat::HttpStore;
    ///
    /// let store = HttpStore::new("http://10.0.0.5:7717")?;
    /// assert_eq!(store.items_reduced(), 0);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn items_reduced(&self) -> u64 {
        self.batches.reduced()
    }

    /// One request, and once more if the connection was closed without an answer: a server may close
    /// an idle one at the moment of its use.
    fn call<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        body: &[u8],
        retry: bool,
    ) -> Result<T, Failure> {
        match self.call_once(operation, body) {
            Err(failure) if retry && failure.scope == Scope::Connection => {
                self.call_once(operation, body)
            }
            answer => answer,
        }
    }

    fn call_once<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        body: &[u8],
    ) -> Result<T, Failure> {
        let mut request = self
            .agent
            .post(format!("{}/api/store/{operation}", self.base))
            .header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let response = request.send(body);
        let response = response.map_err(|error| unanswered(operation, error))?;
        let (parts, mut answer) = response.into_parts();
        let head = Head {
            status: parts.status.as_u16(),
            headers: &parts.headers,
        };
        let largest = if operation == "sweep" {
            LARGEST_REPORT
        } else {
            LARGEST_ANSWER
        };
        let answer = answer.with_config().limit(largest).read_to_vec();
        if !parts.status.is_success() {
            // A refusal is one, even if its text is incomplete.
            return Err(head.refusal(operation, &answer.unwrap_or_default()));
        }
        let answer =
            answer.map_err(|error| Failure::call(unreadable(operation, largest, error)))?;
        serde_json::from_slice(&answer)
            .map_err(|error| Failure::call(head.misunderstood(operation, error)))
    }

    fn one<Q: Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        what: Q,
    ) -> Result<A, Error> {
        self.one_if(operation, what, true)
    }

    /// `retry`: the request may be repeated.
    fn one_if<Q: Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        what: Q,
        retry: bool,
    ) -> Result<A, Error> {
        let version = wire::VERSION;
        let body = json(operation, &One { version, what })?;
        self.call(operation, &body, retry)
            .map_err(|failure| failure.error)
    }

    /// Sends all items, in as many requests as necessary.
    fn send<T: Reduce + Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        items: &[T],
        ttl: Option<Duration>,
    ) -> Result<Answered<A>, Error> {
        let call = |body: &[u8]| self.call(operation, body, true);
        self.batches.send(operation, items, ttl, call)
    }

    /// Sends a sweep with as many of its workers as fit into one request. Returns the report and the
    /// rest.
    fn sweep_part(&self, sweep: &Sweep) -> Result<(SweepReport, Sweep), Error> {
        let mut limit = self.batches.limit();
        let mut is_lower = false;
        loop {
            let (request, rest) = SweepRequest::new(sweep, limit);
            let version = wire::VERSION;
            let count = request.killed.len();
            let body = json(
                "sweep",
                &One {
                    version,
                    what: request,
                },
            )?;
            match self.call("sweep", &body, true) {
                Ok(report) => {
                    if is_lower {
                        self.batches.lower(limit);
                    }
                    return Ok((report, rest));
                }
                Err(failure) if failure.scope == Scope::Size && count > 1 => {
                    limit = body.len() / 2;
                    is_lower = true;
                }
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// A request that an older coordinator does not know: then, `None`.
    fn newer<Q: Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        what: Q,
    ) -> Result<Option<A>, Error> {
        match self.one(operation, what) {
            Ok(answer) => Ok(Some(answer)),
            // It also answers so at a wrong path, and then to all requests.
            Err(Error::Store {
                kind: StoreErrorKind::Incompatible,
                ..
            }) => Ok(None),
            Err(Error::Store {
                kind,
                message,
                source,
                ..
            }) => Err(Error::Store {
                operation: "list",
                kind,
                message,
                source,
            }),
            Err(error) => Err(error),
        }
    }
}

impl HeartbeatStore for HttpStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.register_each(workers)?.into_iter().collect()
    }

    fn register_each(
        &self,
        workers: &[Registration],
    ) -> Result<Vec<Result<WorkerKey, Error>>, Error> {
        let answers = self.send("register", workers, None)?.each()?;
        let answers = answers.into_iter().map(|answer| match answer? {
            Registered::Key(key) => Ok(key),
            Registered::Busy { .. } => Err(busy("register")),
            Registered::Refused { refused } => {
                let value = "refused by the coordinator's store";
                Err(Error::invalid("registration", value, refused))
            }
        });
        Ok(answers.collect())
    }

    /// [`Answer::Invalid`] for heartbeats that are refused one by one; [`Answer::Busy`] for those after
    /// a request that failed, if an earlier one did not.
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.send("beat", beats, None)?
            .or(Answer::Invalid, Answer::Busy)
    }

    /// As [`beat`](Self::beat).
    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.send("stop", stops, None)?
            .or(Answer::Invalid, Answer::Busy)
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let mut filter = filter.clone();
        let mut workers = Vec::new();
        loop {
            let mut page: Page = self.one("list", &filter)?;
            let advanced = advance(&mut filter, &mut page.workers);
            if filter.has_newer_fields() {
                // An older coordinator ignores them.
                page.workers.retain(|worker| filter.admits(worker));
            }
            filter.limit = filter.limit.saturating_sub(page.workers.len());
            workers.extend(page.workers);
            if !page.more || !advanced || filter.limit == 0 {
                return Ok(workers);
            }
        }
    }

    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        self.one("find", id)
    }

    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        match self.one("processes", host) {
            // An older coordinator does not know the request.
            Err(Error::Store {
                kind: StoreErrorKind::Incompatible,
                ..
            }) => processes_by_list(self, host),
            answer => answer,
        }
    }

    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let mut filter = filter.clone();
        let mut workers = Vec::<StoredWorker>::new();
        loop {
            let Some(page) = self.newer::<_, Page>("worst_first", &filter)? else {
                return worst_of_pages(self, &filter);
            };
            let Some(last) = page.workers.last() else {
                return Ok(workers);
            };
            let after = (last.health().state(), last.key.id.clone());
            if !filter.is_after(after.0, &after.1) {
                // It would never end.
                return Ok(workers);
            }
            filter.after_state = Some(after.0);
            filter.after = Some(after.1);
            filter.limit = filter.limit.saturating_sub(page.workers.len());
            workers.extend(page.workers);
            if !page.more || filter.limit == 0 {
                return Ok(workers);
            }
        }
    }

    fn counts(&self) -> Result<FleetCounts, Error> {
        match self.newer("counts", ())? {
            Some(counts) => Ok(counts),
            None => counts_of_pages(self),
        }
    }

    /// `None` also if the coordinator is of a version that keeps no events.
    fn events(&self, filter: &EventFilter) -> Result<Option<EventPage>, Error> {
        let answer: Option<Option<EventPage>> = self.newer("events", filter)?;
        Ok(answer.flatten())
    }

    fn summary(&self) -> Result<Summary, Error> {
        summary_of_counts(self.counts()?, |filter| self.worst_first(filter))
    }

    /// Very many [killed](Sweep::killed) and [gone](Sweep::gone) workers take several sweeps, with one
    /// report. If a later one fails, the next call finds the workers that are left.
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let (mut report, mut rest) = self.sweep_part(sweep)?;
        while !rest.killed.is_empty() || !rest.gone.is_empty() {
            let Ok((next, left)) = self.sweep_part(&rest) else {
                break;
            };
            merge(&mut report.marked_offline, next.marked_offline);
            merge(&mut report.affected_groups, next.affected_groups);
            merge(&mut report.released_leases, next.released_leases);
            merge(&mut report.busy, next.busy);
            report.forgotten += next.forgotten;
            rest = left;
        }
        Ok(report)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.one("purge", Seconds(age))
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        // Without a number of the attempt, a second request would find the run taken.
        self.one_if("claim", claim, claim.attempt.is_some())
    }

    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        match self.send("withdraw", claims, None) {
            // The coordinator is of a version that does not have this request.
            Err(Error::Store {
                kind: StoreErrorKind::Incompatible,
                ..
            }) => claim_and_release(self, claims),
            withdrawn => withdrawn?.refused_as(false),
        }
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        let renewals: Answered<Renewed> = self.send("renew", leases, Some(ttl))?;
        let renewals = renewals.map(Renewal::from).all()?;
        if renewals.contains(&Renewal::Busy) {
            return Err(busy("renew"));
        }
        let held = renewals
            .into_iter()
            .map(|renewal| renewal == Renewal::Renewed);
        Ok(held.collect())
    }

    /// [`Renewal::Busy`] for leases that are refused one by one, and for those after a request that
    /// failed, if an earlier one did not.
    fn try_renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<Renewal>, Error> {
        let renewals: Answered<Renewed> = self.send("renew", leases, Some(ttl))?;
        renewals.map(Renewal::from).or(Renewal::Busy, Renewal::Busy)
    }

    /// `false` for leases that are refused one by one: the coordinator can't hold them.
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.send("release", leases, None)?.refused_as(false)
    }
}

/// The coordinator's store has a record that another client locks.
fn busy(operation: &'static str) -> Error {
    let message = "another client of the coordinator's store locks the record";
    Error::store_kind(operation, StoreErrorKind::Busy, message)
}

/// Adds the names that are not there yet.
fn merge(names: &mut Vec<String>, more: Vec<String>) {
    let known: BTreeSet<&String> = names.iter().collect();
    let new: Vec<String> = more
        .into_iter()
        .filter(|name| !known.contains(name))
        .collect();
    names.extend(new);
}
