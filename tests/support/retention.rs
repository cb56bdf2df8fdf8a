//! What every store of this crate forgets, and what not.

use std::collections::BTreeSet;
use std::time::Duration;

use worker_heartbeat::fleet::{
    Beat, Registration, Retention, Stop, StoredEnding, Sweep, WorkerFilter,
};
use worker_heartbeat::{DeathCause, HeartbeatStore, State, StopCause};

const HOUR: Duration = Duration::from_secs(3_600);

/// A worker that was last heard of, and ended, this long ago.
fn ended(store: &dyn HeartbeatStore, id: &str, worker_type: &str, stopped: bool, ago: Duration) {
    let key = store
        .register(&[Registration::new(worker_type, id)])
        .unwrap()
        .remove(0);
    let mut beat = Beat::new(key.clone(), State::Active);
    beat.heartbeat_age = Some(ago);
    store.beat(&[beat]).unwrap();
    let ending = if stopped {
        StoredEnding::stopped(&StopCause::Stop)
    } else {
        StoredEnding::dead(&DeathCause::Exited)
    };
    store.stop(&[Stop::new(key, ending).ago(ago)]).unwrap();
}

/// Of a store without other workers.
pub fn check(store: &dyn HeartbeatStore) {
    ended(store, "stopped-old", "poller", true, HOUR * 3 / 2);
    ended(store, "stopped-young", "poller", true, HOUR / 2);
    ended(store, "dead-old", "alone", false, 8 * 24 * HOUR);
    ended(store, "dead-young", "alone", false, 6 * 24 * HOUR);
    // A living worker of that type and group was registered later.
    ended(store, "replaced-old", "poller", false, 25 * HOUR);
    ended(store, "replaced-young", "poller", false, 23 * HOUR);
    let living = store
        .register(&[Registration::new("poller", "living")])
        .unwrap()
        .remove(0);
    store.beat(&[Beat::new(living, State::Active)]).unwrap();
    let ids = || -> BTreeSet<String> {
        let workers = store.list(&WorkerFilter::new()).unwrap();
        workers.into_iter().map(|worker| worker.key.id).collect()
    };
    let forgotten = |retention, dry_run| {
        let mut sweep = Sweep::default();
        sweep.retention = retention;
        sweep.dry_run = dry_run;
        let report = store.sweep(&sweep).unwrap();
        assert!(report.marked_offline.is_empty(), "{report}");
        report.forgotten
    };
    let all = ids();
    assert_eq!(all.len(), 7);
    assert_eq!(forgotten(None, false), 0);
    assert_eq!(forgotten(Some(Retention::none()), false), 0);
    assert_eq!(forgotten(Some(Retention::new()), true), 3);
    assert_eq!(ids(), all, "a dry run only counts");
    assert_eq!(forgotten(Some(Retention::new()), false), 3);
    let kept = ["dead-young", "living", "replaced-young", "stopped-young"];
    assert_eq!(ids(), kept.map(str::to_owned).into());
    assert_eq!(forgotten(Some(Retention::new().stopped(None)), false), 0);
    assert_eq!(
        forgotten(Some(Retention::none().dead(HOUR)), false),
        2,
        "both dead ones"
    );
    assert_eq!(store.purge(Duration::ZERO).unwrap(), 1);
    assert_eq!(ids(), ["living".to_owned()].into());
}

/// A sweep is unneeded after one of a sweeper that has watched for as long, and has limits as short.
pub fn check_unneeded(store: &dyn HeartbeatStore) {
    let sweep = |watched_for: u64, threshold: u64| {
        let mut sweep = Sweep::default();
        sweep.watched_for = Duration::from_secs(watched_for);
        sweep.threshold = Duration::from_secs(threshold);
        sweep.unless_swept_within = Some(HOUR);
        store.sweep(&sweep).unwrap()
    };
    assert!(sweep(1_000, 90).success, "the first");
    let second = sweep(100, 90);
    assert!(!second.success, "a younger one");
    let ago = second.recently_swept.unwrap();
    assert!(ago < Duration::from_secs(60), "{ago:?}");
    assert!(sweep(10, 500).recently_swept.is_some(), "a laxer one");
    assert!(sweep(100, 50).success, "one with a shorter limit");
    assert!(sweep(100_000, 90).success, "one that watched for longer");
    assert!(sweep(100, 90).recently_swept.is_some());
    // One that was asked for is never skipped.
    assert!(store.sweep(&Sweep::default()).unwrap().success);
    let mut short = Sweep::default();
    short.watched_for = Duration::from_secs(1);
    short.unless_swept_within = Some(Duration::ZERO);
    assert!(store.sweep(&short).unwrap().success, "too long ago");
}

/// Silence is charged in pieces.
pub fn check_pieces(store: &dyn HeartbeatStore) {
    use worker_heartbeat::fleet::WatchedSpan;

    let second = Duration::from_secs(1);
    let key = store
        .register(&[Registration::new("poller", "a")])
        .unwrap()
        .remove(0);
    let mut beat = Beat::new(key, State::Active);
    beat.heartbeat_age = Some(1_000 * second);
    store.beat(&[beat]).unwrap();
    let mut sweep = Sweep::default();
    sweep.watched_for = 10 * second;
    let mut marked = |spans: &[(u32, u32)]| {
        let spans = spans.iter();
        sweep.watched_before = spans
            .map(|(began, ended)| WatchedSpan::new(*began * second, *ended * second))
            .collect();
        store.sweep(&sweep).unwrap().marked_offline
    };
    assert!(marked(&[]).is_empty());
    // 90 s are allowed, and pieces count a quarter: 360 s are needed.
    assert!(marked(&[(900, 700), (600, 460)]).is_empty());
    // What was before its last heartbeat does not count.
    assert!(marked(&[(90_000, 900), (200, 100)]).is_empty());
    assert_eq!(marked(&[(900, 700), (600, 440)]), ["a"]);
}
