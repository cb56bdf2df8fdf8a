//! The workers of a supervisor: listed before they can run, until they have ended.

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

/// How long the children of a life may take to end, by default.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) worker: WorkerRef,
    pub(super) ending: Arc<Finish>,
}

/// See the module. Shared by the clones of a supervisor and by the life that it is linked to.
#[derive(Debug)]
pub(super) struct Children {
    list: Mutex<List>,
    _interest: Interest,
}

#[derive(Debug)]
struct List {
    /// No more are taken.
    closed: bool,
    /// In the order in which they were started.
    children: Vec<Child>,
    /// How long they may take to end, once the life that they are linked to has ended.
    limit: Duration,
}

impl Default for Children {
    fn default() -> Self {
        Self {
            list: Mutex::new(List {
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

    /// Takes one more child. `false` if no more are taken.
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

    /// Takes no more children from now on. Returns those that there are.
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

/// Asks one worker to stop. The log may block, so it is not waited for.
pub(super) fn ask(registry: &Registry, worker: &WorkerRef) {
    registry.request_stop_of(worker, &StopCause::Supervisor);
}

/// Links children to the present life of a worker. If it is over, they take no more.
pub(super) fn link(membership: &Membership, children: &Arc<Children>) {
    let linked = Arc::clone(children) as Arc<dyn Dependents>;
    if !membership.worker_ref().link(linked) {
        children.close();
    }
}

/// The children that are linked to a worker's life.
pub(super) fn linked(worker: &WorkerRef) -> Vec<Arc<Children>> {
    if !worker.is_current() {
        // A handle that a former life left behind: these belong to the present one.
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
