//! Beats and observations.

use loom::sync::Arc;
use loom::thread;

use super::{
    BEGUN, Ghost, ModelChunk, Timestamps, WELL, at, idle, model, next_task, observe, observe_by,
    occupied,
};
use crate::cell::{CellSnapshot, Episode, Schedule, Sign, Work};
use crate::health::Activity;

/// A beat is never lost and never dated before it was made: a reader that finds the counter as the
/// pacemaker last saw it finds a time that is no earlier than the last beat counted.
///
/// Mirrors `WorkerHeartbeat::beat`, `pacemaker::tick` and `WorkerRef::facts`.
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

/// Two threads that beat into one cell move its counter at least once, and the result is stamped.
///
/// Not more: if the pacemaker observes between the two halves of one beat, after the other beat, the two
/// count as one at the earlier time (see `Cell::beat`).
#[test]
fn concurrent_beats_move_the_counter() {
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

/// No reader sees a worker at its new task together with the time of its last progress before it went
/// idle.
///
/// Mirrors `WorkerRef::update_task`, `pacemaker::tick` and `WorkerRef::facts`.
#[test]
fn a_long_idle_time_is_not_mistaken_for_a_stall() {
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

/// Concurrent changes of the `work` word are all kept.
///
/// Mirrors `WorkerRef::mark_idle` of a worker without a detail, `WorkerRef::begin_silence` and
/// `WorkerRef::bind_thread`.
#[test]
fn concurrent_changes_of_the_work_are_all_kept() {
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

/// A task is dated eventually, and never before it began.
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
                    // Not whole milliseconds, the cell's unit.
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

/// A worker that begins another task while the pacemaker convicts it of an overdue one is judged again
/// at the next tick, and by the new task: the conviction does not outlast the task.
///
/// Mirrors `WorkerRef::update_task` and `pacemaker::tick` with `examine`.
#[test]
fn a_conviction_as_overdue_does_not_outlast_the_task() {
    model(2, || {
        let place = ModelChunk::new(occupied(1));
        let limited = |work| Work {
            limited: true,
            ..next_task(work)
        };
        place.cell.beat_with(limited);
        observe(&place.cell, at(20));
        let first = place.cell.work().task;
        let worker = {
            let cell = Arc::clone(&place.cell);
            thread::spawn(move || cell.beat_with(limited))
        };
        let judge = |now| {
            observe(&place.cell, now);
            let snapshot = place.cell.snapshot().unwrap();
            let is_overdue = snapshot.work.task == first && snapshot.task_at.is_some();
            let overdue = Schedule {
                episode: Episode::Overdue,
                due: at(u64::MAX),
            };
            place.set_schedule(1, if is_overdue { overdue } else { WELL });
            is_overdue
        };
        let was_overdue = judge(at(50_000_000));
        worker.join().unwrap();
        if was_overdue {
            let sign = observe(&place.cell, at(60_000_000));
            assert_eq!(sign, Sign::Judge);
        }
        assert!(!judge(at(60_000_000)));
        let snapshot = place.cell.snapshot().unwrap();
        assert!(snapshot.task_at >= Some(at(50_000_000)), "{snapshot:?}");
    });
}
