//! The coordinator's actions on a request that has been read: no network and no runtime here.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use log::Level;
use parking_lot::Mutex;

use super::incarnation_cache::IncarnationCache;
use crate::error::{Error, StoreErrorKind};
use crate::fleet::numbers::HighestNumbers;
use crate::fleet::store::check_count;
use crate::fleet::{
    Answer, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, StoredWorker, WorkerKey,
};
use crate::sync::describe::{chain, written};
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

/// Bytes of an id. A generated id contains a type and a host name.
pub(super) const LONGEST_ID: usize = 512;

/// When there are too many workers, those that ended this long ago are purged.
const MAKE_ROOM_AGE: Duration = Duration::from_secs(3_600);
/// The shortest time between two counts of all workers.
const COUNT_PAUSE: Duration = Duration::from_secs(1);
/// The shortest time between two lines of the log about a busy store.
const BUSY_PAUSE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    pub store: Arc<dyn HeartbeatStore>,
    pub known: Mutex<IncarnationCache>,
    most_workers: usize,
    /// An upper bound of the number of workers, and the time of the count.
    count: Mutex<Option<(usize, Instant)>>,
    failing: AtomicBool,
    numbers: HighestNumbers,
    /// The store's numbers went back, as the log says.
    went_back: AtomicBool,
    /// When it was last logged that the store is busy.
    logged_busy: Mutex<Option<Instant>>,
}

/// A request that has been read.
pub(super) struct ReceivedBody {
    pub body: Bytes,
    /// When it was received: the ages in it grow while it waits for its turn.
    pub came: Instant,
}

impl Deref for ReceivedBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.body
    }
}

/// The answer to a request.
pub(super) type Reply<T> = Result<T, Refusal>;

/// The answer to a request that is refused.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub status: u16,
    pub reason: String,
    /// The reason for programs.
    pub code: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: u16, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            code: None,
        }
    }

    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::new(400, reason)
    }

    /// The refusal of a store.
    pub(super) fn of(answer: Answer, id: &str) -> Self {
        let (status, code, reason) = match answer {
            Answer::Superseded => (
                409,
                "superseded",
                "another incarnation has taken its place: stop, or register to take it back",
            ),
            Answer::Ended => (
                409,
                "ended",
                "it was stopped, or marked offline because it was silent: register it again with \
                 POST /api/worker/register",
            ),
            Answer::Busy => (
                503,
                "busy",
                "another client of the store locks its record: try again",
            ),
            Answer::Invalid => (400, "invalid", "the store cannot keep what it reports"),
            Answer::Unknown | Answer::Accepted => (
                404,
                "unknown",
                "it is not known here: register it with POST /api/worker/register",
            ),
        };
        Self {
            status,
            reason: format!("worker {id:?}: {reason}"),
            code: Some(code),
        }
    }
}

impl From<Error> for Refusal {
    /// An invalid value is the client's error.
    fn from(error: Error) -> Self {
        Self::bad(written(format_args!("{error}")))
    }
}

impl Service {
    pub(super) fn new(store: Arc<dyn HeartbeatStore>, most_workers: usize) -> Self {
        Self {
            store,
            known: Mutex::new(IncarnationCache::new(most_workers)),
            most_workers,
            count: Mutex::default(),
            numbers: HighestNumbers::default(),
            went_back: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            logged_busy: Mutex::default(),
        }
    }

    /// Passes on the store's answer. A failure of the store is logged for its operator, once an
    /// episode, and its text is not sent to the client.
    pub(super) fn asked<T>(&self, answer: Result<T, Error>) -> Result<T, Refusal> {
        match answer {
            Ok(answer) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    log_line(
                        Level::Info,
                        format_args!("coordinator: the store answers again"),
                    );
                }
                Ok(answer)
            }
            Err(error @ Error::Invalid { .. }) => Err(error.into()),
            Err(Error::Store {
                kind: StoreErrorKind::Busy,
                ref message,
                ..
            }) => {
                self.tell_busy(message);
                Err(Refusal {
                    status: 503,
                    reason: "the store, or the record that this is about, is busy: try again"
                        .to_owned(),
                    code: Some("busy"),
                })
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    let error = chain(&error);
                    log_line(
                        Level::Error,
                        format_args!("coordinator: {}", Printable(&error)),
                    );
                }
                Err(Refusal::new(
                    503,
                    "the store fails; the coordinator's log says why",
                ))
            }
        }
    }

    /// At most once a minute: a single record may be locked for long.
    fn tell_busy(&self, why: &str) {
        let mut logged = self.logged_busy.lock();
        if logged.is_none_or(|at| at.elapsed() >= BUSY_PAUSE) {
            *logged = Some(Instant::now());
            log_line(
                Level::Warn,
                format_args!("coordinator: the store is busy: {}", Printable(why)),
            );
        }
    }

    /// The single answer to a single question.
    pub(super) fn asked_one<T>(&self, answers: Result<Vec<T>, Error>) -> Result<T, Refusal> {
        let answer = check_count("answer", 1, answers).and_then(|mut answers| {
            let none = || Error::store("answer", "no answer");
            answers.pop().ok_or_else(none)
        });
        self.asked(answer)
    }

    /// Registers workers, unless the store's incarnations go back. `each`: otherwise all of them, or none.
    pub(super) fn register(
        &self,
        workers: &[Registration],
        each: bool,
    ) -> Result<Vec<Result<WorkerKey, Error>>, Refusal> {
        let before = self.numbers.before_request();
        let keys = if each {
            self.store.register_each(workers)
        } else {
            let keys = self.store.register(workers);
            keys.map(|keys| keys.into_iter().map(Ok).collect())
        };
        let keys = self.asked(check_count("answer", workers.len(), keys))?;
        let given = keys.iter().flatten();
        self.check_numbers(self.numbers.check_incarnations(before, given))?;
        Ok(keys)
    }

    /// Claims a run, unless the store's fences go back.
    pub(super) fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Refusal> {
        let before = self.numbers.before_request();
        let answer = self.asked(self.store.claim(claim))?;
        match answer {
            // An attempt that is repeated gets its earlier fence again.
            ClaimAnswer::Granted(fence) if claim.attempt.is_none() => {
                let checked = self.check_numbers(self.numbers.check_fence(before, fence));
                if checked.is_err() {
                    let lease = LeaseKey::new(claim.worker.clone(), &claim.run_id, fence);
                    self.asked(self.store.release(&[lease]))?;
                }
                checked?;
            }
            _ => {}
        }
        Ok(answer)
    }

    /// Logs once that numbers went back.
    fn check_numbers(&self, checked: Result<(), Error>) -> Result<(), Refusal> {
        checked.map_err(|error| {
            if !self.went_back.swap(true, Ordering::Relaxed) {
                log_line(Level::Error, format_args!("coordinator: {error}"));
            }
            Refusal::new(
                503,
                "the store's numbers went back; the coordinator's log says why",
            )
        })
    }

    /// The worker as the store knows it now.
    pub(super) fn look_up(&self, id: &str) -> Result<Option<StoredWorker>, Refusal> {
        let found = self.asked(self.store.find(id))?;
        let mut known = self.known.lock();
        match &found {
            Some(worker) => known.refresh(worker),
            None => known.forget(id),
        }
        Ok(found)
    }

    /// Acts as this worker: as the incarnation that was named, or as the current one. The current one
    /// is cached; if the store refuses it, it is looked up, and the action is repeated once.
    pub(super) fn act_as<T>(
        &self,
        id: &str,
        named: Option<u64>,
        act: impl Fn(WorkerKey) -> Result<Result<T, Answer>, Refusal>,
    ) -> Result<(WorkerKey, T), Refusal> {
        let remembered = self.known.lock().incarnation(id);
        let mut looked_up = false;
        let mut current = remembered;
        if current.is_none() || named.is_some_and(|named| current != Some(named)) {
            current = self.look_up(id)?.map(|worker| worker.key.incarnation);
            looked_up = true;
        }
        loop {
            let Some(incarnation) = named.or(current) else {
                return Err(Refusal::of(Answer::Unknown, id));
            };
            let key = WorkerKey::new(id, incarnation);
            let refused = match act(key.clone())? {
                Ok(done) => return Ok((key, done)),
                Err(refused) => refused,
            };
            let is_current = matches!(refused, Answer::Ended | Answer::Busy | Answer::Invalid);
            if looked_up || named.is_some() || is_current {
                return Err(Refusal::of(refused, id));
            }
            current = self.look_up(id)?.map(|worker| worker.key.incarnation);
            looked_up = true;
        }
    }

    /// Admits more workers, if there is room. Workers that the store knows need none, but are looked
    /// up only when there is none left.
    pub(super) fn admit(&self, ids: &[&str]) -> Result<(), Refusal> {
        let mut counted = self.count.lock();
        if let Some((count, _)) = &mut *counted {
            if *count + ids.len() <= self.most_workers {
                *count += ids.len();
                return Ok(());
            }
        }
        let recent = counted.filter(|(_, at)| at.elapsed() < COUNT_PAUSE);
        let (count, at) = match recent {
            Some(recent) => recent,
            None => (self.count(ids.len())?, Instant::now()),
        };
        let mut new = ids.len();
        if count + new > self.most_workers {
            new = 0;
            for id in ids {
                new += usize::from(self.look_up(id)?.is_none());
            }
        }
        let admitted = new == 0 || count + new <= self.most_workers;
        *counted = Some((count + if admitted { new } else { 0 }, at));
        if admitted {
            return Ok(());
        }
        Err(Refusal::new(
            429,
            format!(
                "there are {count} workers already, {} are allowed",
                self.most_workers
            ),
        ))
    }

    /// Counts all workers; if there are too many, those that ended long ago are purged first.
    fn count(&self, more: usize) -> Result<usize, Refusal> {
        let count = self.asked(self.store.counts())?.states.total();
        if count + more <= self.most_workers {
            return Ok(count);
        }
        let purged = self.asked(self.store.purge(MAKE_ROOM_AGE))?;
        if purged > 0 {
            log_line(
                Level::Warn,
                format_args!("coordinator: {count} workers; {purged} that had ended were purged"),
            );
        }
        Ok(count.saturating_sub(purged))
    }
}
