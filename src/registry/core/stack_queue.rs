//! Reads the call stacks of convicted workers' threads, on a thread of its own: a worker that hangs in
//! a page fault, or a program file on a file system that hangs, must not hold the pacemaker.
//!
//! The thread starts with the first conviction that needs it and ends with the last. If it hangs, the
//! pacemaker's next tick after [`stacks::LONGEST`] says so of the worker.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Core;
use super::events::EventKind;
use super::record::EpisodeStack;
use super::worker_ref::WorkerRef;
use crate::cell::CellKey;
use crate::clock::{Clock, Patience};
use crate::health::{CallStack, StackCapture};
use crate::stacks::{self, NoStack};
use crate::sync::background::Background;
use crate::sync::catch::catch;

/// Name of the thread.
const THREAD_NAME: &str = "wh-stacks";
/// How many workers wait for their turn.
const MOST_WAITING: usize = 64;
/// How many different call stacks are kept: workers that wait at the same place share one.
const MOST_KEPT: usize = 256;
/// How often a thread that is running is tried again in an episode.
const MOST_ATTEMPTS: u8 = 3;
/// How long a capture waits for one on request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of a registry waits for a capture that takes long.
const JOIN_PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct StackQueue {
    queue: Mutex<Queue>,
    off: AtomicBool,
    kept: Mutex<Vec<Weak<CallStack>>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Conviction>,
    thread: Option<Background>,
    /// The thread runs.
    running: bool,
    /// The worker whose stack is being read, and since when.
    reading: Option<(Conviction, Instant)>,
    /// The registry is gone.
    closed: bool,
}

/// One episode of a worker.
#[derive(Clone, Debug)]
struct Conviction {
    worker: WorkerRef,
    key: CellKey,
    /// See [`EpisodeStack`].
    number: u64,
    /// Of a silent worker: with more beats, the episode is over.
    beats: Option<u64>,
}

impl Core {
    /// Switches the reading of call stacks of convicted workers on or off.
    pub(in crate::registry) fn read_stacks_of_convicted(&self, on: bool) {
        self.stacks.off.store(!on, Ordering::Relaxed);
    }

    /// Notes that the call stack of this worker, which was convicted, is to be read. Once an episode,
    /// except where another attempt may succeed. `beats_on`: the worker is not silent.
    pub(in crate::registry) fn want_stack(&self, worker: &WorkerRef, beats_on: bool) {
        if self.stacks.off.load(Ordering::Relaxed) {
            return;
        }
        let mut detail = worker.record.detail();
        let Some(snapshot) = worker.living_snapshot() else {
            return;
        };
        let of_episode = detail.stack.as_ref();
        if of_episode.is_some_and(|stack| !stack.may_retry) {
            return;
        }
        let attempts = of_episode.map_or(0, |stack| stack.attempts);
        let number = detail.new_number();
        let conviction = Conviction {
            worker: worker.clone(),
            key: worker.record.cell_key(),
            number,
            beats: (!beats_on).then_some(snapshot.beats),
        };
        let is_waiting = self.stacks.wait(conviction);
        detail.stack = Some(Box::new(EpisodeStack {
            capture: if is_waiting {
                StackCapture::Pending
            } else {
                StackCapture::Missing(format!(
                    "too many workers were convicted at once, and {MOST_WAITING} stacks are read"
                ))
            },
            number,
            attempts,
            may_retry: !is_waiting,
        }));
    }

    /// Starts the thread, if it is needed, and gives up what takes too long.
    pub(in crate::registry) fn start_reading_stacks(self: &Arc<Self>) {
        let mut queue = self.stacks.queue.lock();
        let reading = queue.reading.as_ref();
        let hangs = reading.filter(|(_, since)| since.elapsed() > stacks::LONGEST);
        if let Some(conviction) = hangs.map(|(conviction, _)| conviction.clone()) {
            // As long as it hangs, the others have to do without.
            let waiting = std::mem::take(&mut queue.waiting);
            drop(queue);
            let why = format!("it was not read within {} s", stacks::LONGEST.as_secs());
            self.settle_stack(&conviction, Err(NoStack::Final(why)));
            for conviction in waiting {
                let why = NoStack::Temporary("an earlier capture hangs".to_owned());
                self.settle_stack(&conviction, Err(why));
            }
            return;
        }
        if queue.waiting.is_empty() || queue.running || queue.closed {
            return;
        }
        let core = Arc::clone(self);
        // Under the lock: the thread relies on its handle being there.
        match Background::start(THREAD_NAME, move || core.read_stacks()) {
            Ok(thread) => {
                queue.thread = Some(thread);
                queue.running = true;
            }
            Err(error) => {
                let waiting = std::mem::take(&mut queue.waiting);
                drop(queue);
                for conviction in waiting {
                    let failed = NoStack::Final(error.to_string());
                    self.settle_stack(&conviction, Err(failed));
                }
            }
        }
    }

    /// Ends the thread, and waits for it.
    pub(in crate::registry) fn end_reading_stacks(&self) {
        let mut queue = self.stacks.queue.lock();
        queue.closed = true;
        queue.waiting.clear();
        let thread = queue.thread.take();
        drop(queue);
        if let Some(thread) = thread {
            thread.join_within(&Patience::new(JOIN_PATIENCE));
        }
    }

    fn read_stacks(self: &Arc<Self>) {
        loop {
            let next = {
                let mut queue = self.stacks.queue.lock();
                let next = queue.waiting.pop_front();
                queue.running = next.is_some();
                queue.reading = next.clone().map(|next| (next, Instant::now()));
                next
            };
            let Some(conviction) = next else {
                return;
            };
            // The next one must not wait for ever because of this one.
            drop(catch(|| {
                self.read_stack(&conviction, || conviction.worker.capture_stack(PATIENCE));
            }));
        }
    }

    /// Reads a stack, unless the episode is over. If that panics, the worker says so.
    fn read_stack(
        self: &Arc<Self>,
        conviction: &Conviction,
        capture: impl FnOnce() -> Result<CallStack, NoStack>,
    ) {
        if !conviction.lasts() {
            return;
        }
        let outcome = catch(capture).unwrap_or_else(|_| {
            let why = "the capture panicked".to_owned();
            Err(NoStack::Final(why))
        });
        self.settle_stack(conviction, outcome);
    }

    /// Keeps the stack with the worker, and reports it, if the episode lasts.
    fn settle_stack(
        self: &Arc<Self>,
        conviction: &Conviction,
        outcome: Result<CallStack, NoStack>,
    ) {
        let outcome = outcome.and_then(|stack| {
            let kept = self.stacks.keep(stack);
            kept.ok_or_else(|| {
                NoStack::Temporary(format!("{MOST_KEPT} different stacks are kept already"))
            })
        });
        let worker = &conviction.worker;
        // So that the end of the episode is reported after this.
        let events = self.lock_events(&worker.record);
        let mut detail = worker.record.detail();
        let lasts = conviction.lasts();
        let Some(episode) = &mut detail.stack else {
            return;
        };
        if episode.number != conviction.number || episode.capture != StackCapture::Pending {
            // Another life or episode, or it was given up meanwhile.
            return;
        }
        if !lasts {
            detail.stack = None;
            return;
        }
        let taken = match outcome {
            Ok(stack) => {
                episode.may_retry = false;
                episode.capture = StackCapture::Taken(Arc::clone(&stack));
                Some(stack)
            }
            Err(why) => {
                let running = matches!(why, NoStack::Running);
                episode.attempts += u8::from(running);
                episode.may_retry = match why {
                    NoStack::Running => episode.attempts < MOST_ATTEMPTS,
                    NoStack::Temporary(_) => true,
                    NoStack::Final(_) => false,
                };
                episode.capture = StackCapture::Missing(why.to_string());
                None
            }
        };
        drop(detail);
        let Some(stack) = taken else {
            return;
        };
        let event = self.publish(Some(&worker.record), EventKind::StackCaptured { stack });
        drop(events);
        if let Some(event) = event {
            self.subscribers.wake();
            // Elsewhere: a thread that hangs may hold a lock that the log needs.
            self.log_in_background(vec![(Arc::clone(&worker.record), event)]);
        }
    }
}

impl StackQueue {
    /// On a mock clock, it is off: what a test's threads do has nothing to do with the clock's time.
    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            queue: Mutex::default(),
            off: AtomicBool::new(clock.is_mock()),
            kept: Mutex::default(),
        }
    }

    /// `false` if the queue is full.
    fn wait(&self, conviction: Conviction) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed || queue.waiting.len() >= MOST_WAITING {
            return false;
        }
        queue.waiting.push_back(conviction);
        true
    }

    /// The same stack, shared with the workers that have an equal one; `None` if too many are kept.
    fn keep(&self, stack: CallStack) -> Option<Arc<CallStack>> {
        let mut kept = self.kept.lock();
        kept.retain(|other| other.strong_count() > 0);
        let mut living = kept.iter().filter_map(Weak::upgrade);
        if let Some(same) = living.find(|other| **other == stack) {
            return Some(same);
        }
        if kept.len() >= MOST_KEPT {
            return None;
        }
        let stack = Arc::new(stack);
        kept.push(Arc::downgrade(&stack));
        Some(stack)
    }
}

impl Conviction {
    /// The worker is in the same life and has made no progress since.
    fn lasts(&self) -> bool {
        let record = &self.worker.record;
        let snapshot = self.worker.living_snapshot();
        record.cell_key() == self.key
            && snapshot
                .is_some_and(|snapshot| self.beats.is_none_or(|beats| beats == snapshot.beats))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{MockClock, Registry, WorkerHeartbeat};

    fn stack(why: usize) -> CallStack {
        CallStack {
            frames: Vec::new(),
            cut: Some(why.to_string()),
        }
    }

    #[test]
    fn while_a_capture_hangs_the_workers_say_so() {
        // Its pacemaker never ticks.
        let registry = Registry::with_clock(MockClock::new().clock());
        let core = &registry.inner.core;
        core.read_stacks_of_convicted(true);
        let workers = ["hangs", "waits"].map(|id| {
            let builder = WorkerHeartbeat::builder("mailer").id(id);
            builder.registry(&registry).start().unwrap()
        });
        let [hangs, waits] = ["hangs", "waits"].map(|id| {
            let mut refs = core.worker_refs().into_iter();
            refs.find(|worker| worker.record.id() == id).unwrap()
        });
        // As if a thread read the first one.
        core.stacks.queue.lock().running = true;
        core.want_stack(&hangs, false);
        let long_ago = Instant::now().checked_sub(2 * stacks::LONGEST).unwrap();
        let conviction = core.stacks.queue.lock().waiting.pop_front().unwrap();
        core.stacks.queue.lock().reading = Some((conviction.clone(), long_ago));
        let capture = |worker: &WorkerRef| worker.record.detail().stack_capture().unwrap();
        for _ in 0..2 {
            core.want_stack(&waits, false);
            assert_eq!(capture(&waits), StackCapture::Pending);
            core.start_reading_stacks();
            let missing = |why: &str| StackCapture::Missing(why.to_owned());
            assert_eq!(capture(&hangs), missing("it was not read within 10 s"));
            assert_eq!(capture(&waits), missing("an earlier capture hangs"));
        }
        // What comes late is not believed.
        core.settle_stack(&conviction, Ok(stack(0)));
        assert!(capture(&hangs).call_stack().is_none());
        drop(workers);
    }

    #[test]
    fn a_capture_that_panics_says_so() {
        let registry = Registry::with_clock(MockClock::new().clock());
        let core = &registry.inner.core;
        core.read_stacks_of_convicted(true);
        let builder = WorkerHeartbeat::builder("mailer").id("hangs");
        let _hb = builder.registry(&registry).start().unwrap();
        let worker = core.worker_refs().into_iter().next().unwrap();
        core.want_stack(&worker, false);
        let conviction = core.stacks.queue.lock().waiting.pop_front().unwrap();
        core.read_stack(&conviction, || panic!("unwinding failed"));
        let missing = StackCapture::Missing("the capture panicked".to_owned());
        assert_eq!(worker.record.detail().stack_capture(), Some(missing));
    }

    #[test]
    fn equal_stacks_are_kept_once_and_different_ones_up_to_a_number() {
        let stacks = StackQueue::new(&Clock::system());
        let first = stacks.keep(stack(0)).unwrap();
        let others: Vec<_> = (1..MOST_KEPT)
            .map(|n| stacks.keep(stack(n)).unwrap())
            .collect();
        assert!(stacks.keep(stack(MOST_KEPT)).is_none());
        let same = stacks.keep(stack(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        drop(others);
        assert!(stacks.keep(stack(MOST_KEPT)).is_some());
    }
}
