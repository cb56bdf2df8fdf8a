//! Policies of the health endpoint.

use crate::health_endpoint::Site;
use crate::support::store::TestStore;
use worker_heartbeat::{
    Error, FleetConfig, HealthEndpoint, Policy, Registry, State, WorkerHeartbeat,
};

/// An endpoint for one worker of each type, of which `batch` is dead.
fn site(configure: impl FnOnce(HealthEndpoint) -> HealthEndpoint) -> (Site, Vec<WorkerHeartbeat>) {
    let site = Site::with(configure);
    let workers = ["indexer", "batch"].map(|name| {
        let builder = site.world.worker(name).id(format!("{name}-1"));
        builder.start().unwrap()
    });
    workers.iter().for_each(WorkerHeartbeat::beat);
    workers[1].fail("no input");
    (site, workers.into())
}

const PATHS: [&str; 4] = ["/livez", "/startupz", "/readyz", "/v1/worker/health"];

fn statuses(site: &Site) -> [u16; 4] {
    PATHS.map(|path| site.status(path))
}

#[test]
fn what_one_policy_tolerates_the_probes_without_one_tolerate_too() {
    let (plain, _workers) = site(|endpoint| endpoint);
    assert_eq!(statuses(&plain), [503; 4]);

    let policy = Policy::readiness().ignore_type("batch");
    let (lenient, workers) = site(|endpoint| endpoint.policy(policy));
    assert_eq!(statuses(&lenient), [200; 4]);
    let reply = lenient.get("/readyz?verbose").body;
    assert!(
        reply.contains("[+]workers ok; tolerated: 1 dead; batch-1: dead: failed: no input"),
        "{reply}"
    );
    let health = lenient.get("/v1/worker/health").json();
    assert_eq!(health["alive"], true);
    assert_eq!(health["policy"], "health, ignoring batch");
    assert_eq!(health["tolerated"][0]["rule"], "workers");
    workers[0].fail("disk full");
    assert_eq!(statuses(&lenient), [503; 4]);
    let reply = lenient.get("/livez").body;
    assert!(
        reply.contains("[-]workers failed: 1 dead; indexer-1: dead: failed: disk full"),
        "{reply}"
    );

    // A policy of its own stays its own.
    let (mixed, _workers) = site(|endpoint| {
        let liveness = Policy::liveness().ignore_type("batch");
        endpoint.policy(liveness).policy(Policy::readiness())
    });
    assert_eq!(statuses(&mixed), [200, 503, 503, 503]);
}

#[test]
fn each_policy_is_for_its_own_route() {
    let (strict, workers) = site(|endpoint| {
        let lenient = Policy::readiness().tolerate_dead(1);
        endpoint
            .policy(Policy::strict().ignore_type("batch"))
            .policy(lenient)
    });
    assert_eq!(statuses(&strict), [200; 4]);
    let newcomer = strict.world.worker("indexer").start().unwrap();
    assert_eq!(statuses(&strict), [200, 503, 503, 503], "it is starting");
    newcomer.beat();
    assert_eq!(statuses(&strict), [200; 4]);
    drop(workers);
    drop(newcomer);
    assert_eq!(statuses(&strict), [200, 200, 200, 503], "no worker lives");
}

#[test]
fn a_policy_that_contradicts_itself_or_names_no_type_is_refused() {
    let serve = |policy| {
        let endpoint = HealthEndpoint::new(&Registry::new()).policy(policy);
        endpoint.serve("127.0.0.1:0").map(drop)
    };
    let refused = |policy| match serve(policy) {
        Err(error @ Error::Invalid { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let empty = refused(Policy::readiness().ignore_type(""));
    assert!(empty.starts_with("invalid worker_type: "), "{empty}");
    let both = Policy::readiness()
        .ignore_type("a")
        .tolerate_dead_in("a", 1);
    let both = refused(both);
    assert!(
        both.contains("type a is either ignored or has exceptions"),
        "{both}"
    );
    serve(Policy::readiness().tolerate(State::Stalled)).unwrap();
}

#[test]
fn a_type_that_no_worker_has_is_shown_and_reasons_are_withheld_from_strangers() {
    let policy = || {
        Policy::readiness()
            .ignore_type("batch")
            .ignore_type("btach")
    };
    let (shown, _workers) = site(|endpoint| endpoint.policy(policy()));
    let reply = shown.get("/readyz?verbose").body;
    assert!(
        reply.contains("[+]policy ok; tolerated: no worker has the type btach"),
        "{reply}"
    );
    let (hidden, _workers) = site(|endpoint| endpoint.policy(policy()).show_reasons(false));
    for path in ["/readyz?verbose", "/v1/worker/health"] {
        let reply = hidden.get(path).body;
        assert!(!reply.contains("no input"), "{reply}");
    }
}

#[test]
fn liveness_depends_on_nothing_but_the_workers() {
    let store = TestStore::default();
    store.fail("no route to host");
    let site = Site::with(|endpoint| endpoint.check("database", || Err("down".to_owned())));
    let config = FleetConfig::new();
    let attachment = site.world.registry.attach(store, config).unwrap();
    let hb = site.world.worker("indexer").start().unwrap();
    hb.beat();
    site.world.seconds(60);
    assert!(attachment.status().failures > 0);
    site.world.registry.expect_workers("batch", 3);
    assert_eq!(statuses(&site), [200, 503, 503, 503]);
}
