//! The queues of subscribers. Sending never waits for one.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam_channel::{
    Receiver, RecvError, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded,
};
use parking_lot::{Mutex, RwLock};

use super::counts::Count;
use super::events::Event;
use crate::sync::wakers::{Wakers, wake};

/// A bounded queue of events. If its owner is too slow, the oldest are dropped and counted: no worker
/// waits for it. Dropping it ends the subscription.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let events = registry.subscribe();
/// let watcher = std::thread::spawn(move || {
///     // Ends with the registry.
///     events.iter().map(|event| event.to_string()).collect::<Vec<_>>()
/// });
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// hb.fail("disk full");
/// drop((hb, registry));
///
/// let seen = watcher.join().expect("it does not panic");
/// assert_eq!(seen, ["worker mailer-1: registered", "worker mailer-1: dead: failed: disk full"]);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
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
    /// It blocks the calling thread: in an async context, use
    /// [`recv_async`](Self::recv_async).
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
    /// assert_eq!(events.recv()?.to_string(), "worker mailer-1: registered");
    /// drop((hb, registry));
    /// while let Ok(event) = events.recv() {
    ///     println!("{event}"); // worker mailer-1: stopped: its handle was dropped
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the registry is gone and no event is left.
    pub fn recv(&self) -> Result<Event, RecvError> {
        self.receiver.recv()
    }

    /// Waits for the next event, without blocking the thread; on any executor.
    ///
    /// The future is cancel-safe: an event is taken only by the poll that returns it. Several tasks
    /// may wait at one subscription; each event goes to one of them.
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

    /// Waits for the next event for at most `timeout`, in real time. It blocks the calling thread.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Registry;
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// assert!(events.recv_timeout(Duration::ZERO).is_err(), "nothing has happened yet");
    /// ```
    ///
    /// # Errors
    /// When there was none in that time, or the registry is gone and no event is left.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.receiver.recv_timeout(timeout)
    }

    /// The next event, if there is one.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// assert!(events.try_recv().is_err(), "nothing has happened yet");
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// assert!(events.try_recv().is_ok());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// When there is none, or the registry is gone and no event is left.
    pub fn try_recv(&self) -> Result<Event, TryRecvError> {
        self.receiver.try_recv()
    }

    /// The events that are there now.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// drop(WorkerHeartbeat::builder("mailer").registry(&registry).start()?);
    /// assert_eq!(events.try_iter().count(), 2); // registered, stopped
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn try_iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.receiver.try_iter()
    }

    /// All events to come, until the registry is gone. Blocks the calling thread for each of them.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let first = events.iter().next();
    /// assert!(first.is_some_and(|event| event.to_string().ends_with("registered")));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.receiver.iter()
    }

    /// The channel, for use with [`crossbeam_channel::select!`].
    ///
    /// ```
    /// use crossbeam_channel::{never, select};
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let (events, requests) = (registry.subscribe(), never::<String>());
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// select! {
    ///     recv(events.receiver()) -> event => println!("{}", event?),
    ///     recv(requests) -> request => println!("{}", request?),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// How many events were dropped because the queue was full.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe_with_capacity(1);
    /// let _first = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let _second = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// assert_eq!(events.dropped(), 1);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
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

/// A task's wait for an event.
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

/// The largest capacity.
const MOST_UNREAD: usize = 65_536;

/// All subscribers of a registry.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    subscribers: RwLock<Vec<Subscriber>>,
    /// Events that were dropped for any subscriber that there ever was.
    dropped: Count,
}

#[derive(Debug)]
struct Subscriber {
    sender: Sender<Event>,
    /// For dropping the oldest event.
    receiver: Receiver<Event>,
    /// Dropped with the subscription.
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

    pub(in crate::registry) fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subscribers.read().is_empty()
    }

    /// Sends an event to all subscribers. [`wake`](Self::wake) wakes the tasks that wait for it.
    pub(super) fn send(&self, event: &Event) {
        let mut gone = false;
        for subscriber in &*self.subscribers.read() {
            match subscriber.mailbox.upgrade() {
                Some(mailbox) => {
                    let dropped = subscriber.send(event.clone());
                    mailbox.dropped.fetch_add(dropped, Ordering::Relaxed);
                    self.dropped.add(dropped);
                }
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
        // All senders are dropped before the first task wakes, so that it finds its queue closed.
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
    /// Returns how many events were dropped for it.
    fn send(&self, mut event: Event) -> u64 {
        let mut dropped = 0;
        // Other threads may fill the queue again; after a few tries this event is dropped.
        for _ in 0..8 {
            match self.sender.try_send(event) {
                Err(TrySendError::Full(back)) => event = back,
                _ => return dropped,
            }
            dropped += u64::from(self.receiver.try_recv().is_ok());
        }
        dropped + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::core::events::EventKind;
    use std::time::SystemTime;

    fn event(restarts: u32) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH,
            worker: None,
            kind: EventKind::GaveUp { restarts },
        }
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts() {
        let subscribers = Subscribers::default();
        let slow = subscribers.subscribe(2);
        for n in 0..5 {
            subscribers.send(&event(n));
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
        let subscribers = Subscribers::default();
        drop(subscribers.subscribe(1));
        assert!(!subscribers.is_empty());
        subscribers.send(&event(0));
        assert!(subscribers.is_empty());
    }

    #[test]
    fn a_subscription_ends_with_its_registry() {
        let subscribers = Subscribers::default();
        let subscription = subscribers.subscribe(4);
        subscribers.send(&event(1));
        drop(subscribers);
        assert_eq!(subscription.iter().count(), 1);
        assert!(subscription.recv().is_err());
    }
}
