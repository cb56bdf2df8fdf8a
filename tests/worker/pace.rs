//! Limits that are learned from silences, and workers that are too fast.

use std::time::Duration;

use crate::support::{PATIENCE, SECOND, World, name, names, state};
use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{
    Activity, Builder, EventKind, FleetConfig, HeartbeatStore, Learn, Learned, Learner,
    MemoryStore, Moment, Rate, Restart, State, Supervisor, WorkerHeartbeat,
};

/// From 1 s to 20 s: it learns for 200 s.
fn learning(world: &World) -> Builder {
    let learn = Learn::new().floor(SECOND).ceiling(20 * SECOND);
    world.worker("w").learn_stall_after(learn)
}

fn learned(hb: &WorkerHeartbeat) -> Learned {
    hb.snapshot().learned.unwrap()
}

/// So many silences of this length, each ended by a beat.
fn beat(world: &World, hb: &WorkerHeartbeat, silences: u32, millis: u64) {
    for _ in 0..silences {
        world.millis(millis);
        hb.beat();
    }
}

#[test]
fn the_limit_is_the_ceiling_while_it_is_learned_and_then_fits_the_work() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    hb.beat();
    assert_eq!(
        learned(&hb).to_string(),
        "learning: 0 silences, 20 s allowed"
    );
    beat(&world, &hb, 200, 800);
    world.seconds(20);
    assert_eq!(state(&hb), State::Active);
    world.seconds(1);
    assert_eq!(state(&hb), State::Stalled, "never beyond the ceiling");
    hb.beat();
    beat(&world, &hb, 300, 800);
    let now = learned(&hb);
    assert_eq!(
        now.to_string(),
        format!(
            "usually 800 ms, allowed 1.6 s, from {} silences",
            now.silences
        )
    );
    assert!((498..=501).contains(&now.silences), "{now}");
    world.millis(1_500);
    assert_eq!(state(&hb), State::Active);
    world.millis(200);
    assert_eq!(state(&hb), State::Stalled);
    assert!(
        hb.health()
            .to_string()
            .starts_with("stalled: no progress for 1.7 s, 1.6 s allowed")
    );
}

#[test]
fn subscribers_learn_of_a_learned_limit_within_a_resolution() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    hb.beat();
    beat(&world, &hb, 500, 800);
    world.millis(100);
    let events = world.registry.subscribe();
    // The last beat was seen 100 ms after it was made at most.
    world.millis(1_500);
    assert_eq!(names(&events), ["late"]);
    world.millis(200);
    assert_eq!(names(&events), ["stalled"]);
    hb.beat();
    world.millis(100);
    assert_eq!(names(&events), ["recovered from stalled"]);
}

#[test]
fn a_worker_that_is_silent_while_the_limit_gets_shorter_is_convicted_at_once() {
    let world = World::new();
    let (hb, silent) = (
        learning(&world).start().unwrap(),
        learning(&world).start().unwrap(),
    );
    hb.beat();
    silent.beat();
    for _ in 0..247 {
        silent.beat();
        beat(&world, &hb, 1, 800);
    }
    // Ten ceilings are over with the next silences, when this worker has been silent for seconds.
    silent.beat();
    let events = world.registry.subscribe();
    beat(&world, &hb, 8, 800);
    assert!(!learned(&hb).is_learning);
    assert_eq!(state(&silent), State::Stalled);
    assert_eq!(names(&events), ["stalled"], "without a warning");
}

#[test]
fn the_limit_is_never_below_the_floor_nor_above_a_shorter_stall_after() {
    let world = World::new();
    let learn = Learn::new().floor(3 * SECOND).ceiling(20 * SECOND);
    let builder = world.worker("w").stall_after(5 * SECOND);
    let hb = builder.learn_stall_after(learn).start().unwrap();
    assert_eq!(hb.snapshot().thresholds.stall_after, Some(5 * SECOND));
    assert_eq!(learned(&hb).allowed, 5 * SECOND);
    hb.beat();
    beat(&world, &hb, 200, 400);
    assert_eq!(learned(&hb).allowed, 3 * SECOND);
    beat(&world, &hb, 200, 2_500);
    assert_eq!(learned(&hb).allowed, 5 * SECOND);
}

#[test]
fn each_activity_has_its_own_limit() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    for n in 0..200 {
        hb.update_task(n, "long", Activity::Processing);
        world.millis(4_000);
        hb.update_task("", "", Activity::Active);
        world.millis(500);
        hb.beat();
        world.millis(500);
    }
    assert_eq!(learned(&hb).allowed, SECOND);
    hb.update_task("last", "long", Activity::Processing);
    let long = learned(&hb);
    assert!((8 * SECOND..=9 * SECOND).contains(&long.allowed), "{long}");
    world.seconds(8);
    assert_eq!(state(&hb), State::Processing);
    world.seconds(1);
    assert_eq!(state(&hb), State::Stalled);
}

#[test]
fn idle_time_announced_silences_and_unobserved_time_are_not_learned() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    hb.beat();
    for n in 0..400 {
        hb.update_task("", "", Activity::Active);
        world.millis(800);
        match n % 4 {
            0 => {
                hb.mark_idle();
                world.seconds(60);
            }
            1 => {
                let _quiet = hb.expect_silence(60 * SECOND);
                world.seconds(15);
            }
            2 => {
                hb.beat();
                world.time.advance(Duration::ZERO);
                world.time.suspend(3_600 * SECOND);
                world.time.advance(Duration::ZERO);
            }
            _ => hb.beat(),
        }
    }
    let now = learned(&hb);
    assert!(now.longest <= Duration::from_millis(1_000), "{now:?}");
    assert!(now.allowed <= 2 * SECOND, "{now}");
    // Announced silences are allowed, whatever was learned.
    hb.update_task("", "", Activity::Active);
    let quiet = hb.expect_silence(60 * SECOND);
    world.seconds(59);
    assert_eq!(state(&hb), State::Active);
    drop(quiet);
}

#[test]
fn a_long_stall_that_recovers_teaches_nothing_and_a_new_pace_is_followed() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    hb.beat();
    beat(&world, &hb, 500, 800);
    let before = learned(&hb).allowed;
    for _ in 0..2 {
        beat(&world, &hb, 1, 18_000);
        beat(&world, &hb, 200, 800);
    }
    assert_eq!(learned(&hb).allowed, before, "outliers");

    let events = world.registry.subscribe();
    beat(&world, &hb, 100, 6_000);
    let convictions = names(&events);
    let convictions = convictions.iter().filter(|name| *name == "stalled");
    assert!(convictions.count() <= 3, "the third one is followed");
    assert!(learned(&hb).allowed >= 12 * SECOND);
}

#[test]
fn a_stall_of_all_workers_at_once_is_one_outlier() {
    let world = World::new();
    let workers: Vec<_> = (0..20).map(|_| learning(&world).start().unwrap()).collect();
    let beat_all = |silences: u32, millis: u64| {
        for _ in 0..silences {
            workers.iter().for_each(WorkerHeartbeat::beat);
            world.millis(millis);
        }
    };
    beat_all(500, 800);
    let before = learned(&workers[0]).allowed;
    assert!(before < 2 * SECOND);
    // A database that all of them use hangs.
    beat_all(1, 15_000);
    beat_all(50, 800);
    assert_eq!(learned(&workers[0]).allowed, before);
}

#[test]
fn a_restarted_or_replaced_worker_begins_with_what_was_learned_until_it_is_reset() {
    let world = World::new();
    let hb = learning(&world).id("one").start().unwrap();
    hb.beat();
    beat(&world, &hb, 500, 800);
    let before = learned(&hb);
    hb.fail("disk full");
    drop(hb);
    world.registry.purge(Duration::ZERO);
    let again = learning(&world).id("one").start().unwrap();
    let other = learning(&world).group("elsewhere").start().unwrap();
    for hb in [&again, &other] {
        assert_eq!(learned(hb), before);
        hb.beat();
    }
    world.millis(1_800);
    assert_eq!(state(&again), State::Stalled);

    assert!(!world.registry.forget_learned("unknown"));
    assert!(world.registry.forget_learned("w"));
    assert_eq!(
        learned(&again).to_string(),
        "learning: 0 silences, 20 s allowed"
    );
    assert_eq!(state(&again), State::Active);
    world.seconds(18);
    assert_eq!(state(&again), State::Active);

    // The silence of the life that ended is not that of the next one.
    let supervisor = Supervisor::new(&world.registry).restart(Restart::never());
    drop(supervisor);
    assert_eq!(learned(&again).silences, 0);
}

#[test]
fn beats_between_two_ticks_are_one_silence_of_a_resolution() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    assert_eq!(
        world.registry.resolution(),
        SECOND / 10,
        "a tenth of the floor"
    );
    hb.beat();
    for _ in 0..2_500 {
        (0..50).for_each(|_| hb.beat());
        world.millis(100);
    }
    let now = learned(&hb);
    assert_eq!(now.allowed, SECOND, "the floor");
    assert!(now.usual <= SECOND / 5, "{now}");
    // Its last beat was 100 ms before.
    world.millis(900);
    assert_eq!(state(&hb), State::Active, "ages are never over-estimated");
}

#[test]
fn an_inner_task_allowance_goes_before_a_learned_limit() {
    let world = World::new();
    let hb = learning(&world).start().unwrap();
    hb.beat();
    beat(&world, &hb, 500, 800);
    let _outer = hb.begin_task("run-1", "outer");
    {
        let _quiet = hb.expect_silence(10 * SECOND);
        world.seconds(9);
        assert_eq!(state(&hb), State::Processing);
    }
    // Named tasks have not been seen for long: their limit is the ceiling.
    world.seconds(19);
    assert_eq!(state(&hb), State::Processing);
}

// --- too fast ----------------------------------------------------------------------------------------

fn fail_at_once(world: &World, hb: &WorkerHeartbeat, tenths: u32, each: u32) {
    for _ in 0..tenths {
        for attempt in 0..each {
            drop(hb.begin_task(attempt, "connecting"));
        }
        world.millis(100);
    }
}

#[test]
fn a_loop_that_fails_at_once_is_racing_until_it_slows_down() {
    let world = World::new();
    let builder = world.worker("w").id("w-1").stall_after(SECOND);
    let hb = builder.at_most(Rate::per_second(100)).start().unwrap();
    let events = world.registry.subscribe();
    fail_at_once(&world, &hb, 50, 4);
    assert_eq!(names(&events), ["started"], "80 a second are allowed");
    assert_eq!(hb.snapshot().racing, None);

    fail_at_once(&world, &hb, 50, 500);
    let racing: Vec<_> = events.try_iter().collect();
    assert_eq!(racing.len(), 1);
    let text = racing[0].to_string();
    assert!(text.starts_with("worker w-1: racing: "), "{text}");
    assert!(text.ends_with(", at most 100 in 1 s allowed"), "{text}");
    let snapshot = hb.snapshot();
    let rate = snapshot.racing.unwrap().per_second_f64();
    assert!((9_000.0..=11_000.0).contains(&rate), "{rate}");
    assert!(snapshot.to_string().contains("racing: "), "{snapshot}");
    assert!(hb.is_recent(), "a warning, not a verdict");
    let counters = world.registry.counters();
    assert_eq!(counters.by_type["w"].racing_warnings, 1);

    // Slower for a moment only.
    fail_at_once(&world, &hb, 12, 0);
    fail_at_once(&world, &hb, 100, 500);
    assert!(events.try_iter().next().is_none(), "it does not flap");
    // It is idle: no progress, and no beat that would be seen.
    world.seconds(5);
    let ends: Vec<_> = events.try_iter().map(|event| name(&event)).collect();
    assert_eq!(ends, ["slowed"]);
    assert_eq!(hb.snapshot().racing, None);
}

#[test]
fn a_burst_is_no_race_and_a_gap_makes_none() {
    let world = World::new();
    let hb = world
        .worker("w")
        .at_most(Rate::per_second(100))
        .start()
        .unwrap();
    let events = world.registry.subscribe();
    hb.beat();
    for _ in 0..5 {
        fail_at_once(&world, &hb, 10, 1_000);
        fail_at_once(&world, &hb, 20, 2);
    }
    // The pacemaker got no time, and the worker did: at its usual pace.
    for _ in 0..10 {
        (0..30_000).for_each(|_| hb.beat());
        world.time.suspend(300 * SECOND);
        world.time.advance(Duration::ZERO);
        fail_at_once(&world, &hb, 2, 2);
    }
    let racing = events
        .try_iter()
        .any(|event| matches!(event.kind, EventKind::Racing { .. }));
    assert!(!racing);
}

#[test]
fn the_end_of_a_life_ends_its_race_and_the_next_life_begins_anew() {
    let world = World::new();
    let builder = || world.worker("w").id("w-1").at_most(Rate::per_second(100));
    let hb = builder().start().unwrap();
    let events = world.registry.subscribe();
    fail_at_once(&world, &hb, 50, 500);
    assert!(hb.snapshot().racing.is_some());
    hb.fail("gave up");
    assert_eq!(hb.snapshot().racing, None);
    drop(hb);
    let hb = builder().start().unwrap();
    fail_at_once(&world, &hb, 50, 2);
    assert_eq!(
        names(&events),
        ["started", "racing", "dead", "registered", "started"]
    );
    assert_eq!(hb.snapshot().racing, None);
}

#[test]
fn a_race_is_in_the_log_fields_json_and_counters() {
    let world = World::new();
    let hb = world
        .worker("w")
        .at_most(Rate::per_second(100))
        .start()
        .unwrap();
    hb.beat();
    fail_at_once(&world, &hb, 50, 500);
    let mut seen = 0;
    world.registry.counters().each(|name, _, value| {
        if name == "racing_warnings" {
            seen += value;
        }
    });
    assert_eq!(seen, 1);
    #[cfg(feature = "serde")]
    {
        let json = serde_json::to_value(hb.snapshot()).unwrap();
        assert!(json["racing_per_s"].as_f64().unwrap() > 9_000.0, "{json}");
        assert_eq!(json["at_most_per_s"], 100.0);
        assert_eq!(json.get("learned"), None);
        let hb = learning(&world).start().unwrap();
        let json = serde_json::to_value(hb.snapshot()).unwrap();
        assert_eq!(json["learned"]["allowed_s"], 20.0);
        assert_eq!(json["learned"]["is_learning"], true);
    }
}

// --- the rule by itself ------------------------------------------------------------------------------

/// Replays silences, in milliseconds. Returns how many were convicted.
fn replay(learner: &mut Learner, now: &mut Moment, silences: impl Iterator<Item = u64>) -> usize {
    silences
        .filter(|millis| {
            let silence = Duration::from_millis(*millis);
            let convicted = silence > learner.learned().allowed;
            let from = std::mem::replace(now, now.after(silence));
            learner.observe(from, *now);
            convicted
        })
        .count()
}

#[test]
fn a_phase_that_returns_is_remembered_for_three_hundred_ceilings() {
    let learn = Learn::new().floor(SECOND).ceiling(60 * SECOND);
    let (mut learner, mut now) = (Learner::new(learn), Moment::ZERO);
    // Every hour, one silence of 40 s: 1.1 % of the work.
    let hour = || (0..3_600).map(|second| if second == 0 { 40_000 } else { 1_000 });
    let first = replay(&mut learner, &mut now, (0..10).flat_map(|_| hour()));
    assert!(first <= 3, "{first}");
    let rest = replay(&mut learner, &mut now, (0..200).flat_map(|_| hour()));
    assert_eq!(rest, 0);
    assert_eq!(learner.learned().allowed, 60 * SECOND);
    // When it does not return, it is forgotten.
    replay(&mut learner, &mut now, (0..400 * 60 + 3_600).map(|_| 1_000));
    assert_eq!(learner.learned().allowed, 2 * SECOND);
}

#[test]
fn a_drift_is_followed_without_a_conviction() {
    let (mut learner, mut now) = (Learner::new(Learn::new()), Moment::ZERO);
    let slower = (0..50_000).map(|n| 1_000 + n);
    assert_eq!(replay(&mut learner, &mut now, slower), 0);
    assert!(learner.learned().allowed > 90 * SECOND);
}

#[test]
fn absurd_bounds_and_silences_do_no_harm() {
    for learn in [
        Learn::new().floor(Duration::MAX).ceiling(Duration::MAX),
        Learn::new().floor(Duration::ZERO).ceiling(Duration::ZERO),
        Learn::new().floor(SECOND).ceiling(Duration::ZERO),
    ] {
        let mut learner = Learner::new(learn);
        for n in 0..200 {
            learner.observe(Moment::ZERO, Moment::from_nanos(n));
            learner.observe(Moment::ZERO, Moment::NEVER);
            learner.observe(Moment::NEVER, Moment::ZERO);
        }
        assert!(learner.learned().silences >= 600);
    }
}

// --- what was reported of similar programs -----------------------------------------------------------

#[test]
fn a_heartbeat_whose_usual_gaps_are_long_and_irregular_is_learned() {
    // Measured on agents whose loop takes 1.06 s in the median: 13 % of the time, their heartbeat was
    // older than 2 s, up to 27 s.
    let gaps = [
        2_830, 27_130, 2_820, 15_010, 4_000, 4_570, 2_530, 3_160, 15_360, 4_060, 9_190, 16_870,
    ];
    let (mut learner, mut now) = (Learner::new(Learn::new()), Moment::ZERO);
    let silences = |hours: usize| {
        (0..hours * 3_000).map(move |n| {
            if n % 27 == 0 {
                gaps[n / 27 % gaps.len()]
            } else {
                1_060
            }
        })
    };
    let convicted = replay(&mut learner, &mut now, silences(48));
    assert_eq!(convicted, 0);
    assert!(learner.learned().allowed < 90 * SECOND);
}

#[test]
fn few_and_steady_silences_make_no_tight_limit() {
    // Three heartbeats a second apart, and then a pause of 15 s for a garbage collection.
    let (mut learner, mut now) = (Learner::new(Learn::new()), Moment::ZERO);
    let pauses = || (0..60).map(|n| if n % 4 == 3 { 15_000 } else { 1_000 });
    assert_eq!(replay(&mut learner, &mut now, pauses()), 0);
    assert!(learner.learned().is_learning);
    let frequent = (0..50).flat_map(|_| pauses());
    assert_eq!(replay(&mut learner, &mut now, frequent), 0);
    assert_eq!(learner.learned().allowed, 45 * SECOND);
}

#[test]
fn a_race_that_begins_again_is_reported_again() {
    let world = World::new();
    let hb = world
        .worker("w")
        .at_most(Rate::per_second(100))
        .start()
        .unwrap();
    let events = world.registry.subscribe();
    for _ in 0..3 {
        fail_at_once(&world, &hb, 40, 500);
        world.seconds(4);
    }
    let seen = names(&events).into_iter().filter(|name| name != "started");
    assert_eq!(
        seen.collect::<Vec<_>>(),
        ["racing", "slowed", "racing", "slowed", "racing", "slowed"]
    );
}

#[test]
fn a_loop_that_crashes_and_starts_again_every_five_seconds_is_found() {
    let world = World::new();
    let hb = world
        .worker("w")
        .at_most(Rate::per_minute(6))
        .start()
        .unwrap();
    let events = world.registry.subscribe();
    for _ in 0..12 {
        hb.beat();
        world.seconds(5);
    }
    assert_eq!(names(&events), ["started", "racing"]);
}

#[test]
fn a_store_has_the_learned_allowance_of_a_stall_and_the_warning_of_a_race() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let row = |id: &str| {
        assert!(attachment.flush(PATIENCE));
        let rows = store.list(&WorkerFilter::default()).unwrap();
        rows.into_iter().find(|row| row.key.id == id).unwrap()
    };
    let hb = learning(&world)
        .id("stalls")
        .interval(SECOND)
        .start()
        .unwrap();
    hb.beat();
    beat(&world, &hb, 500, 800);
    world.seconds(3);
    let stalled = row("stalls");
    let reported = stalled.status.reason.clone().unwrap();
    assert!(reported.contains("1.6 s allowed"), "{reported}");
    let judged = stalled.health().to_string();
    assert!(judged.contains("1.6 s allowed"), "{judged}");

    let builder = world.worker("w").id("races").interval(SECOND);
    let hb = builder.at_most(Rate::per_second(100)).start().unwrap();
    fail_at_once(&world, &hb, 50, 500);
    let races = row("races");
    assert_eq!(races.health().state(), State::Idle);
    let reason = races.status.reason.unwrap();
    assert!(reason.starts_with("racing: "), "{reason}");
}
