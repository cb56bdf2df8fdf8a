//! The workers of a store, page by page, and what can be computed from that with bounded memory.

use super::shapes::{FleetCounts, MOST_UNWELL, StoredWorker, WorkerFilter, Worst};
use super::store::HeartbeatStore;
use crate::error::Error;
use crate::health::{State, Summary};

/// Workers on a page, where all are read: enough that the calls cost little, few enough for little
/// memory.
const PAGE: usize = 2_000;

/// The workers of a store, page by page: [`limit`](WorkerFilter::limit) is the size of a page.
///
/// Each worker comes once, and the iterator ends, even if the store ignores
/// [`after`](WorkerFilter::after) and returns its first page again and again. No worker is left out
/// if the store returns fewer than asked for: the last page is the one after which nothing comes.
/// Workers that don't pass the filter are left out, even if the store ignores a part of it.
///
/// ```
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::{HeartbeatStore, Pages, Registration, WorkerFilter};
///
/// let store = MemoryStore::new();
/// store.register(&["a", "b", "c"].map(|id| Registration::new("indexer", id)))?;
///
/// let mut pages = Pages::new(&store, WorkerFilter::new().limit(2));
/// let sizes: Vec<usize> = pages.map(|page| page.map(|page| page.len())).collect::<Result<_, _>>()?;
/// assert_eq!(sizes, [2, 1]);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the store is read as this is iterated over"]
pub struct Pages<'a, S: ?Sized> {
    store: &'a S,
    /// `None` at the end.
    filter: Option<WorkerFilter>,
}

impl<'a, S: HeartbeatStore + ?Sized> Pages<'a, S> {
    /// The workers of this store that pass the filter.
    pub const fn new(store: &'a S, filter: WorkerFilter) -> Self {
        let filter = Some(filter);
        Self { store, filter }
    }
}

impl<S: HeartbeatStore + ?Sized> Iterator for Pages<'_, S> {
    type Item = Result<Vec<StoredWorker>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut filter = self.filter.take()?;
        loop {
            let mut page = match self.store.list(&filter) {
                Ok(page) => page,
                Err(error) => return Some(Err(error)),
            };
            // A page below the limit may not be the last: a store may have a limit of its own.
            if !advance(&mut filter, &mut page) {
                return None;
            }
            page.retain(|worker| filter.admits(worker));
            if !page.is_empty() {
                self.filter = Some(filter);
                return Some(Ok(page));
            }
        }
    }
}

/// Removes workers that came on earlier pages, and moves the filter behind this page. Returns
/// whether the page brought anything: a store that ignores the filter brings nothing new.
pub(crate) fn advance(filter: &mut WorkerFilter, page: &mut Vec<StoredWorker>) -> bool {
    page.retain(|worker| Some(&worker.key.id) > filter.after.as_ref());
    let last = page.iter().map(|worker| &worker.key.id).max();
    let advanced = last.is_some();
    filter.after = last.cloned().or(filter.after.take());
    advanced
}

/// See [`HeartbeatStore::worst_first`].
pub(crate) fn worst_of_pages<S: HeartbeatStore + ?Sized>(
    store: &S,
    filter: &WorkerFilter,
) -> Result<Vec<StoredWorker>, Error> {
    let mut all = filter.clone().limit(PAGE);
    all.after = None;
    all.after_state = None;
    let mut worst = Worst::new(filter.limit);
    for page in Pages::new(store, all) {
        for worker in page? {
            let (state, id) = (worker.health().state(), worker.key.id.clone());
            if filter.is_after(state, &id) {
                worst.add(state, &id, || worker);
            }
        }
    }
    Ok(worst.into_vec())
}

/// See [`HeartbeatStore::counts`].
pub(crate) fn counts_of_pages<S: HeartbeatStore + ?Sized>(store: &S) -> Result<FleetCounts, Error> {
    let mut counts = FleetCounts::new();
    for page in Pages::new(store, WorkerFilter::new().limit(PAGE)) {
        page?.iter().for_each(|worker| counts.add(worker));
    }
    Ok(counts.bounded())
}

/// See [`HeartbeatStore::summary`].
pub(crate) fn summary_of_pages<S: HeartbeatStore + ?Sized>(store: &S) -> Result<Summary, Error> {
    let mut counts = FleetCounts::new();
    let mut worst = Worst::new(MOST_UNWELL);
    for page in Pages::new(store, WorkerFilter::new().limit(PAGE)) {
        for worker in page? {
            counts.add(&worker);
            let (state, id) = (worker.health().state(), worker.key.id.clone());
            if state.is_unwell() {
                worst.add(state, &id, || worker);
            }
        }
    }
    Ok(counts.bounded().summary(worst.into_vec()))
}

/// The summary of a store that counts and sorts by itself.
pub(crate) fn summary_of_counts(
    counts: FleetCounts,
    worst_first: impl FnOnce(&WorkerFilter) -> Result<Vec<StoredWorker>, Error>,
) -> Result<Summary, Error> {
    let mut unwell = WorkerFilter::new().limit(MOST_UNWELL);
    let is_there = |state: &State| state.is_unwell() && counts.states.get(*state) > 0;
    unwell.states = State::WORST_FIRST.into_iter().filter(is_there).collect();
    let worst = if unwell.states.is_empty() {
        Vec::new()
    } else {
        worst_first(&unwell)?
    };
    Ok(counts.summary(worst))
}
