//! The deadlines of the open tasks.

use super::Tasks;
use crate::clock::Moment;
use crate::health::{Activity, Deadline, Term};

impl Tasks {
    /// Keeps when the pacemaker first saw the innermost task, because the cell will hold another time.
    pub(crate) fn keep_seen_at(&mut self, seen_at: Option<Moment>) {
        if let Some(task) = self.current_mut() {
            task.seen_at = task.seen_at.or(seen_at);
        }
    }

    /// Sets the deadline of the task of the guard with this number, in nanoseconds from its beginning.
    /// `seen_at`: when the pacemaker first saw the innermost task, if it did. Returns whether the task
    /// is open.
    pub(crate) fn set_deadline(
        &mut self,
        number: u64,
        allowance: u64,
        seen_at: Option<Moment>,
        now: Moment,
    ) -> bool {
        let Some(place) = self.place_of(number) else {
            return false;
        };
        // A task began before all that are within it.
        let inner = self.open_ones().get(place..).unwrap_or_default();
        let seen = inner.iter().find_map(|task| task.seen_at);
        let began = seen.or(seen_at).unwrap_or(now);
        if let Some(task) = self.frames.get_mut(place) {
            let since = task.deadline.as_ref().map_or(began, |term| term.since);
            task.deadline = Some(Box::new(Term { since, allowance }));
        }
        true
    }

    /// The deadline that ends first. `default`: in nanoseconds, for tasks that have none of their own.
    /// `seen_at`: when the pacemaker first saw the innermost task, if it did.
    pub(crate) fn deadline(&self, default: u64, seen_at: Option<Moment>) -> Option<Deadline> {
        let mut first: Option<Deadline> = None;
        let mut seen = seen_at;
        for (place, task) in self.open_ones().iter().enumerate().rev() {
            // A task began before all that are within it.
            seen = task.seen_at.or(seen);
            let term = task.deadline(default, seen);
            let term = term.filter(|_| task.activity != Activity::Idle);
            first = match (first, term) {
                (Some(first), Some(term)) if first.term.ends_at() < term.ends_at() => Some(first),
                (_, Some(term)) => Some(Deadline { term, task: place }),
                (first, None) => first,
            };
        }
        first
    }
}
