//! The call stack in the verdict on a worker: read once an episode, in the background.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    Activity, Event, EventKind, Health, Probe, Registry, StackCapture, State, WorkerHeartbeat,
};

pub const SOON: Duration = Duration::from_millis(50);
pub const LONG: Duration = Duration::from_secs(60);

/// A thread that beats and then waits here for each message.
pub struct Shop {
    messages: Sender<()>,
    beats: Receiver<()>,
    probe: Probe,
    thread: thread::JoinHandle<()>,
}

impl Shop {
    pub fn open(registry: &Registry) -> Self {
        let (messages, inbox) = mpsc::channel();
        let (reported, beats) = mpsc::channel();
        let hb = WorkerHeartbeat::builder("shop")
            .stall_after(SOON)
            .interval(SOON)
            .stale_after(LONG)
            .registry(registry)
            .start()
            .unwrap();
        let probe = hb.probe();
        let thread = thread::spawn(move || {
            loop {
                hb.update_task("order-7", "reserving", Activity::Processing);
                reported.send(()).unwrap();
                if order(&inbox).is_none() {
                    return;
                }
            }
        });
        beats.recv().unwrap();
        Self {
            messages,
            beats,
            probe,
            thread,
        }
    }

    /// Sends a message, and waits for the beat that follows.
    pub fn go_on(&self) {
        self.messages.send(()).unwrap();
        self.beats.recv().unwrap();
    }

    pub fn close(self) {
        drop(self.messages);
        self.thread.join().unwrap();
    }
}

#[inline(never)]
fn order(inbox: &Receiver<()>) -> Option<()> {
    std::hint::black_box(reserve(inbox))
}

#[inline(never)]
fn reserve(inbox: &Receiver<()>) -> Option<()> {
    std::hint::black_box(inbox.recv().ok())
}

/// The next event for which this returns something.
fn wait_for<T>(
    events: &worker_heartbeat::Subscription,
    mut wanted: impl FnMut(&Event) -> Option<T>,
) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        let event = events.recv_timeout(LONG).unwrap();
        if let Some(found) = wanted(&event) {
            return found;
        }
        assert!(Instant::now() < deadline);
    }
}

fn captured(event: &Event) -> Option<Arc<worker_heartbeat::CallStack>> {
    match &event.kind {
        EventKind::StackCaptured { stack, .. } => Some(Arc::clone(stack)),
        _ => None,
    }
}

#[test]
fn a_stalled_worker_shows_where_it_hangs_once_an_episode() {
    let registry = Registry::new();
    let events = registry.subscribe();
    let shop = Shop::open(&registry);
    for _ in 0..2 {
        let mut stalled = false;
        let stack = wait_for(&events, |event| {
            match &event.kind {
                EventKind::Became(Health::Stalled(verdict)) => {
                    // The event of the verdict does not wait for the stack.
                    assert_eq!(verdict.stack, None);
                    stalled = true;
                }
                EventKind::Recovered { .. } => assert!(!stalled),
                _ => {}
            }
            captured(event)
        });
        assert!(stalled);
        let Health::Stalled(verdict) = shop.probe.health() else {
            panic!("{}", shop.probe.health());
        };
        assert_eq!(verdict.stack, Some(StackCapture::Taken(Arc::clone(&stack))));
        assert_eq!(shop.probe.snapshot().stack, verdict.stack);
        let place = stack.place().unwrap();
        let name = place.function.as_deref().unwrap();
        assert!(name.ends_with("verdicts::reserve"), "{stack:#}");
        let shown = format!("; blocked in {}, at {stack}, ", kernel(&verdict));
        assert!(verdict.to_string().contains(&shown), "{verdict}");
        assert!(stack.to_string().contains("verdicts::order"), "{stack}");
        // A second look would come within this time: evidence is renewed all the time.
        thread::sleep(10 * SOON);
        let more = events.try_iter().filter_map(|event| captured(&event));
        assert_eq!(more.count(), 0);
        shop.go_on();
        wait_for(&events, |event| {
            matches!(event.kind, EventKind::Recovered { .. }).then_some(())
        });
    }
    shop.close();
}

fn kernel(verdict: &worker_heartbeat::Stalled) -> String {
    match &verdict.cause {
        worker_heartbeat::StallCause::Blocked { place: Some(place) } => place.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_that_is_well_again_has_no_stack() {
    let registry = Registry::new();
    let events = registry.subscribe();
    let shop = Shop::open(&registry);
    wait_for(&events, captured);
    shop.go_on();
    let snapshot = shop.probe.snapshot();
    assert!(
        snapshot.health.is_recent() && snapshot.stack.is_none(),
        "{snapshot:?}"
    );
    shop.close();
}

#[test]
fn workers_that_went_stale_or_never_started_show_where_they_hang() {
    let registry = Registry::new();
    let events = registry.subscribe();
    let (stale, setup) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    let (end_stale, end_setup) = (stale.0, setup.0);
    let builder = |name| {
        let builder = WorkerHeartbeat::builder(name).registry(&registry);
        builder.startup_grace(SOON)
    };
    let supervisor = worker_heartbeat::Supervisor::new(&registry);
    let stale = supervisor
        .spawn(
            builder("stale")
                .beats_only()
                .interval(SOON / 4)
                .stale_after(SOON),
            move |hb| {
                hb.beat();
                while reserve(&stale.1).is_some() {}
                Ok(())
            },
        )
        .unwrap();
    let setup = supervisor
        .spawn(builder("setup"), move |_| {
            while reserve(&setup.1).is_some() {}
            Ok(())
        })
        .unwrap();
    let mut left = HashSet::from(["stale", "setup"]);
    while !left.is_empty() {
        wait_for(&events, |event| {
            captured(event).map(|_| left.remove(&*event.worker.as_ref().unwrap().worker_type))
        });
    }
    for (worker, state) in [(&stale, State::Stale), (&setup, State::NeverStarted)] {
        let snapshot = worker.probe().snapshot();
        assert_eq!(snapshot.health.state(), state);
        let stack = snapshot.stack.unwrap();
        let place = stack.call_stack().unwrap().to_string();
        assert!(place.contains("verdicts::reserve"), "{place}");
    }
    drop((end_stale, end_setup));
    for worker in [stale, setup] {
        worker.join();
    }
}

#[test]
fn a_stack_that_cannot_be_read_says_why() {
    let registry = Registry::new();
    let says = |probe: &Probe, expected: &str| {
        let deadline = Instant::now() + LONG;
        // Other tests read stacks at the same time.
        while probe.snapshot().stack != Some(StackCapture::Missing(expected.to_owned())) {
            assert!(Instant::now() < deadline, "{:?}", probe.snapshot().stack);
            // Workers stall by time.
            thread::sleep(SOON);
        }
    };
    let start = || {
        let builder = WorkerHeartbeat::builder("mailer").stall_after(SOON);
        builder.registry(&registry).start().unwrap()
    };
    let hb = start();
    hb.beat();
    says(&hb.probe(), "no thread has reported for it yet");
    let hb = start();
    let probe = hb.probe();
    let spins = Arc::new(AtomicBool::new(true));
    let thread = thread::spawn({
        let spins = Arc::clone(&spins);
        move || {
            hb.update_task("order-7", "counting", Activity::Processing);
            while spins.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
    });
    says(&probe, "the thread is running");
    spins.store(false, Ordering::Relaxed);
    thread.join().unwrap();
}

#[test]
fn two_thousand_that_stall_at_once_share_what_is_read_and_hold_up_nothing() {
    let registry = Registry::new();
    let workers: Vec<_> = (0..2_000)
        .map(|_| {
            WorkerHeartbeat::builder("mailer")
                .stall_after(20 * SOON)
                .registry(&registry)
                .start()
                .unwrap()
        })
        .collect();
    let (sender, inbox) = mpsc::channel();
    let thread = thread::spawn(move || {
        for hb in &workers {
            hb.update_task("order-7", "reserving", Activity::Processing);
        }
        while reserve(&inbox).is_some() {}
        drop(workers);
    });
    // Of all workers at one moment, without more evidence on each.
    let stacks = || {
        let stalled = registry.summary().stalled_workers.into_iter();
        stalled.filter_map(|worker| match worker.health {
            Health::Stalled(stalled) => stalled.stack,
            other => panic!("{other}"),
        })
    };
    let deadline = Instant::now() + 3 * LONG;
    while stacks()
        .filter(|stack| *stack != StackCapture::Pending)
        .count()
        < 2_000
    {
        assert!(Instant::now() < deadline);
        // Workers stall by time.
        thread::sleep(SOON);
    }
    let (mut taken, mut different) = (0, HashSet::new());
    for stack in stacks() {
        match stack {
            StackCapture::Taken(stack) => {
                taken += 1;
                different.insert(Arc::as_ptr(&stack).addr());
            }
            StackCapture::Missing(why) => assert_eq!(
                why,
                "too many workers were convicted at once, and 64 stacks are read"
            ),
            // Those that had none are tried again.
            StackCapture::Pending => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(taken >= 64, "{taken}");
    assert_eq!(different.len(), 1);
    drop(sender);
    thread.join().unwrap();
}

/// The names of this process's threads.
fn thread_names() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn the_threads_end_with_the_work() {
    let registry = Registry::new();
    let events = registry.subscribe();
    let shop = Shop::open(&registry);
    wait_for(&events, captured);
    shop.close();
    drop(registry);
    // Those of other tests end as well.
    let deadline = Instant::now() + LONG;
    while thread_names()
        .iter()
        .any(|name| name.starts_with("wh-stack"))
    {
        assert!(Instant::now() < deadline);
        // A thread that ends is shown until the kernel has removed it.
        thread::sleep(SOON);
    }
}

#[test]
fn it_can_be_switched_off() {
    let registry = Registry::new();
    registry.capture_stacks(false);
    let events = registry.subscribe();
    let shop = Shop::open(&registry);
    wait_for(&events, |event| {
        matches!(event.kind, EventKind::Became(Health::Stalled(_))).then_some(())
    });
    // A stack would be read within this time.
    thread::sleep(10 * SOON);
    assert_eq!(shop.probe.snapshot().stack, None);
    assert!(!events.try_iter().any(|event| captured(&event).is_some()));
    shop.close();
}

/// The log needs it for a line about the worker `holder`.
static HELD: Mutex<()> = Mutex::new(());
static LINES: Mutex<Vec<(log::Level, String)>> = Mutex::new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let line = (record.level(), record.args().to_string());
        if line.1.starts_with("worker holder: its thread") {
            drop(HELD.lock());
        }
        LINES.lock().unwrap().push(line);
    }
    fn flush(&self) {}
}

fn set_logger() {
    static LOGGER: Once = Once::new();
    LOGGER.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    });
}

#[test]
fn a_worker_that_hangs_with_a_lock_of_the_log_holds_up_no_other_stack() {
    set_logger();
    let registry = Registry::new();
    let events = registry.subscribe();
    let hb = WorkerHeartbeat::builder("holder")
        .id("holder")
        .stall_after(SOON)
        .registry(&registry)
        .start()
        .unwrap();
    let (release, inbox) = mpsc::channel();
    let holder = thread::spawn(move || {
        let _held = HELD.lock().unwrap();
        hb.update_task("order-7", "reserving", Activity::Processing);
        while reserve(&inbox).is_some() {}
    });
    wait_for(&events, captured);
    let shop = Shop::open(&registry);
    wait_for(&events, captured);
    drop(release);
    holder.join().unwrap();
    shop.close();
}

#[test]
fn the_log_has_one_line_and_the_frames_at_debug_level() {
    set_logger();
    let registry = Registry::new();
    let shop = Shop::open(&registry);
    let of = |what: &str, lines: &[(log::Level, String)]| {
        let start = format!("worker {}: {what}", shop.probe.id());
        let found = lines.iter().find(|(_, line)| line.starts_with(&start));
        found.cloned()
    };
    let deadline = Instant::now() + LONG;
    let (frames, line) = loop {
        assert!(Instant::now() < deadline);
        let lines = LINES.lock().unwrap();
        if let Some(frames) = of("call stack\n", &lines) {
            break (frames, of("its thread hangs at ", &lines).unwrap());
        }
        drop(lines);
        // The log is written by another thread.
        thread::sleep(SOON);
    };
    assert_eq!(line.0, log::Level::Warn);
    assert!(
        line.1.contains("verdicts::reserve") && !line.1.contains('\n'),
        "{line:?}"
    );
    assert_eq!(frames.0, log::Level::Debug);
    let own = frames.1.lines().find(|line| line.starts_with('>')).unwrap();
    assert!(own.contains("verdicts::reserve"), "{frames:?}");
    assert!(frames.1.lines().count() > 5);
    shop.close();
}
