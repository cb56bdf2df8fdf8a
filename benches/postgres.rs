//! How many heartbeats PostgreSQL stores in a second, and how long claims and sweeps take.
//!
//! ```text
//! cargo bench --features postgres --bench postgres
//! cargo bench --features postgres --bench postgres -- --write docs/BENCHMARKS.md
//! ```
//!
//! It starts a server of its own from the installed programs, or uses the one that
//! `TEST_DATABASE_URL` names.

#[path = "figures/page.rs"]
mod page;
#[path = "../tests/support/postgres.rs"]
mod server;

use std::time::{Duration, Instant};

use server::{schema, sql, url};
use worker_heartbeat::fleet::{Beat, Registration, Sweep, WorkerKey};
use worker_heartbeat::{HeartbeatStore, PostgresOptions, PostgresStore, State};

const ROUNDS: usize = 7;

fn main() {
    // Cargo's own: `cargo bench` passes it, `cargo test --all-targets` does not.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("run by `cargo bench`, this measures; otherwise it does nothing");
        return;
    }
    let mut arguments = std::env::args().skip_while(|argument| argument != "--write");
    let file = arguments.nth(1);
    if let Some(file) = &file {
        // Before the time is spent.
        page::check(file, "postgres").unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    server::WAITS_FOR_DISK.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut table = Table::default();
    table.line("| work | measured: median (min..max) | must reach | reached |");
    table.line("| --- | --- | --- | --- |");
    for (batch, must) in [(5_000, Some(20_000.0)), (1_000, Some(20_000.0)), (50, None)] {
        heartbeats(&mut table, batch, must);
    }
    claims(&mut table);
    sweeps(&mut table);
    if let Some(file) = file {
        page::rewrite(&file, "postgres", &table.0)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

/// The table, printed line by line.
#[derive(Default)]
struct Table(String);

impl Table {
    fn line(&mut self, line: &str) {
        println!("{line}");
        self.0.push_str(line);
        self.0.push('\n');
    }
}

/// A schema of its own, dropped at the end.
struct Place {
    name: String,
    store: PostgresStore,
}

impl Place {
    fn new(name: &str) -> Self {
        let name = schema(name);
        let options = PostgresOptions::new().schema(&name);
        let options = options.statement_timeout(Duration::from_secs(120));
        Self {
            store: options.connect(url()).expect("a server"),
            name,
        }
    }

    fn workers(&self, count: usize) -> Vec<WorkerKey> {
        let wishes: Vec<_> = (0..count)
            .map(|n| {
                let mut registration = Registration::new("poller", format!("poller-{n:06}"));
                registration.info.group = format!("machine-{}", n % 100);
                registration
            })
            .collect();
        let batches = wishes.chunks(5_000);
        batches
            .flat_map(|batch| self.store.register(batch).expect("keys"))
            .collect()
    }

    fn beat(&self, keys: &[WorkerKey], n: u64) {
        let beats: Vec<_> = keys
            .iter()
            .map(|key| {
                let mut beat = Beat::new(key.clone(), State::Processing);
                beat.status.run_id = Some(format!("run-{n}"));
                beat.status.task = Some("Researching example.com".into());
                beat.status.progress = Some((n, 100));
                beat.status.beats = n;
                beat
            })
            .collect();
        for batch in beats.chunks(5_000) {
            self.store.beat(batch).expect("answers");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        sql(url(), &format!("DROP SCHEMA \"{}\" CASCADE", self.name));
    }
}

fn heartbeats(table: &mut Table, batch: usize, must: Option<f64>) {
    let place = Place::new("beats");
    let keys = place.workers(batch);
    let mut rates: Vec<f64> = (0..ROUNDS as u64 + 1)
        .map(|round| {
            let times = 20_000 / batch as u64;
            let begun = Instant::now();
            for n in 0..times {
                place.beat(&keys, round * times + n);
            }
            (batch as u64 * times) as f64 / begun.elapsed().as_secs_f64()
        })
        // The first one warms up.
        .skip(1)
        .collect();
    let reached = |rate: f64| must.map(|must| rate >= must);
    add(
        table,
        &format!("heartbeats a second, in batches of {batch}"),
        &mut rates,
        "",
        &must.map_or("-".to_owned(), |must| format!(">= {must}")),
        reached,
    );
}

fn claims(table: &mut Table) {
    let place = Place::new("claims");
    let keys = place.workers(1);
    place.beat(&keys, 1);
    let mut times: Vec<f64> = (0..200)
        .map(|n| {
            let claim = worker_heartbeat::fleet::Claim::new(
                keys[0].clone(),
                format!("run-{n}"),
                Duration::from_secs(60),
            );
            let begun = Instant::now();
            place.store.claim(&claim).expect("an answer");
            begun.elapsed().as_secs_f64() * 1e3
        })
        .skip(20)
        .collect();
    add(table, "a claim", &mut times, " ms", "-", |_| None);
}

/// 1,000 of 100,000 are silent.
fn sweeps(output: &mut Table) {
    let place = Place::new("sweep");
    let keys = place.workers(100_000);
    place.beat(&keys, 1);
    let table = format!("\"{}\".worker_heartbeats", place.name);
    sql(url(), &format!("VACUUM ANALYZE {table}"));
    let silence = format!(
        "UPDATE {table} SET last_heartbeat_at = now() - interval '10 minutes', ended_at = NULL, \
         ended_cause = NULL, status = 'active' WHERE right(worker_id, 2) = '42'"
    );
    let mut times = Vec::new();
    let mut none = Vec::new();
    for _ in 0..ROUNDS {
        sql(url(), &silence);
        for (silent, times) in [(1_000, &mut times), (0, &mut none)] {
            let begun = Instant::now();
            let report = place.store.sweep(&Sweep::default()).expect("a report");
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            assert!(report.success);
            assert_eq!(report.marked_offline.len(), silent);
        }
    }
    let work = "a sweep of 100,000 workers";
    let reached = |time: f64| Some(time <= 200.0);
    add(
        output,
        &format!("{work}, of which 1,000 are stale"),
        &mut times,
        " ms",
        "<= 200 ms",
        reached,
    );
    add(
        output,
        &format!("{work}, all well"),
        &mut none,
        " ms",
        "-",
        |_| None,
    );
}

fn add(
    table: &mut Table,
    work: &str,
    figures: &mut [f64],
    unit: &str,
    must: &str,
    reached: impl Fn(f64) -> Option<bool>,
) {
    figures.sort_by(f64::total_cmp);
    let (least, most) = (figures[0], figures[figures.len() - 1]);
    let median = figures[figures.len() / 2];
    let digits = usize::from(median < 100.0);
    let reached = match reached(median) {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "-",
    };
    table.line(&format!(
        "| {work} | {median:.digits$}{unit} ({least:.digits$}..{most:.digits$}) | {must} | {reached} |"
    ));
}
