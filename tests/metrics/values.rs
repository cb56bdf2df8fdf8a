//! The value of each metric, on the mock clock.

use std::time::Instant;

use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{
    Activity, FleetConfig, HeartbeatStore, MemoryStore, Metrics, Restart, State, Supervisor,
    Sweeper,
};

use crate::scrape::Scrape;
use crate::support::store::{Mode, TestStore};
use crate::support::{PATIENCE, SECOND, World, eventually, wait_for};

#[test]
fn workers_are_counted_by_type_and_state() {
    let world = World::new();
    let idle = world.worker("indexer").start().unwrap();
    idle.mark_idle();
    let stalled = world
        .worker("indexer")
        .stall_after(10 * SECOND)
        .start()
        .unwrap();
    stalled.update_task("run-1", "", Activity::Processing);
    world.seconds(11);
    let working = world.worker("indexer").start().unwrap();
    working.update_task("run-2", "", Activity::Processing);
    let _starting = world.worker("indexer").start().unwrap();
    let quiet = world
        .worker("indexer")
        .stall_after(10 * SECOND)
        .start()
        .unwrap();
    let _silence = quiet.expect_silence(600 * SECOND);
    world.worker("mailer").start().unwrap().fail("no luck");
    world.worker("mailer").start().unwrap().stop();

    let scrape = Scrape::new(&world.registry);
    let of = |worker_type: &str, state: State| {
        scrape.get(&format!(
            "workers{{worker_type=\"{worker_type}\",state=\"{state}\"}}"
        ))
    };
    for (state, count) in world.registry.summary().stats_by_type["indexer"]
        .states
        .iter()
    {
        assert_eq!(of("indexer", state), count as f64, "{state}");
    }
    for (state, count) in [
        (State::Idle, 1.0),
        (State::Stalled, 1.0),
        (State::Processing, 1.0),
        (State::Starting, 1.0),
        (State::Active, 1.0),
    ] {
        assert_eq!(of("indexer", state), count, "{state}");
    }
    let mailers = State::ALL.map(|state| of("mailer", state));
    assert_eq!(mailers.iter().sum::<f64>(), 2.0);
    assert_eq!(
        (of("mailer", State::Dead), of("mailer", State::Stopped)),
        (1.0, 1.0)
    );

    world.registry.purge(std::time::Duration::ZERO);
    let scrape = Scrape::new(&world.registry);
    for state in State::ALL {
        let line = format!("workers{{worker_type=\"mailer\",state=\"{state}\"}}");
        assert_eq!(scrape.get(&line), 0.0, "its line stays");
    }
}

#[test]
fn each_age_is_the_greatest() {
    let world = World::new();
    let age =
        |name: &str| Scrape::new(&world.registry).find(&format!("{name}{{worker_type=\"w\"}}"));
    let fresh = world.worker("w").start().unwrap();
    let silent = world.worker("w").beats_only().start().unwrap();
    fresh.beat();
    silent.beat();
    world.seconds(1);
    for _ in 0..30 {
        world.seconds(1);
        fresh.beat();
    }
    // A beat is dated when it is observed: never too early, and at most one resolution late.
    for name in ["heartbeat_age_seconds", "progress_age_seconds"] {
        assert!((30.0..=31.0).contains(&age(name).unwrap()), "{name}");
    }
    silent.mark_idle();
    drop(silent);
    assert!(age("heartbeat_age_seconds").unwrap() <= 1.0);
    fresh.mark_idle();
    world.seconds(20);
    assert_eq!(
        age("progress_age_seconds"),
        Some(0.0),
        "no worker is at work"
    );
    assert!(
        age("heartbeat_age_seconds").unwrap() <= 1.0,
        "the pacemaker vouches for the worker"
    );
    let _starting = world.worker("w").start().unwrap();
    world.seconds(40);
    assert_eq!(
        age("heartbeat_age_seconds"),
        Some(40.0),
        "since it was registered"
    );
    drop((fresh, _starting));
    assert_eq!(age("heartbeat_age_seconds"), None, "no worker lives");
}

#[test]
fn events_are_counted_by_type() {
    let world = World::new();
    let one = |name: &str| {
        let scrape = Scrape::new(&world.registry);
        scrape.get(&format!("{name}{{worker_type=\"w\"}}"))
    };
    let deaths = |cause: &str| {
        let scrape = Scrape::new(&world.registry);
        scrape.get(&format!(
            "deaths_total{{worker_type=\"w\",cause=\"{cause}\"}}"
        ))
    };
    let hb = world
        .worker("w")
        .id("a")
        .stall_after(10 * SECOND)
        .start()
        .unwrap();
    (0..3).for_each(|_| hb.beat());
    assert_eq!((one("beats_total"), one("registrations_total")), (3.0, 1.0));
    assert_eq!((one("restarts_total"), one("stalls_total")), (0.0, 0.0));
    for cause in ["panicked", "failed", "exited", "fenced"] {
        assert_eq!(
            deaths(cause),
            0.0,
            "each cause is exported from the beginning"
        );
    }
    for stalls in 1..=2 {
        world.seconds(12);
        assert_eq!(one("stalls_total"), f64::from(stalls));
        world.seconds(5);
        assert_eq!(
            one("stalls_total"),
            f64::from(stalls),
            "one for each episode"
        );
        hb.beat();
        world.seconds(1);
    }
    hb.fail("no luck");
    assert_eq!((deaths("failed"), one("beats_total")), (1.0, 5.0));
    drop(hb);
    let hb = world.worker("w").id("a").start().unwrap();
    hb.beat();
    assert_eq!(
        (one("restarts_total"), one("registrations_total")),
        (1.0, 2.0)
    );
    assert_eq!(one("beats_total"), 6.0);
    world.registry.purge(std::time::Duration::ZERO);
    assert_eq!((deaths("failed"), one("beats_total")), (1.0, 6.0));

    let _late = world.worker("w").startup_grace(5 * SECOND).start().unwrap();
    let silent = world.worker("w").beats_only().start().unwrap();
    silent.beat();
    world.seconds(92);
    assert_eq!(
        (one("never_started_total"), one("stale_episodes_total")),
        (1.0, 1.0)
    );
}

#[test]
fn restarts_and_workers_that_were_given_up_are_counted() {
    let world = World::new();
    let events = world.registry.subscribe();
    let restart = Restart::on_failure()
        .max(2)
        .within(60 * SECOND)
        .backoff(SECOND, SECOND)
        .jitter(0.0);
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let worker = supervisor
        .spawn(world.worker("w"), |hb| {
            hb.beat();
            Err("no luck".into())
        })
        .unwrap();
    for attempt in ["restart 1", "restart 2"] {
        wait_for(&events, attempt);
        world.seconds(1);
    }
    worker.join();
    let scrape = Scrape::new(&world.registry);
    for (series, value) in [
        ("registrations_total{worker_type=\"w\"}", 3.0),
        ("restarts_total{worker_type=\"w\"}", 2.0),
        ("give_ups_total{worker_type=\"w\"}", 1.0),
        ("beats_total{worker_type=\"w\"}", 3.0),
        ("deaths_total{worker_type=\"w\",cause=\"failed\"}", 3.0),
        ("deaths_total{worker_type=\"w\",cause=\"panicked\"}", 0.0),
    ] {
        assert_eq!(scrape.get(series), value, "{series}");
    }
}

#[test]
fn expected_workers_are_exported_even_if_none_was_registered() {
    let world = World::new();
    world.registry.expect_workers("w", 3);
    let _one = world.worker("w").start().unwrap();
    let scrape = Scrape::new(&world.registry);
    assert_eq!(scrape.get("expected_workers{worker_type=\"w\"}"), 3.0);
    assert_eq!(scrape.get("missing_workers{worker_type=\"w\"}"), 2.0);
    let _others = [0, 1].map(|_| world.worker("w").start().unwrap());
    let scrape = Scrape::new(&world.registry);
    assert_eq!(scrape.get("missing_workers{worker_type=\"w\"}"), 0.0);
}

#[test]
fn the_lateness_of_the_pacemaker_is_exported() {
    let world = World::new();
    let none = Scrape::new(&world.registry);
    assert_eq!(
        none.find("pacemaker_tick_age_seconds"),
        None,
        "there is none"
    );
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    world.seconds(3);
    let before = Scrape::new(&world.registry);
    assert!(before.get("pacemaker_tick_age_seconds") <= 1.0);
    assert_eq!(before.get("pacemaker_resolution_seconds"), 1.0);
    assert!(before.get("pacemaker_ticks_total") >= 3.0);
    assert_eq!(before.get("pacemaker_late_ticks_total"), 0.0);
    assert_eq!(before.get("pacemaker_lateness_seconds_total"), 0.0);
    world.time.suspend(60 * SECOND);
    world.seconds(1);
    let after = Scrape::new(&world.registry);
    assert_eq!(after.get("pacemaker_late_ticks_total"), 1.0);
    let lateness = after.get("pacemaker_lateness_seconds_total");
    assert!((58.0..=61.0).contains(&lateness), "{lateness}");
    let unobserved = after.get("pacemaker_unobserved_seconds_total");
    assert!((57.0..=60.0).contains(&unobserved), "{unobserved}");
}

#[test]
fn the_state_of_the_attachment_is_exported() {
    let world = World::new();
    let store = TestStore::new(MemoryStore::with_clock(world.time.clock()));
    let scrape = || Scrape::new(&world.registry);
    assert_eq!(scrape().get("store_attached"), 0.0);
    assert_eq!(scrape().get("store_failures_total"), 0.0);
    let config = FleetConfig::new();
    let attachment = world
        .registry
        .attach(store.clone(), config.clone())
        .unwrap();
    let hb = world.worker("w").id("a").start().unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    assert_eq!(scrape().get("store_attached"), 1.0);
    assert_eq!(scrape().get("store_registered_workers"), 1.0);
    assert!(scrape().get("store_last_success_age_seconds") < 1.0);

    let lease = hb.claim("run-1", 60 * SECOND).unwrap().unwrap();
    let other = hb.claim("run-2", 60 * SECOND).unwrap().unwrap();
    assert_eq!(scrape().get("leases_held"), 2.0);
    assert_eq!(scrape().get("leases_claimed_total"), 2.0);
    drop(lease);
    assert_eq!(scrape().get("leases_held"), 1.0);
    // Another worker takes the lease.
    let row = &store.list(&WorkerFilter::default()).unwrap()[0];
    let fence = other.fence().try_into().unwrap();
    let key = worker_heartbeat::fleet::LeaseKey::new(row.key.clone(), "run-2", fence);
    store.release(&[key]).unwrap();
    eventually("a renewal reports the loss", || {
        world.seconds(5);
        scrape().get("leases_lost_total") == 1.0
    });
    assert_eq!(scrape().get("leases_held"), 0.0);

    store.fail("on purpose");
    hb.update_task("run-3", "", Activity::Processing);
    eventually("the attachment fails", || {
        world.seconds(1);
        scrape().get("store_consecutive_failures") >= 2.0
    });
    let failures = scrape().get("store_failures_total");
    assert!(failures >= 2.0);
    store.recover();
    eventually("the attachment is restored", || {
        world.seconds(1);
        scrape().get("store_consecutive_failures") == 0.0
    });
    attachment.detach();
    let after = scrape();
    assert_eq!(after.get("store_attached"), 0.0);
    assert!(
        after.get("store_failures_total") >= failures,
        "the count stays"
    );
    assert_eq!(after.find("leases_held"), None);
}

#[test]
fn the_results_of_sweeps_are_exported() {
    let world = World::new();
    let store = TestStore::new(MemoryStore::with_clock(world.time.clock()));
    let sweeper = Sweeper::new(store.clone())
        .clock(world.time.clock())
        .interval(200 * SECOND)
        .watched_for(1_000 * SECOND);
    let metrics = Metrics::new(&world.registry).sweeper(&sweeper);
    let of = |series: &str| Scrape::of(&metrics).get(series);
    let swept = |target: &str, result: &str| {
        of(&format!(
            "sweeps_total{{target=\"{target}\",result=\"{result}\"}}"
        ))
    };
    assert_eq!(
        (swept("store", "success"), swept("registry", "success")),
        (0.0, 0.0)
    );

    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    let lease = hb.claim("run-1", 60 * SECOND).unwrap().unwrap();
    attachment.detach();
    world.seconds(150);
    let report = sweeper.clone().sweep().unwrap();
    assert_eq!(report.marked_offline.len(), 1, "{report:?}");
    assert_eq!(swept("store", "success"), 1.0, "a clone counts too");
    assert_eq!(of("sweep_marked_offline_total{target=\"store\"}"), 1.0);
    assert_eq!(
        of("sweep_released_leases_total{target=\"store\"}"),
        report.released_leases.len() as f64
    );
    drop(lease);
    world.seconds(7);
    assert_eq!(of("sweep_last_success_age_seconds{target=\"store\"}"), 7.0);
    store.fail("on purpose");
    assert!(sweeper.sweep().is_err());
    store.set(Mode::SweptElsewhere);
    assert!(!sweeper.sweep().unwrap().success);
    assert_eq!(
        (swept("store", "failure"), swept("store", "skipped")),
        (1.0, 1.0)
    );
    assert_eq!(of("sweep_overdue{target=\"store\"}"), 0.0);
    world.seconds(394);
    assert!(!sweeper.sweep().unwrap().success);
    assert_eq!(
        of("sweep_overdue{target=\"store\"}"),
        1.0,
        "skipped is not done"
    );

    hb.fail("no luck");
    assert_eq!(world.registry.sweep().marked_offline.len(), 1);
    assert_eq!(swept("registry", "success"), 1.0);
    assert_eq!(of("sweep_marked_offline_total{target=\"registry\"}"), 1.0);

    store.set(Mode::Panicking);
    let running = sweeper.clone().start().unwrap();
    eventually("its thread sweeps", || swept("store", "failure") == 2.0);
    drop(running);
    assert_eq!(sweeper.totals().failures, 2);
}

#[test]
fn metrics_of_each_worker_are_optional_and_limited() {
    let world = World::new();
    let hb = world.worker("w").id("a").start().unwrap();
    hb.update_task("s3cret", "s3cret", Activity::Processing);
    world.seconds(3);
    let by_type = Metrics::new(&world.registry);
    assert!(!by_type.text().contains("worker_id"));
    let metrics = by_type.per_worker(true);
    let scrape = Scrape::of(&metrics);
    let labels = "{worker_id=\"a\",worker_type=\"w\"}";
    assert_eq!(scrape.get(&format!("worker_recent{labels}")), 1.0);
    assert_eq!(scrape.get(&format!("worker_beats{labels}")), 1.0);
    assert_eq!(scrape.get(&format!("worker_restarts{labels}")), 0.0);
    let age = scrape.get(&format!("worker_progress_age_seconds{labels}"));
    assert!((2.0..=3.0).contains(&age), "{age}");
    assert!(scrape.get(&format!("worker_heartbeat_age_seconds{labels}")) <= 1.0);
    let state = "worker_state{worker_id=\"a\",worker_type=\"w\",state=\"processing\"}";
    assert_eq!(scrape.get(state), 1.0);
    assert_eq!(scrape.get("workers_left_out"), 0.0);
    hb.fail("s3cret");
    let text = metrics.text();
    assert!(text.contains("state=\"dead\""));
    assert!(
        !text.contains("s3cret"),
        "neither tasks nor reasons are exported"
    );

    let _others: Vec<_> = (0..10_004)
        .map(|_| world.worker("w").start().unwrap())
        .collect();
    let scrape = Scrape::of(&metrics);
    assert_eq!(scrape.get("workers_left_out"), 5.0);
    let series = scrape.0.keys();
    let series = series.filter(|name| name.starts_with("worker_heartbeat_worker_recent"));
    assert_eq!(series.count(), 10_000);
}

#[test]
#[ignore = "a measurement: cargo test --release --features prometheus --test metrics -- --ignored --nocapture"]
fn how_long_a_scrape_of_many_workers_takes() {
    let registry = worker_heartbeat::Registry::new();
    let workers: Vec<_> = (0..100_000)
        .map(|n| worker_heartbeat::WorkerHeartbeat::builder(format!("type-{}", n % 10)))
        .map(|builder| builder.registry(&registry).start().unwrap())
        .collect();
    workers.iter().for_each(|hb| hb.beat());
    let measure = |name: &str, work: &dyn Fn() -> usize| {
        let mut times: Vec<_> = (0..21)
            .map(|_| {
                let begun = Instant::now();
                assert!(work() > 0);
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("{name}: {:?} ({:?}..{:?})", times[10], times[0], times[20]);
    };
    let metrics = Metrics::new(&registry);
    measure("summary()", &|| registry.summary().total);
    measure("a scrape", &|| metrics.openmetrics().len());
    let each = metrics.clone().per_worker(true);
    measure("a scrape, 10,000 one by one", &|| each.openmetrics().len());
}

#[test]
fn counters_in_code_are_those_that_are_exported() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    hb.begin_task("run-1", "").fail("no");
    hb.fail("disk full");
    let scrape = Scrape::new(&world.registry);
    let mut compared = 0;
    world.registry.counters().each(|name, labels, value| {
        let remote = labels
            .iter()
            .any(|(_, value)| ["killed", "gone", "lost"].contains(value));
        if name.ends_with("_milliseconds") || name == "sweeps" || remote {
            return;
        }
        let mut labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        if name.starts_with("drain_duration_") {
            labels.sort();
        }
        let series = match labels.join(",") {
            // A histogram.
            labels if name.starts_with("drain_duration_") => {
                let part = name.trim_start_matches("drain_duration_");
                format!("drain_duration_seconds_{part}{{{labels}}}")
            }
            labels if labels.is_empty() => format!("{name}_total"),
            labels => format!("{name}_total{{{labels}}}"),
        };
        assert_eq!(scrape.get(&series), value as f64, "{series}");
        compared += 1;
    });
    assert!(compared >= 20, "{compared}");
}
