//! The failover from one server to another: hosts one by one, each within its share of the limit.

use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::fleet::{Claim, ClaimAnswer, WorkerFilter};
use worker_heartbeat::{FleetConfig, HeartbeatStore, PostgresOptions, Registry, WorkerHeartbeat};

use crate::support::postgres::{Cluster, own_with_tools, sql, try_sql};
use crate::{SECOND, register, retried, signal};

/// Both servers in one URL, without a choice between them.
fn url(first: &Cluster, second: &Cluster) -> String {
    let url = Cluster::url_of_primary(&[first, second]);
    url.split('?').next().unwrap().to_owned()
}

/// The kernel still accepts connections for a server that is suspended; nobody answers them.
#[test]
fn a_hung_primary_does_not_block_the_failover() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    let limit = 2 * SECOND;
    let options = || {
        PostgresOptions::new()
            .schema("x")
            .connect_timeout(2 * limit)
            .statement_timeout(limit)
    };
    drop(
        PostgresOptions::new()
            .schema("x")
            .connect(&primary.url())
            .unwrap(),
    );
    let standby = primary.standby();
    let both = url(&primary, &standby);
    let store = options().connect_lazy(&both).unwrap();
    let registry = Registry::new();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .id("poller-1")
        .interval(SECOND)
        .stale_after(30 * SECOND)
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    assert!(attachment.flush(60 * SECOND));
    let leases: Vec<_> = (0..20)
        .map(|n| retried(|| hb.claim(&format!("run-{n}"), 30 * SECOND)).unwrap())
        .collect();
    standby.catch_up(&primary);
    let hung = primary.processes();
    signal(&hung, "STOP");
    standby.promote();
    let promoted = Instant::now();
    // Each lease is renewed on the other server before it ends.
    let renewed = "SELECT count(*) FROM x.leases WHERE expires_at > now() + interval '15 s'";
    while promoted.elapsed() < 45 * SECOND {
        hb.beat();
        assert!(
            leases.iter().all(|lease| lease.is_held()),
            "{:?}",
            attachment.status()
        );
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(sql(&standby.url(), renewed), [["20"]]);
    println!("20 of 20 leases survived; the primary still hangs");

    // A process that starts now.
    let begun = Instant::now();
    let other = options().connect(&both).unwrap();
    assert!(begun.elapsed() < 2 * limit, "{:?}", begun.elapsed());
    let key = register(&other, "poller-2");
    assert_eq!(
        other
            .claim(&Claim::new(key.clone(), "run-0", SECOND))
            .unwrap(),
        ClaimAnswer::Taken
    );
    // An address that nobody answers at, in front of all others.
    let three = both
        .replace("127.0.0.1:", "192.0.2.1:")
        .replacen("192.0.2.1:", "127.0.0.1:", 2);
    assert!(options().connect(&three).is_ok());
    signal(&hung, "CONT");
    assert_eq!(other.list(&WorkerFilter::default()).unwrap().len(), 2);
}

/// Without a choice in the URL, the store writes to the server that accepts writes.
#[test]
fn several_hosts_are_searched_for_the_primary() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    drop(
        PostgresOptions::new()
            .schema("x")
            .connect(&primary.url())
            .unwrap(),
    );
    let standby = primary.standby();
    let both = url(&standby, &primary);
    let options = || PostgresOptions::new().schema("x").session_liveness(false);
    let port = |attrs: &str| {
        let attrs = if attrs.is_empty() {
            String::new()
        } else {
            format!("?target_session_attrs={attrs}")
        };
        let store = options()
            .migrations(false)
            .connect(&format!("{both}{attrs}"));
        let store = store.map_err(|error| error.to_string())?;
        store.list(&WorkerFilter::default()).unwrap();
        let text =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'worker-heartbeat'";
        let is_here =
            |cluster: &Cluster| try_sql(&cluster.url(), text).is_ok_and(|rows| rows[0][0] != "0");
        let found = match (is_here(&primary), is_here(&standby)) {
            (true, false) => "primary",
            (false, true) => "standby",
            other => panic!("{other:?}"),
        };
        drop(store);
        while is_here(&primary) || is_here(&standby) {
            thread::sleep(Duration::from_millis(20));
        }
        Ok::<_, String>(found)
    };
    for attrs in ["", "read-write", "primary"] {
        assert_eq!(port(attrs).unwrap(), "primary", "{attrs}");
    }
    for attrs in ["any", "read-only", "standby", "prefer-standby"] {
        assert_eq!(port(attrs).unwrap(), "standby", "{attrs}");
    }
    let error = port("master").unwrap_err();
    assert!(
        error.contains("target_session_attrs") && error.contains("master"),
        "{error}"
    );
    // The wish is for one that is not there.
    standby.crash();
    assert_eq!(port("prefer-standby").unwrap(), "primary");
    let error = port("standby").unwrap_err();
    assert!(error.contains("not a standby"), "{error}");
}
