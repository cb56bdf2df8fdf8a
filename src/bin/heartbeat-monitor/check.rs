//! The `check` command: whether all is well, by the exit status.

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use worker_heartbeat::fleet::{FleetCounts, StoredWorker, WorkerFilter};
use worker_heartbeat::{Beacon, BoxError, Error, HeartbeatStore, Policy, State};

use crate::UNHEALTHY;
use crate::args::CheckArgs;
use crate::commands::CommandResult;
use crate::scope::{Scope, UNWELL};
use crate::text::clean;

/// The most unwell workers that are read, to name the worst.
const MOST_UNWELL: usize = 1_000;
/// The most dead workers that are looked up, whether they were replaced; further ones count.
const MOST_DEAD: usize = 10_000;
/// The most workers of a type and group that are looked at, whether they replaced a dead one.
const MOST_SUCCESSORS: usize = 1_000;

pub fn run(args: &CheckArgs) -> CommandResult {
    let result = match &args.file {
        Some(file) => Beacon::check(file, args.max_age),
        None => check_store(args)?,
    };
    let (text, code) = match result {
        Ok(summary) => (summary, ExitCode::SUCCESS),
        Err(problem) => (problem, ExitCode::from(UNHEALTHY)),
    };
    // The exit status is the result, even if stdout is closed.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(code)
}

/// Asks the store for counts and for its worst workers. `Err`: all is not well.
fn check_store(args: &CheckArgs) -> Result<Result<String, String>, BoxError> {
    let store = args.store.open_to_read()?;
    let scope = Scope::new(&args.worker_type, &args.group);
    let by_type = !args.expect.is_empty() || !args.ignore_type.is_empty();
    let mut counts = scope.counts(&*store, by_type)?;
    let Unwell { workers, replaced } = if UNWELL.iter().any(|state| counts.states.get(*state) > 0) {
        unwell(&*store, &scope, args.keep_replaced.0)?
    } else {
        Unwell::default()
    };
    for worker in &replaced {
        take_back(&mut counts, worker);
    }
    let mut summary = counts.summary(workers);
    for (worker_type, count) in &args.expect {
        summary.expect_workers(worker_type, *count);
    }
    let verdict = summary.verdict(&policy(args));
    let mut text = summary.to_string();
    if !replaced.is_empty() {
        text += &format!("; {} dead were replaced and don't count", replaced.len());
    }
    for worker_type in &verdict.unknown_types {
        text += &format!("; no worker has the type {worker_type}");
    }
    let text = clean(&text);
    Ok(if verdict.is_well() {
        Ok(text)
    } else {
        Err(text)
    })
}

fn policy(args: &CheckArgs) -> Policy {
    let policy = args.policy.clone().tolerate_dead(args.tolerate_dead);
    let ignored = args.ignore_type.iter();
    ignored.fold(policy, |policy, worker_type| {
        policy.ignore_type(worker_type)
    })
}

/// The counts may be by type only, or by group only.
fn take_back(counts: &mut FleetCounts, worker: &StoredWorker) {
    let of_type = &*worker.info.worker_type;
    let of_type = if counts.types.contains_key(of_type) {
        of_type
    } else {
        ""
    };
    let cause = worker
        .ending
        .as_ref()
        .map_or("", |(ending, _)| &ending.cause);
    counts.remove_many(of_type, &worker.info.group, State::Dead, cause, 1);
}

#[derive(Default)]
struct Unwell {
    /// The worst.
    workers: Vec<StoredWorker>,
    /// Dead workers that don't count.
    replaced: Vec<StoredWorker>,
}

/// The worst workers of the scope, without the dead ones that were replaced and ended longer ago than
/// they are kept.
fn unwell(
    store: &dyn HeartbeatStore,
    scope: &Scope,
    kept: Option<Duration>,
) -> Result<Unwell, Error> {
    let mut found = Unwell::default();
    let mut successors = Successors {
        store,
        newest: HashMap::new(),
    };
    let dead = scope.clone().states([State::Dead]);
    let mut looked_at = 0;
    for mut filter in dead.filters() {
        filter.limit = MOST_UNWELL;
        while looked_at < MOST_DEAD {
            let page = store.worst_first(&filter)?;
            let Some(last) = page.last() else { break };
            filter = filter.after_worker(last);
            looked_at += page.len();
            for worker in page {
                let is_over = |kept| worker.ending.as_ref().is_some_and(|(_, ago)| *ago >= kept);
                if kept.is_some_and(is_over) && successors.replaced(&worker)? {
                    found.replaced.push(worker);
                } else if found.workers.len() < MOST_UNWELL {
                    found.workers.push(worker);
                }
            }
            if kept.is_none() && found.workers.len() >= MOST_UNWELL {
                break;
            }
        }
    }
    let others = UNWELL.into_iter().filter(|state| *state != State::Dead);
    let others = scope.clone().states(others);
    let room = MOST_UNWELL - found.workers.len();
    found.workers.extend(others.worst(store, room)?);
    Ok(found)
}

/// The newest living workers, by type and group.
struct Successors<'a> {
    store: &'a dyn HeartbeatStore,
    /// How long ago the newest one was registered, if there is one.
    newest: HashMap<(String, String), Option<Duration>>,
}

impl Successors<'_> {
    /// Whether a living worker of the same type and group was registered after this one was last heard
    /// of: the rule by which a sweep forgets replaced workers.
    fn replaced(&mut self, worker: &StoredWorker) -> Result<bool, Error> {
        let info = &worker.info;
        let key = (info.worker_type.clone(), info.group.clone());
        let newest = match self.newest.get(&key) {
            Some(newest) => *newest,
            None => {
                let living = State::ALL.into_iter().filter(|state| !state.is_terminal());
                let filter = living.fold(WorkerFilter::new(), WorkerFilter::state);
                let filter = filter.worker_type(&key.0).group(&key.1);
                let living = self.store.list(&filter.limit(MOST_SUCCESSORS))?;
                let living = living.iter().filter(|other| other.ending.is_none());
                let newest = living.map(|other| other.registered_age).min();
                self.newest.insert(key, newest);
                newest
            }
        };
        let heard = worker.heartbeat_age.unwrap_or(worker.registered_age);
        Ok(newest.is_some_and(|newest| newest < heard))
    }
}
