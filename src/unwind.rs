//! Handles may be used by code that catches panics, without `AssertUnwindSafe`.
//!
//! The compiler does not see that by itself, since what they share is behind locks. A panic cannot
//! leave that half changed: code of the application, which may panic, does not run under a lock.

use std::panic::{RefUnwindSafe, UnwindSafe};

macro_rules! unwind_safe {
    ($($(#[$cfg:meta])* $type:ty),* $(,)?) => {
        $(
            $(#[$cfg])*
            impl UnwindSafe for $type {}
            $(#[$cfg])*
            impl RefUnwindSafe for $type {}
        )*
    };
}

unwind_safe!(
    crate::Clock,
    crate::MockClock,
    crate::Probe,
    crate::Registry,
    crate::Shutdown,
    crate::Subscription,
    crate::SupervisedWorker,
    crate::Supervisor,
    crate::WorkerHeartbeat,
    crate::Attachment,
    crate::FleetConfig,
    crate::Lease,
    crate::MemoryStore,
    crate::Sweeper,
    #[cfg(feature = "sqlite")]
    crate::SqliteStore,
    #[cfg(feature = "postgres")]
    crate::PostgresStore,
    #[cfg(feature = "http")]
    crate::HttpStore,
    #[cfg(feature = "http")]
    crate::Coordinator,
    #[cfg(feature = "http")]
    crate::HealthEndpoint,
    #[cfg(feature = "http")]
    crate::RunningHealthEndpoint,
    #[cfg(feature = "beacon")]
    crate::Beacon,
    #[cfg(feature = "prometheus")]
    crate::Metrics,
    #[cfg(feature = "systemd")]
    crate::SystemdNotifier,
);
