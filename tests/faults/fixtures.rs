//! What the child processes consist of: workers, readers, logs and gates.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{Builder, EventKind, Probe, Registry, State, Subscription, WorkerHeartbeat};

use crate::support::name;

/// Capacity for unread events: the largest there is.
pub(crate) const ALL_EVENTS: usize = 65_536;
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
/// How long a reader waits for the pacemaker at most, as the contract says.
pub(crate) const READER_PATIENCE: Duration = Duration::from_millis(100);
/// What a loaded machine may add to any wait.
pub(crate) const SLACK: Duration = Duration::from_secs(3);

pub(crate) fn worker(registry: &Registry, id: &str) -> Builder {
    WorkerHeartbeat::builder("w")
        .id(id)
        .interval(MILLISECOND)
        .registry(registry)
}

/// Workers on threads of their own, each at its own pace, until they are asked to stop.
#[derive(Default)]
pub(crate) struct Crew {
    pub(crate) over: Arc<AtomicBool>,
    pub(crate) threads: Vec<thread::JoinHandle<()>>,
    pub(crate) probes: Vec<Probe>,
}

impl Crew {
    /// A worker that reports progress again and again.
    pub(crate) fn add(
        &mut self,
        worker: Builder,
        pace: Duration,
        sign: impl Fn(&WorkerHeartbeat) + Send + 'static,
    ) {
        let hb = worker.start().unwrap();
        sign(&hb);
        self.probes.push(hb.probe());
        let over = Arc::clone(&self.over);
        self.threads.push(thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                sign(&hb);
                // The pace of its work.
                thread::sleep(pace);
            }
        }));
    }

    pub(crate) fn dismiss(self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

pub(crate) fn beat(hb: &WorkerHeartbeat) {
    hb.beat();
}

/// What a reader has seen.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) readings: u64,
    states: BTreeMap<String, u64>,
    /// Since when at least one worker has not been recent.
    unobserved_since: Option<Instant>,
    pub(crate) unobserved: Duration,
    unobserved_longest: Duration,
    pub(crate) longest_call: Duration,
    oldest_tick: Duration,
}

impl Reader {
    /// Asks for the state of all these workers, of which each has beaten at least once.
    pub(crate) fn look(&mut self, probes: &[Probe]) {
        let begun = Instant::now();
        let mut all_recent = true;
        for probe in probes {
            let before = Instant::now();
            let recent = probe.is_recent();
            let between = Instant::now();
            let state = probe.health().state();
            let after = Instant::now();
            all_recent &= recent && state.is_recent();
            assert!(
                state.is_recent() || state == State::Unobserved,
                "{} was read as {state}",
                probe.id()
            );
            self.readings += 2;
            *self.states.entry(state.to_string()).or_default() += 1;
            let call = (between - before).max(after - between);
            self.longest_call = self.longest_call.max(call);
        }
        if let Some(probe) = probes.first() {
            self.oldest_tick = self.oldest_tick.max(probe.snapshot().tick_age);
        }
        if all_recent {
            if let Some(since) = self.unobserved_since.take() {
                self.unobserved += begun - since;
                self.unobserved_longest = self.unobserved_longest.max(begun - since);
            }
        } else {
            self.unobserved_since.get_or_insert(begun);
        }
    }

    pub(crate) fn report(&self, what: &str) {
        println!(
            "@measured {what}: {} readings {:?}; unobserved for {:?} in all, {:?} at a time; \
             longest call {:?}; oldest tick {:?}",
            self.readings,
            self.states,
            self.unobserved,
            self.unobserved_longest,
            self.longest_call,
            self.oldest_tick,
        );
    }
}

/// The forgiven times, in the order in which they were reported. Fails if a worker was convicted.
pub(crate) fn forgiven_and_none_convicted(events: &Subscription) -> Vec<Duration> {
    assert_eq!(events.dropped(), 0);
    let mut all = Vec::new();
    for event in events.try_iter() {
        let name = name(&event);
        assert!(
            !["stalled", "stale", "never_started", "dead"].contains(&&*name),
            "{event}"
        );
        if let EventKind::Unobserved { forgiven, .. } = event.kind {
            all.push(forgiven);
        }
    }
    all
}

pub(crate) fn on_pacemaker() -> bool {
    thread::current().name() == Some("wh-pacemaker")
}

/// A log implementation that runs a closure of the test.
pub(crate) struct Log<F>(F);

impl<F: Fn(&log::Record<'_>) + Send + Sync> log::Log for Log<F> {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        (self.0)(record);
    }

    fn flush(&self) {}
}

pub(crate) fn log_with(act: impl Fn(&log::Record<'_>) + Send + Sync + 'static) {
    log::set_logger(Box::leak(Box::new(Log(act)))).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
}

/// Blocks each thread that passes while it is closed.
#[derive(Default)]
pub(crate) struct Gate {
    /// Whether it is closed, and how many wait.
    state: Mutex<(bool, usize)>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.opened.notify_all();
    }

    pub(crate) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        while state.0 {
            state = self.opened.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

/// Runs a closure on a thread of its own; it must be quick, whatever else is blocked.
pub(crate) fn promptly<T: Send + 'static>(
    what: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    let limit = READER_PATIENCE + JOIN_PATIENCE + SLACK;
    is_done
        .recv_timeout(limit)
        .unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
}

/// How long the drop of the last handle waits for a blocked pacemaker, as the code defines it.
pub(crate) const JOIN_PATIENCE: Duration = Duration::from_secs(1);
