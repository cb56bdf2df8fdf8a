//! The reports of sweeps, and the state of the connection to a store.

use std::fmt;
use std::time::Duration;

#[cfg(feature = "serde")]
use crate::serial;
use crate::sync::printable::{Age, Printable};

/// The state of the connection between a registry and its store.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// let attachment = registry.attach(MemoryStore::new(), FleetConfig::new())?;
/// attachment.flush(Duration::from_secs(10));
/// let status = attachment.status();
/// assert_eq!((status.registered, status.failures), (1, 0));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStatus {
    /// Workers that are registered in the store.
    pub registered: usize,
    /// Workers that the store refuses; they are retried every 10 s.
    pub refused: usize,
    /// Workers whose records another client of the store locks; they are retried each second, or at
    /// their interval if that is shorter.
    pub busy: usize,
    /// Texts that the store changed, because it cannot keep all of their characters, in total.
    pub replaced_texts: u64,
    /// Failed calls to the store, in total.
    pub failures: u64,
    /// Failed calls since the last success; 0 while the store answers.
    pub failures_in_a_row: u64,
    /// The last error; stays when the store answers again.
    pub last_error: Option<String>,
    /// Time since the store was last up to date; `None` if it never was.
    pub last_success_age: Option<Duration>,
}

/// What one sweep found. [`Display`](fmt::Display) makes a sentence of it.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// hb.fail("disk full");
/// let report = registry.sweep();
/// assert_eq!(report.to_string(), "marked offline: mailer-1; groups offline: local");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SweepReport {
    /// Whether the workers were judged: `false` if they were not observed, if another sweep was
    /// running, or if none was needed: see [`recently_swept`](Self::recently_swept).
    pub success: bool,
    /// Ids of the workers that this sweep marked offline.
    pub marked_offline: Vec<String>,
    /// Groups that are offline, of these workers.
    pub affected_groups: Vec<String>,
    /// Runs whose leases were released. Leases belong to stores: always empty for a registry.
    pub released_leases: Vec<String>,
    /// Ids of workers that would have been marked offline, but whose record, or the record of a lease
    /// of theirs, another client of the store locks. The next sweep judges them again.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Vec::is_empty")
    )]
    pub busy: Vec<String>,
    /// Ended workers that were forgotten, because their retention is over.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_default"))]
    pub forgotten: usize,
    /// Nothing was swept, because another process had swept the store this long ago.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "recently_swept_s",
            default,
            with = "serial::optional_seconds",
            skip_serializing_if = "is_default"
        )
    )]
    pub recently_swept: Option<Duration>,
    /// How long the sweep took, as [`Sweeper`](crate::Sweeper) measured it.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "duration_s",
            default,
            with = "serial::seconds",
            skip_serializing_if = "is_default"
        )
    )]
    pub duration: Duration,
    /// It took longer than a second and a quarter of the sweeper's interval, so that deaths are found
    /// later.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_default"))]
    pub slow: bool,
}

#[cfg(feature = "serde")]
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (false, Some(age)) = (self.success, self.recently_swept) {
            return write!(f, "swept by another process {} ago", Age(age));
        }
        if !self.success {
            return f.write_str("nothing was swept");
        }
        if self.marked_offline.is_empty()
            && self.released_leases.is_empty()
            && self.busy.is_empty()
            && self.forgotten == 0
        {
            return f.write_str("nothing to mark offline");
        }
        let mut separator = "";
        for (what, names) in [
            ("marked offline: ", &self.marked_offline),
            ("groups offline: ", &self.affected_groups),
            ("leases released: ", &self.released_leases),
            ("locked by other clients: ", &self.busy),
        ] {
            if !names.is_empty() {
                write!(f, "{separator}{what}")?;
                few(f, names)?;
                separator = "; ";
            }
        }
        match self.forgotten {
            0 => Ok(()),
            forgotten => write!(f, "{separator}forgotten: {forgotten}"),
        }
    }
}

/// The first few of these names, and the number of the others.
fn few(f: &mut fmt::Formatter<'_>, names: &[String]) -> fmt::Result {
    const MOST: usize = 16;
    let mut separator = "";
    for name in names.iter().take(MOST) {
        write!(f, "{separator}{}", Printable(name))?;
        separator = ", ";
    }
    match names.len().saturating_sub(MOST) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

/// The totals of all sweeps so far.
///
/// ```
/// use worker_heartbeat::{MemoryStore, Sweeper};
///
/// let sweeper = Sweeper::new(MemoryStore::new());
/// sweeper.sweep()?;
/// assert_eq!(sweeper.totals().successes, 1);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepTotals {
    /// Sweeps that judged the workers.
    pub successes: u64,
    /// Sweeps that did nothing: another one was running, or the workers were not observed.
    pub skipped: u64,
    /// Sweeps that were not needed, because another process had just swept the store.
    pub unneeded: u64,
    /// Sweeps that failed.
    pub failures: u64,
    /// Workers that were marked offline.
    pub marked_offline: u64,
    /// Leases that were released.
    pub released_leases: u64,
    /// Ended workers that were forgotten.
    pub forgotten: u64,
    /// Sweeps that were [slow](SweepReport::slow).
    pub slow: u64,
    /// How long the last sweep took.
    pub last_duration: Option<Duration>,
    /// Time since the last success, also of another process that made a sweep of this one unneeded;
    /// `None` if there was none.
    pub last_success_age: Option<Duration>,
    /// The last success is too long ago: see [`Sweeper::check`](crate::Sweeper::check). Always
    /// `false` for a registry.
    pub overdue: bool,
}
