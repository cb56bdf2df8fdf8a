//! Leases that are lost: who hears of it, when, and why.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::attachment::Fleet;
use crate::support::executor::{block_on, poll_once};
use crate::support::store::TestStore;
use crate::support::{PATIENCE, SECOND, World};
use worker_heartbeat::fleet::{Claim, ClaimAnswer, LeaseKey, Registration, Sweep};
use worker_heartbeat::{
    DeathCause, Ending, EventKind, FleetConfig, HeartbeatStore, Lease, LeaseLoss, MemoryStore,
    OnOffline, Registry, StopCause, WorkerHeartbeat,
};

const MILLI: Duration = Duration::from_millis(1);

/// A waker that counts.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counter {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Polls with a waker that counts.
fn poll_counted<F: Future + Unpin>(future: &mut F, task: &Arc<Counter>) -> Poll<F::Output> {
    let waker = Waker::from(Arc::clone(task));
    pin!(future).poll(&mut Context::from_waker(&waker))
}

fn worker(fleet: &Fleet) -> WorkerHeartbeat {
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    hb
}

fn claim(hb: &WorkerHeartbeat, ttl: Duration) -> Lease {
    hb.claim("run-1", ttl).unwrap().expect("the run is free")
}

/// The key of the lease in the store.
fn key(fleet: &Fleet, lease: &Lease) -> LeaseKey {
    let fence = u64::try_from(lease.fence()).unwrap();
    LeaseKey::new(fleet.row("a").key, lease.run_id(), fence)
}

/// The losses that events report.
fn reported(events: &worker_heartbeat::Subscription) -> Vec<String> {
    let kinds = events.try_iter().filter_map(|event| match event.kind {
        EventKind::LeaseLost { run_id, loss, .. } => Some(format!("{run_id}: {}", loss.name())),
        _ => None,
    });
    kinds.collect()
}

#[test]
fn who_waits_is_woken_at_the_moment_when_the_lease_expires_and_not_before() {
    let fleet = Fleet::new();
    let events = fleet.world.registry.subscribe();
    let hb = worker(&fleet);
    let lease = claim(&hb, 30 * SECOND);
    let tasks: Vec<_> = (0..3).map(|_| Arc::new(Counter::default())).collect();
    let mut waits: Vec<_> = tasks.iter().map(|_| lease.lost()).collect();
    for (wait, task) in waits.iter_mut().zip(&tasks) {
        assert!(poll_counted(wait, task).is_pending());
    }
    let receivers = [lease.lost_receiver(), lease.lost_receiver()];
    fleet.test_store.fail("no route to host");
    fleet.world.time.advance(lease.remaining() - MILLI);
    assert!(tasks.iter().all(|task| task.count() == 0));
    assert!(receivers.iter().all(|receiver| receiver.is_empty()));
    fleet.world.time.advance(MILLI);
    assert!(tasks.iter().all(|task| task.count() == 1), "each once");
    for receiver in &receivers {
        let text = receiver.try_recv().unwrap().to_string();
        assert!(text.starts_with("not renewed for 28"), "{text}");
        assert!(text.contains("; the store fails: ") && text.ends_with("no route to host"));
    }
    let are_closed = receivers.iter().all(|receiver| receiver.recv().is_err());
    assert!(are_closed, "and they are closed then");
    for mut wait in waits {
        let loss = poll_once(&mut wait);
        assert!(matches!(loss, Poll::Ready(LeaseLoss::Expired { .. })));
    }
    assert!(!lease.is_held());
    assert_eq!(reported(&events), ["run-1: expired"]);
}

#[test]
fn a_store_that_fails_for_a_while_is_no_loss() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    let lease = claim(&hb, 30 * SECOND);
    let task = Arc::new(Counter::default());
    let mut lost = lease.lost();
    assert!(poll_counted(&mut lost, &task).is_pending());
    let receiver = lease.lost_receiver();
    for _ in 0..20 {
        // Up to a third of the time after a renewal, and up to 8 s before the next one.
        fleet.test_store.fail("no route to host");
        fleet.world.seconds(8);
        fleet.test_store.recover();
        fleet.world.seconds(10);
    }
    assert!(fleet.attachment.status().failures > 20);
    assert_eq!(task.count(), 0);
    assert!(receiver.is_empty() && lease.is_held() && lease.loss().is_none());
}

#[test]
fn a_lease_that_expired_stays_lost_and_its_run_is_free() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    // Lost by the silence of its worker, long before its own time.
    let lease = claim(&hb, 3_600 * SECOND);
    let rival = fleet.world.worker("poller").id("b").start().unwrap();
    rival.beat();
    let receiver = lease.lost_receiver();
    fleet.test_store.fail("no route to host");
    while receiver.is_empty() {
        fleet.world.seconds(1);
    }
    let loss = receiver.recv().unwrap();
    assert!(matches!(loss, LeaseLoss::Unheard { .. }), "{loss}");
    fleet.test_store.recover();
    fleet.world.seconds(60);
    fleet.flush();
    assert!(!lease.is_held(), "the store has accepted heartbeats since");
    let again = rival.claim("run-1", 30 * SECOND).unwrap();
    assert!(again.is_some_and(|again| again.fence() > lease.fence()));
    assert!(!lease.release().unwrap());
}

#[test]
fn a_lease_that_the_store_revokes_is_lost_at_the_next_renewal() {
    let fleet = Fleet::new();
    let events = fleet.world.registry.subscribe();
    let hb = worker(&fleet);
    let lease = claim(&hb, 30 * SECOND);
    let receiver = lease.lost_receiver();
    fleet.flush();
    assert_eq!(fleet.store.release(&[key(&fleet, &lease)]).unwrap(), [true]);
    fleet.world.seconds(11);
    let loss = receiver.try_recv().unwrap();
    assert!(matches!(loss, LeaseLoss::Revoked), "{loss}");
    assert_eq!(reported(&events), ["run-1: revoked"]);
}

#[test]
fn a_lease_is_lost_when_the_store_refuses_its_worker() {
    for (name, on_offline) in [
        ("superseded", OnOffline::RegisterAnew),
        ("marked_offline", OnOffline::RegisterAnew),
        ("marked_offline", OnOffline::Fence),
    ] {
        let fleet = Fleet::with(FleetConfig::new().on_offline(on_offline));
        let events = fleet.world.registry.subscribe();
        let hb = worker(&fleet);
        let lease = claim(&hb, 3_600 * SECOND);
        let receiver = lease.lost_receiver();
        fleet.flush();
        if name == "superseded" {
            let mut other = Registration::new("poller", "a");
            other.explicit = true;
            fleet.store.register(&[other]).unwrap();
        } else {
            let mut sweep = Sweep::default();
            sweep.killed.push(fleet.row("a").key);
            fleet.store.sweep(&sweep).unwrap();
        }
        fleet.world.seconds(31);
        let loss = receiver.try_recv().unwrap();
        assert_eq!(loss.name(), name, "{loss}");
        assert_eq!(reported(&events), [format!("run-1: {name}")]);
    }
}

#[test]
fn the_end_of_a_worker_is_heard_at_once_whatever_the_store_does() {
    let fleet = Fleet::new();
    let end = |end: &dyn Fn(WorkerHeartbeat)| {
        let hb = worker(&fleet);
        let lease = claim(&hb, 60 * SECOND);
        let task = Arc::new(Counter::default());
        let mut lost = lease.lost();
        assert!(poll_counted(&mut lost, &task).is_pending());
        let held = fleet.test_store.hold();
        end(hb);
        assert_eq!(task.count(), 1, "before the call returned");
        let Poll::Ready(LeaseLoss::WorkerEnded { ending, .. }) = poll_once(&mut lost) else {
            panic!("not lost");
        };
        drop(held);
        fleet.flush();
        ending.unwrap()
    };
    let stopped = end(&|hb| hb.stop());
    assert!(matches!(stopped, Ending::Stopped(StopCause::Stop)));
    let dropped = end(&drop);
    assert!(matches!(dropped, Ending::Stopped(StopCause::Drop)));
    let failed = end(&|hb| hb.fail("disk full"));
    let Ending::Dead(death) = failed else {
        panic!("{failed:?}");
    };
    assert!(matches!(&death.cause, DeathCause::Failed { error } if error == "disk full"));
}

#[test]
fn a_lease_that_is_released_or_dropped_ends_its_waits() {
    let fleet = Fleet::new();
    let events = fleet.world.registry.subscribe();
    let hb = worker(&fleet);
    let lease = claim(&hb, 60 * SECOND);
    let (mut lost, receiver) = (lease.lost(), lease.lost_receiver());
    assert!(poll_once(&mut lost).is_pending());
    assert!(lease.release().unwrap());
    assert!(matches!(receiver.recv(), Ok(LeaseLoss::Released)));
    assert!(matches!(block_on(lost), LeaseLoss::Released));

    let lease = claim(&hb, 60 * SECOND);
    let (lost, receiver) = (lease.lost(), lease.lost_receiver());
    drop(lease);
    assert!(matches!(receiver.recv(), Ok(LeaseLoss::Released)));
    assert!(matches!(block_on(lost), LeaseLoss::Released));
    assert_eq!(reported(&events), [""; 0], "it is no loss");
}

#[test]
fn an_attachment_that_ends_takes_its_leases_with_it_and_frees_their_runs() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    let lease = claim(&hb, 3_600 * SECOND);
    let receiver = lease.lost_receiver();
    let rival = fleet
        .store
        .register(&[Registration::new("poller", "b")])
        .unwrap();
    fleet.attachment.detach();
    let loss = receiver.try_recv().unwrap();
    assert!(matches!(loss, LeaseLoss::Detached), "{loss}");
    assert!(!lease.is_held());
    let claim = Claim::new(rival[0].clone(), "run-1", 30 * SECOND);
    let answer = fleet.store.claim(&claim).unwrap();
    assert!(matches!(answer, ClaimAnswer::Granted(_)));
}

#[test]
fn a_registry_that_is_dropped_leaves_no_wait_behind() {
    let world = World::new();
    let registry = Registry::with_clock(world.time.clock());
    registry
        .attach(
            MemoryStore::with_clock(world.time.clock()),
            FleetConfig::new(),
        )
        .unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .registry(&registry)
        .start()
        .unwrap();
    let lease = claim(&hb, 60 * SECOND);
    let receiver = lease.lost_receiver();
    drop((hb, registry));
    assert!(receiver.recv_timeout(PATIENCE).is_ok());
    assert!(lease.loss().is_some());
}

#[test]
fn after_a_suspension_the_first_who_looks_tells_all_others() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    let lease = claim(&hb, 30 * SECOND);
    let receiver = lease.lost_receiver();
    fleet.world.time.suspend(31 * SECOND);
    assert!(receiver.is_empty(), "nobody has looked");
    assert!(!lease.is_held());
    let loss = receiver.try_recv().unwrap();
    assert_eq!(loss.to_string(), "not renewed for 31 s");
    fleet.flush();

    // And if nobody looks, the pacemaker does at its next tick.
    let lease = claim(&hb, 30 * SECOND);
    let task = Arc::new(Counter::default());
    let mut lost = lease.lost();
    assert!(poll_counted(&mut lost, &task).is_pending());
    fleet.world.time.suspend(31 * SECOND);
    fleet.world.time.advance(fleet.world.registry.resolution());
    assert_eq!(task.count(), 1);
}

#[test]
fn a_future_runs_until_it_is_done_or_the_lease_is_lost() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    let lease = claim(&hb, 30 * SECOND);
    assert_eq!(block_on(lease.run_until_lost(async { 42 })).unwrap(), 42);

    let job = Arc::new(());
    let own = Arc::clone(&job);
    let run = lease.run_until_lost(async move {
        pending::<()>().await;
        drop(own);
    });
    let mut run = Box::pin(run);
    assert!(poll_once(&mut run).is_pending());
    fleet.test_store.fail("no route to host");
    fleet.world.seconds(30);
    let loss = block_on(&mut run).unwrap_err();
    assert!(matches!(loss, LeaseLoss::Expired { .. }), "{loss}");
    assert_eq!(Arc::strong_count(&job), 1, "dropped with all that it owned");

    let mut began = false;
    let late = lease.run_until_lost(async { began = true });
    assert!(block_on(late).is_err());
    assert!(!began, "it is lost before it begins");
}

#[test]
fn waits_that_are_dropped_leave_nothing_behind() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    let lease = claim(&hb, 30 * SECOND);
    let task = Arc::new(Counter::default());
    for _ in 0..100_000 {
        assert!(poll_counted(&mut lease.lost(), &task).is_pending());
        drop(lease.lost_receiver());
    }
    assert_eq!(Arc::strong_count(&task), 1, "no waker is kept");
    let kept = lease.lost_receiver();
    hb.stop();
    assert_eq!(task.count(), 0);
    assert!(kept.recv().is_ok());
}

#[test]
fn a_claim_that_is_granted_as_its_worker_ends_is_lost_and_released() {
    let store = MemoryStore::new();
    let slow = TestStore::new(store.clone());
    let registry = Registry::new();
    let attachment = registry.attach(slow.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .id("a")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    let held = slow.hold();
    let calls = slow.calls();
    let mut claiming = hb.claim_async("run-1", 60 * SECOND);
    assert!(poll_once(&mut claiming).is_pending());
    crate::support::eventually("the claim is with the store", || slow.calls() > calls);
    hb.stop();
    drop(held);
    match block_on(claiming) {
        Ok(Some(lease)) => assert!(matches!(lease.loss(), Some(LeaseLoss::WorkerEnded { .. }))),
        // Its end came to the store first.
        other => assert!(other.is_err(), "{other:?}"),
    }
    let rival = store.register(&[Registration::new("poller", "b")]).unwrap();
    let claim = Claim::new(rival[0].clone(), "run-1", 30 * SECOND);
    crate::support::eventually("the run is free", || {
        matches!(store.claim(&claim).unwrap(), ClaimAnswer::Granted(_))
    });
}

#[test]
fn a_store_that_hangs_holds_up_no_loss() {
    let slow = TestStore::default();
    let registry = Registry::new();
    let attachment = registry.attach(slow.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    let lease = claim(&hb, Duration::from_millis(300));
    let _held = slow.hold();
    // In real time, because a mock clock waits for the thread that calls the store.
    let loss = lease.lost_receiver().recv_timeout(PATIENCE).unwrap();
    assert!(matches!(loss, LeaseLoss::Expired { .. }), "{loss}");
}

#[test]
fn a_worker_that_hangs_loses_its_lease_once_its_heartbeat_is_stale() {
    let fleet = Fleet::new();
    let builder = fleet.world.worker("poller").id("a");
    let hb = builder
        .stall_after(5 * SECOND)
        .stale_after(30 * SECOND)
        .interval(5 * SECOND)
        .start()
        .unwrap();
    let _task = hb.begin_task("run-1", "reading");
    let lease = claim(&hb, 3_600 * SECOND);
    let receiver = lease.lost_receiver();
    let seconds = (1..100).find(|_| {
        fleet.world.seconds(1);
        !receiver.is_empty()
    });
    let loss = receiver.recv().unwrap();
    assert!(matches!(loss, LeaseLoss::Unheard { .. }), "{loss}");
    // A sweep would release it at 35 s.
    assert!((30..35).contains(&seconds.unwrap()), "{seconds:?} s");
}

#[test]
fn a_run_that_was_lost_can_be_claimed_again_and_is_renewed_again() {
    let fleet = Fleet::new();
    let hb = worker(&fleet);
    let first = claim(&hb, 30 * SECOND);
    fleet.test_store.fail("no route to host");
    fleet.world.seconds(31);
    fleet.test_store.recover();
    fleet.world.seconds(11);
    fleet.flush();
    // While the first one still exists.
    let second = claim(&hb, 30 * SECOND);
    fleet.world.seconds(300);
    assert!(second.is_held() && !first.is_held());
    assert!(
        first.lost_receiver().try_recv().is_ok(),
        "who comes late hears it too"
    );
    drop(first);
    fleet.flush();
    assert!(second.is_held());
    let rival = fleet.world.worker("poller").id("b").start().unwrap();
    assert!(rival.claim("run-1", 30 * SECOND).unwrap().is_none());
}

#[test]
fn a_renewal_on_its_way_does_not_keep_a_lease_that_is_released() {
    let store = MemoryStore::new();
    let slow = TestStore::new(store.clone());
    let registry = Registry::new();
    let attachment = registry.attach(slow.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    let rival = store.register(&[Registration::new("poller", "b")]).unwrap();
    let rival = Claim::new(rival[0].clone(), "run-1", 30 * SECOND);
    for _ in 0..10 {
        assert!(attachment.flush(PATIENCE));
        let lease = claim(&hb, Duration::from_secs(1));
        let held = slow.hold();
        let calls = slow.calls();
        crate::support::eventually("the renewal is with the store", || slow.calls() > calls);
        std::thread::scope(|scope| {
            let releasing = scope.spawn(|| lease.release());
            crate::support::eventually("so is the release", || slow.calls() > calls + 1);
            drop(held);
            assert!(releasing.join().unwrap().unwrap());
        });
        let ClaimAnswer::Granted(fence) = store.claim(&rival).unwrap() else {
            panic!("the renewal kept it");
        };
        let key = LeaseKey::new(rival.worker.clone(), "run-1", fence);
        assert!(attachment.flush(PATIENCE));
        assert_eq!(store.release(&[key]).unwrap(), [true], "nobody else has it");
    }
}
