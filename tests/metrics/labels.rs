//! Whatever names applications give their workers, the metrics can be parsed.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry as Application;
use worker_heartbeat::{MemoryStore, Metrics};

use crate::scrape::{Scrape, promtool};
use crate::support::World;

#[test]
fn hostile_names_are_escaped_and_cut() {
    let world = World::new();
    let hostile = "a\"b\\c{d=\"e\"} 1";
    let longest = "ä".repeat(100);
    let named = |worker_type: &str| world.worker(worker_type).id(worker_type).start().unwrap();
    let workers = [hostile, &longest, "{}", "\\", "\"", "→", "#"].map(named);
    workers.iter().for_each(|hb| hb.beat());
    world.registry.expect_workers("line\nbreak\r", 1);
    // Both names are equal when they are cut.
    let endless = "x".repeat(1_000_000);
    world.registry.expect_workers(format!("{endless}1"), 1);
    world.registry.expect_workers(format!("{endless}2"), 2);
    let metrics = Metrics::new(&world.registry).per_worker(true);
    let written = metrics.text();
    let line = "worker_heartbeat_beats_total{worker_type=\"a\\\"b\\\\c{d=\\\"e\\\"} 1\"} 1\n";
    assert!(written.contains(line), "{written}");
    assert!(written.contains("missing_workers{worker_type=\"line\\nbreak\r\"} 1\n"));
    assert!(written.contains(&format!(
        "missing_workers{{worker_type=\"{}\"}} 3\n",
        &endless[..200]
    )));
    assert!(written.contains(&format!("beats_total{{worker_type=\"{longest}\"}} 1\n")));
    assert!(written.split('\n').all(|line| line.len() < 1_000));
    let mut each = written.split('\n').filter(|line| !line.is_empty());
    assert!(each.all(|line| line.starts_with("worker_heartbeat_") || line.starts_with('#')));
    promtool(&["check", "metrics"], &written);
}

#[test]
fn types_beyond_the_limit_are_exported_together() {
    let world = World::new();
    for n in 0..1_200 {
        let hb = world.worker(&format!("type-{n}")).start().unwrap();
        hb.beat();
    }
    let scrape = Scrape::new(&world.registry);
    let types = scrape.0.keys();
    let types = types.filter(|series| series.starts_with("worker_heartbeat_beats_total"));
    assert_eq!(types.count(), 1_001);
    assert_eq!(scrape.get("beats_total{worker_type=\"(other)\"}"), 200.0);
    assert_eq!(scrape.get("beats_total{worker_type=\"type-7\"}"), 1.0);
}

#[test]
fn metrics_can_join_the_registry_of_an_application() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    let mut application = Application::with_prefix("shop");
    application.register_collector(Box::new(Metrics::new(&world.registry)));
    let mut written = String::new();
    text::encode(&mut written, &application).unwrap();
    assert!(written.contains("shop_worker_heartbeat_beats_total{worker_type=\"w\"} 1\n"));
    assert!(written.contains("# UNIT shop_worker_heartbeat_pacemaker_tick_age_seconds seconds\n"));
    assert!(written.ends_with("# EOF\n"));
}

#[test]
fn both_formats_export_the_same_values() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    let metrics = Metrics::new(&world.registry).fleet(MemoryStore::new());
    let (openmetrics, plain) = (metrics.openmetrics(), metrics.text());
    assert!(openmetrics.contains("# TYPE worker_heartbeat_beats counter\n"));
    assert!(openmetrics.ends_with("# EOF\n"));
    assert!(plain.contains("# TYPE worker_heartbeat_beats_total counter\n"));
    assert!(!plain.contains("# EOF") && !plain.contains("# UNIT"));
    let names = |text: &str| Scrape::read(text).0.into_keys().collect::<Vec<_>>();
    assert_eq!(names(&openmetrics), names(&plain));
}
