//! A supervisor's shutdown, blocking and asynchronous: after a clean one, nothing that the
//! supervisor started is running.

use std::future::pending;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::executor::{block_on, poll_once};
use crate::support::{PATIENCE, SECOND, World, eventually, wait_for};
use worker_heartbeat::{
    BoxError, Error, Exit, Health, Registry, Restart, State, StopCause, StopReport, Supervisor,
    WorkerHeartbeat,
};

fn until_asked(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    hb.stop_receiver().recv()?;
    Ok(())
}

/// Work that ends when the sender is dropped.
fn until_let_go() -> (
    mpsc::Sender<()>,
    impl FnMut(&WorkerHeartbeat) -> Result<(), BoxError> + Send,
) {
    let (let_go, held) = mpsc::channel::<()>();
    let work = move |hb: &WorkerHeartbeat| {
        let _task = hb.begin_task("run-1", "hanging");
        let _ = held.recv();
        Ok(())
    };
    (let_go, work)
}

/// Both forms of shutdown. Every test must pass with each.
type ShutDown = fn(&Supervisor, Duration) -> StopReport;
const WAYS: [ShutDown; 2] = [
    |supervisor, timeout| supervisor.shutdown(timeout),
    |supervisor, timeout| block_on(supervisor.shutdown_async(timeout)),
];

// --- starts during a shutdown -----------------------------------------------------------------

#[test]
fn nothing_is_started_during_a_shutdown_and_after_it() {
    for shut_down in WAYS {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        let (let_go, hangs) = until_let_go();
        let hanging = supervisor.spawn(world.worker("w"), hangs).unwrap();
        eventually("at work", || hanging.probe().is_recent());
        let refused = |supervisor: &Supervisor| {
            let spawned = supervisor.spawn(world.worker("w").id("late"), until_asked);
            assert!(matches!(spawned, Err(Error::ShuttingDown)), "{spawned:?}");
            let run = supervisor.supervise(world.worker("w").id("late"), |_| pending::<()>());
            assert!(matches!(run, Err(Error::ShuttingDown)));
            let restarting = supervisor.clone().restart(Restart::always());
            let spawned = restarting.spawn(world.worker("w").id("late"), until_asked);
            assert!(matches!(spawned, Err(Error::ShuttingDown)), "{spawned:?}");
        };
        thread::scope(|scope| {
            let report = scope.spawn(|| shut_down(&supervisor, PATIENCE));
            eventually("asked", || {
                hanging.probe().health().state() == State::Stopping
            });
            refused(&supervisor);
            drop(let_go);
            let report = report.join().unwrap();
            assert!(report.is_clean());
            assert_eq!(report.ended, [hanging.id()]);
        });
        refused(&supervisor);
        assert!(
            world.registry.get("late").is_none(),
            "it was never registered"
        );
        assert!(
            Supervisor::new(&world.registry)
                .spawn(world.worker("w").finite(), |_| Ok(()))
                .is_ok(),
            "another one starts workers"
        );
    }
}

#[test]
fn work_started_during_a_shutdown_is_refused_or_stopped() {
    for round in 0..40 {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        let over = AtomicBool::new(false);
        let (threads, report) = thread::scope(|scope| {
            let start = || {
                let mut started = Vec::new();
                loop {
                    let over = over.load(Ordering::Acquire);
                    match supervisor.spawn(world.worker("w"), until_asked) {
                        Ok(worker) => started.push(worker),
                        Err(Error::ShuttingDown) if over => return started,
                        Err(Error::ShuttingDown) => thread::yield_now(),
                        Err(other) => panic!("{other}"),
                    }
                }
            };
            let starting = [scope.spawn(start), scope.spawn(start)];
            (0..round % 10).for_each(|_| thread::yield_now());
            let report = WAYS[round % 2](&supervisor, PATIENCE);
            over.store(true, Ordering::Release);
            let threads = starting.map(|starting| starting.join().unwrap());
            (threads.into_iter().flatten().collect::<Vec<_>>(), report)
        });
        assert!(report.is_clean());
        for worker in &threads {
            assert!(worker.exit().is_some(), "{} still runs", worker.id());
            assert!(worker.probe().health().state().is_terminal());
        }
        assert_eq!(report.ended.len(), threads.len());
    }
}

#[test]
fn a_child_is_in_the_list_before_it_runs() {
    let world = World::new();
    for _ in 0..200 {
        let supervisor = Supervisor::new(&world.registry);
        let (send, receive) = mpsc::channel();
        let own = supervisor.clone();
        let worker = supervisor
            .spawn(world.worker("w").finite(), move |_| {
                send.send(own.shutdown(Duration::ZERO))?;
                Ok(())
            })
            .unwrap();
        let report = receive.recv().unwrap();
        assert_eq!(report.hung.len(), 1, "the child cannot end while it waits");
        assert_eq!(report.hung[0].id, worker.id());
        worker.join();
    }
}

#[test]
fn a_child_that_starts_others_when_it_is_asked_to_stop_is_refused() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (send, receive) = mpsc::channel();
    let own = supervisor.clone();
    let worker = world.worker("w").id("parent");
    supervisor
        .spawn(worker, move |hb| {
            until_asked(hb)?;
            let late = WorkerHeartbeat::builder("w").id("late");
            send.send(own.spawn(late, until_asked).map(|_| ()))?;
            Ok(())
        })
        .unwrap();
    let report = supervisor.shutdown(PATIENCE);
    assert!(report.is_clean());
    assert_eq!(report.ended, ["parent"]);
    assert!(matches!(receive.recv().unwrap(), Err(Error::ShuttingDown)));
    assert!(world.registry.get("late").is_none());
}

#[test]
fn a_child_that_fails_meanwhile_is_not_started_again() {
    for shut_down in WAYS {
        let world = World::new();
        let events = world.registry.subscribe();
        let restart = Restart::on_failure().backoff(SECOND, SECOND);
        let supervisor = Supervisor::new(&world.registry).restart(restart);
        let waiting = supervisor
            .spawn(world.worker("w"), |_| Err("at once".into()))
            .unwrap();
        wait_for(&events, "restart 1");
        let failing = supervisor
            .spawn(world.worker("w"), |hb| {
                until_asked(hb)?;
                Err("when it is asked".into())
            })
            .unwrap();
        assert!(shut_down(&supervisor, PATIENCE).is_clean());
        world.seconds(1_000);
        for worker in [waiting, failing] {
            assert!(matches!(worker.exit(), Some(Exit::Failed { .. })));
            assert_eq!(worker.probe().snapshot().incarnation, 1);
        }
    }
}

#[test]
fn a_child_that_takes_longer_than_its_share_has_the_rest_of_the_time() {
    for shut_down in WAYS {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        let (let_go, hangs) = until_let_go();
        // It ends only when the slow child, which is stopped before it, has used up its share.
        let first = move |hb: &WorkerHeartbeat| {
            until_asked(hb)?;
            let_go.send(())?;
            Ok(())
        };
        supervisor
            .spawn(world.worker("w").id("first"), first)
            .unwrap();
        supervisor
            .spawn(world.worker("w").id("slow"), hangs)
            .unwrap();
        let report = shut_down(&supervisor, 2 * SECOND);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.ended, ["first", "slow"]);
        assert!(report.took >= SECOND, "its share");
        assert!(report.took < 2 * SECOND);
    }
}

// --- without blocking a thread ----------------------------------------------------------------

#[test]
fn shutdown_stops_in_reverse_order_and_names_the_hung_while_the_clock_stands_still() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let events = world.registry.subscribe();
    let (let_go, hangs) = until_let_go();
    let spawn = |id| {
        supervisor
            .spawn(world.worker("w").id(id), until_asked)
            .unwrap()
    };
    let first = spawn("first");
    let hanging = supervisor
        .spawn(world.worker("w").id("hanging"), hangs)
        .unwrap();
    let last = spawn("last");
    eventually("at work", || hanging.probe().is_recent());
    let begun = Instant::now();
    let report = block_on(supervisor.shutdown_async(Duration::from_millis(300)));
    assert!(begun.elapsed() >= Duration::from_millis(100), "its share");
    assert_eq!(report.ended, ["first", "last"]);
    assert_eq!(report.hung.len(), 1);
    assert_eq!(report.hung[0].id, "hanging");
    assert_eq!(report.hung[0].health.state(), State::Stopping);
    let stopped: Vec<_> = events
        .try_iter()
        .filter(|event| crate::support::name(event) == "stopped")
        .map(|event| event.id().to_owned())
        .collect();
    assert_eq!(stopped, ["last", "first"]);
    drop(let_go);
    assert!(block_on(hanging.join_async()).is_completed());
    assert!(block_on(first.join_async()).is_completed());
    assert!(last.exit().is_some());
    let report = block_on(supervisor.shutdown_async(PATIENCE));
    assert_eq!(report.ended, ["hanging"], "asked for again");
    let report = block_on(supervisor.shutdown_async(Duration::MAX));
    assert!(report.is_clean() && report.ended.is_empty());
}

#[test]
fn shutdown_async_works_in_a_single_threaded_runtime_with_its_workers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let report = runtime.block_on(async {
        let stops = supervisor
            .supervise(world.worker("w").id("stops"), |hb| async move {
                hb.wait_for_stop().await;
            })
            .unwrap();
        let stops = tokio::spawn(stops);
        let hangs = tokio::spawn(
            supervisor
                .supervise(world.worker("w").id("hangs"), |_| pending::<()>())
                .unwrap(),
        );
        tokio::task::yield_now().await;
        let report = supervisor.shutdown_async(Duration::from_millis(100)).await;
        assert!(stops.await.unwrap().is_completed());
        hangs.abort();
        assert!(hangs.await.unwrap_err().is_cancelled());
        report
    });
    assert_eq!(report.ended, ["stops"]);
    assert_eq!(report.hung[0].id, "hangs");
    let report = runtime.block_on(supervisor.shutdown_async(PATIENCE));
    assert_eq!(report.ended, ["hangs"]);
    assert!(matches!(
        world.registry.get("stops").unwrap().health(),
        Health::Stopped {
            by: StopCause::Supervisor,
            ..
        }
    ));
}

#[test]
fn a_task_beside_it_goes_on() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, hangs) = until_let_go();
    let hanging = supervisor.spawn(world.worker("w"), hangs).unwrap();
    eventually("at work", || hanging.probe().is_recent());
    runtime.block_on(async {
        let shutdown = tokio::spawn(supervisor.shutdown_async(PATIENCE));
        eventually_async("asked", || {
            hanging.probe().health().state() == State::Stopping
        })
        .await;
        // If the shutdown blocked the only thread, this would be reached only after its end.
        drop(let_go);
        assert!(shutdown.await.unwrap().is_clean());
    });
}

async fn eventually_async(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never so: {what}");
        tokio::task::yield_now().await;
    }
}

#[test]
fn shutdown_async_does_nothing_before_it_is_polled() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    drop(supervisor.shutdown_async(PATIENCE));
    let worker = supervisor.spawn(world.worker("w"), until_asked).unwrap();
    assert!(worker.exit().is_none());
    assert!(supervisor.shutdown(PATIENCE).is_clean());
}

/// A task that counts how often it is woken.
struct Task;

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

fn timers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let named = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        (name.trim() == "wh-timer").then_some(())
    });
    named.count()
}

#[test]
fn a_dropped_shutdown_async_leaves_nothing_behind() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, hangs) = until_let_go();
    let worker = supervisor.spawn(world.worker("w"), hangs).unwrap();
    let task = Arc::new(Task);
    let waker = Waker::from(Arc::clone(&task));
    let poll = |future: Pin<&mut dyn Future<Output = _>>| {
        let polled: Poll<StopReport> = future.poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    };
    for _ in 0..3 {
        let mut shutdown = pin!(supervisor.shutdown_async(PATIENCE));
        poll(shutdown.as_mut());
        poll(shutdown.as_mut());
        eventually("one for all", || timers() == 1);
    }
    {
        let mut joined = pin!(worker.join_async());
        let polled = joined.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    assert_eq!(
        Arc::strong_count(&task),
        2,
        "one for the waker and this one"
    );
    drop(let_go);
    assert!(worker.join().is_completed());
}

#[test]
fn its_time_is_kept_by_a_thread_that_ends_with_it() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, hangs) = until_let_go();
    let worker = supervisor.spawn(world.worker("w"), hangs).unwrap();
    let mut shutdown = Box::pin(supervisor.shutdown_async(PATIENCE));
    assert!(poll_once(&mut shutdown).is_pending());
    eventually("the timer runs", || timers() == 1);
    drop(let_go);
    worker.join();
    assert!(poll_once(&mut shutdown).is_ready());
    // Timers of other tests of this program may still run.
    eventually("no timer is left", || timers() == 0);
}

#[test]
fn a_worker_that_shuts_its_own_supervisor_down_does_not_wait_for_itself() {
    for asynchronous in [false, true] {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        let (sender, receiver) = mpsc::channel();
        let first = world.worker("w").id("other");
        supervisor.spawn(first, until_asked).unwrap();
        let (own, (go, held)) = (supervisor.clone(), mpsc::channel::<()>());
        let report = sender.clone();
        let keeper = supervisor.spawn(world.worker("w").id("keeper"), move |hb| {
            let _ = held.recv();
            let said = if asynchronous {
                block_on(own.shutdown_async(PATIENCE))
            } else {
                own.shutdown(PATIENCE)
            };
            report.send((said, hb.stop_requested()))?;
            Ok(())
        });
        let keeper = keeper.unwrap();
        let last = world.worker("w").id("last");
        supervisor.spawn(last, until_asked).unwrap();
        drop(go);
        let (said, asked) = receiver.recv().unwrap();
        let hung: Vec<_> = said.hung.iter().map(|hung| hung.id.as_str()).collect();
        assert_eq!(hung, ["keeper"], "the worker still runs");
        assert_eq!(said.ended, ["other", "last"]);
        assert!(said.took < PATIENCE / 2, "{said:?}");
        assert!(asked);
        assert!(keeper.join().is_completed());
    }
}

#[test]
fn a_future_that_shuts_its_own_supervisor_down_does_not_wait_for_itself() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (sender, receiver) = mpsc::channel();
    let own = supervisor.clone();
    let run = supervisor.supervise(world.worker("w"), move |_| {
        let (own, sender) = (own.clone(), sender.clone());
        async move {
            let report = own.shutdown_async(PATIENCE).await;
            sender.send(report).unwrap();
        }
    });
    supervisor
        .spawn(world.worker("w").id("other"), until_asked)
        .unwrap();
    assert!(block_on(run.unwrap()).is_completed());
    let report = receiver.recv().unwrap();
    assert_eq!(report.hung.len(), 1, "the future still runs: {report:?}");
    assert_eq!(report.ended, ["other"]);
    assert!(report.took < PATIENCE / 2, "{report:?}");
    // Another shutdown waits for it.
    let report = supervisor.shutdown(PATIENCE);
    assert!(
        report.is_clean() && report.took < PATIENCE / 2,
        "{report:?}"
    );
}

#[test]
fn once_one_is_late_all_others_are_asked_in_the_first_half_of_the_time() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    for way in WAYS {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        let (send, first_is_asked) = mpsc::channel();
        let first = supervisor.spawn(world.worker("w"), move |hb| {
            hb.stop_receiver().recv()?;
            send.send(Instant::now())?;
            Ok(())
        });
        first.unwrap();
        // These end only when all others have been asked to stop.
        let let_go = [(); 3].map(|()| {
            let (let_go, work) = until_let_go();
            supervisor.spawn(world.worker("w"), work).unwrap();
            let_go
        });
        let begun = Instant::now();
        let report = thread::scope(|scope| {
            let stopping = scope.spawn(|| way(&supervisor, TIMEOUT));
            let asked = first_is_asked.recv().unwrap();
            drop(let_go);
            // With equal shares of the whole time, this one would be asked to stop after three
            // quarters.
            let after = asked.duration_since(begun);
            assert!(after < TIMEOUT / 8 * 5, "{after:?}");
            stopping.join().unwrap()
        });
        assert!(report.is_clean(), "{report:?}");
    }
}

#[test]
fn work_that_goes_on_after_its_worker_ended_sees_that_it_is_asked_to_stop() {
    type Wait = fn(&WorkerHeartbeat);
    let waits: [Wait; 4] = [
        |hb| {
            while !hb.stop_requested() {
                thread::yield_now();
            }
        },
        |hb| assert!(hb.wait_for_stop_timeout(Duration::MAX)),
        |hb| block_on(hb.wait_for_stop()),
        |hb| assert!(hb.stop_receiver().recv().is_ok()),
    ];
    let ends: [Wait; 2] = [|hb| hb.fail("disk full"), WorkerHeartbeat::stop];
    for wait in waits {
        for end in ends {
            let registry = Registry::new();
            let supervisor = Supervisor::new(&registry);
            let (ended, has_ended) = mpsc::channel();
            let work = move |hb: &WorkerHeartbeat| {
                end(hb);
                assert!(!hb.stop_requested(), "its own end is no request");
                ended.send(())?;
                wait(hb);
                Ok(())
            };
            let worker = WorkerHeartbeat::builder("w").registry(&registry);
            supervisor.spawn(worker, work).unwrap();
            has_ended.recv().unwrap();
            let report = supervisor.shutdown(PATIENCE);
            assert!(report.is_clean(), "{report}");
        }
    }
}
