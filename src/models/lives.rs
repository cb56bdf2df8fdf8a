//! The end of a life.

use loom::sync::{Arc, Mutex};
use loom::thread;

use super::{at, idle, model, observe, occupied};
use crate::cell::{CellSnapshot, Lifecycle, Phase};
use crate::health::Activity;

/// Of a worker that goes idle and a thread that asks it to stop, at least one sees the other.
///
/// Mirrors `WorkerRef::mark_idle` of a worker without a detail, and `WorkerRef::show_stop`.
#[test]
fn a_worker_that_goes_idle_or_the_thread_that_asks_it_to_stop_sees_the_other() {
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

/// A life that has ended stays ended, however late its worker beats, and no request to stop is lost.
///
/// Mirrors `WorkerRef::end`, `WorkerRef::show_stop` (both under the detail's lock, which here holds whether
/// the worker has ended), and `WorkerHeartbeat::beat` and `WorkerRef::mark_idle`, which do not check for an
/// end.
#[test]
fn a_late_beat_does_not_revive_a_dead_worker() {
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
