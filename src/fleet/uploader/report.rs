//! Who is there, who is new, who is over, and how they are: told to the store in batches.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Uploader;
use super::sync_state::{Known, Told, address};
use super::thread::LONGEST_RETRY;
use crate::clock::Moment;
use crate::error::Error;
use crate::fleet::config::OnOffline;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::session::{LeaseState, Now, StoreSession};
use crate::fleet::store::{Answer, Beat, Registration, Stop};
use crate::registry::Registry;
use crate::registry::core::events::EventKind;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::WorkerRef;
use crate::sync::describe::written;

/// So many workers go into one call.
const BATCH: usize = 5_000;
/// So many refusals are looked into in one round; then the store is full, as a rule.
const MOST_REFUSALS: usize = 32;

/// A worker that is to be registered, and which life of it.
type Newcomer = (WorkerRef, u32);

impl Uploader {
    /// Takes note of who is there.
    pub(super) fn notice(&self, registry: &Registry) {
        let workers = registry.worker_refs();
        let mut sync_state = self.sync_state.lock();
        let sync_state = &mut *sync_state;
        // Not those that the store was told of to the end, nor those that nobody remembers any more
        // and that it never knew.
        let here: HashSet<usize> = workers
            .iter()
            .map(|worker| address(&worker.record))
            .collect();
        sync_state.known.retain(|number, known| {
            !known.ended && (known.session.is_some() || here.contains(number))
        });
        for worker in workers {
            let record = &worker.record;
            let number = address(record);
            match sync_state.known.get_mut(&number) {
                Some(known) => {
                    if known.incarnation != record.incarnation() {
                        // Another life, which is registered as such. The one before is over, so
                        // nobody believes in its leases any more.
                        if let Some(session) = &known.session {
                            let own = sync_state
                                .leases
                                .iter()
                                .filter(|held| held.hangs_on(session));
                            sync_state
                                .to_release
                                .extend(own.map(|held| held.key.clone()));
                        }
                        known.forget();
                        known.incarnation = record.incarnation();
                        known.worker = worker;
                        known.refused_until = None;
                    }
                }
                None if record.is_end_stored() => {}
                None => {
                    let incarnation = record.incarnation();
                    sync_state.known.insert(
                        number,
                        Known {
                            worker,
                            incarnation,
                            session: None,
                            told: None,
                            ended: false,
                            swept: false,
                            unsure_until: Moment::ZERO,
                            refused_until: None,
                        },
                    );
                }
            }
        }
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), Error> {
        let mut refusals = 0;
        loop {
            let observed = registry.observed_now();
            let now = self.clock.now();
            // Who was marked offline, and is not well, would be marked again and again.
            let wanted = |known: &Known| {
                let state = known.worker.health(&observed).state();
                known.refused_until.is_none_or(|until| until <= now)
                    && (!known.swept || state.is_recent() || state.is_terminal())
            };
            let mut newcomers: Vec<Newcomer> = self
                .sync_state
                .lock()
                .known
                .values()
                .filter(|known| known.session.is_none() && !known.ended && wanted(known))
                .map(|known| (known.worker.clone(), known.incarnation))
                .collect();
            // In another order each time: whoever stands behind many that are refused gets his turn.
            let order = RandomState::new();
            newcomers.sort_by_cached_key(|(worker, _)| order.hash_one(address(&worker.record)));
            newcomers.truncate(BATCH);
            if newcomers.is_empty() {
                return Ok(());
            }
            self.introduce(registry, &observed, &newcomers, &mut refusals)?;
        }
    }

    /// Registers these. Where the store refuses one of them, the others are registered without it.
    fn introduce(
        &self,
        registry: &Registry,
        observed: &ObservedNow,
        newcomers: &[Newcomer],
        refusals: &mut usize,
    ) -> Result<(), Error> {
        let process = ProcessIdentity::current();
        let wishes: Vec<_> = newcomers
            .iter()
            .map(|(worker, _)| wish(registry, observed, worker, &process))
            .collect();
        let sent = Now::of(&self.clock);
        let keys = match self.still("register", self.store.register(&wishes)) {
            Ok(keys) => answered("register", wishes.len(), keys)?,
            Err(refusal @ Error::Invalid { .. }) => {
                if newcomers.len() == 1 || *refusals >= MOST_REFUSALS {
                    *refusals += 1;
                    self.refuse(registry, newcomers, &refusal);
                    return Ok(());
                }
                let (some, others) = newcomers.split_at(newcomers.len() / 2);
                self.introduce(registry, observed, some, refusals)?;
                return self.introduce(registry, observed, others, refusals);
            }
            Err(error) => {
                let mut sync_state = self.sync_state.lock();
                for (worker, _) in newcomers {
                    if let Some(known) = sync_state.known.get_mut(&address(&worker.record)) {
                        // It may come in late, and take the place of the next one.
                        let stale_after = worker.record.profile.thresholds.stale_after;
                        known.unsure_until = self.clock.now().after(stale_after);
                    }
                }
                return Err(error);
            }
        };
        let mut sync_state = self.sync_state.lock();
        for ((worker, incarnation), key) in newcomers.iter().zip(keys) {
            worker.record.adopt(&key.id);
            let stale_after = worker.record.profile.thresholds.stale_after;
            let known = sync_state.known.get_mut(&address(&worker.record));
            if let Some(known) = known.filter(|known| known.incarnation == *incarnation) {
                let session =
                    StoreSession::new(key, stale_after, worker.clone(), *incarnation, &sent);
                known.session = Some(Arc::new(session));
                known.told = None;
                known.swept = false;
                known.refused_until = None;
            }
        }
        Ok(())
    }

    /// Takes note that the store does not let these in, and tells it of each once.
    fn refuse(&self, registry: &Registry, newcomers: &[Newcomer], refusal: &Error) {
        let error = written(format_args!("{refusal}"));
        let until = self.clock.now().after(LONGEST_RETRY);
        let mut news = Vec::new();
        let mut sync_state = self.sync_state.lock();
        for (worker, _) in newcomers {
            let known = sync_state.known.get_mut(&address(&worker.record));
            if known.is_some_and(|known| known.refused_until.replace(until).is_none()) {
                news.push(worker);
            }
        }
        drop(sync_state);
        self.progress.lock().status.last_error = Some(error.clone());
        for worker in news {
            let error = error.clone();
            let refused = EventKind::Refused { error };
            registry.emit(Some(&worker), refused);
        }
    }

    /// An answer that comes when the attachment has ended is nobody's: another one may tell the same
    /// store of the same workers by now.
    pub(super) fn still<T>(
        &self,
        operation: &'static str,
        answer: Result<T, Error>,
    ) -> Result<T, Error> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::store(operation, "the attachment has ended"));
        }
        answer
    }

    /// Tells who is over.
    pub(super) fn stop(&self, registry: &Registry) -> Result<(), Error> {
        let now = registry.observed_now().clock;
        let over: Vec<(usize, Stop)> = self
            .sync_state
            .lock()
            .known
            .iter()
            .filter(|(_, known)| !known.ended && known.is_present())
            .filter_map(|(number, known)| {
                let ended = known.worker.record.ended()?;
                let key = known.session.as_ref()?.key.clone();
                let stop = Stop {
                    key,
                    ending: ended.ending,
                    ago: now.since(ended.at),
                };
                Some((*number, stop))
            })
            .collect();
        for batch in over.chunks(BATCH) {
            let stops: Vec<Stop> = batch.iter().map(|(_, stop)| stop.clone()).collect();
            let answers = self.still("stop", self.store.stop(&stops))?;
            let answers = answered("stop", stops.len(), answers)?;
            let mut sync_state = self.sync_state.lock();
            for ((number, stop), answer) in batch.iter().zip(answers) {
                let Some(known) = sync_state.known.get_mut(number) else {
                    continue;
                };
                if known
                    .session
                    .as_ref()
                    .is_none_or(|session| session.key != stop.key)
                {
                    continue;
                }
                if answer == Answer::Unknown {
                    // Registered again, and then told.
                    known.forget();
                } else {
                    let session = known.session.clone();
                    known.finish();
                    // Released with the worker's end.
                    let own = |held: &LeaseState| {
                        session
                            .as_ref()
                            .is_some_and(|session| held.hangs_on(session))
                    };
                    sync_state.leases.retain(|held| !(own(held) && held.end()));
                }
            }
        }
        Ok(())
    }

    /// Sends heartbeats of those for whom it is time. Returns whether the store knew all of them.
    pub(super) fn beat(&self, registry: &Registry) -> Result<bool, Error> {
        let now = self.clock.now();
        let observed = registry.observed_now();
        let due: Vec<(usize, WorkerRef, Arc<StoreSession>, Told)> = {
            let sync_state = self.sync_state.lock();
            let living = sync_state.known.iter().filter(|(_, known)| !known.ended);
            living
                .filter_map(|(number, known)| {
                    let session = known.session.clone()?;
                    let state = known.worker.health(&observed).state();
                    let task = known.worker.living_snapshot()?.work.task;
                    let told = Told {
                        state,
                        task,
                        at: now,
                    };
                    known
                        .is_due(&told)
                        .then(|| (*number, known.worker.clone(), session, told))
                })
                .collect()
        };
        let mut all_known = true;
        let mut fenced = Vec::new();
        for batch in due.chunks(BATCH) {
            let sent = Now::of(&self.clock);
            // One for all: a pacemaker that is held up is waited for once.
            let observed = registry.observed_now();
            let beats: Vec<Beat> = batch
                .iter()
                .map(|(_, worker, session, _)| self.report(registry, &observed, worker, session))
                .collect();
            let answers = self.still("beat", self.store.beat(&beats))?;
            let answers = answered("beat", beats.len(), answers)?;
            for (((number, worker, session, told), beat), answer) in
                batch.iter().zip(&beats).zip(answers)
            {
                let mut sync_state = self.sync_state.lock();
                let Some(known) = sync_state.known.get_mut(number) else {
                    continue;
                };
                let is_own = |own: &Arc<StoreSession>| Arc::ptr_eq(own, session);
                if !known.session.as_ref().is_some_and(is_own) {
                    continue;
                }
                let refused = match answer {
                    Answer::Accepted => {
                        session.told(&sent, beat.heartbeat_age);
                        known.told = Some(*told);
                        continue;
                    }
                    Answer::Unknown => false,
                    // By its own registration, which came in late.
                    Answer::Superseded if self.clock.now() < known.unsure_until => false,
                    Answer::Superseded => true,
                    Answer::Ended => {
                        known.swept = true;
                        self.config.on_offline == OnOffline::Fence
                    }
                };
                if refused && worker.record.is_over() {
                    // Its life ended by itself; the store has its own truth.
                    known.finish();
                    continue;
                }
                known.forget();
                if !refused {
                    all_known = false;
                } else if known.is_present() {
                    // Once the sync_state is not locked any more.
                    fenced.push((worker.clone(), known.incarnation));
                }
            }
        }
        for (worker, incarnation) in fenced {
            registry.fence(&worker, incarnation);
            if let Some(known) = self
                .sync_state
                .lock()
                .known
                .get_mut(&address(&worker.record))
            {
                known.finish();
            }
        }
        self.lose_leases(registry);
        Ok(all_known)
    }

    fn report(
        &self,
        registry: &Registry,
        observed: &ObservedNow,
        worker: &WorkerRef,
        session: &Arc<StoreSession>,
    ) -> Beat {
        let snapshot = registry.snapshot_at(worker, observed);
        let leased = || {
            let sync_state = self.sync_state.lock();
            let own = sync_state
                .leases
                .iter()
                .find(|lease| lease.hangs_on(session));
            own.map(|lease| lease.key.run_id.clone())
        };
        Beat {
            key: session.key.clone(),
            state: snapshot.health.state(),
            reason: snapshot.health.reason(),
            heartbeat_age: snapshot.heartbeat_age,
            progress_age: snapshot.progress_age,
            run_id: snapshot.run_id.or_else(leased),
            task: snapshot.task,
            progress: snapshot.progress,
            beats: snapshot.beats,
            metadata: Vec::new(),
        }
    }
}

fn wish(
    registry: &Registry,
    observed: &ObservedNow,
    worker: &WorkerRef,
    process: &ProcessIdentity,
) -> Registration {
    let snapshot = registry.snapshot_at(worker, observed);
    let record = &worker.record;
    let explicit = !record.is_generated();
    Registration {
        id: if explicit || record.is_adopted() {
            record.id().to_owned()
        } else {
            // `{type}-{pid}-{n}` is unique in this process only.
            let mut parts = record.id.rsplitn(3, '-');
            let n = parts.next().unwrap_or("1");
            let worker_type = parts.nth(1).unwrap_or_default();
            format!("{worker_type}-{}-{}-{n}", process.hostname, process.pid)
        },
        explicit,
        worker_type: snapshot.worker_type,
        group: snapshot.group,
        interval: snapshot.interval,
        thresholds: Some(snapshot.thresholds),
        metadata: snapshot.metadata,
        restarts: snapshot.restarts,
        process: Some(process.clone()),
    }
}

/// A store that answers too little, or too much, is not to be trusted with any of it.
pub(super) fn answered<T>(
    operation: &'static str,
    asked: usize,
    answers: Vec<T>,
) -> Result<Vec<T>, Error> {
    if answers.len() == asked {
        return Ok(answers);
    }
    Err(Error::store(
        operation,
        format_args!("{} answers to {asked} questions", answers.len()),
    ))
}
