//! Events in a database: their order, and what happens where they can't be kept.

use worker_heartbeat::DeathCause;
use worker_heartbeat::fleet::{EventFilter, EventPage, Retention};

use super::locks::Transaction;
use super::*;

fn page(store: &PostgresStore, filter: &EventFilter) -> EventPage {
    let page = store.events(filter).unwrap();
    page.expect("the store keeps events")
}

fn texts(page: &EventPage) -> Vec<String> {
    page.events.iter().map(ToString::to_string).collect()
}

fn fail(store: &PostgresStore, key: &WorkerKey) {
    let ending = StoredEnding::dead(&DeathCause::Exited);
    let stop = Stop::new(key.clone(), ending);
    assert_eq!(store.stop(&[stop]).unwrap(), [Answer::Accepted]);
}

/// Transactions commit in another order than that of their numbers: a reader that goes on from the last
/// number that it has seen must not miss the earlier one.
#[test]
fn an_event_that_is_committed_late_is_not_missed_by_a_reader_that_follows() {
    let name = schema("late-events");
    let store = store(&name);
    let (late, early) = (worker(&store, "late"), worker(&store, "early"));
    let start = page(&store, &EventFilter::new()).cursor;
    let statement = format!(
        "SELECT \"{name}\".stop_workers('{{late}}', '{{{}}}', '{{false}}', '{{failed}}', '{{no disk}}', \
         '{{NULL}}', '{{0}}')",
        late.incarnation
    );
    let transaction = Transaction::begin_to_commit(url(), &statement);
    fail(&store, &early);
    let meanwhile = page(&store, &EventFilter::new().after(start));
    assert_eq!(texts(&meanwhile), [""; 0], "its number is higher");
    let latest = page(&store, &EventFilter::new());
    drop(transaction);
    let both = [
        "worker late: died: failed: no disk",
        "worker early: died: returned while not asked to",
    ];
    for cursor in [start, meanwhile.cursor, latest.cursor] {
        let next = page(&store, &EventFilter::new().after(cursor));
        assert_eq!(texts(&next), both);
        assert!(next.events[0].seq < next.events[1].seq);
    }
}

/// An event is a record only.
#[test]
fn a_table_of_events_that_is_gone_stops_no_heartbeat_and_no_sweep() {
    let name = schema("no-events");
    let store = store(&name);
    let key = worker(&store, "a");
    let lost = silent(&store, "b", 100 * SECOND);
    sql(
        url(),
        &format!(
            "ALTER TABLE \"{name}\".fleet_events RENAME TO gone; \
             ALTER TABLE \"{name}\".endings RENAME TO gone_too"
        ),
    );
    let mut stalled = Beat::new(key.clone(), State::Stalled);
    assert_eq!(store.beat(&[stalled.clone()]).unwrap(), [Answer::Accepted]);
    stalled.status.stack = Some("0: shop::stock::reserve".into());
    assert_eq!(store.beat(&[stalled]).unwrap(), [Answer::Accepted]);
    assert_eq!(beat(&store, &key), Answer::Accepted);
    let mut sweep = Sweep::default();
    sweep.retention = Some(Retention::new());
    let report = store.sweep(&sweep).unwrap();
    assert!(report.success);
    assert_eq!(report.marked_offline, [lost.id.as_str()]);
    assert!(register(&store, "b").incarnation > lost.incarnation);
    fail(&store, &key);
    assert!(register(&store, "a").incarnation > key.incarnation);
    let error = store.events(&EventFilter::new()).unwrap_err();
    assert!(error.to_string().contains("fleet_events"), "{error}");
}

#[test]
fn events_are_bounded_by_number_and_age_and_the_counts_of_ends_are_summed_up() {
    let name = schema("trimmed-events");
    let store = store(&name);
    let key = worker(&store, "victim");
    fail(&store, &key);
    for n in 0..120 {
        let key = worker(&store, &format!("w-{n}"));
        let ending = StoredEnding::stopped(&StopCause::Completed);
        assert_eq!(
            store.stop(&[Stop::new(key, ending)]).unwrap(),
            [Answer::Accepted]
        );
    }
    let mut sweep = Sweep::default();
    sweep.retention = Some(Retention::none().most_events(5));
    assert!(store.sweep(&sweep).unwrap().success);
    let kept = texts(&page(&store, &EventFilter::new()));
    assert_eq!(kept.len(), 6, "{kept:?}");
    assert_eq!(kept[0], "worker victim: died: returned while not asked to");
    assert_eq!(kept[5], "worker w-119: stopped: completed");
    let rows = sql(url(), &format!("SELECT count(*) FROM \"{name}\".endings"));
    assert_eq!(rows, [["2"]]);
    let endings = store.counts().unwrap().endings;
    let total = |how: &str| endings["poller"][how];
    assert_eq!((total("graceful"), total("failed")), (120, 1));
    sweep.retention = Some(Retention::none().events(Duration::from_micros(1)));
    assert!(store.sweep(&sweep).unwrap().success);
    assert!(page(&store, &EventFilter::new()).events.is_empty());
}
