//! The workers, registries and readers of the races.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use worker_heartbeat::{
    Builder, DeathCause, Event, EventKind, Exit, Health, Probe, Registry, Snapshot, State,
    StopCause, Subscription, Supervisor, WorkerHeartbeat,
};

use crate::support::{SECOND, name};

/// Capacity for unread events: the largest there is.
pub(crate) const ALL_EVENTS: usize = 65_536;

/// A value that one side takes or leaves behind.
pub(crate) type Slot<T> = Mutex<Option<T>>;

pub(crate) fn slot<T>(value: T) -> Slot<T> {
    Mutex::new(Some(value))
}

pub(crate) fn take<T>(slot: &Slot<T>) -> T {
    slot.lock().unwrap().take().unwrap()
}

pub(crate) fn worker(registry: &Registry) -> Builder {
    WorkerHeartbeat::builder("w").registry(registry)
}

/// A registry whose pacemaker stays, and ticks a hundred times a second.
pub(crate) fn busy_registry() -> (Registry, WorkerHeartbeat) {
    let registry = Registry::new();
    let anchor = worker(&registry)
        .id("anchor")
        .interval(Duration::from_millis(10))
        .stale_after(Duration::from_millis(100))
        .startup_grace(1_000 * SECOND)
        .start()
        .unwrap();
    (registry, anchor)
}

pub(crate) fn is_ending(event: &Event) -> bool {
    matches!(&event.kind, EventKind::Became(health) if health.state().is_terminal())
}

/// The events of one worker received so far; those of other workers are discarded.
pub(crate) fn events_of(events: &Subscription, id: &str) -> Vec<Event> {
    assert_eq!(events.dropped(), 0);
    events.try_iter().filter(|event| event.id() == id).collect()
}

pub(crate) fn names(events: &[Event]) -> Vec<String> {
    events.iter().map(name).collect()
}

/// Fails if the snapshot reads otherwise, except that a loaded machine may delay the pacemaker.
#[track_caller]
pub(crate) fn assert_reads(snapshot: &Snapshot, expected: State) {
    let state = snapshot.health.state();
    assert!(
        state == expected || state == State::Unobserved,
        "{snapshot:?}"
    );
}

/// How a worker ended, in one word; its verdict must not change.
pub(crate) fn ending(probe: &Probe) -> &'static str {
    match probe.health() {
        Health::Stopped { by, .. } => match by {
            StopCause::Stop => "stop",
            StopCause::Drop => "drop",
            StopCause::Supervisor => "supervisor",
            other => panic!("{other:?}"),
        },
        Health::Dead { death, .. } => match &death.cause {
            DeathCause::Panicked { .. } => "panic",
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// A worker that can be asked to stop without a thread of its own: a supervised future, polled once.
pub(crate) struct Ward {
    supervisor: Supervisor,
    pub(crate) hb: Arc<WorkerHeartbeat>,
    future: Mutex<Pin<Box<dyn Future<Output = Exit> + Send>>>,
}

impl Ward {
    pub(crate) fn new(registry: &Registry) -> Self {
        let supervisor = Supervisor::new(registry);
        let (give, given) = mpsc::channel();
        let work = move |hb| {
            give.send(hb).unwrap();
            pending::<()>()
        };
        let future = supervisor.supervise(worker(registry), work).unwrap();
        let mut future: Pin<Box<dyn Future<Output = Exit> + Send>> = Box::pin(future);
        let mut context = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        Self {
            supervisor,
            hb: given.recv().unwrap(),
            future: Mutex::new(future),
        }
    }

    pub(crate) fn ask_to_stop(&self) {
        let _ = self.supervisor.shutdown(Duration::ZERO);
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        // The future first, so that the handle is dropped last.
        let future = self.future.get_mut().unwrap();
        *future = Box::pin(pending());
    }
}

/// Sets a flag, however its thread ends.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
