//! Counters never decrease, whichever workers register and end while they are read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use worker_heartbeat::{Activity, Metrics, Registry, Restart, Supervisor, WorkerHeartbeat};

use crate::scrape::Scrape;
use crate::support::World;

fn builder(registry: &Registry) -> worker_heartbeat::Builder {
    WorkerHeartbeat::builder("w").registry(registry)
}

/// Scrapes until it is stopped, and asserts that no counter decreases.
fn watch(registry: &Registry, over: &AtomicBool) -> u32 {
    let metrics = Metrics::new(registry);
    let mut before = HashMap::new();
    let mut scrapes = 0;
    while !over.load(Ordering::Acquire) || scrapes == 0 {
        for (series, value) in Scrape::of(&metrics).counters() {
            let old = before.insert(series.clone(), *value).unwrap_or(0.0);
            assert!(old <= *value, "{series} decreased from {old} to {value}");
        }
        scrapes += 1;
    }
    scrapes
}

/// Lives that follow each other under one id, each with this many beats, until the last one.
fn take_over(registry: &Registry, id: &str, lives: u64, beats: u64) {
    for life in 0..lives {
        let hb = builder(registry).id(id).start().unwrap();
        (0..beats).for_each(|_| hb.beat());
        if life % 2 == 0 {
            hb.fail("no luck");
        }
    }
}

#[test]
fn nothing_goes_back_and_nothing_is_lost_while_workers_come_and_go() {
    const LIVES: u64 = 2_000;
    const BEATS: u64 = 7;
    let registry = Registry::new();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| watch(&registry, &over));
        let churn: Vec<_> = ["a", "b"]
            .map(|id| scope.spawn(|| take_over(&registry, id, LIVES, BEATS)))
            .into();
        scope
            .spawn(|| {
                // More workers than the registry remembers of those that end cleanly.
                for _ in 0..LIVES {
                    let hb = builder(&registry).start().unwrap();
                    (0..BEATS).for_each(|_| hb.beat());
                    registry.purge(Duration::ZERO);
                }
            })
            .join()
            .unwrap();
        churn.into_iter().for_each(|thread| thread.join().unwrap());
        over.store(true, Ordering::Release);
        assert!(scraper.join().unwrap() > 0);
    });
    let scrape = Scrape::new(&registry);
    let total = |name: &str| scrape.get(&format!("{name}{{worker_type=\"w\"}}"));
    assert_eq!(total("registrations_total"), 3.0 * LIVES as f64);
    assert_eq!(total("beats_total"), (3 * LIVES * BEATS) as f64);
    // A life whose record another thread purged before the next life registered counts as no
    // restart.
    assert!(total("restarts_total") <= 2.0 * (LIVES - 1) as f64);
    let failed = scrape.get("deaths_total{worker_type=\"w\",cause=\"failed\"}");
    assert_eq!(failed, LIVES as f64);
}

#[test]
fn beats_are_counted_through_restarts() {
    const RESTARTS: u32 = 300;
    let registry = Registry::new();
    let over = AtomicBool::new(false);
    let restart = Restart::always()
        .max(RESTARTS)
        .within(Duration::from_secs(3_600))
        .backoff(Duration::from_micros(10), Duration::from_micros(10));
    let supervisor = Supervisor::new(&registry).restart(restart);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| watch(&registry, &over));
        let worker = supervisor
            .spawn(builder(&registry), |hb| {
                (0..100).for_each(|_| hb.beat());
                Ok(())
            })
            .unwrap();
        worker.join();
        over.store(true, Ordering::Release);
        assert!(scraper.join().unwrap() > 0);
    });
    let scrape = Scrape::new(&registry);
    let lives = f64::from(RESTARTS + 1);
    let total = |name: &str| scrape.get(&format!("{name}{{worker_type=\"w\"}}"));
    assert_eq!(total("beats_total"), 100.0 * lives);
    assert_eq!(total("restarts_total"), lives - 1.0);
    assert_eq!(total("give_ups_total"), 1.0);
}

#[test]
fn threads_that_beat_at_once_for_one_worker_make_no_counter_go_back() {
    let registry = Registry::new();
    let hb = builder(&registry).start().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| watch(&registry, &over));
        let beating: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| (0..300_000).for_each(|_| hb.beat())))
            .collect();
        beating
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        over.store(true, Ordering::Release);
        assert!(scraper.join().unwrap() > 0);
    });
}

#[test]
fn workers_that_hold_their_locks_do_not_hold_up_a_scrape() {
    let world = World::new();
    let over = AtomicBool::new(false);
    let workers: Vec<_> = (0..3).map(|_| world.worker("w").start().unwrap()).collect();
    let metrics = Metrics::new(&world.registry).per_worker(true);
    thread::scope(|scope| {
        for hb in &workers {
            let over = &over;
            scope.spawn(move || {
                for run in 0_u64.. {
                    if over.load(Ordering::Acquire) {
                        break;
                    }
                    let run = format!("run-{run}");
                    hb.update_task(&run, "at work", Activity::Processing);
                    let task = hb.begin_task(&run, "at another");
                    task.progress(1, 2);
                    let _silence = hb.expect_silence(Duration::from_secs(60));
                }
            });
        }
        for _ in 0..200 {
            let scrape = Scrape::of(&metrics);
            let states = scrape.0.iter();
            let all: f64 = states
                .filter(|(series, _)| series.starts_with("worker_heartbeat_workers{"))
                .map(|(_, count)| count)
                .sum();
            assert_eq!(all, 3.0);
        }
        over.store(true, Ordering::Release);
    });
}

/// Beats that are also counted by the threads that make them.
#[derive(Default)]
struct Ledger {
    begun: AtomicU64,
    done: AtomicU64,
    scrapes: AtomicU64,
    over: AtomicBool,
}

impl Ledger {
    /// The beats of one life. They begin when the scrape has ended that was running when the
    /// previous life ended: the count after that scrape is exact.
    fn live(&self, hb: &WorkerHeartbeat, life: u64) {
        let before = self.scrapes.load(Ordering::Acquire);
        while self.scrapes.load(Ordering::Acquire) == before {
            thread::yield_now();
        }
        // A varying number, so that the life ends at any moment of a scrape.
        let beats = 1 + life * 7_919 % 20_000;
        self.begun.fetch_add(beats, Ordering::AcqRel);
        (0..beats).for_each(|_| hb.beat());
        self.done.fetch_add(beats, Ordering::AcqRel);
    }

    /// Scrapes until the ledger is closed. Returns the counts that were wrong.
    fn check(&self, registry: &Registry) -> Vec<String> {
        let metrics = Metrics::new(registry);
        let mut wrong = Vec::new();
        while !self.over.load(Ordering::Acquire) {
            let done = self.done.load(Ordering::Acquire);
            let scraped = Scrape::of(&metrics).find("beats_total{worker_type=\"w\"}");
            let begun = self.begun.load(Ordering::Acquire);
            let scraped = scraped.unwrap_or(0.0) as u64;
            if !(done..=begun).contains(&scraped) {
                wrong.push(format!("{scraped} beats, of {done} to {begun}"));
            }
            self.scrapes.fetch_add(1, Ordering::AcqRel);
        }
        wrong
    }
}

#[test]
fn no_beat_is_counted_twice_nor_left_out_while_its_worker_ends_or_restarts() {
    const LIVES: u32 = 1_000;
    let restart = Restart::always()
        .max(LIVES)
        .within(Duration::from_secs(3_600))
        .backoff(Duration::from_micros(1), Duration::from_micros(1));
    for restarted in [false, true] {
        let registry = Registry::new();
        let ledger = Arc::new(Ledger::default());
        let wrong = thread::scope(|scope| {
            let scraper = scope.spawn(|| ledger.check(&registry));
            if restarted {
                let (own, mut life) = (Arc::clone(&ledger), 0);
                let supervisor = Supervisor::new(&registry).restart(restart.clone());
                let worker = supervisor.spawn(builder(&registry), move |hb| {
                    own.live(hb, life);
                    life += 1;
                    Ok(())
                });
                worker.unwrap().join();
            } else {
                for life in 0..u64::from(LIVES) {
                    let hb = builder(&registry).start().unwrap();
                    ledger.live(&hb, life);
                }
            }
            ledger.over.store(true, Ordering::Release);
            scraper.join().unwrap()
        });
        assert!(wrong.is_empty(), "restarted: {restarted}: {wrong:?}");
    }
}
