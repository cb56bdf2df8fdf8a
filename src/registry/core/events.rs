//! What happens to workers, as it happens: to subscribers, without ever waiting for one.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{
    Receiver, RecvError, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded,
};
use parking_lot::{Mutex, RwLock};

use crate::health::{Health, MissingWorkers, State, during};
use crate::sync::printable::{Age, Printable};
use crate::sync::wakers::{Wakers, wake};

/// Something that happened to a worker, or to the registry as a whole.
///
/// States are episodes: one event tells their beginning, one their end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// When, by the wall clock.
    pub at: SystemTime,
    /// Whom it happened to; `None` for the registry as a whole.
    pub worker: Option<EventWorker>,
    /// What happened.
    pub kind: EventKind,
}

/// The worker that an [`Event`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventWorker {
    /// Its id.
    pub id: String,
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// Which life of that id.
    pub incarnation: u32,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// A worker was registered, or a new incarnation of it began.
    Registered,
    /// It made its first progress.
    Started,
    /// It used three quarters of its allowance: a warning, not a verdict.
    Late {
        /// Time without progress.
        silent: Duration,
        /// What it is allowed.
        allowance: Duration,
    },
    /// It got into a state that is worth telling: never started, stalled, stale, stopping, stopped
    /// or dead.
    Became(Health),
    /// It is well again.
    Recovered {
        /// The state that ended.
        from: State,
        /// How long it was silent.
        after: Duration,
    },
    /// Its supervisor will start it again.
    Restarting {
        /// Which restart of those that count for the policy, from 1 on.
        attempt: u32,
        /// How long it waits before.
        delay: Duration,
    },
    /// Its supervisor has given it up.
    GaveUp {
        /// After so many restarts that count for the policy.
        restarts: u32,
    },
    /// Its life has ended, and one of the workers that are
    /// [linked](crate::Supervisor::linked_to) to it did not end in time. It is left running.
    ChildHung {
        /// The id of the child.
        id: String,
        /// What the child was doing.
        health: Health,
        /// How long the children were waited for.
        waited: Duration,
    },
    /// For a while nobody observed; that time is not charged to any worker.
    Unobserved {
        /// How much time is not charged.
        forgiven: Duration,
    },
    /// Fewer workers of a type live than are expected.
    Missing(MissingWorkers),
    /// The store cannot be reached, or fails. Work goes on; it is tried again.
    StoreFailing {
        /// What went wrong first.
        error: String,
    },
    /// The store answers again.
    StoreRestored {
        /// How often it failed in between.
        failures: u64,
    },
    /// The store does not let the worker in. It is asked again each 10 s.
    Refused {
        /// Why not.
        error: String,
    },
    /// The worker does not hold its run any more: the lease expired, or was taken away.
    LeaseLost {
        /// The run.
        run_id: String,
        /// The number of the claim.
        fence: u64,
    },
    /// A task of the worker [failed](crate::TaskGuard::fail). The worker goes on.
    TaskFailed {
        /// The run, if it has a name.
        run_id: Option<String>,
        /// The task, if it has a name.
        task: Option<String>,
        /// What went wrong.
        error: String,
    },
    /// As many workers of a type live as are expected, again.
    Complete {
        /// The type.
        worker_type: String,
    },
}

impl Event {
    /// The id of the worker that it is about; empty for the registry as a whole.
    #[must_use]
    pub fn id(&self) -> &str {
        self.worker.as_ref().map_or("", |worker| &worker.id)
    }

    pub(crate) fn level(&self) -> log::Level {
        match &self.kind {
            EventKind::Registered | EventKind::Started => log::Level::Debug,
            EventKind::Became(health) => match health.state() {
                State::Stopping | State::Stopped => log::Level::Info,
                _ => log::Level::Error,
            },
            EventKind::Recovered { .. }
            | EventKind::Complete { .. }
            | EventKind::StoreRestored { .. } => log::Level::Info,
            EventKind::Late { .. }
            | EventKind::Restarting { .. }
            | EventKind::Unobserved { .. }
            | EventKind::Missing(_)
            | EventKind::StoreFailing { .. }
            | EventKind::Refused { .. }
            | EventKind::LeaseLost { .. }
            | EventKind::TaskFailed { .. } => log::Level::Warn,
            EventKind::GaveUp { .. } | EventKind::ChildHung { .. } => log::Level::Error,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(worker) = &self.worker {
            write!(f, "worker {}: ", Printable(&worker.id))?;
        }
        self.kind.fmt(f)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered => f.write_str("registered"),
            Self::Started => f.write_str("started"),
            Self::Late { silent, allowance } => write!(
                f,
                "late: no progress for {}, {} allowed",
                Age(*silent),
                Age(*allowance)
            ),
            Self::Became(health) => health.fmt(f),
            Self::Recovered { from, after } => {
                write!(f, "recovered from {from} after {}", Age(*after))
            }
            Self::Restarting { attempt, delay } => {
                write!(f, "restart {attempt} in {}", Age(*delay))
            }
            Self::GaveUp { restarts } => write!(f, "given up after {restarts} restarts"),
            Self::ChildHung { id, health, waited } => write!(
                f,
                "its child {} did not end within {} and is left running: {health}",
                Printable(id),
                Age(*waited)
            ),
            Self::Unobserved { forgiven } => write!(
                f,
                "nobody observed for {}; no worker is charged for it",
                Age(*forgiven)
            ),
            Self::Missing(missing) => missing.fmt(f),
            Self::StoreFailing { error } => write!(f, "store failing: {}", Printable(error)),
            Self::Refused { error } => {
                write!(f, "not let in by the store: {}", Printable(error))
            }
            Self::StoreRestored { failures: 1 } => f.write_str("store restored after 1 failure"),
            Self::StoreRestored { failures } => {
                write!(f, "store restored after {failures} failures")
            }
            Self::LeaseLost { run_id, fence } => {
                write!(f, "lease of {} lost (fence {fence})", Printable(run_id))
            }
            Self::TaskFailed {
                run_id,
                task,
                error,
            } => {
                write!(f, "task failed: {}", Printable(error))?;
                during(f, run_id.as_deref(), task.as_deref())
            }
            Self::Complete { worker_type } => {
                write!(
                    f,
                    "all expected workers of type {} live",
                    Printable(worker_type)
                )
            }
        }
    }
}

/// A bounded queue of events. If its owner is too slow, the oldest are dropped and counted; nobody
/// ever waits for it. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    receiver: Receiver<Event>,
    mailbox: Arc<Mailbox>,
}

/// What a subscription shares with its registry, besides the queue.
#[derive(Debug, Default)]
struct Mailbox {
    /// Events that were dropped because the queue was full.
    dropped: AtomicU64,
    /// Tasks that wait for an event.
    waiting: Mutex<Wakers>,
}

impl Subscription {
    /// Waits for the next event.
    ///
    /// It blocks the calling thread: in an asynchronous context, use
    /// [`recv_async`](Self::recv_async).
    ///
    /// # Errors
    /// When the registry is gone and no event is left.
    pub fn recv(&self) -> Result<Event, RecvError> {
        self.receiver.recv()
    }

    /// Waits for the next event, without blocking the thread; on any executor.
    ///
    /// The future can be dropped and made again at any time: an event is taken only by the poll
    /// that returns it. Several tasks may wait at one subscription; each event goes to one of them.
    ///
    /// # Errors
    /// When the registry is gone and no event is left.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
    /// hb.fail("disk full");
    /// drop((hb, registry));
    ///
    /// let mut seen = Vec::new();
    /// while let Ok(event) = events.recv_async().await {
    ///     seen.push(event.to_string());
    /// }
    /// assert_eq!(seen, ["worker mailer-1: registered", "worker mailer-1: dead: failed: disk full"]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "futures do nothing unless they are polled"]
    pub fn recv_async(
        &self,
    ) -> impl Future<Output = Result<Event, RecvError>> + Send + Sync + Unpin {
        Recv {
            events: self,
            number: None,
        }
    }

    /// Waits for the next event, but no longer than `timeout` (of real time). It blocks the calling
    /// thread.
    ///
    /// # Errors
    /// When there was none in that time, or the registry is gone and no event is left.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.receiver.recv_timeout(timeout)
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// When there is none, or the registry is gone and no event is left.
    pub fn try_recv(&self) -> Result<Event, TryRecvError> {
        self.receiver.try_recv()
    }

    /// The events that are there now.
    pub fn try_iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.receiver.try_iter()
    }

    /// All events to come, until the registry is gone. Blocks the calling thread for each of them.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.receiver.iter()
    }

    /// The channel, for use with [`crossbeam_channel::select!`].
    #[must_use]
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// How many events were dropped because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.mailbox.dropped.load(Ordering::Relaxed)
    }
}

/// As [`Subscription::iter`]: all events to come, until the registry is gone.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let events = registry.subscribe();
/// drop(WorkerHeartbeat::builder("mailer").registry(&registry).start()?);
/// drop(registry);
///
/// for event in &events {
///     println!("{event}");
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
impl<'a> IntoIterator for &'a Subscription {
    type Item = Event;
    type IntoIter = crossbeam_channel::Iter<'a, Event>;

    fn into_iter(self) -> Self::IntoIter {
        self.receiver.iter()
    }
}

/// A task's wait for an event. Dropped, it leaves nothing behind.
struct Recv<'a> {
    events: &'a Subscription,
    number: Option<u64>,
}

impl Future for Recv<'_> {
    type Output = Result<Event, RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Subscription { receiver, mailbox } = self.events;
        let waker = context.waker().clone();
        // Events are sent before wakers are taken, under this lock: so none is missed.
        let mut waiting = mailbox.waiting.lock();
        match receiver.try_recv() {
            Ok(event) => return Poll::Ready(Ok(event)),
            Err(TryRecvError::Disconnected) => return Poll::Ready(Err(RecvError)),
            Err(TryRecvError::Empty) => {}
        }
        let (number, replaced) = waiting.keep(self.number, waker);
        drop(waiting);
        drop(replaced);
        self.number = Some(number);
        Poll::Pending
    }
}

impl Drop for Recv<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let forgotten = self.events.mailbox.waiting.lock().forget(number);
            drop(forgotten);
        }
    }
}

/// The largest room for unread events.
const MOST_UNREAD: usize = 65_536;

/// All subscribers of a registry.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    subscribers: RwLock<Vec<Subscriber>>,
}

#[derive(Debug)]
struct Subscriber {
    sender: Sender<Event>,
    /// To make room.
    receiver: Receiver<Event>,
    /// Gone with the subscription.
    mailbox: Weak<Mailbox>,
}

impl Subscribers {
    pub(crate) fn subscribe(&self, capacity: usize) -> Subscription {
        let (sender, receiver) = bounded(capacity.clamp(1, MOST_UNREAD));
        let mailbox = Arc::<Mailbox>::default();
        let mut subscribers = self.subscribers.write();
        subscribers.retain(|subscriber| subscriber.mailbox.strong_count() > 0);
        subscribers.push(Subscriber {
            sender,
            receiver: receiver.clone(),
            mailbox: Arc::downgrade(&mailbox),
        });
        Subscription { receiver, mailbox }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subscribers.read().is_empty()
    }

    /// Sends an event to all subscribers. Tasks that wait for it are woken by [`wake`](Self::wake).
    pub(super) fn send(&self, event: &Event) {
        let mut gone = false;
        for subscriber in &*self.subscribers.read() {
            match subscriber.mailbox.upgrade() {
                Some(mailbox) => subscriber.send(event.clone(), &mailbox.dropped),
                None => gone = true,
            }
        }
        if gone {
            self.subscribers
                .write()
                .retain(|subscriber| subscriber.mailbox.strong_count() > 0);
        }
    }

    /// Wakes the tasks that wait for events. Apart from [`send`](Self::send), since it calls
    /// executors, which must not happen under a lock.
    pub(in crate::registry) fn wake(&self) {
        let mailboxes: Vec<_> = {
            let subscribers = self.subscribers.read();
            let mailboxes = subscribers.iter().map(|one| one.mailbox.upgrade());
            mailboxes.flatten().collect()
        };
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        let subscribers = std::mem::take(self.subscribers.get_mut()).into_iter();
        // All senders go before the first task wakes, which finds its queue closed.
        let mailboxes: Vec<_> = subscribers
            .filter_map(|one| one.mailbox.upgrade())
            .collect();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }
}

impl Mailbox {
    fn wake(&self) {
        let waiting = self.waiting.lock().take();
        waiting.for_each(wake);
    }
}

impl Subscriber {
    fn send(&self, mut event: Event, dropped: &AtomicU64) {
        // Others may fill the room that was made; after a few tries this event is the one to go.
        for _ in 0..8 {
            match self.sender.try_send(event) {
                Err(TrySendError::Full(back)) => event = back,
                _ => return,
            }
            if self.receiver.try_recv().is_ok() {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(restarts: u32) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH,
            worker: None,
            kind: EventKind::GaveUp { restarts },
        }
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts() {
        let hub = Subscribers::default();
        let slow = hub.subscribe(2);
        for n in 0..5 {
            hub.send(&event(n));
        }
        assert_eq!(slow.dropped(), 3);
        let left: Vec<_> = slow.try_iter().map(|event| event.to_string()).collect();
        assert_eq!(
            left,
            ["given up after 3 restarts", "given up after 4 restarts"]
        );
    }

    #[test]
    fn a_dropped_subscription_is_forgotten() {
        let hub = Subscribers::default();
        drop(hub.subscribe(1));
        assert!(!hub.is_empty());
        hub.send(&event(0));
        assert!(hub.is_empty());
    }

    #[test]
    fn a_subscription_ends_with_its_hub() {
        let hub = Subscribers::default();
        let subscription = hub.subscribe(4);
        hub.send(&event(1));
        drop(hub);
        assert_eq!(subscription.iter().count(), 1);
        assert!(subscription.recv().is_err());
    }
}
