//! The faults, one after the other.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::audit::Audit;
use super::servers::Servers;
use super::{PROCESSES, RUNS, Random, WORKERS};

/// The time between two failovers.
const BETWEEN_FAILOVERS: Duration = Duration::from_secs(90);

struct Process {
    child: Child,
    /// A process that is killed starts again then; one that is stopped goes on.
    until: Option<Instant>,
    is_stopped: bool,
}

/// Prints a fault, to explain a finding.
fn print(what: impl std::fmt::Display) {
    eprintln!("{}: {what}", super::micros());
}

/// See the module.
pub(crate) struct Faults {
    random: Random,
    seed: u64,
    servers: Servers,
    audit: Arc<Audit>,
    processes: Vec<Process>,
    failed_over: Instant,
    hangs_until: Option<Instant>,
    kills: usize,
    stops: usize,
    locks: usize,
    cuts: usize,
    hangs: usize,
    failovers: usize,
}

impl Faults {
    pub(crate) fn new(seed: u64, servers: Servers, audit: Arc<Audit>) -> Self {
        Self {
            random: Random::new(seed),
            seed,
            servers,
            audit,
            processes: Vec::new(),
            failed_over: Instant::now(),
            hangs_until: None,
            kills: 0,
            stops: 0,
            locks: 0,
            cuts: 0,
            hangs: 0,
            failovers: 0,
        }
    }

    pub(crate) fn url(&self) -> String {
        self.servers.url()
    }

    fn start(&mut self, number: usize) -> Process {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .arg("--fleet-process")
            .arg(number.to_string())
            .arg((self.seed + self.random.below(1 << 40)).to_string())
            .arg(self.servers.url())
            .arg(self.audit.address().to_string())
            .stdin(Stdio::piped())
            .spawn()
            .expect("a process");
        self.audit.runs(number);
        Process {
            child,
            until: None,
            is_stopped: false,
        }
    }

    pub(crate) fn start_processes(&mut self) {
        for number in 0..PROCESSES {
            let process = self.start(number);
            self.processes.push(process);
        }
    }

    /// Ends faults that are over, begins another one, and waits a while.
    pub(crate) fn next(&mut self) {
        self.end_due(Instant::now());
        if self.failed_over.elapsed() > BETWEEN_FAILOVERS {
            self.fail_over();
        } else {
            self.begin();
        }
        let pause = self.random.millis(200, 2_500);
        let end = Instant::now() + pause;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
            self.end_due(Instant::now());
        }
    }

    fn fail_over(&mut self) {
        print("failover begins");
        self.hang(None);
        self.servers.fail_over();
        print("failover ends");
        self.failovers += 1;
        self.failed_over = Instant::now();
    }

    fn hang(&mut self, time: Option<Duration>) {
        self.hangs_until = time.map(|time| Instant::now() + time);
        self.servers.hang(time.is_some());
    }

    fn begin(&mut self) {
        let number = self.random.below(PROCESSES as u64) as usize;
        let is_well = self.processes[number].until.is_none();
        match self.random.below(7) {
            0 if is_well => {
                let time = self.random.millis(300, 25_000);
                print(format_args!(
                    "process {number} is killed, and starts after {time:?}"
                ));
                self.audit.does_not_run(number);
                let process = &mut self.processes[number];
                process.child.kill().expect("a living process");
                process.child.wait().expect("an end");
                process.until = Some(Instant::now() + time);
                self.kills += 1;
            }
            1 | 2 if is_well => {
                let time = self.random.millis(100, 35_000);
                print(format_args!("process {number} is stopped for {time:?}"));
                self.audit.does_not_run(number);
                self.signal(number, Signal::SIGSTOP);
                let process = &mut self.processes[number];
                process.is_stopped = true;
                process.until = Some(Instant::now() + time);
                self.stops += 1;
            }
            3 => {
                let n = self.random.below(WORKERS as u64);
                let seconds = self.random.millis(500, 40_000).as_secs_f64();
                let condition = format!("worker_id = 'w{number}-{n}'");
                print(format_args!("{condition} is locked for {seconds} s"));
                self.servers.lock("worker_heartbeats", &condition, seconds);
                self.locks += 1;
            }
            4 => {
                let run = self.random.below(RUNS);
                let seconds = self.random.millis(500, 15_000).as_secs_f64();
                let condition = format!("run_id = 'run-{run}'");
                print(format_args!("{condition} is locked for {seconds} s"));
                self.servers.lock("leases", &condition, seconds);
                self.locks += 1;
            }
            5 => {
                print("connections are cut");
                self.servers.cut();
                self.cuts += 1;
            }
            6 if self.hangs_until.is_none() => {
                let time = self.random.millis(100, 6_000);
                print(format_args!("connections hang for {time:?}"));
                self.hang(Some(time));
                self.hangs += 1;
            }
            _ => {}
        }
    }

    fn signal(&self, number: usize, signal: Signal) {
        let pid = Pid::from_raw(self.processes[number].child.id() as i32);
        kill(pid, signal).expect("a living process");
    }

    fn end_due(&mut self, now: Instant) {
        if self.hangs_until.is_some_and(|until| until <= now) {
            self.hang(None);
        }
        for number in 0..self.processes.len() {
            let process = &self.processes[number];
            if process.until.is_none_or(|until| until > now) {
                continue;
            }
            if process.is_stopped {
                self.signal(number, Signal::SIGCONT);
                self.audit.runs(number);
                let process = &mut self.processes[number];
                (process.is_stopped, process.until) = (false, None);
            } else {
                self.processes[number] = self.start(number);
            }
        }
    }

    /// Ends all faults.
    pub(crate) fn end(&mut self) {
        self.hang(None);
        self.end_due(Instant::now() + Duration::from_secs(3_600));
    }

    pub(crate) fn end_processes(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "{} processes killed, {} stopped, {} rows locked, connections cut {} times and hung {} \
             times, {} failovers",
            self.kills, self.stops, self.locks, self.cuts, self.hangs, self.failovers
        )
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.end_processes();
    }
}
