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

impl FleetConfig {
    /// The defaults, as each method names them.
    pub const fn new() -> Self {
        Self {
            on_offline: OnOffline::RegisterAnew,
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
