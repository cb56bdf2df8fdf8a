//! The function that judges.

use std::time::Duration;

use super::{
    Activity, FutureInfo, Health, Limits, Reading, Signs, SourceLocation, StackCapture, StallCause,
    Stalled, State, Thresholds,
};
use crate::clock::Moment;

/// What a worker is convicted of that has a task, for the search of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not beat.
    Silent,
    /// It beats, and its progress stands still.
    Standstill,
    /// The task with this position takes too long: see [`Deadline`](super::Deadline).
    Overdue { task: usize },
}

/// What a convicted worker was doing.
#[derive(Debug)]
pub(crate) struct Context {
    /// Of a stall.
    pub cause: StallCause,
    pub last_location: Option<SourceLocation>,
    pub future: Option<Box<FutureInfo>>,
    pub stack: Option<StackCapture>,
    pub run_id: Option<String>,
    pub task: Option<String>,
}

/// Judges a worker: the only place where that is done.
///
/// Pure: the same reading, thresholds and moment give the same verdict. Limits are inclusive: a
/// worker is convicted when it is silent for *longer* than allowed.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Moment, Reading, State, Thresholds, judge};
///
/// let mut thresholds = Thresholds::new(Duration::from_secs(90));
/// thresholds.stall_after = Some(Duration::from_secs(5));
/// let mut reading = Reading::new(Moment::ZERO);
/// reading.progress_at = Some(Moment::ZERO);
/// reading.heartbeat_at = Some(Moment::ZERO);
///
/// let limit = Moment::ZERO.after(Duration::from_secs(5));
/// assert_eq!(judge(&reading, &thresholds, limit).state(), State::Active);
/// let later = limit.after(Duration::from_nanos(1));
/// assert_eq!(judge(&reading, &thresholds, later).state(), State::Stalled);
/// ```
#[must_use]
pub fn judge(reading: &Reading, thresholds: &Thresholds, now: Moment) -> Health {
    if let Some((ending, ago)) = &reading.ending {
        return Health::ended(ending, *ago);
    }
    let limits = Limits::from(thresholds);
    judge_living(&reading.signs(&limits), &limits, now, |fault| Context {
        cause: match (fault, reading.progress) {
            (Fault::Standstill, Some((done, total))) => StallCause::Standstill { done, total },
            _ => reading.evidence.clone(),
        },
        last_location: reading.last_location.clone(),
        future: reading.future.clone(),
        stack: reading.stack.clone(),
        run_id: reading.run_id.clone(),
        task: reading.task.clone(),
    })
}

/// [`judge`] for a worker that lives. `context` is called for a [`Fault`] only.
#[inline]
pub(crate) fn judge_living(
    signs: &Signs,
    limits: &Limits,
    now: Moment,
    context: impl FnOnce(Fault) -> Context,
) -> Health {
    let waited = now.since(signs.started_at);
    let grace = Duration::from_nanos(limits.startup_grace);
    match verdict(signs, limits, now) {
        State::Starting => Health::Starting { waited, grace },
        State::NeverStarted => Health::NeverStarted { waited, grace },
        State::Stalled => {
            let (fault, limit) = if signs.is_silent(limits, now) {
                (Fault::Silent, signs.silence_ends_at(limits))
            } else {
                (Fault::Standstill, signs.standstill_ends_at())
            };
            let Context {
                mut cause,
                last_location,
                future,
                stack,
                run_id,
                task,
            } = context(fault);
            let since = signs.lasts_since(State::Stalled, limits, now);
            let mut allowance = limit.since(since);
            if signs.is_abandoned() {
                (cause, allowance) = (StallCause::ThreadEnded, Duration::ZERO);
            }
            Health::Stalled(Stalled {
                cause,
                silent: now.since(since),
                allowance,
                last_location,
                future,
                stack,
                run_id,
                task,
            })
        }
        State::Overdue => {
            // Without a deadline, the verdict is another one.
            let task = signs.deadline.map_or(0, |deadline| deadline.task);
            let Context {
                last_location,
                run_id,
                task,
                ..
            } = context(Fault::Overdue { task });
            let since = signs.lasts_since(State::Overdue, limits, now);
            Health::Overdue {
                task_age: now.since(since),
                allowance: signs.overdue_at().since(since),
                last_location,
                run_id,
                task,
            }
        }
        State::Stale => Health::Stale {
            age: now.since(signs.heartbeat_at.unwrap_or(now)),
            stale_after: Duration::from_nanos(limits.stale_after),
        },
        State::Stopping => Health::Stopping,
        State::Active => Health::Active,
        State::Idle => Health::Idle,
        State::Processing => Health::Processing,
        // `verdict` gives no terminal state.
        State::Unobserved | State::Stopped | State::Dead => Health::Unobserved {
            unwatched: signs.unwatched.unwrap_or_default(),
        },
    }
}

/// The state of a worker that lives, without its reason: a few nanoseconds.
#[inline(always)]
pub(crate) fn verdict(signs: &Signs, limits: &Limits, now: Moment) -> State {
    if signs.unwatched.is_some() {
        return State::Unobserved;
    }
    if signs.is_abandoned() {
        return State::Stalled;
    }
    if signs.progress_at.is_none() {
        return if now > signs.started_at.after_nanos(limits.startup_grace) {
            State::NeverStarted
        } else {
            State::Starting
        };
    }
    if now > signs.stalls_at(limits) {
        return State::Stalled;
    }
    if now > signs.stales_at(limits) {
        return State::Stale;
    }
    if now > signs.overdue_at() {
        return State::Overdue;
    }
    if signs.stop_requested {
        return State::Stopping;
    }
    match signs.activity {
        Activity::Active => State::Active,
        Activity::Idle => State::Idle,
        Activity::Processing => State::Processing,
    }
}

/// The heartbeat of a worker that its pacemaker vouches for: the last tick, the end of its allowance or
/// the end of its thread, whichever is first.
#[inline(always)]
pub(crate) fn vouched(signs: &Signs, limits: &Limits, tick: Moment) -> Option<Moment> {
    let progress_at = signs.progress_at?;
    let vouched_until = if limits.beats_only {
        Moment::ZERO
    } else {
        let limit = signs.thread_ended_at.unwrap_or(Moment::NEVER);
        tick.min(signs.stalls_at(limits)).min(limit)
    };
    Some(vouched_until.max(progress_at))
}

/// When the verdict on a worker changes if it makes no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outlook {
    /// When to warn: at three quarters of its allowance for silence.
    pub late_at: Moment,
    /// From this moment on, it is judged at exact times: its task has a limit that ends soon.
    pub close_at: Moment,
    /// The first moment at which it is convicted.
    pub convicted_at: Moment,
}

/// How long before the end of a task's limit a worker is looked at closely: longer than from one tick
/// to the next.
const CLOSE: Duration = Duration::from_secs(2);

/// When to judge a silent worker again.
pub(crate) fn next_change(signs: &Signs, limits: &Limits, now: Moment) -> Outlook {
    let (late_at, limit) = match signs.progress_at {
        // The grace itself is the warning.
        None => {
            let limit = signs.started_at.after_nanos(limits.startup_grace);
            (Moment::NEVER, limit)
        }
        Some(progress_at) => {
            let mut limit = signs.silence_limit(limits);
            if limit.as_nanos() >= Limits::ENDLESS {
                limit = Moment::NEVER;
            }
            (progress_at.after(limit.since(progress_at) / 4 * 3), limit)
        }
    };
    let ends = [signs.standstill_ends_at(), signs.overdue_at()];
    // What has ended has changed the verdict already.
    let ends = ends.into_iter().filter(|end| now <= *end).min();
    let task_ends = ends.unwrap_or(Moment::NEVER);
    Outlook {
        late_at: if limit == Moment::NEVER {
            Moment::NEVER
        } else {
            late_at
        },
        close_at: if task_ends == Moment::NEVER {
            Moment::NEVER
        } else {
            task_ends.before(CLOSE)
        },
        convicted_at: limit.min(task_ends).after_nanos(1),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::health::{Death, DeathCause, Ending, StopCause};
    use std::sync::Arc;
    use std::time::SystemTime;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Moment {
        Moment::ZERO.after(SECOND * seconds)
    }

    fn thresholds() -> Thresholds {
        Thresholds {
            stale_after: 90 * SECOND,
            stall_after: Some(300 * SECOND),
            startup_grace: 60 * SECOND,
            ..Thresholds::new(90 * SECOND)
        }
    }

    fn beaten(progress: u32, heartbeat: u32) -> Reading {
        Reading {
            progress_at: Some(at(progress)),
            heartbeat_at: Some(at(heartbeat)),
            ..Reading::new(Moment::ZERO)
        }
    }

    fn state(reading: &Reading, now: Moment) -> State {
        judge(reading, &thresholds(), now).state()
    }

    fn outlook(reading: &Reading, thresholds: &Thresholds) -> Outlook {
        let limits = Limits::from(thresholds);
        next_change(&reading.signs(&limits), &limits, Moment::ZERO)
    }

    fn heartbeat(reading: &Reading, thresholds: &Thresholds, tick: Moment) -> Option<Moment> {
        let limits = Limits::from(thresholds);
        vouched(&reading.signs(&limits), &limits, tick)
    }

    fn just_after(moment: Moment) -> Moment {
        moment.after(Duration::from_nanos(1))
    }

    #[test]
    fn each_limit_is_inclusive() {
        let fresh = Reading::new(Moment::ZERO);
        assert_eq!(state(&fresh, at(60)), State::Starting);
        assert_eq!(state(&fresh, just_after(at(60))), State::NeverStarted);

        let stalling = beaten(10, 310);
        assert_eq!(state(&stalling, at(310)), State::Active);
        assert_eq!(state(&stalling, just_after(at(310))), State::Stalled);

        let stale = Reading {
            activity: Activity::Idle,
            ..beaten(10, 10)
        };
        assert_eq!(state(&stale, at(100)), State::Idle);
        assert_eq!(state(&stale, just_after(at(100))), State::Stale);
    }

    #[test]
    fn the_warning_comes_at_three_quarters_of_the_allowance() {
        let next_change = |reading: &Reading| outlook(reading, &thresholds());
        let outlook = next_change(&beaten(10, 10));
        assert_eq!(outlook.late_at, at(10 + 225));
        assert_eq!(outlook.convicted_at, just_after(at(310)));
        let unstarted = next_change(&Reading::new(at(10)));
        assert_eq!(unstarted.late_at, Moment::NEVER, "its grace is its warning");
        assert_eq!(unstarted.convicted_at, just_after(at(70)));
    }

    #[test]
    fn the_order_of_reasons() {
        let mut reading = beaten(0, 0);
        let long_after = at(10_000);
        assert_eq!(
            state(&reading, long_after),
            State::Stalled,
            "a stall says more than a stale heartbeat"
        );
        reading.stop_requested = true;
        assert_eq!(
            state(&reading, long_after),
            State::Stalled,
            "a worker that hangs while it drains is reported"
        );
        reading.unwatched = Some(SECOND);
        assert_eq!(state(&reading, long_after), State::Unobserved);
        reading.ending = Some((Ending::Stopped(StopCause::Stop), SECOND));
        assert_eq!(state(&reading, long_after), State::Stopped);
        reading.ending = Some((
            Ending::Dead(Arc::new(Death {
                cause: DeathCause::Exited,
                last_location: None,
                run_id: None,
                task: None,
                at: SystemTime::UNIX_EPOCH,
                gave_up_after: None,
                unheard_for: None,
            })),
            SECOND,
        ));
        assert_eq!(state(&reading, long_after), State::Dead);
    }

    #[test]
    fn a_worker_asked_to_stop_is_stopping_once_it_has_started() {
        let mut reading = beaten(1, 1);
        reading.stop_requested = true;
        assert_eq!(state(&reading, at(2)), State::Stopping);
        reading.progress_at = None;
        assert_eq!(
            state(&reading, at(2)),
            State::Starting,
            "without a heartbeat nothing is recent"
        );
    }

    #[test]
    fn an_idle_worker_does_not_stall() {
        let idle = Reading {
            activity: Activity::Idle,
            ..beaten(0, 9_999)
        };
        assert_eq!(state(&idle, at(10_000)), State::Idle);
    }

    #[test]
    fn an_announced_silence_extends_and_ends() {
        let mut reading = beaten(0, 600);
        reading.quiet_until = Some(at(600));
        assert_eq!(state(&reading, at(600)), State::Active);
        let Health::Stalled(stalled) = judge(&reading, &thresholds(), at(601)) else {
            panic!("it expires");
        };
        assert_eq!(stalled.allowance, 600 * SECOND);
        reading.quiet_until = Some(at(10));
        assert_eq!(
            state(&reading, at(300)),
            State::Active,
            "a short silence never shortens the allowance"
        );
    }

    #[test]
    fn the_pacemaker_vouches_until_the_allowance_runs_out() {
        let reading = beaten(10, 0);
        let vouch = |tick| heartbeat(&reading, &thresholds(), at(tick));
        assert_eq!(vouch(5), Some(at(10)), "own progress counts at once");
        assert_eq!(vouch(100), Some(at(100)));
        assert_eq!(vouch(1_000), Some(at(310)));
        let alone = Thresholds {
            beats_only: true,
            ..thresholds()
        };
        assert_eq!(heartbeat(&reading, &alone, at(100)), Some(at(10)));
        assert_eq!(
            heartbeat(&Reading::new(Moment::ZERO), &thresholds(), at(5)),
            None,
            "no vouching before the first beat"
        );
    }

    #[test]
    fn the_outlook_is_where_the_verdict_changes() {
        let readings = [
            Reading::new(at(3)),
            beaten(10, 10),
            Reading {
                quiet_until: Some(at(777)),
                ..beaten(10, 10)
            },
        ];
        for beats_only in [false, true] {
            let thresholds = Thresholds {
                beats_only,
                ..thresholds()
            };
            for reading in &readings {
                let mut reading = reading.clone();
                let outlook = outlook(&reading, &thresholds);
                assert!(outlook.late_at == Moment::NEVER || outlook.late_at < outlook.convicted_at);
                let verdict = |reading: &mut Reading, now| {
                    reading.heartbeat_at = heartbeat(reading, &thresholds, now);
                    judge(reading, &thresholds, now).state()
                };
                let before = verdict(
                    &mut reading,
                    outlook.convicted_at.before(Duration::from_nanos(1)),
                );
                let after = verdict(&mut reading, outlook.convicted_at);
                assert!(!before.is_offline() && before != State::Stalled, "{before}");
                assert!(after.is_offline() || after == State::Stalled, "{after}");
            }
        }
    }
}
