//! A reading that is good for everybody who asks within a moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

/// For so long, a reading is good for everybody.
const MOMENT: Duration = Duration::from_millis(50);

/// The last reading. However many ask, one is made at a time, even if those who asked have gone.
#[derive(Debug)]
pub(crate) struct SingleFlight<T>(Arc<Mutex<Option<Reading<T>>>>);

type Reading<T> = (Instant, Arc<T>);

impl<T: Send + Sync + 'static> SingleFlight<T> {
    /// The last reading, or a new one if that is too old. `None` if it panics.
    ///
    /// Reading may block for a while: it is not done on the runtime's own thread.
    pub(crate) async fn get(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<Arc<T>> {
        let mut latest = Arc::clone(&self.0).lock_owned().await;
        if let Some((at, reading)) = &*latest {
            if at.elapsed() < MOMENT {
                return Some(Arc::clone(reading));
            }
        }
        let reading = spawn_blocking(move || {
            let reading = Arc::new(read());
            *latest = Some((Instant::now(), Arc::clone(&reading)));
            reading
        });
        reading.await.ok()
    }
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn many_who_ask_get_one_reading_and_those_who_go_start_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let fresh = SingleFlight::default();
            let readings = Arc::new(AtomicUsize::new(0));
            let (open, gate) = std::sync::mpsc::channel::<()>();
            let (counted, read) = (Arc::clone(&readings), move || {
                let _ = gate.recv();
            });
            // Who asks first has gone before the reading is there.
            let first = fresh.get(move || {
                read();
                counted.fetch_add(1, Ordering::SeqCst)
            });
            tokio::select! {
                biased;
                _ = first => unreachable!("nobody has opened the gate"),
                () = std::future::ready(()) => {}
            }
            let count = || {
                let counted = Arc::clone(&readings);
                fresh.get(move || counted.fetch_add(1, Ordering::SeqCst))
            };
            let others = async {
                let (one, other) = tokio::join!(count(), count());
                assert_eq!((one.as_deref(), other.as_deref()), (Some(&0), Some(&0)));
            };
            tokio::join!(others, async { open.send(()).unwrap() });
            assert_eq!(readings.load(Ordering::SeqCst), 1);
        });
    }
}
