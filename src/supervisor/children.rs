//! The workers of a supervisor, from before they run until they have ended.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::exit::Finish;
use crate::health::StopCause;
use crate::registry::core::Core;
use crate::registry::core::record::Dependents;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Membership, Registry};
use crate::sync::panics::Interest;

/// The default time limit for the children of a life to end.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) worker: WorkerRef,
    pub(super) ending: Arc<Finish>,
}

/// The children of a supervisor. Shared by its clones and by the life that it is linked to.
#[derive(Debug)]
pub(super) struct Children {
    list: Mutex<ChildList>,
    _interest: Interest,
}

#[derive(Debug)]
struct ChildList {
    /// No more are accepted.
    closed: bool,
    /// In the order in which they were started.
    children: Vec<Child>,
    /// Their time limit to end, once the life that they are linked to has ended.
    limit: Duration,
}

impl Default for Children {
    fn default() -> Self {
        Self {
            list: Mutex::new(ChildList {
                closed: false,
                children: Vec::new(),
                limit: DEFAULT_LIMIT,
            }),
            _interest: Interest::new(),
        }
    }
}

impl Children {
    pub(super) fn is_closed(&self) -> bool {
        self.list.lock().closed
    }

    /// Adds a child. `false` if no more are accepted.
    #[must_use]
    pub(super) fn adopt(&self, child: Child) -> bool {
        let mut list = self.list.lock();
        if list.closed {
            return false;
        }
        list.children.retain(|child| !child.ending.is_set());
        list.children.push(child);
        true
    }

    /// Accepts no more children from now on. Returns the present ones.
    pub(super) fn close(&self) -> Vec<Child> {
        let mut list = self.list.lock();
        list.closed = true;
        list.children.clone()
    }

    pub(super) fn forget_ended(&self) {
        let mut list = self.list.lock();
        list.children.retain(|child| !child.ending.is_set());
    }

    pub(super) fn limit(&self) -> Duration {
        self.list.lock().limit
    }

    pub(super) fn set_limit(&self, limit: Duration) {
        self.list.lock().limit = limit;
    }
}

impl Dependents for Children {
    fn are_gone(&self) -> bool {
        self.list
            .lock()
            .children
            .iter()
            .all(|child| child.ending.is_set())
    }

    fn dismiss(&self, core: &Arc<Core>) {
        for child in self.close().iter().rev() {
            core.request_stop_in_background(&child.worker, &StopCause::Supervisor);
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Asks one worker to stop. Does not wait for the log, which may block.
pub(super) fn ask(registry: &Registry, worker: &WorkerRef) {
    registry.request_stop_of(worker, &StopCause::Supervisor);
}

/// Links children to the current life of a worker. If that has ended, they are closed.
pub(super) fn link(membership: &Membership, children: &Arc<Children>) {
    let linked = Arc::clone(children) as Arc<dyn Dependents>;
    if !membership.worker_ref().link(linked) {
        children.close();
    }
}

/// The children that are linked to a worker's life.
pub(super) fn linked(worker: &WorkerRef) -> Vec<Arc<Children>> {
    if !worker.is_current() {
        // A handle of an earlier life; the children belong to the current one.
        return Vec::new();
    }
    let dependents = worker
        .record
        .known_detail()
        .map(|detail| detail.linked.clone());
    dependents
        .unwrap_or_default()
        .into_iter()
        .filter_map(|dependents| dependents.as_any().downcast().ok())
        .collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::supervisor::Supervisor;
    use crate::worker::WorkerHeartbeat;

    #[test]
    fn supervisors_of_jobs_that_are_done_leave_nothing_with_the_life() {
        let registry = Registry::new();
        let hb = WorkerHeartbeat::builder("w").registry(&registry);
        let hb = hb.start().unwrap();
        for _ in 0..100 {
            let children = Supervisor::linked_to(&hb);
            let child = WorkerHeartbeat::builder("job").finite();
            let child = children.spawn(child, |_| Ok(())).unwrap();
            child.join();
            let kept = linked(hb.membership().worker_ref()).len();
            assert!(kept <= 2, "this one and the one before, not {kept}");
        }
    }
}
