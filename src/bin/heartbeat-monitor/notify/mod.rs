//! Notifications of deaths and recoveries: `watch --notify` and `--notify-command`.
//!
//! After each sweep, a thread reads who is unwell and compares it with the reading before. Each target
//! has a thread of its own. None of them is waited for by a sweep.

mod command;
mod message;
mod news;
mod queue;
mod webhook;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use worker_heartbeat::{BoxError, HeartbeatStore};

use crate::args::NotifyArgs;
use crate::chain;
use crate::printable::Age;
use crate::text::clean;
use news::News;
use queue::{Batch, Queue};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long the end of the program waits for an attempt in progress.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Where notifications go.
trait Target: Send {
    /// For the log; it shows no secret.
    fn name(&self) -> String;

    /// Delivers within a time limit of its own, and soon after the queue is closed.
    fn deliver(&self, id: &str, body: &[u8], queue: &Queue) -> Result<(), Failure>;
}

/// Why a notification was not delivered, without any secret.
struct Failure {
    reason: String,
    /// The target asks for this pause.
    retry_after: Option<Duration>,
}

impl Failure {
    fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry_after: None,
        }
    }
}

/// The threads that notify. Dropping it ends them.
pub struct Notifier {
    swept: Sender<()>,
    queues: Vec<Arc<Queue>>,
    ended: Receiver<()>,
}

impl Notifier {
    /// `link`: the address of the page. `None` without a target.
    pub fn start(
        args: &NotifyArgs,
        store: Arc<dyn HeartbeatStore>,
        link: Option<String>,
    ) -> Result<Option<Self>, BoxError> {
        let mut targets: Vec<Box<dyn Target>> = Vec::new();
        if let Some(url) = args.url()? {
            targets.push(Box::new(webhook::Webhook::new(&url)?));
        }
        if let Some(program) = &args.notify_command {
            targets.push(Box::new(command::Command::new(program)));
        }
        if targets.is_empty() {
            return Ok(None);
        }
        // Nothing is sent: it is closed when the last thread has ended.
        let (running, ended) = bounded::<()>(1);
        let mut queues = Vec::new();
        for target in targets {
            log::info!(
                "notifying {}, at most every {}",
                target.name(),
                Age(args.notify_every)
            );
            let queue = Arc::new(Queue::default());
            queues.push(Arc::clone(&queue));
            let (every, running) = (args.notify_every, running.clone());
            thread::Builder::new()
                .name("notifier".to_owned())
                .spawn(move || {
                    deliver_all(&queue, &*target, every);
                    drop(running);
                })?;
        }
        let (swept, sweeps) = bounded(1);
        let to = queues.clone();
        let mut news = News::new(args.link.clone().or(link));
        thread::Builder::new()
            .name("news".to_owned())
            .spawn(move || {
                let mut fails = false;
                for () in sweeps {
                    match news.read(&*store) {
                        Ok(found) => {
                            log::debug!("{} events to notify of", found.len());
                            to.iter().for_each(|queue| queue.add(&found));
                            fails = false;
                        }
                        // The log has the failures of the sweeps, too.
                        Err(error) if !fails => {
                            let error = clean(&chain(&error));
                            log::warn!("cannot read who is to be notified of: {error}");
                            fails = true;
                        }
                        Err(_) => {}
                    }
                }
                drop(running);
            })?;
        Ok(Some(Self {
            swept,
            queues,
            ended,
        }))
    }

    /// To be called after every sweep; never waits.
    pub fn swept(&self) -> Sender<()> {
        self.swept.clone()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // The thread of the news ends as soon as no sweep can be reported to it.
        self.swept = bounded(0).0;
        self.queues.iter().for_each(|queue| queue.close());
        let _ = self.ended.recv_timeout(END_TIMEOUT);
        let lost: usize = self.queues.iter().map(|queue| queue.len()).sum();
        if lost > 0 {
            log::warn!("not notified of before the end: {lost} events");
        }
    }
}

/// Delivers until the queue is closed: at most one notification in each span of time, each until it is
/// delivered.
fn deliver_all(queue: &Queue, target: &dyn Target, every: Duration) {
    while let Some(batch) = queue.next() {
        let begun = Instant::now();
        if !deliver(queue, target, &batch) {
            return;
        }
        queue.delivered();
        if queue.is_closed_within(every.saturating_sub(begun.elapsed())) {
            return;
        }
    }
}

/// Tries until it is delivered; `false` if the queue was closed before.
fn deliver(queue: &Queue, target: &dyn Target, batch: &Batch) -> bool {
    let (id, body) = message::compose(batch);
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let Err(failure) = target.deliver(&id, &body, queue) else {
            if attempt > 1 {
                log::info!("notified {} at attempt {attempt}", target.name());
            }
            return true;
        };
        // Once an episode.
        if attempt == 1 {
            let reason = clean(&failure.reason);
            log::warn!(
                "cannot notify {}: {reason}; it is tried again",
                target.name()
            );
        }
        let pause_now = failure.retry_after.map_or(pause, |asked| asked.max(pause));
        if queue.is_closed_within(pause_now.min(LONGEST_PAUSE)) {
            return false;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    false
}
