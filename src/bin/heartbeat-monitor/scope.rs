//! Which workers a command is about, by `--type`, `--group` and `--state`.

use std::collections::HashSet;

use worker_heartbeat::fleet::{FleetCounts, Pages, StoredWorker, WorkerFilter};
use worker_heartbeat::{Error, HeartbeatStore, State};

/// The states that a summary names, the worst first.
pub const UNWELL: [State; 5] = [
    State::Dead,
    State::NeverStarted,
    State::Stalled,
    State::Stale,
    State::Overdue,
];
/// Workers that are read at a time.
const PAGE: usize = 1_000;

/// Types, groups and states; an empty list: all.
#[derive(Clone, Default)]
pub struct Scope {
    pub types: Vec<String>,
    pub groups: Vec<String>,
    pub states: Vec<State>,
    pub search: Option<String>,
}

impl Scope {
    pub fn new(types: &[String], groups: &[String]) -> Self {
        Self {
            types: distinct(types),
            groups: distinct(groups),
            ..Self::default()
        }
    }

    pub fn states(mut self, states: impl IntoIterator<Item = State>) -> Self {
        self.states = states.into_iter().collect();
        self
    }

    /// Whether it is about all types and groups.
    pub fn is_all(&self) -> bool {
        self.types.is_empty() && self.groups.is_empty()
    }

    /// One filter for each pair of a type and a group. No worker passes two of them.
    pub fn filters(&self) -> Vec<WorkerFilter> {
        let mut base = WorkerFilter::new();
        base.states.clone_from(&self.states);
        base.search.clone_from(&self.search);
        let mut filters = vec![base];
        if !self.types.is_empty() {
            filters = each(&filters, &self.types, WorkerFilter::worker_type);
        }
        if !self.groups.is_empty() {
            filters = each(&filters, &self.groups, WorkerFilter::group);
        }
        filters
    }
}

fn each(
    filters: &[WorkerFilter],
    names: &[String],
    with: fn(WorkerFilter, String) -> WorkerFilter,
) -> Vec<WorkerFilter> {
    let pairs = filters
        .iter()
        .flat_map(|filter| names.iter().map(move |name| (filter, name)));
    pairs
        .map(|(filter, name)| with(filter.clone(), name.clone()))
        .collect()
}

fn distinct(names: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let names = names.iter().filter(|name| seen.insert(*name));
    names.cloned().collect()
}

/// The key of the order of [`worst_first`](worker_heartbeat::HeartbeatStore::worst_first), to merge
/// the pages of several filters. Those that are processing, active or idle share a rank.
fn rank(worker: &StoredWorker) -> (usize, String) {
    let state = match worker.health().state() {
        State::Active | State::Idle => State::Processing,
        state => state,
    };
    let mut order = State::WORST_FIRST.iter();
    let rank = order.position(|other| *other == state);
    (rank.unwrap_or(usize::MAX), worker.key.id.clone())
}

impl Scope {
    /// The worst workers of the scope, in the order of severity, and of their ids within a state.
    pub fn worst(
        &self,
        store: &dyn HeartbeatStore,
        most: usize,
    ) -> Result<Vec<StoredWorker>, Error> {
        let mut worst = Vec::new();
        let filters = self.filters();
        let is_one = filters.len() == 1;
        for filter in filters {
            worst.extend(store.worst_first(&filter.limit(most))?);
        }
        if !is_one {
            worst.sort_by_cached_key(rank);
            worst.truncate(most);
        }
        // A store may ignore a part of the filter.
        worst.retain(|worker| {
            self.states.is_empty() || self.states.contains(&worker.health().state())
        });
        Ok(worst)
    }

    /// The first workers of the scope in the order of their ids.
    pub fn first(
        &self,
        store: &dyn HeartbeatStore,
        most: usize,
    ) -> Result<Vec<StoredWorker>, Error> {
        let mut first: Vec<StoredWorker> = Vec::new();
        for filter in self.filters() {
            let mut found = 0;
            for page in Pages::new(store, filter.limit(most)) {
                let page = page?;
                found += page.len();
                first.extend(page);
                if found >= most {
                    break;
                }
            }
        }
        first.sort_by(|a, b| a.key.id.cmp(&b.key.id));
        first.truncate(most);
        Ok(first)
    }

    /// How many workers of the scope are in each state, by type and by group. The store counts; only
    /// for types within groups are the workers of these groups read, page by page.
    ///
    /// `by_type`: the counts by type are needed. The states of the scope are not regarded.
    pub fn counts(&self, store: &dyn HeartbeatStore, by_type: bool) -> Result<FleetCounts, Error> {
        if self.is_all() || self.groups.is_empty() || self.types.is_empty() && !by_type {
            let counts = store.counts()?;
            if self.is_all() {
                return Ok(counts);
            }
            let (all, names, unlisted) = if self.groups.is_empty() {
                (&counts.types, &self.types, counts.unlisted_types)
            } else {
                (&counts.groups, &self.groups, counts.unlisted_groups)
            };
            if unlisted == 0 {
                let mut scoped = FleetCounts::new();
                for (name, states) in names.iter().filter_map(|name| all.get_key_value(name)) {
                    for (state, workers) in states.iter().filter(|(_, workers)| *workers > 0) {
                        if self.groups.is_empty() {
                            scoped.add_many(name, "", state, "", workers);
                        } else {
                            scoped.add_many("", name, state, "", workers);
                        }
                    }
                }
                return Ok(scoped);
            }
        }
        self.count_workers(store)
    }

    /// As [`counts`](Self::counts), from the workers themselves, page by page.
    pub fn count_workers(&self, store: &dyn HeartbeatStore) -> Result<FleetCounts, Error> {
        let mut scoped = FleetCounts::new();
        for filter in self.clone().states([]).filters() {
            for page in Pages::new(store, filter.limit(PAGE)) {
                page?.iter().for_each(|worker| scoped.add(worker));
            }
        }
        Ok(scoped)
    }
}
