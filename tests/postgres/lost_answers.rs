//! Claims whose answer is lost on the way from the server.

use std::net::SocketAddr;
use std::time::Duration;

use worker_heartbeat::fleet::{Claim, ClaimAnswer, HeartbeatStore};
use worker_heartbeat::{Error, FleetConfig, PostgresOptions, Registry, WorkerHeartbeat};

use crate::locks::is_busy;
use crate::support::PATIENCE;
use crate::support::losing_proxy::LosingProxy;
use crate::support::postgres::{own, schema, sql, url};
use crate::{SECOND, claim, store, worker};

const TTL: Duration = Duration::from_secs(600);

#[test]
fn after_a_lost_answer_a_run_is_free_for_others_within_a_round() {
    let Some(cluster) = own() else { return };
    let direct = cluster.url();
    let port = direct.rsplit_once(':').unwrap().1;
    let port = port.split('/').next().unwrap().to_owned();
    let server: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let proxy = LosingProxy::start(server);
    let indirect = direct.replace(
        &format!(":{port}/"),
        &format!(":{}/", proxy.address().port()),
    );
    let connect = |url: &str| {
        let options = PostgresOptions::new().statement_timeout(60 * SECOND);
        options.connect(url).unwrap()
    };
    let start = |url: &str, id| {
        let registry = Registry::new();
        let attachment = registry.attach(connect(url), FleetConfig::new()).unwrap();
        let builder = WorkerHeartbeat::builder("poller").registry(&registry);
        let hb = builder.id(id).start().unwrap();
        assert!(attachment.flush(PATIENCE));
        (registry, attachment, hb)
    };
    let (_here, attachment, hb) = start(&indirect, "a");
    let (_elsewhere, _, rival) = start(&direct, "b");
    for n in 0..10 {
        let run = format!("run-{n}");
        // However often the request is sent.
        proxy.lose_answers("claim_run", usize::MAX);
        let before = proxy.lost();
        let error = hb.claim(&run, TTL).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
        assert!(proxy.lost() > before);
        proxy.lose_answers("claim_run", 0);
        assert!(attachment.flush(PATIENCE));
        let lease = rival.claim(&run, TTL).unwrap();
        assert!(lease.is_some_and(|lease| lease.release().unwrap()), "{run}");
        proxy.lose_answers("claim_run", 1);
        // The store may send the request once more by itself.
        let lease = hb.claim(&run, TTL).or_else(|_| hb.claim(&run, TTL));
        let lease = lease.unwrap().expect("it is free");
        assert!(attachment.flush(PATIENCE) && lease.is_held());
        assert!(rival.claim(&run, TTL).unwrap().is_none());
        assert!(lease.release().unwrap());
        assert!(rival.claim(&run, TTL).unwrap().is_some());
    }
}

/// A withdrawal waits for a claim of the same worker that is not committed yet.
#[test]
fn a_claim_in_progress_does_not_outlive_its_withdrawal() {
    let name = schema("withdrawn");
    let store = store(&name);
    let (a, b) = (worker(&store, "a"), worker(&store, "b"));
    let attempt = Claim::new(a.clone(), "run", TTL).attempt(u64::MAX - 6);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (client, connection) = runtime
        .block_on(tokio_postgres::connect(url(), tokio_postgres::NoTls))
        .unwrap();
    runtime.spawn(connection);
    // The first request: the server has it, and has not committed it.
    let begin = format!(
        "BEGIN; SELECT * FROM {name}.claim_run('a', {}, 'run', 600000000, -7)",
        a.incarnation
    );
    runtime.block_on(client.batch_execute(&begin)).unwrap();
    let withdrawn = std::thread::scope(|scope| {
        // It waits 2 s at most; on a busy machine, that may end before anybody has seen it wait.
        let withdrawal = scope.spawn(|| {
            loop {
                match store.withdraw(std::slice::from_ref(&attempt)) {
                    Ok(withdrawn) => return withdrawn,
                    busy => assert!(is_busy(&busy), "{busy:?}"),
                }
            }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND query LIKE '%withdraw_claims%' AND query LIKE '%' || current_setting('t.n') || '%'";
        let waiting = format!("SET t.n = '{name}'; {waiting}");
        while sql(url(), &waiting) != [["1"]] {
            assert!(!withdrawal.is_finished(), "it does not wait");
        }
        runtime.block_on(client.batch_execute("COMMIT")).unwrap();
        withdrawal.join().unwrap()
    });
    assert_eq!(withdrawn, [true]);
    let lease = claim(&store, &b, "run", TTL);
    assert!(matches!(lease, ClaimAnswer::Granted(_)), "{lease:?}");
    assert_eq!(store.claim(&attempt).unwrap(), ClaimAnswer::Taken);
}

#[test]
fn the_latest_withdrawn_attempts_are_remembered_until_the_worker_registers_again() {
    let name = schema("attempts");
    let store = store(&name);
    let a = worker(&store, "a");
    let attempt = |n| Claim::new(a.clone(), "run", TTL).attempt(n);
    let claims: Vec<Claim> = (0..70).map(attempt).collect();
    assert_eq!(store.withdraw(&claims).unwrap(), [false; 70]);
    let kept =
        format!("SELECT cardinality(withdrawn), withdrawn[64] FROM {name}.worker_heartbeats");
    assert_eq!(sql(url(), &kept), [["64", "69"]]);
    assert_eq!(store.claim(&attempt(69)).unwrap(), ClaimAnswer::Taken);
    worker(&store, "a");
    assert_eq!(sql(url(), &kept), [["NULL", "NULL"]]);
}
