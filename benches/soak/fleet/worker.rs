//! A process with workers that beat, claim runs and write with their fences.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{Activity, FleetConfig, Registry, WorkerHeartbeat};

use super::{INTERVAL, RUNS, Random, STALE_AFTER, TTL, WORKERS, micros, open};

/// The socket to the audit.
struct Reports(Mutex<(TcpStream, BufReader<TcpStream>)>);

impl Reports {
    fn report(&self, what: &str, lease: &Held<'_>, at: u64) {
        let mut socket = self.0.lock().expect("no panic");
        let line = lease.line(what, at);
        socket.0.write_all(line.as_bytes()).expect("the audit");
    }

    /// Writes to the table that refuses lower fences. Returns whether it accepted that.
    fn write(&self, lease: &Held<'_>) -> bool {
        let mut socket = self.0.lock().expect("no panic");
        let line = lease.line("write", micros());
        socket.0.write_all(line.as_bytes()).expect("the audit");
        let mut answer = String::new();
        socket.1.read_line(&mut answer).expect("the audit");
        answer.trim() == "accepted"
    }
}

struct Held<'a> {
    run: &'a str,
    worker: &'a str,
    fence: i64,
}

impl Held<'_> {
    fn line(&self, what: &str, at: u64) -> String {
        let Self { run, worker, fence } = self;
        format!("{what} {run} {worker} {fence} {at}\n")
    }
}

/// The process: its number, the seed, the URL of the servers, the address of the audit.
pub(crate) fn play(arguments: &[String]) {
    let [process, seed, url, audit] = arguments else {
        panic!("{arguments:?}");
    };
    let seed: u64 = seed.parse().expect("a number");
    let socket = TcpStream::connect(audit).expect("the audit");
    let reader = BufReader::new(socket.try_clone().expect("a socket"));
    let reports = Reports(Mutex::new((socket, reader)));
    let registry = Registry::new();
    let attached = registry.attach(open(url), FleetConfig::new());
    let _attachment = attached.expect("a thread");
    thread::scope(|scope| {
        for n in 0..WORKERS {
            let id = format!("w{process}-{n}");
            let random = Random::new(seed.wrapping_add(n as u64));
            let (registry, reports) = (&registry, &reports);
            scope.spawn(move || work(registry, reports, &id, random));
        }
        // The end of the parent is the end.
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        std::process::exit(0);
    });
}

/// Lives for ever: a worker that was fenced starts again.
fn work(registry: &Registry, reports: &Reports, id: &str, mut random: Random) {
    loop {
        let started = WorkerHeartbeat::builder("soaked")
            .id(id)
            .interval(INTERVAL)
            .stale_after(STALE_AFTER)
            .registry(registry)
            .start();
        let Ok(hb) = started else {
            thread::sleep(INTERVAL);
            continue;
        };
        while !hb.stop_requested() && !hb.health().state().is_terminal() {
            hb.beat();
            thread::sleep(random.millis(20, 100));
            if random.below(10) == 0 {
                let run = format!("run-{}", random.below(RUNS));
                hold(&hb, reports, id, &run, &mut random);
            }
        }
    }
}

/// Claims a run, and works on it for as long as it is held, or until it is done.
fn hold(hb: &WorkerHeartbeat, reports: &Reports, id: &str, run: &str, random: &mut Random) {
    let claimed = micros();
    let Ok(Some(lease)) = hb.claim(run, TTL) else {
        return;
    };
    let held = Held {
        run,
        worker: id,
        fence: lease.fence(),
    };
    reports.report("granted", &held, claimed);
    hb.update_task(run, "at work", Activity::Processing);
    let (begun, time) = (Instant::now(), random.millis(100, 8_000));
    loop {
        // What `is_held` says a moment later is true of this moment too.
        let at = micros();
        if !lease.is_held() {
            break;
        }
        reports.report("believes", &held, at);
        hb.beat();
        if !reports.write(&held) || begun.elapsed() > time {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    hb.mark_idle();
    // A release that fails is sent again in the background.
    let _ = lease.release();
}
