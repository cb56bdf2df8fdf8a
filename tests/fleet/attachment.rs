//! A registry and its store: what is uploaded, when, and what happens when the store fails or
//! refuses.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::support::executor::{block_on, poll_once};
use crate::support::store::{Mode, REFUSED, TestStore};
use crate::support::{PATIENCE, SECOND, World, eventually, names, wait_for};
use parking_lot::Mutex;
use worker_heartbeat::fleet::{Beat, Claim, ClaimAnswer, Registration, Sweep, WorkerFilter};
use worker_heartbeat::{
    Activity, Attachment, BoxError, DeathCause, Error, EventKind, FleetConfig, Health,
    HeartbeatStore, MemoryStore, OnOffline, Registry, Restart, State, StoredWorker, Supervisor,
    SweepReport, Sweeper, WorkerHeartbeat,
};

/// A world whose registry is attached to a store in memory, on the same clock.
pub(crate) struct Fleet {
    pub(crate) world: World,
    pub(crate) store: MemoryStore,
    pub(crate) test_store: TestStore,
    pub(crate) attachment: Attachment,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::with(FleetConfig::new())
    }

    pub(crate) fn with(config: FleetConfig) -> Self {
        let world = World::new();
        let store = MemoryStore::with_clock(world.time.clock());
        let test_store = TestStore::new(store.clone());
        let attachment = world.registry.attach(test_store.clone(), config).unwrap();
        Self {
            world,
            store,
            test_store,
            attachment,
        }
    }

    pub(crate) fn flush(&self) {
        assert!(self.attachment.flush(PATIENCE));
    }

    fn rows(&self) -> Vec<StoredWorker> {
        self.store.list(&WorkerFilter::default()).unwrap()
    }

    pub(crate) fn row(&self, id: &str) -> StoredWorker {
        let mut rows = self.rows().into_iter();
        rows.find(|row| row.key.id == id).expect(id)
    }

    fn state(&self, id: &str) -> State {
        self.row(id).health().state()
    }

    fn sweep(&self) -> SweepReport {
        self.store.sweep(&Sweep::default()).unwrap()
    }
}

#[test]
fn a_start_a_task_a_stop_and_a_death_are_uploaded_at_once() {
    let fleet = Fleet::new();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    fleet.flush();
    assert_eq!(fleet.state("a"), State::Starting);
    hb.beat();
    hb.update_task("run-1", "Researching", Activity::Processing);
    // New tasks are uploaded at most every 100 ms.
    fleet.world.millis(200);
    let row = fleet.row("a");
    assert_eq!(row.health().state(), State::Processing);
    assert_eq!(row.status.run_id.as_deref(), Some("run-1"));
    assert_eq!(row.status.task.as_deref(), Some("Researching"));
    hb.update_task("run-2", "Writing", Activity::Processing);
    fleet.world.millis(200);
    assert_eq!(fleet.row("a").status.run_id.as_deref(), Some("run-2"));
    hb.fail("no space left on device");
    fleet.flush();
    let health = fleet.row("a").health().to_string();
    assert!(
        health.starts_with("dead: failed: no space left on device"),
        "{health}"
    );
    let other = fleet.world.worker("poller").id("b").start().unwrap();
    other.beat();
    other.stop();
    fleet.flush();
    assert_eq!(fleet.state("b"), State::Stopped);
}

#[test]
fn a_panic_reaches_the_store_with_its_message_and_its_location() {
    let fleet = Fleet::new();
    let supervisor = Supervisor::new(&fleet.world.registry).restart(Restart::never());
    let builder = WorkerHeartbeat::builder("poller").id("a");
    let worker = supervisor.spawn(builder, |_: &WorkerHeartbeat| -> Result<(), BoxError> {
        panic!("no module named server")
    });
    worker.unwrap().join();
    eventually("the store has its end", || fleet.row("a").ending.is_some());
    let Health::Dead { death, .. } = fleet.row("a").health() else {
        panic!("{}", fleet.row("a").health());
    };
    let DeathCause::Panicked {
        message, location, ..
    } = &death.cause
    else {
        panic!("{}", death.cause);
    };
    assert_eq!(message, "no module named server");
    let location = location.as_deref().unwrap_or_default();
    assert!(location.contains("attachment.rs:"), "{location}");
}

#[test]
fn the_end_of_the_last_worker_waits_for_the_upload() {
    let fleet = Fleet::new();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    fleet.flush();
    drop(hb);
    assert_eq!(fleet.state("a"), State::Stopped);
}

#[test]
fn heartbeats_come_in_one_batch_each_interval_and_hardly_earlier() {
    let fleet = Fleet::new();
    let start = |n: usize| {
        let builder = fleet.world.worker("poller").interval(30 * SECOND);
        builder.id(format!("w{n:02}")).start().unwrap()
    };
    let workers: Vec<_> = (0..50).map(start).collect();
    workers.iter().for_each(|hb| hb.beat());
    // A tick of the pacemaker sees that they started, and each is uploaded as active.
    fleet.world.seconds(2);
    fleet.flush();
    fleet.test_store.take_beats();
    for _ in 0..600 {
        workers.iter().for_each(|hb| hb.beat());
        fleet.world.seconds(1);
    }
    let batches = fleet.test_store.take_beats();
    assert!(
        (20..=23).contains(&batches.len()),
        "{} batches in 20 intervals",
        batches.len()
    );
    assert!(batches.iter().all(|size| *size == 50), "{batches:?}");
}

#[test]
fn a_silent_worker_becomes_stale_in_the_store_without_an_upload() {
    let fleet = Fleet::new();
    let hb = fleet
        .world
        .worker("poller")
        .id("a")
        .beats_only()
        .start()
        .unwrap();
    hb.beat();
    fleet.world.seconds(60);
    assert_eq!(fleet.state("a"), State::Active);
    // Its process keeps uploading; the heartbeat does not move.
    fleet.world.seconds(40);
    assert_eq!(fleet.state("a"), State::Stale);
    assert_eq!(fleet.sweep().marked_offline, ["a"]);
}

#[test]
fn a_failing_store_is_counted_reported_once_and_tried_again() {
    let fleet = Fleet::new();
    let events = fleet.world.registry.subscribe();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    fleet.flush();
    fleet.test_store.fail("on purpose");
    for _ in 0..120 {
        hb.beat();
        fleet.world.seconds(1);
    }
    assert!(hb.is_recent(), "the worker is not affected");
    let status = hb.snapshot().store.unwrap();
    assert!(status.failures_in_a_row > 5, "{status:?}");
    assert_eq!(
        status.last_error.as_deref(),
        Some("store: cannot be reached: on purpose")
    );
    let calls = fleet.test_store.calls();
    fleet.world.seconds(60);
    assert!(
        fleet.test_store.calls() - calls <= 10,
        "the store is called too often"
    );
    fleet.test_store.recover();
    fleet.world.seconds(15);
    assert_eq!(fleet.state("a"), State::Active);
    let status = fleet.attachment.status();
    assert_eq!(status.failures_in_a_row, 0);
    assert_eq!(status.registered, 1);
    let reported: Vec<_> = events
        .try_iter()
        .filter(|event| event.worker.is_none())
        .map(|event| event.to_string())
        .collect();
    assert_eq!(
        reported,
        [
            "store failing: store: cannot be reached: on purpose".to_owned(),
            format!("store restored after {} failures", status.failures)
        ]
    );
}

#[test]
fn a_run_is_claimed_without_blocking_on_any_executor() {
    let store = MemoryStore::new();
    let registry = Registry::new();
    let _attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("w").registry(&registry).start();
    let hb = hb.unwrap();
    let lease = block_on(hb.claim_async("run-1", 60 * SECOND)).unwrap();
    let lease = lease.expect("no other worker holds it");
    assert!(lease.is_held() && lease.fence() > 0);
    let again = block_on(hb.claim_async("run-1", 60 * SECOND)).unwrap();
    assert!(again.is_none(), "the worker holds it already");
    for refused in [
        block_on(hb.claim_async("", 60 * SECOND)),
        block_on(hb.claim_async("run-2", Duration::ZERO)),
    ] {
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    drop(hb.claim_async("run-3", 60 * SECOND));
    // Asked for, and dropped before the answer: what is granted is given back.
    for n in 0..20 {
        let mut claiming = hb.claim_async("run-3", 60 * SECOND);
        if let Poll::Ready(answer) = poll_once(&mut claiming) {
            assert!(answer.unwrap().is_some(), "turn {n}");
        }
        drop(claiming);
        eventually("it can be claimed again", || {
            block_on(hb.claim_async("run-3", 60 * SECOND))
                .unwrap()
                .is_some_and(|lease| lease.release().unwrap())
        });
    }
    hb.stop();
    let over = block_on(hb.claim_async("run-4", 60 * SECOND));
    assert!(matches!(over, Err(Error::Refused { .. })), "{over:?}");
    let alone = WorkerHeartbeat::builder("w").registry(&Registry::new());
    let alone = alone.start().unwrap();
    let unattached = block_on(alone.claim_async("run-5", 60 * SECOND));
    assert!(
        matches!(unattached, Err(Error::NotAttached { .. })),
        "{unattached:?}"
    );
}

#[test]
fn claims_that_were_given_up_leave_nothing_behind_while_the_store_hangs() {
    const CLAIMS: usize = 300;
    struct Woken;
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {}
    }
    let store = TestStore::default();
    let registry = Registry::new();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("w").registry(&registry).start();
    let hb = hb.unwrap();
    assert!(attachment.flush(PATIENCE));
    let blocked = store.hold();
    let before = store.calls();
    let woken = Arc::new(Woken);
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut claims: Vec<_> = (0..CLAIMS)
        .map(|n| hb.claim_async(&format!("run-{n}"), 60 * SECOND))
        .collect();
    for claim in &mut claims {
        assert!(Pin::new(claim).poll(&mut context).is_pending());
    }
    drop(claims);
    drop(waker);
    assert_eq!(Arc::strong_count(&woken), 1, "a waker keeps its task");
    drop(blocked);
    for n in [0, CLAIMS - 1] {
        eventually("the run is free", || {
            let lease = block_on(hb.claim_async(&format!("run-{n}"), 60 * SECOND));
            lease.unwrap().is_some()
        });
    }
    let calls = store.calls() - before;
    assert!(calls < CLAIMS, "{calls} calls: those that waited were made");
}

#[test]
fn a_worker_that_starts_while_the_store_is_down_is_registered_later() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let test_store = TestStore::new(store.clone());
    test_store.fail("on purpose");
    let attachment = world
        .registry
        .attach(test_store.clone(), FleetConfig::new())
        .unwrap();
    let hb = world.worker("poller").id("a").start().unwrap();
    hb.beat();
    world.seconds(5);
    assert!(
        !attachment.flush(PATIENCE),
        "a flush does not wait for a store that fails"
    );
    assert!(matches!(
        hb.claim("run", SECOND),
        Err(Error::Store {
            operation: "claim",
            ..
        })
    ));
    test_store.recover();
    world.seconds(15);
    assert_eq!(store.summary().unwrap().total_active, 1);
}

#[test]
fn a_store_that_panics_or_blocks_harms_no_worker() {
    let fleet = Fleet::new();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    fleet.flush();
    fleet.test_store.set(Mode::Panicking);
    hb.update_task("run", "", Activity::Processing);
    fleet.world.millis(200);
    assert!(fleet.attachment.status().failures_in_a_row > 0);
    fleet.test_store.recover();
    fleet.world.seconds(15);
    assert_eq!(fleet.attachment.status().failures_in_a_row, 0);
    // While the store is blocked, only the end of the last worker waits, and only for the farewell.
    let blocked = fleet.test_store.hold();
    hb.stop();
    assert_eq!(hb.health().state(), State::Stopped);
    drop(hb);
    drop(blocked);
    fleet.flush();
    assert_eq!(fleet.state("a"), State::Stopped);
}

#[test]
fn a_restart_during_the_upload_of_the_end_is_uploaded_too() {
    let store = MemoryStore::new();
    let test_store = TestStore::new(store.clone());
    let registry = worker_heartbeat::Registry::new();
    let attachment = registry
        .attach(test_store.clone(), FleetConfig::new())
        .unwrap();
    let soon = Duration::from_millis(1);
    let supervisor = Supervisor::new(&registry).restart(Restart::always().backoff(soon, soon));
    let (send, receive) = crossbeam_channel::unbounded::<()>();
    let builder = worker_heartbeat::WorkerHeartbeat::builder("poller").id("a");
    let worker = supervisor
        .spawn(builder, move |hb| {
            hb.beat();
            match receive.recv() {
                Ok(()) => Err("no luck".into()),
                Err(_) => Ok(()),
            }
        })
        .unwrap();
    eventually("the worker has started", || worker.probe().is_recent());
    assert!(attachment.flush(PATIENCE));
    let calls = test_store.calls();
    // The store is slow to record the end; meanwhile the next life begins.
    let blocked = test_store.hold();
    send.send(()).unwrap();
    eventually("the end is being uploaded", || test_store.calls() > calls);
    eventually("the next life has started", || {
        worker.probe().snapshot().incarnation == 2 && worker.probe().is_recent()
    });
    drop(blocked);
    assert!(attachment.flush(PATIENCE));
    let row = store.list(&WorkerFilter::default()).unwrap().remove(0);
    assert_eq!(
        (row.health().state(), row.info.restarts),
        (State::Active, 1)
    );
    drop(send);
    supervisor.shutdown(PATIENCE);
}

#[test]
fn a_worker_that_is_not_well_is_not_registered_again_and_again() {
    let fleet = Fleet::new();
    let hb = fleet
        .world
        .worker("poller")
        .id("a")
        .stall_after(10 * SECOND)
        .start()
        .unwrap();
    hb.beat();
    fleet.flush();
    let before = fleet.row("a").key;
    let mut marked = 0;
    for _ in 0..60 {
        fleet.world.seconds(10);
        marked += fleet.sweep().marked_offline.len();
    }
    assert_eq!(hb.health().state(), State::Stalled);
    assert_eq!(marked, 1, "once");
    assert_eq!(fleet.row("a").key, before);
    hb.beat();
    fleet.world.seconds(5);
    fleet.flush();
    assert!(fleet.row("a").key.incarnation > before.incarnation);
    assert_eq!(fleet.state("a"), State::Active, "it is well again");
}

#[test]
fn a_detached_clone_leaves_the_next_attachment_alone() {
    let Fleet {
        world, attachment, ..
    } = Fleet::new();
    let clone = attachment.clone();
    attachment.detach();
    let next = MemoryStore::with_clock(world.time.clock());
    let second = world
        .registry
        .attach(next.clone(), FleetConfig::new())
        .unwrap();
    clone.detach();
    let again = world
        .registry
        .attach(MemoryStore::new(), FleetConfig::new());
    assert!(matches!(again, Err(Error::AlreadyAttached)));
    let hb = world.worker("poller").id("a").start().unwrap();
    hb.beat();
    assert!(second.flush(PATIENCE));
    assert_eq!(next.summary().unwrap().total_active, 1);
}

#[test]
fn the_end_of_the_last_expected_worker_waits_for_the_upload_too() {
    let fleet = Fleet::new();
    fleet.world.registry.expect_workers("poller", 1);
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    fleet.flush();
    drop(hb);
    assert_eq!(fleet.state("a"), State::Stopped);
}

#[test]
fn a_store_that_hangs_does_not_hold_up_the_end_of_its_registry() {
    let test_store = TestStore::new(MemoryStore::new());
    let blocked = test_store.hold();
    let registry = worker_heartbeat::Registry::new();
    let config = FleetConfig::new().farewell(Duration::from_millis(50));
    registry.attach(test_store.clone(), config).unwrap();
    let hb = worker_heartbeat::WorkerHeartbeat::builder("poller")
        .registry(&registry)
        .start()
        .unwrap();
    eventually("the store hangs", || test_store.calls() > 0);
    // Without its timeout, this would hang for ever.
    drop(hb);
    drop(registry);
    drop(blocked);
}

#[test]
fn a_store_that_lost_its_records_gets_them_again() {
    let world = World::new();
    let first = MemoryStore::with_clock(world.time.clock());
    let store = TestStore::new(first.clone());
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let hb = world.worker("poller").id("a").start().unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    let before = first.list(&WorkerFilter::default()).unwrap()[0].key.clone();
    world.seconds(1);
    let second = MemoryStore::with_clock(world.time.clock());
    store.replace(second.clone());
    world.seconds(30);
    let rows = second.list(&WorkerFilter::default()).unwrap();
    assert_eq!(rows.len(), 1);
    assert!(rows[0].key.incarnation > before.incarnation);
    assert_eq!(rows[0].health().state(), State::Active);
}

#[test]
fn a_worker_adopts_the_id_that_the_store_assigned() {
    let fleet = Fleet::new();
    let hb = fleet.world.worker("poller").start().unwrap();
    let local = hb.id().to_owned();
    fleet.flush();
    let assigned = hb.id().to_owned();
    let n = local.rsplit_once('-').unwrap().1;
    let host = worker_heartbeat::fleet::ProcessIdentity::current().hostname;
    assert_eq!(
        assigned,
        format!("poller-{host}-{}-{n}", std::process::id())
    );
    assert_eq!(fleet.rows()[0].key.id, assigned);
    assert_eq!(hb.snapshot().id, assigned);
    for id in [local, assigned] {
        assert!(fleet.world.registry.get(&id).is_some(), "{id}");
    }
}

#[test]
fn a_worker_that_loses_its_id_to_another_process_is_fenced() {
    let fleet = Fleet::new();
    let events = fleet.world.registry.subscribe();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    fleet.flush();
    let lease = hb.claim("run-1", 600 * SECOND).unwrap().unwrap();
    assert!(lease.is_held());
    let other = fleet
        .store
        .register(&[Registration::new("poller", "a")])
        .unwrap();
    fleet.world.seconds(30);
    let health = hb.health().to_string();
    assert!(
        health.starts_with("dead: fenced: a newer incarnation took its place"),
        "{health}"
    );
    assert!(hb.stop_requested(), "the worker's loop ends");
    assert!(!lease.is_held());
    assert!(matches!(
        hb.claim("run-2", SECOND),
        Err(Error::Refused { .. })
    ));
    let reported = names(&events);
    assert!(reported.contains(&"dead".to_owned()), "{reported:?}");
    assert!(reported.contains(&"leaselost".to_owned()), "{reported:?}");
    let row = fleet.row("a");
    assert_eq!(
        row.key, other[0],
        "the other process's worker is not affected"
    );
    assert_eq!(row.ending, None);
}

#[test]
fn a_worker_that_was_marked_offline_is_registered_again_or_fenced() {
    for on_offline in [OnOffline::RegisterAnew, OnOffline::Fence] {
        let fleet = Fleet::with(FleetConfig::new().on_offline(on_offline));
        let hb = fleet.world.worker("poller").id("a").start().unwrap();
        hb.beat();
        fleet.flush();
        let before = fleet.row("a").key;
        let lease = hb.claim("run-1", 600 * SECOND).unwrap().unwrap();
        let mut sweep = Sweep::default();
        sweep.killed = vec![before.clone()];
        let report = fleet.store.sweep(&sweep).unwrap();
        assert_eq!(report.marked_offline, ["a"]);
        assert_eq!(report.released_leases, ["run-1"]);
        fleet.world.seconds(30);
        assert!(!lease.is_held());
        let row = fleet.row("a");
        if on_offline == OnOffline::Fence {
            assert_eq!(hb.health().state(), State::Dead);
            assert_eq!(row.key, before);
        } else {
            assert!(hb.is_recent());
            assert!(row.key.incarnation > before.incarnation);
            assert_eq!(row.health().state(), State::Active);
        }
    }
}

#[test]
fn a_supervised_worker_that_is_restarted_is_another_incarnation() {
    let fleet = Fleet::new();
    let supervisor = Supervisor::new(&fleet.world.registry)
        .restart(Restart::always().backoff(5 * SECOND, 5 * SECOND));
    let (send, receive) = crossbeam_channel::unbounded::<Result<(), &str>>();
    let worker = supervisor
        .spawn(fleet.world.worker("poller").id("a"), move |hb| {
            hb.beat();
            match receive.recv() {
                Ok(result) => Ok(result?),
                Err(_) => Ok(()),
            }
        })
        .unwrap();
    eventually("the worker has started", || worker.probe().is_recent());
    fleet.flush();
    let first = fleet.row("a").key;
    let events = fleet.world.registry.subscribe();
    send.send(Err("no luck")).unwrap();
    wait_for(&events, "restart 1");
    fleet.flush();
    let row = fleet.row("a");
    assert!(
        row.health()
            .to_string()
            .starts_with("dead: failed: no luck")
    );
    fleet.world.seconds(6);
    eventually("the worker has restarted", || worker.probe().is_recent());
    fleet.flush();
    let row = fleet.row("a");
    assert!(row.key.incarnation > first.incarnation);
    assert_eq!(
        (row.health().state(), row.info.restarts),
        (State::Active, 1)
    );
    drop(send);
    supervisor.shutdown(PATIENCE);
}

#[test]
fn a_lease_is_renewed_while_the_store_answers_and_expires_when_it_does_not() {
    let fleet = Fleet::new();
    let events = fleet.world.registry.subscribe();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    let lease = hb.claim("run-1", 30 * SECOND).unwrap().unwrap();
    assert!(
        hb.claim("run-1", 30 * SECOND).unwrap().is_none(),
        "the worker holds the lease"
    );
    for _ in 0..300 {
        hb.beat();
        fleet.world.seconds(1);
        assert!(lease.remaining() > 15 * SECOND, "{:?}", lease.remaining());
    }
    fleet.test_store.fail("on purpose");
    let rival = fleet
        .store
        .register(&[Registration::new("poller", "b")])
        .unwrap();
    let claim = Claim::new(rival[0].clone(), "run-1", 30 * SECOND);
    let mut ticks_since_held = 0;
    while fleet.store.claim(&claim).unwrap() == ClaimAnswer::Taken {
        ticks_since_held = if lease.is_held() {
            0
        } else {
            ticks_since_held + 1
        };
        hb.beat();
        fleet.world.millis(100);
        assert!(ticks_since_held < 40, "the lease ended far too early");
    }
    assert!(!lease.is_held(), "two workers hold the lease");
    fleet.test_store.recover();
    fleet.world.seconds(15);
    assert!(!lease.is_held(), "a lost lease stays lost");
    assert!(events.try_iter().any(
        |event| matches!(&event.kind, EventKind::LeaseLost { run_id, .. } if run_id == "run-1")
    ));
    let rival = fleet.store.claim(&claim).unwrap();
    assert!(
        matches!(rival, ClaimAnswer::Granted(fence) if i64::try_from(fence).unwrap() > lease.fence())
    );
}

#[test]
fn a_suspended_machine_does_not_wake_up_with_a_lease() {
    let fleet = Fleet::new();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    let lease = hb.claim("run-1", 30 * SECOND).unwrap().unwrap();
    fleet.world.time.suspend(31 * SECOND);
    assert!(!lease.is_held());
    assert!(
        hb.is_recent(),
        "the suspension is not charged to the worker"
    );
}

#[test]
fn a_lease_is_released_by_release_by_drop_and_by_the_end_of_its_worker() {
    let fleet = Fleet::new();
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    let rival = fleet.world.worker("poller").id("b").start().unwrap();
    hb.beat();
    rival.beat();
    let taken = |run| rival.claim(run, 60 * SECOND).unwrap();

    let released = hb.claim("run", 60 * SECOND).unwrap().unwrap();
    assert!(taken("run").is_none());
    assert!(released.release().unwrap());
    let second = taken("run").unwrap();
    assert!(hb.claim("run", 60 * SECOND).unwrap().is_none());

    drop(second);
    fleet.flush();
    let third = hb.claim("run", 60 * SECOND).unwrap().unwrap();
    assert_eq!(fleet.row("a").status.run_id.as_deref(), Some("run"));
    assert!(fleet.row("a").lease_remaining.is_some());

    hb.stop();
    assert!(!third.is_held(), "at once");
    fleet.flush();
    assert!(taken("run").is_some());
    assert!(!third.release().unwrap());
}

#[test]
fn refused_workers_do_not_block_the_others() {
    let world = World::new();
    let memory = MemoryStore::with_clock(world.time.clock());
    let store = TestStore::new(memory.clone());
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let events = world.registry.subscribe();
    // Delayed, so that all of them come in one batch.
    let gate = store.hold();
    let first = world.worker("poller").id("first").start().unwrap();
    eventually("a call", || store.calls() > 0);
    let workers: Vec<_> = (0..100)
        .map(|n| {
            world
                .worker("poller")
                .id(format!("w-{n:02}"))
                .group(if n % 50 == 7 { REFUSED } else { "fine" })
        })
        .map(|builder| builder.start().unwrap())
        .collect();
    drop(gate);
    workers.iter().for_each(|hb| hb.beat());
    eventually("98 workers and the first one are stored", || {
        attachment.flush(SECOND);
        attachment.status().registered == 99
    });
    assert!(!attachment.flush(SECOND), "two are not uploaded");
    let status = attachment.status();
    assert_eq!(
        (status.failures, status.refused),
        (0, 2),
        "the store does not fail"
    );
    assert!(
        status
            .last_error
            .unwrap()
            .starts_with("invalid group: refused")
    );
    let refused: Vec<_> = events
        .try_iter()
        .filter(|event| matches!(event.kind, EventKind::Refused { .. }))
        .map(|event| event.id().to_owned())
        .collect();
    assert_eq!(refused.len(), 2, "each is reported once: {refused:?}");
    assert!(refused.contains(&"w-07".to_owned()) && refused.contains(&"w-57".to_owned()));
    assert!(workers[7].claim("run", SECOND * 60).is_err());
    assert!(workers[8].claim("run", SECOND * 60).unwrap().is_some());

    // They are tried again and again, but not all the time.
    let calls = store.calls();
    world.seconds(9);
    let calls = store.calls() - calls;
    assert!(calls < 20, "{calls} calls in 9 s");
    drop(first);
}

#[test]
fn invalid_claims_are_refused_by_name() {
    let world = World::new();
    let hb = world.worker("poller").id("a").start().unwrap();
    let refused = |run: &str, ttl| hb.claim(run, ttl).unwrap_err().to_string();
    assert_eq!(
        refused("run", SECOND),
        "worker \"a\" belongs to a registry that is not attached to a store"
    );
    assert!(refused("", SECOND).starts_with("invalid run_id: "));
    assert!(refused("a\nb", SECOND).starts_with("invalid run_id: "));
    assert!(refused(&"x".repeat(201), SECOND).starts_with("invalid run_id: "));
    assert!(refused("run", Duration::ZERO).starts_with("invalid ttl: 0ns"));
    assert!(refused("run", Duration::MAX).starts_with("invalid ttl: "));
}

#[test]
fn a_registry_is_attached_to_one_store_at_a_time() {
    let fleet = Fleet::new();
    let again = fleet
        .world
        .registry
        .attach(MemoryStore::new(), FleetConfig::new());
    assert!(matches!(again, Err(Error::AlreadyAttached)));
    let hb = fleet.world.worker("poller").id("a").start().unwrap();
    hb.beat();
    let Fleet {
        world,
        store,
        attachment,
        ..
    } = fleet;
    attachment.detach();
    assert_eq!(
        store.summary().unwrap().total,
        1,
        "the worker was uploaded once more"
    );
    let next = MemoryStore::with_clock(world.time.clock());
    let attachment = world
        .registry
        .attach(next.clone(), FleetConfig::new())
        .unwrap();
    assert!(attachment.flush(PATIENCE));
    assert_eq!(next.summary().unwrap().total_active, 1);
    assert_eq!(store.summary().unwrap().total_active, 1, "until a sweep");
}

#[test]
fn a_sweeper_watches_before_it_convicts() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let test_store = TestStore::new(store.clone());
    let key = store.register(&[Registration::new("poller", "a")]).unwrap();
    store
        .beat(&[Beat::new(key[0].clone(), State::Active)])
        .unwrap();
    world.time.advance(1_000 * SECOND);
    let sweeper = Sweeper::new(test_store.clone()).clock(world.time.clock());
    let sweep = || sweeper.sweep().map(|report| report.marked_offline);
    let silent = || assert!(sweep().unwrap().is_empty());
    // The sweeper's start.
    silent();
    world.seconds(90);
    silent();
    // A failure of the store.
    test_store.fail("on purpose");
    assert!(sweep().is_err());
    test_store.recover();
    world.seconds(1);
    silent();
    world.seconds(89);
    silent();
    // A pause of the sweeper: a suspended machine.
    world.time.suspend(3_600 * SECOND);
    silent();
    world.seconds(90);
    silent();
    world.seconds(1);
    assert_eq!(sweep().unwrap(), ["a"]);
}

#[test]
fn a_running_sweeper_reports_what_it_did() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let key = store.register(&[Registration::new("poller", "a")]).unwrap();
    store
        .beat(&[Beat::new(key[0].clone(), State::Active)])
        .unwrap();
    let claim = Claim::new(key[0].clone(), "run", 600 * SECOND);
    store.claim(&claim).unwrap();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let collected = Arc::clone(&reports);
    let running = Sweeper::new(store)
        .clock(world.time.clock())
        .interval(10 * SECOND)
        .on_report(move |report| collected.lock().push(report.as_ref().unwrap().clone()))
        .start()
        .unwrap();
    world.time.advance(100 * SECOND);
    let found: Vec<_> = reports
        .lock()
        .iter()
        .filter(|report| !report.marked_offline.is_empty())
        .cloned()
        .collect();
    assert_eq!(found.len(), 1, "once");
    assert_eq!(found[0].marked_offline, ["a"]);
    assert_eq!(found[0].affected_groups, ["local"]);
    assert_eq!(found[0].released_leases, ["run"]);
    drop(running);
    let swept = reports.lock().len();
    world.time.advance(100 * SECOND);
    assert_eq!(
        reports.lock().len(),
        swept,
        "each sweep that starts is reported"
    );
}

#[test]
fn a_shutdown_writes_to_the_store_before_it_ends() {
    let store = MemoryStore::new();
    let slow = TestStore::new(store.clone());
    let registry = worker_heartbeat::Registry::new();
    let config = FleetConfig::new().farewell(PATIENCE);
    let attachment = registry.attach(slow.clone(), config).unwrap();
    let hb = worker_heartbeat::WorkerHeartbeat::builder("poller")
        .id("a")
        .registry(&registry)
        .start()
        .unwrap();
    hb.mark_idle();
    assert!(attachment.flush(PATIENCE));
    let shutdown = worker_heartbeat::Shutdown::builder()
        .registry(&registry)
        .timeout(PATIENCE)
        .install()
        .unwrap();
    let blocked = slow.hold();
    shutdown.trigger();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| shutdown.wait());
        // Long enough for the shutdown to end, if it did not wait for the store.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(blocked);
        assert!(waiting.join().unwrap().is_clean());
    });
    let row = &store.list(&WorkerFilter::default()).unwrap()[0];
    assert_eq!(row.health().state(), State::Stopped);
    drop(hb);
}

#[test]
fn nothing_is_left_of_an_attachment_when_its_registry_is_dropped() {
    let uploaders = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.trim() == "wh-uploader")
            .count()
    };
    // Other tests of this program attach registries too: only the additional threads are counted.
    let store = MemoryStore::new();
    let mut registries = Vec::new();
    let before = uploaders();
    for _ in 0..50 {
        let registry = worker_heartbeat::Registry::new();
        registry.attach(store.clone(), FleetConfig::new()).unwrap();
        registries.push(registry);
    }
    eventually("the uploaders run", || uploaders() >= before + 30);
    drop(registries);
    eventually("the uploaders have ended", || uploaders() < 30);
}
