//! Stops workers in order and waits for them, on a thread or in a task.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::children::{Child, Children, ask, linked};
use super::drained::DrainedWorker;
use super::exit::{Finish, Wait};
use super::timer::Timer;
use crate::clock::{Moment, Patience};
use crate::health::{Death, Ending, Health, during};
use crate::registry::core::events::EventKind;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Membership, Registry};
use crate::sync::printable::Printable;

/// How long a blocking shutdown waits for the log at its end.
const LOG_PATIENCE: Duration = Duration::from_millis(100);

/// How the workers of a supervisor ended. [`Display`](fmt::Display) makes a sentence of it.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let supervisor = Supervisor::new(&Registry::new());
/// supervisor.spawn(WorkerHeartbeat::builder("listener"), |hb| {
///     hb.stop_receiver().recv()?;
///     Ok(())
/// })?;
/// let report = supervisor.shutdown(Duration::from_secs(10));
/// assert!(report.is_clean());
/// assert!(report.to_string().starts_with("1 of 1 workers ended, took "));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StopReport {
    /// Ids of the workers that ended.
    pub ended: Vec<String>,
    /// The workers among them that died after they were asked to stop.
    pub died: Vec<DeadWorker>,
    /// How long the workers that ended took, the longest first, and before them those that took longer
    /// than their [budget](crate::Builder::drain_within). At most 1000.
    pub drained: Vec<DrainedWorker>,
    /// The workers that did not end in time. If a worker has ended itself and only waits for workers
    /// that are [linked](crate::Supervisor::linked_to) to it, these follow it.
    pub hung: Vec<HungWorker>,
    /// How long it took.
    pub took: Duration,
}

impl StopReport {
    /// Whether every worker ended.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Supervisor};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let report = supervisor.shutdown(Duration::from_secs(10));
    /// assert!(report.is_clean(), "{report}");
    /// ```
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.hung.is_empty()
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ended, hung) = (self.ended.len(), self.hung.len());
        write!(f, "{ended} of {} workers ended, took ", ended + hung)?;
        write!(f, "{:.1?}", self.took)?;
        listed(f, "still at work", &self.hung)?;
        listed(f, "died", &self.died)?;
        let over = self.drained.iter().filter(|one| one.is_over_budget());
        listed(f, "over budget", over)
    }
}

/// Lists the items of one kind, after the beginning of a report.
fn listed(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    all: impl IntoIterator<Item = impl fmt::Display>,
) -> fmt::Result {
    let mut separator = format!("; {what}: ");
    for one in all {
        write!(f, "{separator}{one}")?;
        separator.replace_range(.., ", ");
    }
    Ok(())
}

/// A worker that did not end in time.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let supervisor = Supervisor::new(Registry::global());
/// let (started, is_started) = crossbeam_channel::bounded(0);
/// supervisor.spawn(WorkerHeartbeat::builder("indexer").id("indexer-1"), move |hb| {
///     let _task = hb.begin_task("run-123", "indexing");
///     started.send(())?;
///     loop {
///         std::thread::park(); // it does not see that it is asked to stop
///     }
/// })?;
/// # is_started.recv().expect("it starts");
/// let report = supervisor.shutdown(Duration::from_millis(1));
/// let hung = &report.hung[0];
/// assert_eq!((hung.id.as_str(), hung.task.as_deref()), ("indexer-1", Some("indexing")));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HungWorker {
    /// Its id.
    pub id: String,
    /// Its health. If it is stopped or dead, its work has not returned.
    pub health: Health,
    /// The run that it works on, if it has a name.
    pub run_id: Option<String>,
    /// The task that it works on, if it has a name.
    pub task: Option<String>,
}

impl HungWorker {
    pub(crate) fn of(worker: &WorkerRef, observed: &ObservedNow) -> Self {
        let worker = worker.current();
        let (run_id, task) = worker.task();
        Self {
            id: worker.record.id().to_owned(),
            health: worker.health(observed),
            run_id,
            task,
        }
    }
}

impl fmt::Display for HungWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", Printable(&self.id), self.health)?;
        match &self.health {
            health if health.state().is_terminal() => f.write_str("; its work has not returned")?,
            // Its text contains them.
            Health::Stalled(_) | Health::Overdue { .. } => {}
            _ => during(f, self.run_id.as_deref(), self.task.as_deref())?,
        }
        f.write_str(")")
    }
}

/// A worker that died after it was asked to stop: it panicked or failed.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let supervisor = Supervisor::new(Registry::global());
/// supervisor.spawn(WorkerHeartbeat::builder("indexer").id("indexer-1"), |hb| {
///     hb.stop_receiver().recv()?;
///     Err("cannot save the index".into())
/// })?;
/// let report = supervisor.shutdown(Duration::from_secs(10));
/// assert_eq!(report.died[0].to_string(), "indexer-1 (failed: cannot save the index)");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadWorker {
    /// Its id.
    pub id: String,
    /// What is known of its death.
    pub death: Arc<Death>,
}

impl DeadWorker {
    /// `None` if it did not die after it was asked to stop, or died before this moment.
    pub(crate) fn of(worker: &WorkerRef, since: Moment) -> Option<Self> {
        let record = &worker.record;
        Some(Self {
            death: record.death_while_stopping(since)?,
            id: record.id().to_owned(),
        })
    }

    /// `None` unless its supervisor gave it up.
    pub(crate) fn given_up(worker: &WorkerRef) -> Option<Self> {
        match worker.current().ending()? {
            Ending::Dead(death) if death.gave_up_after.is_some() => Some(Self {
                death,
                id: worker.record.id().to_owned(),
            }),
            _ => None,
        }
    }
}

impl fmt::Display for DeadWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", Printable(&self.id), self.death.cause)?;
        let (run_id, task) = (&self.death.run_id, &self.death.task);
        during(f, run_id.as_deref(), task.as_deref())?;
        f.write_str(")")
    }
}

/// Stops children in reverse order of their start, each after the previous one has ended or has used
/// up its share of the time. The rest of the time is for those that have not ended. Real time, since
/// real threads and tasks are awaited; time in which the process did not run does not count.
#[derive(Debug)]
pub(super) struct Stopping {
    registry: Registry,
    groups: Vec<Arc<Children>>,
    children: Vec<Child>,
    /// The children whose own work runs this: they are asked to stop, but can't be awaited.
    own: Vec<Arc<Finish>>,
    /// How many have neither ended nor used up their share; the last of them is next.
    left: usize,
    /// A child has used up its share. The others share the rest of the first half of the time, so
    /// that each has the second half.
    late: bool,
    /// The share of the child that was asked to stop.
    asked: Option<Patience>,
    begun: Instant,
    timeout: Duration,
    patience: Patience,
}

impl Stopping {
    /// The children stay in their lists until they have ended, for concurrent and later shutdowns.
    pub(super) fn new(registry: &Registry, groups: Vec<Arc<Children>>, timeout: Duration) -> Self {
        let (begun, patience) = (Instant::now(), Patience::new(timeout));
        let children: Vec<_> = groups.iter().flat_map(|group| group.close()).collect();

        let own = |child: &&Child| registry.runs_here(&child.worker);
        let own = children.iter().filter(own);
        let own = own.map(|child| Arc::clone(&child.ending)).collect();
        Self {
            registry: registry.clone(),
            groups,
            left: children.len(),
            children,
            own,
            late: false,
            asked: None,
            begun,
            timeout,
            patience,
        }
    }

    /// The children of a life that has ended. `None` if it had none.
    pub(super) fn of_life(membership: &Membership) -> Option<Self> {
        let groups = linked(membership.worker_ref());
        let limit = groups.iter().map(|group| group.limit()).max()?;
        Some(Self::new(membership.registry(), groups, limit))
    }

    /// Whether there is nothing to wait for.
    fn is_done(&self, child: &Child) -> bool {
        child.ending.is_set() || self.own.iter().any(|own| Arc::ptr_eq(own, &child.ending))
    }

    /// Asks the next child. Returns which one to wait for, and how long until the next step; `None`
    /// if all have ended or the time has passed.
    fn step(&mut self) -> Option<(Arc<Finish>, Duration)> {
        while let Some(child) = self.children[..self.left].last() {
            let share = self.asked.get_or_insert_with(|| {
                ask(&self.registry, &child.worker);
                let waiting = u32::try_from(self.left).unwrap_or(u32::MAX);
                let kept = if self.late {
                    self.timeout / 2
                } else {
                    Duration::ZERO
                };
                let left = self.patience.left().saturating_sub(kept);
                self.patience.at_most(left / waiting)
            });
            let slice = share.slice().filter(|_| !self.is_done(child));
            if let Some(slice) = slice {
                return Some((Arc::clone(&child.ending), slice));
            }
            self.late |= !self.is_done(child);
            self.left -= 1;
            self.asked = None;
        }
        let mut children = self.children.iter().rev();
        let late = children.find(|child| !self.is_done(child))?;
        Some((Arc::clone(&late.ending), self.patience.slice()?))
    }

    /// Blocks until they have ended or the time has passed.
    pub(super) fn wait(mut self) -> StopReport {
        while let Some((ending, slice)) = self.step() {
            ending.wait(Some(slice));
        }
        // Waits for a slow log, but not for one that blocks: the process may be about to end.
        let log = self.patience.left().min(LOG_PATIENCE);
        self.registry.wait_for_log(&self.patience.at_most(log));
        self.report()
    }

    fn report(&self) -> StopReport {
        let observed = self.registry.observed_now();
        let mut report = StopReport::default();
        for child in &self.children {
            if child.ending.is_set() {
                report
                    .died
                    .extend(DeadWorker::of(&child.worker, Moment::ZERO));
                report.ended.push(child.worker.record.id().to_owned());
            } else {
                name(child, &observed, &mut report.hung);
            }
        }
        let ended = self.children.iter().filter(|child| child.ending.is_set());
        let ended = ended.map(|child| (&child.worker, Moment::ZERO));
        report.drained = DrainedWorker::among(ended);
        self.groups.iter().for_each(|group| group.forget_ended());
        report.took = self.begun.elapsed();
        report
    }
}

/// Reports a child that did not end. If it only waits for its own children, these are reported too.
fn name(child: &Child, observed: &ObservedNow, hung: &mut Vec<HungWorker>) {
    let worker = &*child.worker.current();
    hung.push(HungWorker::of(worker, observed));
    if !worker.record.is_over() {
        return;
    }
    for group in linked(worker) {
        for child in group.close() {
            if !child.ending.is_set() {
                name(&child, observed, hung);
            }
        }
    }
}

/// A future that stops children. Dropping it releases its waker and its timer.
#[derive(Debug)]
pub(super) struct StopFuture {
    stopping: Stopping,
    wait: Option<Wait>,
    timer: Timer,
    /// A timer of the pacemaker, if the timer thread can't be started.
    substitute: Option<u64>,
}

impl StopFuture {
    pub(super) fn new(stopping: Stopping) -> Self {
        Self {
            stopping,
            wait: None,
            timer: Timer::default(),
            substitute: None,
        }
    }

    fn set_timer(&mut self, after: Duration, context: &Context<'_>) {
        let at = Instant::now() + after;
        if self.timer.set(at, context.waker()).is_ok() {
            return;
        }
        let registry = &self.stopping.registry;
        let at = registry.clock().now().after(after);
        self.substitute = Some(registry.set_timer(self.substitute, at, context.waker()));
    }
}

impl Future for StopFuture {
    type Output = StopReport;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<StopReport> {
        let this = &mut *self;
        while let Some((ending, slice)) = this.stopping.step() {
            if !this.wait.as_ref().is_some_and(|wait| wait.is_for(&ending)) {
                this.wait = Some(Wait::new(ending));
            }
            let wait = this.wait.as_mut();
            if wait.is_some_and(|wait| wait.poll(context.waker()).is_some()) {
                continue;
            }
            this.set_timer(slice, context);
            return Poll::Pending;
        }
        this.wait = None;
        this.timer.clear();
        Poll::Ready(this.stopping.report())
    }
}

impl Drop for StopFuture {
    fn drop(&mut self) {
        if let Some(number) = self.substitute {
            self.stopping.registry.forget_timer(number);
        }
    }
}

// --- the end of a life ----------------------------------------------------------------------

/// Stops the children of a life that has ended, waits for them, and reports those that do not end.
pub(super) fn stop_linked(membership: &Membership) {
    if let Some(stopping) = Stopping::of_life(membership) {
        linked_stopped(membership, &stopping.wait());
    }
}

/// As [`stop_linked`], for a task. Dropped before it completes, it asks all of them to stop.
#[derive(Debug)]
pub(super) struct StopLinked {
    membership: Membership,
    /// `None` after completion, or if there are no children.
    stop: Option<StopFuture>,
}

impl StopLinked {
    pub(super) fn new(membership: Membership) -> Self {
        let stop = Stopping::of_life(&membership).map(StopFuture::new);
        Self { membership, stop }
    }
}

impl Future for StopLinked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(stop) = &mut self.stop else {
            return Poll::Ready(());
        };
        let Poll::Ready(report) = Pin::new(stop).poll(context) else {
            return Poll::Pending;
        };
        self.stop = None;
        linked_stopped(&self.membership, &report);
        Poll::Ready(())
    }
}

impl Drop for StopLinked {
    fn drop(&mut self) {
        if self.stop.is_some() {
            self.membership.dismiss_dependents();
        }
    }
}

fn linked_stopped(membership: &Membership, report: &StopReport) {
    let worker = membership.worker_ref();
    report_hung(membership.registry(), worker, report);
    worker.unlink();
}

fn report_hung(registry: &Registry, parent: &WorkerRef, report: &StopReport) {
    for hung in &report.hung {
        let kind = EventKind::ChildHung {
            id: hung.id.clone(),
            health: hung.health.clone(),
            waited: report.took,
        };
        registry.emit(Some(parent), kind);
    }
}
