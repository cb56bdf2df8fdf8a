//! What the store was told, worker by worker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::clock::Moment;
use crate::fleet::key::LeaseKey;
use crate::fleet::session::{LeaseState, StoreSession};
use crate::health::State;
use crate::registry::core::record::Record;
use crate::registry::core::worker_ref::WorkerRef;

/// What the store was told.
#[derive(Debug, Default)]
pub(super) struct SyncState {
    /// By the address of their records, which they keep alive.
    pub known: HashMap<usize, Known>,
    pub leases: Vec<Arc<LeaseState>>,
    /// Worker and run of each claim that waits for its answer.
    pub claiming: HashSet<(usize, String)>,
    pub to_release: Vec<LeaseKey>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub worker: WorkerRef,
    /// The life, as the process counts it, that was registered.
    pub incarnation: u32,
    pub session: Option<Arc<StoreSession>>,
    pub told: Option<Told>,
    pub ended: bool,
    /// A sweep marked it offline.
    pub swept: bool,
    /// Until then, a registration that was thought to have failed may still come in.
    pub unsure_until: Moment,
    /// The store does not let it in; it is asked again then.
    pub refused_until: Option<Moment>,
}

/// What a worker's last accepted heartbeat told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub state: State,
    pub task: u32,
    pub at: Moment,
}

impl Known {
    /// Another heartbeat is due: its time has come, or something changed.
    pub(super) fn is_due(&self, now: &Told) -> bool {
        let interval = self.worker.record.profile.interval;
        self.told.is_none_or(|told| {
            (told.state, told.task) != (now.state, now.task)
                // A tick that comes a little early is this worker's tick too.
                || now.at.since(told.at) >= interval / 4 * 3
        })
    }

    /// Whether the worker is still in the life that was registered.
    pub(super) fn is_present(&self) -> bool {
        self.worker.record.incarnation() == self.incarnation
    }

    fn due_at(&self) -> Option<Moment> {
        Some(self.told?.at.after(self.worker.record.profile.interval))
    }

    pub(super) const fn is_refused(&self) -> bool {
        self.refused_until.is_some() && !self.ended
    }

    /// When the store has to be told of it again, whatever happens.
    pub(super) fn next_at(&self) -> Option<Moment> {
        if self.ended {
            None
        } else {
            self.due_at().or(self.refused_until)
        }
    }

    /// The store does not know this incarnation, or not any more.
    pub(super) fn forget(&mut self) {
        if let Some(session) = self.session.take() {
            session.break_off();
        }
        self.told = None;
    }

    /// Nothing is left to be told.
    pub(super) fn finish(&mut self) {
        self.forget();
        self.ended = true;
        self.worker.record.set_end_stored(self.incarnation);
    }
}

pub(super) fn address(record: &Arc<Record>) -> usize {
    Arc::as_ptr(record).addr()
}
