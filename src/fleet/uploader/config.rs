//! Options of an attachment.

use std::time::Duration;

/// Options of an attachment; for [`Registry::attach`](crate::Registry::attach).
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{FleetConfig, OnOffline};
///
/// let config = FleetConfig::new()
///     .on_offline(OnOffline::Fence)
///     .farewell(Duration::from_secs(3));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetConfig {
    pub(super) on_offline: OnOffline,
    pub(super) on_duplicate: OnDuplicate,
    pub(super) farewell: Duration,
}

/// What becomes of a living worker that a sweep marked offline.
///
/// ```
/// use worker_heartbeat::{FleetConfig, OnOffline};
///
/// // A worker that was taken for dead must not go on beside the one that took over.
/// let config = FleetConfig::new().on_offline(OnOffline::Fence);
/// # let _ = config;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnOffline {
    /// It is registered again, as a new incarnation. Its leases are lost.
    #[default]
    RegisterAnew,
    /// It is asked to stop, and dead: [`DeathCause::Fenced`](crate::DeathCause::Fenced).
    Fence,
}

/// What happens when a worker's [id](crate::Builder::id) belongs to a living worker of another process.
///
/// ```
/// use worker_heartbeat::{FleetConfig, OnDuplicate};
///
/// // Two pods with one id must not fence each other in turn.
/// let config = FleetConfig::new().on_duplicate(OnDuplicate::Refuse);
/// # let _ = config;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnDuplicate {
    /// The new worker supersedes the other one, which is fenced.
    #[default]
    TakeOver,
    /// The store refuses the new worker, which an event reports
    /// ([`EventKind::Refused`](crate::EventKind::Refused)) with the process of the other one. It goes on
    /// without the store, claims no runs, and tries again every 10 s: it gets the id once the other
    /// worker has ended, is stale, or was marked offline by a sweep.
    Refuse,
}

impl FleetConfig {
    /// The defaults, as each method names them.
    pub const fn new() -> Self {
        Self {
            on_offline: OnOffline::RegisterAnew,
            on_duplicate: OnDuplicate::TakeOver,
            farewell: Duration::from_secs(1),
        }
    }

    /// What becomes of a living worker that a sweep marked offline; by default it is registered
    /// again.
    ///
    /// A worker whose id another process has registered is fenced in any case: otherwise both would
    /// take the id from each other for ever.
    pub const fn on_offline(mut self, on_offline: OnOffline) -> Self {
        self.on_offline = on_offline;
        self
    }

    /// What happens when a worker's id belongs to a living worker of another process; by default the new
    /// worker takes it over.
    ///
    /// A store of another crate may ignore this.
    pub const fn on_duplicate(mut self, on_duplicate: OnDuplicate) -> Self {
        self.on_duplicate = on_duplicate;
        self
    }

    /// How long the end of the last worker, and the
    /// [end of the process](crate::guide::shutdown#the-end-of-the-process), wait until the store has everything; 1 s by default. They don't wait for a store that fails
    /// already, and at most 1 s for a store that still hangs since such a wait timed out.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::FleetConfig;
    ///
    /// let config = FleetConfig::new().farewell(Duration::from_millis(500));
    /// # let _ = config;
    /// ```
    pub const fn farewell(mut self, farewell: Duration) -> Self {
        self.farewell = farewell;
        self
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self::new()
    }
}
