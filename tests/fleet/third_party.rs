//! A store of another crate: it uses only what the library exports, builds every shape by its
//! constructor, and passes the conformance suite.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::store::{Mode, TestStore};
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Pages, Registration, Stop,
    StoredEnding, StoredWorker, Sweep, WorkerFilter, WorkerKey, conformance,
};
use worker_heartbeat::{DeathCause, Error, MemoryStore, State, SweepReport, Thresholds};

/// The limit of workers without one of their own.
const DEFAULT_LIMIT: Duration = Duration::from_secs(90);
/// The time when the store was created, late enough for every age.
const ORIGIN: Duration = Duration::from_secs(1 << 40);

#[derive(Debug)]
pub struct VecStore {
    created: Instant,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    last_number: u64,
    workers: Vec<Entry>,
    leases: BTreeMap<String, (LeaseKey, Duration)>,
}

/// A worker, with times in place of ages.
#[derive(Debug)]
struct Entry {
    worker: StoredWorker,
    registered_at: Duration,
    heartbeat_at: Option<Duration>,
    progress_at: Option<Duration>,
    ended_at: Duration,
}

impl Entry {
    /// The worker with its ages, of which none is greater than `longest`.
    fn aged(&self, now: Duration, longest: Duration) -> StoredWorker {
        let age = |at: Duration| now.saturating_sub(at).min(longest);
        let mut worker = self.worker.clone();
        worker.registered_age = age(self.registered_at);
        worker.heartbeat_age = self.heartbeat_at.map(age);
        worker.progress_age = self.progress_at.map(age);
        if let Some((_, ago)) = &mut worker.ending {
            *ago = now.saturating_sub(self.ended_at);
        }
        worker
    }

    /// When its process stops believing in its leases.
    fn belief_ends(&self) -> Duration {
        let limits = self.worker.info.thresholds.as_ref();
        let heartbeat_at = self.heartbeat_at.unwrap_or_default();
        heartbeat_at.max(self.registered_at)
            + limits.map_or(DEFAULT_LIMIT, |limits| limits.stale_after)
    }

    fn is_offline(&self, sweep: &Sweep, now: Duration) -> bool {
        let mut worker = self.aged(now, sweep.watched_for);
        let limits = &mut worker.info.thresholds;
        limits.get_or_insert(Thresholds::new(sweep.threshold));
        worker.health().state().is_offline()
    }
}

impl Tables {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn entry(&mut self, id: &str) -> Option<&mut Entry> {
        self.workers
            .iter_mut()
            .find(|entry| entry.worker.key.id == id)
    }

    /// The entry of this incarnation, if it may write.
    fn admit(&mut self, key: &WorkerKey) -> Result<&mut Entry, Answer> {
        let Some(entry) = self.entry(&key.id) else {
            return Err(Answer::Unknown);
        };
        let current = entry.worker.key.incarnation;
        if current > key.incarnation {
            Err(Answer::Superseded)
        } else if current < key.incarnation {
            Err(Answer::Unknown)
        } else if entry.worker.ending.is_some() {
            Err(Answer::Ended)
        } else {
            Ok(entry)
        }
    }

    fn register(&mut self, registration: &Registration, now: Duration) -> WorkerKey {
        let incarnation = self.number();
        let mut id = registration.id.clone();
        let process = &registration.info.process;
        if !registration.explicit {
            let other = self.entry(&id);
            if other.is_some_and(|other| other.worker.info.process != *process || process.is_none())
            {
                id = format!("{id}-{incarnation}");
            }
        }
        if let Some(end) = self.entry(&id).map(|entry| entry.belief_ends()) {
            for (lease, expires_at) in self.leases.values_mut() {
                if lease.worker.id == id {
                    *expires_at = end.min(*expires_at);
                }
            }
            self.workers.retain(|entry| entry.worker.key.id != id);
        }
        let key = WorkerKey::new(id, incarnation);
        self.workers.push(Entry {
            worker: StoredWorker::new(key.clone(), registration.info.clone()),
            registered_at: now,
            heartbeat_at: None,
            progress_at: None,
            ended_at: Duration::ZERO,
        });
        self.workers.sort_by(|a, b| a.worker.key.cmp(&b.worker.key));
        key
    }

    fn beat(&mut self, beat: &Beat, now: Duration) -> Answer {
        let entry = match self.admit(&beat.key) {
            Ok(entry) => entry,
            Err(refused) => return refused,
        };
        let at = |age: Option<Duration>| age.map(|age| now.saturating_sub(age));
        entry.heartbeat_at = entry.heartbeat_at.max(at(beat.heartbeat_age));
        entry.progress_at = entry.progress_at.max(at(beat.progress_age));
        entry.worker.status = beat.status.after(&entry.worker.status);
        let metadata = &mut entry.worker.info.metadata;
        metadata.retain(|(name, _)| beat.metadata.iter().all(|(new, _)| new != name));
        metadata.extend(beat.metadata.iter().cloned());
        Answer::Accepted
    }

    fn stop(&mut self, stop: &Stop, now: Duration) -> Answer {
        let answer = match self.admit(&stop.key) {
            Ok(entry) => {
                entry.worker.ending = Some((stop.ending.clone(), Duration::ZERO));
                entry.ended_at = now.saturating_sub(stop.ago);
                Answer::Accepted
            }
            Err(refused) => refused,
        };
        self.leases.retain(|_, (lease, _)| lease.worker != stop.key);
        answer
    }

    fn claim(&mut self, claim: &Claim, now: Duration) -> ClaimAnswer {
        if let Err(refused) = self.admit(&claim.worker) {
            return ClaimAnswer::Refused(refused);
        }
        let holder = self.leases.get(&claim.run_id);
        if holder.is_some_and(|(lease, until)| *until > now && lease.worker != claim.worker) {
            return ClaimAnswer::Taken;
        }
        let fence = self.number();
        let lease = LeaseKey::new(claim.worker.clone(), &claim.run_id, fence);
        self.leases
            .insert(claim.run_id.clone(), (lease, now + claim.ttl));
        if let Ok(entry) = self.admit(&claim.worker) {
            let run_id = &mut entry.worker.status.run_id;
            run_id.get_or_insert_with(|| claim.run_id.clone());
        }
        ClaimAnswer::Granted(fence)
    }

    fn held(&mut self, key: &LeaseKey, now: Duration) -> Option<&mut Duration> {
        let (lease, until) = self.leases.get_mut(&key.run_id)?;
        (lease == key && *until > now).then_some(until)
    }

    fn sweep(&mut self, sweep: &Sweep, now: Duration) -> SweepReport {
        let mut report = SweepReport::default();
        report.success = true;
        let (mut groups, mut ends) = (BTreeSet::new(), Vec::new());
        for entry in &mut self.workers {
            let key = &entry.worker.key;
            let cause = if entry.worker.ending.is_some() {
                continue;
            } else if sweep.killed.contains(key) {
                DeathCause::Killed
            } else if sweep.gone.contains(key) {
                DeathCause::Gone
            } else if entry.is_offline(sweep, now) {
                DeathCause::Lost
            } else {
                continue;
            };
            report.marked_offline.push(key.id.clone());
            groups.insert(entry.worker.info.group.clone());
            let proved = !matches!(cause, DeathCause::Lost);
            ends.push((key.clone(), if proved { now } else { entry.belief_ends() }));
            if !sweep.dry_run {
                entry.worker.ending = Some((StoredEnding::dead(&cause), Duration::ZERO));
                entry.ended_at = now;
            }
        }
        for (worker, end) in ends {
            for (lease, until) in self.leases.values_mut() {
                if lease.worker == worker {
                    if end.min(*until) <= now {
                        report.released_leases.push(lease.run_id.clone());
                    }
                    if !sweep.dry_run {
                        *until = end.min(*until);
                    }
                }
            }
        }
        for group in groups {
            let mut inside = self
                .workers
                .iter()
                .filter(|entry| entry.worker.info.group == group);
            if inside.all(|entry| match entry.worker.health().state() {
                State::Stopped | State::Dead => true,
                _ => entry.is_offline(sweep, now),
            }) {
                report.affected_groups.push(group);
            }
        }
        if !sweep.dry_run {
            self.leases.retain(|_, (_, until)| *until > now);
        }
        report
    }
}

impl VecStore {
    pub fn new() -> Self {
        Self {
            created: Instant::now(),
            tables: Mutex::default(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Tables, Duration) -> T) -> Result<T, Error> {
        let mut tables = self
            .tables
            .lock()
            .map_err(|error| Error::store("lock", error))?;
        Ok(act(&mut tables, ORIGIN + self.created.elapsed()))
    }
}

impl HeartbeatStore for VecStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.with(|tables, now| {
            workers
                .iter()
                .map(|new| tables.register(new, now))
                .collect()
        })
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.with(|tables, now| beats.iter().map(|beat| tables.beat(beat, now)).collect())
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.with(|tables, now| stops.iter().map(|stop| tables.stop(stop, now)).collect())
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let same =
            |wanted: &Option<String>, is: &String| wanted.as_ref().is_none_or(|one| one == is);
        self.with(|tables, now| {
            let mut listed = Vec::new();
            for entry in &tables.workers {
                let (key, info) = (&entry.worker.key, &entry.worker.info);
                let on_host = filter.host.as_ref().is_none_or(|host| {
                    let process = info.process.as_ref();
                    entry.worker.ending.is_none()
                        && process.is_some_and(|process| {
                            (&process.boot_id, process.pid_namespace)
                                == (&host.boot_id, host.pid_namespace)
                        })
                });
                let matches = same(&filter.worker_type, &info.worker_type)
                    && same(&filter.group, &info.group)
                    && on_host
                    && Some(&key.id) > filter.after.as_ref();
                if !matches || listed.len() == filter.limit {
                    continue;
                }
                let mut worker = entry.aged(now, Duration::MAX);
                let leases = tables.leases.values();
                let own = leases.filter(|(lease, until)| lease.worker == *key && *until > now);
                worker.lease_remaining = own.map(|(_, until)| *until - now).max();
                listed.push(worker);
            }
            listed
        })
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.with(|tables, now| tables.sweep(sweep, now))
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.with(|tables, now| {
            let before = tables.workers.len();
            let until = now.saturating_sub(age);
            let keep = |entry: &Entry| entry.worker.ending.is_none() || entry.ended_at > until;
            tables.workers.retain(keep);
            before - tables.workers.len()
        })
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.with(|tables, now| tables.claim(claim, now))
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.with(|tables, now| {
            let mut renew = |key: &LeaseKey| {
                if tables.admit(&key.worker).is_err() {
                    return false;
                }
                let held = tables.held(key, now);
                held.map(|until| *until = (now + ttl).max(*until)).is_some()
            };
            leases.iter().map(&mut renew).collect()
        })
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.with(|tables, now| {
            let mut release = |key: &LeaseKey| {
                let held = tables.held(key, now).is_some();
                held && tables.leases.remove(&key.run_id).is_some()
            };
            leases.iter().map(&mut release).collect()
        })
    }
}

#[test]
fn a_store_of_another_crate_conforms() {
    conformance::assert_conforms(&VecStore::new());
}

fn ids(store: &dyn HeartbeatStore, filter: WorkerFilter) -> Vec<Vec<String>> {
    let pages = Pages::new(store, filter);
    let ids = |page: Vec<StoredWorker>| page.into_iter().map(|worker| worker.key.id).collect();
    pages.map(|page| ids(page.unwrap())).collect()
}

#[test]
fn pages_contain_each_worker_once_and_end_even_if_the_store_ignores_the_filter() {
    let store = MemoryStore::new();
    let workers = ["a", "b", "c", "d"].map(|id| Registration::new("poller", id));
    store.register(&workers).unwrap();
    let by_two = WorkerFilter::new().limit(2);
    assert_eq!(ids(&store, by_two.clone()), [["a", "b"], ["c", "d"]]);
    assert_eq!(ids(&store, by_two.clone().after("b")), [["c", "d"]]);
    assert_eq!(
        ids(&store, WorkerFilter::new().limit(3)),
        [&["a", "b", "c"][..], &["d"]]
    );
    assert!(ids(&store, WorkerFilter::new().limit(0)).is_empty());
    let odd = TestStore::new(store);
    odd.set(Mode::FirstPageOnly);
    assert_eq!(ids(&odd, by_two), [["a", "b"]]);
    assert_eq!(odd.summary().unwrap().total, 4, "one page is enough");
}

#[test]
fn pages_contain_all_workers_even_if_the_store_has_a_limit_of_its_own() {
    let store = MemoryStore::new();
    let workers = ["a", "b", "c", "d", "e"].map(|id| Registration::new("poller", id));
    store.register(&workers).unwrap();
    let odd = TestStore::new(store);
    odd.set(Mode::ShortPages(2));
    for limit in [3, 1_000, usize::MAX] {
        let pages = ids(&odd, WorkerFilter::new().limit(limit));
        assert_eq!(
            pages,
            [&["a", "b"][..], &["c", "d"], &["e"]],
            "limit {limit}"
        );
    }
}
