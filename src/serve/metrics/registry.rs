//! The metrics of a registry: its workers, its pacemaker, its store and its sweeps.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::encoder::{Encoder, MetricSample, label};
use crate::fleet::Sweeper;
use crate::health::{DeathCause, State, SweepTotals};
use crate::registry::figures::{Figures, TypeFigures};
use crate::registry::{Registry, Snapshot, TypeCounters};

/// The most workers with samples of their own.
const MAX_WORKERS: usize = 10_000;

/// Everything but the samples of single workers.
pub(super) fn encode(
    encoder: &mut Encoder<'_>,
    registry: &Registry,
    sweepers: &[Sweeper],
) -> fmt::Result {
    let figures = registry.figures();
    encode_states(encoder, &figures)?;
    encode_totals(encoder, &figures)?;
    encode_expected(encoder, &figures)?;
    encode_pacemaker(encoder, registry, &figures)?;
    encode_store(encoder, &figures)?;
    encode_sweeps(encoder, registry, sweepers)
}

fn encode_states(encoder: &mut Encoder<'_>, figures: &Figures) -> fmt::Result {
    let states = figures.types.iter().flat_map(|(name, of_type)| {
        let states = of_type.states.iter();
        states.map(|(state, count)| state_sample(name, state, count))
    });
    encoder.gauges(
        "workers",
        "Workers of this process by type and state, including retained ended workers",
        states,
    )?;
    let restarting = figures.types.iter();
    encoder.gauges(
        "restarting_workers",
        "Dead workers of this process that their supervisor is about to restart",
        restarting.map(|(name, of_type)| (type_label(name), of_type.restarting)),
    )?;
    let ages = |age: fn(&TypeFigures) -> Option<Duration>| {
        let types = figures.types.iter();
        types.filter_map(move |(name, of_type)| {
            Some((type_label(name), age(of_type)?.as_secs_f64()))
        })
    };
    encoder.gauges(
        "heartbeat_age_seconds",
        "Longest time that a living worker of the type has had no heartbeat",
        ages(|of_type| of_type.heartbeat_age),
    )?;
    encoder.gauges(
        "progress_age_seconds",
        "Longest time that a busy worker of the type has made no progress; 0 if none is busy",
        ages(|of_type| {
            let is_living = of_type.heartbeat_age.is_some();
            is_living.then(|| of_type.progress_age.unwrap_or_default())
        }),
    )
}

fn encode_totals(encoder: &mut Encoder<'_>, figures: &Figures) -> fmt::Result {
    let types = || figures.counters.by_type.iter();
    encoder.counters(
        "beats",
        "Beats of all workers",
        types().map(|(name, of_type)| (type_label(name), of_type.beats)),
    )?;
    type Total = fn(&TypeCounters) -> u64;
    let totals: [(&str, &str, Total); 11] = [
        (
            "registrations",
            "Incarnations that began, including restarts",
            |counts| counts.registrations,
        ),
        (
            "restarts",
            "Incarnations that replaced an ended one of the same worker",
            |counts| counts.restarts,
        ),
        (
            "give_ups",
            "Workers that their supervisor gave up",
            |counts| counts.give_ups,
        ),
        (
            "stalls",
            "Times that a worker stalled: made no progress for longer than allowed",
            |counts| counts.stalls,
        ),
        (
            "overdue_tasks",
            "Times that a worker was at a task for longer than its deadline",
            |counts| counts.overdue_tasks,
        ),
        (
            "stale_episodes",
            "Times that a worker became stale: had no heartbeat for longer than allowed",
            |counts| counts.stale_episodes,
        ),
        (
            "never_started",
            "Workers that made no progress within their startup grace",
            |counts| counts.never_started,
        ),
        (
            "late_warnings",
            "Times that a worker used three quarters of its allowance",
            |counts| counts.late_warnings,
        ),
        (
            "racing_warnings",
            "Times that a worker began to make progress more often than allowed",
            |counts| counts.racing_warnings,
        ),
        (
            "failed_tasks",
            "Tasks that failed while their worker went on",
            |counts| counts.failed_tasks,
        ),
        (
            "drains_over_budget",
            "Workers that took longer to end than their budget once they were asked to stop",
            |counts| counts.drains.over_budget,
        ),
    ];
    for (name, help, total) in totals {
        let samples = types().map(|(name, of_type)| (type_label(name), total(of_type)));
        encoder.counters(name, help, samples)?;
    }
    encoder.histograms(
        "drain_duration_seconds",
        "Time that workers took to end once they were asked to stop",
        types().map(|(name, of_type)| (type_label(name), &of_type.drains)),
    )?;
    // Usually only stores report these causes: they are omitted while they are 0.
    let remote = [DeathCause::Killed, DeathCause::Gone, DeathCause::Lost].map(|cause| cause.name());
    encoder.counters(
        "deaths",
        "Workers that died, by cause",
        types().flat_map(|(name, of_type)| {
            let deaths = of_type.deaths.iter().map(|(cause, count)| (*cause, *count));
            let shown = deaths.filter(|(cause, count)| *count > 0 || !remote.contains(cause));
            shown.map(|(cause, count)| cause_sample(name, cause, count))
        }),
    )?;
    encoder.counter(
        "forgotten_workers",
        "Ended workers that were dropped to bound the memory",
        figures.counters.forgotten_workers,
    )?;
    encoder.counter(
        "dropped_events",
        "Events that were dropped because a subscriber did not read them in time",
        figures.counters.dropped_events,
    )?;
    encoder.counter(
        "suppressed_log_lines",
        "Log lines that were left out because there were too many",
        figures.counters.suppressed_log_lines,
    )
}

fn encode_expected(encoder: &mut Encoder<'_>, figures: &Figures) -> fmt::Result {
    // By label: names that are cut may become equal.
    let mut types = BTreeMap::<&str, (usize, usize)>::new();
    for of_type in &figures.expected {
        let (expected, missing) = types.entry(label(&of_type.worker_type)).or_default();
        *expected = expected.saturating_add(of_type.expected);
        *missing = missing.saturating_add(of_type.expected.saturating_sub(of_type.living));
    }
    let samples = |count: fn(&(usize, usize)) -> usize| {
        let types = types.iter();
        types.map(move |(name, counts)| (type_label(name), count(counts) as u64))
    };
    encoder.gauges(
        "expected_workers",
        "Living workers that are expected",
        samples(|(expected, _)| *expected),
    )?;
    encoder.gauges(
        "missing_workers",
        "Expected workers that are not living",
        samples(|(_, missing)| *missing),
    )
}

fn encode_pacemaker(
    encoder: &mut Encoder<'_>,
    registry: &Registry,
    figures: &Figures,
) -> fmt::Result {
    let counters = &figures.counters;
    if let Some(age) = figures.tick_age {
        encoder.gauge(
            "pacemaker_tick_age_seconds",
            "Time since the last tick of the pacemaker; absent while there are no workers",
            age.as_secs_f64(),
        )?;
    }
    encoder.gauge(
        "pacemaker_resolution_seconds",
        "Interval of the pacemaker's ticks",
        registry.resolution().as_secs_f64(),
    )?;
    encoder.counter(
        "pacemaker_ticks",
        "Ticks of the pacemaker",
        counters.pacemaker_ticks,
    )?;
    encoder.counter(
        "pacemaker_late_ticks",
        "Ticks of the pacemaker that came more than one resolution late",
        counters.pacemaker_late_ticks,
    )?;
    encoder.counter(
        "pacemaker_lateness_seconds",
        "Total pacemaker tick lateness",
        counters.pacemaker_lateness.as_secs_f64(),
    )?;
    encoder.counter(
        "pacemaker_unobserved_seconds",
        "Time that the pacemaker could not observe and that was not charged to workers",
        counters.pacemaker_unobserved.as_secs_f64(),
    )
}

/// The store that the registry is attached to, and the leases.
fn encode_store(encoder: &mut Encoder<'_>, figures: &Figures) -> fmt::Result {
    let counters = &figures.counters;
    encoder.gauge(
        "store_attached",
        "Whether the registry is attached to a store",
        u32::from(figures.store.is_some()),
    )?;
    encoder.counter(
        "store_failures",
        "Failed calls to the store",
        counters.store_failures,
    )?;
    if let Some((status, leases)) = &figures.store {
        encoder.gauge(
            "store_consecutive_failures",
            "Failed calls to the store since the last successful one",
            status.failures_in_a_row,
        )?;
        encoder.gauge(
            "store_registered_workers",
            "Workers of this process that are registered with the store",
            status.registered as u64,
        )?;
        encoder.gauge(
            "store_refused_workers",
            "Workers of this process that the store refuses",
            status.refused as u64,
        )?;
        if let Some(age) = status.last_success_age {
            encoder.gauge(
                "store_last_success_age_seconds",
                "Time since the store was last up to date",
                age.as_secs_f64(),
            )?;
        }
        encoder.gauge(
            "leases_held",
            "Leases that workers of this process hold",
            *leases as u64,
        )?;
    }
    encoder.counter(
        "leases_claimed",
        "Leases that were granted to workers of this process",
        counters.leases_claimed,
    )?;
    encoder.counter(
        "leases_lost",
        "Leases that expired or were revoked while they were held",
        counters.leases_lost,
    )
}

fn encode_sweeps(
    encoder: &mut Encoder<'_>,
    registry: &Registry,
    sweepers: &[Sweeper],
) -> fmt::Result {
    let mut sweeps = vec![("registry", registry.swept())];
    if !sweepers.is_empty() {
        let totals = sweepers.iter().map(Sweeper::totals);
        sweeps.push(("store", totals.fold(SweepTotals::default(), add_totals)));
    }
    let results = sweeps.iter().flat_map(|(target, totals)| {
        [
            ("success", totals.successes),
            ("skipped", totals.skipped),
            ("unneeded", totals.unneeded),
            ("failure", totals.failures),
        ]
        .map(|(result, count)| ([("target", *target), ("result", result)], count))
    });
    encoder.counters(
        "sweeps",
        "Sweeps of this process, by target and result",
        results,
    )?;
    let samples = |total: fn(&SweepTotals) -> u64| {
        let sweeps = sweeps.iter();
        sweeps.map(move |(target, totals)| ([("target", *target)], total(totals)))
    };
    encoder.counters(
        "sweep_marked_offline",
        "Workers that sweeps of this process marked offline",
        samples(|totals| totals.marked_offline),
    )?;
    encoder.counters(
        "sweep_released_leases",
        "Leases that sweeps of this process released",
        samples(|totals| totals.released_leases),
    )?;
    encoder.counters(
        "sweep_forgotten_workers",
        "Ended workers that sweeps of this process forgot",
        samples(|totals| totals.forgotten),
    )?;
    encoder.counters(
        "sweep_slow",
        "Sweeps of this process that took so long that deaths are found later",
        samples(|totals| totals.slow),
    )?;
    let overdue = sweeps.iter();
    encoder.gauges(
        "sweep_overdue",
        "1 if the last successful sweep is too long ago",
        overdue.map(|(target, totals)| ([("target", *target)], u32::from(totals.overdue))),
    )?;
    let durations = sweeps.iter().filter_map(|(target, totals)| {
        let duration = totals.last_duration?;
        (*target == "store").then_some(([("target", *target)], duration.as_secs_f64()))
    });
    encoder.gauges(
        "sweep_last_duration_seconds",
        "How long the last sweep of a store by this process took",
        durations,
    )?;
    let ages = sweeps.iter().filter_map(|(target, totals)| {
        let age = totals.last_success_age?;
        Some(([("target", *target)], age.as_secs_f64()))
    });
    encoder.gauges(
        "sweep_last_success_age_seconds",
        "Time since the last successful sweep of this process, or of one that made it unneeded",
        ages,
    )
}

/// The samples of single workers: ids and types, without their tasks.
pub(super) fn encode_workers(encoder: &mut Encoder<'_>, registry: &Registry) -> fmt::Result {
    let (mut workers, left_out) = registry.snapshots(MAX_WORKERS);
    // Prometheus rejects a scrape with duplicate samples.
    let mut seen = HashSet::new();
    workers.retain(|worker| seen.insert(worker.id.clone()));
    let values = |value: fn(&Snapshot) -> u64| {
        let workers = workers.iter();
        workers.map(move |worker| (worker_labels(worker), value(worker)))
    };
    let ages = |age: fn(&Snapshot) -> Option<Duration>| {
        let workers = workers.iter();
        workers.filter_map(move |worker| Some((worker_labels(worker), age(worker)?.as_secs_f64())))
    };
    encoder.gauges(
        "worker_state",
        "1 for the present state of the worker",
        workers.iter().map(|worker| {
            let [id, worker_type] = worker_labels(worker);
            let state = ("state", worker.health.state().name());
            ([id, worker_type, state], 1_u32)
        }),
    )?;
    encoder.gauges(
        "worker_recent",
        "Whether the worker is healthy and its heartbeat is recent",
        values(|worker| u64::from(worker.health.is_recent())),
    )?;
    encoder.gauges(
        "worker_heartbeat_age_seconds",
        "Time since the worker's last heartbeat; absent before its first one",
        ages(|worker| worker.heartbeat_age),
    )?;
    encoder.gauges(
        "worker_progress_age_seconds",
        "Time since the worker's last progress; absent before its first one and after its end",
        ages(|worker| worker.progress_age),
    )?;
    encoder.gauges(
        "worker_beats",
        "Beats of the worker's present incarnation",
        values(|worker| worker.beats),
    )?;
    encoder.gauges(
        "worker_restarts",
        "Restarts of the worker",
        values(|worker| u64::from(worker.restarts)),
    )?;
    encoder.gauge(
        "workers_left_out",
        "Workers without samples of their own, because there are too many",
        left_out as u64,
    )
}

fn type_label(name: &str) -> [(&'static str, &str); 1] {
    [("worker_type", label(name))]
}

fn worker_labels(worker: &Snapshot) -> [(&'static str, &str); 2] {
    [
        ("worker_id", &worker.id),
        ("worker_type", &worker.worker_type),
    ]
}

/// The number of deaths of workers of a type.
pub(super) fn cause_sample<'l>(
    name: &'l str,
    cause: &'l str,
    count: u64,
) -> MetricSample<'l, 2, u64> {
    ([("worker_type", label(name)), ("cause", cause)], count)
}

/// The number of workers of a type in a state.
pub(super) fn state_sample(name: &str, state: State, count: usize) -> MetricSample<'_, 2, u64> {
    let labels = [("worker_type", label(name)), ("state", state.name())];
    (labels, count as u64)
}

fn add_totals(one: SweepTotals, other: SweepTotals) -> SweepTotals {
    let latest = [one.last_success_age, other.last_success_age];
    let mut sum = other;
    sum.successes += one.successes;
    sum.skipped += one.skipped;
    sum.failures += one.failures;
    sum.marked_offline += one.marked_offline;
    sum.released_leases += one.released_leases;
    sum.unneeded += one.unneeded;
    sum.forgotten += one.forgotten;
    sum.slow += one.slow;
    sum.last_duration = sum.last_duration.max(one.last_duration);
    sum.overdue |= one.overdue;
    sum.last_success_age = latest.into_iter().flatten().min();
    sum
}
