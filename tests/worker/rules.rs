//! The rules of the two signals, by name, on the mock clock.

use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, SystemTime};

use crate::support::{SECOND, World, eventually, names, state, wait_for};
use proptest::prelude::*;
use worker_heartbeat::{
    Activity, Moment, Reading, Registry, Restart, State, Supervisor, Thresholds, WorkerHeartbeat,
    judge,
};

// --- the two signals -------------------------------------------------------------------------

#[test]
fn the_pacemaker_vouches_for_a_silent_worker_that_lives() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    world.seconds(100_000);
    assert_eq!(state(&hb), State::Active);
    let snapshot = hb.snapshot();
    assert!(snapshot.heartbeat_age.unwrap() <= world.registry.resolution());
    assert_eq!(
        snapshot.progress_age,
        Some(SECOND * 100_000),
        "both signals are shown, and not mixed up"
    );
}

#[test]
fn the_pacemaker_vouches_no_longer_for_work_that_does_not_move() {
    let world = World::new();
    let hb = world.worker("w").stall_after(300 * SECOND).start().unwrap();
    hb.beat();
    world.seconds(300);
    assert!(hb.is_recent());
    world.seconds(100);
    assert_eq!(state(&hb), State::Stalled);
    assert_eq!(
        hb.snapshot().heartbeat_age,
        Some(100 * SECOND),
        "it was known to be well until its allowance ran out"
    );
}

#[test]
fn with_beats_only_the_pacemaker_does_not_vouch() {
    let world = World::new();
    let hb = world
        .worker("w")
        .stale_after(90 * SECOND)
        .beats_only()
        .start()
        .unwrap();
    hb.beat();
    world.seconds(90);
    assert!(hb.is_recent());
    world.seconds(1);
    assert_eq!(state(&hb), State::Stale);
    hb.mark_idle();
    assert_eq!(state(&hb), State::Idle, "idle is progress");
    world.seconds(91);
    assert_eq!(state(&hb), State::Stale, "and then silence, idle or not");
    hb.beat();
    assert!(hb.is_recent());
}

#[test]
fn the_pacemaker_does_not_vouch_before_the_first_beat() {
    let world = World::new();
    let events = world.registry.subscribe();
    let hb = world
        .worker("w")
        .startup_grace(60 * SECOND)
        .start()
        .unwrap();
    world.seconds(60);
    assert_eq!(state(&hb), State::Starting);
    assert!(!hb.is_recent());
    assert_eq!(hb.last_heartbeat(), None);
    assert_eq!(hb.snapshot().last_heartbeat_unix(), 0.0);
    assert_eq!(
        names(&events),
        ["registered"],
        "no warning: it may be silent"
    );
    world.seconds(600);
    assert_eq!(state(&hb), State::NeverStarted);
    assert_eq!(names(&events), ["never_started"], "reported once");
    hb.beat();
    assert_eq!(state(&hb), State::Active, "a first beat still recovers it");
    world.seconds(1);
    assert_eq!(names(&events), ["recovered from never_started"]);
}

// --- rule 1 ----------------------------------------------------------------------------------

#[test]
fn rule_1_each_reader_also_observes() {
    let world = World::new();
    let hb = world
        .worker("w")
        .stale_after(90 * SECOND)
        .beats_only()
        .start()
        .unwrap();
    hb.beat();
    world.seconds(91);
    assert!(!hb.is_recent());
    hb.beat();
    // No tick since: the handle, a probe, the summary and the registry see it all the same.
    assert!(hb.is_recent());
    assert!(hb.probe().is_recent());
    assert_eq!(world.registry.summary().total_active, 1);
    assert!(world.registry.get(hb.id()).unwrap().is_recent());
    assert_eq!(hb.snapshot().progress_age, Some(Duration::ZERO));
}

// --- rule 2 ----------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Never early, and at most one resolution late: by readers and by events.
    #[test]
    fn rule_2_a_conviction_is_never_early_and_at_most_one_resolution_late(
        limit in 20_u64..200_000,
        unobserved in 0.0_f64..1.0,
        other in proptest::option::of(20_u64..200_000),
        beats_only in any::<bool>(),
    ) {
        let world = World::new();
        let limit = Duration::from_millis(limit);
        let worker = world.worker("w").interval(Duration::from_millis(1));
        let hb = if beats_only {
            worker.stale_after(limit).beats_only()
        } else {
            worker.stale_after(400 * SECOND).stall_after(limit)
        }
        .startup_grace(400 * SECOND)
        .start()
        .unwrap();
        // Another worker may need a finer resolution, or accept a coarser one.
        let _other = other.map(|millis| {
            let hb = world.worker("other").interval(Duration::from_millis(1));
            hb.stale_after(Duration::from_millis(millis)).start().unwrap()
        });
        world.seconds(3);
        let resolution = world.registry.resolution();
        let events = world.registry.subscribe();

        let beat_at = world.time.now();
        hb.beat();
        // For a part of a tick the pacemaker observes nothing.
        world.time.suspend(resolution.mul_f64(unobserved));
        world.time.advance(Duration::ZERO);

        let due = beat_at.after(limit);
        world.time.advance(due.since(world.time.now()));
        prop_assert!(hb.is_recent(), "early: {:?}", hb.health());
        let reported = |name: &str| names(&events).iter().any(|event| event == name);
        prop_assert!(!reported("stalled") && !reported("stale"));

        world.time.advance(resolution + Duration::from_nanos(1));
        prop_assert!(!hb.is_recent(), "late: {:?}", hb.snapshot());
        let expected = if beats_only { "stale" } else { "stalled" };
        prop_assert!(reported(expected));
    }

    /// An age is at most one resolution too small, and never too large.
    #[test]
    fn rule_2_ages_are_never_over_estimated(steps in proptest::collection::vec((0_u64..5_000, any::<bool>()), 1..40)) {
        let world = World::new();
        let hb = world.worker("w").beats_only().start().unwrap();
        hb.beat();
        let mut beat_at = world.time.now();
        for (millis, beats) in steps {
            world.time.advance(Duration::from_millis(millis));
            let age = hb.snapshot().progress_age.unwrap();
            let real = world.time.now().since(beat_at);
            prop_assert!(age <= real);
            prop_assert!(age + world.registry.resolution() >= real);
            if beats {
                hb.beat();
                beat_at = world.time.now();
            }
        }
    }
}

#[test]
fn rule_2_the_resolution_is_a_tenth_of_the_shortest_threshold() {
    let world = World::new();
    let resolution = || world.registry.resolution();
    assert_eq!(resolution(), SECOND);
    let _long = world
        .worker("long")
        .stale_after(90 * SECOND)
        .start()
        .unwrap();
    assert_eq!(resolution(), SECOND);
    let short = world
        .worker("short")
        .stall_after(2 * SECOND)
        .start()
        .unwrap();
    assert_eq!(resolution(), SECOND / 5);
    let shorter = world
        .worker("shorter")
        .stall_after(Duration::from_millis(20))
        .start()
        .unwrap();
    assert_eq!(resolution(), Duration::from_millis(10));
    drop(shorter);
    world.seconds(1);
    assert_eq!(resolution(), SECOND / 5);
    drop(short);
    world.seconds(1);
    assert_eq!(resolution(), SECOND);
}

// --- rule 3 ----------------------------------------------------------------------------------

#[test]
fn rule_3_unobserved_time_is_not_charged() {
    let world = World::new();
    let silent = world
        .worker("silent")
        .stale_after(90 * SECOND)
        .beats_only()
        .start()
        .unwrap();
    let working = world
        .worker("working")
        .stall_after(60 * SECOND)
        .start()
        .unwrap();
    let fresh = world
        .worker("fresh")
        .startup_grace(60 * SECOND)
        .start()
        .unwrap();
    silent.beat();
    working.beat();
    world.seconds(50);
    let events = world.registry.subscribe();
    for _ in 0..3 {
        world.time.suspend(3_600 * SECOND);
        assert!(silent.is_recent(), "a reader wakes the pacemaker");
        assert!(working.is_recent());
        assert_eq!(state(&fresh), State::Starting);
        world.seconds(1);
    }
    assert_eq!(names(&events), ["unobserved", "unobserved", "unobserved"]);
    // Each gap was charged with two resolutions at most; the rest of the time still counts.
    world.seconds(50);
    assert_eq!(state(&silent), State::Stale);
    assert_eq!(state(&working), State::Stalled);
    assert_eq!(state(&fresh), State::NeverStarted);
}

#[test]
fn rule_3_the_age_of_the_last_tick_is_reported() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    world.millis(700);
    assert_eq!(
        world.registry.summary().tick_age,
        Duration::from_millis(700)
    );
    assert_eq!(hb.snapshot().tick_age, Duration::from_millis(700));
    // Each advance begins with a look, and the next one is a resolution later.
    world.millis(1_200);
    assert_eq!(hb.snapshot().tick_age, Duration::from_millis(200));
}

/// A waker that blocks the thread that wakes it until it is released.
struct Obstacle {
    reached: mpsc::SyncSender<()>,
    release: std::sync::Mutex<mpsc::Receiver<()>>,
}

impl Wake for Obstacle {
    fn wake(self: Arc<Self>) {
        self.reached.send(()).unwrap();
        self.release.lock().unwrap().recv().unwrap();
    }
}

#[test]
fn rule_3_without_a_pacemaker_the_answer_is_unobserved_and_then_the_truth() {
    // The system's clock: a pacemaker that hangs would hang the mock clock as well.
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("w")
        .interval(Duration::from_millis(10))
        .stale_after(Duration::from_millis(100))
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    let (reached, is_reached) = mpsc::sync_channel(1);
    let (let_go, release) = mpsc::channel();
    let waker = Waker::from(Arc::new(Obstacle {
        reached,
        release: std::sync::Mutex::new(release),
    }));
    // A future that waits for its restart is woken by the pacemaker, which then blocks in the
    // waker.
    let supervisor = Supervisor::new(&registry).restart(Restart::on_failure());
    let mut failing = Box::pin(
        supervisor
            .supervise(WorkerHeartbeat::builder("failing"), |_| async {
                Err::<(), _>("no")
            })
            .unwrap(),
    );
    let polled = failing.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(matches!(polled, Poll::Pending));
    is_reached.recv().unwrap();

    eventually("unobserved", || state(&hb) == State::Unobserved);
    assert!(!hb.is_recent());
    assert!(!registry.summary().is_healthy());
    assert!(!registry.sweep().success);
    assert!(hb.snapshot().tick_age > Duration::ZERO);
    hb.stop();
    assert_eq!(
        state(&hb),
        State::Stopped,
        "a worker that has ended needs no observer"
    );
    let other = WorkerHeartbeat::builder("x")
        .registry(&registry)
        .start()
        .unwrap();
    other.beat();
    let_go.send(()).unwrap();
    eventually("observed again", || state(&other) == State::Active);
}

// --- rule 4 ----------------------------------------------------------------------------------

#[test]
fn rule_4_wall_time_is_now_minus_age() {
    let world = World::new();
    let hb = world.worker("w").beats_only().start().unwrap();
    let wall = || world.registry.clock().wall();
    hb.beat();
    let beat_at = wall();
    world.seconds(40);
    assert_eq!(hb.last_heartbeat(), Some(beat_at));
    assert_eq!(wall().duration_since(beat_at).unwrap(), 40 * SECOND);
    let unix = hb.snapshot().last_heartbeat_unix();
    let expected = beat_at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!((unix - expected.as_secs_f64()).abs() < 0.001);
    hb.stop();
    world.seconds(40);
    assert_eq!(
        hb.last_heartbeat(),
        Some(beat_at),
        "the heartbeat of one that ended stays where it was"
    );
}

// --- rule 5 ----------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The handle, the probe, the snapshot, the summary and `judge` itself never disagree.
    #[test]
    fn rule_5_one_function_judges(
        steps in proptest::collection::vec((0_u8..9, 0_u64..200), 1..30),
        stall in proptest::option::of(10_u64..100),
        beats_only in any::<bool>(),
    ) {
        let world = World::new();
        let mut worker = world.worker("w").stale_after(90 * SECOND);
        if let Some(stall) = stall {
            worker = worker.stall_after(SECOND * stall as u32);
        }
        if beats_only {
            worker = worker.beats_only();
        }
        let hb = worker.start().unwrap();
        for (step, seconds) in steps {
            match step {
                0 | 1 => hb.beat(),
                2 => hb.update_task("run", "task", Activity::Processing),
                3 => hb.update_task("run", "task", Activity::Active),
                4 => hb.mark_idle(),
                5 => world.time.suspend(SECOND * seconds as u32),
                6 if seconds > 190 => hb.stop(),
                7 if seconds > 190 => hb.fail("x"),
                _ => world.time.advance(SECOND * seconds as u32),
            }
            let snapshot = hb.snapshot();
            let verdict = snapshot.health.state();
            prop_assert_eq!(hb.health().state(), verdict);
            prop_assert_eq!(hb.probe().health().state(), verdict);
            prop_assert_eq!(hb.is_recent(), verdict.is_recent());
            let summary = world.registry.summary();
            prop_assert_eq!(summary.states.get(verdict), 1);
            prop_assert_eq!(summary.total, 1);
            if verdict.is_terminal() {
                continue;
            }
            let now = Moment::ZERO.after(1_000_000_000 * SECOND);
            let mut reading = Reading::new(now.before(100 * SECOND));
            reading.activity = snapshot.activity;
            reading.progress_at = snapshot.progress_age.map(|age| now.before(age));
            reading.heartbeat_at = snapshot.heartbeat_age.map(|age| now.before(age));
            if reading.progress_at.is_some() {
                prop_assert_eq!(judge(&reading, &snapshot.thresholds, now).state(), verdict);
            }
        }
    }
}

#[test]
fn rule_5_is_recent_is_true_for_four_states_only() {
    let recent: Vec<_> = State::ALL
        .into_iter()
        .filter(|state| state.is_recent())
        .collect();
    assert_eq!(
        recent,
        [
            State::Idle,
            State::Active,
            State::Processing,
            State::Stopping
        ]
    );
    let thresholds = Thresholds::new(90 * SECOND);
    assert_eq!(thresholds.startup_grace, thresholds.stale_after);
}

// --- the mock clock --------------------------------------------------------------------------

#[test]
fn ten_thousand_advances_with_a_hundred_workers_need_no_sleep() {
    let world = World::new();
    let workers: Vec<_> = (0..100)
        .map(|_| {
            let worker = world.worker("w").stall_after(90 * SECOND);
            worker.startup_grace(200 * SECOND).start().unwrap()
        })
        .collect();
    let events = world.registry.subscribe_with_capacity(100_000);
    for step in 0..10_000 {
        workers[step % 100].beat();
        world.seconds(1);
    }
    // Each worker beats every 100 s: it stalls after 90 s, and recovers, 99 times; ten of them stall
    // once more before the end.
    let reported = names(&events);
    let count = |name: &str| reported.iter().filter(|event| *event == name).count();
    assert_eq!(count("started"), 100);
    assert_eq!(count("stalled"), 99 * 100 + 10);
    assert_eq!(count("recovered from stalled"), 99 * 100);
}

#[test]
fn two_registries_on_one_clock_tick_together() {
    let world = World::new();
    let other = Registry::with_clock(world.time.clock());
    let one = world.worker("w").stall_after(20 * SECOND).start().unwrap();
    let two = WorkerHeartbeat::builder("w")
        .stall_after(33 * SECOND)
        .registry(&other)
        .start()
        .unwrap();
    one.beat();
    two.beat();
    let (events, others) = (world.registry.subscribe(), other.subscribe());
    world.seconds(40);
    assert_eq!(names(&events), ["started", "late", "stalled"]);
    assert_eq!(names(&others), ["started", "late", "stalled"]);
}

#[test]
fn a_conviction_is_reported_at_its_moment() {
    let world = World::new();
    let hb = world.worker("w").stall_after(300 * SECOND).start().unwrap();
    hb.beat();
    let events = world.registry.subscribe();
    let begun = world.registry.clock().wall();
    world.seconds(1_000);
    let reported_at = wait_for(&events, "stalled").at;
    assert_eq!(
        reported_at.duration_since(begun).unwrap(),
        300 * SECOND + Duration::from_nanos(1)
    );
}

#[test]
fn names_that_look_alike_are_refused_with_the_field_and_the_fault() {
    let world = World::new();
    for (id, fault) in [
        (" ", "it begins or ends with a space"),
        ("a\u{a0}", "it begins or ends with a space"),
        ("a\u{202e}b", "it has invisible characters"),
        ("a\u{61c}", "it has invisible characters"),
        ("\u{200b}", "it has invisible characters"),
        ("a\u{2028}b", "it has invisible characters"),
        ("a\u{e0041}", "it has invisible characters"),
        ("a\u{fe0f}", "it has invisible characters"),
    ] {
        let error = world
            .worker("poller")
            .id(id)
            .start()
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("invalid id: ") && error.contains(fault),
            "{error}"
        );
        assert!(error.is_ascii(), "{error}");
        let error = world.worker(id).start().unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
        let error = world
            .worker("poller")
            .group(id)
            .start()
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("invalid group: "), "{error}");
    }
    for id in ["b c", "grün", "検索-1", "ouvrière №7", "🦀"] {
        world.worker("poller").id(id).start().expect(id);
    }
}
