//! A file with the health of the workers, for probes without HTTP.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::process_health::{ProcessHealth, check_policy};
use super::reporter::{Report, Reporter};
use crate::error::Error;
use crate::fleet::host::uptime;
use crate::fleet::{ProcessIdentity, Sweeper};
use crate::health::{Policy, State};
use crate::registry::Registry;
use crate::registry::at_exit::ProcessEnd;
use crate::sync::log::log_line;
use crate::sync::printable::{Age, Printable};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// How far the clocks of two hosts may differ.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// A larger file is not a beacon.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// The kernel keeps 15 bytes of a thread's name.
const THREAD_NAME: &str = "wh-beacon";

/// Writes the health of a registry's workers into a file, for probes that don't use HTTP: a liveness
/// command of a container, a cron job, `heartbeat-monitor check --file`.
///
/// The file contains one line of JSON: the response of `GET /v1/worker/health`, the writing process
/// and the time. It is replaced atomically at each interval and when the state of a worker changes.
/// Only its owner can read it.
///
/// When this is dropped, the file reports that the process stopped. When the process ends by itself,
/// the file reports that, with the exit status or the panic of the main thread if it is known. A
/// killed process can't report its end; [`check`](Self::check) detects that the process is gone or
/// that the file is too old.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Beacon, Registry, WorkerHeartbeat};
///
/// # let folder = std::env::temp_dir().join(format!("beacon-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// # let path = folder.join("beacon.json");
/// # let registry = Registry::new();
/// # let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
/// # hb.beat();
/// let beacon = Beacon::new(&registry, &path) // Registry::global() in an application
///     .interval(Duration::from_secs(10))
///     .start()?;
///
/// // Usually in another process:
/// let summary = Beacon::check(&path, Duration::from_secs(90));
/// assert_eq!(summary.as_deref(), Ok("1 active, 0 dead"));
///
/// drop(beacon);
/// let reason = Beacon::check(&path, Duration::from_secs(90)).unwrap_err();
/// assert_eq!(reason, "the process stopped");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is written before start()"]
pub struct Beacon {
    registry: Registry,
    file: BeaconFile,
    interval: Duration,
    sweepers: Vec<Sweeper>,
    policy: Policy,
}

impl Beacon {
    /// A beacon for the workers of `registry`. The folder of the file must exist.
    ///
    /// ```no_run
    /// use worker_heartbeat::{Beacon, Registry};
    ///
    /// let beacon = Beacon::new(Registry::global(), "/run/mailer/beacon.json").start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn new(registry: &Registry, path: impl Into<PathBuf>) -> Self {
        Self {
            registry: registry.clone(),
            file: BeaconFile(path.into()),
            interval: DEFAULT_INTERVAL,
            sweepers: Vec::new(),
            policy: Policy::health(),
        }
    }

    /// Which states of which workers make it fail; [`Policy::health`] by default. Without a living worker it
    /// fails in any case.
    ///
    /// ```no_run
    /// use worker_heartbeat::{Beacon, Policy, Registry};
    ///
    /// let beacon = Beacon::new(Registry::global(), "/run/mailer/beacon.json")
    ///     .policy(Policy::liveness().ignore_type("batch"))
    ///     .start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The longest time between two writes: 10 s by default, at least 100 ms.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use worker_heartbeat::{Beacon, Registry};
    ///
    /// let beacon = Beacon::new(Registry::global(), "/run/mailer/beacon.json")
    ///     .interval(Duration::from_secs(5))
    ///     .start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The file also reports a failure while this sweeper is not up to date: [`Sweeper::check`]. Call
    /// it before `start()`, which consumes the sweeper.
    ///
    /// ```no_run
    /// use worker_heartbeat::{Beacon, MemoryStore, Registry, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new());
    /// let beacon = Beacon::new(Registry::global(), "/run/mailer/beacon.json").sweeper(&sweeper);
    /// let (beacon, sweeper) = (beacon.start()?, sweeper.start()?);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn sweeper(mut self, sweeper: &Sweeper) -> Self {
        self.sweepers.push(sweeper.clone());
        self
    }

    /// Writes the file, and keeps writing it in a background thread until the returned value is
    /// dropped.
    ///
    /// ```
    /// use worker_heartbeat::{Beacon, Error, Registry};
    ///
    /// let refused = Beacon::new(Registry::global(), "/no/such/folder/beacon.json").start();
    /// assert!(matches!(refused, Err(Error::File { .. })));
    /// ```
    ///
    /// # Errors
    /// [`Error::File`] if the file can't be written; [`Error::Invalid`] if the interval is too short, or the
    /// policy contradicts itself;
    /// [`Error::Thread`] if the thread can't be started.
    pub fn start(self) -> Result<RunningBeacon, Error> {
        if self.interval < SHORTEST_INTERVAL {
            return Err(Error::invalid(
                "interval",
                format!("{:?}", self.interval),
                format!("at least {SHORTEST_INTERVAL:?}"),
            ));
        }
        check_policy(&self.policy)?;
        let (file, sweepers, policy) = (self.file, self.sweepers, self.policy);
        let first = health_record(&ProcessHealth::read(&self.registry), &policy, &sweepers);
        file.replace(&first).map_err(|error| Error::File {
            path: file.0.display().to_string(),
            error,
        })?;
        let mut failing = false;
        let write = move |report: Report<'_>| {
            let written = file.replace(&match report {
                Report::Health(process) => health_record(process, &policy, &sweepers),
                Report::End(end) => end_record(end),
            });
            if let (Err(error), false) = (&written, failing) {
                log_line(
                    log::Level::Error,
                    format_args!("beacon: cannot write {}: {error}", file.0.display()),
                );
            }
            failing = written.is_err();
        };
        let reporter = Reporter::start(THREAD_NAME, &self.registry, self.interval, write)?;
        Ok(RunningBeacon {
            _reporter: reporter,
        })
    }

    /// Reads a beacon. It passes, and the summary is returned, if all workers are healthy, the file is
    /// at most `max_age` old, and the writing process is not known to have ended.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Beacon;
    ///
    /// let reason = Beacon::check("/no/such/folder/beacon.json", Duration::from_secs(90)).unwrap_err();
    /// assert!(reason.starts_with("cannot read /no/such/folder/beacon.json: "));
    /// ```
    ///
    /// # Errors
    /// The reason why it doesn't pass.
    pub fn check(path: impl AsRef<Path>, max_age: Duration) -> Result<String, String> {
        let path = path.as_ref();
        let text =
            read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let record: Value = serde_json::from_str(&text)
            .ok()
            .filter(|record: &Value| record["beacon"] == 1)
            .ok_or_else(|| format!("{} is not a beacon", path.display()))?;
        let reason = record["reason"].as_str().unwrap_or("no reason given");
        if record["ended"] == true {
            return Err(Printable(reason).to_string());
        }
        let process = identity(&record);
        if process.is_gone() {
            return Err(format!("the process {} is gone", process.pid));
        }
        let age = age(&record).ok_or("its time is missing or invalid")?;
        if age > max_age {
            return Err(format!(
                "written {} ago, allowed: {}",
                Age(age),
                Age(max_age)
            ));
        }
        let summary = Printable(reason).to_string();
        if record["alive"] == true {
            Ok(summary)
        } else {
            Err(summary)
        }
    }
}

/// A running beacon, returned by [`Beacon::start`]. When it is dropped, its file reports that the
/// process stopped.
///
/// ```no_run
/// use worker_heartbeat::{Beacon, Registry};
///
/// let beacon = Beacon::new(Registry::global(), "/run/mailer/beacon.json").start()?;
/// // while it lives, the file is up to date
/// drop(beacon);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the file reports that the process stopped when this is dropped"]
pub struct RunningBeacon {
    _reporter: Reporter,
}

fn health_record(process: &ProcessHealth, policy: &Policy, sweepers: &[Sweeper]) -> Value {
    let mut record = process.to_json(policy);
    let failures = sweepers.iter().filter_map(|sweeper| sweeper.check().err());
    let failures: Vec<String> = failures.collect();
    if !failures.is_empty() {
        let reason = record["reason"].as_str().unwrap_or_default();
        record["reason"] = format!("{}; {reason}", failures.join("; ")).into();
        record["alive"] = false.into();
    }
    add_origin(&mut record);
    record
}

fn end_record(end: Option<&ProcessEnd>) -> Value {
    let (state, reason) = match end {
        Some(end @ ProcessEnd::Panic(_)) => (State::Dead, end.to_string()),
        Some(end) => (State::Stopped, end.to_string()),
        None => (State::Stopped, "the process stopped".to_owned()),
    };
    let mut record = json!({
        "alive": false,
        "state": state,
        "reason": reason,
        "ended": true,
    });
    add_origin(&mut record);
    record
}

/// Adds the writing process and the time: the wall clock for people, the host's uptime for decisions.
fn add_origin(record: &mut Value) {
    let written_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    record["beacon"] = 1.into();
    record["written_at"] = written_at.unwrap_or_default().as_secs_f64().into();
    record["uptime_s"] = uptime().map(|uptime| uptime.as_secs_f64()).into();
    record["process"] = serde_json::to_value(ProcessIdentity::current()).unwrap_or_default();
}

/// The writing process.
fn identity(record: &Value) -> ProcessIdentity {
    ProcessIdentity::deserialize(&record["process"]).unwrap_or_default()
}

/// The age of the record: by the uptime if it was written on this host since its boot, and by the
/// wall clock otherwise. `None` if its time is missing or too far in the future.
fn age(record: &Value) -> Option<Duration> {
    let boot_id = identity(record).boot_id;
    let same_boot = !boot_id.is_empty() && boot_id == ProcessIdentity::current().boot_id;
    let uptimes = || Some((uptime()?, record["uptime_s"].as_f64()?));
    let (now, then) = match uptimes() {
        Some(uptimes) if same_boot => uptimes,
        _ => (
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()?,
            record["written_at"].as_f64()?,
        ),
    };
    let age = now.as_secs_f64() - then;
    (age > -MAX_CLOCK_SKEW.as_secs_f64())
        .then(|| Duration::try_from_secs_f64(age.max(0.0)).ok())
        .flatten()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if !fs::metadata(path)?.is_file() {
        // Opening a pipe might block.
        return Err(io::Error::other("not a regular file"));
    }
    let file = fs::File::open(path)?;
    file.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// A file that is replaced atomically.
#[derive(Clone, Debug)]
struct BeaconFile(PathBuf);

impl BeaconFile {
    fn replace(&self, record: &Value) -> io::Result<()> {
        let temporary = self.temporary();
        // A killed process with the same id may have left one behind.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options
            .open(&temporary)
            .and_then(|mut file| writeln!(file, "{record}"))
            .and_then(|()| fs::rename(&temporary, &self.0));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// In the same folder, because a rename is atomic only within one file system.
    fn temporary(&self) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.0.file_name().unwrap_or_default());
        name.push(format!(".{}", std::process::id()));
        self.0.with_file_name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(record: &Value) -> Option<f64> {
        age(record).map(|age| age.as_secs_f64())
    }

    #[test]
    fn the_age_is_by_uptime_on_this_host_and_by_the_wall_clock_for_other_hosts() {
        let mut record = end_record(None);
        assert!(seconds(&record).unwrap() < 60.0);
        record["written_at"] = 0.0.into();
        assert!(seconds(&record).unwrap() < 60.0, "the wall clock was set");
        record["process"]["boot_id"] = "another".into();
        assert!(seconds(&record).unwrap() > 1e9);
        record["written_at"] = 1e15.into();
        assert_eq!(seconds(&record), None, "far in the future");
        record["written_at"] = "x".into();
        assert_eq!(seconds(&record), None);
    }
}
