//! Workers whose threads have ended: found at the first look at which they have been silent since.

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
    /// How many had ended at the last look.
    ended: u64,
    /// Workers whose threads have ended, and that may still go on without.
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
    /// `convict` for each that has been silent since an earlier look.
    ///
    /// A worker that made progress in this tick is looked at again in the next one: its thread may
    /// have made it, or another one that goes on.
    pub(super) fn look(
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
                let Some((snapshot, worker)) = abandoned(cell, chunk, offset) else {
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
    /// The worker, if it is still the same life on the same thread.
    fn worker_ref(&self) -> Option<WorkerRef> {
        let cell = self.chunk.cell(self.offset);
        let (snapshot, worker) = abandoned(cell, &self.chunk, self.offset)?;
        let same = snapshot.state.tag == self.tag && snapshot.work.thread == self.thread;
        (same && is_tied(snapshot.work)).then_some(worker)
    }
}

/// Whether a worker that says this needs its thread to go on. At rest, another thread may take up its
/// next task; a supervisor sees the end of its workers itself.
fn is_tied(work: Work) -> bool {
    work.thread != 0 && work.activity != Activity::Idle && !work.supervised
}

/// The living worker in this cell.
fn abandoned(
    cell: &Cell,
    chunk: &Arc<Chunk<Record>>,
    offset: usize,
) -> Option<(CellSnapshot, WorkerRef)> {
    let snapshot = cell.snapshot()?;
    if snapshot.state.phase != Phase::Live {
        return None;
    }
    let worker = WorkerRef {
        chunk: Arc::clone(chunk),
        offset,
        record: chunk.occupant(offset)?,
    };
    Some((snapshot, worker))
}
