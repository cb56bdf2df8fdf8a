//! What the coordinator does with a request once it is read: no network and no runtime here.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use log::Level;
use parking_lot::Mutex;

use super::incarnation_cache::{IncarnationCache, just_before};
use crate::error::Error;
use crate::fleet::{Answer, HeartbeatStore, StoredWorker, WorkerFilter, WorkerKey};
use crate::sync::describe::written;
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

/// Bytes of an id. A generated one holds a type and a host's name.
pub(super) const LONGEST_ID: usize = 512;

/// Ended workers that make room for others when there are too many: those that ended so long ago.
const MAKE_ROOM_AGE: Duration = Duration::from_secs(3_600);
/// All workers are counted at most this often.
const COUNT_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    pub store: Arc<dyn HeartbeatStore>,
    pub known: Mutex<IncarnationCache>,
    most_workers: usize,
    census: Mutex<ConsistentScan>,
    failing: AtomicBool,
}

/// How many workers there are, at most.
#[derive(Debug, Default)]
struct ConsistentScan {
    counted: Option<(usize, Instant)>,
}

/// A request that has been read.
pub(super) struct ReceivedBody {
    pub body: Bytes,
    /// While it waited for its turn, what it tells has grown older.
    pub came: Instant,
}

impl Deref for ReceivedBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.body
    }
}

/// A request that is not granted.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub status: u16,
    pub reason: String,
    /// What a program can tell it by.
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

    /// What a store said, other than that it takes it in.
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
                "it was stopped, or marked offline because it was not heard of: register it again \
                 with POST /api/worker/register",
            ),
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
    /// What is not allowed is for whoever asked.
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
            census: Mutex::default(),
            failing: AtomicBool::new(false),
        }
    }

    /// Passes on what the store answers. What is wrong with a store is for its operator: it is
    /// logged, once an episode, and not told to whoever asked.
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
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    let error = written(format_args!("{error}"));
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

    /// The one answer to one question.
    pub(super) fn asked_one<T>(&self, answers: Result<Vec<T>, Error>) -> Result<T, Refusal> {
        let answer = answers.and_then(|answers| {
            let count = answers.len();
            answers
                .into_iter()
                .next()
                .filter(|_| count == 1)
                .ok_or_else(|| {
                    Error::store("answer", format_args!("{count} answers to one question"))
                })
        });
        self.asked(answer)
    }

    /// What the store knows of this worker now.
    pub(super) fn look_up(&self, id: &str) -> Result<Option<StoredWorker>, Refusal> {
        let found = self.store.list(&WorkerFilter {
            after: Some(just_before(id, LONGEST_ID)),
            limit: 1,
            ..WorkerFilter::default()
        });
        let found = self
            .asked(found)?
            .into_iter()
            .find(|worker| worker.key.id == id);
        let mut known = self.known.lock();
        match &found {
            Some(worker) => known.refresh(worker),
            None => known.forget(id),
        }
        Ok(found)
    }

    /// Acts as this worker: as the incarnation that was named, or as the current one. That is known
    /// from the last time; if the store says otherwise, it is looked up, and tried once more.
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
            let key = WorkerKey {
                id: id.to_owned(),
                incarnation,
            };
            let refused = match act(key.clone())? {
                Ok(done) => return Ok((key, done)),
                Err(refused) => refused,
            };
            if looked_up || named.is_some() || refused == Answer::Ended {
                return Err(Refusal::of(refused, id));
            }
            current = self.look_up(id)?.map(|worker| worker.key.incarnation);
            looked_up = true;
        }
    }

    /// Lets so many more workers in, if there is room. Those that are known already need none, but
    /// are only told apart when there is none left.
    pub(super) fn admit(&self, ids: &[&str]) -> Result<(), Refusal> {
        let mut census = self.census.lock();
        if let Some((count, _)) = &mut census.counted {
            if *count + ids.len() <= self.most_workers {
                *count += ids.len();
                return Ok(());
            }
        }
        let known = census.counted;
        let count = match known {
            Some((count, at)) if at.elapsed() < COUNT_PAUSE => count,
            _ => self.count(ids.len())?,
        };
        let at = match known {
            Some((_, at)) if at.elapsed() < COUNT_PAUSE => at,
            _ => Instant::now(),
        };
        let mut new = ids.len();
        if count + new > self.most_workers {
            new = 0;
            for id in ids {
                new += usize::from(self.look_up(id)?.is_none());
            }
        }
        let admitted = new == 0 || count + new <= self.most_workers;
        census.counted = Some((count + if admitted { new } else { 0 }, at));
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

    /// Counts all workers; if there are too many, those that ended long ago are forgotten first.
    fn count(&self, more: usize) -> Result<usize, Refusal> {
        let count = self.asked(self.store.summary())?.total;
        if count + more <= self.most_workers {
            return Ok(count);
        }
        let purged = self.asked(self.store.purge(MAKE_ROOM_AGE))?;
        if purged > 0 {
            log_line(
                Level::Warn,
                format_args!(
                    "coordinator: {count} workers; {purged} that had ended were forgotten"
                ),
            );
        }
        Ok(count.saturating_sub(purged))
    }
}
