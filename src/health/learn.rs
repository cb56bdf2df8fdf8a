//! A limit that is learned from the silences of healthy work: an order statistic of the longest ones,
//! with a margin that grows with their spread.
//!
//! The longest silence that is usual is estimated by the third longest (Hill, 1975, and Pickands, 1975,
//! estimate tails from such upper order statistics; discarding the two above it is trimming, Tukey,
//! 1962). Means and deviations, as of TCP (Jacobson, 1988; RFC 6298), of failure detectors (Chen, Toueg
//! and Aguilera, 2002) and of the phi accrual detector (Hayashibara and others, 2004), describe the bulk
//! of the silences; a false conviction comes from their tail.
//! `docs/COMPARE.md` has the measurement by which this method was chosen.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use crate::clock::{Moment, nanos};
use crate::sync::printable::Age;

/// The bounds of a limit that is [learned](crate::Builder::learn_stall_after); by default, from 1 s to
/// 5 min.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Learn, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer")
///     .learn_stall_after(Learn::new().floor(Duration::from_secs(2)).ceiling(Duration::from_secs(60)))
///     .start()?;
/// let learned = hb.snapshot().learned.expect("it learns");
/// assert_eq!(learned.allowed, Duration::from_secs(60));
/// assert_eq!(learned.to_string(), "learning: 0 silences, 1 min allowed");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Learn {
    pub(crate) floor: Duration,
    pub(crate) ceiling: Duration,
}

impl Learn {
    /// From 1 s to 5 min.
    pub const fn new() -> Self {
        Self {
            floor: Duration::from_secs(1),
            ceiling: Duration::from_secs(300),
        }
    }

    /// The shortest limit that may be learned; 10 ms to 365 days. The resolution of the registry is at
    /// most a tenth of it.
    pub const fn floor(mut self, floor: Duration) -> Self {
        self.floor = floor;
        self
    }

    /// The longest limit that may be learned, and the limit while it is learned; from the floor to 365
    /// days.
    pub const fn ceiling(mut self, ceiling: Duration) -> Self {
        self.ceiling = ceiling;
        self
    }
}

impl Default for Learn {
    fn default() -> Self {
        Self::new()
    }
}

/// What was learned from the silences of one activity; in a [`Snapshot`](crate::Snapshot), or of a
/// [`Learner`].
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Learn, Learner, Moment};
///
/// let mut learner = Learner::new(Learn::new());
/// let second = Duration::from_secs(1);
/// let mut now = Moment::ZERO;
/// for _ in 0..3_600 {
///     learner.observe(now, now.after(second));
///     now = now.after(second);
/// }
/// assert_eq!(learner.learned().to_string(), "usually 1 s, allowed 2 s, from 3600 silences");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Learned {
    /// The median of the silences; zero if there were none.
    pub usual: Duration,
    /// The longest silence that is usual; zero if too few were seen to tell.
    pub longest: Duration,
    /// The limit in force: the ceiling as long as it is being learned.
    pub allowed: Duration,
    /// The number of silences that were seen.
    pub silences: u64,
    /// The limit is still being learned.
    pub is_learning: bool,
}

impl fmt::Display for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (allowed, silences) = (Age(self.allowed), self.silences);
        if self.is_learning {
            write!(f, "learning: {silences} silences, {allowed} allowed")
        } else {
            let usual = Age(self.usual);
            write!(
                f,
                "usually {usual}, allowed {allowed}, from {silences} silences"
            )
        }
    }
}

/// Of the longest silences, this one counts: those above it may be outliers.
const RANK: usize = 3;
/// Silences without which no limit is learned.
const FEWEST: u64 = 64;
/// Ceilings that must pass before a limit is learned.
const PATIENCE: u32 = 10;
/// Parts of the memory. The oldest is forgotten as a new one begins.
const GENERATIONS: usize = 4;
/// The least length of a generation, in ceilings.
const GENERATION: u32 = 100;
/// Silences beyond the limit are usual if they take one part in so many of the work.
const SHARE: u64 = 100;
/// The limit is so many times the longest usual silence, depending on the spread.
const MARGIN: (u64, u64) = (2, 3);

/// Learns a limit from silences: the rule by itself, to replay the silences of one's own work.
///
/// A registry has one for each activity of each type of worker that
/// [learns](crate::Builder::learn_stall_after). Pure: no clock, no allocation, about 400 bytes.
///
/// * The *longest usual silence* is the third longest that is remembered. Silences of several workers
///   that overlap count as one, since they may have one cause.
/// * The limit is two to three times as long: as many times as the longest usual silence is longer
///   than the median.
/// * Before 64 silences and ten times the ceiling, the limit is the ceiling.
/// * A silence beyond the limit changes nothing, until three of them, at different times, took a
///   hundredth of all work since the first. Then the pace has changed, and they count.
/// * The memory has four parts, each of 100 times the ceiling at least. The oldest is forgotten.
#[derive(Clone, Debug)]
pub struct Learner {
    learn: Learn,
    begun: Option<Moment>,
    silences: u64,
    /// All silences together, in nanoseconds: the time at work.
    work: u64,
    median: u64,
    /// The present one is first.
    generations: [Generation; GENERATIONS],
    /// The latest is last.
    overruns: [Overrun; RANK],
    /// In nanoseconds; `None` while it is learned.
    allowed: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Generation {
    since: Moment,
    silences: u64,
    /// The longest is first.
    longest: [Incident; RANK],
}

/// Silences that overlap.
#[derive(Clone, Copy, Debug, Default)]
struct Incident {
    /// The longest of them, in nanoseconds; 0: there is none.
    length: u64,
    end: Moment,
}

impl Incident {
    /// Whether a silence that began at this moment overlaps.
    fn overlaps(&self, from: Moment) -> bool {
        self.length > 0 && self.end > from
    }

    fn merge(&mut self, other: Self) {
        self.length = self.length.max(other.length);
        self.end = self.end.max(other.end);
    }
}

/// Silences beyond the limit.
#[derive(Clone, Copy, Debug, Default)]
struct Overrun {
    incident: Incident,
    /// All of them together.
    total: u64,
    /// The work before.
    before: u64,
}

impl Learner {
    /// Learns within these bounds. A floor above the ceiling counts as the ceiling.
    #[must_use]
    pub fn new(learn: Learn) -> Self {
        Self {
            learn,
            begun: None,
            silences: 0,
            work: 0,
            median: 0,
            generations: [Generation::default(); GENERATIONS],
            overruns: [Overrun::default(); RANK],
            allowed: None,
        }
    }

    /// Learns from a silence that ended with progress. Silences are reported in the order of their
    /// ends.
    pub fn observe(&mut self, from: Moment, to: Moment) {
        let length = nanos(to.since(from));
        let before = self.work;
        let begun = *self.begun.get_or_insert(from);
        self.silences = self.silences.saturating_add(1);
        self.work = self.work.saturating_add(length);
        let rotated = self.rotate(to);
        let incident = Incident {
            length: length.min(nanos(self.learn.ceiling)),
            end: to,
        };
        if length > self.allowed_nanos() {
            self.overrun(incident, from, length, before);
        } else {
            self.median = moved_median(self.median, length);
            self.remember(incident, from);
        }
        if self.silences >= FEWEST && to.since(begun) >= self.ceilings(PATIENCE) {
            self.decide(rotated);
        }
    }

    /// What was learned so far.
    #[must_use]
    pub fn learned(&self) -> Learned {
        Learned {
            usual: Duration::from_nanos(self.median),
            longest: Duration::from_nanos(self.longest().unwrap_or(0)),
            allowed: Duration::from_nanos(self.allowed_nanos()),
            silences: self.silences,
            is_learning: self.allowed.is_none(),
        }
    }

    pub(crate) fn allowed_nanos(&self) -> u64 {
        self.allowed.unwrap_or(nanos(self.learn.ceiling))
    }

    fn ceilings(&self, number: u32) -> Duration {
        self.learn.ceiling.saturating_mul(number)
    }

    /// Begins a new generation, if it is time.
    fn rotate(&mut self, now: Moment) -> bool {
        let least = self.ceilings(GENERATION);
        let [present, ..] = &mut self.generations;
        if present.silences == 0 {
            present.since = now;
        }
        // A time with little work must not push out what was learned at work.
        if present.silences < FEWEST || now.since(present.since) < least {
            return false;
        }
        self.generations.rotate_right(1);
        self.generations[0] = Generation {
            since: now,
            ..Generation::default()
        };
        true
    }

    fn remember(&mut self, incident: Incident, from: Moment) {
        let present = &mut self.generations[0];
        present.silences = present.silences.saturating_add(1);
        let longest = &mut present.longest;
        let Some(shortest) = longest.last_mut() else {
            return;
        };
        if incident.length <= shortest.length {
            return;
        }
        match longest.iter().position(|other| other.overlaps(from)) {
            Some(same) => longest[same].merge(incident),
            None => longest[RANK - 1] = incident,
        }
        longest.sort_unstable_by_key(|incident| Reverse(incident.length));
    }

    /// Notes a silence beyond the limit: an outlier, unless there are many.
    fn overrun(&mut self, incident: Incident, from: Moment, length: u64, before: u64) {
        let [first, .., last] = &mut self.overruns;
        if last.incident.overlaps(from) {
            last.incident.merge(incident);
            last.total = last.total.saturating_add(length);
        } else {
            *first = Overrun {
                incident,
                total: length,
                before,
            };
            self.overruns.rotate_left(1);
        }
        let [first, ..] = &self.overruns;
        let together = self.overruns.iter().map(|overrun| overrun.total);
        let together = together.fold(0, u64::saturating_add);
        let since = self.work.saturating_sub(first.before);
        if first.total > 0 && together >= since / SHARE {
            for overrun in std::mem::take(&mut self.overruns) {
                self.remember(overrun.incident, overrun.incident.end);
            }
        }
    }

    /// The longest silence that is usual, if enough were seen.
    fn longest(&self) -> Option<u64> {
        let mut longest = [0; RANK];
        for incident in self.generations.iter().flat_map(|part| &part.longest) {
            if incident.length > longest[RANK - 1] {
                longest[RANK - 1] = incident.length;
                longest.sort_unstable_by_key(|length| Reverse(*length));
            }
        }
        Some(longest[RANK - 1]).filter(|length| *length > 0)
    }

    /// Sets the limit. It gets shorter only as memory is lost, or by much, so that it is steady.
    fn decide(&mut self, rotated: bool) {
        let Some(longest) = self.longest() else {
            return;
        };
        let (least, most) = MARGIN;
        let (longest, median) = (u128::from(longest), u128::from(self.median.max(1)));
        let limit = (longest * longest / median)
            .clamp(longest * u128::from(least), longest * u128::from(most));
        let ceiling = nanos(self.learn.ceiling);
        let floor = nanos(self.learn.floor).min(ceiling);
        let limit = u64::try_from(limit)
            .unwrap_or(u64::MAX)
            .clamp(floor, ceiling);
        let steady = self
            .allowed
            .is_some_and(|allowed| (allowed / 4 * 3..=allowed).contains(&limit));
        if rotated || !steady {
            self.allowed = Some(limit);
        }
    }
}

/// The estimate of a median after one more value: it moves by a 64th towards the value (Ma,
/// Muthukrishnan and Sandler, 2013).
const fn moved_median(median: u64, value: u64) -> u64 {
    let step = if median < 64 { 1 } else { median / 64 };
    if median == 0 {
        value
    } else if value > median {
        median.saturating_add(step)
    } else if value < median {
        median - step
    } else {
        median
    }
}
