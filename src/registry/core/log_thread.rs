//! Writes log lines on a thread of its own, for callers that must not wait for a log that blocks.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Core;
use super::ends::LogInFlight;
use super::events::Event;
use super::record::Record;
use crate::sync::background;

/// Name of the thread.
const THREAD_NAME: &str = "wh-log";

/// Events in order. The thread starts with the first one and ends with the last.
#[derive(Debug, Default)]
pub(super) struct LogQueue(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<(Arc<Record>, Event)>,
    /// The thread runs.
    running: bool,
}

impl Core {
    /// Logs these events on the thread. If it can't be started, they are lost.
    pub(super) fn log_in_background(self: &Arc<Self>, events: Vec<(Arc<Record>, Event)>) {
        if events.is_empty() {
            return;
        }
        let mut queue = self.log_queue.0.lock();
        queue.events.extend(events);
        if queue.running {
            return;
        }
        let in_flight = LogInFlight::begin(Arc::clone(self));
        // Under the lock: a concurrent caller relies on the thread.
        match background::detach(THREAD_NAME, move || write(&in_flight)) {
            Ok(()) => queue.running = true,
            Err(_) => queue.events.clear(),
        }
    }
}

fn write(in_flight: &LogInFlight<Arc<Core>>) {
    let core = &in_flight.0;
    loop {
        let mut queue = core.log_queue.0.lock();
        let Some((record, event)) = queue.events.pop_front() else {
            queue.running = false;
            return;
        };
        drop(queue);
        core.log_unless_over(&record, &event);
    }
}
