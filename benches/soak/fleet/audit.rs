//! What the workers did, and what the stores said of them: compared.
//!
//! * **False death**: a sweep marked a worker offline although its process ran: it had not been killed,
//!   and had not been stopped within the last [`STALE_AFTER`] and three intervals.
//! * **Double holder**: two leases of one run, each held by `Lease::is_held` at a moment when the other
//!   was held too.
//! * **Repeated fence**: a fence was granted twice for a run, or a claim was granted with a fence that is
//!   lower than one granted for the run before the claim began.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use worker_heartbeat::fleet::StoredWorker;
use worker_heartbeat::{Error, HeartbeatStore, PostgresStore, SweepReport};

use super::{INTERVAL, STALE_AFTER, micros};

/// A lease: the run, the worker and the fence.
type Holder = (String, String, u64);

/// See the module. The workers' processes report to it over a socket.
pub(crate) struct Audit {
    address: SocketAddr,
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    /// By process: since when it runs, if it runs.
    running: HashMap<usize, u64>,
    /// The highest fence by which a run was written.
    table: HashMap<String, u64>,
    /// The fences that were granted for a run, and when that was known.
    granted: HashMap<String, Vec<(u64, u64)>>,
    /// When a holder first and last believed.
    beliefs: HashMap<Holder, (u64, u64)>,
    incarnations: HashMap<String, u64>,
    found: Found,
}

/// What was found.
#[derive(Clone, Default)]
pub(crate) struct Found {
    pub granted: usize,
    pub accepted: usize,
    pub refused: usize,
    pub sweeps: usize,
    pub sweep_failures: usize,
    pub true_deaths: usize,
    pub false_deaths: Vec<String>,
    pub double_holders: Vec<String>,
    pub repeated_fences: Vec<String>,
    pub lower_incarnations: Vec<String>,
}

impl Found {
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        let kinds = [
            ("false death", &self.false_deaths),
            ("double holder", &self.double_holders),
            ("repeated fence", &self.repeated_fences),
            ("lower incarnation", &self.lower_incarnations),
        ];
        kinds.into_iter().flat_map(|(kind, found)| {
            found
                .iter()
                .take(20)
                .map(move |what| format!("{kind}: {what}"))
        })
    }
}

impl Audit {
    pub(crate) fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let audit = Arc::new(Self {
            address: listener.local_addr().expect("an address"),
            records: Mutex::default(),
        });
        let serving = Arc::clone(&audit);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = Arc::clone(&serving);
                thread::spawn(move || serving.serve(stream));
            }
        });
        audit
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, this process runs without a pause.
    pub(crate) fn runs(&self, process: usize) {
        let mut records = self.records.lock().expect("no panic");
        records.running.insert(process, micros());
    }

    /// From now on, it does not.
    pub(crate) fn does_not_run(&self, process: usize) {
        let mut records = self.records.lock().expect("no panic");
        records.running.remove(&process);
    }

    /// Notes the report of a sweep of this store.
    pub(crate) fn swept(&self, swept: &Result<SweepReport, Error>, store: &PostgresStore) {
        let mut records = self.records.lock().expect("no panic");
        let report = match swept {
            Ok(report) => report,
            Err(_) => {
                records.found.sweep_failures += 1;
                return;
            }
        };
        records.found.sweeps += usize::from(report.success);
        let grace = STALE_AFTER + 3 * INTERVAL;
        let now = micros();
        for id in &report.marked_offline {
            let process = id.trim_start_matches('w').split('-').next();
            let process: usize = process.and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
            let ran = records.running.get(&process);
            let ran = ran.map(|since| Duration::from_micros(now.saturating_sub(*since)));
            match ran {
                Some(ran) if ran > grace => {
                    // Unless it has come back meanwhile.
                    let found = store.find(id).ok().flatten();
                    let ending = found.and_then(|worker| Some(worker.ending?.0.cause));
                    let what = format!(
                        "{id}, whose process had run for {ran:?}, at {now}, cause {ending:?}"
                    );
                    eprintln!("false death: {what}");
                    records.found.false_deaths.push(what);
                }
                _ => records.found.true_deaths += 1,
            }
        }
    }

    pub(crate) fn listed(&self, workers: &[StoredWorker]) {
        let mut records = self.records.lock().expect("no panic");
        for worker in workers {
            let key = &worker.key;
            let before = records.incarnations.insert(key.id.clone(), key.incarnation);
            if let Some(before) = before.filter(|before| *before > key.incarnation) {
                let what = format!("{key} after {before}");
                records.found.lower_incarnations.push(what);
            }
        }
    }

    fn serve(&self, stream: TcpStream) {
        let Ok(mut writer) = stream.try_clone() else {
            return;
        };
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(answer) = self.note(&line) {
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    }

    /// Notes a line of a worker. Returns the answer, if it needs one.
    fn note(&self, line: &str) -> Option<&'static str> {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, run, worker, fence, at] = words[..] else {
            return None;
        };
        let (fence, at) = (fence.parse::<u64>().ok()?, at.parse::<u64>().ok()?);
        let mut records = self.records.lock().expect("no panic");
        let records = &mut *records;
        match what {
            "granted" => {
                records.found.granted += 1;
                // `at` is when the claim began.
                let grants = records.granted.entry(run.to_owned()).or_default();
                let is_repeated =
                    |grant: &&(u64, u64)| grant.0 == fence || (grant.0 > fence && grant.1 < at);
                if let Some((before, _)) = grants.iter().find(is_repeated) {
                    let what = format!("{run}: {fence} for {worker} after {before}");
                    eprintln!("repeated fence: {what}");
                    records.found.repeated_fences.push(what);
                }
                grants.push((fence, micros()));
                None
            }
            "believes" => {
                let holder = (run.to_owned(), worker.to_owned(), fence);
                let (first, last) = records.beliefs.entry(holder).or_insert((at, at));
                *first = at.min(*first);
                *last = at.max(*last);
                None
            }
            // The table that refuses lower fences.
            "write" => {
                let highest = records.table.entry(run.to_owned()).or_default();
                if fence < *highest {
                    records.found.refused += 1;
                    return Some("refused\n");
                }
                *highest = fence;
                records.found.accepted += 1;
                Some("accepted\n")
            }
            _ => None,
        }
    }

    pub(crate) fn found(&self) -> Found {
        let records = self.records.lock().expect("no panic");
        let mut found = records.found.clone();
        let mut by_run: HashMap<&str, Vec<(u64, u64, &Holder)>> = HashMap::new();
        for (holder, (first, last)) in &records.beliefs {
            let beliefs = by_run.entry(&holder.0).or_default();
            beliefs.push((*first, *last, holder));
        }
        for beliefs in by_run.values_mut() {
            beliefs.sort_unstable();
            let mut latest = beliefs[0];
            for belief in &beliefs[1..] {
                if belief.0 < latest.1 {
                    let overlap = latest.1.min(belief.1) - belief.0;
                    found.double_holders.push(format!(
                        "{:?} and {:?} for {overlap} µs",
                        latest.2, belief.2
                    ));
                }
                if belief.1 > latest.1 {
                    latest = *belief;
                }
            }
        }
        found
    }
}
