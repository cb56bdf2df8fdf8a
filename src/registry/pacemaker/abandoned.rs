//! Finds the workers whose threads have ended and that have made no progress since.

use std::sync::Arc;

use crate::cell::{Cell, CellSnapshot, Phase, Work};
use crate::clock::Moment;
use crate::health::Activity;
use crate::registry::core::Core;
use crate::registry::core::record::Record;
use crate::registry::core::slab::Chunk;
use crate::registry::core::worker_ref::WorkerRef;
use crate::sync::threads;

/// What the pacemaker knows of the threads of its workers.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// The number of threads that had ended at the last tick.
    ended: u64,
    /// Workers whose threads have ended, and that may go on on another one.
    suspects: Vec<Suspect>,
}

#[derive(Debug)]
struct Suspect {
    chunk: Arc<Chunk<Record>>,
    offset: usize,
    tag: u32,
    thread: u32,
    beats: u64,
}

impl Threads {
    /// Finds the workers at work whose threads have ended. `now`: the time of this tick. Calls
    /// `convict` for each that has made no progress since an earlier tick.
    ///
    /// A worker that made progress in this tick is checked again in the next one: either its thread
    /// made the progress before it ended, or another thread that goes on.
    pub(super) fn check(
        &mut self,
        core: &Core,
        now: Moment,
        mut convict: impl FnMut(&Arc<Chunk<Record>>, usize),
    ) {
        let suspects = std::mem::take(&mut self.suspects);
        let ended = threads::count_ended();
        let more_ended = std::mem::replace(&mut self.ended, ended) != ended;
        if suspects.is_empty() && !more_ended {
            return;
        }
        let living = threads::living();
        let lives = |thread: u32| living.binary_search(&thread).is_ok();
        for suspect in suspects {
            let Some(worker) = suspect.worker_ref() else {
                continue;
            };
            if worker.abandon(suspect.thread, Some(suspect.beats), now, lives) {
                convict(&suspect.chunk, suspect.offset);
            }
        }
        if !more_ended {
            return;
        }
        for chunk in &*core.slab.chunks() {
            for (offset, cell) in chunk.cells().iter().enumerate() {
                let work = cell.work();
                if work.thread_ended || !is_tied(work) || lives(work.thread) {
                    continue;
                }
                let Some((snapshot, worker)) = living_worker(cell, chunk, offset) else {
                    continue;
                };
                if snapshot.moved || snapshot.progress_at >= now {
                    self.suspects.push(Suspect {
                        chunk: Arc::clone(chunk),
                        offset,
                        tag: snapshot.state.tag,
                        thread: work.thread,
                        beats: snapshot.beats,
                    });
                } else if worker.abandon(work.thread, None, now, lives) {
                    convict(chunk, offset);
                }
            }
        }
    }
}

impl Suspect {
    /// The worker, if it is still in the same life and bound to the same thread.
    fn worker_ref(&self) -> Option<WorkerRef> {
        let cell = self.chunk.cell(self.offset);
        let (snapshot, worker) = living_worker(cell, &self.chunk, self.offset)?;
        let same = snapshot.state.tag == self.tag && snapshot.work.thread == self.thread;
        (same && is_tied(snapshot.work)).then_some(worker)
    }
}

/// Whether a worker can't go on without its thread. While it is idle, another thread may take up its
/// next task; a supervisor sees the end of its workers itself.
fn is_tied(work: Work) -> bool {
    work.thread != 0 && work.activity != Activity::Idle && !work.supervised
}

/// The living worker in this cell.
fn living_worker(
    cell: &Cell,
    chunk: &Arc<Chunk<Record>>,
    offset: usize,
) -> Option<(CellSnapshot, WorkerRef)> {
    let snapshot = cell.snapshot()?;
    if snapshot.state.phase != Phase::Live {
        return None;
    }
    Some((snapshot, WorkerRef::at(chunk, offset)?))
}
