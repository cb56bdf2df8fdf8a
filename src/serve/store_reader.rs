//! Reads a store for requests: on threads for blocking work, few at a time, and with a time limit, so
//! that a store that hangs delays nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::error::Error;
use crate::fleet::HeartbeatStore;
use crate::net::response::RequestError;

/// Concurrent readings: each occupies a thread.
const MAX_READINGS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct StoreReader {
    pub store: Arc<dyn HeartbeatStore>,
    readings: Arc<Semaphore>,
}

impl StoreReader {
    pub(super) fn new(store: &Arc<dyn HeartbeatStore>) -> Self {
        Self {
            store: Arc::clone(store),
            readings: Arc::new(Semaphore::new(MAX_READINGS)),
        }
    }

    /// What `read` returns. It goes on after the time limit, and occupies its place until it ends.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn HeartbeatStore) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, RequestError> {
        let slow = || RequestError::busy("the store does not answer; retry later");
        let readings = Arc::clone(&self.readings);
        let permit = timeout(TIMEOUT, readings.acquire_owned()).await;
        // The semaphore is never closed.
        let permit = permit.map_err(|_| slow())?.map_err(|_| slow())?;
        let store = Arc::clone(&self.store);
        let reading = spawn_blocking(move || {
            let found = read(&*store);
            drop(permit);
            found
        });
        match timeout(TIMEOUT, reading).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(_) => Err(RequestError::busy("the store fails; retry later")),
            Err(_) => Err(slow()),
        }
    }
}
