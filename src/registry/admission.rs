//! How workers come and go: registration, the next life, and the end of the last handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::index::ById;
use super::{Membership, READER_PATIENCE, Registry, at_exit};
use crate::cell::CellKey;
use crate::clock::Patience;
use crate::error::Error;
use crate::health::Ending;
use crate::registry::core::events::EventKind;
use crate::registry::core::profile::ProfileKey;
use crate::registry::core::record::Record;
use crate::registry::core::worker_ref::{WorkerRef, settle};
use crate::sync::printable::prefix;
use crate::sync::wakers::wake;

/// What a worker is registered with. Checked by the builder.
#[derive(Debug)]
pub(crate) struct Spec {
    /// `None`: it is generated.
    pub id: Option<String>,
    pub profile: ProfileKey,
    pub metadata: Vec<(String, String)>,
}

impl Registry {
    pub(crate) fn register(&self, spec: Spec) -> Result<Membership, Error> {
        let core = &self.inner.core;
        self.inner.pacemaker.join(core)?;
        let worker = match self.admit(spec) {
            Ok(worker) => worker,
            Err(error) => {
                let _ = self.inner.pacemaker.leave();
                return Err(error);
            }
        };
        if core.refine_resolution(worker.record.profile.shortest()) {
            // Once this returns, no worker is judged at the coarser resolution any more.
            self.inner.pacemaker.await_tick(READER_PATIENCE);
        }
        core.changed.store(true, Ordering::Release);
        core.emit(Some(&worker.record), EventKind::Registered);
        at_exit::arm();
        self.stop_if_stopping(&worker);
        Ok(Membership::new(self.clone(), worker))
    }

    /// Gives a new worker a cell, under an id that no living worker has.
    fn admit(&self, spec: Spec) -> Result<WorkerRef, Error> {
        let core = &self.inner.core;
        let profile = core.profiles.intern(spec.profile);
        let explicit = spec.id.is_some();
        let mut id = spec
            .id
            .unwrap_or_else(|| generated_id(&profile.worker_type));
        loop {
            let mut shard = self.inner.index.lock(&id);
            let previous = shard.get(id.as_str()).map(|found| Arc::clone(&found.0));
            if previous.as_ref().is_some_and(|record| !record.is_free()) {
                if explicit {
                    return Err(Error::DuplicateId { id });
                }
                drop(shard);
                id = generated_id(&profile.worker_type);
                continue;
            }
            let slot = core.slab.take();
            let chunk = core.slab.chunk(slot);
            let offset = slot.offset as usize;
            let tag = chunk.cell(offset).state().next_tag();
            let key = CellKey::new(slot, tag);
            let record = Arc::new(Record::new(&id, !explicit, Arc::clone(&profile), key));
            if !spec.metadata.is_empty() {
                record.detail().metadata = spec.metadata;
            }
            profile.enter();
            let now = core.observed_now().now;
            let mut enter = || {
                chunk.enter(offset, &record, |cell| {
                    // The beats of the cell's previous occupant were counted when it left.
                    settle(cell, &record, tag, now);
                    true
                });
                shard.replace(ById(Arc::clone(&record)));
            };
            match &previous {
                Some(previous) => self.inner.scan.move_with(|| {
                    succeed(&record, previous);
                    self.inner.tombstones.remove(previous);
                    enter();
                }),
                None => enter(),
            }
            drop(shard);
            return Ok(WorkerRef {
                chunk,
                offset,
                record,
            });
        }
    }

    /// Begins a worker's next life and reports it. The life gets another cell if there are still
    /// holders of the last one. `None` if the worker was asked to stop meanwhile.
    pub(super) fn next_life(&self, last: &Membership) -> Option<Membership> {
        let core = &self.inner.core;
        let (observed, worker) = (self.observed_now(), last.worker_ref());
        let elsewhere = (!worker.chunk.has_one_holder(worker.offset)).then(|| {
            let slot = core.slab.take();
            WorkerRef {
                chunk: core.slab.chunk(slot),
                offset: slot.offset as usize,
                record: Arc::clone(&worker.record),
            }
        });
        // Its beats move from the cell to the totals of the lives that are over.
        let begin = || worker.begin_next_life(elsewhere.as_ref(), &observed);
        let wakers = {
            let _events = core.lock_events(&worker.record);
            self.inner.scan.move_with(begin)
        };
        let Some(wakers) = wakers else {
            if let Some(unused) = elsewhere {
                core.slab.give_back(unused.chunk.slot(unused.offset));
            }
            return None;
        };
        wakers.into_iter().for_each(wake);
        let next = match elsewhere {
            Some(next) => Membership::new(self.clone(), next),
            None => last.clone(),
        };
        core.changed.store(true, Ordering::Release);
        core.emit(Some(&next.worker_ref().record), EventKind::Registered);
        self.stop_if_stopping(next.worker_ref());
        Some(next)
    }

    /// Asks a new worker to stop if all others have been asked.
    fn stop_if_stopping(&self, worker: &WorkerRef) {
        self.end_if_ending(std::slice::from_ref(worker));
        let stopping = self.inner.stopping.lock().clone();
        if let Some(cause) = stopping {
            let core = &self.inner.core;
            core.request_stop(std::slice::from_ref(worker), &cause)
                .deliver();
        }
    }

    /// The last handle of a life is gone. If it was the worker's last life, its cell becomes free and
    /// its record a tombstone.
    pub(super) fn retire(&self, worker: &WorkerRef) {
        let core = &self.inner.core;
        let slot = worker.chunk.slot(worker.offset);
        if !worker.is_current() {
            self.inner.scan.move_with(|| worker.forget_former());
            core.slab.give_back(slot);
            return;
        }
        let tombstones = &self.inner.tombstones;
        let (forgotten, wakers) = self.inner.scan.move_with(|| {
            let record = &worker.record;
            let forgotten =
                (!record.is_superseded()).then(|| tombstones.insert(Arc::clone(record)));
            if record.is_superseded() {
                // Its successor came before.
                tombstones.remove(record);
            }
            (forgotten.flatten(), worker.vacate())
        });
        if let Some(forgotten) = forgotten {
            // Not above: a thread that waits to move a worker may hold the lock of a shard.
            self.inner.index.remove(&forgotten);
        }
        worker.record.profile.leave();
        core.slab.give_back(slot);
        core.changed.store(true, Ordering::Release);
        let left = self.inner.pacemaker.leave();
        drop(wakers);
        // A registry with expected workers owns the pacemaker too, and is no worker.
        if left == usize::from(self.inner.expects.get().is_some()) {
            self.flush_store(&Patience::new(Duration::MAX));
        }
    }
}

/// `{type}-{pid}-{n}`, where `n` is unique in this process. A long type is cut, so that the id is valid.
fn generated_id(worker_type: &str) -> String {
    /// Leaves room for the host's name, which a store inserts, and for the numbers.
    const LONGEST_TYPE: usize = 100;
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let worker_type = prefix(worker_type, LONGEST_TYPE);
    format!("{worker_type}-{}-{n}", std::process::id())
}

/// A new worker takes over the id and the history of one that has ended.
fn succeed(record: &Record, previous: &Record) {
    record.set_incarnation(previous.incarnation().saturating_add(1));
    let mut old = previous.detail();
    old.superseded = true;
    let death = match old.ended.as_ref().map(|ended| &ended.ending) {
        Some(Ending::Dead(death)) => Some(Arc::clone(death)),
        _ => old.last_death.clone(),
    };
    let restarts = old.restarts.saturating_add(1);
    drop(old);
    record.profile.counts.restarts.add(1);
    let mut detail = record.detail();
    detail.restarts = restarts;
    detail.last_death = death;
}
