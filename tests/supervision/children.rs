//! Workers that a worker starts: they belong to its life, and end with it.

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::executor::{block_on, poll_once};
use crate::support::{PATIENCE, SECOND, World, eventually, names, wait_for};
use worker_heartbeat::{
    Builder, Error, EventKind, Exit, Registry, Restart, State, StopCause, Supervisor,
    WorkerHeartbeat,
};

type Work = Box<dyn FnMut(&WorkerHeartbeat) -> Result<(), worker_heartbeat::BoxError> + Send>;

fn until_asked(hb: &WorkerHeartbeat) -> Result<(), worker_heartbeat::BoxError> {
    hb.beat();
    hb.stop_receiver().recv()?;
    Ok(())
}

fn child(id: &str) -> Builder {
    WorkerHeartbeat::builder("child").id(id)
}

fn is_over(registry: &Registry, id: &str) -> bool {
    let probe = registry.get(id);
    probe.is_none_or(|probe| probe.health().state().is_terminal())
}

fn restarts() -> Restart {
    Restart::always()
        .max(2)
        .within(60 * SECOND)
        .backoff(SECOND, SECOND)
        .jitter(0.0)
}

/// A child that ends only when the sender is dropped.
fn hangs(held: mpsc::Receiver<()>) -> Work {
    Box::new(move |hb| {
        let _task = hb.begin_task("run-1", "hanging");
        let _ = held.recv();
        Ok(())
    })
}

/// How a life of a parent ends.
const ENDS: [fn() -> Result<(), &'static str>; 3] =
    [|| Ok(()), || Err("no more"), || panic!("no more")];

/// Advances the clock until this many lives have begun.
fn until_life(world: &World, lives: &AtomicU32, life: u32) {
    eventually("the next life", || {
        world.seconds(1);
        lives.load(Ordering::SeqCst) >= life
    });
}

// --- life after life --------------------------------------------------------------------------

#[test]
fn each_life_of_a_thread_starts_its_children_again_under_their_ids() {
    for end in ENDS {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry).restart(restarts());
        let lives = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&lives);
        let parent = supervisor
            .spawn(world.worker("parent"), move |hb| {
                let life = counted.fetch_add(1, Ordering::SeqCst) + 1;
                for id in ["a", "b"] {
                    assert!(
                        is_over(hb.registry(), id),
                        "{id} belongs to the life before"
                    );
                }
                let children = Supervisor::linked_to(hb).restart(Restart::always());
                children.spawn(child("a"), until_asked)?;
                children.spawn(child("b"), until_asked)?;
                let generated = children.spawn(WorkerHeartbeat::builder("child"), until_asked)?;
                if life == 3 {
                    until_asked(hb)?;
                }
                drop(generated);
                Ok(end()?)
            })
            .unwrap();
        until_life(&world, &lives, 3);
        assert!(supervisor.shutdown(PATIENCE).is_clean());
        assert!(parent.exit().is_some());
        for worker in world.registry.workers() {
            assert!(
                worker.health().state().is_terminal(),
                "{} lives",
                worker.id()
            );
        }
        let restarts = world.registry.get("a").unwrap().snapshot().restarts;
        assert_eq!(restarts, 2, "one life of the child for each of the parent");
    }
}

#[test]
fn each_life_of_a_future_starts_its_children_again_under_their_ids() {
    for end in ENDS {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry).restart(restarts().max(1));
        let lives = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&lives);
        let parent = supervisor
            .supervise(world.worker("parent").finite(), move |hb| {
                let life = counted.fetch_add(1, Ordering::SeqCst) + 1;
                async move {
                    assert!(is_over(hb.registry(), "thread"));
                    assert!(is_over(hb.registry(), "future"));
                    let children = Supervisor::linked_to(&hb);
                    children.spawn(child("thread"), until_asked).unwrap();
                    let future = children.supervise(child("future"), |hb| async move {
                        hb.wait_for_stop().await;
                    });
                    // The parent waits for this future when its handle is dropped.
                    let future = Box::pin(future.unwrap());
                    thread::spawn(move || block_on(future));
                    if life == 2 {
                        hb.wait_for_stop().await;
                        return Ok(());
                    }
                    end()?;
                    Err("the first life ends")
                }
            })
            .unwrap();
        let parent = thread::spawn(move || block_on(parent));
        until_life(&world, &lives, 2);
        assert!(supervisor.shutdown(PATIENCE).is_clean());
        assert!(parent.join().unwrap().is_completed());
        for worker in world.registry.workers() {
            assert!(
                worker.health().state().is_terminal(),
                "{} lives",
                worker.id()
            );
        }
    }
}

#[test]
fn a_parent_is_dead_at_once_and_done_when_its_children_are() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, held) = mpsc::channel();
    let mut held = Some(held);
    let parent = supervisor.supervise(world.worker("parent").id("parent"), move |hb| {
        let held = held.take();
        async move {
            let children = Supervisor::linked_to(&hb);
            children.spawn(child("c"), hangs(held.unwrap())).unwrap();
            Err::<(), _>("no more")
        }
    });
    let mut parent = Box::pin(parent.unwrap());
    assert!(poll_once(&mut parent).is_pending());
    let [of_parent, of_child] = ["parent", "c"].map(|id| world.registry.get(id).unwrap());
    assert_eq!(of_parent.health().state(), State::Dead);
    eventually("the child is asked", || {
        of_child.health().state() == State::Stopping
    });
    drop(let_go);
    assert!(matches!(block_on(parent), Exit::Failed { .. }));
    assert_eq!(of_child.health().state(), State::Stopped);
}

#[test]
fn children_are_stopped_in_order_and_the_parent_ends_before_them() {
    let world = World::new();
    let events = world.registry.subscribe();
    let supervisor = Supervisor::new(&world.registry);
    let parent = world.worker("parent").id("parent");
    let parent = supervisor
        .spawn(parent, |hb| {
            let children = Supervisor::linked_to(hb);
            for id in ["first", "second"] {
                children.spawn(child(id), until_asked)?;
            }
            Supervisor::linked_to(hb).spawn(child("third"), until_asked)?;
            Err("no more".into())
        })
        .unwrap();
    assert!(matches!(parent.join(), Exit::Failed { .. }));
    let ended: Vec<_> = events
        .try_iter()
        .filter(|event| matches!(crate::support::name(event).as_str(), "dead" | "stopped"))
        .map(|event| event.id().to_owned())
        .collect();
    assert_eq!(ended, ["parent", "third", "second", "first"]);
}

#[test]
fn they_end_several_levels_deep() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry).restart(restarts());
    let lives = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&lives);
    supervisor
        .spawn(world.worker("w").id("1"), move |hb| {
            let life = counted.fetch_add(1, Ordering::SeqCst) + 1;
            let ready = Arc::new(Mutex::new(None));
            let (send, receive) = mpsc::channel::<()>();
            *ready.lock().unwrap() = Some(send);
            Supervisor::linked_to(hb).spawn(child("2"), move |hb| {
                let ready = Arc::clone(&ready);
                Supervisor::linked_to(hb).spawn(child("3"), move |hb| {
                    let third = Supervisor::linked_to(hb);
                    third.spawn(child("4"), until_asked)?;
                    drop(ready.lock().unwrap().take());
                    until_asked(hb)
                })?;
                until_asked(hb)
            })?;
            // All of them exist when the sender is dropped.
            let _ = receive.recv();
            assert!(life > 2, "the first lives end by a panic");
            until_asked(hb)
        })
        .unwrap();
    until_life(&world, &lives, 3);
    eventually("all four", || world.registry.summary().total_active == 4);
    let report = supervisor.shutdown(PATIENCE);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(world.registry.summary().total_active, 0);
    let restarts = |id| world.registry.get(id).unwrap().snapshot().restarts;
    assert_eq!(["1", "2", "3", "4"].map(restarts), [2; 4]);
}

// --- children that hang -----------------------------------------------------------------------

#[test]
fn a_child_that_does_not_end_in_time_is_named_and_the_next_life_begins() {
    for in_future in [false, true] {
        let world = World::new();
        let events = world.registry.subscribe();
        let supervisor = Supervisor::new(&world.registry).restart(restarts());
        let (let_go, held) = mpsc::channel();
        let held = Mutex::new(Some(held));
        let start = move |hb: &WorkerHeartbeat| -> Result<(), Error> {
            let limit = Duration::from_millis(50);
            let children = Supervisor::linked_to(hb).stop_children_within(limit);
            children.spawn(WorkerHeartbeat::builder("ends"), until_asked)?;
            if let Some(held) = held.lock().unwrap().take() {
                children.spawn(child("hangs"), hangs(held))?;
            }
            Ok(())
        };
        let parent = world.worker("parent").id("parent");
        if in_future {
            let run = supervisor.supervise(parent, move |hb| {
                let started = start(&hb);
                async move {
                    started?;
                    Err::<(), _>(worker_heartbeat::BoxError::from("no more"))
                }
            });
            let run = run.unwrap();
            thread::spawn(move || block_on(run));
        } else {
            let work = move |hb: &WorkerHeartbeat| {
                start(hb)?;
                Err("no more".into())
            };
            supervisor.spawn(parent, work).unwrap();
        }
        let event = wait_for(&events, "childhung");
        assert_eq!(event.id(), "parent");
        let EventKind::ChildHung {
            id, health, waited, ..
        } = &event.kind
        else {
            panic!("{event:?}");
        };
        assert_eq!(id, "hangs");
        assert!(matches!(health.state(), State::Stopping), "{health}");
        assert!(*waited >= Duration::from_millis(25), "its share");
        let line = event.to_string();
        assert!(line.starts_with("worker parent: its child hangs did not end within"));
        wait_for(&events, "restart 1");
        world.seconds(1);
        // The next life has no child that hangs.
        wait_for(&events, "restart 2");
        let next = names(&events);
        assert!(!next.contains(&"childhung".to_owned()), "{next:?}");
        drop(let_go);
        assert!(supervisor.shutdown(PATIENCE).is_clean());
    }
}

#[test]
fn the_shutdown_of_the_parents_supervisor_names_hung_children() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, held) = mpsc::channel();
    let held = Mutex::new(Some(held));
    let parent = supervisor
        .spawn(world.worker("w").id("parent"), move |hb| {
            let held = Mutex::new(held.lock().unwrap().take());
            Supervisor::linked_to(hb).spawn(child("child"), move |hb| {
                let held = held.lock().unwrap().take().unwrap();
                Supervisor::linked_to(hb).spawn(child("grandchild"), hangs(held))?;
                until_asked(hb)
            })?;
            until_asked(hb)
        })
        .unwrap();
    eventually("the grandchild", || {
        let probe = world.registry.get("grandchild");
        probe.is_some_and(|probe| probe.is_recent())
    });
    let report = supervisor.shutdown(Duration::from_millis(200));
    let hung: Vec<_> = report.hung.iter().map(|hung| hung.id.as_str()).collect();
    assert_eq!(hung, ["parent", "child", "grandchild"]);
    assert_eq!(report.hung[0].health.state(), State::Stopped);
    assert_eq!(report.hung[2].health.state(), State::Stopping);
    drop(let_go);
    parent.join();
    assert!(supervisor.shutdown(PATIENCE).is_clean());
}

#[test]
fn a_future_that_waits_for_its_children_blocks_no_executor() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, held) = mpsc::channel();
    runtime.block_on(async {
        let mut held = Some(held);
        let parent = supervisor.supervise(world.worker("w").id("parent"), move |hb| {
            let held = held.take();
            async move {
                if let Some(held) = held {
                    let children = Supervisor::linked_to(&hb);
                    children.spawn(child("hangs"), hangs(held)).unwrap();
                    // It runs on the same executor, whose thread it needs to end.
                    let beside = children.supervise(child("beside"), |hb| async move {
                        hb.wait_for_stop().await;
                        tokio::task::yield_now().await;
                    });
                    tokio::spawn(beside.unwrap());
                }
            }
        });
        let parent = tokio::spawn(parent.unwrap());
        let deadline = Instant::now() + PATIENCE;
        while !is_over(&world.registry, "beside") {
            assert!(Instant::now() < deadline, "the executor is blocked");
            tokio::task::yield_now().await;
        }
        assert!(!parent.is_finished(), "the thread still hangs");
        drop(let_go);
        assert!(parent.await.unwrap().is_completed());
    });
}

// --- lives whose children are not awaited --------------------------------------------------------------

#[test]
fn the_children_of_a_future_that_is_dropped_are_asked_to_stop() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let hb = Arc::new(world.worker("plain").start().unwrap());
    let starts = |id: &'static str| {
        move |hb: Arc<WorkerHeartbeat>| async move {
            Supervisor::linked_to(&hb)
                .spawn(child(id), until_asked)
                .unwrap();
            pending::<()>().await
        }
    };
    let mut lives = Box::pin(
        supervisor
            .supervise(world.worker("lives"), starts("of lives"))
            .unwrap(),
    );
    let mut plain = Box::pin(hb.supervise(starts("of plain")(Arc::clone(&hb))));
    assert!(poll_once(&mut lives).is_pending());
    assert!(poll_once(&mut plain).is_pending());
    for id in ["of lives", "of plain"] {
        eventually("the child is registered", || !is_over(&world.registry, id));
    }
    drop((lives, plain));
    for id in ["of lives", "of plain"] {
        eventually("the child ends", || is_over(&world.registry, id));
        let by = format!("{:?}", world.registry.get(id).unwrap().health());
        assert!(by.contains(&format!("{:?}", StopCause::Supervisor)), "{by}");
    }
}

#[test]
fn dropped_while_it_waits_it_leaves_the_others_asked() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, held) = mpsc::channel();
    let mut held = Some(held);
    let parent = supervisor.supervise(world.worker("parent"), move |hb| {
        let held = held.take();
        async move {
            let children = Supervisor::linked_to(&hb);
            children.spawn(child("first"), until_asked).unwrap();
            children.spawn(child("last"), hangs(held.unwrap())).unwrap();
        }
    });
    let mut parent = Box::pin(parent.unwrap());
    assert!(poll_once(&mut parent).is_pending());
    assert!(
        !is_over(&world.registry, "first"),
        "only the other one has been asked to stop"
    );
    drop(parent);
    eventually("the child ends", || is_over(&world.registry, "first"));
    drop(let_go);
    eventually("the child ends", || is_over(&world.registry, "last"));
}

#[test]
fn the_children_of_a_plain_future_are_asked_to_stop_when_it_is_done() {
    let world = World::new();
    for end in ENDS {
        let hb = world.worker("parent").start().unwrap();
        let result = block_on(hb.supervise(async {
            let children = Supervisor::linked_to(&hb);
            children.spawn(child("a"), until_asked).unwrap();
            children.spawn(child("b"), until_asked).unwrap();
            end()
        }));
        assert!(hb.health().state().is_terminal());
        drop(result);
        for id in ["a", "b"] {
            eventually("the child ends", || is_over(&world.registry, id));
        }
    }
}

#[test]
fn the_children_of_a_handle_are_asked_to_stop_when_it_is_dropped() {
    let world = World::new();
    let hb = world.worker("parent").start().unwrap();
    let children = Supervisor::linked_to(&hb);
    let child = children.spawn(child("c"), until_asked).unwrap();
    hb.beat();
    assert!(child.exit().is_none());
    drop(hb);
    assert!(child.join().is_completed());
    let late = children.spawn(WorkerHeartbeat::builder("late"), until_asked);
    assert!(matches!(late, Err(Error::ShuttingDown)));
}

#[test]
fn a_life_that_is_over_gets_no_children() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.stop();
    let children = Supervisor::linked_to(&hb);
    let late = children.spawn(child("late"), until_asked);
    assert!(matches!(late, Err(Error::ShuttingDown)));

    // The handle of an earlier life belongs to that life.
    let supervisor = Supervisor::new(&world.registry).restart(restarts());
    let (send, left) = mpsc::channel();
    let parent = world.worker("w").id("parent");
    let mut parent = Box::pin(
        supervisor
            .supervise(parent, move |hb| {
                let first = hb.snapshot().incarnation == 1;
                let _ = send.send(Arc::clone(&hb));
                async move {
                    if first {
                        return Err("the first life ends");
                    }
                    pending::<()>().await;
                    Ok(())
                }
            })
            .unwrap(),
    );
    assert!(poll_once(&mut parent).is_pending());
    world.seconds(1);
    assert!(poll_once(&mut parent).is_pending());
    let [first, second] = [left.recv().unwrap(), left.recv().unwrap()];
    let late = Supervisor::linked_to(&first).spawn(child("late"), until_asked);
    assert!(matches!(late, Err(Error::ShuttingDown)));
    let now = Supervisor::linked_to(&second).spawn(child("now"), until_asked);
    let now = now.unwrap();
    // Dropping the handle of the earlier life does not end the children of the next one.
    drop(first);
    assert!(now.exit().is_none());
    assert!(!now.probe().health().state().is_terminal());
    drop((parent, second));
    assert!(now.join().is_completed());
}

// --- children without a link ------------------------------------------------------------------

#[test]
fn without_a_link_children_outlive_the_life() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry).restart(restarts().max(1));
    let children = Supervisor::new(&world.registry);
    let of_parent = children.clone();
    let parent = supervisor
        .spawn(world.worker("parent"), move |_| {
            of_parent.spawn(child("c"), until_asked)?;
            Ok(())
        })
        .unwrap();
    eventually("it is given up", || {
        world.seconds(1);
        parent.exit().is_some()
    });
    let death = parent.probe().health().to_string();
    assert!(death.contains("belongs to a living worker"), "{death}");
    assert!(supervisor.shutdown(PATIENCE).is_clean());
    assert!(!is_over(&world.registry, "c"));
    assert!(children.shutdown(PATIENCE).is_clean());
}
