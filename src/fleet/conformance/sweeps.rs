//! Sweeps, groups, summaries, purges.

use super::*;

pub(super) fn sweeps(bench: &Bench<'_>) -> Checked {
    bench.worker("well")?;
    bench.silent("silent", 91 * SECOND)?;
    bench.silent("nearly", 80 * SECOND)?;
    let stop = bench.silent("stopped", 1_000 * SECOND)?;
    bench.stop(&stop, stopped())?;
    bench.start("starting")?;
    let patient = bench.register_with("patient", |worker| {
        worker.info.thresholds = Some(Thresholds::new(600 * SECOND));
    })?;
    bench.beat(aged(&patient, 500 * SECOND))?;
    let plain = bench.register_with("plain", |worker| worker.info.thresholds = None)?;
    bench.beat(aged(&plain, 60 * SECOND))?;
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["silent"]));
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set([]));
    let sharper = Sweep {
        threshold: 50 * SECOND,
        ..Sweep::default()
    };
    let (marked, _) = bench.sweep(&sharper)?;
    ensure_eq!(marked, set(["plain"]));
    let row = bench.row(&plain)?;
    ensure!(
        matches!(row.health(), Health::Dead { ref death, .. } if matches!(death.cause, DeathCause::Lost)),
        "{}",
        row.health()
    );
    Ok(())
}

pub(super) fn offline(bench: &Bench<'_>) -> Checked {
    let key = bench.silent("a", 100 * SECOND)?;
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["a"]));
    ensure_eq!(
        bench.beat(Beat::new(key.clone(), State::Active))?,
        Answer::Ended
    );
    ensure_eq!(
        bench.claim(&key, "run", SECOND)?,
        ClaimAnswer::Refused(Answer::Ended)
    );
    ensure_eq!(bench.state(&key)?, State::Dead);
    let next = bench.worker("a")?;
    ensure_eq!(bench.state(&next)?, State::Active);
    Ok(())
}

pub(super) fn overdue(bench: &Bench<'_>) -> Checked {
    let key = bench.worker("a")?;
    let lease = bench.lease(&key, "run", 600 * SECOND)?;
    let mut beat = aged(&key, 80 * SECOND);
    beat.status = WorkerStatus::new(State::Overdue);
    beat.status.reason = Some("at its task for 5 h, 1 h allowed".into());
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    ensure_eq!(bench.state(&key)?, State::Overdue);
    let (marked, swept) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set([]));
    ensure!(!swept.group, "its group is offline");
    ensure!(
        bench.renew(&lease, 600 * SECOND)?,
        "its lease is not renewed"
    );
    let row = bench.row(&key)?;
    ensure_eq!(
        row.status.reason.as_deref(),
        Some("at its task for 5 h, 1 h allowed")
    );
    // What was reported counts while it is heard from.
    bench.silent("b", 91 * SECOND)?;
    let silent = bench.start("c")?;
    let mut beat = aged(&silent, 91 * SECOND);
    beat.status = WorkerStatus::new(State::Overdue);
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    ensure_eq!(bench.state(&silent)?, State::Stale);
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["b", "c"]));
    Ok(())
}

pub(super) fn restarts(bench: &Bench<'_>) -> Checked {
    let before = bench.silent("a", 100 * SECOND)?;
    let key = bench.start("a")?;
    let sweep = Sweep {
        // Found before it restarted.
        killed: vec![before],
        ..Sweep::default()
    };
    let (marked, _) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set([]));
    bench.well(&key)
}

pub(super) fn watched(bench: &Bench<'_>) -> Checked {
    bench.silent("a", 1_000 * SECOND)?;
    let sweep = |watched_for| Sweep {
        watched_for,
        ..Sweep::default()
    };
    let (marked, _) = bench.sweep(&sweep(Duration::ZERO))?;
    ensure_eq!(marked, set([]));
    let (marked, _) = bench.sweep(&sweep(89 * SECOND))?;
    ensure_eq!(marked, set([]));
    let (marked, _) = bench.sweep(&sweep(91 * SECOND))?;
    ensure_eq!(marked, set(["a"]));
    Ok(())
}

pub(super) fn dry_run(bench: &Bench<'_>) -> Checked {
    let key = bench.brief("a")?;
    bench.lease(&key, "run", 600 * SECOND)?;
    thread::sleep(SHORT * 5 / 4);
    let dry = Sweep {
        dry_run: true,
        ..Sweep::default()
    };
    for _ in 0..2 {
        let (marked, swept) = bench.sweep(&dry)?;
        ensure_eq!(marked, set(["a"]));
        ensure!(swept.group, "the group is not reported");
        ensure_eq!(swept.leases, set(["run"]));
    }
    ensure_eq!(bench.row(&key)?.ending, None);
    bench.well(&key)
}

pub(super) fn killed(bench: &Bench<'_>) -> Checked {
    let key = bench.worker("a")?;
    let other = bench.worker("b")?;
    let sweep = Sweep {
        watched_for: Duration::ZERO,
        killed: vec![key.clone()],
        ..Sweep::default()
    };
    bench.lease(&key, "run", 600 * SECOND)?;
    let (marked, swept) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set(["a"]));
    ensure_eq!(swept.leases, set(["run"]));
    let health = bench.row(&key)?.health().to_string();
    ensure!(
        health.starts_with("dead: its process was killed"),
        "{health}"
    );
    ensure_eq!(bench.state(&other)?, State::Active);
    // A process that is gone believes in no lease.
    bench.lease(&other, "run", SECOND)?;
    Ok(())
}

pub(super) fn gone(bench: &Bench<'_>) -> Checked {
    let [key, other, killed] = ["a", "b", "c"].map(|name| bench.worker(name));
    let (key, other, killed) = (key?, other?, killed?);
    let before = bench.worker("d")?;
    let after = bench.worker("d")?;
    let sweep = Sweep {
        watched_for: Duration::ZERO,
        killed: vec![killed.clone()],
        gone: vec![before, key.clone(), killed.clone()],
        ..Sweep::default()
    };
    bench.lease(&key, "run", 600 * SECOND)?;
    let dry_run = Sweep {
        dry_run: true,
        ..sweep.clone()
    };
    let (marked, swept) = bench.sweep(&dry_run)?;
    ensure_eq!(marked, set(["a", "c"]));
    ensure_eq!(swept.leases, set(["run"]));
    ensure_eq!(bench.state(&key)?, State::Active);
    let (marked, swept) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set(["a", "c"]));
    ensure_eq!(swept.leases, set(["run"]));
    for (key, said) in [
        (&key, "dead: its process is gone"),
        (&killed, "dead: its process was killed"),
    ] {
        let health = bench.row(key)?.health().to_string();
        ensure!(health.starts_with(said), "{health}");
    }
    for key in [&other, &after] {
        ensure_eq!(bench.state(key)?, State::Active);
    }
    // A process that is gone believes in no lease.
    bench.lease(&other, "run", SECOND)?;
    Ok(())
}

pub(super) fn groups(bench: &Bench<'_>) -> Checked {
    let a = bench.silent("a", 100 * SECOND)?;
    let b = bench.worker("b")?;
    let c = bench.worker("c")?;
    bench.stop(&c, stopped())?;
    let (marked, swept) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["a"]));
    ensure!(!swept.group, "one of its workers is well");
    let sweep = Sweep {
        killed: vec![a, b],
        ..Sweep::default()
    };
    let (marked, swept) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set(["b"]));
    ensure!(swept.group, "none of its workers is well");
    Ok(())
}

/// Ages around every limit, with and without limits of its own.
pub(super) fn one_judge(bench: &Bench<'_>) -> Checked {
    // The ages keep this distance from the limits. After that time, a worker may cross a limit
    // between the list and the sweep.
    let margin = 4 * SECOND;
    let begun = Instant::now();
    let mut expected = BTreeSet::new();
    let slow = |stale, grace| Thresholds {
        startup_grace: grace,
        ..Thresholds::new(stale)
    };
    let limits = [
        None,
        Some(slow(30 * SECOND, 60 * SECOND)),
        Some(slow(200 * SECOND, Duration::from_millis(20))),
    ];
    for (l, thresholds) in limits.into_iter().enumerate() {
        for age in [
            None,
            Some(0),
            Some(25),
            Some(35),
            Some(85),
            Some(95),
            Some(190),
            Some(210),
        ] {
            for watched_for in [5, 86, 96, 10_000] {
                let name = format!("{l}-{age:?}-{watched_for}");
                let key = bench.register_with(&name, |worker| {
                    worker.info.thresholds.clone_from(&thresholds);
                    worker.info.worker_type = format!("{}-{watched_for}", bench.name);
                })?;
                let beat = Beat {
                    heartbeat_age: age.map(Duration::from_secs),
                    progress_age: None,
                    ..Beat::new(key, State::Active)
                };
                bench.beat(beat)?;
            }
        }
    }
    // Longer than the short grace.
    thread::sleep(Duration::from_millis(50));
    let mut marked = BTreeSet::new();
    for watched_for in [5, 86, 96, 10_000] {
        let watched = Duration::from_secs(watched_for);
        for worker in bench.store.list(&WorkerFilter::new().group(&bench.name))? {
            let judged = worker.judged(90 * SECOND, watched);
            if worker.ending.is_none() && judged.state().is_offline() {
                expected.insert(worker.key.id.clone());
            }
        }
        let sweep = Sweep {
            watched_for: watched,
            ..Sweep::default()
        };
        let (names, _) = bench.sweep(&sweep)?;
        marked.extend(names.iter().map(|name| bench.id(name)));
        if begun.elapsed() < margin {
            ensure_eq!(marked, expected);
        }
        let missed: Vec<_> = expected.difference(&marked).collect();
        ensure!(missed.is_empty(), "not marked: {missed:?}");
        expected.clone_from(&marked);
    }
    ensure!(
        expected.len() > 20,
        "only {} were convicted",
        expected.len()
    );
    Ok(())
}

pub(super) fn summaries(bench: &Bench<'_>) -> Checked {
    bench.worker("well")?;
    bench.start("starting")?;
    bench.silent("silent", 100 * SECOND)?;
    let stop = bench.worker("stopped")?;
    bench.stop(&stop, stopped())?;
    let summary = bench.store.summary()?;
    let stats = summary.stats_by_type.get(&bench.name);
    let stats = stats.ok_or_else(|| Violation("its type is missing".to_owned()))?;
    ensure_eq!((stats.total, stats.active, stats.dead), (4, 1, 1));
    ensure_eq!(stats.states.get(State::Starting), 1);
    ensure_eq!(stats.states.get(State::Stopped), 1);
    let dead = &summary.dead_workers;
    let silent = dead.iter().find(|dead| dead.id == bench.id("silent"));
    ensure!(
        silent.is_some_and(|dead| dead.health.state() == State::Stale),
        "{silent:?}"
    );
    ensure!(
        summary.groups.contains_key(&bench.name),
        "its group is missing"
    );
    Ok(())
}

pub(super) fn purges(bench: &Bench<'_>) -> Checked {
    for (name, ago) in [("old", 7_200), ("young", 1_800)] {
        let key = bench.worker(name)?;
        let stop = Stop {
            key,
            ending: stopped(),
            ago: Duration::from_secs(ago),
        };
        bench.store.stop(&[stop])?;
    }
    bench.silent("silent", 7_200 * SECOND)?;
    let purged = bench.store.purge(3_600 * SECOND)?;
    ensure!(purged >= 1, "no worker was purged");
    let left: BTreeSet<_> = bench.rows()?.into_iter().map(|row| row.key.id).collect();
    ensure_eq!(left, ["young", "silent"].map(|name| bench.id(name)).into());
    ensure_eq!(bench.store.purge(Duration::MAX)?, 0);
    let again = bench.worker("old")?;
    ensure_eq!(bench.state(&again)?, State::Active);
    Ok(())
}
