//! How lives of a worker begin and end.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use crossbeam_channel::Receiver;

use super::{WorkerRef, signs};
use crate::cell::{Cell, CellKey, Episode, Lifecycle, Phase, Schedule};
use crate::clock::Moment;
use crate::health::{Activity, Death, DeathCause, Ending, Health, StallCause, StopCause};
use crate::registry::core::record::{Dependents, Detail, Ended, Former, Record};
use crate::registry::core::tasks::{Manner, TaskNames, Tasks};
use crate::registry::core::timeline::ObservedNow;
use crate::sync::latch::Latch;
use crate::sync::panics::PanicReport;
use crate::sync::printable::cut;
use crate::sync::wakers::wake;

/// Longer reasons of a death are cut: the dead are remembered for long.
pub(super) const LONGEST_REASON: usize = 8 * 1024;

/// How an incarnation is to end.
#[derive(Debug)]
pub(crate) enum Termination {
    /// In good order. If it was asked to stop, by whom it was asked.
    Stopped(StopCause),
    Dead(DeathCause),
    /// As `Dead`, even if the worker had been stopped because it was asked to.
    Failed(DeathCause),
    /// As `Dead`, even if the worker had ended in good order: its thread came to grief after.
    Overruled(DeathCause),
    /// As `Overruled`, by a panic.
    Panicked(Box<PanicReport>),
}

impl WorkerRef {
    /// Adjustments who asks the worker to stop; it does not see it yet. Returns whether it is at work.
    /// `None`: it was asked before, or has ended.
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

    /// Lets the worker see that it was asked, and ends it if it is idle: at once, so that it cannot
    /// begin a task in between. Returns its health if it was ended, and whom to wake.
    pub(crate) fn show_stop(
        &self,
        observed: &ObservedNow,
        wall: SystemTime,
    ) -> (Option<Health>, Vec<Waker>) {
        let mut detail = self.record.detail();
        let mut ended = None;
        if detail.ended.is_none() {
            // Not ended, so the cell is still this worker's.
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
        detail.stop_latch.set(());
        let wakers = detail.on_stop.drain(..).map(|(_, waker)| waker);
        (ended, wakers.collect())
    }

    /// Wakes this waker once the worker is asked to stop; at once if it has been. Returns the number
    /// to forget it by, and to replace it by.
    pub(crate) fn on_stop(&self, known: Option<u64>, waker: &Waker) -> u64 {
        // Neither made nor dropped under the lock: wakers belong to executors.
        let mut waker = waker.clone();
        let mut detail = self.record.detail();
        let number = match known {
            Some(number) => number,
            None => detail.new_number(),
        };
        // A life that is over has nothing to wait for.
        if detail.stop_cause.is_some() || !self.is_current() {
            drop(detail);
            wake(waker);
            return number;
        }
        match detail
            .on_stop
            .iter_mut()
            .find(|(other, _)| *other == number)
        {
            Some((_, old)) => std::mem::swap(old, &mut waker),
            None => {
                detail.on_stop.push((number, waker));
                return number;
            }
        }
        drop(detail);
        drop(waker);
        number
    }

    pub(crate) fn forget_stop(&self, number: u64) {
        let forgotten = self.record.known_detail().and_then(|mut detail| {
            let at = detail
                .on_stop
                .iter()
                .position(|(other, _)| *other == number)?;
            Some(detail.on_stop.remove(at))
        });
        // Not under the lock: it belongs to an executor.
        drop(forgotten);
    }

    /// A channel that gets a message when the worker is asked to stop.
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

    /// Ends the incarnation. `None` if it has ended before: the first end counts, but that a
    /// failure overrules an end in good order that came before it.
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
        match (&detail.ended, &end) {
            (None, _) => {}
            (
                Some(Ended {
                    ending: Ending::Stopped(_),
                    ..
                }),
                Termination::Overruled(_) | Termination::Panicked(_),
            ) => {}
            (
                Some(Ended {
                    ending: Ending::Stopped(by),
                    ..
                }),
                Termination::Failed(_),
            ) if detail.stop_cause.as_ref() == Some(by) => {}
            _ => return None,
        }
        let cell = self.cell();
        let life = cell.state();
        let (beats, heartbeat_at) = cell.snapshot().map_or((0, None), |snapshot| {
            let limits = &self.record.profile.limits;
            let adjustments = detail.adjustments(&snapshot);
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
                (Ending::Dead(death(cause, names, wall)), Phase::Dead)
            }
            Termination::Panicked(mut report) => {
                // What the hook saw is certain.
                let names = report.at_hand.take().unwrap_or_else(|| {
                    let tasks = &detail.tasks;
                    tasks.at_death(Manner::Panic, observed.clock, beats)
                });
                let cause = DeathCause::from(*report);
                (Ending::Dead(death(cause, names, wall)), Phase::Dead)
            }
        };
        let ended = Ended {
            ending,
            asked: detail.stop_cause.is_some(),
            at: observed.clock,
            beats,
            late_beats: 0,
            heartbeat_age: heartbeat_at.map(|at| observed.now.since(at)),
        };
        let health = Health::ended(&ended.ending, Duration::ZERO);
        detail.ended = Some(ended);
        cell.set_state(Lifecycle { phase, ..life });
        Some(health)
    }

    /// Ends a worker whatever it is at, and lets it see that it has to stop, at this request. Returns
    /// its health if it was ended, and whom to wake.
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
        let cell = self.cell();
        cell.set_state(Lifecycle {
            stop_requested: true,
            ..cell.state()
        });
        let ended = self.end_locked(&mut detail, end, observed, wall);
        detail.stop_latch.set(());
        let wakers = detail.on_stop.drain(..).map(|(_, waker)| waker);
        (ended, wakers.collect())
    }

    /// Makes the lives of others depend on this one. `false` if it is over.
    pub(crate) fn link(&self, dependents: Arc<dyn Dependents>) -> bool {
        let mut detail = self.record.detail();
        if detail.ended.is_some() || !self.is_current() {
            return false;
        }
        // A supervisor that was made for one job leaves nothing behind when that is done.
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut detail.linked)
            .into_iter()
            .partition(|other| Arc::strong_count(other) == 1 && other.are_gone());
        detail.linked = left;
        detail.linked.push(dependents);
        drop(detail);
        drop(gone);
        true
    }

    /// Takes out those whose lives depend on this one.
    pub(crate) fn unlink(&self) -> Vec<Arc<dyn Dependents>> {
        let mut detail = self.record.known_detail();
        match &mut detail {
            Some(detail) if self.is_current() => std::mem::take(&mut detail.linked),
            _ => Vec::new(),
        }
    }

    /// Adjustments that the worker was given up, in its death.
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

    /// Begins the next life: in this cell, or in another one if something is left of this life.
    /// `None` if the worker was asked to stop meanwhile. Returns the wakers of this life, whose
    /// waits are over.
    pub(crate) fn begin_next_life(
        &self,
        elsewhere: Option<&Self>,
        observed: &ObservedNow,
    ) -> Option<Vec<(u64, Waker)>> {
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

    /// What the record keeps of a life that is over, before the next one begins. `left`: others
    /// still hold its cell. Returns its wakers.
    fn close_life(&self, detail: &mut Detail, left: bool, beats: u64) -> Vec<(u64, Waker)> {
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
        detail.failed_tasks = 0;
        detail.silences.clear();
        detail.first_sample = None;
        detail.evidence = StallCause::Unknown;
        detail.threads.clear();
        detail.thread_ended = None;
        detail.marked_offline = false;
        // Those who wait for the end of this life need not wait for that of the next.
        detail.stop_latch.set(());
        detail.stop_latch = Latch::new();
        std::mem::take(&mut detail.on_stop)
    }

    /// Nothing is left of a former life: its cell becomes free.
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

    /// Leaves the cell to the next worker. It has ended before. Returns the wakers that nobody wakes
    /// any more, to be dropped where no lock is held: they belong to an executor.
    #[must_use]
    pub(crate) fn vacate(&self) -> Vec<(u64, Waker)> {
        let beats = self.cell().snapshot().map_or(0, |snapshot| snapshot.beats);
        let mut detail = self.record.detail();
        detail.returns = false;
        let forgotten = std::mem::take(&mut detail.on_stop);
        if let Some(ended) = &mut detail.ended {
            ended.late_beats = beats.saturating_sub(ended.beats);
        }
        drop(detail);
        self.record.profile.counts.beats.add(self.cell().beats());
        self.chunk.vacate(self.offset);
        forgotten
    }
}

fn death(mut cause: DeathCause, (run_id, task): TaskNames, at: SystemTime) -> Arc<Death> {
    if let DeathCause::Panicked { message: text, .. } | DeathCause::Failed { error: text } =
        &mut cause
    {
        cut(text, LONGEST_REASON);
    }
    Arc::new(Death {
        cause,
        run_id,
        task,
        at,
        gave_up_after: None,
    })
}

/// Puts a worker's new incarnation into its cell. Returns the beats of what was there before.
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
    cell.settle(life, now, schedule)
}
