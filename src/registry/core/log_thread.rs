//! Lines for the log that the caller does not wait for: a log implementation may block.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::events::Event;
use super::record::Record;
use super::{Core, LogInFlight};
use crate::sync::background;

/// Name of the thread.
const THREAD_NAME: &str = "wh-log";

/// Events for the log, in their order. A thread that begins with the first writes them and ends with
/// the last.
#[derive(Debug, Default)]
pub(super) struct LogQueue(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<(Arc<Record>, Event)>,
    /// The thread is there.
    attended: bool,
}

impl Core {
    /// Has these logged by another thread. If there is no thread to be had, they are not logged.
    pub(super) fn log_in_background(self: &Arc<Self>, events: Vec<(Arc<Record>, Event)>) {
        if events.is_empty() {
            return;
        }
        let mut queue = self.log_queue.0.lock();
        queue.events.extend(events);
        if queue.attended {
            return;
        }
        let telling = LogInFlight::begin(Arc::clone(self));
        // Under the lock: a caller that comes now may rely on the thread.
        match background::detach(THREAD_NAME, move || attend(&telling)) {
            Ok(()) => queue.attended = true,
            Err(_) => queue.events.clear(),
        }
    }
}

/// The thread.
fn attend(telling: &LogInFlight<Arc<Core>>) {
    let core = &telling.0;
    loop {
        let mut queue = core.log_queue.0.lock();
        let Some((record, event)) = queue.events.pop_front() else {
            queue.attended = false;
            return;
        };
        drop(queue);
        core.log_unless_over(&record, &event);
    }
}
