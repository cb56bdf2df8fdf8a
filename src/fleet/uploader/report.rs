//! Registrations, ends and heartbeats, sent to the store in batches.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Uploader;
use super::config::{OnDuplicate, OnOffline};
use super::session::{ClockReading, StoreSession};
use super::sync_state::{SentState, SyncedWorker, address};
use super::thread::LONGEST_RETRY;
use crate::clock::Moment;
use crate::error::{Error, StoreErrorKind};
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{
    Answer, Beat, Registration, Stop, StoredDeath, StoredEnding, WorkerInfo, WorkerKey,
    WorkerStatus,
};
use crate::fleet::store::check_count;
use crate::health::{LeaseLoss, racing_text};
use crate::registry::Registry;
use crate::registry::core::events::EventKind;
use crate::registry::core::record::Detail;
use crate::registry::core::tasks::Tasks;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{Facts, WorkerRef};
use crate::sync::describe::written;

/// The most workers in one call.
const BATCH: usize = 5_000;

/// A worker to register, and its incarnation as the process counts it.
type Newcomer = (WorkerRef, u32);

/// A worker with a heartbeat that is due.
struct Due {
    worker: WorkerRef,
    session: Arc<StoreSession>,
    state: SentState,
    /// The store does not have its call stack.
    has_new_stack: bool,
    /// Its record was locked when it was sent last.
    was_busy: bool,
}

impl Uploader {
    /// Updates the list of workers from the registry.
    pub(super) fn track(&self, registry: &Registry) {
        let workers = registry.worker_refs();
        let mut sync_state = self.sync_state.lock();
        let sync_state = &mut *sync_state;
        // Without workers whose end the store has, and workers that the registry has forgotten and
        // the store never knew.
        let here: HashSet<usize> = workers
            .iter()
            .map(|worker| address(&worker.record))
            .collect();
        sync_state.workers.retain(|address, synced| {
            !synced.finished && (synced.session.is_some() || here.contains(address))
        });
        for worker in workers {
            let incarnation = worker.record.incarnation();
            let address = address(&worker.record);
            match sync_state.workers.get_mut(&address) {
                Some(synced) if synced.incarnation == incarnation => {}
                Some(synced) => {
                    // A new incarnation. The one before has ended.
                    synced.forget(LeaseLoss::WorkerEnded { ending: None });
                    synced.incarnation = incarnation;
                    synced.worker = worker;
                    synced.refused_until = None;
                }
                None if worker.record.is_end_stored() => {}
                None => {
                    let synced = SyncedWorker::new(worker, incarnation);
                    sync_state.workers.insert(address, synced);
                }
            }
        }
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), Error> {
        loop {
            let observed = registry.observed_now();
            let now = self.clock.now();
            // A worker that was marked offline and is not well would be marked again and again.
            let is_due = |synced: &SyncedWorker| {
                let state = synced.worker.health(&observed).state();
                synced.may_be_sent(now)
                    && (!synced.swept || state.is_recent() || state.is_terminal())
            };
            let mut newcomers: Vec<Newcomer> = self
                .sync_state
                .lock()
                .unfinished()
                .filter(|synced| synced.session.is_none() && is_due(synced))
                .map(|synced| (synced.worker.clone(), synced.incarnation))
                .collect();
            // Shuffle, so that refused workers can't starve the rest.
            let order = RandomState::new();
            newcomers.sort_by_cached_key(|(worker, _)| order.hash_one(address(&worker.record)));
            newcomers.truncate(BATCH);
            if newcomers.is_empty() {
                return Ok(());
            }
            self.register_batch(registry, &newcomers)?;
        }
    }

    fn register_batch(&self, registry: &Registry, newcomers: &[Newcomer]) -> Result<(), Error> {
        let process = ProcessIdentity::current();
        let registrations: Vec<_> = newcomers
            .iter()
            .map(|(worker, _)| self.registration(worker, &process))
            .collect();
        let sent = ClockReading::of(&self.clock);
        let numbers = self.numbers.before_request();
        let answers = self.store.register_each(&registrations);
        let answers = self.unless_closing("register", answers);
        let keys = match check_count("register", registrations.len(), answers) {
            Ok(keys) => keys,
            Err(error) => {
                newcomers
                    .iter()
                    .for_each(|(worker, _)| self.be_unsure(worker));
                return Err(error);
            }
        };
        let given = keys.iter().flatten();
        if let Err(error) = self.numbers.check_incarnations(numbers, given) {
            self.lose_all(&LeaseLoss::NumbersWentBack);
            return Err(error);
        }
        let mut failure = None;
        for (newcomer, key) in newcomers.iter().zip(keys) {
            match key {
                Ok(key) => self.registered(newcomer, key, &sent),
                Err(refusal @ Error::Invalid { .. }) => {
                    self.refuse(registry, std::slice::from_ref(newcomer), &refusal);
                }
                Err(Error::Store {
                    kind: StoreErrorKind::Busy,
                    ..
                }) => {
                    if let Some(synced) = self.sync_state.lock().get_mut(&newcomer.0) {
                        synced.retry_busy(self.clock.now());
                    }
                }
                Err(error) => {
                    self.be_unsure(&newcomer.0);
                    failure = failure.or(Some(error));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// A registration has no answer. It may reach the store late, and supersede the next one.
    fn be_unsure(&self, worker: &WorkerRef) {
        if let Some(synced) = self.sync_state.lock().get_mut(worker) {
            let stale_after = worker.record.profile.thresholds.stale_after;
            synced.unsure_until = self.clock.now().after(stale_after);
        }
    }

    fn registered(&self, (worker, incarnation): &Newcomer, key: WorkerKey, sent: &ClockReading) {
        worker.record.adopt(&key.id);
        let stale_after = worker.record.profile.thresholds.stale_after;
        let mut sync_state = self.sync_state.lock();
        let synced = sync_state.get_mut(worker);
        if let Some(synced) = synced.filter(|synced| synced.incarnation == *incarnation) {
            let session = StoreSession::new(key, stale_after, worker.clone(), *incarnation, sent);
            synced.session = Some(Arc::new(session));
            synced.sent = None;
            synced.busy = None;
            synced.swept = false;
            synced.refused_until = None;
        }
    }

    /// Notes that the store refused these workers, with one event for each.
    fn refuse(&self, registry: &Registry, newcomers: &[Newcomer], refusal: &Error) {
        if newcomers.is_empty() {
            return;
        }
        let error = written(format_args!("{refusal}"));
        let until = self.clock.now().after(LONGEST_RETRY);
        let mut refused = Vec::new();
        let mut sync_state = self.sync_state.lock();
        for (worker, _) in newcomers {
            let synced = sync_state.get_mut(worker);
            if synced.is_some_and(|synced| synced.refused_until.replace(until).is_none()) {
                refused.push(worker);
            }
        }
        drop(sync_state);
        self.rounds.lock().status.last_error = Some(error.clone());
        for worker in refused {
            let error = error.clone();
            let refused = EventKind::Refused { error };
            registry.emit(Some(worker), refused);
        }
    }

    /// Discards an answer that comes after the end of the attachment: another attachment may have
    /// sent the same workers to the same store by now.
    pub(super) fn unless_closing<T>(
        &self,
        operation: &'static str,
        answer: Result<T, Error>,
    ) -> Result<T, Error> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::store(operation, "the attachment has ended"));
        }
        answer
    }

    /// Sends the ends of workers.
    pub(super) fn stop(&self, registry: &Registry) -> Result<(), Error> {
        let now = registry.observed_now().clock;
        let sent_at = self.clock.now();
        let ended: Vec<(WorkerRef, Arc<StoreSession>, Stop)> = self
            .sync_state
            .lock()
            .unfinished()
            .filter(|synced| synced.is_present() && synced.may_be_sent(sent_at))
            .filter_map(|synced| {
                let ended = synced.worker.record.ended()?;
                let session = synced.session.clone()?;
                let stop = Stop {
                    key: session.key.clone(),
                    ending: StoredEnding::from(&ended.ending),
                    ago: now.since(ended.at),
                };
                Some((synced.worker.clone(), session, stop))
            })
            .collect();
        let mut refused = Vec::new();
        for batch in ended.chunks(BATCH) {
            let stops: Vec<Stop> = batch.iter().map(|(_, _, stop)| stop.clone()).collect();
            let answers = self.unless_closing("stop", self.store.stop(&stops));
            let answers = check_count("stop", stops.len(), answers)?;
            for ((worker, session, _), answer) in batch.iter().zip(answers) {
                let mut sync_state = self.sync_state.lock();
                let sync_state = &mut *sync_state;
                let synced = sync_state.workers.get_mut(&address(&worker.record));
                let Some(synced) = synced.filter(|synced| synced.is_session(session)) else {
                    continue;
                };
                match answer {
                    Answer::Unknown => {
                        // It is registered again, and its end is sent then.
                        synced.forget(LeaseLoss::Forgotten);
                        continue;
                    }
                    Answer::Busy => {
                        synced.retry_busy(self.clock.now());
                        continue;
                    }
                    Answer::Invalid => {
                        refused.push((worker.clone(), synced.incarnation));
                        continue;
                    }
                    Answer::Accepted | Answer::Superseded | Answer::Ended => synced.finish(),
                }
                // The store released its leases.
                sync_state
                    .to_release
                    .retain(|key| key.worker != session.key);
            }
        }
        self.refuse(registry, &refused, &not_kept());
        Ok(())
    }

    /// Sends the heartbeats that are due. Returns whether the store knew all of the workers.
    pub(super) fn beat(&self, registry: &Registry) -> Result<bool, Error> {
        let mut all_known = true;
        let mut fenced = Vec::new();
        let mut not_kept_ones = Vec::new();
        // Workers whose records were locked are sent apart from the others.
        let (waiting, due): (Vec<Due>, Vec<Due>) =
            self.due(registry).into_iter().partition(|due| due.was_busy);
        for batch in due.chunks(BATCH).chain(waiting.chunks(BATCH)) {
            let sent = ClockReading::of(&self.clock);
            // One for all: a pacemaker that is late is waited for once.
            let observed = registry.observed_now();
            // The end of a worker is sent as such, never as a heartbeat.
            let (batch, beats): (Vec<&Due>, Vec<Beat>) = batch
                .iter()
                .filter_map(|due| Some((due, self.beat_of(due, &observed)?)))
                .unzip();
            if beats.is_empty() {
                continue;
            }
            let answers = self.unless_closing("beat", self.store.beat(&beats));
            let answers = check_count("beat", beats.len(), answers)?;
            let mut any_broken = false;
            for ((due, beat), answer) in batch.iter().zip(&beats).zip(answers) {
                let mut sync_state = self.sync_state.lock();
                let synced = sync_state.get_mut(&due.worker);
                let Some(synced) = synced.filter(|synced| synced.is_session(&due.session)) else {
                    continue;
                };
                let why;
                let refused = match answer {
                    Answer::Accepted => {
                        due.session.accepted(&sent, beat.heartbeat_age);
                        synced.sent = Some(due.state);
                        synced.busy = None;
                        synced.refused_until = None;
                        continue;
                    }
                    Answer::Busy => {
                        synced.retry_busy(self.clock.now());
                        continue;
                    }
                    Answer::Invalid => {
                        not_kept_ones.push((due.worker.clone(), synced.incarnation));
                        continue;
                    }
                    Answer::Unknown => {
                        why = LeaseLoss::Forgotten;
                        false
                    }
                    // Not if it may be by its own registration, which arrived late.
                    Answer::Superseded => {
                        why = LeaseLoss::Superseded;
                        self.clock.now() >= synced.unsure_until
                    }
                    Answer::Ended => {
                        why = LeaseLoss::MarkedOffline;
                        synced.swept = true;
                        self.config.on_offline == OnOffline::Fence
                    }
                };
                any_broken = true;
                if refused && due.worker.record.is_over() {
                    // It ended by itself; the store keeps what it knows.
                    synced.finish();
                    continue;
                }
                synced.forget(why);
                if !refused {
                    all_known = false;
                } else if synced.is_present() {
                    // To be fenced without the lock.
                    fenced.push((due.worker.clone(), synced.incarnation));
                }
            }
            if any_broken {
                self.lose_unheld();
            }
        }
        self.refuse(registry, &not_kept_ones, &not_kept());
        for (worker, incarnation) in fenced {
            registry.fence(&worker, incarnation);
            if let Some(synced) = self.sync_state.lock().get_mut(&worker) {
                synced.finish();
            }
        }
        Ok(all_known)
    }

    fn due(&self, registry: &Registry) -> Vec<Due> {
        let at = self.clock.now();
        let observed = registry.observed_now();
        let sync_state = self.sync_state.lock();
        let due = sync_state.unfinished().filter_map(|synced| {
            let session = synced.session.clone()?;
            let state = synced.worker.health(&observed).state();
            let task = synced.worker.living_snapshot()?.work.task;
            let stack = Some(&synced.worker.record).filter(|_| !state.is_recent());
            let stack = stack.and_then(|record| record.known_detail()?.stack_number());
            let state = SentState {
                state,
                task,
                stack,
                at,
            };
            synced.is_due(&state).then(|| Due {
                worker: synced.worker.clone(),
                session,
                state,
                has_new_stack: synced.sent.and_then(|sent| sent.stack) != stack,
                was_busy: synced.busy.is_some(),
            })
        });
        due.collect()
    }

    /// The heartbeat of a worker; `None` if it has ended.
    fn beat_of(&self, due: &Due, observed: &ObservedNow) -> Option<Beat> {
        let profile = &due.worker.record.profile;
        let age = |at: Option<Moment>| at.map(|at| observed.now.since(at));
        let mut beat = due.worker.read_all(observed, |facts, snapshot, detail| {
            let Facts::Living(signs) = &facts else {
                return None;
            };
            let health = facts.judge(&profile.limits(), observed.now, detail);
            let tasks = detail.map(|detail| &detail.tasks);
            let (run_id, task) = tasks.map_or((None, None), Tasks::names);
            let racing = detail.and_then(Detail::racing).zip(profile.pace.at_most);
            let at_task = run_id.is_some() || task.is_some();
            let progress = tasks.and_then(Tasks::current);
            let progress = progress.map(|task| (task.done, task.total));
            Some(Beat {
                key: due.session.key.clone(),
                status: WorkerStatus {
                    state: health.state(),
                    // A warning, where the state needs no reason.
                    reason: health
                        .reason()
                        .or_else(|| racing.map(|(rate, at_most)| racing_text(rate, at_most))),
                    run_id,
                    task,
                    progress: progress.filter(|(_, total)| at_task && *total > 0),
                    last_location: due
                        .worker
                        .record
                        .last_location(detail)
                        .map(|location| location.to_string()),
                    beats: snapshot?.beats,
                    stack: due.has_new_stack.then(|| {
                        let stack = detail.and_then(Detail::stack_capture);
                        stack.and_then(|stack| stack.text()).unwrap_or_default()
                    }),
                },
                heartbeat_age: age(facts.heartbeat_at()),
                progress_age: age(signs.progress_at),
                metadata: Vec::new(),
            })
        })?;
        if beat.status.run_id.is_none() {
            let sync_state = self.sync_state.lock();
            let mut leases = sync_state.leases.of_session(&due.session);
            beat.status.run_id = leases.next().map(|lease| lease.key.run_id.clone());
        }
        Some(beat)
    }
}

/// The refusal of a report that the store cannot keep.
fn not_kept() -> Error {
    Error::invalid("report", "one that the store refuses", "what it can keep")
}

impl Uploader {
    fn registration(&self, worker: &WorkerRef, process: &ProcessIdentity) -> Registration {
        let mut registration = registration(worker, process);
        registration.refuse_duplicate = self.config.on_duplicate == OnDuplicate::Refuse;
        let detail = worker.record.known_detail();
        let death = detail.and_then(|detail| detail.last_death.clone());
        registration.last_death = death.map(|death| {
            let age = self.clock.wall().duration_since(death.at);
            StoredDeath {
                run_id: death.run_id.clone(),
                task: death.task.clone(),
                ..StoredDeath::new(StoredEnding::dead(&death.cause), age.unwrap_or_default())
            }
        });
        registration
    }
}

fn registration(worker: &WorkerRef, process: &ProcessIdentity) -> Registration {
    let record = &worker.record;
    let profile = &record.profile;
    let explicit = !record.is_generated();
    let id = if explicit || record.is_adopted() {
        record.id().to_owned()
    } else {
        // `{type}-{pid}-{n}` is unique in this process only.
        let mut parts = record.id.rsplitn(3, '-');
        let n = parts.next().unwrap_or("1");
        let worker_type = parts.nth(1).unwrap_or_default();
        format!("{worker_type}-{}-{}-{n}", process.hostname, process.pid)
    };
    let mut info = WorkerInfo {
        group: profile.group.to_string(),
        interval: profile.interval,
        thresholds: Some(profile.thresholds.clone()),
        process: Some(process.clone()),
        ..WorkerInfo::new(&*profile.worker_type)
    };
    if let Some(detail) = record.known_detail() {
        info.metadata.clone_from(&detail.metadata);
        info.restarts = detail.restarts;
    }
    Registration {
        id,
        explicit,
        info,
        last_death: None,
        refuse_duplicate: false,
    }
}
