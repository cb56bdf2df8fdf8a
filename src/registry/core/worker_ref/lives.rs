//! How lives of a worker begin and end.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use crossbeam_channel::Receiver;

use super::{WorkerRef, signs};
use crate::cell::{Cell, CellKey, Episode, Lifecycle, Phase, Schedule, Work};
use crate::clock::Moment;
use crate::health::{Activity, Death, DeathCause, Ending, Health, StallCause, StopCause};
use crate::registry::core::record::{Dependents, Detail, Ended, Former, Record};
use crate::registry::core::tasks::{Manner, TaskNames, Tasks};
use crate::registry::core::timeline::ObservedNow;
use crate::sync::latch::Latch;
use crate::sync::panics::PanicReport;
use crate::sync::printable::cut;
use crate::sync::wakers::wake;

/// Longer reasons of a death are cut: the dead are kept for long.
pub(super) const LONGEST_REASON: usize = 8 * 1024;

/// How an incarnation is to end.
#[derive(Debug)]
pub(crate) enum Termination {
    /// Stopped. If it was asked to stop, the cause is that of the request.
    Stopped(StopCause),
    Dead(DeathCause),
    /// As `Dead`, even if the worker was stopped by a request before.
    Failed(DeathCause),
    /// As `Dead`, even if the worker was stopped before: its thread failed afterwards.
    Overruled(DeathCause),
    /// As `Overruled`, by a panic.
    Panicked(Box<PanicReport>),
}

impl WorkerRef {
    /// Notes the cause of a request to stop, which the worker does not see yet. Returns whether it
    /// is at work. `None`: it was asked before, or has ended.
    pub(crate) fn claim_stop(&self, cause: StopCause) -> Option<bool> {
        let mut detail = self.record.detail();
        if detail.stop_cause.is_some() {
            return None;
        }
        detail.stop_cause = Some(cause);
        if detail.ended.is_some() {
            return None;
        }
        Some(self.cell().work().activity != Activity::Idle)
    }

    /// Makes the request visible to the worker, and ends it if it is idle, before it can begin a
    /// task. Returns its health if it was ended, and the wakers.
    pub(crate) fn show_stop(
        &self,
        observed: &ObservedNow,
        wall: SystemTime,
    ) -> (Option<Health>, Vec<Waker>) {
        let mut detail = self.record.detail();
        let mut ended = None;
        if detail.ended.is_none() {
            detail.asked_at.get_or_insert(observed.now);
            // It has not ended, so the cell is still its own.
            let cell = self.cell();
            cell.set_state(Lifecycle {
                stop_requested: true,
                ..cell.state()
            });
            if cell.work().activity == Activity::Idle {
                let end = Termination::Stopped(StopCause::Completed);
                ended = self.end_locked(&mut detail, end, observed, wall);
            }
        }
        (ended, detail.announce_stop())
    }

    /// Wakes this waker once the worker is asked to stop; at once if it was. Returns the number by
    /// which the waker is replaced or forgotten.
    pub(crate) fn on_stop(&self, known: Option<u64>, waker: &Waker) -> u64 {
        // Neither cloned nor dropped under the lock: wakers belong to executors.
        let waker = waker.clone();
        let mut detail = self.record.detail();
        // A life that is over has nothing to wait for.
        if detail.stop_cause.is_some() || !self.is_current() {
            drop(detail);
            wake(waker);
            return known.unwrap_or_default();
        }
        let (number, replaced) = detail.on_stop.keep(known, waker);
        drop(detail);
        drop(replaced);
        number
    }

    pub(crate) fn forget_stop(&self, number: u64) {
        let detail = self.record.known_detail();
        let forgotten = detail.map(|mut detail| detail.on_stop.forget(number));
        // Not under the lock: the waker belongs to an executor.
        drop(forgotten);
    }

    /// A channel that receives a message when the worker is asked to stop.
    pub(crate) fn stop_receiver(&self) -> Receiver<()> {
        let mut detail = self.record.detail();
        if self.is_current() {
            return detail.stop_latch.receiver();
        }
        // A life that is over has nothing to wait for.
        let mut over = Latch::new();
        over.set(());
        over.receiver()
    }

    /// Whether the worker was asked to stop, in this incarnation or between two.
    pub(crate) fn stop_requested(&self) -> bool {
        self.record
            .known_detail()
            .is_some_and(|detail| detail.stop_cause.is_some())
    }

    /// How it ended, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        let detail = self.record.known_detail()?;
        Some(self.ended(&detail)?.ending.clone())
    }

    /// Ends the incarnation. `None` if it has ended before: the first end counts, except that a
    /// failure overrules a stop.
    pub(crate) fn end(
        &self,
        end: Termination,
        observed: &ObservedNow,
        wall: SystemTime,
    ) -> Option<Health> {
        let mut detail = self.record.detail();
        if !self.is_current() {
            return None;
        }
        self.end_locked(&mut detail, end, observed, wall)
    }

    fn end_locked(
        &self,
        detail: &mut Detail,
        end: Termination,
        observed: &ObservedNow,
        wall: SystemTime,
    ) -> Option<Health> {
        let overruled = match (&detail.ended, &end) {
            (None, _) => true,
            (
                Some(Ended {
                    ending: Ending::Dead(_),
                    ..
                }),
                _,
            ) => false,
            (Some(_), Termination::Overruled(_) | Termination::Panicked(_)) => true,
            (
                Some(Ended {
                    ending: Ending::Stopped(by),
                    ..
                }),
                Termination::Failed(_),
            ) => detail.stop_cause.as_ref() == Some(by),
            (Some(_), Termination::Stopped(_) | Termination::Dead(_)) => false,
        };
        if !overruled {
            return None;
        }
        let cell = self.cell();
        let life = cell.state();
        let (beats, heartbeat_at) = cell.snapshot().map_or((0, None), |snapshot| {
            let limits = &self.record.profile.limits();
            let adjustments = detail.adjustments(&snapshot, limits);
            let signs = signs(&snapshot, limits, observed, &adjustments);
            (snapshot.beats, signs.heartbeat_at)
        });
        let (ending, phase) = match end {
            Termination::Stopped(cause) => {
                let cause = match (&detail.stop_cause, cause) {
                    (Some(asked), StopCause::Drop | StopCause::Completed) => asked.clone(),
                    (_, cause) => cause,
                };
                (Ending::Stopped(cause), Phase::Stopped)
            }
            Termination::Dead(cause)
            | Termination::Failed(cause)
            | Termination::Overruled(cause) => {
                let manner = match &cause {
                    DeathCause::Panicked { .. } => Manner::Panic,
                    DeathCause::Failed { .. } => Manner::Error,
                    _ => Manner::Other,
                };
                let names = detail.tasks.at_death(manner, observed.clock, beats);
                (Ending::Dead(death(cause, names, detail, wall)), Phase::Dead)
            }
            Termination::Panicked(mut report) => {
                // What the panic hook saw is certain.
                let names = report.at_hand.take().unwrap_or_else(|| {
                    let tasks = &detail.tasks;
                    tasks.at_death(Manner::Panic, observed.clock, beats)
                });
                let cause = DeathCause::from(*report);
                (Ending::Dead(death(cause, names, detail, wall)), Phase::Dead)
            }
        };
        let asked_at = detail.asked_at.unwrap_or(observed.now);
        let drained = detail.stop_cause.as_ref();
        let drained = drained.map(|_| observed.now.since(asked_at));
        if let (Some(took), None) = (drained, &detail.ended) {
            self.record.profile.counts.drains.note(took);
        }
        let ended = Ended {
            ending,
            drained,
            at: observed.clock,
            beats,
            late_beats: 0,
            heartbeat_age: heartbeat_at.map(|at| observed.now.since(at)),
        };
        let health = Health::ended(&ended.ending, Duration::ZERO);
        detail.stack = None;
        detail.ended = Some(ended);
        cell.set_state(Lifecycle { phase, ..life });
        Some(health)
    }

    /// Ends a worker whatever it is doing, and makes this request to stop visible to it. Returns
    /// its health if it was ended, and the wakers.
    pub(crate) fn cut_off(
        &self,
        request: StopCause,
        end: Termination,
        observed: &ObservedNow,
        wall: SystemTime,
    ) -> (Option<Health>, Vec<Waker>) {
        let mut detail = self.record.detail();
        if detail.ended.is_some() {
            return (None, Vec::new());
        }
        detail.stop_cause.get_or_insert(request);
        detail.asked_at.get_or_insert(observed.now);
        let cell = self.cell();
        cell.set_state(Lifecycle {
            stop_requested: true,
            ..cell.state()
        });
        let ended = self.end_locked(&mut detail, end, observed, wall);
        (ended, detail.announce_stop())
    }

    /// Makes other workers depend on this life. `false` if it is over.
    pub(crate) fn link(&self, dependents: Arc<dyn Dependents>) -> bool {
        let mut detail = self.record.detail();
        if detail.ended.is_some() || !self.is_current() {
            return false;
        }
        // A supervisor of one job leaves nothing behind once the job is done.
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut detail.linked)
            .into_iter()
            .partition(|other| Arc::strong_count(other) == 1 && other.are_gone());
        detail.linked = left;
        detail.linked.push(dependents);
        drop(detail);
        drop(gone);
        true
    }

    /// Removes and returns the dependents of this life.
    pub(crate) fn unlink(&self) -> Vec<Arc<dyn Dependents>> {
        let mut detail = self.record.known_detail();
        match &mut detail {
            Some(detail) if self.is_current() => std::mem::take(&mut detail.linked),
            _ => Vec::new(),
        }
    }

    /// Notes in the worker's death that it was given up.
    pub(crate) fn give_up(&self, restarts: u32) {
        let mut detail = self.record.detail();
        if let Some(Ended {
            ending: Ending::Dead(death),
            ..
        }) = &mut detail.ended
        {
            Arc::make_mut(death).gave_up_after = Some(restarts);
        }
    }

    /// Begins the next life: in this cell, or elsewhere if this life has other holders. `None` if
    /// the worker was asked to stop meanwhile. Returns the wakers of this life, whose waits are
    /// over.
    pub(crate) fn begin_next_life(
        &self,
        elsewhere: Option<&Self>,
        observed: &ObservedNow,
    ) -> Option<Vec<Waker>> {
        let record = &self.record;
        let next = elsewhere.unwrap_or(self);
        let mut wakers = Vec::new();
        let mut settle_in = |cell: &Cell| {
            let mut detail = record.detail();
            if detail.stop_cause.is_some() {
                return false;
            }
            let beats = self.cell().beats();
            wakers = self.close_life(&mut detail, elsewhere.is_some(), beats);
            if elsewhere.is_some() {
                detail.chunk = Some(Arc::clone(&next.chunk));
                record.profile.counts.beats.add(beats);
            }
            record.set_incarnation(record.incarnation() + 1);
            let tag = cell.state().next_tag();
            record.set_cell_key(CellKey::new(next.chunk.slot(next.offset), tag));
            let before = settle(cell, record, tag, observed.now);
            let counts = &record.profile.counts;
            if elsewhere.is_none() {
                counts.beats.add(before);
            }
            counts.restarts.add(1);
            true
        };
        let begun = match elsewhere {
            Some(next) => next.chunk.enter(next.offset, record, settle_in),
            None => self.chunk.resettle(self.offset, &mut settle_in),
        };
        if begun && elsewhere.is_some() {
            self.chunk.leave_behind(self.offset);
        }
        begun.then_some(wakers)
    }

    /// Closes a life that is over, before the next one begins. `left`: its cell has other holders.
    /// Returns its wakers.
    fn close_life(&self, detail: &mut Detail, left: bool, beats: u64) -> Vec<Waker> {
        if let Some(ended) = detail.ended.take() {
            if let Ending::Dead(death) = &ended.ending {
                detail.last_death = Some(Arc::clone(death));
            }
            if left {
                detail.former.push(Former {
                    chunk: Arc::clone(&self.chunk),
                    offset: self.offset,
                    incarnation: self.record.incarnation(),
                    ended,
                    counted: beats,
                });
            } else {
                detail.late_beats += beats.saturating_sub(ended.beats);
            }
        }
        detail.restarts += 1;
        detail.tasks = Tasks::default();
        detail.last_site = None;
        detail.polls = None;
        detail.failed_tasks = 0;
        detail.silences.clear();
        detail.first_sample = None;
        detail.evidence = StallCause::Unknown;
        detail.pace = None;
        detail.stack = None;
        detail.threads.clear();
        detail.thread_ended = None;
        detail.marked_offline = false;
        // A wait for the end of this life does not extend to the next.
        detail.stop_latch.set(());
        detail.stop_latch = Latch::new();
        detail.on_stop.take().collect()
    }

    /// A former life has no holders any more: its cell becomes free.
    pub(crate) fn forget_former(&self) {
        let mut detail = self.record.detail();
        let former = &mut detail.former;
        let place = former.iter().position(|former| {
            former.offset == self.offset && Arc::ptr_eq(&former.chunk, &self.chunk)
        });
        if let Some(place) = place {
            let former = former.swap_remove(place);
            detail.late_beats = detail.late_beats.saturating_add(former.late_beats());
            let uncounted = self.cell().beats().saturating_sub(former.counted);
            self.record.profile.counts.beats.add(uncounted);
        }
        drop(detail);
        self.chunk.vacate(self.offset);
    }

    /// Leaves the cell to the next worker. The worker has ended. Returns wakers that are not needed
    /// any more, to be dropped without a lock: they belong to an executor.
    #[must_use]
    pub(crate) fn vacate(&self) -> Vec<Waker> {
        let beats = self.cell().snapshot().map_or(0, |snapshot| snapshot.beats);
        let mut detail = self.record.detail();
        detail.returns = false;
        let forgotten = detail.on_stop.take().collect();
        if let Some(ended) = &mut detail.ended {
            ended.late_beats = beats.saturating_sub(ended.beats);
        }
        drop(detail);
        self.record.profile.counts.beats.add(self.cell().beats());
        self.chunk.vacate(self.offset);
        forgotten
    }
}

fn death(
    mut cause: DeathCause,
    (run_id, task): TaskNames,
    detail: &Detail,
    at: SystemTime,
) -> Arc<Death> {
    if let DeathCause::Panicked { message: text, .. } | DeathCause::Failed { error: text } =
        &mut cause
    {
        cut(text, LONGEST_REASON);
    }
    Arc::new(Death {
        cause,
        run_id,
        task,
        last_location: detail.last_location(),
        at,
        gave_up_after: None,
        unheard_for: None,
    })
}

/// Puts a worker's new incarnation into its cell. Returns the beats of the previous occupant.
pub(crate) fn settle(cell: &Cell, record: &Record, tag: u32, now: Moment) -> u64 {
    let profile = &record.profile;
    let life = Lifecycle {
        phase: Phase::Live,
        stop_requested: false,
        tag,
        profile: profile.number,
    };
    let grace_ends = now.after(profile.thresholds.startup_grace);
    let schedule = Schedule {
        episode: Episode::Starting,
        due: grace_ends.after(Duration::from_nanos(1)),
    };
    let beats = cell.settle(life, now, schedule);
    if profile.limits().limit_tasks() {
        // Before the worker can begin a task: this is under the lock of its chunk.
        cell.change_work(|work| Work {
            limited: true,
            ..work
        });
    }
    beats
}
