//! The builder of a worker: its names, limits and metadata, checked before it starts.

use std::panic::Location;
use std::time::Duration;

use super::limits::{
    DEFAULT_GROUP, DEFAULT_INTERVAL, SHORTEST_BUDGET, check_duration, check_limits, check_metadata,
    check_name, check_task_limits,
};
use super::pace::check_pace;
use super::{WorkerHeartbeat, env};
use crate::error::Error;
use crate::health::{CallSite, Thresholds};
use crate::registry::core::pace::PaceSpec;
use crate::registry::core::profile::ProfileKey;
use crate::registry::{Registry, Spec};

/// Describes a worker; made by [`WorkerHeartbeat::builder`].
///
/// [`start`](Self::start) checks all values.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::WorkerHeartbeat;
///
/// let hb = WorkerHeartbeat::builder("research")
///     .id("research-prod-1")
///     .interval(Duration::from_secs(10))
///     .stall_after(Duration::from_secs(300))
///     .group("machine-7")
///     .metadata("version", "1.4.2")
///     .start()?;
/// assert_eq!(hb.snapshot().thresholds.stale_after, Duration::from_secs(30));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens before start()"]
pub struct Builder {
    worker_type: String,
    id: Option<String>,
    interval: Duration,
    stale_after: Option<Duration>,
    stall_after: Option<Duration>,
    pub(super) task_deadline: Option<Duration>,
    pub(super) progress_after: Option<Duration>,
    startup_grace: Option<Duration>,
    pub(super) drain_within: Option<Duration>,
    beats_only: bool,
    finite: bool,
    pub(super) pace: PaceSpec,
    group: String,
    metadata: Vec<(String, String)>,
    registry: Option<Registry>,
}

impl Builder {
    pub(super) fn new(worker_type: String) -> Self {
        Self {
            worker_type,
            id: None,
            interval: DEFAULT_INTERVAL,
            stale_after: None,
            stall_after: None,
            task_deadline: None,
            progress_after: None,
            startup_grace: None,
            drain_within: None,
            beats_only: false,
            finite: false,
            pace: PaceSpec::default(),
            group: DEFAULT_GROUP.to_owned(),
            metadata: Vec::new(),
            registry: None,
        }
    }

    /// The worker's id; by default `{type}-{pid}-{n}`. At most 200 bytes, no control characters,
    /// and not the id of another living worker of the registry.
    ///
    /// ```
    /// use worker_heartbeat::{Error, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// let second = WorkerHeartbeat::builder("mailer").id("mailer-1").start();
    /// assert!(matches!(second, Err(Error::DuplicateId { .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// How often the worker's heartbeat is written to a store; 30 s by default, 1 ms to 365 days.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").interval(Duration::from_secs(5)).start()?;
    /// assert_eq!(hb.snapshot().interval, Duration::from_secs(5));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// The longest time without a heartbeat; three intervals by default, at least two, and 20 ms to
    /// 365 days.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Error, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").stale_after(Duration::from_secs(120)).start()?;
    /// assert_eq!(hb.snapshot().thresholds.stale_after, Duration::from_secs(120));
    ///
    /// // Less than two intervals.
    /// let refused = WorkerHeartbeat::builder("mailer").stale_after(Duration::from_secs(40)).start();
    /// assert!(matches!(refused, Err(Error::Invalid { field: "stale_after", .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn stale_after(mut self, stale_after: Duration) -> Self {
        self.stale_after = Some(stale_after);
        self
    }

    /// The longest time at work without progress; unlimited by default. 10 ms to 365 days.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, State, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .stall_after(Duration::from_secs(300))
    ///     .registry(&registry)
    ///     .start()?;
    /// let _task = hb.begin_task("run-123", "sending");
    /// time.advance(Duration::from_secs(300));
    /// assert_eq!(hb.health().state(), State::Processing);
    /// time.advance(Duration::from_secs(1));
    /// assert_eq!(hb.health().state(), State::Stalled);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn stall_after(mut self, stall_after: Duration) -> Self {
        self.stall_after = Some(stall_after);
        self
    }

    /// The longest time from the start to the first progress; `stale_after` by default. 10 ms to 365
    /// days.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, State, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .startup_grace(Duration::from_secs(60))
    ///     .registry(&registry)
    ///     .start()?;
    /// time.advance(Duration::from_secs(61));
    /// assert_eq!(hb.health().state(), State::NeverStarted);
    /// hb.beat();
    /// assert_eq!(hb.health().state(), State::Active);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn startup_grace(mut self, startup_grace: Duration) -> Self {
        self.startup_grace = Some(startup_grace);
        self
    }

    /// The pacemaker does not vouch for the worker: only its own progress moves its heartbeat, idle
    /// or not. Polls of a supervised future are not its own progress.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, State, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer").beats_only().registry(&registry).start()?;
    /// hb.mark_idle();
    /// time.advance(Duration::from_secs(91)); // stale_after is 90 s by default
    /// assert_eq!(hb.health().state(), State::Stale);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn beats_only(mut self) -> Self {
        self.beats_only = true;
        self
    }

    /// The work is finite: a supervised worker that returns without an error has completed, and is
    /// stopped. By default, a worker that returns without being asked to stop is dead.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import").finite(), |hb| {
    ///     hb.beat();
    ///     Ok(())
    /// })?;
    /// import.join();
    /// assert!(import.probe().health().to_string().starts_with("stopped: completed"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn finite(mut self) -> Self {
        self.finite = true;
        self
    }

    /// The group that the worker belongs to, such as its machine; `local` by default. A group is
    /// offline when all its workers are.
    ///
    /// ```
    /// use worker_heartbeat::{GroupState, Registry, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").group("machine-7").start()?;
    /// hb.fail("disk full");
    /// assert_eq!(Registry::global().group("machine-7"), GroupState::Offline);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// Adds an entry of metadata; the last value of a name counts. At most 64 names of at most 200
    /// bytes, with values of at most 1024 bytes.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").metadata("version", "1.4.2").start()?;
    /// assert_eq!(hb.snapshot().metadata, [("version".to_owned(), "1.4.2".to_owned())]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        match self.metadata.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((name, value)),
        }
        self
    }

    /// The registry that the worker belongs to; [`Registry::global`] by default.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// assert_eq!(registry.summary().total, 1);
    /// assert_eq!(Registry::global().summary().total, 0);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Applies environment variables; unset ones change nothing.
    ///
    /// | variable | meaning |
    /// | --- | --- |
    /// | `WORKER_HEARTBEAT_INTERVAL` | [`interval`](Self::interval), seconds, fractions allowed |
    /// | `WORKER_HEARTBEAT_STALE_AFTER` | [`stale_after`](Self::stale_after), likewise |
    /// | `<TYPE>_WORKER_ID` | [`id`](Self::id); the type in capitals, other characters as `_` |
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// // MAILER_WORKER_ID=mailer-prod-1 gives it this id.
    /// let hb = WorkerHeartbeat::builder("mailer").from_env()?.start()?;
    /// println!("{}", hb.id());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Environment`] if a variable is set to something that is not allowed: an empty text,
    /// a text that is not Unicode, not a number of seconds above zero, or not an id. White space at
    /// either end is ignored.
    pub fn from_env(mut self) -> Result<Self, Error> {
        if let Some(interval) = env::seconds("WORKER_HEARTBEAT_INTERVAL")? {
            self.interval = interval;
        }
        if let Some(stale_after) = env::seconds("WORKER_HEARTBEAT_STALE_AFTER")? {
            self.stale_after = Some(stale_after);
        }
        let variable = env::id_variable(&self.worker_type);
        if let Some(id) = env::text(&variable)? {
            // A space that came with a file or a script is not part of the id.
            let id = id.trim();
            check_name("id", id).map_err(|error| env::blame(&variable, error))?;
            self.id = Some(id.to_owned());
        }
        Ok(self)
    }

    /// Checks all values and starts the worker: it is registered, [`Health::Starting`], and observed.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert!(hb.health().to_string().starts_with("starting"));
    ///
    /// let error = WorkerHeartbeat::builder("mailer").group("").start().unwrap_err();
    /// assert!(error.to_string().starts_with("invalid group: "));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] names what is not allowed; [`Error::DuplicateId`] if a living worker of the
    /// registry has the id; [`Error::Thread`] if the background thread cannot be started.
    ///
    /// [`Health::Starting`]: crate::Health::Starting
    #[track_caller]
    pub fn start(self) -> Result<WorkerHeartbeat, Error> {
        let site = Location::caller();
        let registry = self
            .registry
            .clone()
            .unwrap_or_else(|| Registry::global().clone());
        let spec = self.check(site)?;
        Ok(WorkerHeartbeat::new(registry.register(spec)?))
    }

    pub(crate) const fn is_finite(&self) -> bool {
        self.finite
    }

    fn check(self, site: CallSite) -> Result<Spec, Error> {
        check_name("worker_type", &self.worker_type)?;
        check_name("group", &self.group)?;
        if let Some(id) = &self.id {
            check_name("id", id)?;
        }
        check_metadata(&self.metadata)?;
        check_task_limits(self.task_deadline, self.progress_after)?;
        if let Some(budget) = self.drain_within {
            check_duration("drain_within", budget, SHORTEST_BUDGET)?;
        }
        let pace = check_pace(self.pace, self.stall_after)?;
        let ceiling = pace.learn.map(|learn| learn.ceiling);
        let thresholds = Thresholds {
            task_deadline: self.task_deadline,
            progress_after: self.progress_after,
            beats_only: self.beats_only,
            ..check_limits(
                self.interval,
                self.stale_after,
                ceiling.or(self.stall_after),
                self.startup_grace,
            )?
        };
        Ok(Spec {
            id: self.id,
            profile: ProfileKey {
                worker_type: self.worker_type,
                group: self.group,
                thresholds,
                pace,
                interval: self.interval,
                site,
                drain_within: self.drain_within,
            },
            metadata: self.metadata,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::limits::LONGEST;

    fn refused(builder: Builder) -> String {
        builder
            .registry(&Registry::new())
            .start()
            .expect_err("this must be refused")
            .to_string()
    }

    fn worker() -> Builder {
        WorkerHeartbeat::builder("w")
    }

    #[test]
    fn bad_durations_are_refused_by_name() {
        let zero = Duration::ZERO;
        for (builder, field) in [
            (worker().interval(zero), "interval"),
            (worker().interval(Duration::MAX), "interval"),
            (worker().stale_after(zero), "stale_after"),
            (worker().stale_after(Duration::MAX), "stale_after"),
            (worker().stale_after(Duration::from_secs(59)), "stale_after"),
            (worker().stall_after(zero), "stall_after"),
            (
                worker().stall_after(Duration::from_millis(9)),
                "stall_after",
            ),
            (worker().stall_after(Duration::MAX), "stall_after"),
            (worker().task_deadline(zero), "task_deadline"),
            (worker().task_deadline(Duration::MAX), "task_deadline"),
            (worker().progress_after(zero), "progress_after"),
            (worker().progress_after(Duration::MAX), "progress_after"),
            (worker().startup_grace(zero), "startup_grace"),
            (worker().drain_within(zero), "drain_within"),
            (worker().drain_within(Duration::MAX), "drain_within"),
        ] {
            let message = refused(builder);
            assert!(
                message.starts_with(&format!("invalid {field}: ")),
                "{message}"
            );
            assert!(message.contains("; allowed: "), "{message}");
        }
        assert_eq!(
            refused(worker().stale_after(Duration::from_secs(59))),
            "invalid stale_after: 59s; allowed: at least 2 x interval, which is 30s"
        );
    }

    #[test]
    fn bad_names_are_refused_by_name() {
        for (builder, field) in [
            (WorkerHeartbeat::builder(""), "worker_type"),
            (worker().id(""), "id"),
            (worker().id("x".repeat(201)), "id"),
            (worker().id("a\nb"), "id"),
            (worker().group("\u{7f}"), "group"),
            (worker().metadata("", "x"), "metadata name"),
            (worker().metadata("x", "y".repeat(1_025)), "metadata value"),
        ] {
            let message = refused(builder);
            assert!(
                message.starts_with(&format!("invalid {field}: ")),
                "{message}"
            );
        }
        let many = (0..65).fold(worker(), |builder, n| builder.metadata(n.to_string(), "x"));
        assert!(refused(many).starts_with("invalid metadata: 65 entries"));
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let registry = Registry::new();
        let hb = worker()
            .id("ä".repeat(100))
            .interval(Duration::from_millis(10))
            .stale_after(Duration::from_millis(20))
            .stall_after(Duration::from_millis(10))
            .startup_grace(LONGEST)
            .registry(&registry)
            .start()
            .unwrap();
        assert_eq!(hb.snapshot().thresholds.startup_grace, LONGEST);
        let longest = worker().interval(LONGEST).registry(&registry).start();
        assert!(longest.is_ok());
    }

    #[test]
    fn the_defaults_are_as_documented() {
        let registry = Registry::new();
        let hb = worker()
            .metadata("version", "1")
            .metadata("version", "2")
            .registry(&registry)
            .start()
            .unwrap();
        let snapshot = hb.snapshot();
        assert_eq!(snapshot.interval, Duration::from_secs(30));
        assert_eq!(
            snapshot.thresholds,
            Thresholds::new(Duration::from_secs(90))
        );
        assert_eq!(snapshot.group, "local");
        assert_eq!(snapshot.metadata, [("version".into(), "2".into())]);
        let (name, n) = hb.id().rsplit_once('-').unwrap();
        assert_eq!(name, format!("w-{}", std::process::id()));
        assert!(n.parse::<u64>().is_ok());
    }
}
