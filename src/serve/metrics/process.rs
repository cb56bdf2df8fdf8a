//! The metrics of a registry: its workers, its pacemaker, its store.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::sheet::{Line, Sheet, label};
use crate::fleet::Sweeper;
use crate::health::{DeathCause, State, SweepTotals};
use crate::registry::core::counts::Count;
use crate::registry::figures::{Figures, TypeFigures};
use crate::registry::{Registry, Snapshot};

/// So many workers are told one by one, at most.
pub(super) const MOST_WORKERS: usize = 10_000;

/// Everything that is told of a registry, but not worker by worker.
pub(super) fn encode(
    sheet: &mut Sheet<'_>,
    registry: &Registry,
    sweepers: &[Sweeper],
) -> fmt::Result {
    let figures = registry.figures();
    workers(sheet, &figures)?;
    histories(sheet, &figures)?;
    expected(sheet, &figures)?;
    pacemaker(sheet, registry, &figures)?;
    store(sheet, registry, &figures)?;
    sweeps(sheet, registry, sweepers)
}

/// How they are now.
fn workers(sheet: &mut Sheet<'_>, figures: &Figures) -> fmt::Result {
    let states = figures.types.iter().flat_map(|(name, of_type)| {
        let states = of_type.states.iter();
        states.map(|(state, count)| in_state(name, state, count))
    });
    sheet.gauges(
        "workers",
        "Workers of this process by type and state, the ended ones that are remembered included",
        states,
    )?;
    let ages = |age: fn(&TypeFigures) -> Option<Duration>| {
        let types = figures.types.iter();
        types.filter_map(move |(name, of_type)| Some((typed(name), age(of_type)?.as_secs_f64())))
    };
    sheet.gauges(
        "heartbeat_age_seconds",
        "The longest time that a living worker of the type has been without a heartbeat",
        ages(|of_type| of_type.heartbeat_age),
    )?;
    sheet.gauges(
        "progress_age_seconds",
        "The longest time that a worker of the type has been at work without progress, 0 while none \
         is at work",
        ages(|of_type| {
            let living = of_type.heartbeat_age.is_some();
            living.then(|| of_type.progress_age.unwrap_or_default())
        }),
    )
}

/// What has happened to them.
fn histories(sheet: &mut Sheet<'_>, figures: &Figures) -> fmt::Result {
    let types = || figures.types.iter();
    sheet.counters(
        "beats",
        "Steps of progress of all workers that there ever were",
        types().map(|(name, of_type)| (typed(name), of_type.monotonic_beats())),
    )?;
    let counted = |count: fn(&TypeFigures) -> &Count| {
        types().map(move |(name, of_type)| (typed(name), count(of_type).get()))
    };
    sheet.counters(
        "registrations",
        "Lives that began, restarts included",
        counted(|of_type| &of_type.counts.registrations),
    )?;
    sheet.counters(
        "restarts",
        "Lives that began where another one of the same worker had ended",
        counted(|of_type| &of_type.counts.restarts),
    )?;
    sheet.counters(
        "give_ups",
        "Workers that their supervisor has given up",
        counted(|of_type| &of_type.counts.given_up),
    )?;
    sheet.counters(
        "deaths",
        "Workers that died, by cause",
        types().flat_map(|(name, of_type)| {
            let deaths = of_type.counts.deaths().filter(|(cause, count)| {
                // As a rule, only stores report these.
                let elsewhere = [DeathCause::Killed, DeathCause::Gone, DeathCause::Lost];
                let elsewhere = elsewhere.map(|cause| cause.name());
                *count > 0 || !elsewhere.contains(cause)
            });
            deaths.map(|(cause, count)| ([("worker_type", label(name)), ("cause", cause)], count))
        }),
    )?;
    sheet.counters(
        "stalls",
        "Times that a worker stalled: was at work without progress for longer than allowed",
        counted(|of_type| &of_type.counts.stalls),
    )?;
    sheet.counters(
        "stale_episodes",
        "Times that a worker became stale: had no heartbeat for longer than allowed",
        counted(|of_type| &of_type.counts.stale),
    )?;
    sheet.counters(
        "never_started",
        "Workers that made no progress within their startup grace",
        counted(|of_type| &of_type.counts.never_started),
    )?;
    sheet.counter(
        "forgotten_workers",
        "Ended workers that are not remembered any more, to keep the memory of them bounded",
        figures.forgotten,
    )
}

fn expected(sheet: &mut Sheet<'_>, figures: &Figures) -> fmt::Result {
    // By what they are called: names that are cut may be the same.
    let mut types = BTreeMap::<&str, (usize, usize)>::new();
    for of_type in &figures.expected {
        let (expected, missing) = types.entry(label(&of_type.worker_type)).or_default();
        *expected = expected.saturating_add(of_type.expected);
        *missing = missing.saturating_add(of_type.expected.saturating_sub(of_type.living));
    }
    sheet.gauges(
        "expected_workers",
        "Workers that are expected to live",
        types
            .iter()
            .map(|(name, (expected, _))| (typed(name), *expected as u64)),
    )?;
    sheet.gauges(
        "missing_workers",
        "Workers that are expected to live, and do not",
        types
            .iter()
            .map(|(name, (_, missing))| (typed(name), *missing as u64)),
    )
}

fn pacemaker(sheet: &mut Sheet<'_>, registry: &Registry, figures: &Figures) -> fmt::Result {
    let counts = registry.counts();
    if let Some(age) = figures.tick_age {
        sheet.gauge(
            "pacemaker_tick_age_seconds",
            "Time since the pacemaker last looked at the workers; not told while it has none",
            age.as_secs_f64(),
        )?;
    }
    sheet.gauge(
        "pacemaker_resolution_seconds",
        "How often the pacemaker is to look",
        registry.resolution().as_secs_f64(),
    )?;
    sheet.counter(
        "pacemaker_ticks",
        "Looks of the pacemaker at the workers",
        counts.ticks.get(),
    )?;
    sheet.counter(
        "pacemaker_late_ticks",
        "Looks of the pacemaker that came more than its resolution late",
        counts.late_ticks.get(),
    )?;
    sheet.counters(
        "pacemaker_lateness_seconds",
        "How late the looks of the pacemaker came, all together",
        [([], seconds(&counts.lateness_nanos))],
    )?;
    sheet.counters(
        "pacemaker_unobserved_seconds",
        "Time in which the pacemaker could not look, and that no worker was charged for",
        [([], seconds(&counts.forgiven_nanos))],
    )
}

/// The store that the registry is attached to.
fn store(sheet: &mut Sheet<'_>, registry: &Registry, figures: &Figures) -> fmt::Result {
    let counts = registry.counts();
    sheet.gauge(
        "store_attached",
        "Whether the workers of this process are told to a store",
        u32::from(figures.store.is_some()),
    )?;
    sheet.counter(
        "store_failures",
        "Calls to the store that failed",
        counts.store_failures.get(),
    )?;
    if let Some((status, leases)) = &figures.store {
        sheet.gauge(
            "store_consecutive_failures",
            "Calls to the store that failed since one last succeeded",
            status.failures_in_a_row,
        )?;
        sheet.gauge(
            "store_registered_workers",
            "Workers of this process that the store knows",
            status.registered as u64,
        )?;
        sheet.gauge(
            "store_refused_workers",
            "Workers of this process that the store does not let in",
            status.refused as u64,
        )?;
        if let Some(age) = status.last_success_age {
            sheet.gauge(
                "store_last_success_age_seconds",
                "Time since the store was last told everything",
                age.as_secs_f64(),
            )?;
        }
        sheet.gauge(
            "leases_held",
            "Leases that workers of this process hold",
            *leases as u64,
        )?;
    }
    sheet.counter(
        "leases_claimed",
        "Leases that workers of this process were given",
        counts.leases_claimed.get(),
    )?;
    sheet.counter(
        "leases_lost",
        "Leases that expired, or were taken away, while they were held",
        counts.leases_lost.get(),
    )
}

fn sweeps(sheet: &mut Sheet<'_>, registry: &Registry, sweepers: &[Sweeper]) -> fmt::Result {
    let mut swept = vec![("registry", registry.swept())];
    if !sweepers.is_empty() {
        let all = sweepers.iter().map(Sweeper::totals);
        swept.push(("store", all.fold(SweepTotals::default(), add)));
    }
    let by_result = swept.iter().flat_map(|(target, totals)| {
        [
            ("success", totals.successes),
            ("skipped", totals.skipped),
            ("failure", totals.failures),
        ]
        .map(|(result, count)| ([("target", *target), ("result", result)], count))
    });
    sheet.counters(
        "sweeps",
        "Sweeps of this process, by what is swept and what came of it",
        by_result,
    )?;
    let each = |of: fn(&SweepTotals) -> u64| {
        let swept = swept.iter();
        swept.map(move |(target, totals)| ([("target", *target)], of(totals)))
    };
    sheet.counters(
        "sweep_marked_offline",
        "Workers that sweeps of this process marked offline",
        each(|totals| totals.marked_offline),
    )?;
    sheet.counters(
        "sweep_released_leases",
        "Leases that sweeps of this process released",
        each(|totals| totals.released_leases),
    )?;
    let ages = swept.iter().filter_map(|(target, totals)| {
        let age = totals.last_success_age?;
        Some(([("target", *target)], age.as_secs_f64()))
    });
    sheet.gauges(
        "sweep_last_success_age_seconds",
        "Time since a sweep of this process last had success",
        ages,
    )
}

/// Worker by worker. Ids and types; nothing of what they are at.
pub(super) fn encode_each(sheet: &mut Sheet<'_>, registry: &Registry) -> fmt::Result {
    let (mut workers, left_out) = registry.snapshots(MOST_WORKERS);
    // A line that is there twice would spoil all of them.
    let mut seen = HashSet::new();
    workers.retain(|worker| seen.insert(worker.id.clone()));
    let each = |value: fn(&Snapshot) -> u64| {
        let workers = workers.iter();
        workers.map(move |worker| (named(worker), value(worker)))
    };
    let ages = |age: fn(&Snapshot) -> Option<Duration>| {
        let workers = workers.iter();
        workers.filter_map(move |worker| Some((named(worker), age(worker)?.as_secs_f64())))
    };
    sheet.gauges(
        "worker_state",
        "1 for the state that the worker is in",
        workers.iter().map(|worker| {
            let [id, worker_type] = named(worker);
            let state = ("state", worker.health.state().name());
            ([id, worker_type, state], 1_u32)
        }),
    )?;
    sheet.gauges(
        "worker_recent",
        "Whether the worker is well",
        each(|worker| u64::from(worker.health.is_recent())),
    )?;
    sheet.gauges(
        "worker_heartbeat_age_seconds",
        "Time since the worker's last heartbeat; not told before the first one",
        ages(|worker| worker.heartbeat_age),
    )?;
    sheet.gauges(
        "worker_progress_age_seconds",
        "Time since the worker's last progress; not told before the first one, nor after its end",
        ages(|worker| worker.progress_age),
    )?;
    sheet.gauges(
        "worker_beats",
        "Steps of progress of the worker's present life",
        each(|worker| worker.beats),
    )?;
    sheet.gauges(
        "worker_restarts",
        "How often the worker was started again",
        each(|worker| u64::from(worker.restarts)),
    )?;
    sheet.gauge(
        "workers_left_out",
        "Workers that are not told one by one: there are too many",
        left_out as u64,
    )
}

fn typed(name: &str) -> [(&'static str, &str); 1] {
    [("worker_type", label(name))]
}

fn named(worker: &Snapshot) -> [(&'static str, &str); 2] {
    [
        ("worker_id", &worker.id),
        ("worker_type", &worker.worker_type),
    ]
}

/// One line of a family by type and state.
pub(super) fn in_state(name: &str, state: State, count: usize) -> Line<'_, 2, u64> {
    let labels = [("worker_type", label(name)), ("state", state.name())];
    (labels, count as u64)
}

fn seconds(nanos: &Count) -> f64 {
    Duration::from_nanos(nanos.get()).as_secs_f64()
}

fn add(one: SweepTotals, other: SweepTotals) -> SweepTotals {
    let latest = [one.last_success_age, other.last_success_age];
    let mut both = other;
    both.successes += one.successes;
    both.skipped += one.skipped;
    both.failures += one.failures;
    both.marked_offline += one.marked_offline;
    both.released_leases += one.released_leases;
    both.last_success_age = latest.into_iter().flatten().min();
    both
}
