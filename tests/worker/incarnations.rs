//! What a former life of a worker left behind has no effect on the present one.

use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use crate::support::{SECOND, World, eventually, names, wait_for};
use worker_heartbeat::{
    Activity, BoxError, Exit, FleetConfig, Health, MemoryStore, Restart, State, Supervisor,
    WorkerHeartbeat,
};

const BACKOFF: Duration = SECOND;

fn supervisor(world: &World) -> Supervisor {
    let restart = Restart::on_failure()
        .max(1_000_000)
        .backoff(BACKOFF, BACKOFF)
        .jitter(0.0);
    Supervisor::new(&world.registry).restart(restart)
}

type Handles = Arc<Mutex<Vec<Arc<WorkerHeartbeat>>>>;
type Worker = Pin<Box<dyn Future<Output = Exit>>>;

/// A supervised future whose lives keep their handles in a list, beat once, and end when the flag
/// is set.
fn leaving_handles(world: &World, fails: &Arc<AtomicBool>) -> (Worker, Handles) {
    let handles = Handles::default();
    let (kept, fails) = (Arc::clone(&handles), Arc::clone(fails));
    let worker = supervisor(world).supervise(
        world.worker("w").id("w").stall_after(60 * SECOND),
        move |hb: Arc<WorkerHeartbeat>| {
            let fails = Arc::clone(&fails);
            hb.beat();
            kept.lock().unwrap().push(hb);
            poll_fn(move |_| {
                if fails.swap(false, Ordering::SeqCst) {
                    Poll::Ready(Err::<(), &str>("the life ends"))
                } else {
                    Poll::Pending
                }
            })
        },
    );
    (Box::pin(worker.unwrap()), handles)
}

fn poll(worker: &mut Worker) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(worker.as_mut().poll(&mut context).is_pending());
}

/// Ends the present life and begins the next one.
fn next_life(world: &World, worker: &mut Worker, fails: &AtomicBool) {
    fails.store(true, Ordering::SeqCst);
    poll(worker);
    world.time.advance(BACKOFF);
    poll(worker);
}

#[test]
fn a_task_that_a_former_life_left_behind_does_not_speak_for_the_present_one() {
    let world = World::new();
    let fails = Arc::default();
    let (mut worker, handles) = leaving_handles(&world, &fails);
    poll(&mut worker);
    let probe = world.registry.get("w").unwrap();
    assert!(probe.is_recent());
    next_life(&world, &mut worker, &fails);
    let former = Arc::clone(&handles.lock().unwrap()[0]);
    let before = probe.snapshot();
    assert_eq!((before.incarnation, before.restarts), (2, 1));
    assert!(before.health.is_recent());

    for _ in 0..200 {
        former.update_task("run-1", "from life 1", Activity::Processing);
        former.beat();
        world.seconds(1);
    }
    let snapshot = probe.snapshot();
    assert_eq!(snapshot.health.state(), State::Stalled, "{snapshot}");
    assert_eq!(snapshot.run_id, None);
    assert_eq!(snapshot.beats, before.beats);
    assert!(!probe.is_recent());
    assert_eq!(snapshot.late_updates, 200);
    assert_eq!(snapshot.late_beats, 200);
    assert_eq!(world.registry.summary().stalled_workers.len(), 1);

    // Further calls through the former handles.
    let task = former.begin_task("run-2", "");
    task.progress(1, 2);
    former.mark_idle();
    drop(task);
    drop(former.expect_silence(9_000 * SECOND));
    former.stop();
    former.fail("too late");
    former.bind_thread();
    assert_eq!(probe.health().state(), State::Stalled);
    assert_eq!(probe.snapshot().late_updates, 204);
    assert!(former.claim("run-1", SECOND).is_err());

    // A guard that was left behind reports that its life has ended.
    assert!(former.is_over() && former.stop_requested());
    assert!(former.stop_receiver().try_recv().is_ok());
    assert!(!former.is_recent());
    assert!(matches!(former.health(), Health::Dead { .. }));
    assert_eq!(former.snapshot().incarnation, 1);
    assert!(
        former.probe().snapshot().incarnation == 2,
        "a probe follows"
    );

    handles.lock().unwrap()[1].beat();
    assert!(probe.is_recent(), "only the present life counts");
    let late = probe.snapshot().late_beats;
    handles.lock().unwrap().clear();
    drop(former);
    assert_eq!(probe.snapshot().late_beats, late, "and they stay counted");
    drop(worker);
    assert_eq!(probe.health().state(), State::Stopped);
}

#[test]
fn no_former_life_affects_the_present_one() {
    let world = World::new();
    let fails = Arc::default();
    let (mut worker, handles) = leaving_handles(&world, &fails);
    poll(&mut worker);
    let probe = world.registry.get("w").unwrap();
    let events = world.registry.subscribe();
    for life in 2..40 {
        next_life(&world, &mut worker, &fails);
        for former in handles.lock().unwrap().iter().rev().skip(1) {
            former.update_task("late", "", Activity::Processing);
        }
        let snapshot = probe.snapshot();
        assert_eq!(snapshot.incarnation, life);
        assert_eq!(snapshot.run_id, None);
        assert_eq!(world.registry.summary().total, 1);
        assert_eq!(world.registry.workers().len(), 1);
        if life % 3 == 0 {
            handles.lock().unwrap().remove(0);
        }
    }
    let reported = names(&events);
    let restarts = reported.iter().filter(|name| *name == "registered").count();
    assert_eq!(restarts, 38);
    // Two of the lives before the present one.
    let mut kept = handles.lock().unwrap();
    let some = kept.len() - 3;
    kept.drain(..some);
    drop(kept);
    drop(worker);
    assert_eq!(
        probe.health().state(),
        State::Stopped,
        "its future is dropped"
    );
    handles.lock().unwrap().clear();
    assert_eq!(world.registry.purge(Duration::ZERO), 1);
    assert_eq!(world.registry.summary().total, 0);
}

/// A wait of a former life ends with that life, and does not disturb those of the present one.
#[test]
fn a_wait_of_a_former_life_ends_with_it() {
    #[derive(Default)]
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let world = World::new();
    let fails = Arc::default();
    let (mut worker, handles) = leaving_handles(&world, &fails);
    poll(&mut worker);
    let first = Arc::clone(&handles.lock().unwrap()[0]);
    let woken = Arc::new(Woken::default());
    let mut waits = Box::pin(first.wait_for_stop());
    let waker = Waker::from(Arc::clone(&woken));
    assert!(
        waits
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    let receiver = first.stop_receiver();
    next_life(&world, &mut worker, &fails);
    assert!(woken.0.load(Ordering::SeqCst));
    assert!(
        waits
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
    );
    assert!(receiver.try_recv().is_ok());

    let second = Arc::clone(&handles.lock().unwrap()[1]);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut present = pin!(second.wait_for_stop());
    assert!(
        present
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    // Its number must differ from that of the present wait.
    drop(waits);
    assert!(!second.stop_requested());
    let receiver = second.stop_receiver();
    assert!(receiver.try_recv().is_err());
    let stopping = thread::scope(|scope| {
        let supervisor = scope.spawn(|| world.registry.get("w").unwrap());
        supervisor.join().unwrap()
    });
    assert!(stopping.is_recent());
}

#[test]
fn silences_and_tasks_of_a_former_life_end_without_effect() {
    let world = World::new();
    let fails = Arc::default();
    let (mut worker, handles) = leaving_handles(&world, &fails);
    poll(&mut worker);
    let first = Arc::clone(&handles.lock().unwrap()[0]);
    let (quiet, task) = (first.expect_silence(9 * SECOND), first.begin_task("a", ""));
    next_life(&world, &mut worker, &fails);
    let second = Arc::clone(&handles.lock().unwrap()[1]);
    let (still, own) = (
        second.expect_silence(900 * SECOND),
        second.begin_task("b", ""),
    );
    drop((quiet, task));
    let probe = world.registry.get("w").unwrap();
    assert_eq!(probe.snapshot().run_id.as_deref(), Some("b"));
    world.seconds(800);
    assert!(probe.is_recent(), "the present silence holds");
    drop((still, own));
    assert_eq!(probe.health().state(), State::Idle);
}

/// A future that runs on behalf of a thread's former life.
#[test]
fn a_supervised_future_of_a_former_life_does_not_end_the_present_one() {
    let world = World::new();
    let left: Arc<Mutex<Vec<_>>> = Arc::default();
    let leaves = Arc::clone(&left);
    let events = world.registry.subscribe();
    let mut lives = 0;
    let worker = supervisor(&world)
        .spawn(
            world.worker("w").id("w"),
            move |hb: &WorkerHeartbeat| -> Result<(), BoxError> {
                lives += 1;
                if lives == 1 {
                    let future = hb.supervise(async { pending::<()>().await });
                    leaves.lock().unwrap().push(Box::pin(future));
                    return Err("the first life ends".into());
                }
                hb.beat();
                hb.stop_receiver().recv()?;
                Ok(())
            },
        )
        .unwrap();
    wait_for(&events, "restart 1");
    world.time.advance(BACKOFF);
    let probe = worker.probe();
    eventually("well again", || probe.is_recent());
    let beats = probe.snapshot().beats;
    let mut context = Context::from_waker(Waker::noop());
    let mut future = left.lock().unwrap().pop().unwrap();
    for _ in 0..5 {
        assert!(future.as_mut().poll(&mut context).is_pending());
    }
    let snapshot = probe.snapshot();
    assert_eq!((snapshot.beats, snapshot.late_beats), (beats, 5));
    drop(future);
    assert!(probe.is_recent(), "{}", probe.health());
    worker.stop();
    assert!(worker.join().is_completed());
    assert!(matches!(probe.health(), Health::Stopped { .. }));
}

#[test]
fn a_store_receives_the_present_incarnation_only() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let fails = Arc::default();
    let (mut worker, handles) = leaving_handles(&world, &fails);
    poll(&mut worker);
    assert!(attachment.flush(crate::support::PATIENCE));
    let first = Arc::clone(&handles.lock().unwrap()[0]);
    let lease = first.claim("run-1", 600 * SECOND).unwrap().unwrap();
    next_life(&world, &mut worker, &fails);
    assert!(attachment.flush(crate::support::PATIENCE));
    assert!(!lease.is_held());
    assert!(first.claim("run-2", 600 * SECOND).is_err());
    first.fail("too late");
    first.update_task("run-1", "", Activity::Processing);
    assert!(attachment.flush(crate::support::PATIENCE));
    use worker_heartbeat::HeartbeatStore;
    let stored = store.list(&Default::default()).unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].status.run_id, None);
    assert!(stored[0].ending.is_none());
    let second = Arc::clone(&handles.lock().unwrap()[1]);
    assert!(second.claim("run-2", 600 * SECOND).unwrap().is_some());
    drop(worker);
    attachment.detach();
}

/// Threads that beat through the same handle, over restarts: no count may exceed the number of
/// beats.
#[test]
fn beats_of_many_threads_over_restarts_are_never_absurd() {
    let world = World::new();
    let fails: Arc<AtomicBool> = Arc::default();
    let (mut worker, handles) = leaving_handles(&world, &fails);
    poll(&mut worker);
    let probe = world.registry.get("w").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let latest = handles.lock().unwrap().last().cloned();
                    if let Some(hb) = latest {
                        (0..100).for_each(|_| hb.beat());
                    }
                }
            });
        }
        for _ in 0..300 {
            next_life(&world, &mut worker, &fails);
            let snapshot = probe.snapshot();
            assert!(snapshot.beats < 1 << 40, "{}", snapshot.beats);
            assert!(snapshot.late_beats < 1 << 40, "{}", snapshot.late_beats);
            let mut kept = handles.lock().unwrap();
            let some = kept.len().saturating_sub(3);
            kept.drain(..some);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
