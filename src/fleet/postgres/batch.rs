//! Batches in which the trouble of one item is its own: an item whose row another transaction locks,
//! or that the database cannot keep, is answered alone, and the others are written.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Connection;
use super::error::{Cause, Failed};
use super::texts::Texts;
use crate::error::Error;
use crate::fleet::shapes::{Beat, LeaseKey, Registration, Stop};
use crate::fleet::store::check_count;

/// With more items at fault in one call, the fault is usually not theirs: the rest is not searched
/// one by one.
const MOST_SEARCHED: usize = 32;
/// How often a batch is sent again that waited too long for a lock, though nothing locks its rows: the
/// limit of a wait holds for all locks, such as that of a table which grows on a slow disk.
const MOST_REPEATS: usize = 20;
/// For how long the row of an item that was locked is asked about before anything waits for it.
const SUSPECT_FOR: Duration = Duration::from_secs(60);

/// An item of a batch.
pub(super) trait Item {
    /// Identifies its row, as [`Locks::locked`] answers it.
    fn row(&self) -> &str;
    /// Its texts, apart from those that name things of which no two may be mixed up.
    fn texts(&self) -> Vec<&str>;
    /// The texts that are stored as they are, or not at all.
    fn names(&self) -> Vec<&str>;
}

/// Why an item was not written, while others were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Another transaction locks its row.
    Locked,
    /// The encoding of the database lacks a character of its name, so nothing can have that name.
    Name,
    /// The database cannot keep it. Why.
    Data(String),
}

/// The rows that were locked lately.
#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<HashMap<String, Instant>>);

impl Suspects {
    fn contains(&self, row: &str) -> bool {
        let suspects = self.0.lock();
        suspects
            .get(row)
            .is_some_and(|at| at.elapsed() < SUSPECT_FOR)
    }

    fn add(&self, row: &str) {
        let mut suspects = self.0.lock();
        suspects.retain(|_, at| at.elapsed() < SUSPECT_FOR);
        suspects.insert(row.to_owned(), Instant::now());
    }

    fn remove(&self, row: &str) {
        let mut suspects = self.0.lock();
        if !suspects.is_empty() {
            suspects.remove(row);
        }
    }
}

type Send<'a, T, A> = dyn Fn(&[&T]) -> Result<Vec<A>, Failed> + 'a;
type Locked<'a, T> = dyn Fn(&[&T]) -> Result<HashSet<String>, Failed> + 'a;

/// How to write one kind of batch.
pub(super) struct Batch<'a, T, A> {
    pub connection: &'a Connection,
    pub texts: &'a Texts,
    pub suspects: &'a Suspects,
    /// Writes these items in one statement, which waits only briefly for locks. Answers in their
    /// order.
    pub send: &'a Send<'a, T, A>,
    /// The rows of these items that other transactions lock.
    pub locked: &'a Locked<'a, T>,
}

impl<T: Item, A> Batch<'_, T, A> {
    /// Writes all items that can be written. Answers in their order.
    pub(super) fn write(&self, items: &[&T]) -> Result<Vec<Result<A, Fault>>, Error> {
        let mut answers: Vec<_> = items.iter().map(|_| None).collect();
        let chosen = |places: &[usize]| places.iter().map(|n| items[*n]).collect::<Vec<_>>();
        let mut searched = 0;
        let mut repeats = 0;
        let (suspects, others): (Vec<usize>, Vec<usize>) =
            (0..items.len()).partition(|n| self.suspects.contains(items[*n].row()));
        let free = if suspects.is_empty() {
            suspects
        } else {
            self.free(items, suspects, &mut answers)?
        };
        let mut left = vec![[others, free].concat()];
        while let Some(batch) = left.pop() {
            let (batch, unnamed): (Vec<usize>, Vec<usize>) = batch
                .into_iter()
                .partition(|n| items[*n].names().iter().all(|name| self.texts.fits(name)));
            for n in unnamed {
                answers[n] = Some(Err(Fault::Name));
            }
            if batch.is_empty() {
                continue;
            }
            let chosen = chosen(&batch);
            let failed = match (self.send)(&chosen) {
                Ok(sent) => {
                    let sent = check_count("write", batch.len(), Ok(sent))?;
                    for (n, answer) in batch.into_iter().zip(sent) {
                        self.suspects.remove(items[n].row());
                        answers[n] = Some(Ok(answer));
                    }
                    continue;
                }
                Err(failed) => failed,
            };
            let fault = match failed.cause {
                Cause::Other => return Err(failed.error),
                Cause::Encoding => {
                    let texts = chosen
                        .iter()
                        .flat_map(|item| item.texts().into_iter().chain(item.names()));
                    if self
                        .texts
                        .learn(self.connection, texts)
                        .map_err(|failed| failed.error)?
                    {
                        left.push(batch);
                        continue;
                    }
                    Fault::Data(failed.error.to_string())
                }
                Cause::Data => Fault::Data(failed.error.to_string()),
                Cause::Locked => {
                    let before = batch.len();
                    let free = self.free(items, batch.clone(), &mut answers)?;
                    if free.len() < before || repeats < MOST_REPEATS {
                        repeats += usize::from(free.len() == before);
                        left.push(free);
                        continue;
                    }
                    // A row that is not visible yet.
                    Fault::Locked
                }
            };
            if batch.len() > 1 && searched < MOST_SEARCHED {
                let (some, others) = batch.split_at(batch.len() / 2);
                left.extend([some.to_vec(), others.to_vec()]);
                continue;
            }
            searched += 1;
            for n in batch {
                if fault == Fault::Locked {
                    self.suspects.add(items[n].row());
                }
                answers[n] = Some(Err(fault.clone()));
            }
        }
        let none = || Error::store("write", "an item has no answer");
        answers
            .into_iter()
            .map(|answer| answer.ok_or_else(none))
            .collect()
    }

    /// Those of these items whose rows no other transaction locks. The others are answered.
    fn free(
        &self,
        items: &[&T],
        places: Vec<usize>,
        answers: &mut [Option<Result<A, Fault>>],
    ) -> Result<Vec<usize>, Error> {
        let asked: Vec<&T> = places.iter().map(|n| items[*n]).collect();
        let locked = (self.locked)(&asked).map_err(|failed| failed.error)?;
        let (locked, free): (Vec<usize>, Vec<usize>) = places
            .into_iter()
            .partition(|n| locked.contains(items[*n].row()));
        for n in locked {
            self.suspects.add(items[n].row());
            answers[n] = Some(Err(Fault::Locked));
        }
        Ok(free)
    }
}

impl Item for Registration {
    fn row(&self) -> &str {
        &self.id
    }

    fn texts(&self) -> Vec<&str> {
        let info = &self.info;
        let process = info.process.iter();
        let process = process.flat_map(|process| [&*process.hostname, &*process.boot_id]);
        let death = self.last_death.iter().flat_map(|death| {
            let ending = &death.ending;
            let more = [&ending.detail, &ending.location, &death.run_id, &death.task];
            more.into_iter().flatten().chain([&ending.cause])
        });
        [&*info.worker_type, &*info.group]
            .into_iter()
            .chain(process)
            .chain(death.map(String::as_str))
            .chain(pairs(&info.metadata))
            .collect()
    }

    fn names(&self) -> Vec<&str> {
        vec![&self.id]
    }
}

impl Item for Beat {
    fn row(&self) -> &str {
        &self.key.id
    }

    fn texts(&self) -> Vec<&str> {
        let status = &self.status;
        [
            &status.reason,
            &status.run_id,
            &status.task,
            &status.last_location,
            &status.stack,
        ]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .chain(pairs(&self.metadata))
        .collect()
    }

    fn names(&self) -> Vec<&str> {
        vec![&self.key.id]
    }
}

impl Item for Stop {
    fn row(&self) -> &str {
        &self.key.id
    }

    fn texts(&self) -> Vec<&str> {
        let ending = &self.ending;
        [&ending.detail, &ending.location]
            .into_iter()
            .flatten()
            .chain([&ending.cause])
            .map(String::as_str)
            .collect()
    }

    fn names(&self) -> Vec<&str> {
        vec![&self.key.id]
    }
}

impl Item for LeaseKey {
    fn row(&self) -> &str {
        &self.run_id
    }

    fn texts(&self) -> Vec<&str> {
        Vec::new()
    }

    fn names(&self) -> Vec<&str> {
        vec![&self.run_id, &self.worker.id]
    }
}

fn pairs(metadata: &[(String, String)]) -> impl Iterator<Item = &str> {
    metadata
        .iter()
        .flat_map(|(name, value)| [&**name, &**value])
}
