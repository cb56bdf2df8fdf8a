//! The latest events, and a broadcast of new ones.

use std::sync::Arc;

use axum::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::events::DashboardEvent;
use super::history::EventLog;
use super::live_view::MAX_WAITING;
use crate::health::Death;

/// See the module.
pub(super) struct EventFeed {
    log: Mutex<EventLog>,
    subscribers: broadcast::Sender<Bytes>,
}

impl EventFeed {
    pub(super) fn new(epoch: String) -> Self {
        Self {
            log: Mutex::new(EventLog::new(epoch)),
            subscribers: broadcast::channel(MAX_WAITING).0,
        }
    }

    /// The logged events after the one with the id `after`, and all later ones.
    pub(super) fn subscribe(&self, after: Option<&str>) -> (Bytes, broadcast::Receiver<Bytes>) {
        let log = self.log.lock();
        let later = self.subscribers.subscribe();
        (log.after(after).into(), later)
    }

    /// Logs and sends these events, the oldest first.
    pub(super) fn add(&self, events: Vec<DashboardEvent>) {
        let mut log = self.log.lock();
        let messages: String = events.into_iter().map(|event| log.push(event)).collect();
        if !messages.is_empty() {
            // It fails if there are no subscribers.
            let _ = self.subscribers.send(messages.into());
        }
    }

    pub(super) fn death(&self, id: &str, incarnation: u32) -> Option<Arc<Death>> {
        self.log.lock().death(id, incarnation)
    }
}
