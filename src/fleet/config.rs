//! How a registry is attached to a store.

use std::time::Duration;

/// How a registry is attached to a store; for [`Registry::attach`](crate::Registry::attach).
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetConfig {
    pub(super) on_offline: OnOffline,
    pub(super) farewell: Duration,
}

/// What a worker does that lives, though a sweep marked it offline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnOffline {
    /// It is registered anew, as another incarnation: it is seen again. Its leases are lost.
    #[default]
    RegisterAnew,
    /// It is told to stop, and dead: [`DeathCause::Fenced`](crate::DeathCause::Fenced).
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

    /// What a worker does that lives, though a sweep marked it offline; by default it is registered
    /// anew.
    ///
    /// A worker whose id another process has registered is fenced in any case: otherwise both would
    /// take it from each other for ever.
    pub const fn on_offline(mut self, on_offline: OnOffline) -> Self {
        self.on_offline = on_offline;
        self
    }

    /// How long the end of the last worker, and the [end of the process](crate::guide::shutdown#the-end-of-the-process),
    /// wait for the store to be told; 1 s by default. They do not wait for a store that fails already,
    /// and no longer than a second for one in which such a wait was in vain and that still hangs.
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
