//! Reads the store on a thread of its own, so that a slow store delays no key.

use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender, bounded};
use worker_heartbeat::fleet::StoredWorker;
use worker_heartbeat::{HeartbeatStore, State};

use super::Message;
use crate::chain;
use crate::scope::Scope;
use crate::text::clean;

/// The most workers that are read and shown.
pub const MOST_ROWS: usize = 500;

/// What to read.
#[derive(Clone, Default)]
pub struct Query {
    pub scope: Scope,
    /// In the order of ids, not the worst first.
    pub by_id: bool,
    /// The worker whose details are shown.
    pub worker: Option<String>,
    /// Counts the questions: an answer to an earlier one is not what is asked for now.
    pub number: u64,
}

/// What the store answered.
pub struct Reading {
    pub workers: Vec<StoredWorker>,
    /// How many workers of the types and groups are in each state.
    pub counts: Vec<(State, usize)>,
    /// The worker whose details are shown.
    pub worker: Option<StoredWorker>,
    pub read_at: SystemTime,
}

pub struct Answer {
    pub number: u64,
    pub reading: Result<Reading, String>,
}

/// Starts the thread. A question that comes while it reads takes the place of one that waits.
pub fn start(
    store: Arc<dyn HeartbeatStore>,
    answers: Sender<Message>,
) -> std::io::Result<Questions> {
    let (sender, questions) = bounded::<Query>(1);
    let waiting = questions.clone();
    thread::Builder::new()
        .name("reader".to_owned())
        .spawn(move || {
            for query in &questions {
                let reading = read(&*store, &query);
                let number = query.number;
                let answer = Box::new(Answer { number, reading });
                if answers.send(Message::Answer(answer)).is_err() {
                    break;
                }
            }
        })?;
    Ok(Questions { sender, waiting })
}

pub struct Questions {
    sender: Sender<Query>,
    waiting: Receiver<Query>,
}

impl Questions {
    pub fn ask(&self, query: Query) {
        // Only the newest question is of interest.
        let _ = self.waiting.try_recv();
        let _ = self.sender.try_send(query);
    }
}

fn read(store: &dyn HeartbeatStore, query: &Query) -> Result<Reading, String> {
    let read = || {
        let workers = if query.by_id {
            query.scope.first(store, MOST_ROWS)?
        } else {
            query.scope.worst(store, MOST_ROWS)?
        };
        let counts = query.scope.counts(store, false)?;
        let worker = match &query.worker {
            Some(id) => store.find(id)?,
            None => None,
        };
        Ok(Reading {
            workers,
            counts: counts.states.iter().collect(),
            worker,
            read_at: SystemTime::now(),
        })
    };
    read().map_err(|error: worker_heartbeat::Error| clean(&chain(&error)))
}
