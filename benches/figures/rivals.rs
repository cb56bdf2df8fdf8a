//! The heartbeats that `worker-heartbeat` is compared with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use beatwise::{Heartbeat, Monitor, TaskConfig, Timing};

/// The usual hand-written heartbeat: the wall time of the last beat, in milliseconds.
#[derive(Clone, Default)]
pub(crate) struct HandRolled {
    last: Arc<AtomicU64>,
}

impl HandRolled {
    #[inline]
    pub(crate) fn beat(&self) {
        self.last.store(wall_millis(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_recent(&self, stale_after: Duration) -> bool {
        let age = wall_millis().saturating_sub(self.last.load(Ordering::Relaxed));
        age < stale_after.as_millis() as u64
    }
}

#[inline]
fn wall_millis() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// A task of beatwise with the same limit as a worker of ours has by default.
pub(crate) fn beatwise_task(monitor: &Monitor, name: String) -> Heartbeat {
    monitor
        .register(TaskConfig::new(
            name,
            Timing::fixed(Duration::from_secs(90)),
        ))
        .expect("the configuration is valid")
}
