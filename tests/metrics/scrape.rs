//! A scrape, parsed as Prometheus parses it; promtool.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use worker_heartbeat::{Metrics, Registry};

/// All lines of one scrape, by name and labels.
#[derive(Debug)]
pub struct Scrape(pub BTreeMap<String, f64>);

impl Scrape {
    pub fn of(metrics: &Metrics) -> Self {
        Self::read(&metrics.text())
    }

    pub fn new(registry: &Registry) -> Self {
        Self::of(&Metrics::new(registry))
    }

    pub fn read(text: &str) -> Self {
        let mut lines = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect(line);
            let value = value.parse().expect(line);
            let twice = lines.insert(series.to_owned(), value);
            assert!(twice.is_none(), "twice: {line}");
        }
        Self(lines)
    }

    /// The value of this line, named without the prefix that all names share.
    #[track_caller]
    pub fn get(&self, series: &str) -> f64 {
        self.find(series)
            .unwrap_or_else(|| panic!("no {series} in {self:#?}"))
    }

    pub fn find(&self, series: &str) -> Option<f64> {
        self.0.get(&format!("worker_heartbeat_{series}")).copied()
    }

    /// The names of the metrics; of a histogram, without the suffixes of its series.
    pub fn names(&self) -> BTreeSet<String> {
        let names = self.0.keys();
        let names = names.map(|series| series.split('{').next().unwrap());
        let suffixes = ["_bucket", "_count", "_sum"];
        let without_suffix = |name: &str| {
            let mut suffixes = suffixes.iter();
            let stem = suffixes.find_map(|suffix| name.strip_suffix(suffix));
            let stem = stem.filter(|stem| stem.ends_with("_seconds"));
            stem.unwrap_or(name).to_owned()
        };
        names.map(without_suffix).collect()
    }

    pub fn counters(&self) -> impl Iterator<Item = (&String, &f64)> {
        let is_counter =
            |(series, _): &(&String, &f64)| series.split('{').next().unwrap().ends_with("_total");
        self.0.iter().filter(is_counter)
    }
}

/// Runs promtool. Returns its output if it found no fault, and fails otherwise.
#[track_caller]
pub fn promtool(arguments: &[&str], input: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("promtool"))
        .find(|program: &PathBuf| program.exists())
        .expect(
            "promtool is missing: install Debian's package `prometheus` (apt-get install \
             --no-install-recommends prometheus), or put promtool of Prometheus 2 into the PATH",
        );
    let mut promtool = Command::new(found)
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{arguments:?}: {said}");
    if arguments == ["check", "metrics"] {
        assert_eq!(said.trim(), "", "promtool found a fault");
    }
}
