//! Models of the lock-free parts, in every interleaving that [loom](https://docs.rs/loom) can find.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --lib --release models
//! ```
//!
//! The models run [`Cell`] and `Timeline`, and around them the order of operations of the functions that
//! use them; each model names these functions. Their locks are `parking_lot`'s, which loom does not know,
//! so loom's locks replace them.
//!
//! Limits of loom: sequentially consistent accesses count as acquire and release only, so what needs that
//! order has fences (which loom does know); no load sees a later store; and a plain store may miss a
//! concurrent read-modify-write of the same word, which no real one does. Time is a [`Ghost`]: a word
//! beside the model that orders nothing.

pub(crate) mod atomic;
mod beats;
mod lives;
mod occupants;
mod timeline;

use std::sync::atomic::Ordering;

use loom::sync::{Arc, RwLock};

use crate::cell::{Cell, Episode, Lifecycle, Phase, Schedule, Sign, Work};
use crate::clock::Moment;
use crate::health::Activity;

const BEGUN: Moment = Moment::from_nanos(10);
const STARTING: Schedule = Schedule {
    episode: Episode::Starting,
    due: Moment::from_nanos(1_000_000),
};
const WELL: Schedule = Schedule {
    episode: Episode::Well,
    due: Moment::NEVER,
};

/// Explores runs with at most so many preemptions: a few find almost every bug, in seconds instead of
/// hours.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.check(move || {
        atomic::pause();
        run();
    });
}

fn live(tag: u32) -> Lifecycle {
    Lifecycle {
        phase: Phase::Live,
        stop_requested: false,
        tag,
        profile: tag,
    }
}

/// A cell with a new occupant.
fn occupied(tag: u32) -> Arc<Cell> {
    let cell = Cell::new();
    cell.settle(live(tag), BEGUN, STARTING);
    Arc::new(cell)
}

/// `pacemaker::tick`, in no time.
fn observe(cell: &Cell, now: Moment) -> Sign {
    cell.observe(now, || now)
}

/// `pacemaker::tick`, while time passes: the clock is read before the first cell, and again.
fn observe_by(cell: &Cell, clock: &Ghost) -> Sign {
    cell.observe(clock.get(), || clock.get())
}

fn at(nanos: u64) -> Moment {
    Moment::from_nanos(nanos)
}

fn idle(work: Work) -> Work {
    Work {
        activity: Activity::Idle,
        ..work
    }
}

fn next_task(work: Work) -> Work {
    Work {
        activity: Activity::Processing,
        task: work.next_task(),
        ..work
    }
}

/// Real time. Every thread sees it, and it orders nothing else.
#[derive(Default)]
struct Ghost(std::sync::atomic::AtomicU64);

impl Ghost {
    fn set(&self, moment: Moment) {
        atomic::pause();
        self.0.store(moment.as_nanos(), Ordering::SeqCst);
    }

    fn get(&self) -> Moment {
        atomic::pause();
        at(self.0.load(Ordering::SeqCst))
    }

    /// Time passes.
    fn pass(&self, nanos: u64) -> Moment {
        atomic::pause();
        at(self.0.fetch_add(nanos, Ordering::SeqCst) + nanos)
    }
}

/// When things happened, for the checks of a model.
struct Timestamps<const N: usize>(std::sync::Mutex<[Moment; N]>);

impl<const N: usize> Default for Timestamps<N> {
    fn default() -> Self {
        Self(std::sync::Mutex::new([Moment::ZERO; N]))
    }
}

impl<const N: usize> Timestamps<N> {
    fn put(&self, number: usize, moment: Moment) {
        self.0.lock().unwrap()[number] = moment;
    }

    fn get(&self, number: usize) -> Moment {
        self.0.lock().unwrap()[number]
    }
}

/// `Chunk` with one cell: the lock on its occupants, and the tag in the occupant's record.
struct ModelChunk {
    cell: Arc<Cell>,
    occupants: RwLock<()>,
}

impl ModelChunk {
    fn new(cell: Arc<Cell>) -> Arc<Self> {
        Arc::new(Self {
            cell,
            occupants: RwLock::new(()),
        })
    }

    /// `Chunk::vacate`.
    fn vacate(&self) {
        let _occupants = self.occupants.write().unwrap();
        self.cell.set_schedule(Schedule::OFF);
        self.cell.set_state(Lifecycle {
            tag: self.cell.state().next_tag(),
            ..Lifecycle::EMPTY
        });
    }

    /// `Registry::admit` and `Chunk::enter`: a new occupant.
    fn enter(&self, now: Moment) {
        let tag = self.cell.state().next_tag();
        let _occupants = self.occupants.write().unwrap();
        self.cell.settle(live(tag), now, STARTING);
    }

    /// `Chunk::unschedule`.
    fn unschedule(&self) {
        let _occupants = self.occupants.read().unwrap();
        if self.cell.state().phase != Phase::Live {
            self.cell.set_schedule(Schedule::OFF);
        }
    }

    /// `Chunk::set_schedule`.
    fn set_schedule(&self, tag: u32, schedule: Schedule) {
        let _occupants = self.occupants.read().unwrap();
        if self.cell.state().tag == tag {
            self.cell.set_schedule(schedule);
        }
    }
}
