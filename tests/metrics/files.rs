//! The files for Prometheus and Grafana: they are valid, and name only metrics that exist.

use std::collections::BTreeSet;
use std::time::Duration;

use worker_heartbeat::fleet::{Beat, HeartbeatStore, Registration};
#[cfg(feature = "http")]
use worker_heartbeat::{Coordinator, HealthEndpoint};
use worker_heartbeat::{FleetConfig, MemoryStore, Metrics, State, Sweeper};

use crate::scrape::{Scrape, promtool};
use crate::support::{PATIENCE, SECOND, World};

/// The text of a scrape that has every metric.
fn everything() -> String {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let key = store
        .register(&[Registration::new("lost", "l")])
        .unwrap()
        .remove(0);
    store.beat(&[Beat::new(key, State::Active)]).unwrap();
    let sweeper = Sweeper::new(store.clone())
        .clock(world.time.clock())
        .watched_for(Duration::from_secs(1_000_000));
    world.seconds(100);
    assert_eq!(sweeper.sweep().unwrap().marked_offline.len(), 1);
    world.registry.expect_workers("w", 2);
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    let _lease = hb.claim("run-1", 60 * SECOND).unwrap().unwrap();
    assert!(world.registry.sweep().success);
    Metrics::new(&world.registry)
        .per_worker(true)
        .fleet(store)
        .sweeper(&sweeper)
        .text()
}

/// The text of a scrape of an endpoint that serves a coordinator.
#[cfg(feature = "http")]
fn of_an_endpoint() -> String {
    let server = HealthEndpoint::new(&World::new().registry)
        .coordinator(Coordinator::new(MemoryStore::new()))
        .serve("127.0.0.1:0")
        .unwrap();
    crate::http::get(server.local_addr(), "").body
}

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every name in a text that looks like a metric of this crate.
fn mentioned(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("worker_heartbeat_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn promtool_finds_no_fault_with_the_metrics() {
    promtool(&["check", "metrics"], &everything());
}

#[test]
fn the_alert_rules_are_valid_and_fire_when_they_should() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
}

#[test]
fn every_alert_is_tested() {
    let alerts = read("examples/prometheus/alerts.yml");
    let tests = read("examples/prometheus/alerts_test.yml");
    let names = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let names: Vec<_> = names.collect();
    assert!(names.len() > 10);
    for name in names {
        // While all is well, before the alert fires, and when it does.
        let tested = tests.matches(&format!("alertname: {name}\n")).count();
        assert_eq!(tested, 3, "{name}");
    }
}

#[test]
fn what_the_files_mention_is_exported_and_what_is_exported_is_documented() {
    let mut exported = Scrape::read(&everything()).names();
    #[cfg(feature = "http")]
    exported.extend(Scrape::read(&of_an_endpoint()).names());
    for path in [
        "examples/prometheus/alerts.yml",
        "examples/prometheus/alerts_test.yml",
        "examples/prometheus/grafana.json",
        "docs/guide/metrics.md",
    ] {
        let mentioned = mentioned(&read(path));
        let unknown: Vec<_> = mentioned.difference(&exported).collect();
        assert!(
            !mentioned.is_empty() && unknown.is_empty(),
            "{path}: {unknown:?}"
        );
    }
    let page = read("docs/guide/metrics.md");
    for name in &exported {
        assert!(
            page.contains(&format!("| `{name}` |")),
            "{name} is not in the page's tables"
        );
    }
}

#[cfg(feature = "http")]
#[test]
fn the_dashboard_can_be_imported() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("examples/prometheus/grafana.json")).unwrap();
    assert!(dashboard["id"].is_null(), "Grafana assigns the id");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!(variables[0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{}",
            panel["title"]
        );
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(
            panel["datasource"]["uid"], "${datasource}",
            "{}",
            panel["title"]
        );
        assert!(!panel["targets"].as_array().unwrap().is_empty());
    }
}
