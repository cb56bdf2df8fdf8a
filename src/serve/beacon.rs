//! A file that tells how the workers are, for probes without HTTP.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::process::Process;
use super::reporter::{Report, Reporter};
use crate::error::Error;
use crate::fleet::ProcessIdentity;
use crate::fleet::host::uptime;
use crate::health::State;
use crate::registry::Registry;
use crate::registry::at_exit::ProcessEnd;
use crate::registry::core::say;
use crate::sync::printable::{Age, Printable};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// How far the clocks of two hosts may differ.
const LARGEST_SKEW: Duration = Duration::from_secs(60);
/// No beacon is longer: more is not one.
const LARGEST: u64 = 4 * 1024 * 1024;
/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-beacon";

/// Writes how the workers of a registry are into a file, for probes that cannot ask over HTTP: a
/// liveness command of a container, a cron job, `heartbeat-monitor check --file`.
///
/// The file holds one line of JSON: what `GET /v1/worker/health` answers, and which process wrote
/// it when. It is replaced as a whole, so that nobody reads half of it: at each interval, and when
/// something happens to a worker. Its owner alone may read it.
///
/// When this is dropped, the file says that the process stopped; when the process ends by itself, it
/// says so, with the exit status or the panic of the main thread if that is known. A process that is
/// killed cannot say so; [`check`](Self::check) sees that the process is gone, or that the file is
/// too old.
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
/// // In another process, as a rule:
/// let said = Beacon::check(&path, Duration::from_secs(90));
/// assert_eq!(said.as_deref(), Ok("1 active, 0 dead"));
///
/// drop(beacon);
/// let why = Beacon::check(&path, Duration::from_secs(90)).unwrap_err();
/// assert_eq!(why, "the process stopped");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is written before start()"]
pub struct Beacon {
    registry: Registry,
    file: File,
    interval: Duration,
}

impl Beacon {
    /// A beacon for the workers of this registry, in a file whose folder exists.
    pub fn new(registry: &Registry, path: impl Into<PathBuf>) -> Self {
        Self {
            registry: registry.clone(),
            file: File(path.into()),
            interval: DEFAULT_INTERVAL,
        }
    }

    /// How often it is written, whatever happens; 10 s by default, at least 100 ms.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Writes the file, and goes on writing it on a thread of its own until what is returned is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written; [`Error::Invalid`] if the interval is too
    /// short; [`Error::Thread`] if the thread cannot be started.
    pub fn start(self) -> Result<RunningBeacon, Error> {
        if self.interval < SHORTEST_INTERVAL {
            return Err(Error::invalid(
                "interval",
                format!("{:?}", self.interval),
                format!("at least {SHORTEST_INTERVAL:?}"),
            ));
        }
        let file = self.file;
        let first = record(&Process::read(&self.registry), &self.registry);
        file.replace(&first).map_err(|source| Error::File {
            path: file.0.display().to_string(),
            source,
        })?;
        let registry = self.registry.clone();
        let mut failing = false;
        let tell = move |report: Report<'_>| {
            let written = file.replace(&match report {
                Report::Reading(process) => record(process, &registry),
                Report::Last(end) => farewell(end),
            });
            if let (Err(error), false) = (&written, failing) {
                say(
                    log::Level::Error,
                    format_args!("beacon: cannot write {}: {error}", file.0.display()),
                );
            }
            failing = written.is_err();
        };
        let reporter = Reporter::start(THREAD_NAME, &self.registry, self.interval, tell)?;
        Ok(RunningBeacon { _lookout: reporter })
    }

    /// Whether the file says that all is well, and was written at most `max_age` ago by a process
    /// that still runs, as far as this host can tell. Returns the summary, or why not.
    ///
    /// # Errors
    /// What is wrong, in words.
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
        let age = age(&record).ok_or("it does not say when it was written")?;
        if age > max_age {
            return Err(format!(
                "written {} ago, {} allowed",
                Age(age),
                Age(max_age)
            ));
        }
        let said = Printable(reason).to_string();
        if record["alive"] == true {
            Ok(said)
        } else {
            Err(said)
        }
    }
}

/// A beacon at work; made by [`Beacon::start`]. When it is dropped, its file says that the process
/// stopped.
#[derive(Debug)]
#[must_use = "the file says that the process stopped when this is dropped"]
pub struct RunningBeacon {
    _lookout: Reporter,
}

fn record(process: &Process, registry: &Registry) -> Value {
    let mut record = process.to_json(process.last_heartbeat(registry));
    sign(&mut record);
    record
}

fn farewell(end: Option<&ProcessEnd>) -> Value {
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
    sign(&mut record);
    record
}

/// Who says so, and when: by the wall clock for people, by the host's uptime to judge by.
fn sign(record: &mut Value) {
    let written_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    record["beacon"] = 1.into();
    record["written_at"] = written_at.unwrap_or_default().as_secs_f64().into();
    record["uptime_s"] = uptime().map(|uptime| uptime.as_secs_f64()).into();
    record["process"] = serde_json::to_value(ProcessIdentity::current()).unwrap_or_default();
}

/// The process that wrote this.
fn identity(record: &Value) -> ProcessIdentity {
    let process = &record["process"];
    let text = |name: &str| process[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| process[name].as_u64().unwrap_or_default();
    ProcessIdentity {
        hostname: text("hostname"),
        pid: u32::try_from(number("pid")).unwrap_or_default(),
        started: number("started"),
        boot_id: text("boot_id"),
        pid_namespace: number("pid_namespace"),
    }
}

/// How long ago this was written: by the uptime if it was on this host since it was booted, by the
/// wall clock otherwise. `None` if it does not say, or says that it was long from now.
fn age(record: &Value) -> Option<Duration> {
    let boot_id = identity(record).boot_id;
    let same_boot = !boot_id.is_empty() && boot_id == ProcessIdentity::current().boot_id;
    let ticking = || Some((uptime()?, record["uptime_s"].as_f64()?));
    let (now, then) = match ticking() {
        Some(ticking) if same_boot => ticking,
        _ => (
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()?,
            record["written_at"].as_f64()?,
        ),
    };
    let age = now.as_secs_f64() - then;
    // Clocks of two hosts differ a little.
    (age > -LARGEST_SKEW.as_secs_f64())
        .then(|| Duration::try_from_secs_f64(age.max(0.0)).ok())
        .flatten()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if !fs::metadata(path)?.is_file() {
        // A pipe would be waited for.
        return Err(io::Error::other("it is not a plain file"));
    }
    let file = fs::File::open(path)?;
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// A file that is replaced as a whole.
#[derive(Clone, Debug)]
struct File(PathBuf);

impl File {
    fn replace(&self, record: &Value) -> io::Result<()> {
        let fresh = self.fresh();
        // One that a killed process left behind.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options
            .open(&fresh)
            .and_then(|mut file| writeln!(file, "{record}"))
            .and_then(|()| fs::rename(&fresh, &self.0));
        if written.is_err() {
            // What is half written helps nobody.
            let _ = fs::remove_file(&fresh);
        }
        written
    }

    /// Beside it: only within one file system is it replaced at once.
    fn fresh(&self) -> PathBuf {
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
    fn the_age_is_by_uptime_on_this_host_and_by_the_wall_clock_elsewhere() {
        let mut record = farewell(None);
        assert!(seconds(&record).unwrap() < 60.0);
        record["written_at"] = 0.0.into();
        assert!(seconds(&record).unwrap() < 60.0, "the wall clock was set");
        record["process"]["boot_id"] = "another".into();
        assert!(seconds(&record).unwrap() > 1e9);
        record["written_at"] = 1e15.into();
        assert_eq!(seconds(&record), None, "long from now");
        record["written_at"] = "x".into();
        assert_eq!(seconds(&record), None);
    }
}
