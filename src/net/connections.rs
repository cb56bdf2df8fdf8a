//! The open connections of a server, and which of them is closed if another one needs its place.
//!
//! A connection that waits for its client is closed first, the oldest before all others; then a
//! stream, which its client opens again; then one with a request in progress; a probe last. So a new
//! connection always gets a place, and a probe is answered whatever strangers hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The routes that keep their connections longest.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/startupz"];

/// What a connection does, in the order in which connections are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Activity {
    WaitsForClient,
    Streams,
    Answers,
    AnswersProbe,
}

/// The state of one connection, which the handler of its request finds in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionState(Arc<Entry>);

#[derive(Debug)]
struct Entry {
    table: Arc<Table>,
    /// What it does, and since which step of the table's clock.
    activity: Mutex<(Activity, u64)>,
    close: Notify,
}

/// Figures for metrics.
#[derive(Debug, Default)]
pub(crate) struct ConnectionCounts {
    /// Connections that were accepted so far.
    pub(crate) accepted: AtomicU64,
    /// Those among them that have ended.
    pub(crate) ended: AtomicU64,
    /// Those that were closed because another one needed their place.
    pub(crate) displaced: AtomicU64,
}

#[derive(Debug)]
struct Table {
    open: Mutex<HashMap<u64, ConnectionState>>,
    /// Counts the changes of activities: orders them without a clock.
    steps: AtomicU64,
    /// How many use descriptors that are left to the rest of the process.
    reserved: AtomicU64,
    ended: Notify,
    counts: Arc<ConnectionCounts>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Connections(Arc<Table>);

/// An open connection. Dropping it frees its place.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    state: ConnectionState,
    is_reserved: bool,
}

impl Connections {
    pub(crate) fn new(counts: Arc<ConnectionCounts>) -> Self {
        Self(Arc::new(Table {
            open: Mutex::default(),
            steps: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            ended: Notify::new(),
            counts,
        }))
    }

    /// Adds a connection that waits for its client. `is_reserved`: it uses a descriptor that is left to
    /// the rest of the process.
    pub(crate) fn open(&self, is_reserved: bool) -> Connection {
        self.0
            .reserved
            .fetch_add(u64::from(is_reserved), Ordering::Relaxed);
        self.0.counts.accepted.fetch_add(1, Ordering::Relaxed);
        let id = self.0.step();
        let state = ConnectionState(Arc::new(Entry {
            table: Arc::clone(&self.0),
            activity: Mutex::new((Activity::WaitsForClient, id)),
            close: Notify::new(),
        }));
        self.0.open.lock().insert(id, state.clone());
        Connection {
            id,
            state,
            is_reserved,
        }
    }

    /// Whether one of them uses a descriptor that is left to the rest of the process.
    pub(crate) fn use_reserve(&self) -> bool {
        self.0.reserved.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn count(&self) -> usize {
        self.0.open.lock().len()
    }

    /// Closes connections until at most so many are open. They are closed by their own tasks, for
    /// which this waits.
    pub(crate) async fn shrink_to(&self, most: usize) {
        loop {
            let ended = self.0.ended.notified();
            let last = {
                let open = self.0.open.lock();
                let surplus = open.len() > most;
                let states = open.values().filter(|_| surplus);
                states.min_by_key(|state| *state.0.activity.lock()).cloned()
            };
            let Some(last) = last else {
                return;
            };
            last.0.close.notify_one();
            ended.await;
        }
    }
}

impl Table {
    fn step(&self) -> u64 {
        self.steps.fetch_add(1, Ordering::Relaxed)
    }
}

impl Connection {
    pub(crate) fn state(&self) -> ConnectionState {
        self.state.clone()
    }

    /// Returns when another connection needs this one's place.
    pub(crate) async fn displaced(&self) {
        self.state.0.close.notified().await;
        let counts = &self.state.0.table.counts;
        counts.displaced.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let table = &self.state.0.table;
        table.open.lock().remove(&self.id);
        table
            .reserved
            .fetch_sub(u64::from(self.is_reserved), Ordering::Relaxed);
        table.counts.ended.fetch_add(1, Ordering::Relaxed);
        table.ended.notify_one();
    }
}

impl ConnectionState {
    fn set(&self, activity: Activity) {
        *self.0.activity.lock() = (activity, self.0.table.step());
    }

    /// A request was received.
    pub(crate) fn received(&self, path: &str) {
        self.set(if PROBES.contains(&path) {
            Activity::AnswersProbe
        } else {
            Activity::Answers
        });
    }

    /// The answer is a stream.
    pub(crate) fn streams(&self) {
        self.set(Activity::Streams);
    }

    /// The answer waits on purpose.
    pub(crate) fn waits_for_client(&self) {
        self.set(Activity::WaitsForClient);
    }

    /// The request was answered. A stream goes on.
    pub(crate) fn answered(&self) {
        if self.0.activity.lock().0 != Activity::Streams {
            self.waits_for_client();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(test);
    }

    /// Closes itself when it is displaced, and sends its number.
    fn open(connections: &Connections, closed: &Arc<Mutex<Vec<u64>>>) -> ConnectionState {
        let connection = connections.open(false);
        let state = connection.state();
        let closed = Arc::clone(closed);
        tokio::spawn(async move {
            connection.displaced().await;
            closed.lock().push(connection.id);
        });
        state
    }

    #[test]
    fn the_oldest_that_waits_for_its_client_is_closed_first_and_a_probe_last() {
        run(async {
            let counts = Arc::new(ConnectionCounts::default());
            let connections = Connections::new(Arc::clone(&counts));
            let closed = Arc::default();
            let all: Vec<_> = (0..6).map(|_| open(&connections, &closed)).collect();
            all[0].received("/livez");
            all[1].received("/v1/workers");
            all[2].received("/v1/events");
            all[2].streams();
            all[2].answered();
            all[3].received("/v1/workers");
            all[3].answered();
            let mut order = Vec::new();
            for most in (0..6).rev() {
                connections.shrink_to(most).await;
                assert_eq!(connections.count(), most);
                order.push(closed.lock().len());
            }
            assert_eq!(order, [1, 2, 3, 4, 5, 6]);
            // Steps are also counted by changes, so ids are those of the beginning.
            assert_eq!(*closed.lock(), [4, 5, 3, 2, 1, 0]);
            assert_eq!(counts.displaced.load(Ordering::Relaxed), 6);
        });
    }
}
