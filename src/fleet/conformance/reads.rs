//! The order of severity, filters and counts.

use super::*;
use crate::fleet::pages::Pages;

/// One worker in each state, and a second one that is stale. Their names are not in the order of
/// severity.
fn fleet(bench: &Bench<'_>) -> Checked {
    let dead = bench.worker("m-dead")?;
    bench.stop(&dead, StoredEnding::dead(&DeathCause::Exited))?;
    let brief = |worker: &mut Registration| {
        let mut thresholds = Thresholds::new(90 * SECOND);
        thresholds.startup_grace = Duration::from_millis(1);
        worker.info.thresholds = Some(thresholds);
    };
    bench.register_with("z-never-started", brief)?;
    let stalled = bench.worker("q-stalled")?;
    bench.beat(Beat::new(stalled, State::Stalled))?;
    bench.silent("c-stale", 100 * SECOND)?;
    let stale = bench.start("b-stale")?;
    // It was stalled when it was last heard of.
    let silent = aged(&stale, 200 * SECOND);
    bench.beat(Beat {
        status: WorkerStatus::new(State::Stalled),
        ..silent
    })?;
    bench.start("x-starting")?;
    for (name, state) in [
        ("h-overdue", State::Overdue),
        ("t-unobserved", State::Unobserved),
        ("k-stopping", State::Stopping),
        ("f-processing", State::Processing),
        ("e-active", State::Active),
        ("d-idle", State::Idle),
    ] {
        let key = bench.start(name)?;
        bench.beat(Beat::new(key, state))?;
    }
    let stopping = bench.worker("a-stopped")?;
    bench.stop(&stopping, stopped())?;
    // Longer than the short grace.
    thread::sleep(Duration::from_millis(20));
    Ok(())
}

const WORST_FIRST: [&str; 13] = [
    "m-dead",
    "z-never-started",
    "q-stalled",
    "b-stale",
    "c-stale",
    "h-overdue",
    "t-unobserved",
    "x-starting",
    "k-stopping",
    "d-idle",
    "e-active",
    "f-processing",
    "a-stopped",
];

fn names(bench: &Bench<'_>, rows: &[StoredWorker]) -> Vec<String> {
    let own = |row: &StoredWorker| row.key.id[bench.name.len() + 1..].to_owned();
    rows.iter().map(own).collect()
}

pub(super) fn worst_first(bench: &Bench<'_>) -> Checked {
    fleet(bench)?;
    let all = WorkerFilter::new().group(&bench.name);
    let rows = bench.store.worst_first(&all)?;
    ensure_eq!(names(bench, &rows), WORST_FIRST);
    let three = bench.store.worst_first(&all.clone().limit(3))?;
    ensure_eq!(names(bench, &three), WORST_FIRST[..3]);
    ensure_eq!(bench.store.worst_first(&all.limit(0))?.len(), 0);
    Ok(())
}

pub(super) fn pages(bench: &Bench<'_>) -> Checked {
    fleet(bench)?;
    for limit in [1, 4, 5] {
        let mut filter = WorkerFilter::new().worker_type(&bench.name).limit(limit);
        let mut listed = Vec::new();
        loop {
            let page = bench.store.worst_first(&filter)?;
            let Some(last) = page.last() else { break };
            filter = filter.after_worker(last);
            listed.extend(names(bench, &page));
            ensure!(
                listed.len() <= WORST_FIRST.len(),
                "pages repeat: {listed:?}"
            );
        }
        ensure_eq!(listed, WORST_FIRST);
    }
    let of = |state| WorkerFilter::new().group(&bench.name).state(state);
    for (filter, expected) in [
        (of(State::Stale), &["b-stale", "c-stale"][..]),
        (
            of(State::Idle).state(State::NeverStarted),
            &["z-never-started", "d-idle"],
        ),
        (
            of(State::Stopped).state(State::Starting),
            &["x-starting", "a-stopped"],
        ),
        (of(State::Dead).search(bench.id("M-")), &["m-dead"]),
        (of(State::Dead).search("no such worker"), &[]),
        (of(State::Dead).worker_type("another"), &[]),
    ] {
        let rows = bench.store.worst_first(&filter)?;
        ensure!(
            names(bench, &rows) == expected,
            "{filter:?} lists {:?}, it should list {expected:?}",
            names(bench, &rows)
        );
    }
    Ok(())
}

pub(super) fn filters(bench: &Bench<'_>) -> Checked {
    fleet(bench)?;
    let all = WorkerFilter::new().group(&bench.name).limit(2);
    for (filter, expected) in [
        (all.clone().state(State::Stale), &["b-stale", "c-stale"][..]),
        (
            all.clone().state(State::Stalled).state(State::Dead),
            &["m-dead", "q-stalled"],
        ),
        (all.clone().state(State::Overdue), &["h-overdue"]),
        (
            all.clone()
                .state(State::Idle)
                .state(State::Stopped)
                .after(bench.id("b")),
            &["d-idle"],
        ),
        (all.search(bench.id("X-START")), &["x-starting"]),
    ] {
        let mut listed = Vec::new();
        for page in Pages::new(bench.store, filter.clone()) {
            listed.extend(names(bench, &page?));
        }
        ensure!(
            listed == expected,
            "{filter:?} lists {listed:?}, it should list {expected:?}"
        );
    }
    Ok(())
}

pub(super) fn counts(bench: &Bench<'_>) -> Checked {
    fleet(bench)?;
    let holder = bench.worker("holder")?;
    let before = bench.store.counts()?;
    bench.lease(&holder, "run-1", 600 * SECOND)?;
    bench.lease(&holder, "run-2", 600 * SECOND)?;
    let counts = bench.store.counts()?;
    let of_type = counts.types.get(&bench.name).copied().unwrap_or_default();
    let of_group = counts.groups.get(&bench.name).copied().unwrap_or_default();
    for state in State::ALL {
        // The holder is active, too.
        let expected = 1 + usize::from(matches!(state, State::Stale | State::Active));
        ensure!(
            of_type.get(state) == expected && of_group == of_type,
            "{state}: {} of the type, {} of the group, there are {expected}",
            of_type.get(state),
            of_group.get(state)
        );
    }
    let deaths = counts.deaths.get(&bench.name).cloned().unwrap_or_default();
    ensure_eq!(deaths, [("exited".to_owned(), 1)].into());
    ensure!(
        counts.states.total() >= of_type.total(),
        "{:?}",
        counts.states
    );
    // Leases of other cases may expire meanwhile.
    ensure!(
        (1..=before.leased_workers + 1).contains(&counts.leased_workers),
        "{} workers hold a lease, {} before one of them claimed two runs",
        counts.leased_workers,
        before.leased_workers
    );
    let summary = bench.store.summary()?;
    let own = |worker: &&crate::health::UnwellWorker| worker.group == bench.name;
    ensure_eq!(summary.dead_workers.iter().filter(own).count(), 4);
    ensure_eq!(summary.stalled_workers.iter().filter(own).count(), 1);
    ensure_eq!(summary.overdue_workers.iter().filter(own).count(), 1);
    Ok(())
}
