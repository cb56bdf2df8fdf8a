//! A value that concurrent readers share: computed once, and reused for a short time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

/// How long a value is reused, by default.
const MAX_AGE: Duration = Duration::from_millis(50);

/// The latest value. At most one computation runs at a time, even if its caller is cancelled.
#[derive(Debug)]
pub(crate) struct SingleFlight<T> {
    latest: Arc<Mutex<Option<Computed<T>>>>,
    max_age: Duration,
}

type Computed<T> = (Instant, Arc<T>);

impl<T: Send + Sync + 'static> SingleFlight<T> {
    pub(crate) fn with_max_age(max_age: Duration) -> Self {
        Self {
            latest: Arc::default(),
            max_age,
        }
    }

    /// The latest value, or a new one if the latest is too old. `None` if `compute` panics.
    ///
    /// `compute` may block: it runs on a thread for blocking work.
    pub(crate) async fn get(&self, compute: impl FnOnce() -> T + Send + 'static) -> Option<Arc<T>> {
        let mut latest = Arc::clone(&self.latest).lock_owned().await;
        if let Some((at, value)) = &*latest {
            if at.elapsed() < self.max_age {
                return Some(Arc::clone(value));
            }
        }
        let computed = spawn_blocking(move || {
            let value = Arc::new(compute());
            *latest = Some((Instant::now(), Arc::clone(&value)));
            value
        });
        computed.await.ok()
    }
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self {
            latest: Arc::default(),
            max_age: MAX_AGE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn concurrent_callers_share_one_computation_and_a_cancelled_caller_starts_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let flight = SingleFlight::default();
            let computations = Arc::new(AtomicUsize::new(0));
            let (open, gate) = std::sync::mpsc::channel::<()>();
            let counter = Arc::clone(&computations);
            let first = flight.get(move || {
                let _ = gate.recv();
                counter.fetch_add(1, Ordering::SeqCst)
            });
            // The first caller is cancelled before the value is there.
            tokio::select! {
                biased;
                _ = first => unreachable!("the gate is closed"),
                () = std::future::ready(()) => {}
            }
            let count = || {
                let counter = Arc::clone(&computations);
                flight.get(move || counter.fetch_add(1, Ordering::SeqCst))
            };
            let others = async {
                let (one, other) = tokio::join!(count(), count());
                assert_eq!((one.as_deref(), other.as_deref()), (Some(&0), Some(&0)));
            };
            tokio::join!(others, async { open.send(()).unwrap() });
            assert_eq!(computations.load(Ordering::SeqCst), 1);
        });
    }
}
