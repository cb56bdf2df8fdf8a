//! One occupant of a cell after another, and one life of a worker after another.

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::{
    BEGUN, Ghost, ModelChunk, STARTING, WELL, at, live, model, next_task, observe, occupied,
};
use crate::cell::{Cell, CellSnapshot, Lifecycle, Phase, Schedule};
use crate::health::Activity;

/// A pacemaker that is still observing the previous occupant never makes the new one look as if it had
/// beaten, and the new one's first beat is stamped nevertheless.
///
/// Mirrors `pacemaker::tick`, `Registry::retire` and `Registry::admit`.
#[test]
fn an_observation_of_the_previous_occupant_is_no_beat_of_the_new_one() {
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

/// A pacemaker that is still observing the previous occupant never sets back the time at which the new one
/// began.
///
/// Mirrors `pacemaker::tick`, `Registry::retire` and `Registry::admit`.
#[test]
fn an_observation_of_the_previous_occupant_does_not_age_the_new_one() {
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

/// A snapshot is of one occupant, or there is none, whichever occupants leave and enter
/// meanwhile.
///
/// Mirrors `WorkerRef::living_snapshot`, and `Registry::retire` and `Registry::admit` on two threads.
#[test]
fn a_snapshot_never_mixes_two_occupants() {
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

/// Facts read during a restart are of the life that ended or of the one that begins, never of both.
///
/// Mirrors `WorkerRef::facts` (one turn of its loop), `WorkerRef::end` and `WorkerRef::begin_next_life`, on two
/// threads; the detail holds whether the worker has ended.
#[test]
fn facts_read_during_a_restart_are_of_one_life() {
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

/// The pacemaker never writes the schedule of one life into the next: that one is scheduled from its
/// start.
///
/// Mirrors `pacemaker::examine` and `WorkerRef::begin_next_life`. The worker has died before.
#[test]
fn a_restarted_worker_is_scheduled() {
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

/// As before, for a worker that the pacemaker found alive, and that died and was restarted since.
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

/// A holder of a former life beats into the former cell: no reader mistakes that for progress of the
/// present life, which is in another cell.
///
/// Mirrors `WorkerRef::facts` (one turn of its loop) by a reader that holds the former life,
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
