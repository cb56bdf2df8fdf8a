//! A file with the health of the workers, for probes without HTTP.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::process_health::{ProcessHealth, check_policy};
use super::reporter::{Report, Reporter};
use super::views::ProcessView;
use crate::error::Error;
use crate::fleet::host::uptime;
use crate::fleet::{ProcessIdentity, Sweeper};
use crate::health::{Policy, State};
use crate::registry::Registry;
use crate::registry::at_exit::ProcessEnd;
use crate::sync::log::log_line;
use crate::sync::printable::{Age, Printable};
use crate::sync::random::random;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// How far the clocks of two hosts may differ.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// A larger file is not a beacon.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Names that are tried for a temporary file.
const MAX_ATTEMPTS: usize = 8;
/// Files of the folder among which left-over temporary files are searched.
const MAX_LOOKED_AT: usize = 1_000;
/// An older temporary file is in use by no process.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);
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
        file.remove_leftovers();
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
    let mut view = ProcessView::full(process, policy);
    let failures = sweepers.iter().filter_map(|sweeper| sweeper.check().err());
    let failures: Vec<String> = failures.collect();
    if !failures.is_empty() {
        view.reason = format!("{}; {}", failures.join("; "), view.reason);
        view.alive = false;
    }
    let mut record = serde_json::to_value(view).unwrap_or_else(|_| json!({}));
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
        let (temporary, mut file) = self.create_temporary()?;
        let written = writeln!(file, "{record}").and_then(|()| fs::rename(&temporary, &self.0));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Creates a file in the same folder, because a rename is atomic only within one file system.
    /// Others may write to that folder, too: the name cannot be guessed, and nothing that is
    /// there, such as a link, is opened.
    fn create_temporary(&self) -> io::Result<(PathBuf, fs::File)> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut attempts = 0;
        loop {
            let mut name = self.temporary_prefix();
            name.push(format!("{:016x}", random()));
            let path = self.0.with_file_name(name);
            attempts += 1;
            match options.open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && attempts < MAX_ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn temporary_prefix(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(self.0.file_name().unwrap_or_default());
        name.push(".");
        name
    }

    /// Removes what killed processes have left behind, as far as it is among the first files of the
    /// folder.
    fn remove_leftovers(&self) {
        let folder = match self.0.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        let prefix = self.temporary_prefix();
        for entry in entries.take(MAX_LOOKED_AT).flatten() {
            let name = entry.file_name();
            let rest = name
                .as_encoded_bytes()
                .strip_prefix(prefix.as_encoded_bytes());
            let is_ours =
                rest.is_some_and(|rest| rest.len() == 16 && rest.iter().all(u8::is_ascii_hexdigit));
            let is_old = || {
                let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                let age = metadata.modified().ok()?.elapsed().ok()?;
                (age > LEFTOVER_AGE).then_some(())
            };
            if is_ours && is_old().is_some() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(record: &Value) -> Option<f64> {
        age(record).map(|age| age.as_secs_f64())
    }

    #[test]
    fn what_others_put_in_the_folder_stops_no_beacon() {
        let folder = std::env::temp_dir().join(format!("beacon-others-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = BeaconFile(folder.join("beacon.json"));
        // As an earlier version named its temporary file.
        let known = folder.join(format!(".beacon.json.{}", std::process::id()));
        fs::create_dir(&known).unwrap();
        fs::write(known.join("kept"), "").unwrap();
        for _ in 0..3 {
            file.replace(&end_record(None)).unwrap();
        }
        let names = |folder: &Path| fs::read_dir(folder).unwrap().count();
        assert_eq!(names(&folder), 2, "no temporary file is left behind");
        assert_eq!(names(&known), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn left_over_temporary_files_are_removed_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("beacon-left-over-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let old = SystemTime::now() - LEFTOVER_AGE * 2;
        for (name, age) in [
            (".beacon.json.0123456789abcdef", Some(old)),
            (".beacon.json.0123456789abcdee", None),
            (".beacon.json.backup", Some(old)),
            ("beacon.json", Some(old)),
        ] {
            let file = fs::File::create(folder.join(name)).unwrap();
            file.set_modified(age.unwrap_or_else(SystemTime::now))
                .unwrap();
        }
        BeaconFile(folder.join("beacon.json")).remove_leftovers();
        let mut left: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                ".beacon.json.0123456789abcdee",
                ".beacon.json.backup",
                "beacon.json"
            ]
        );
        fs::remove_dir_all(&folder).unwrap();
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
