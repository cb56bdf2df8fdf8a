//! A clock that a test moves, and that drives the real background threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::{Clock, ClockSource, Moment};

/// A clock for tests: time stands still until [`advance`](Self::advance) moves it.
///
/// The background threads of every registry on this clock are the real ones; `advance` runs them
/// tick by tick, in order, and returns when all that was due has run. A test needs no sleep.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
///
/// let time = MockClock::new();
/// let registry = Registry::with_clock(time.clock());
/// let hb = WorkerHeartbeat::builder("poller")
///     .stale_after(Duration::from_secs(90))
///     .beats_only()
///     .registry(&registry)
///     .start()?;
/// hb.beat();
/// time.advance(Duration::from_secs(90));
/// assert!(hb.is_recent());
/// time.advance(Duration::from_secs(1));
/// assert!(!hb.is_recent());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MockClock {
    state: Arc<MockTime>,
}

impl MockClock {
    /// A mock clock that shows [`Moment::ZERO`] and, as wall time, the present.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Arc::new(MockTime {
                now: AtomicU64::new(0),
                origin: SystemTime::now(),
                turn: Mutex::new(()),
                table: Mutex::new(Sleepers::default()),
                settled: Condvar::new(),
            }),
        }
    }

    /// The clock to hand to [`Registry::with_clock`](crate::Registry::with_clock).
    ///
    /// ```
    /// use worker_heartbeat::{MockClock, Moment, Registry};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// assert_eq!(registry.clock().now(), Moment::ZERO);
    /// ```
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock {
            source: ClockSource::Mock(Arc::clone(&self.state)),
        }
    }

    /// The present moment.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Moment};
    ///
    /// let time = MockClock::new();
    /// time.advance(Duration::from_nanos(7));
    /// assert_eq!(time.now(), Moment::from_nanos(7));
    /// ```
    #[must_use]
    pub fn now(&self) -> Moment {
        self.state.now()
    }

    /// Moves time forward and returns when every due tick has run.
    ///
    /// First every background thread observes the present, so that a beat made before this call is
    /// stamped with the time at which it was made. Then time moves from one due tick to the next,
    /// in order, and each thread finishes its work before time moves on. Concurrent calls run one
    /// after the other.
    ///
    /// It waits as long as a background thread takes: a log implementation that never returns
    /// blocks it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let events = registry.subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").beats_only();
    /// let hb = hb.registry(&registry).start()?;
    /// hb.beat();
    /// time.advance(Duration::from_secs(3600)); // returns at once, with an hour of ticks behind it
    ///
    /// let seen: Vec<_> = events.try_iter().map(|event| event.to_string()).collect();
    /// assert_eq!(seen.last().unwrap(), "worker mailer-1: stale: no heartbeat for 1 min 30 s, 1 min 30 s allowed");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn advance(&self, by: Duration) {
        let state = &*self.state;
        let _turn = state.turn.lock();
        let target = state.now().after(by);
        let mut table = state.table.lock();
        // A single thread moves the clock to the target by itself.
        let alone = table.sleepers.len() == 1;
        for sleeper in table.sleepers.values_mut() {
            sleeper.limit = if alone { target } else { Moment::ZERO };
            sleeper.rouse();
        }
        loop {
            state.wait_until_settled(&mut table);
            let Some((id, due)) = table.next_due() else {
                break;
            };
            if due > target {
                break;
            }
            state.move_to(due);
            // As long as no other thread has work before this moment, it moves the clock by itself.
            let limit = table.earliest_but(id).min(target);
            if let Some(sleeper) = table.sleepers.get_mut(&id) {
                sleeper.limit = limit;
                sleeper.rouse();
            }
        }
        state.move_to(target);
    }

    /// Moves time forward without running any tick: an unobserved jump, such as a suspended
    /// machine, a stopped process or a paused virtual machine.
    ///
    /// The background threads notice at the next `advance`, or when a reader wakes them.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer").beats_only().registry(&registry).start()?;
    /// hb.beat();
    /// time.suspend(Duration::from_secs(3600)); // the machine sleeps for an hour
    /// time.advance(Duration::from_secs(1));
    /// assert!(hb.is_recent(), "unobserved time is not charged to workers");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn suspend(&self, by: Duration) {
        let state = &*self.state;
        let _turn = state.turn.lock();
        let mut table = state.table.lock();
        state.wait_until_settled(&mut table);
        state.move_to(state.now().after(by));
    }
}

impl Default for MockClock {
    fn default() -> Self {
        Self::new()
    }
}

/// What all clones of a mock clock share.
#[derive(Debug)]
pub(super) struct MockTime {
    now: AtomicU64,
    origin: SystemTime,
    /// One `advance` or `suspend` at a time.
    turn: Mutex<()>,
    table: Mutex<Sleepers>,
    /// Notified whenever a sleeper goes to sleep or leaves.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Sleepers {
    sleepers: BTreeMap<u64, MockSleeper>,
    next_id: u64,
}

/// A thread that sleeps by this clock.
#[derive(Debug)]
struct MockSleeper {
    phase: SleepPhase,
    /// When it is to be woken, while it is asleep.
    due: Moment,
    /// Up to here it may move the clock by itself, because no other thread has work before.
    limit: Moment,
    /// Woken while it was not asleep: its next sleep ends at once.
    roused: bool,
    condvar: Arc<Condvar>,
}

#[derive(Debug, PartialEq, Eq)]
enum SleepPhase {
    /// At work: time must not move.
    Busy,
    /// Waiting for its time.
    Asleep,
    /// Away: the clock does not wait for it.
    Away,
}

impl MockSleeper {
    fn rouse(&mut self) {
        match self.phase {
            SleepPhase::Asleep => {
                self.phase = SleepPhase::Busy;
                self.condvar.notify_all();
            }
            SleepPhase::Busy | SleepPhase::Away => self.roused = true,
        }
    }
}

impl Sleepers {
    /// Another thread is at work: no thread may move the clock by itself any more.
    fn hold(&mut self) {
        for sleeper in self.sleepers.values_mut() {
            sleeper.limit = Moment::ZERO;
        }
    }

    fn next_due(&self) -> Option<(u64, Moment)> {
        self.sleepers
            .iter()
            .filter(|(_, sleeper)| {
                sleeper.phase == SleepPhase::Asleep && sleeper.due != Moment::NEVER
            })
            .map(|(id, sleeper)| (*id, sleeper.due))
            .min_by_key(|(id, due)| (*due, *id))
    }

    fn earliest_but(&self, id: u64) -> Moment {
        self.sleepers
            .iter()
            .filter(|(other, sleeper)| **other != id && sleeper.phase == SleepPhase::Asleep)
            .map(|(_, sleeper)| sleeper.due)
            .min()
            .unwrap_or(Moment::NEVER)
    }
}

impl MockTime {
    pub(super) fn now(&self) -> Moment {
        Moment::from_nanos(self.now.load(Ordering::Acquire))
    }

    pub(super) fn wall(&self) -> SystemTime {
        let elapsed = self.now().since(Moment::ZERO);
        self.origin.checked_add(elapsed).unwrap_or(self.origin)
    }

    fn move_to(&self, moment: Moment) {
        self.now.fetch_max(moment.as_nanos(), Ordering::AcqRel);
    }

    fn wait_until_settled(&self, table: &mut parking_lot::MutexGuard<'_, Sleepers>) {
        let is_busy = |sleeper: &MockSleeper| sleeper.phase == SleepPhase::Busy;
        self.settled
            .wait_while(table, |table| table.sleepers.values().any(is_busy));
    }

    pub(super) fn join(&self) -> u64 {
        let mut table = self.table.lock();
        table.hold();
        let id = table.next_id;
        table.next_id += 1;
        table.sleepers.insert(
            id,
            MockSleeper {
                phase: SleepPhase::Busy,
                due: Moment::NEVER,
                limit: Moment::ZERO,
                roused: false,
                condvar: Arc::new(Condvar::new()),
            },
        );
        id
    }

    pub(super) fn leave(&self, id: u64) {
        self.table.lock().sleepers.remove(&id);
        self.settled.notify_all();
    }

    pub(super) fn rouse(&self, id: u64) {
        let mut table = self.table.lock();
        table.hold();
        if let Some(sleeper) = table.sleepers.get_mut(&id) {
            sleeper.rouse();
        }
    }

    pub(super) fn step_away(&self, id: u64) {
        if let Some(sleeper) = self.table.lock().sleepers.get_mut(&id) {
            sleeper.phase = SleepPhase::Away;
            sleeper.limit = Moment::ZERO;
        }
        self.settled.notify_all();
    }

    pub(super) fn come_back(&self, id: u64) {
        let mut table = self.table.lock();
        table.hold();
        if let Some(sleeper) = table.sleepers.get_mut(&id) {
            sleeper.phase = SleepPhase::Busy;
        }
    }

    pub(super) fn sleep_until(&self, id: u64, due: Moment) {
        let mut table = self.table.lock();
        for (other, sleeper) in &mut table.sleepers {
            if *other != id {
                sleeper.limit = sleeper.limit.min(due);
            }
        }
        let Some(sleeper) = table.sleepers.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut sleeper.roused) || due <= self.now() {
            sleeper.phase = SleepPhase::Busy;
            return;
        }
        if due <= sleeper.limit {
            sleeper.phase = SleepPhase::Busy;
            self.move_to(due);
            return;
        }
        sleeper.phase = SleepPhase::Asleep;
        sleeper.due = due;
        sleeper.limit = Moment::ZERO;
        let condvar = Arc::clone(&sleeper.condvar);
        self.settled.notify_all();
        let is_asleep = |sleeper: &MockSleeper| sleeper.phase == SleepPhase::Asleep;
        condvar.wait_while(&mut table, |table| {
            table.sleepers.get(&id).is_some_and(is_asleep)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Sleeper;
    use std::thread;

    /// A thread that records when it ticks, every `step`, until `end`.
    fn ticker(
        clock: &Clock,
        step: Duration,
        end: Duration,
        log: &Arc<Mutex<Vec<(u64, u64)>>>,
        name: u64,
    ) -> thread::JoinHandle<()> {
        let sleeper = Sleeper::new(clock);
        let (clock, log) = (clock.clone(), Arc::clone(log));
        thread::spawn(move || {
            let end = Moment::ZERO.after(end);
            let mut due = clock.now().after(step);
            while due <= end {
                sleeper.sleep_until(due);
                if clock.now() >= due {
                    log.lock().push((clock.now().as_nanos(), name));
                    due = due.after(step);
                }
            }
        })
    }

    #[test]
    fn advance_runs_every_due_tick_in_order_and_then_shows_the_target() {
        let time = MockClock::new();
        let clock = time.clock();
        let log = Arc::default();
        let second = Duration::from_secs(1);
        let threads = [
            ticker(&clock, 2 * second, 12 * second, &log, 2),
            ticker(&clock, 3 * second, 12 * second, &log, 3),
        ];
        time.advance(7 * second);
        assert_eq!(time.now(), Moment::ZERO.after(7 * second));
        let seen: Vec<_> = log
            .lock()
            .iter()
            .map(|(at, name)| (at / 1_000_000_000, *name))
            .collect();
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [(2, 2), (3, 3), (4, 2), (6, 2), (6, 3)]);
        assert!(seen.is_sorted_by_key(|(at, _)| *at));
        time.advance(5 * second);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(log.lock().len(), 6 + 4);
    }

    #[test]
    fn suspend_runs_nothing() {
        let time = MockClock::new();
        let log = Arc::default();
        let second = Duration::from_secs(1);
        let thread = ticker(&time.clock(), second, 5 * second, &log, 1);
        time.advance(Duration::ZERO);
        time.suspend(3 * second);
        assert!(log.lock().is_empty());
        assert_eq!(time.now(), Moment::ZERO.after(3 * second));
        time.advance(2 * second);
        thread.join().unwrap();
        assert_eq!(log.lock().len(), 5, "late ticks are caught up with");
    }

    /// A thread that ticks each second calls `wake` at the first tick. Returns what the clock shows
    /// when that thread sleeps again, or has gone on. The woken thread is at work until `let_go`.
    fn shown_after(time: &MockClock, wake: impl FnOnce() + Send, let_go: impl FnOnce()) -> Moment {
        let second = Duration::from_secs(1);
        let ticks = Sleeper::new(&time.clock());
        let id = time.state.table.lock().next_id - 1;
        let asleep = || {
            let table = time.state.table.lock();
            table.sleepers[&id].phase == SleepPhase::Asleep
        };
        thread::scope(|scope| {
            let (woken, is_woken) = std::sync::mpsc::channel();
            scope.spawn(|| time.advance(3 * second));
            let ticker = scope.spawn(move || {
                while time.now() < Moment::ZERO.after(second) {
                    ticks.sleep_until(Moment::ZERO.after(second));
                }
                wake();
                woken.send(()).unwrap();
                ticks.sleep_until(Moment::ZERO.after(2 * second));
                ticks
            });
            is_woken.recv().unwrap();
            while time.now() == Moment::ZERO.after(second) && !asleep() {
                thread::yield_now();
            }
            let shown = time.now();
            let_go();
            drop(ticker.join());
            shown
        })
    }

    #[test]
    fn time_waits_for_a_thread_that_comes_back_comes_new_or_is_woken() {
        let first = Moment::ZERO.after(Duration::from_secs(1));
        let time = MockClock::new();
        let away = Sleeper::new(&time.clock());
        away.step_away();
        let shown = shown_after(&time, || away.come_back(), || away.step_away());
        assert_eq!(shown, first, "come back");

        let time = MockClock::new();
        let new = Mutex::new(None);
        let come = || *new.lock() = Some(Sleeper::new(&time.clock()));
        let shown = shown_after(&time, come, || drop(new.lock().take()));
        assert_eq!(shown, first, "come new");

        let time = MockClock::new();
        let sleeper = Sleeper::new(&time.clock());
        let alarm = sleeper.alarm();
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let clock = time.clock();
        let woken = thread::spawn(move || {
            while clock.now() < first {
                sleeper.sleep_until(Moment::NEVER);
            }
            let _ = held.recv();
        });
        let shown = shown_after(&time, || alarm.ring(), || drop(let_go));
        assert_eq!(shown, first, "woken");
        woken.join().unwrap();
    }

    #[test]
    fn an_alarm_ends_a_sleep_early() {
        let time = MockClock::new();
        let sleeper = Sleeper::new(&time.clock());
        let alarm = sleeper.alarm();
        alarm.ring();
        sleeper.sleep_until(Moment::NEVER);
        assert_eq!(time.now(), Moment::ZERO);
    }
}
