//! Requests about many items: cut by their size, halved where they are refused.
//!
//! A body is bounded before it is built. If it is refused as too large, a smaller one is sent, down to
//! one item; the size that was accepted is remembered. If an item is refused, it is found by halving,
//! and sent without its long texts. The other items are not affected.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::reduce::Reduce;
use super::response::{Failure, Scope};
use super::wire::{self, Answers};
use crate::error::Error;
use crate::fleet::store::check_count;
use crate::serial::Seconds;
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

/// The most items in one request.
const MOST_IN_BATCH: usize = wire::MOST_ITEMS / 5;
/// A smaller body than this is never the reason why a connection is closed.
const NEVER_TOO_LARGE: usize = 16 * 1024;
/// How many items are searched for in one call. If there are more, usually all are refused.
const MOST_REFUSALS: usize = 32;
/// How long a smaller limit is kept before a larger body is tried again.
const LIMIT_LIFETIME: Duration = Duration::from_secs(600);
/// The most workers that are remembered as logged.
const MOST_LOGGED: usize = 1_000;
/// The length of the texts of an item that was refused, one after the other.
const REDUCED_LENGTHS: [usize; 2] = [256, 0];

/// How large a body may be.
#[derive(Debug)]
struct Limit {
    most: usize,
    /// A smaller limit that was found, and when a larger one is tried.
    found: Option<(usize, Instant)>,
}

impl Limit {
    fn at(&mut self, now: Instant) -> usize {
        if let Some((limit, until)) = self.found.filter(|(_, until)| *until <= now) {
            let larger = limit.saturating_mul(2);
            self.found = (larger < self.most).then(|| (larger, until.max(now) + LIMIT_LIFETIME));
        }
        self.found.map_or(self.most, |(limit, _)| limit)
    }

    fn lower(&mut self, limit: usize, now: Instant) {
        self.found = Some((limit, now + LIMIT_LIFETIME));
    }
}

/// What is known about the requests of a store; clones of the store share it.
#[derive(Debug)]
pub(super) struct Batches {
    limit: Mutex<Limit>,
    reduced: AtomicU64,
    logged: Mutex<HashSet<String>>,
}

/// The answers of one call.
pub(super) struct Answered<A> {
    /// `None`: the item was not sent, or its answer is not known.
    answers: Vec<Option<Result<A, Error>>>,
    /// Why some items have no answer.
    failure: Option<Error>,
}

impl<A> Answered<A> {
    pub(super) fn map<B>(self, change: impl Fn(A) -> B) -> Answered<B> {
        let answers = self.answers.into_iter();
        let answers = answers.map(|answer| answer.map(|answer| answer.map(&change)));
        Answered {
            answers: answers.collect(),
            failure: self.failure,
        }
    }

    /// The answers, with these for items that were refused and for items without an answer; after a
    /// failure without any answer, the error.
    pub(super) fn or(self, refused: A, none: A) -> Result<Vec<A>, Error>
    where
        A: Copy,
    {
        let is_known = |answer: &Option<Result<A, Error>>| matches!(answer, Some(Ok(_)));
        match self.failure {
            Some(error) if !self.answers.iter().any(is_known) => Err(error),
            _ => {
                let answers = self.answers.into_iter();
                let answer = |answer: Option<Result<A, Error>>| {
                    answer.map_or(none, |answer| answer.unwrap_or(refused))
                };
                Ok(answers.map(answer).collect())
            }
        }
    }

    /// All answers, or the first error.
    pub(super) fn all(self) -> Result<Vec<A>, Error> {
        self.each()?.into_iter().collect()
    }

    /// All answers; an item that was refused has this one.
    pub(super) fn refused_as(self, refused: A) -> Result<Vec<A>, Error>
    where
        A: Copy,
    {
        match self.failure {
            Some(error) => Err(error),
            None => {
                let answers = self.answers.into_iter();
                let answers = answers.map(|answer| answer.and_then(Result::ok));
                Ok(answers.map(|answer| answer.unwrap_or(refused)).collect())
            }
        }
    }

    /// An answer or an error for each item.
    pub(super) fn each(self) -> Result<Vec<Result<A, Error>>, Error> {
        let Some(failure) = self.failure else {
            // Without a failure, each item has an answer.
            return Ok(self.answers.into_iter().flatten().collect());
        };
        if self.answers.iter().all(Option::is_none) {
            return Err(failure);
        }
        let again = || repeated(&failure);
        let answers = self.answers.into_iter();
        Ok(answers
            .map(|answer| answer.unwrap_or_else(|| Err(again())))
            .collect())
    }
}

/// The same error again, without its source.
fn repeated(error: &Error) -> Error {
    match error {
        Error::Store {
            operation,
            kind,
            message,
            ..
        } => Error::store_kind(operation, *kind, message),
        other => Error::store("be called", other),
    }
}

impl Batches {
    pub(super) fn new(most: usize) -> Self {
        Self {
            limit: Mutex::new(Limit { most, found: None }),
            reduced: AtomicU64::new(0),
            logged: Mutex::default(),
        }
    }

    pub(super) fn reduced(&self) -> u64 {
        self.reduced.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.lock().at(Instant::now())
    }

    /// A smaller limit than the present one was accepted.
    pub(super) fn lower(&self, limit: usize) {
        self.limit.lock().lower(limit, Instant::now());
    }

    /// Sends all items, in as many requests as necessary.
    pub(super) fn send<T: Reduce + Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        items: &[T],
        ttl: Option<Duration>,
        call: impl Fn(&[u8]) -> Result<Answers<A>, Failure>,
    ) -> Result<Answered<A>, Error> {
        let mut answers: Vec<Option<Result<A, Error>>> = items.iter().map(|_| None).collect();
        let limit = self.limit();
        let mut sending = Sending {
            batches: self,
            operation,
            ttl,
            limit,
            is_lower: false,
            refusals: 0,
            call,
        };
        // The parts that are left, the next one at the end.
        let mut parts: Vec<Range<usize>> = std::iter::once(0..items.len()).collect();
        while let Some(rest) = parts.pop() {
            if rest.is_empty() {
                continue;
            }
            let (body, count) = sending.body(&items[rest.clone()])?;
            let part = rest.start..rest.start + count;
            parts.push(part.end..rest.end);
            match sending.part(&body, items, part, &mut parts) {
                Ok(Some((part, replies))) => {
                    for (place, reply) in answers[part].iter_mut().zip(replies) {
                        *place = Some(reply);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let failure = Some(error);
                    return Ok(Answered { answers, failure });
                }
            }
        }
        let failure = None;
        Ok(Answered { answers, failure })
    }

    /// Counts an item that was refused, and logs it once for each worker.
    fn note(&self, operation: &str, name: &str, error: &Error, sent: bool) {
        self.reduced.fetch_add(1, Ordering::Relaxed);
        let mut logged = self.logged.lock();
        if logged.len() >= MOST_LOGGED || !logged.insert(name.to_owned()) {
            return;
        }
        drop(logged);
        let outcome = if sent {
            "it is stored without its long texts"
        } else {
            "it is not stored; others are not affected"
        };
        log_line(
            Level::Warn,
            format_args!(
                "coordinator: the {operation} of {} is refused ({error}): {outcome}",
                Printable(name)
            ),
        );
    }
}

/// One call.
struct Sending<'a, C> {
    batches: &'a Batches,
    operation: &'static str,
    ttl: Option<Duration>,
    limit: usize,
    /// The limit is lower than at the beginning of the call.
    is_lower: bool,
    refusals: usize,
    call: C,
}

/// The answers to the items of a part.
type Replies<A> = Option<(Range<usize>, Vec<Result<A, Error>>)>;

impl<A: DeserializeOwned, C: Fn(&[u8]) -> Result<Answers<A>, Failure>> Sending<'_, C> {
    /// A body of as many of these items as fit, at least one. Returns how many.
    fn body<T: Serialize>(&self, items: &[T]) -> Result<(Vec<u8>, usize), Error> {
        let mut body = format!("{{\"version\":{}", wire::VERSION).into_bytes();
        if let Some(ttl) = self.ttl {
            body.extend_from_slice(b",\"ttl_s\":");
            body.extend(json(self.operation, &Seconds(ttl))?);
        }
        if matches!(self.operation, "register" | "renew") {
            body.extend_from_slice(b",\"each\":true");
        }
        body.extend_from_slice(b",\"items\":[");
        let mut count = 0;
        for item in items.iter().take(MOST_IN_BATCH) {
            let item = json(self.operation, item)?;
            // With a comma, and the end of the body.
            if count > 0 && body.len() + item.len() + 3 > self.limit {
                break;
            }
            if count > 0 {
                body.push(b',');
            }
            body.extend(item);
            count += 1;
        }
        body.extend_from_slice(b"]}");
        Ok((body, count))
    }

    fn ask(&self, body: &[u8], count: usize) -> Result<Vec<A>, Failure> {
        let answers = (self.call)(body)?.answers;
        check_count(self.operation, count, Ok(answers)).map_err(Failure::call)
    }

    /// Sends one part. Where a part is refused, smaller ones take its place.
    fn part<T: Reduce + Serialize>(
        &mut self,
        body: &[u8],
        items: &[T],
        part: Range<usize>,
        parts: &mut Vec<Range<usize>>,
    ) -> Result<Replies<A>, Error> {
        let failure = match self.ask(body, part.len()) {
            Ok(answers) => {
                if self.is_lower {
                    self.batches.lower(self.limit);
                    self.is_lower = false;
                }
                let answers = answers.into_iter().map(Ok).collect();
                return Ok(Some((part, answers)));
            }
            Err(failure) => failure,
        };
        let is_size = match failure.scope {
            Scope::Size => true,
            Scope::Connection => body.len() > NEVER_TOO_LARGE,
            Scope::Items | Scope::Call => false,
        };
        if part.len() > 1 && is_size {
            self.limit = body.len() / 2;
            self.is_lower = true;
            parts.push(part);
            return Ok(None);
        }
        match failure.scope {
            Scope::Call | Scope::Connection => Err(failure.error),
            Scope::Size | Scope::Items if part.len() == 1 => {
                let reply = self.alone(&items[part.start], failure.error)?;
                Ok(Some((part, vec![reply])))
            }
            _ if self.refusals >= MOST_REFUSALS => {
                let replies = part.clone().map(|_| Err(repeated_refusal(&failure.error)));
                Ok(Some((part, replies.collect())))
            }
            _ => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
                Ok(None)
            }
        }
    }

    /// An item that is refused by itself, once more without its long texts.
    fn alone<T: Reduce + Serialize>(
        &mut self,
        item: &T,
        refusal: Error,
    ) -> Result<Result<A, Error>, Error> {
        self.refusals += 1;
        let mut reply = Err(refusal);
        for length in REDUCED_LENGTHS {
            let Some(reduced) = item.reduced(length) else {
                break;
            };
            let (body, _) = self.body(std::slice::from_ref(&reduced))?;
            match self.ask(&body, 1) {
                Ok(answers) => {
                    let Some(answer) = answers.into_iter().next() else {
                        break;
                    };
                    if let Err(refusal) = reply {
                        let name = item.name();
                        self.batches.note(self.operation, name, &refusal, true);
                    }
                    return Ok(Ok(answer));
                }
                Err(failure) if matches!(failure.scope, Scope::Size | Scope::Items) => {
                    reply = Err(failure.error);
                }
                Err(failure) => return Err(failure.error),
            }
        }
        if let Err(refusal) = &reply {
            let name = item.name();
            self.batches.note(self.operation, name, refusal, false);
        }
        Ok(reply)
    }
}

/// The same refusal again, for another item.
fn repeated_refusal(error: &Error) -> Error {
    match error {
        Error::Invalid {
            field,
            value,
            allowed,
        } => Error::invalid(field, value, allowed),
        other => repeated(other),
    }
}

pub(super) fn json(operation: &'static str, what: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(what).map_err(|error| Error::store(operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_lowered_rises_again() {
        let mut limit = Limit {
            most: 100,
            found: None,
        };
        let begun = Instant::now();
        assert_eq!(limit.at(begun), 100);
        limit.lower(30, begun);
        assert_eq!(limit.at(begun + LIMIT_LIFETIME / 2), 30);
        assert_eq!(limit.at(begun + LIMIT_LIFETIME), 60);
        assert_eq!(limit.at(begun + LIMIT_LIFETIME), 60);
        assert_eq!(limit.at(begun + 2 * LIMIT_LIFETIME), 100);
        assert_eq!(limit.at(begun + 9 * LIMIT_LIFETIME), 100);
    }
}
