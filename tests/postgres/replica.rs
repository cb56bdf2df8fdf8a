//! A standby that answers reads: pages, summaries and checks need not burden the primary.

use crate::support::postgres::{own_with_tools, schema};
use worker_heartbeat::fleet::{Beat, HeartbeatStore, Registration, WorkerFilter};
use worker_heartbeat::{Error, PostgresOptions, State};

#[test]
fn a_standby_answers_reads_and_refuses_writes() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    let standby = primary.standby();
    let name = schema("replica");
    let options = || PostgresOptions::new().schema(&name);
    let store = options().connect(&primary.url()).unwrap();
    let workers = ["a", "b"].map(|id| Registration::new("indexer", id));
    let keys = store.register(&workers).unwrap();
    store
        .beat(&[Beat::new(keys[0].clone(), State::Idle)])
        .unwrap();
    standby.catch_up(&primary);

    let replica = options()
        .migrations(false)
        .connect_lazy(&standby.url())
        .unwrap();
    let ids = |store: &dyn HeartbeatStore| {
        let workers = store.list(&WorkerFilter::new()).unwrap();
        workers
            .into_iter()
            .map(|worker| worker.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&replica), ids(&store));
    assert_eq!(replica.summary().unwrap().total, 2);
    let refused = replica.beat(&[Beat::new(keys[0].clone(), State::Idle)]);
    assert!(matches!(refused, Err(Error::Store { .. })), "{refused:?}");
    // It goes on answering reads.
    assert_eq!(ids(&replica).len(), 2);
}
