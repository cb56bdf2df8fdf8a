//! What is known of a worker at one moment, and the verdict on it.

use std::time::Duration;

use super::WorkerRef;
use crate::cell::CellSnapshot;
use crate::clock::Moment;
use crate::health::{
    Context, Ending, Fault, FutureInfo, Health, Limits, Signs, StallCause, State, judge_living,
    verdict, vouched,
};
use crate::registry::core::record::{Adjustments, Detail, Ended};
use crate::registry::core::timeline::ObservedNow;

/// What the verdict on a worker depends on.
#[derive(Clone, Debug)]
pub(crate) enum Facts {
    Living(Signs),
    Over {
        ending: Ending,
        ago: Duration,
        heartbeat_at: Option<Moment>,
    },
}

impl Facts {
    pub(super) fn over(ended: &Ended, observed: &ObservedNow) -> Self {
        let ago = observed.clock.since(ended.at);
        let before_now = |age| observed.now.before(ago.saturating_add(age));
        Self::Over {
            ending: ended.ending.clone(),
            ago,
            heartbeat_at: ended.heartbeat_age.map(before_now),
        }
    }

    pub(crate) const fn heartbeat_at(&self) -> Option<Moment> {
        match self {
            Self::Living(signs) => signs.heartbeat_at,
            Self::Over { heartbeat_at, .. } => *heartbeat_at,
        }
    }

    /// What is known of its future, if it is one. `detail`: that of the same moment and life.
    pub(crate) fn future(
        &self,
        limits: &Limits,
        now: Moment,
        detail: &Detail,
    ) -> Option<FutureInfo> {
        let polls = detail.polls.as_ref()?;
        Some(match self {
            Self::Living(_) if limits.beats_only => polls.info(Some(now), None),
            Self::Living(signs) => polls.info(Some(now), signs.progress_at),
            Self::Over { .. } => polls.info(None, None),
        })
    }

    /// The verdict. `detail`: that of the same moment, for the context of a stall.
    pub(crate) fn judge(&self, limits: &Limits, now: Moment, detail: Option<&Detail>) -> Health {
        match self {
            Self::Living(signs) => judge_living(signs, limits, now, |fault| {
                let Some(detail) = detail else {
                    return Context {
                        cause: StallCause::Unknown,
                        last_location: None,
                        future: None,
                        stack: None,
                        run_id: None,
                        task: None,
                    };
                };
                let tasks = &detail.tasks;
                let (run_id, task) = match fault {
                    Fault::Overdue { task } => tasks.names_at(task),
                    Fault::Silent | Fault::Standstill => tasks.names(),
                };
                Context {
                    cause: match (fault, tasks.progress()) {
                        (Fault::Standstill, Some((done, total))) => {
                            StallCause::Standstill { done, total }
                        }
                        _ => detail.evidence.clone(),
                    },
                    last_location: detail.last_location(),
                    future: self.future(limits, now, detail).map(Box::new),
                    stack: detail.stack_capture(),
                    run_id,
                    task,
                }
            }),
            Self::Over { ending, ago, .. } => Health::ended(ending, *ago),
        }
    }
}

impl WorkerRef {
    /// What is known of the worker now.
    #[inline]
    pub(crate) fn facts(&self, observed: &ObservedNow) -> Facts {
        loop {
            if let Some(snapshot) = self.living_snapshot() {
                if snapshot.work.limited && !snapshot.is_plain() {
                    // A task and its time in the cell are of one moment under the lock only.
                    return self.read_all(observed, |facts, _, _| facts);
                }
                let limits = &self.record.profile.limits();
                let adjustments = if snapshot.is_plain() {
                    None
                } else {
                    let detail = self.record.known_detail();
                    detail.map(|detail| detail.adjustments(&snapshot, limits))
                };
                return self.living(&snapshot, observed, &adjustments.unwrap_or_default());
            }
            if let Some(detail) = self.record.known_detail() {
                if let Some(ended) = self.ended(&detail) {
                    return Facts::over(ended, observed);
                }
            }
            if !self.is_current() {
                // The life that was in this cell has left nothing.
                return self.current().facts(observed);
            }
            // It is being registered, restarted or ended right now.
            std::hint::spin_loop();
        }
    }

    fn living(
        &self,
        snapshot: &CellSnapshot,
        observed: &ObservedNow,
        adjustments: &Adjustments,
    ) -> Facts {
        let limits = &self.record.profile.limits();
        Facts::Living(signs(snapshot, limits, observed, adjustments))
    }

    /// The state of a worker whose cell alone decides it.
    #[inline]
    pub(crate) fn plain_state(&self, observed: &ObservedNow) -> Option<State> {
        let snapshot = self.living_snapshot().filter(CellSnapshot::is_plain)?;
        let limits = &self.record.profile.limits();
        let signs = signs(&snapshot, limits, observed, &Adjustments::default());
        Some(verdict(&signs, limits, observed.now))
    }

    pub(crate) fn health(&self, observed: &ObservedNow) -> Health {
        self.judge(observed).1
    }

    /// The verdict, and the facts that it was given on. A stall has its evidence, and it and an overdue
    /// task have their run and task.
    pub(crate) fn judge(&self, observed: &ObservedNow) -> (Facts, Health) {
        let limits = &self.record.profile.limits();
        let facts = self.facts(observed);
        let health = facts.judge(limits, observed.now, None);
        if !matches!(health, Health::Stalled(_) | Health::Overdue { .. }) {
            return (facts, health);
        }
        // The worker may be beginning its next task, which is not the one that stalled. So all of it
        // is read again, at one moment.
        self.read_all(observed, |facts, _, detail| {
            let health = facts.judge(limits, observed.now, detail);
            (facts, health)
        })
    }

    /// The facts, the snapshot (`None` if the worker is over) and the detail (if there is any) of one
    /// moment.
    pub(crate) fn read_all<T>(
        &self,
        observed: &ObservedNow,
        read: impl FnOnce(Facts, Option<&CellSnapshot>, Option<&Detail>) -> T,
    ) -> T {
        loop {
            // Tasks and ends are written under this lock, so what is read under it fits together.
            let detail = self.record.known_detail();
            if let Some(ended) = detail.as_ref().and_then(|detail| self.ended(detail)) {
                return read(Facts::over(ended, observed), None, detail.as_deref());
            }
            if !self.is_current() {
                drop(detail);
                return self.current().read_all(observed, read);
            }
            if let Some(snapshot) = self.living_snapshot() {
                if detail.is_none() && self.record.has_detail() {
                    // It was made after the check, and the snapshot may depend on it.
                    continue;
                }
                let limits = &self.record.profile.limits();
                let adjustments = detail
                    .as_ref()
                    .map(|detail| detail.adjustments(&snapshot, limits));
                let facts = self.living(&snapshot, observed, &adjustments.unwrap_or_default());
                return read(facts, Some(&snapshot), detail.as_deref());
            }
            drop(detail);
            std::hint::spin_loop();
        }
    }
}

/// The signs in a snapshot of a living worker's cell.
#[inline(always)]
pub(crate) fn signs(
    snapshot: &CellSnapshot,
    limits: &Limits,
    observed: &ObservedNow,
    adjustments: &Adjustments,
) -> Signs {
    let mut signs = Signs {
        activity: snapshot.work.activity,
        stop_requested: snapshot.state.stop_requested,
        unwatched: observed.unwatched,
        started_at: snapshot.progress_at,
        // A reader observes too: a worker that moved since the last tick is well now.
        progress_at: snapshot.beaten.then_some(if snapshot.moved {
            observed.now
        } else {
            snapshot.progress_at
        }),
        heartbeat_at: None,
        quiet_until: adjustments.quiet_until,
        thread_ended_at: adjustments.thread_ended_at,
        deadline: adjustments.deadline,
        headway: adjustments.headway,
    };
    signs.heartbeat_at = vouched(&signs, limits, observed.tick);
    signs
}
