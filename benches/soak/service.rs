//! The service: workers that are always well, and workers that crash, fail and hang, each of which
//! notes what it really does.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    BoxError, HealthEndpoint, Probe, Registry, Restart, State, Supervisor, WorkerHeartbeat,
};

const STEADY: u64 = 4;
const TROUBLED: u64 = 96;
const STALL_AFTER: Duration = Duration::from_millis(500);
/// A thread may wait so long for a processor, on a machine that is busy with two thousand requests a
/// second: what happened within that time of a limit is not compared.
const MARGIN: u64 = 400;

/// What a worker does, and since when: milliseconds, and a kind in the last two bits.
#[derive(Default)]
struct Deed(AtomicU64);

const UNKNOWN: u64 = 0;
const WORKS: u64 = 1;
const HANGS: u64 = 2;
const ENDS: u64 = 3;

fn millis() -> u64 {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

impl Deed {
    fn note(&self, kind: u64) {
        self.0.store(millis() << 2 | kind, Ordering::SeqCst);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Works for a while, and then something happens to it.
fn suffer(
    hb: &WorkerHeartbeat,
    deed: &Deed,
    faults: &AtomicU64,
    seed: u64,
) -> Result<(), BoxError> {
    let mut random = seed | 1;
    loop {
        // xorshift: any sequence will do, as long as it is another one for each life.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        deed.note(UNKNOWN);
        hb.beat();
        deed.note(WORKS);
        for step in 0..10 + random % 60 {
            hb.update_task("run-1", "at work", worker_heartbeat::Activity::Processing);
            thread::sleep(Duration::from_millis(50));
            if hb.stop_requested() {
                deed.note(UNKNOWN);
                return Ok(());
            }
            if step % 8 == 0 {
                hb.beat();
            }
        }
        faults.fetch_add(1, Ordering::Relaxed);
        match random >> 32 & 3 {
            0 => {
                deed.note(ENDS);
                panic!("something is wrong with page {}", random % 1000);
            }
            1 => {
                deed.note(ENDS);
                return Err("the other side has gone".into());
            }
            _ => {
                deed.note(HANGS);
                thread::sleep(STALL_AFTER * 4);
            }
        }
    }
}

/// Whether the verdict is wrong, for a worker that did this at that moment and still does.
fn is_wrong(deed: u64, health: State) -> bool {
    let since = millis() - (deed >> 2);
    let limit = STALL_AFTER.as_millis() as u64;
    match deed & 3 {
        WORKS => !health.is_recent(),
        HANGS if since + MARGIN < limit => !health.is_recent(),
        HANGS if since > limit + MARGIN => health != State::Stalled,
        // It is dead, or just being started again.
        ENDS if since > MARGIN => !matches!(health, State::Dead | State::Starting),
        _ => false,
    }
}

/// The service's process.
pub(crate) fn serve() {
    std::panic::set_hook(Box::new(|_| {}));
    let registry = Registry::global();
    let supervisor = Supervisor::new(registry).restart(
        Restart::on_failure()
            .max(u32::MAX)
            .backoff(Duration::from_millis(200), Duration::from_secs(2)),
    );
    let faults = Arc::new(AtomicU64::new(0));
    let mut watched: Vec<(Probe, Arc<Deed>)> = Vec::new();
    for number in 1..=STEADY + TROUBLED {
        let deed = Arc::new(Deed::default());
        let (noted, faults) = (Arc::clone(&deed), Arc::clone(&faults));
        let steady = number <= STEADY;
        let (worker_type, n) = if steady {
            ("steady", number)
        } else {
            ("troubled", number - STEADY)
        };
        let builder = WorkerHeartbeat::builder(worker_type)
            .id(format!("{worker_type}-{n}"))
            .stall_after(STALL_AFTER);
        let mut life = number << 20;
        let worker = supervisor.spawn(builder, move |hb: &WorkerHeartbeat| {
            life += 1;
            if !steady {
                return suffer(
                    hb,
                    &noted,
                    &faults,
                    life.wrapping_mul(0x9E37_79B9_7F4A_7C15),
                );
            }
            hb.beat();
            noted.note(WORKS);
            while !hb.stop_requested() {
                hb.beat();
                thread::sleep(Duration::from_millis(20));
            }
            noted.note(UNKNOWN);
            Ok(())
        });
        watched.push((worker.expect("a worker").probe(), deed));
    }
    while watched.iter().any(|(_, deed)| deed.read() == UNKNOWN) {
        thread::yield_now();
    }
    let server = HealthEndpoint::new(registry)
        .serve("127.0.0.1:0")
        .expect("a port");
    println!("{}", server.local_addr());

    let (ending, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        let _ = ending.send(());
    });
    let (mut compared, mut wrong) = (0, 0);
    while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        for (probe, deed) in &watched {
            let before = deed.read();
            let health = probe.health();
            if deed.read() != before || before & 3 == UNKNOWN {
                continue;
            }
            compared += 1;
            if is_wrong(before, health.state()) {
                wrong += 1;
                println!(
                    "wrong {}: {health}, at {} for {} ms",
                    probe.id(),
                    before & 3,
                    millis() - (before >> 2)
                );
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    println!(
        "truth {compared} {wrong} {}",
        faults.load(Ordering::Relaxed)
    );
    drop(server);
    let _ = supervisor.shutdown(Duration::from_secs(10));
}

/// The service, as its user sees it.
pub(crate) struct Service {
    child: Child,
    pub address: SocketAddr,
    said: BufReader<std::process::ChildStdout>,
}

/// How often what it said was not so.
#[derive(Default)]
pub(crate) struct Truth {
    pub compared: u64,
    pub wrong: u64,
    pub faults: u64,
    pub examples: Vec<String>,
}

impl Service {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("an address");
        let address = line.trim().parse().expect("an address");
        Self {
            child,
            address,
            said,
        }
    }

    /// What it takes of the memory, in kilobytes.
    pub(crate) fn resident_kb(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).expect("a living process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.and_then(|line| line.split_whitespace().next());
        words.and_then(|kb| kb.parse().ok()).expect("a number")
    }

    pub(crate) fn end(mut self) -> Truth {
        let mut stdin = self.child.stdin.take().expect("a pipe");
        stdin.write_all(b"end\n").expect("a living process");
        let mut truth = Truth::default();
        for line in (&mut self.said).lines().map_while(Result::ok) {
            if let Some(figures) = line.strip_prefix("truth ") {
                let figures: Vec<u64> = figures.split(' ').filter_map(|f| f.parse().ok()).collect();
                (truth.compared, truth.wrong, truth.faults) = (figures[0], figures[1], figures[2]);
            } else if truth.examples.len() < 10 {
                truth.examples.push(line);
            }
        }
        let status = self.child.wait().expect("an end");
        assert!(status.success(), "{status}");
        truth
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
