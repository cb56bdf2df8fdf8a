//! What a fleet of ten thousand, a hundred thousand and a million workers costs: heartbeats, reads and
//! sweeps, in PostgreSQL, in SQLite and through a coordinator.
//!
//! ```text
//! cargo bench --features cli --bench fleet
//! cargo bench --features cli --bench fleet -- --quick
//! cargo bench --features cli --bench fleet -- --only postgres --workers 1000000
//! cargo bench --features cli --bench fleet -- --write docs/BENCHMARKS.md
//! ```
//!
//! `--quick` measures ten thousand workers with fewer repetitions. Each kind of work runs in a process of
//! its own, so that its memory and its time of the processor are its own.

mod client;
#[path = "../figures/contest.rs"]
#[allow(dead_code, reason = "only the spread is used")]
mod contest;
mod measure;
#[path = "../figures/noise.rs"]
mod noise;
#[path = "../figures/page.rs"]
mod page;
#[path = "../../tests/support/postgres.rs"]
mod server;
mod servers;
#[path = "../figures/stopwatch.rs"]
#[allow(dead_code, reason = "needed by the contest")]
mod stopwatch;

use std::time::{Duration, Instant};

use client::Work;
use contest::Spread;
use noise::Noise;
use servers::{Kind, Place};

const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = arguments.first().filter(|word| word.starts_with("--role-")) {
        return match role.as_str() {
            "--role-client" => client::run(&arguments[1..]),
            "--role-coordinator" => servers::coordinate(&arguments[1..]),
            _ => measure::run_program(&arguments[1..]),
        };
    }
    // Cargo's own: `cargo bench` passes it, `cargo test --all-targets` does not.
    if !arguments.iter().any(|word| word == "--bench") {
        println!("run by `cargo bench`, this measures; otherwise it does nothing");
        return;
    }
    let order = Order::read(&arguments).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    if let Some(file) = &order.write {
        page::check(file, "fleet").unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let text = order.carry_out();
    if let Some(file) = &order.write {
        page::rewrite(file, "fleet", &text).unwrap_or_else(|error| panic!("{file}: {error}"));
        println!("written to {file}");
    }
}

/// What the command line asks for.
struct Order {
    kinds: Vec<Kind>,
    sizes: Vec<usize>,
    quick: bool,
    write: Option<String>,
}

impl Order {
    fn read(arguments: &[String]) -> Result<Self, String> {
        let mut order = Self {
            kinds: Kind::ALL.to_vec(),
            sizes: SIZES.to_vec(),
            quick: false,
            write: None,
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => {}
                "--quick" => {
                    order.quick = true;
                    order.sizes = vec![SIZES[0]];
                }
                "--only" => {
                    let name = value()?;
                    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
                    let known = Kind::ALL.map(Kind::name);
                    order.kinds = vec![kind.ok_or(format!("--only needs one of {known:?}"))?];
                }
                "--workers" => {
                    let count = value()?.parse();
                    let count = count.ok().filter(|count| *count >= 1_000);
                    order.sizes = vec![count.ok_or("--workers needs a number, at least 1000")?];
                }
                "--write" => order.write = Some(value()?.clone()),
                other => {
                    return Err(format!(
                        "unknown: {other}; known: --quick, --only <store>, --workers <number>, \
                         --write <file>"
                    ));
                }
            }
        }
        if order.write.is_some() && (order.quick || order.kinds.len() < Kind::ALL.len()) {
            return Err("only the whole table can be written".to_owned());
        }
        Ok(order)
    }

    fn carry_out(&self) -> String {
        let begun = Instant::now();
        server::WAITS_FOR_DISK.store(true, std::sync::atomic::Ordering::Relaxed);
        let before = Noise::measure();
        let mut table = Table::default();
        for kind in &self.kinds {
            for size in &self.sizes {
                measure_fleet(&mut table, *kind, *size, self.quick);
            }
        }
        let after = Noise::measure();
        let noise =
            format!("Noise: a loop that is always the same took {before} before, {after} after.");
        println!("\n{noise}\ntook {:.0} s", begun.elapsed().as_secs_f64());
        let missed = table.missed;
        println!("{missed} figures are not reached");
        format!(
            "{}\nMeasured by `cargo bench --bench fleet` with worker-heartbeat {}; PostgreSQL {}, \
             SQLite and clients share the machine: {}. {noise}",
            table.text,
            env!("CARGO_PKG_VERSION"),
            servers::version(),
            noise::machine(),
        )
    }
}

/// The table, printed row by row.
struct Table {
    text: String,
    missed: usize,
    place: String,
}

impl Default for Table {
    fn default() -> Self {
        let mut table = Self {
            text: String::new(),
            missed: 0,
            place: String::new(),
        };
        table.line(
            "| store | workers | work | measured: median (min..max) | must reach | reached |",
        );
        table.line("| --- | --- | --- | --- | --- | --- |");
        table
    }
}

impl Table {
    fn line(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn add(&mut self, work: &str, spread: Spread, unit: &str, most: Option<f64>) {
        let Spread { median, min, max } = spread;
        let digits = |value: f64| match value.abs() {
            100.0.. => 0,
            10.0.. => 1,
            _ => 2,
        };
        let d = digits(median);
        let spread = if min == max {
            format!("{median:.d$} {unit}")
        } else {
            format!("{median:.d$} {unit} ({min:.d$}..{max:.d$})")
        };
        // A number of things has no unit.
        let spread = spread.trim_end();
        let must = most.map_or("-".to_owned(), |most| format!("<= {most} {unit}"));
        let reached = match most {
            Some(most) if median <= most => "yes",
            Some(_) => {
                self.missed += 1;
                "**no**"
            }
            None => "-",
        };
        let place = self.place.clone();
        self.line(&format!(
            "| {place} | {work} | {spread} | {must} | {reached} |"
        ));
    }
}

/// `1 M`, `100 k`.
fn short(count: usize) -> String {
    match count {
        1_000_000.. if count % 1_000_000 == 0 => format!("{} M", count / 1_000_000),
        1_000.. if count % 1_000 == 0 => format!("{} k", count / 1_000),
        _ => count.to_string(),
    }
}

fn measure_fleet(table: &mut Table, kind: Kind, size: usize, quick: bool) {
    table.place = format!("{} | {}", kind.name(), short(size));
    let place = Place::new(kind, size);
    let repeats = if quick { 2 } else { 5 };
    // The bounds are those of a million workers.
    let bound = |most: f64| (size >= 1_000_000).then_some(most);

    let filled = place.client(Work::Fill, size, if quick { 1 } else { 3 });
    table.add(
        "registrations",
        filled.spread("registrations"),
        "rows/s",
        None,
    );
    table.add("heartbeats", filled.spread("heartbeats"), "rows/s", None);
    let rows = filled.total("rows");
    if let Some(wal) = filled.used.wal {
        table.add(
            "WAL of a heartbeat",
            Spread::exactly(wal / rows),
            "bytes",
            None,
        );
    }
    if let Some(cpu) = filled.used.server_cpu {
        table.add(
            "server's processor time of a heartbeat",
            Spread::exactly(cpu * 1e6 / rows),
            "µs",
            None,
        );
    }
    if let Some(connections) = filled.used.connections {
        let counted = Spread::exactly(connections);
        table.add("connections to the server meanwhile", counted, "", None);
    }
    table.add(
        "client's processor time of a heartbeat",
        Spread::exactly(filled.total("cpu") * 1e6 / rows),
        "µs",
        None,
    );
    table.add(
        "size of the store, a worker",
        Spread::exactly(place.bytes() / size as f64),
        "bytes",
        None,
    );
    table.add(
        "memory of a client that sends 5000 heartbeats",
        Spread::exactly(filled.memory_mb),
        "MB",
        None,
    );

    for (work, name, most) in [
        (Work::Summary, "`summary()`", Some(500.0)),
        (Work::Counts, "`counts()`", Some(500.0)),
        (
            Work::Worst,
            "`worst_first()`: 100, all are well",
            Some(50.0),
        ),
        (Work::Page, "`list()`: 100 in the middle", Some(50.0)),
    ] {
        let read = place.client(work, size, repeats);
        table.add(name, read.spread("ms"), "ms", most.and_then(bound));
        let memory = Spread::exactly(read.memory_mb);
        table.add(&format!("{name}: memory"), memory, "MB", bound(64.0));
    }
    for (name, arguments) in [
        ("`heartbeat-monitor status`", &["status"][..]),
        ("`heartbeat-monitor status --json`", &["status", "--json"]),
        ("`heartbeat-monitor check`", &["check"]),
    ] {
        let Some(run) = place.monitor(arguments, repeats) else {
            continue;
        };
        table.add(name, run.spread("ms"), "ms", None);
        table.add(
            &format!("{name}: memory"),
            Spread::exactly(run.memory_mb),
            "MB",
            bound(64.0),
        );
        table.add(&format!("{name}: output"), run.spread("kB"), "kB", None);
    }

    let swept = place.client(Work::Sweep, size, 1);
    for (name, key) in [
        ("a sweep, all well", "none"),
        ("a sweep, 1 % stale", "hundredth"),
        ("a sweep, 30 % stale", "third"),
    ] {
        let most = (key == "hundredth").then_some(1_000.0).and_then(bound);
        table.add(name, swept.spread(key), "ms", most);
    }
    table.add(
        "the longest of the heartbeats of 100 workers during the last sweep",
        swept.spread("meanwhile"),
        "ms",
        bound(1_000.0),
    );
    table.add(
        "memory of the sweeper",
        Spread::exactly(swept.memory_mb),
        "MB",
        bound(64.0),
    );
    if let Some(memory) = place.coordinator_memory() {
        table.add(
            "memory of the coordinator",
            Spread::exactly(memory),
            "MB",
            bound(64.0),
        );
    }
}

/// How long a read may take all its repetitions together.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
