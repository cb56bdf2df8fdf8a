//! What is known of a worker that is a future.

use std::any::type_name_of_val;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use crate::support::{SECOND, World};
use worker_heartbeat::{Health, Restart, Supervisor};

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_future_has_its_type_its_place_and_its_polls() {
    let world = World::new();
    let hb = world.worker("w").stall_after(5 * SECOND).start().unwrap();
    assert_eq!(hb.snapshot().future, None, "no future yet");
    let work = pending::<()>();
    let type_name = type_name_of_val(&work);
    let mut supervised = pin!(hb.supervise(work));
    let line = line!() - 1;
    let future = hb.snapshot().future.unwrap();
    assert_eq!(future.type_name, type_name);
    let location = future.location.clone().unwrap();
    assert_eq!((&*location.file, location.line), (file!(), line));
    assert_eq!((future.polls, future.last_poll_age), (0, None));
    assert_eq!(future.to_string(), "never polled");

    world.seconds(2);
    thread::scope(|scope| {
        let polling = thread::Builder::new().name("poller".to_owned());
        let poll_it = || {
            assert!(poll(supervised.as_mut()).is_pending());
            assert!(poll(supervised.as_mut()).is_pending());
            hb.snapshot().future.unwrap()
        };
        let future = polling
            .spawn_scoped(scope, poll_it)
            .unwrap()
            .join()
            .unwrap();
        let thread = future.last_poll_thread.unwrap();
        assert!(thread.starts_with("poller"), "{thread}");
        assert_eq!((future.polls, future.is_polled_now), (2, false));
    });
    world.seconds(12);
    let Health::Stalled(stalled) = hb.health() else {
        panic!("{}", hb.health());
    };
    let future = stalled.future.clone().unwrap();
    assert_eq!(future.last_poll_age, Some(12 * SECOND));
    let said = stalled.to_string();
    assert!(said.contains(", last polled 12 s ago"), "{said}");
    assert!(said.contains(", 2 polls"), "{said}");
}

#[test]
fn a_poll_that_does_not_return_is_told() {
    let world = World::new();
    let hb = world.worker("w").stall_after(5 * SECOND).start().unwrap();
    let probe = hb.probe();
    let supervised = hb.supervise(poll_fn(|_| {
        world.seconds(6);
        Poll::Ready(probe.health().to_string())
    }));
    let Poll::Ready(said) = poll(pin!(supervised)) else {
        panic!("it is ready");
    };
    let said = said.unwrap();
    assert!(
        said.contains(", in a poll that began 6 s ago on "),
        "{said}"
    );
    let future = hb.snapshot().future.unwrap();
    assert_eq!((future.polls, future.last_poll_age), (1, None));
    assert!(!future.is_polled_now, "it is over");
}

#[test]
fn polls_that_are_no_progress_are_not_older_than_they_are() {
    let world = World::new();
    let hb = world.worker("w").beats_only().start().unwrap();
    let mut supervised = pin!(hb.supervise(async {
        hb.beat();
        pending::<()>().await;
    }));
    assert!(poll(supervised.as_mut()).is_pending());
    world.seconds(20);
    assert!(poll(supervised.as_mut()).is_pending());
    for seconds in 1..20 {
        world.seconds(1);
        let age = hb.snapshot().future.unwrap().last_poll_age.unwrap();
        assert!(age <= seconds * SECOND, "{age:?} after {seconds} s");
        // The resolution is one second.
        assert!(
            age + 2 * SECOND >= seconds * SECOND,
            "{age:?} after {seconds} s"
        );
    }
}

#[test]
fn a_future_that_is_polled_takes_the_place_of_one_that_is_not() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let never = hb.supervise(pending::<u8>());
    let mut polled = pin!(hb.supervise(pending::<u16>()));
    let type_name = || hb.snapshot().future.unwrap().type_name;
    assert!(type_name().ends_with("<u8>"), "{}", type_name());
    assert!(poll(polled.as_mut()).is_pending());
    assert!(type_name().ends_with("<u16>"), "{}", type_name());
    drop(never);
}

#[test]
fn each_life_counts_its_own_polls_of_the_future_that_the_application_made() {
    let world = World::new();
    let restart = Restart::on_failure()
        .max(1)
        .backoff(SECOND, SECOND)
        .jitter(0.0);
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let mut lives = 0;
    let work = supervisor.supervise(world.worker("w"), move |_| {
        lives += 1;
        let fails = lives == 1;
        poll_fn(move |_| match fails {
            true => Poll::Ready(Err("no disk")),
            false => Poll::Pending::<Result<(), _>>,
        })
    });
    let mut work = pin!(work.unwrap());
    let future = || work.probe().snapshot().future;
    assert_eq!(future(), None, "it is not made before its first poll");
    let probe = work.probe();
    assert!(poll(work.as_mut()).is_pending());
    let first = probe.snapshot().future.unwrap();
    assert_eq!(first.polls, 1);
    assert!(first.type_name.contains("PollFn<"), "{}", first.type_name);
    world.seconds(2);
    for polls in 1..4 {
        assert!(poll(work.as_mut()).is_pending());
        assert_eq!(probe.snapshot().future.unwrap().polls, polls);
    }
}

#[test]
fn a_type_with_a_long_name_is_cut() {
    macro_rules! deep {
        ($future:expr;) => { $future };
        ($future:expr; $first:tt $($more:tt)*) => { deep!(Box::pin($future); $($more)*) };
    }
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let work = deep!(pending::<()>(); 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20);
    assert!(type_name_of_val(&work).len() > 400);
    drop(hb.supervise(work));
    let name = hb.snapshot().future.unwrap().type_name;
    assert!(name.len() <= 200 && name.ends_with('…'), "{name}");
}
