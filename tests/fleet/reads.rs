//! Reads of stores with many workers: what they return is bounded, and they are asked for no more.

use worker_heartbeat::fleet::{
    Beat, FleetCounts, HeartbeatStore, Pages, Registration, Stop, StoredEnding, WorkerFilter,
};
use worker_heartbeat::{DeathCause, MemoryStore, State};

use crate::support::store::{Mode, TestStore};

const UNWELL: usize = 2_500;
const WELL: usize = 600;

/// Many dead workers, fewer stalled ones, and some that are well.
fn fill(store: &impl HeartbeatStore) {
    let registered = |name: &str, count: usize| {
        let workers: Vec<_> = (0..count)
            .map(|n| {
                let mut registration = Registration::new("poller", format!("{name}-{n:04}"));
                registration.info.group = format!("machine-{}", n % 7);
                registration
            })
            .collect();
        store.register(&workers).unwrap()
    };
    let beat = |keys: &[worker_heartbeat::fleet::WorkerKey], state| {
        let beats: Vec<_> = keys
            .iter()
            .map(|key| Beat::new(key.clone(), state))
            .collect();
        store.beat(&beats).unwrap();
    };
    beat(&registered("a-well", WELL), State::Idle);
    beat(&registered("b-stalled", UNWELL / 5), State::Stalled);
    let stops: Vec<_> = registered("c-dead", UNWELL - UNWELL / 5)
        .into_iter()
        .map(|key| Stop::new(key, StoredEnding::dead(&DeathCause::Exited)))
        .collect();
    store.stop(&stops).unwrap();
}

/// As the memory store reads, and as any store that only lists.
fn stores() -> [(&'static str, Box<dyn HeartbeatStore>); 2] {
    let store = MemoryStore::new();
    fill(&store);
    let only_lists = TestStore::new(store.clone());
    [
        ("memory", Box::new(store)),
        ("by pages", Box::new(only_lists)),
    ]
}

#[test]
fn a_summary_names_the_worst_workers_and_says_how_many_more() {
    for (name, store) in stores() {
        let summary = store.summary().unwrap();
        assert_eq!(summary.total, UNWELL + WELL, "{name}");
        assert_eq!(summary.total_dead, UNWELL - UNWELL / 5);
        assert_eq!(
            (summary.dead_workers.len(), summary.stalled_workers.len()),
            (1_000, 0)
        );
        assert_eq!(summary.unlisted_workers, UNWELL - 1_000);
        assert_eq!(summary.dead_workers[0].id, "c-dead-0000");
        assert!(!summary.is_healthy());
        let text = summary.to_string();
        assert!(
            text.starts_with("600 active, 2000 dead, 500 stalled; c-dead-0000: dead: "),
            "{text}"
        );
        assert!(text.ends_with("; and 2495 more"), "{text}");
        assert!(text.len() < 500, "{text}");
    }
}

#[test]
fn of_few_unwell_workers_a_text_names_the_worst_first() {
    let store = MemoryStore::new();
    let ids: Vec<_> = (0..9)
        .map(|n| Registration::new("poller", format!("w-{n}")))
        .collect();
    let keys = store.register(&ids).unwrap();
    let beats: Vec<_> = keys
        .iter()
        .map(|key| Beat::new(key.clone(), State::Stalled))
        .collect();
    store.beat(&beats).unwrap();
    let dead = StoredEnding::dead(&DeathCause::Killed);
    store.stop(&[Stop::new(keys[8].clone(), dead)]).unwrap();
    let text = store.summary().unwrap().to_string();
    assert!(
        text.starts_with("0 active, 1 dead, 8 stalled; w-8: dead: "),
        "{text}"
    );
    assert!(text.ends_with("; and 4 more"), "{text}");
}

#[test]
fn a_store_that_only_lists_has_the_same_counts_and_order() {
    let [(_, memory), (_, by_pages)] = stores();
    let counts = |store: &dyn HeartbeatStore| {
        let FleetCounts { types, groups, .. } = store.counts().unwrap();
        format!("{types:?} {groups:?}")
    };
    assert_eq!(counts(&*by_pages), counts(&*memory));
    let ids = |store: &dyn HeartbeatStore, filter: &WorkerFilter| -> Vec<String> {
        let worst = store.worst_first(filter).unwrap();
        worst.into_iter().map(|worker| worker.key.id).collect()
    };
    for filter in [
        WorkerFilter::new().limit(2_200),
        WorkerFilter::new().state(State::Idle).limit(5),
        WorkerFilter::new().group("machine-3").search("STALLED"),
    ] {
        let expected = ids(&*memory, &filter);
        assert!(!expected.is_empty());
        assert_eq!(ids(&*by_pages, &filter), expected);
    }
    let first = memory
        .worst_first(&WorkerFilter::new().limit(2_100))
        .unwrap();
    let next = WorkerFilter::new().after_worker(&first[2_099]).limit(1_000);
    let expected = ids(&*memory, &next);
    assert_eq!(expected[0], "b-stalled-0100");
    assert_eq!(ids(&*by_pages, &next), expected);
}

#[test]
fn pages_leave_out_what_does_not_pass_even_if_the_store_ignores_the_filter() {
    let store = MemoryStore::new();
    fill(&store);
    let odd = TestStore::new(store);
    odd.set(Mode::ShortPages(100));
    let filter = WorkerFilter::new().state(State::Dead).limit(10_000);
    let found: usize = Pages::new(&odd, filter)
        .map(|page| page.unwrap().len())
        .sum();
    assert_eq!(found, UNWELL - UNWELL / 5);
    odd.set(Mode::FirstPageOnly);
    let filter = WorkerFilter::new()
        .state(State::Idle)
        .search("a-well-0007")
        .limit(50);
    let found: Vec<_> = Pages::new(&odd, filter)
        .map(|page| page.unwrap().len())
        .collect();
    assert_eq!(found, [1]);
}
