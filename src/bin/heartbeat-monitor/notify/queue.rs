//! What waits to be sent to one target. Its size is bounded, however much happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::news::{Event, Found, Kind};

/// The most events of a notification; further ones are only counted.
const MOST_EVENTS: usize = 50;

/// The content of one notification.
#[derive(Default)]
pub struct Batch {
    /// At most one for each worker and group: the last.
    pub events: Vec<Event>,
    /// How many there were of each kind, with those that are not among the events.
    pub counts: BTreeMap<Kind, usize>,
}

impl Batch {
    fn add(&mut self, event: &Event) {
        let same =
            |other: &&mut Event| other.subject == event.subject && other.is_group == event.is_group;
        if let Some(earlier) = self.events.iter_mut().find(same) {
            if let Some(count) = self.counts.get_mut(&earlier.kind) {
                *count = count.saturating_sub(1);
            }
            *earlier = event.clone();
        } else if self.events.len() < MOST_EVENTS {
            self.events.push(event.clone());
        }
        *self.counts.entry(event.kind).or_default() += 1;
    }

    pub fn len(&self) -> usize {
        self.counts.values().sum()
    }
}

#[derive(Default)]
struct Waiting {
    batch: Batch,
    /// Events that were taken, and are not delivered yet.
    taken: usize,
    closed_at: Option<Instant>,
}

/// See the module.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    pub fn add(&self, found: &Found) {
        let mut waiting = self.waiting.lock();
        found
            .events
            .iter()
            .for_each(|event| waiting.batch.add(event));
        if found.unnamed > 0 {
            *waiting.batch.counts.entry(Kind::Died).or_default() += found.unnamed;
        }
        self.changed.notify_all();
    }

    /// Waits for something to send; `None` if it is closed.
    pub fn next(&self) -> Option<Batch> {
        let mut waiting = self.waiting.lock();
        while waiting.batch.len() == 0 && waiting.closed_at.is_none() {
            self.changed.wait(&mut waiting);
        }
        if waiting.closed_at.is_some() {
            return None;
        }
        let batch = std::mem::take(&mut waiting.batch);
        waiting.taken = batch.len();
        Some(batch)
    }

    /// What was taken last is delivered.
    pub fn delivered(&self) {
        self.waiting.lock().taken = 0;
    }

    /// How many events are not delivered.
    pub fn len(&self) -> usize {
        let waiting = self.waiting.lock();
        waiting.batch.len() + waiting.taken
    }

    pub fn close(&self) {
        self.waiting.lock().closed_at = Some(Instant::now());
        self.changed.notify_all();
    }

    /// How long ago it was closed.
    pub fn closed_for(&self) -> Option<Duration> {
        let closed_at = self.waiting.lock().closed_at;
        closed_at.map(|at| at.elapsed())
    }

    /// Waits this long, or until it is closed; returns whether it is.
    pub fn is_closed_within(&self, time: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        let is_open = |waiting: &mut Waiting| waiting.closed_at.is_none();
        self.changed.wait_while_for(&mut waiting, is_open, time);
        waiting.closed_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(events: &[(&str, Kind)]) -> Found {
        let event =
            |(subject, kind): &(&str, Kind)| Event::of(*kind, subject, *kind == Kind::GroupOffline);
        Found {
            events: events.iter().map(event).collect(),
            unnamed: 0,
        }
    }

    #[test]
    fn a_storm_is_one_bounded_notification_that_counts_all() {
        let queue = Queue::default();
        for n in 0..2_800 {
            queue.add(&found(&[(&format!("worker-{n}"), Kind::Died)]));
        }
        queue.add(&Found {
            events: Vec::new(),
            unnamed: 200,
        });
        let batch = queue.next().unwrap();
        assert_eq!((batch.events.len(), batch.len()), (MOST_EVENTS, 3_000));
        assert_eq!(batch.counts[&Kind::Died], 3_000);
        assert_eq!(queue.len(), 3_000, "taken, and not delivered");
        queue.delivered();
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_worker_that_flaps_is_told_of_once_by_what_it_is_now() {
        let queue = Queue::default();
        for _ in 0..10 {
            queue.add(&found(&[("a", Kind::Died), ("a", Kind::Recovered)]));
        }
        // A group of the same name is another one.
        queue.add(&found(&[("a", Kind::GroupOffline)]));
        let batch = queue.next().unwrap();
        let kinds: Vec<_> = batch.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [Kind::Recovered, Kind::GroupOffline]);
        assert_eq!(batch.len(), 2);
        queue.close();
        assert!(queue.next().is_none() && queue.is_closed_within(Duration::MAX));
    }
}
