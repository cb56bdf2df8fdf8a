//! The workers of this host whose processes have ended, as the kernel reports.

use crate::error::Error;
use crate::fleet::host::{Fate, ProcessIdentity};
use crate::fleet::pages::Pages;
use crate::fleet::shapes::{WorkerFilter, WorkerKey};
use crate::fleet::store::HeartbeatStore;

#[derive(Default)]
pub(super) struct EndedWorkers {
    /// Their process was killed.
    pub killed: Vec<WorkerKey>,
    /// Their process is gone for an unknown reason.
    pub gone: Vec<WorkerKey>,
}

impl EndedWorkers {
    pub(super) fn is_empty(&self) -> bool {
        self.killed.is_empty() && self.gone.is_empty()
    }
}

/// Looks each process up once, and reads the workers of those that have ended.
pub(super) fn ended_workers(store: &dyn HeartbeatStore) -> Result<EndedWorkers, Error> {
    let here = ProcessIdentity::current();
    let mut ended = EndedWorkers::default();
    if !here.is_local() {
        return Ok(ended);
    }
    for process in store.processes(&here)? {
        let workers = match process.fate() {
            Some(Fate::Killed) => &mut ended.killed,
            Some(Fate::Gone) => &mut ended.gone,
            None => continue,
        };
        let filter = WorkerFilter::new()
            .host(here.clone())
            .process(process.clone());
        for page in Pages::new(store, filter) {
            // A store may ignore the filter.
            let own = page?.into_iter().filter(|worker| {
                let other = worker.info.process.as_ref();
                other.is_some_and(|other| other.is_same(&process))
            });
            workers.extend(own.map(|worker| worker.key));
        }
    }
    Ok(ended)
}
