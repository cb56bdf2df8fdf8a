//! A tick of the pacemaker: the cells are observed in order, and the workers that need it are judged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Ticks;
use super::abandoned::Threads;
use super::gaps::Gaps;
use crate::cell::{CellKey, Episode, Phase, Schedule, Sign};
use crate::clock::Moment;
use crate::health::{
    Activity, Health, MissingWorkers, Outlook, RateChange, Signs, StallCause, Stalled, State,
    next_change,
};
use crate::registry::core::events::{Event, EventKind};
use crate::registry::core::record::Record;
use crate::registry::core::slab::Chunk;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{Facts, WorkerRef};
use crate::registry::core::{Core, is_conviction};
use crate::sync::wakers::wake;

/// What is kept from tick to tick.
#[derive(Debug, Default)]
pub(super) struct TickState {
    threads: Threads,
    gaps: Gaps,
    /// The last tick followed a gap.
    after_gap: bool,
}

/// Events of a tick that were sent to subscribers, and not yet to the log, which may block.
type Unlogged = Vec<(Arc<Record>, Event)>;

/// Observes every worker. Returns when to tick again.
pub(super) fn tick(core: &Arc<Core>, ticks: &Ticks) -> Moment {
    let mut unlogged = Unlogged::new();
    let mut state = ticks.state.lock();
    let resolution = core.resolution();
    let (observed, forgiven) = core.timeline.tick(core.clock.now(), resolution);
    // Workers could not make progress before the first tick after a gap.
    let gap = !forgiven.is_zero();
    let resumes = gap && !state.after_gap;
    state.after_gap = gap;
    let new_triggers = core.escalations.begin_tick(resumes);
    let mut next = observed.now.after(resolution);
    for chunk in &*core.slab.chunks() {
        for (offset, cell) in chunk.cells().iter().enumerate() {
            match cell.observe(observed.now, || core.observed_now().now) {
                Sign::None => {}
                Sign::JudgeAt(due) if !new_triggers => next = next.min(due),
                Sign::JudgeAt(_) | Sign::Judge => {
                    next = next.min(examine(core, chunk, offset, &observed, &mut unlogged));
                }
            }
        }
    }
    if core.shortened.swap(false, Ordering::Relaxed) {
        next = next.min(examine_learning(core, &observed, &mut unlogged));
    }
    state.threads.check(core, observed.now, |chunk, offset| {
        next = next.min(examine(core, chunk, offset, &observed, &mut unlogged));
    });
    next = next.min(report_over_budget(core, &observed, &mut unlogged));
    let unobserved = state.gaps.note(forgiven, observed.clock);
    drop(state);
    *ticks.count.lock() += 1;
    ticks.counted.notify_all();

    if let Some(forgiven) = unobserved {
        core.emit(None, EventKind::Unobserved { forgiven });
    }
    // Before the log, which may block.
    let (due, next_timer) = core.due_timers(observed.clock);
    for waker in due {
        wake(waker);
    }
    let store_hook = core.store_hook.get();
    let next_loss = store_hook.map_or(Moment::NEVER, |hook| hook.lose_expired_leases());
    core.escalations.check_missing(core, observed.now);
    core.act_on_events();
    #[cfg(feature = "stacks")]
    core.start_reading_stacks();
    for (record, event) in unlogged {
        // The end of a worker is the last that is logged of it.
        if !record.is_over() {
            core.log(&event);
        }
    }
    if core.changed.swap(false, Ordering::AcqRel) {
        core.coarsen_resolution();
        report_missing(core, observed.now);
    }
    core.flush_log_limiter(false);
    // From the registry's time line back to the clock's.
    observed
        .clock
        .after(next.since(observed.now))
        .min(next_timer)
        .min(next_loss)
}

/// Reports workers that take longer to end than their budget. Returns when the next one may.
fn report_over_budget(core: &Core, observed: &ObservedNow, unlogged: &mut Unlogged) -> Moment {
    let (over, next) = core.draining.take_over_budget(observed.now);
    for (worker, key) in over {
        let record = worker.record;
        let asked_at = record.known_detail().and_then(|detail| detail.asked_at);
        let kind = EventKind::OverBudget {
            draining: observed.now.since(asked_at.unwrap_or(observed.now)),
            budget: record.profile.drain_within.unwrap_or_default(),
        };
        let event = core.publish_alive(&record, key, kind);
        unlogged.extend(event.map(|event| (record, event)));
    }
    next
}

/// Judges all living workers whose limits are learned. Returns when to tick again.
fn examine_learning(core: &Core, observed: &ObservedNow, unlogged: &mut Unlogged) -> Moment {
    let mut next = Moment::NEVER;
    // Most workers have the profile of the one before.
    let mut last = (None, false);
    for chunk in &*core.slab.chunks() {
        for (offset, cell) in chunk.cells().iter().enumerate() {
            let life = cell.state();
            if life.phase != Phase::Live {
                continue;
            }
            if last.0 != Some(life.profile) {
                let profile = core.profiles.get(life.profile);
                let learns = profile.is_some_and(|profile| profile.learned.is_some());
                last = (Some(life.profile), learns);
            }
            if last.1 {
                next = next.min(examine(core, chunk, offset, observed, unlogged));
            }
        }
    }
    next
}

/// Judges one worker in full, reports what is new, and schedules its next judgement. Returns the moment
/// of it, unless a regular tick will do.
fn examine(
    core: &Core,
    chunk: &Arc<Chunk<Record>>,
    offset: usize,
    observed: &ObservedNow,
    unlogged: &mut Unlogged,
) -> Moment {
    let Some(worker) = WorkerRef::at(chunk, offset) else {
        return Moment::NEVER;
    };
    let Some(snapshot) = worker.living_snapshot() else {
        chunk.unschedule(offset);
        return Moment::NEVER;
    };
    let (Facts::Living(signs), mut health) = worker.judge(observed) else {
        chunk.unschedule(offset);
        return Moment::NEVER;
    };
    let profile = &worker.record.profile;
    let pace = worker.observe_pace(&snapshot, &signs, observed);
    core.shortened.fetch_or(pace.shortened, Ordering::Relaxed);
    let outlook = next_change(&signs, &profile.limits(), observed.now);
    let before = snapshot.schedule.episode;
    let Outlook {
        late_at,
        convicted_at,
        ..
    } = outlook;
    let short = late_at <= convicted_at && convicted_at.since(late_at) < 2 * core.resolution();
    // Its allowance may change with its next progress: it can't stall while it is idle, nor be overdue.
    let has_limit = profile.thresholds.stall_after.is_some() || snapshot.work.limited;
    let turns = profile.pace.is_watched()
        || snapshot.work.quiet
        || (signs.activity == Activity::Idle && has_limit);
    let (after, due) = match health.state() {
        State::Starting => (Episode::Starting, convicted_at),
        State::NeverStarted => (Episode::NeverStarted, Moment::NEVER),
        State::Stale => (Episode::Stale, Moment::NEVER),
        State::Stalled if signs.thread_ended_at.is_some() => (Episode::Stalled, Moment::NEVER),
        State::Stalled if is_standstill(&health) => (Episode::Stalled, convicted_at),
        State::Overdue => (Episode::Overdue, convicted_at),
        State::Stalled => {
            let fresh = !matches!(before, Episode::Late | Episode::Stalled);
            let again = worker.gather_evidence(fresh).map_or(Moment::NEVER, |wait| {
                observed.now.after(wait * core.resolution())
            });
            // All but the evidence stays as it was judged, whatever the worker does by now.
            if let (Health::Stalled(stalled), Some(detail)) =
                (&mut health, worker.record.known_detail())
            {
                stalled.cause = detail.evidence.clone();
            }
            (Episode::Stalled, again)
        }
        _ if convicted_at == Moment::NEVER && turns => (Episode::Quiet, Moment::NEVER),
        _ if convicted_at == Moment::NEVER => (Episode::Well, Moment::NEVER),
        _ if observed.now >= late_at => {
            worker.gather_evidence(before != Episode::Late);
            (Episode::Late, convicted_at)
        }
        // The time between warning and conviction is so short that regular ticks may miss it.
        _ if short || turns || observed.now >= outlook.close_at => {
            (Episode::Quiet, late_at.min(convicted_at))
        }
        _ => (Episode::Well, late_at.min(outlook.close_at)),
    };
    let due = match after {
        Episode::Stalled => due,
        _ => due.min(pace.due),
    };
    let due = match signs.convicted_since(health.state(), &profile.limits()) {
        Some(since) => due.min(core.check_convicted(&worker.record, &health, since, observed.now)),
        None => due,
    };
    chunk.set_schedule(
        offset,
        snapshot.state.tag,
        Schedule {
            episode: after,
            due,
        },
    );
    let key = CellKey::new(chunk.slot(offset), snapshot.state.tag);
    let mut report = |kind| {
        let event = core.publish_alive(&worker.record, key, kind);
        unlogged.extend(event.map(|event| (Arc::clone(&worker.record), event)));
    };
    #[cfg(feature = "stacks")]
    let is_convicted = is_conviction(health.state());
    #[cfg(feature = "stacks")]
    let beats_on = health.state() == State::Overdue || is_standstill(&health);
    report_episode(
        &mut report,
        &worker,
        (before, after),
        &signs,
        health,
        observed,
    );
    match pace.rate {
        Some(RateChange::Began(rate)) => {
            let at_most = profile.pace.at_most.unwrap_or(rate);
            report(EventKind::Racing { rate, at_most });
        }
        Some(RateChange::Ended(after)) => report(EventKind::Slowed { after }),
        None => {}
    }
    // Again while it is stalled: the first attempt may have found the thread running.
    #[cfg(feature = "stacks")]
    if is_convicted {
        core.want_stack(&worker, beats_on);
    }
    if after == Episode::Well {
        Moment::NEVER
    } else {
        due
    }
}

/// Reports the beginning and the end of an episode, each once.
fn report_episode(
    report: &mut impl FnMut(EventKind),
    worker: &WorkerRef,
    (before, after): (Episode, Episode),
    signs: &Signs,
    health: Health,
    observed: &ObservedNow,
) {
    if before == Episode::Starting && signs.progress_at.is_some() {
        report(EventKind::Started);
    }
    if before == after {
        return;
    }
    let was_convicted = convicted_as(before);
    let limits = &worker.record.profile.limits();
    if is_conviction(health.state()) {
        let since = signs.lasts_since(health.state(), limits, observed.now);
        let mut detail = worker.record.detail();
        if was_convicted.is_some() && detail.unwell_since != since {
            // What it did before it went from one fault to another.
            detail.stack = None;
        }
        detail.unwell_since = since;
        drop(detail);
        report(EventKind::Became(health));
    } else if let Some(from) = was_convicted {
        let mut detail = worker.record.detail();
        let after = observed.now.since(detail.unwell_since);
        detail.evidence = StallCause::Unknown;
        detail.stack = None;
        detail.marked_offline = false;
        drop(detail);
        worker.go_on_without_thread();
        report(EventKind::Recovered { from, after });
    } else if after == Episode::Late {
        let since = signs.silent_since();
        report(EventKind::Late {
            silent: observed.now.since(since),
            allowance: signs.silence_limit(limits).since(since),
        });
    }
}

const fn is_standstill(health: &Health) -> bool {
    matches!(
        health,
        Health::Stalled(Stalled {
            cause: StallCause::Standstill { .. },
            ..
        })
    )
}

const fn convicted_as(episode: Episode) -> Option<State> {
    match episode {
        Episode::NeverStarted => Some(State::NeverStarted),
        Episode::Stalled => Some(State::Stalled),
        Episode::Stale => Some(State::Stale),
        Episode::Overdue => Some(State::Overdue),
        Episode::Well | Episode::Starting | Episode::Late | Episode::Quiet => None,
    }
}

/// Reports the types that have fewer living workers than expected, and those that have enough again.
fn report_missing(core: &Core, now: Moment) {
    // Workers that were asked to stop are not missing.
    if core.expected.lock().is_empty() || core.stopping.load(Ordering::Acquire) {
        return;
    }
    let living = core.living_by_type();
    let mut events = Vec::new();
    for (worker_type, expectation) in &mut *core.expected.lock() {
        let living = living.get(worker_type).copied().unwrap_or(0);
        let missing = living < expectation.count;
        if missing != expectation.missing_since.is_some() {
            expectation.missing_since = missing.then_some(now);
            let worker_type = worker_type.clone();
            events.push(if missing {
                let expected = expectation.count;
                EventKind::Missing(MissingWorkers::new(worker_type, expected, living))
            } else {
                EventKind::Complete { worker_type }
            });
        }
    }
    for kind in events {
        core.emit(None, kind);
    }
}
