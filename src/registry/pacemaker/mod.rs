//! The one background thread of a registry: it observes every worker, vouches for the well ones,
//! convicts the others, and forgives the time in which it could not look.

mod abandoned;
mod gaps;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::cell::{CellKey, Episode, Schedule, Sign};
use abandoned::Threads;
use gaps::Gaps;

use crate::clock::{Alarm, Moment, Patience, Sleeper};
use crate::error::Error;
use crate::health::{
    Activity, Health, MissingWorkers, Reading, StallCause, State, judge, next_change,
};
use crate::registry::core::events::{Event, EventKind};
use crate::registry::core::record::Record;
use crate::registry::core::slab::Chunk;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{WorkerRef, wake};
use crate::registry::core::{Core, is_conviction};
use crate::sync::background::Background;
use crate::sync::catch::catch;

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-pacemaker";
/// How long the last handle's drop waits for a pacemaker that is held up, by a log implementation
/// that blocks for instance, before it leaves it behind.
const JOIN_PATIENCE: Duration = Duration::from_secs(1);

/// The pacemaker of one registry, as its handles own it: it runs while there is one. A registry in
/// which workers are expected counts as one.
#[derive(Debug, Default)]
pub(crate) struct Pacemaker {
    crew: Mutex<Crew>,
    pulse: Arc<Pulse>,
}

#[derive(Debug, Default)]
struct Crew {
    handles: usize,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    alarm: Alarm,
    stop: Arc<AtomicBool>,
    thread: Background,
}

/// What those who wait for a tick, or for its end, look at.
#[derive(Debug, Default)]
struct Pulse {
    beat: Mutex<Beat>,
    felt: Condvar,
    /// One tick at a time, even while one pacemaker takes over from another.
    tick: Mutex<Looks>,
}

/// What is remembered from tick to tick.
#[derive(Debug, Default)]
struct Looks {
    threads: Threads,
    gaps: Gaps,
}

#[derive(Debug, Default)]
struct Beat {
    ticks: u64,
}

impl Pacemaker {
    /// One more handle. The first one starts the thread.
    pub(crate) fn join(&self, core: &Arc<Core>) -> Result<(), Error> {
        let mut crew = self.crew.lock();
        if crew.running.is_none() {
            crew.running = Some(start(core, &self.pulse)?);
        }
        crew.handles += 1;
        Ok(())
    }

    /// One handle less. The last one ends the thread and waits for it. Returns how many are left.
    pub(crate) fn leave(&self) -> usize {
        let mut crew = self.crew.lock();
        crew.handles = crew.handles.saturating_sub(1);
        if crew.handles > 0 {
            return crew.handles;
        }
        self.dismiss(crew);
        0
    }

    fn dismiss(&self, mut crew: MutexGuard<'_, Crew>) {
        let Some(running) = crew.running.take() else {
            return;
        };
        running.stop.store(true, Ordering::Release);
        running.alarm.ring();
        drop(crew);
        // If a log implementation drops the last handle, on this thread, the thread ends by itself.
        running.thread.join_within(&Patience::new(JOIN_PATIENCE));
    }

    /// Whether there is one: somebody who could look.
    pub(crate) fn is_running(&self) -> bool {
        self.crew.lock().running.is_some()
    }

    /// Makes the pacemaker look now.
    pub(crate) fn ring(&self) {
        if let Some(running) = &self.crew.lock().running {
            running.alarm.ring();
        }
    }

    /// Makes the pacemaker look now, and waits for it for at most `patience`. Returns whether it
    /// did; `true` as well if there is none, since there is nobody to look at.
    pub(crate) fn await_tick(&self, patience: Duration) -> bool {
        let ticks = self.pulse.beat.lock().ticks;
        {
            let crew = self.crew.lock();
            let Some(running) = &crew.running else {
                return true;
            };
            if running.thread.is_current() {
                return false;
            }
            running.alarm.ring();
        }
        let deadline = Instant::now() + patience;
        let mut beat = self.pulse.beat.lock();
        while beat.ticks == ticks {
            if self.pulse.felt.wait_until(&mut beat, deadline).timed_out() {
                return beat.ticks != ticks;
            }
        }
        true
    }
}

fn start(core: &Arc<Core>, pulse: &Arc<Pulse>) -> Result<Running, Error> {
    // Nobody was there to be charged for the time before. If a predecessor is still at its last
    // tick, that one has marked the time.
    if let Some(_ticking) = pulse.tick.try_lock() {
        core.timeline.tick(core.clock.now(), core.resolution());
    }
    // Made here, so that a mock clock waits for the first tick of a thread that is about to start.
    let sleeper = Sleeper::new(&core.clock);
    let alarm = sleeper.alarm();
    let stop = Arc::new(AtomicBool::new(false));
    let (core, pulse, ordered) = (Arc::clone(core), Arc::clone(pulse), Arc::clone(&stop));
    let thread = Background::start(THREAD_NAME, move || {
        let mut next = core.clock.now().after(core.resolution());
        loop {
            sleeper.sleep_until(next);
            if ordered.load(Ordering::Acquire) {
                break;
            }
            let lateness = core.clock.now().since(next);
            core.counts.note_tick(lateness, core.resolution());
            let ticked = catch(|| tick(&core, &pulse));
            next = ticked.unwrap_or_else(|_| core.clock.now().after(core.resolution()));
        }
        // Every panic of a log implementation is contained.
        core.flush_log_limiter(true);
    })?;
    Ok(Running {
        alarm,
        stop,
        thread,
    })
}

/// What subscribers have been told in a tick, and the log, which may block, has not.
type Unlogged = Vec<(Arc<Record>, Event)>;

/// One look at every worker. Returns when to look again.
fn tick(core: &Core, pulse: &Pulse) -> Moment {
    let mut unlogged = Unlogged::new();
    let mut ticking = pulse.tick.lock();
    let resolution = core.resolution();
    let (observed, forgiven) = core.timeline.tick(core.clock.now(), resolution);
    let mut next = observed.now.after(resolution);
    for chunk in &*core.slab.chunks() {
        for (offset, cell) in chunk.cells().iter().enumerate() {
            match cell.observe(observed.now, || core.observed_now().now) {
                Sign::None => {}
                Sign::JudgeAt(due) => next = next.min(due),
                Sign::Judge => {
                    next = next.min(examine(core, chunk, offset, &observed, &mut unlogged));
                }
            }
        }
    }
    ticking.threads.look(core, observed.now, |chunk, offset| {
        next = next.min(examine(core, chunk, offset, &observed, &mut unlogged));
    });
    let unobserved = ticking.gaps.note(forgiven, observed.clock);
    drop(ticking);
    pulse.beat.lock().ticks += 1;
    pulse.felt.notify_all();

    if let Some(forgiven) = unobserved {
        core.emit(None, EventKind::Unobserved { forgiven });
    }
    // Before the log, which may block.
    let (due, next_timer) = core.due_timers(observed.clock);
    for waker in due {
        wake(waker);
    }
    for (record, event) in unlogged {
        // The log tells of an end as the last thing.
        if !record.is_over() {
            core.log(&event);
        }
    }
    if core.changed.swap(false, Ordering::AcqRel) {
        core.coarsen_resolution();
        tell_missing(core);
    }
    core.flush_log_limiter(false);
    // From the registry's time line back to the clock's.
    observed
        .clock
        .after(next.since(observed.now))
        .min(next_timer)
}

/// Judges one worker in full, tells what is new, and decides when to look at it again. Returns
/// when that must not be missed.
fn examine(
    core: &Core,
    chunk: &Arc<Chunk<Record>>,
    offset: usize,
    observed: &ObservedNow,
    unlogged: &mut Unlogged,
) -> Moment {
    let Some(record) = chunk.occupant(offset) else {
        return Moment::NEVER;
    };
    let worker = WorkerRef {
        chunk: Arc::clone(chunk),
        offset,
        record,
    };
    let Some(snapshot) = worker.living_snapshot() else {
        chunk.unschedule(offset);
        return Moment::NEVER;
    };
    let mut reading = worker.reading(observed);
    let mut health = worker.judge(&mut reading, observed);
    let thresholds = &worker.record.profile.thresholds;
    let outlook = next_change(&reading, thresholds);
    let before = snapshot.schedule.episode;
    let short = outlook.convicted_at.since(outlook.late_at) < 2 * core.resolution();
    // With its next sign its allowance may change: at rest it cannot stall, at work it can.
    let turns = snapshot.work.quiet
        || (reading.activity == Activity::Idle && thresholds.stall_after.is_some());
    let (after, due) = match health.state() {
        State::Starting => (Episode::Starting, outlook.convicted_at),
        State::NeverStarted => (Episode::NeverStarted, Moment::NEVER),
        State::Stale => (Episode::Stale, Moment::NEVER),
        State::Stalled if reading.thread_ended_at.is_some() => (Episode::Stalled, Moment::NEVER),
        State::Stalled => {
            let fresh = !matches!(before, Episode::Late | Episode::Stalled);
            let again = worker.gather_evidence(fresh).map_or(Moment::NEVER, |wait| {
                observed.now.after(wait * core.resolution())
            });
            // With the evidence; the rest stays as it was judged, whatever the worker does by now.
            if let Some(detail) = worker.record.known_detail() {
                reading.evidence = detail.evidence.clone();
            }
            health = judge(&reading, thresholds, observed.now);
            (Episode::Stalled, again)
        }
        _ if health.state().is_terminal() => (Episode::Well, Moment::NEVER),
        _ if outlook.convicted_at == Moment::NEVER && turns => (Episode::Quiet, Moment::NEVER),
        _ if outlook.convicted_at == Moment::NEVER => (Episode::Well, Moment::NEVER),
        _ if observed.now >= outlook.late_at => {
            worker.gather_evidence(before != Episode::Late);
            (Episode::Late, outlook.convicted_at)
        }
        // So little time is between warning and conviction that the regular ticks may miss it.
        _ if short || turns => (Episode::Quiet, outlook.late_at),
        _ => (Episode::Well, outlook.late_at),
    };
    chunk.set_schedule(
        offset,
        snapshot.state.tag,
        Schedule {
            episode: after,
            due,
        },
    );
    let place = CellKey::new(chunk.slot(offset), snapshot.state.tag);
    let mut tell = |kind| {
        let event = core.publish_alive(&worker.record, place, kind);
        unlogged.extend(event.map(|event| (Arc::clone(&worker.record), event)));
    };
    tell_episode(
        &mut tell,
        &worker,
        (before, after),
        &reading,
        health,
        observed,
    );
    if after == Episode::Well {
        Moment::NEVER
    } else {
        due
    }
}

/// Tells the beginning and the end of an episode, each once.
fn tell_episode(
    tell: &mut impl FnMut(EventKind),
    worker: &WorkerRef,
    (before, after): (Episode, Episode),
    reading: &Reading,
    health: Health,
    observed: &ObservedNow,
) {
    if before == Episode::Starting && reading.progress_at.is_some() {
        tell(EventKind::Started);
    }
    if before == after {
        return;
    }
    let was_convicted = convicted_as(before);
    let silent_since = reading.progress_at.unwrap_or(reading.started_at);
    if is_conviction(health.state()) {
        worker.record.detail().silent_since = silent_since;
        tell(EventKind::Became(health));
    } else if let Some(from) = was_convicted {
        let mut detail = worker.record.detail();
        let after = observed.now.since(detail.silent_since);
        detail.evidence = StallCause::Unknown;
        detail.marked_offline = false;
        drop(detail);
        worker.go_on_without_thread();
        tell(EventKind::Recovered { from, after });
    } else if after == Episode::Late {
        let limits = next_change(reading, &worker.record.profile.thresholds);
        tell(EventKind::Late {
            silent: observed.now.since(silent_since),
            allowance: limits.convicted_at.since(silent_since),
        });
    }
}

const fn convicted_as(episode: Episode) -> Option<State> {
    match episode {
        Episode::NeverStarted => Some(State::NeverStarted),
        Episode::Stalled => Some(State::Stalled),
        Episode::Stale => Some(State::Stale),
        Episode::Well | Episode::Starting | Episode::Late | Episode::Quiet => None,
    }
}

/// Tells which types have fewer living workers than expected, and which have enough again.
fn tell_missing(core: &Core) {
    // Workers that were asked to stop are not missed.
    if core.expected.lock().is_empty() || core.stopping.load(Ordering::Acquire) {
        return;
    }
    let living = core.living_by_type();
    let mut news = Vec::new();
    for (worker_type, expectation) in &mut *core.expected.lock() {
        let living = living.get(worker_type).copied().unwrap_or(0);
        let missing = living < expectation.count;
        if missing != expectation.missing_reported {
            expectation.missing_reported = missing;
            let worker_type = worker_type.clone();
            news.push(if missing {
                let expected = expectation.count;
                EventKind::Missing(MissingWorkers::new(worker_type, expected, living))
            } else {
                EventKind::Complete { worker_type }
            });
        }
    }
    for kind in news {
        core.emit(None, kind);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn who_waits_for_a_tick_waits_no_longer_than_that() {
        let (core, pacemaker) = (Arc::new(Core::new(Clock::system())), Pacemaker::default());
        pacemaker.join(&core).unwrap();
        // If the tick were not seen, this would take the hour.
        assert!(pacemaker.await_tick(Duration::from_secs(3600)));
        assert_eq!(pacemaker.leave(), 0);
    }
}
