//! Models of the lock-free parts, in every interleaving that [loom](https://docs.rs/loom) can find.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --lib --release models
//! ```
//!
//! What is modelled is [`Cell`] and [`Timeline`], and around them the order of operations of the
//! functions that use them; each model names those. Their locks are `parking_lot`'s, which loom does
//! not know, so loom's own take their place.
//!
//! Limits of loom: accesses that are sequentially consistent count as acquire and release only, so
//! what has to hold by that order is held by the fences (which loom does know); no load sees a store
//! that comes later; and a plain store may miss a read-modify-write of the same word that comes at the
//! same time, which no real one does. Time is a [`Ghost`]: a word beside the model that orders nothing.

use std::time::Duration;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex, RwLock};
use loom::thread;

use crate::cell::{Cell, CellSnapshot, Episode, Lifecycle, Phase, Schedule, Sign, Work};
use crate::clock::Moment;
use crate::health::Activity;
use crate::registry::core::timeline::Timeline;

/// Loom's atomics, each access of which may come before or after any access of other threads.
///
/// By itself loom leaves out orders that make no difference. It tells them by the last access to an
/// atomic only, which is too little for the load and the store of a beat: its own load hides the
/// load by the pacemaker before, and the store is then never tried ahead of that. So each access
/// touches one thing that all have in common, and that passes on nothing.
pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::Ordering;

    loom::lazy_static! {
        /// Nobody ever waits for it.
        static ref BATON: loom::sync::Condvar = loom::sync::Condvar::new();
    }

    pub(super) fn pause() {
        BATON.notify_one();
    }

    pub(crate) fn fence(order: Ordering) {
        pause();
        loom::sync::atomic::fence(order);
    }

    #[derive(Debug)]
    pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        #[track_caller]
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        #[track_caller]
        pub(crate) fn load(&self, order: Ordering) -> u64 {
            pause();
            self.0.load(order)
        }

        #[track_caller]
        pub(crate) fn store(&self, value: u64, order: Ordering) {
            pause();
            self.0.store(value, order);
        }

        #[track_caller]
        pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
            pause();
            self.0.fetch_max(value, order)
        }

        #[track_caller]
        pub(crate) fn compare_exchange_weak(
            &self,
            known: u64,
            value: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            pause();
            self.0.compare_exchange_weak(known, value, success, failure)
        }
    }
}

const BEGUN: Moment = Moment::from_nanos(10);
const STARTING: Schedule = Schedule {
    episode: Episode::Starting,
    due: Moment::from_nanos(1_000_000),
};
const WELL: Schedule = Schedule {
    episode: Episode::Well,
    due: Moment::NEVER,
};

/// At most so many preemptions in a run: few find almost every bug, in seconds instead of hours.
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

/// A cell whose occupant has just moved in.
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

/// Real time. It is there for all to see, and puts nothing else into an order.
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

    /// Some of it passes.
    fn pass(&self, nanos: u64) -> Moment {
        atomic::pause();
        at(self.0.fetch_add(nanos, Ordering::SeqCst) + nanos)
    }
}

/// What happened when, for the model alone.
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

    /// `Chunk::set_schedule`.
    /// As `Chunk::unschedule`.
    fn unschedule(&self) {
        let _occupants = self.occupants.read().unwrap();
        if self.cell.state().phase != Phase::Live {
            self.cell.set_schedule(Schedule::OFF);
        }
    }

    fn set_schedule(&self, tag: u32, schedule: Schedule) {
        let _occupants = self.occupants.read().unwrap();
        if self.cell.state().tag == tag {
            self.cell.set_schedule(schedule);
        }
    }
}

// --- beats and observations ---------------------------------------------------------------------

/// A beat is never lost and never dated before it was made: who finds the counter as the pacemaker
/// last saw it finds a time that is no earlier than the last beat counted.
///
/// Mirrors `WorkerHeartbeat::beat`, `pacemaker::tick` and `WorkerRef::reading`.
#[test]
fn a_beat_is_stamped_and_never_with_an_older_time() {
    model(2, || {
        let cell = occupied(1);
        let (clock, beaten_at) = <(Arc<Ghost>, Arc<Timestamps<3>>)>::default();
        clock.set(BEGUN);
        let worker = {
            let (cell, clock) = (Arc::clone(&cell), Arc::clone(&clock));
            let beaten_at = Arc::clone(&beaten_at);
            thread::spawn(move || {
                for beat in 1..=2 {
                    beaten_at.put(beat, clock.pass(10));
                    cell.beat();
                }
            })
        };
        let pacemaker = {
            let (cell, clock) = (Arc::clone(&cell), Arc::clone(&clock));
            thread::spawn(move || {
                for _ in 0..2 {
                    observe_by(&cell, &clock);
                }
            })
        };
        let check = |snapshot: CellSnapshot| {
            assert!(snapshot.beats <= 2);
            assert_eq!(snapshot.beaten, snapshot.beats > 0);
            if snapshot.beaten && !snapshot.moved {
                assert!(snapshot.progress_at >= beaten_at.get(snapshot.beats as usize));
            }
        };
        check(cell.snapshot().unwrap());
        worker.join().unwrap();
        pacemaker.join().unwrap();
        check(cell.snapshot().unwrap());
        observe_by(&cell, &clock);
        let snapshot = cell.snapshot().unwrap();
        assert!(
            snapshot.beats == 2 && !snapshot.moved,
            "it is stamped for good"
        );
        check(snapshot);
    });
}

/// Two threads that beat into one cell move its counter at least once, and what they leave is
/// stamped.
///
/// Not more: if the pacemaker looks between the two halves of one beat, after the other's, the two
/// count as one that was made at the earlier time (see [`Cell::beat`]).
#[test]
fn two_that_beat_at_once_move_the_counter() {
    model(3, || {
        let cell = occupied(1);
        let other = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.beat())
        };
        cell.beat();
        other.join().unwrap();
        assert_eq!(observe(&cell, at(20)), Sign::Judge);
        let snapshot = cell.snapshot().unwrap();
        assert!(snapshot.beaten && !snapshot.moved && snapshot.beats <= 2);
        assert_eq!(snapshot.progress_at, at(20));
    });
}

/// Nobody sees a worker at its new task together with the time of a progress that it made before it
/// went idle.
///
/// Mirrors `WorkerRef::update_task`, `pacemaker::tick` and `WorkerRef::reading`.
#[test]
fn a_long_idle_time_is_not_taken_for_a_silence_at_work() {
    model(2, || {
        let cell = occupied(1);
        cell.beat_with(idle);
        observe(&cell, at(20));
        let worker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.beat_with(next_task))
        };
        let pacemaker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || observe(&cell, at(1_000)))
        };
        let snapshot = cell.snapshot().unwrap();
        if snapshot.work.activity == Activity::Processing {
            assert!(snapshot.moved || snapshot.progress_at == at(1_000));
        }
        worker.join().unwrap();
        pacemaker.join().unwrap();
    });
}

/// Threads that say at the same time what the work is take back nothing of each other.
///
/// Mirrors `WorkerRef::mark_idle` of a worker without a detail, `WorkerRef::begin_silence` and
/// `WorkerRef::bind_thread`.
#[test]
fn what_several_threads_say_of_the_work_is_all_kept() {
    model(2, || {
        let cell = occupied(1);
        let others = [
            {
                let cell = Arc::clone(&cell);
                thread::spawn(move || cell.beat_with(idle))
            },
            {
                let cell = Arc::clone(&cell);
                thread::spawn(move || {
                    cell.change_work(|work| Work {
                        thread: 7,
                        parked: true,
                        ..work
                    });
                })
            },
        ];
        cell.beat_with(|work| Work {
            quiet: true,
            ..work
        });
        for other in others {
            other.join().unwrap();
        }
        let work = cell.work();
        assert_eq!(work.activity, Activity::Idle);
        assert!(work.quiet && work.parked);
        assert_eq!(work.thread, 7);
    });
}

/// A task is dated in the end, and never before it began.
///
/// Mirrors `WorkerRef::update_task`, `pacemaker::tick` and `Snapshot::of`.
#[test]
fn a_task_is_dated_and_never_before_it_began() {
    model(2, || {
        let cell = occupied(1);
        let (clock, begun_at) = <(Arc<Ghost>, Arc<Timestamps<3>>)>::default();
        let first = cell.work().task;
        let worker = {
            let (cell, clock) = (Arc::clone(&cell), Arc::clone(&clock));
            let begun_at = Arc::clone(&begun_at);
            thread::spawn(move || {
                for task in 1..=2 {
                    // Not whole milliseconds, which the cell counts in.
                    begun_at.put(task, clock.pass(7_500_001));
                    cell.beat_with(next_task);
                }
            })
        };
        let pacemaker = {
            let (cell, clock) = (Arc::clone(&cell), Arc::clone(&clock));
            thread::spawn(move || observe_by(&cell, &clock))
        };
        let check = |snapshot: CellSnapshot| {
            let task = (snapshot.work.task - first) as usize;
            if let (1.., Some(task_at)) = (task, snapshot.task_at) {
                assert!(task_at >= begun_at.get(task));
            }
        };
        check(cell.snapshot().unwrap());
        worker.join().unwrap();
        pacemaker.join().unwrap();
        check(cell.snapshot().unwrap());
        observe_by(&cell, &clock);
        let snapshot = cell.snapshot().unwrap();
        assert!(snapshot.task_at.is_some() && !snapshot.moved);
        check(snapshot);
    });
}

// --- the end of a life --------------------------------------------------------------------------

/// Of a worker that goes idle and somebody who asks it to stop, at least one sees the other.
///
/// Mirrors `WorkerRef::mark_idle` of a worker without a detail, and `WorkerRef::request_stop`.
#[test]
fn who_goes_idle_or_who_asks_it_to_stop_sees_the_other() {
    model(3, || {
        let cell = occupied(1);
        let worker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                cell.beat_with(idle);
                cell.state_after_work().stop_requested
            })
        };
        cell.set_state(Lifecycle {
            stop_requested: true,
            ..cell.state()
        });
        let found_idle = cell.work().activity == Activity::Idle;
        let found_asked = worker.join().unwrap();
        assert!(found_idle || found_asked);
    });
}

/// What has ended stays ended, however late its worker beats, and a request to stop is not lost.
///
/// Mirrors `WorkerRef::end`, `WorkerRef::request_stop` (both under the detail's lock, which here holds whether
/// the worker has ended), and `WorkerHeartbeat::beat` and `WorkerRef::mark_idle`, which know of no end.
#[test]
fn a_late_beat_does_not_bring_back_the_dead() {
    model(2, || {
        let cell = occupied(1);
        let ended = Arc::new(Mutex::new(false));
        let worker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                cell.beat();
                cell.beat_with(idle);
            })
        };
        let stopper = {
            let (cell, ended) = (Arc::clone(&cell), Arc::clone(&ended));
            thread::spawn(move || {
                let ended = ended.lock().unwrap();
                if !*ended {
                    cell.set_state(Lifecycle {
                        stop_requested: true,
                        ..cell.state()
                    });
                }
                !*ended
            })
        };
        {
            let mut ended = ended.lock().unwrap();
            *ended = true;
            let life = cell.state();
            cell.set_state(Lifecycle {
                phase: Phase::Dead,
                ..life
            });
        }
        let dead = |snapshot: CellSnapshot| snapshot.state.phase == Phase::Dead;
        assert!(dead(cell.snapshot().unwrap()));
        let asked = stopper.join().unwrap();
        worker.join().unwrap();
        observe(&cell, at(20));
        let snapshot = cell.snapshot().unwrap();
        assert!(dead(snapshot));
        assert_eq!(snapshot.state.stop_requested, asked);
        assert_eq!(snapshot.beats, 2, "they are counted");
    });
}

// --- one occupant after another -----------------------------------------------------------------

/// A pacemaker that is still busy with the old occupant never makes the new one one that has beaten,
/// and the new one's first beat is stamped all the same.
///
/// Mirrors `pacemaker::tick`, `Registry::retire` and `Registry::admit`.
#[test]
fn an_observation_of_the_old_occupant_is_no_beat_of_the_new_one() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        place.cell.beat();
        let observed = Arc::new(Ghost::default());
        let pacemaker = {
            let (cell, observed) = (Arc::clone(&place.cell), Arc::clone(&observed));
            thread::spawn(move || {
                observe(&cell, at(20));
                observed.set(at(20));
            })
        };
        place.vacate();
        place.enter(at(20));
        let snapshot = place.cell.snapshot().unwrap();
        assert!(!snapshot.beaten && !snapshot.moved && snapshot.beats == 0);
        let observed_before = observed.get() == at(20);
        place.cell.beat();
        let snapshot = place.cell.snapshot().unwrap();
        assert!(snapshot.beaten && snapshot.beats == 1);
        assert!(snapshot.moved || !observed_before);
        pacemaker.join().unwrap();
        observe(&place.cell, at(30));
        let snapshot = place.cell.snapshot().unwrap();
        assert!(!snapshot.moved);
        assert!(snapshot.progress_at == at(30) || !observed_before);
    });
}

/// A pacemaker that is still busy with the old occupant never sets back the time since which the new
/// one is there.
///
/// Mirrors `pacemaker::tick`, `Registry::retire` and `Registry::admit`.
#[test]
fn an_observation_of_the_old_occupant_does_not_age_the_new_one() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        place.cell.beat();
        let pacemaker = {
            let cell = Arc::clone(&place.cell);
            thread::spawn(move || observe(&cell, at(20)))
        };
        place.vacate();
        place.enter(at(25));
        pacemaker.join().unwrap();
        let snapshot = place.cell.snapshot().unwrap();
        assert!(!snapshot.beaten && snapshot.progress_at >= at(25));
    });
}

/// What a snapshot tells belongs to one occupant, whoever moves out and in meanwhile; or it tells
/// nothing.
///
/// Mirrors `WorkerRef::living_snapshot`, and `Registry::retire` and `Registry::admit` on two threads.
#[test]
fn a_glance_never_mixes_two_occupants() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        place.cell.beat();
        let reader = {
            let cell = Arc::clone(&place.cell);
            thread::spawn(move || match cell.snapshot() {
                Some(snapshot) if snapshot.state.phase == Phase::Live => {
                    if snapshot.state.tag == 1 {
                        assert_eq!((snapshot.beats, snapshot.progress_at), (1, BEGUN));
                    } else {
                        assert_eq!((snapshot.beats, snapshot.progress_at), (0, at(20)));
                    }
                }
                _ => {}
            })
        };
        place.vacate();
        let successor = thread::spawn(move || place.enter(at(20)));
        successor.join().unwrap();
        reader.join().unwrap();
    });
}

/// A reading taken during a restart is of the life that ended or of the one that begins, whole.
///
/// Mirrors `WorkerRef::reading` (one turn of its loop), `WorkerRef::end` and `WorkerRef::begin_next_life`, on two
/// threads; the detail holds whether the worker has ended.
#[test]
fn a_reading_during_a_restart_is_of_one_life() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        place.cell.beat();
        let detail = Arc::new(Mutex::new(false));
        let tag = Arc::new(AtomicU32::new(1));
        let reader = {
            let (cell, tag, detail) = (
                Arc::clone(&place.cell),
                Arc::clone(&tag),
                Arc::clone(&detail),
            );
            thread::spawn(move || {
                let living = cell.snapshot().filter(|snapshot| {
                    snapshot.state.phase == Phase::Live
                        && snapshot.state.tag == tag.load(Ordering::Acquire)
                });
                match living {
                    Some(snapshot) if snapshot.state.tag == 1 => {
                        assert_eq!((snapshot.beats, snapshot.progress_at), (1, BEGUN));
                    }
                    Some(snapshot) => {
                        assert_eq!((snapshot.beats, snapshot.progress_at), (0, at(20)));
                    }
                    None => drop(detail.lock().unwrap()),
                }
            })
        };
        let ender = {
            let (cell, detail) = (Arc::clone(&place.cell), Arc::clone(&detail));
            thread::spawn(move || {
                let mut ended = detail.lock().unwrap();
                *ended = true;
                cell.set_state(Lifecycle {
                    phase: Phase::Dead,
                    ..cell.state()
                });
            })
        };
        ender.join().unwrap();
        {
            let _occupants = place.occupants.write().unwrap();
            let mut ended = detail.lock().unwrap();
            *ended = false;
            let next = place.cell.state().next_tag();
            tag.store(next, Ordering::Release);
            place.cell.settle(live(next), at(20), STARTING);
        }
        reader.join().unwrap();
    });
}

/// What the pacemaker decides about one life is not written into the next: that one is watched from
/// its start.
///
/// Mirrors `pacemaker::examine` and `WorkerRef::begin_next_life`. The worker has died before.
#[test]
fn a_restarted_worker_is_watched() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        place.cell.set_state(Lifecycle {
            phase: Phase::Dead,
            ..live(1)
        });
        restart_while(&place, |place, tag| {
            let Some(snapshot) = living_snapshot(place, tag) else {
                place.unschedule();
                return;
            };
            place.set_schedule(snapshot.state.tag, STARTING);
        });
        assert_eq!(place.cell.snapshot().unwrap().schedule, STARTING);
    });
}

/// As before, for a worker that the pacemaker found alive, and that died and came back since.
#[test]
fn a_verdict_on_one_life_is_not_written_into_the_next() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        place.cell.beat();
        restart_while(&place, |place, tag| {
            if let Some(snapshot) = living_snapshot(place, tag).filter(|snapshot| snapshot.beaten) {
                place.set_schedule(snapshot.state.tag, WELL);
            }
        });
        assert_eq!(place.cell.snapshot().unwrap().schedule, STARTING);
    });
}

/// What a former life left behind beats into its own cell: no reader takes that for a sign of the
/// present life, which is in another cell.
///
/// Mirrors `WorkerRef::reading` (one turn of its loop) by a reader that had found the former life,
/// `WorkerRef::end`, and `WorkerRef::begin_next_life` with another cell.
#[test]
fn a_beat_of_a_former_life_is_no_beat_of_the_present_one() {
    model(2, || {
        let (former, present) = (
            ModelChunk::new(occupied(1)),
            ModelChunk::new(Arc::new(Cell::new())),
        );
        // `Record::place`: which of the two cells.
        let place = Arc::new(AtomicU32::new(0));
        let detail = Arc::new(Mutex::new(()));
        let left_behind = {
            let cell = Arc::clone(&former.cell);
            thread::spawn(move || {
                cell.beat();
                cell.beat_with(next_task);
            })
        };
        let reader = {
            let (former, present) = (Arc::clone(&former.cell), Arc::clone(&present.cell));
            let (place, detail) = (Arc::clone(&place), Arc::clone(&detail));
            thread::spawn(move || {
                let living = |cell: &Cell| {
                    let snapshot = cell.snapshot();
                    snapshot.filter(|snapshot| snapshot.state.phase == Phase::Live)
                };
                if place.load(Ordering::Acquire) == 0 {
                    match living(&former) {
                        Some(snapshot) => assert!(snapshot.beats <= 2),
                        None => drop(detail.lock().unwrap()),
                    }
                }
                if place.load(Ordering::Acquire) == 1 {
                    let snapshot = living(&present).expect("it lives");
                    assert!(!snapshot.beaten && !snapshot.moved);
                    assert_eq!((snapshot.beats, snapshot.progress_at), (0, at(20)));
                    assert_eq!(snapshot.work.activity, Activity::Active);
                }
            })
        };
        former.cell.set_state(Lifecycle {
            phase: Phase::Dead,
            ..former.cell.state()
        });
        {
            let _occupants = present.occupants.write().unwrap();
            let _detail = detail.lock().unwrap();
            present.cell.settle(live(1), at(20), STARTING);
            place.store(1, Ordering::Release);
        }
        // `Chunk::leave_behind`.
        former.cell.set_schedule(Schedule::OFF);
        former.cell.set_state(Lifecycle {
            stop_requested: true,
            ..former.cell.state()
        });
        left_behind.join().unwrap();
        reader.join().unwrap();
        assert_eq!(present.cell.beats(), 0);
        assert_eq!(former.cell.beats(), 2, "they are counted");
        assert!(former.cell.state().stop_requested);
    });
}

fn living_snapshot(place: &ModelChunk, tag: &AtomicU32) -> Option<CellSnapshot> {
    place.cell.snapshot().filter(|snapshot| {
        snapshot.state.phase == Phase::Live && snapshot.state.tag == tag.load(Ordering::Acquire)
    })
}

/// `WorkerRef::end` and `WorkerRef::begin_next_life`, while the pacemaker does something.
fn restart_while(place: &Arc<ModelChunk>, pacemaker: fn(&ModelChunk, &AtomicU32)) {
    let tag = Arc::new(AtomicU32::new(1));
    let pacemaker = {
        let (place, tag) = (Arc::clone(place), Arc::clone(&tag));
        thread::spawn(move || pacemaker(&place, &tag))
    };
    place.cell.set_state(Lifecycle {
        phase: Phase::Dead,
        ..place.cell.state()
    });
    {
        let _occupants = place.occupants.write().unwrap();
        let next = place.cell.state().next_tag();
        tag.store(next, Ordering::Release);
        place.cell.settle(live(next), at(20), STARTING);
    }
    pacemaker.join().unwrap();
}

// --- the time line ------------------------------------------------------------------------------

const RESOLUTION: Duration = Duration::from_nanos(10);

fn timeline() -> Timeline {
    let line = Timeline::new(at(100));
    line.tick(at(100), RESOLUTION);
    line
}

/// A observed is of one tick: it never goes back, never runs ahead of the clock, and never beyond what
/// one tick allows.
///
/// Mirrors `Core::observed` and `pacemaker::tick`. The first tick is in time, the second one late.
#[test]
fn a_view_of_the_time_is_whole_and_never_goes_back() {
    model(2, || {
        let line = Arc::new(timeline());
        let clock = Arc::new(Ghost::default());
        clock.set(at(100));
        let pacemaker = {
            let (line, clock) = (Arc::clone(&line), Arc::clone(&clock));
            thread::spawn(move || {
                for now in [115, 155].map(at) {
                    clock.set(now);
                    line.tick(now, RESOLUTION);
                }
            })
        };
        let early = line.observed_now(clock.get());
        assert!(
            [100, 115, 135].map(at).contains(&early.tick),
            "torn: {early:?}"
        );
        assert!(early.now <= early.clock.max(early.tick));
        assert!(early.now <= early.tick.after(2 * RESOLUTION));
        pacemaker.join().unwrap();
        let observed = line.observed_now(at(160));
        assert_eq!((observed.tick, observed.now), (at(135), at(140)));
        assert!(observed.now >= early.now);
    });
}
