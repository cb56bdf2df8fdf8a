//! A simulated month of two hundred workers that work, rest, crash, hang and are suspended, on the
//! mock clock. Every fault is reported within its bound and with the right state, no healthy worker
//! is ever convicted, and memory stays flat. So is every task that takes too long, while its worker beats.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use worker_heartbeat::{
    Activity, EventKind, Exit, Learn, MockClock, Registry, Restart, State, Subscription,
    Supervisor, WorkerHeartbeat,
};

/// Counts the bytes that are allocated.
struct Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MINUTE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(600);
const STEPS_A_DAY: u32 = 144;
/// A month, unless `SIMULATED_DAYS` says otherwise.
const DAYS: usize = 30;
const WORKERS: usize = 200;
const RESTARTED: usize = 10;
const TASKED: usize = 10;
/// A task takes at most 90 minutes, unless it takes too long.
const TASK_DEADLINE: Duration = Duration::from_secs(120 * 60);
/// No healthy worker is silent for longer than two steps: not even long enough for a warning.
const STALL_AFTER: Duration = Duration::from_secs(35 * 60);
/// Of learned limits.
const CEILING: Duration = Duration::from_secs(70 * 60);
const STALE_AFTER: Duration = Duration::from_secs(35 * 60);
const STARTUP_GRACE: Duration = Duration::from_secs(15 * 60);

/// Numbers that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// The true state of a worker, which only the simulation knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Working,
    Idle,
    /// Silent at work since its last sign of progress, for this many more steps.
    Hanging {
        steps: u64,
    },
    /// Silent before its first sign of progress, for this many more steps.
    NotStarting {
        steps: u64,
    },
    /// Absent, for this many more steps.
    Gone {
        steps: u64,
    },
}

struct Simulated {
    id: String,
    beats_only: bool,
    /// Its limit is learned.
    learns: bool,
    handle: Option<WorkerHeartbeat>,
    truth: Truth,
    /// When it last reported progress, or was registered, in charged time.
    silent_since: Duration,
    quiet_steps: u64,
    convicted: Option<State>,
}

impl Simulated {
    fn register(&mut self, registry: &Registry, now: Duration) {
        let worker_type = if self.learns { "learning" } else { "simulated" };
        let builder = WorkerHeartbeat::builder(worker_type)
            .id(self.id.clone())
            .stale_after(STALE_AFTER)
            .startup_grace(STARTUP_GRACE)
            .registry(registry);
        let builder = if self.beats_only {
            builder.beats_only()
        } else if self.learns {
            builder.learn_stall_after(Learn::new().floor(MINUTE).ceiling(CEILING))
        } else {
            builder.stall_after(STALL_AFTER)
        };
        self.handle = Some(builder.start().unwrap());
        self.silent_since = now;
        self.convicted = None;
    }

    fn sign(&mut self, activity: Activity, run: u64, now: Duration) {
        let handle = self.handle.as_ref().unwrap();
        match activity {
            Activity::Idle => handle.mark_idle(),
            // An inner task that ends leaves the worker at the outer one, where it may hang. The
            // outer task's guard is leaked; the next rest ends that task.
            Activity::Processing if run % 3 == 0 => {
                std::mem::forget(handle.begin_task(format!("batch-{run}"), "simulated batch"));
                let item = handle.begin_task(format!("run-{run}"), "simulated work");
                item.progress(1, 2);
            }
            _ => handle.update_task(format!("run-{run}"), "simulated work", activity),
        }
        self.silent_since = now;
        self.quiet_steps = 0;
        self.convicted = None;
    }

    /// The limit in force. A learned one changes at the first tick of a step, and not after it.
    fn stall_after(&self) -> Duration {
        let handle = self.handle.as_ref().filter(|_| self.learns);
        let learned = handle.and_then(|handle| handle.snapshot().learned);
        learned.map_or(STALL_AFTER, |learned| learned.allowed)
    }

    /// The conviction that is due in this step, if the worker reports no more progress.
    fn due(&self, now: Duration) -> Option<(State, Duration)> {
        if self.convicted.is_some() || self.handle.is_none() {
            return None;
        }
        let (state, limit) = match self.truth {
            Truth::NotStarting { .. } => (State::NeverStarted, STARTUP_GRACE),
            Truth::Hanging { .. } if self.beats_only => (State::Stale, STALE_AFTER),
            Truth::Hanging { .. } => (State::Stalled, self.stall_after()),
            _ => return None,
        };
        let mut due = self.silent_since + limit;
        if self.learns {
            // It may have been silent for long when the limit got shorter, at the beginning of this step.
            due = due.max(now.saturating_sub(Duration::from_nanos(1)));
        }
        (due < now + STEP).then_some((state, due))
    }
}

/// A supervised future that is restarted, and whose lives leave their handles behind: those handles
/// go on beating and updating, and keep no life well.
struct Restarted {
    id: String,
    future: Pin<Box<dyn Future<Output = Exit>>>,
    handles: Arc<Mutex<VecDeque<Arc<WorkerHeartbeat>>>>,
    fails: Arc<AtomicBool>,
    /// For this many more steps.
    hangs: u64,
    silent_since: Duration,
    convicted: bool,
}

impl Restarted {
    fn new(registry: &Registry, n: usize) -> Self {
        let handles = Arc::new(Mutex::new(VecDeque::new()));
        let fails = Arc::new(AtomicBool::new(false));
        let (kept, failing) = (Arc::clone(&handles), Arc::clone(&fails));
        let id = format!("restarted-{n}");
        let builder = WorkerHeartbeat::builder("restarted")
            .id(id.clone())
            .stale_after(STALE_AFTER)
            .stall_after(STALL_AFTER);
        let at_once = Restart::on_failure()
            .max(u32::MAX)
            .within(Duration::ZERO)
            .backoff(Duration::ZERO, Duration::ZERO);
        let supervisor = Supervisor::new(registry).restart(at_once);
        let future = supervisor.supervise(builder, move |hb: Arc<WorkerHeartbeat>| {
            kept.lock().unwrap().push_back(hb);
            let failing = Arc::clone(&failing);
            poll_fn(move |_| match failing.swap(false, Ordering::Relaxed) {
                true => Poll::Ready(Err::<(), _>("simulated failure")),
                false => Poll::Pending,
            })
        });
        Self {
            id,
            future: Box::pin(future.unwrap()),
            handles,
            fails,
            hangs: 0,
            silent_since: Duration::ZERO,
            convicted: false,
        }
    }

    fn poll(&mut self, now: Duration) {
        let mut context = Context::from_waker(Waker::noop());
        assert!(self.future.as_mut().poll(&mut context).is_pending());
        self.silent_since = now;
        self.convicted = false;
    }

    fn act(&mut self, now: Duration, dice: &mut Dice, injected: &mut BTreeMap<&str, u64>) {
        match dice.roll(400) {
            0 => {
                *injected.entry("restarted").or_default() += 1;
                self.fails.store(true, Ordering::Relaxed);
                // It fails, and restarts.
                self.poll(now);
                self.poll(now);
                self.hangs = 0;
            }
            1 if self.hangs == 0 => {
                *injected.entry("hung").or_default() += 1;
                self.poll(now);
                self.hangs = 4 + dice.roll(50);
            }
            _ if self.hangs > 0 => self.hangs -= 1,
            _ => self.poll(now),
        }
        let mut handles = self.handles.lock().unwrap();
        let former = handles.len().saturating_sub(1);
        for left_behind in handles.iter().take(former) {
            left_behind.update_task("late", "from a former life", Activity::Processing);
            left_behind.beat();
        }
        while handles.len() > 3 {
            handles.pop_front();
        }
    }

    fn due(&self, now: Duration) -> Option<(State, Duration)> {
        let due = self.silent_since + STALL_AFTER;
        (self.hangs > 0 && !self.convicted && due < now + STEP).then_some((State::Stalled, due))
    }
}

/// A worker that beats in every step, and whose tasks have a deadline.
struct Tasked {
    handle: WorkerHeartbeat,
    run: u64,
    begun: Duration,
    /// The task goes on for this many more steps.
    steps: u64,
    convicted: bool,
}

impl Tasked {
    fn new(registry: &Registry, n: usize) -> Self {
        let builder = WorkerHeartbeat::builder("tasked")
            .id(format!("tasked-{n}"))
            .stale_after(STALE_AFTER)
            .stall_after(STALL_AFTER)
            .task_deadline(TASK_DEADLINE);
        Self {
            handle: builder.registry(registry).start().unwrap(),
            run: 0,
            begun: Duration::ZERO,
            steps: 0,
            convicted: false,
        }
    }

    fn act(&mut self, now: Duration, dice: &mut Dice, injected: &mut BTreeMap<&str, u64>) {
        if self.steps > 0 {
            self.steps -= 1;
            self.handle.beat();
            return;
        }
        self.run += 1;
        (self.begun, self.convicted) = (now, false);
        let (run, activity) = (format!("run-{}", self.run), Activity::Processing);
        self.handle.update_task(run, "simulated task", activity);
        self.steps = 1 + dice.roll(8);
        if dice.roll(40) == 0 {
            *injected.entry("took too long").or_default() += 1;
            self.steps = 14 + dice.roll(20);
        }
    }

    fn due(&self, now: Duration) -> Option<(State, Duration)> {
        let due = self.begun + TASK_DEADLINE;
        (!self.convicted && due < now + STEP).then_some((State::Overdue, due))
    }
}

/// Reads the reported convictions. Every other event must be harmless.
fn convictions(events: &Subscription) -> BTreeMap<String, (State, SystemTime)> {
    let mut reported = BTreeMap::new();
    for event in events.try_iter() {
        if std::env::var_os("WHO").is_some_and(|who| who == event.id()) || event.worker.is_none() {
            println!("{:?} {event}", event.at);
        }
        if let EventKind::Became(health) = &event.kind {
            let state = health.state();
            if !state.is_terminal() {
                let id = event.id().to_owned();
                let again = reported.insert(id, (state, event.at));
                assert!(again.is_none(), "reported twice in a step: {event}");
            }
        }
    }
    assert_eq!(events.dropped(), 0);
    reported
}

#[test]
fn a_month_of_two_hundred_workers() {
    let days = std::env::var("SIMULATED_DAYS").map_or(DAYS, |days| days.parse().unwrap());
    let begun = Instant::now();
    let mut dice = Dice(42);
    let time = MockClock::new();
    let registry = Registry::with_clock(time.clock());
    let events = registry.subscribe_with_capacity(10_000);
    let wall = || registry.clock().wall();
    let origin = wall();
    // Time on the clock that was charged to no worker.
    let mut suspended = Duration::ZERO;
    let mut workers: Vec<Simulated> = (0..WORKERS)
        .map(|n| Simulated {
            id: format!("worker-{n}"),
            beats_only: n % 4 == 0,
            learns: n % 4 == 1,
            handle: None,
            truth: Truth::Gone { steps: 0 },
            silent_since: Duration::ZERO,
            quiet_steps: 0,
            convicted: None,
        })
        .collect();
    let mut restarted: Vec<_> = (0..RESTARTED)
        .map(|n| Restarted::new(&registry, n))
        .collect();
    for worker in &mut restarted {
        worker.poll(Duration::ZERO);
    }
    let mut tasked: Vec<_> = (0..TASKED).map(|n| Tasked::new(&registry, n)).collect();
    let mut injected = BTreeMap::<&str, u64>::new();
    let mut memory = Vec::new();

    for day in 0..days {
        for step in 0..STEPS_A_DAY {
            // Time that counts: the clock's, less what was forgiven.
            let now = time.now().since(worker_heartbeat::Moment::ZERO) - suspended;
            for worker in &mut workers {
                act(worker, &registry, now, &mut dice, &mut injected);
            }
            for worker in &mut restarted {
                worker.act(now, &mut dice, &mut injected);
            }
            for worker in &mut tasked {
                worker.act(now, &mut dice, &mut injected);
            }
            let mut expected: BTreeMap<_, _> = workers
                .iter_mut()
                .filter(|worker| !worker.learns)
                .filter_map(|worker| {
                    let (state, due) = worker.due(now)?;
                    worker.convicted = Some(state);
                    Some((worker.id.clone(), (state, due)))
                })
                .collect();
            for worker in &mut restarted {
                if let Some(due) = worker.due(now) {
                    worker.convicted = true;
                    expected.insert(worker.id.clone(), due);
                }
            }

            for worker in &mut tasked {
                if let Some(due) = worker.due(now) {
                    worker.convicted = true;
                    expected.insert(worker.handle.id().to_owned(), due);
                }
            }

            // A suspension in the middle of the step. Of the gap, two resolutions are charged.
            let charged = 2 * registry.resolution();
            let mut gap_charged = Duration::ZERO;
            if dice.roll(60) == 0 {
                gap_charged = charged;
                *injected.entry("suspended").or_default() += 1;
                let gap = MINUTE * u32::try_from(1 + dice.roll(3_000)).unwrap();
                time.advance(Duration::ZERO);
                time.suspend(gap);
                time.advance(Duration::ZERO);
                suspended += gap - charged;
                time.advance(STEP - charged);
            } else {
                time.advance(STEP);
            }

            for worker in workers.iter_mut().filter(|worker| worker.learns) {
                if let Some((state, due)) = worker.due(now) {
                    worker.convicted = Some(state);
                    expected.insert(worker.id.clone(), (state, due));
                }
            }
            let mut reported = convictions(&events);
            for (id, (state, due)) in expected {
                let (reported_state, at) = reported.remove(&id).unwrap_or_else(|| {
                    panic!("day {day}: {id} should have been reported as {state}")
                });
                assert_eq!(reported_state, state, "{id}");
                let at = at.duration_since(origin).unwrap() - suspended;
                assert!(at > due, "{id} was convicted early: {at:?}, due {due:?}");
                let late = at - due;
                // What is due in a gap is found after it.
                let slack = registry.resolution() + gap_charged;
                assert!(late <= slack, "{id}: {late:?} late");
            }
            assert!(
                reported.is_empty(),
                "healthy workers were convicted: {reported:?}"
            );
            if step % 16 == 0 {
                check_summary(&registry, &workers, &restarted, &tasked);
            }
        }
        registry.purge(Duration::ZERO);
        for worker in &mut workers {
            if worker.handle.is_none() {
                worker.convicted = None;
            }
        }
        memory.push(LIVE_BYTES.load(Ordering::Relaxed));
    }

    println!("{injected:?} in {:?}", begun.elapsed());
    for fault in [
        "crashed",
        "hung",
        "did not start",
        "suspended",
        "panicked",
        "restarted",
        "took too long",
    ] {
        assert!(injected[fault] > 30, "{fault}: too few to prove anything");
    }
    let (early, late) = (memory[days / 3], memory[days - 1]);
    println!("live bytes after a third: {early}, at the end: {late}");
    // Buffers of tasks are kept, and tasks nest deeper than ever before every now and then.
    let kept = isize::try_from(WORKERS * 1024).unwrap();
    assert!(late < early + kept, "memory grows: {early} to {late}");
}

fn act(
    worker: &mut Simulated,
    registry: &Registry,
    now: Duration,
    dice: &mut Dice,
    injected: &mut BTreeMap<&str, u64>,
) {
    let mut count = |what| *injected.entry(what).or_default() += 1;
    worker.truth = match worker.truth {
        Truth::Gone { steps: 0 } => {
            worker.register(registry, now);
            if dice.roll(10) == 0 {
                count("did not start");
                Truth::NotStarting {
                    steps: 2 + dice.roll(10),
                }
            } else {
                worker.sign(Activity::Active, 0, now);
                Truth::Working
            }
        }
        Truth::Gone { steps } => Truth::Gone { steps: steps - 1 },
        Truth::NotStarting { steps: 0 } | Truth::Hanging { steps: 0 } => {
            worker.sign(Activity::Processing, dice.roll(1_000), now);
            Truth::Working
        }
        Truth::NotStarting { steps } => Truth::NotStarting { steps: steps - 1 },
        Truth::Hanging { steps } => Truth::Hanging { steps: steps - 1 },
        Truth::Working | Truth::Idle => match dice.roll(2_000) {
            0 => {
                count("hung");
                worker.sign(Activity::Processing, dice.roll(1_000), now);
                Truth::Hanging {
                    steps: 4 + dice.roll(50),
                }
            }
            1 => {
                count("crashed");
                let handle = worker.handle.take().unwrap();
                handle.fail("simulated crash");
                assert_eq!(handle.health().state(), State::Dead);
                Truth::Gone {
                    steps: dice.roll(20),
                }
            }
            2 if dice.roll(8) == 0 => {
                count("panicked");
                let handle = worker.handle.take().unwrap();
                let probe = handle.probe();
                // Without the hook of the test harness, which would print each panic.
                let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                    let _its_life = handle;
                    std::panic::resume_unwind(Box::new("simulated panic"));
                }));
                assert!(unwound.is_err());
                assert_eq!(probe.health().state(), State::Dead);
                Truth::Gone {
                    steps: dice.roll(20),
                }
            }
            3..300 => {
                worker.sign(Activity::Idle, 0, now);
                Truth::Idle
            }
            // A vouched worker may rest for ever; a worker with `beats_only` must beat.
            300..1_200 if worker.truth == Truth::Idle && !worker.beats_only => Truth::Idle,
            1_200..1_600 if worker.quiet_steps < 1 => {
                worker.quiet_steps += 1;
                worker.truth
            }
            roll => {
                worker.sign(Activity::Processing, roll, now);
                Truth::Working
            }
        },
    };
}

/// The summary matches the true states.
fn check_summary(
    registry: &Registry,
    workers: &[Simulated],
    restarted: &[Restarted],
    tasked: &[Tasked],
) {
    let summary = registry.summary();
    // A task that ended in this step is over by now: the step is read at its end.
    let overdue = tasked.iter().filter(|worker| worker.convicted).count();
    assert_eq!(summary.states.get(State::Overdue), overdue, "{summary}");
    for state in [State::Stalled, State::Stale, State::NeverStarted] {
        let convicted = |worker: &&Simulated| worker.convicted == Some(state);
        let mut expected = workers.iter().filter(convicted).count();
        if state == State::Stalled {
            expected += restarted.iter().filter(|worker| worker.convicted).count();
        }
        assert_eq!(summary.states.get(state), expected, "{state}: {summary}");
    }
    let living = workers.iter().filter(|worker| worker.handle.is_some());
    assert_eq!(
        summary.total - summary.states.get(State::Dead),
        living.count() + restarted.len() + tasked.len()
    );
}
