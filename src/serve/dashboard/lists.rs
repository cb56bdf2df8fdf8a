//! The lists of workers that pages show: of each selection, one, however many pages show it.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::events::DashboardEvent;
use super::feed::EventFeed;
use super::live_view::LiveView;
use super::refresh::FleetReadings;
use crate::serve::selection::Selection;

/// The lists of a registry or a store, and its events.
pub(super) struct Lists {
    lists: Mutex<HashMap<Selection, Arc<List>>>,
    /// The worst of all workers.
    pub all: Arc<List>,
    pub feed: EventFeed,
    /// About the process that serves the page.
    server: Value,
}

/// The workers of a selection, the worst first.
pub(super) struct List {
    pub selection: Selection,
    pub live: LiveView,
    pub readings: Mutex<FleetReadings>,
    /// Limits the readings of a store to one at a time.
    pub reading: Arc<Semaphore>,
    viewers: AtomicUsize,
}

/// Keeps a list as long as a page shows it.
pub(super) struct Viewer(Arc<List>);

impl Lists {
    pub(super) fn new(epoch: String, server: Value) -> Self {
        Self {
            lists: Mutex::default(),
            all: Arc::new(List::new(Selection::default(), server.clone())),
            feed: EventFeed::new(epoch),
            server,
        }
    }

    /// The list of this selection, which is kept as long as the result.
    pub(super) fn view(&self, selection: Selection) -> Viewer {
        if selection.is_all() {
            return Viewer::new(&self.all);
        }
        let mut lists = self.lists.lock();
        // The number of streams limits that of the others.
        lists.retain(|_, list| list.has_viewers());
        let list = lists.entry(selection).or_insert_with_key(|selection| {
            Arc::new(List::new(selection.clone(), self.server.clone()))
        });
        // While the map is locked, so that the list isn't removed in between.
        Viewer::new(list)
    }

    /// The list of all workers, and those of selections that a page shows.
    pub(super) fn shown(&self) -> Vec<Arc<List>> {
        let mut lists = self.lists.lock();
        lists.retain(|_, list| list.has_viewers());
        let selections = lists.values().map(Arc::clone);
        std::iter::once(Arc::clone(&self.all))
            .chain(selections)
            .collect()
    }

    /// Logs and sends these events, the oldest first, and marks them on the strips.
    pub(super) fn add_events(&self, events: Vec<DashboardEvent>) {
        for list in self.shown() {
            list.live.mark(&events);
        }
        self.feed.add(events);
    }

    pub(super) fn has_viewers(&self) -> bool {
        self.shown().iter().any(|list| list.has_viewers())
    }
}

impl List {
    fn new(selection: Selection, server: Value) -> Self {
        Self {
            selection,
            live: LiveView::new(server),
            readings: Mutex::default(),
            reading: Arc::new(Semaphore::new(1)),
            viewers: AtomicUsize::new(0),
        }
    }

    pub(super) fn has_viewers(&self) -> bool {
        self.viewers.load(Ordering::Relaxed) > 0
    }
}

impl Viewer {
    fn new(list: &Arc<List>) -> Self {
        list.viewers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(list))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for Viewer {
    type Target = List;

    fn deref(&self) -> &List {
        &self.0
    }
}
