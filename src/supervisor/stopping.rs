//! Workers are stopped in order, and awaited: by a thread that waits, or by a task.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::children::{Child, Children, ask, linked};
use super::exit::{Finish, Wait};
use super::timer::Timer;
use crate::clock::{Moment, Patience};
use crate::health::{Death, Ending, Health, during};
use crate::registry::core::events::EventKind;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Membership, Registry};

/// How long a shutdown that blocks its thread waits for the log at its end.
const LOG_PATIENCE: Duration = Duration::from_millis(100);

/// How a supervisor's workers came to their end. [`Display`](fmt::Display) makes a sentence of it.
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
    /// Those of them that died after they were asked to stop.
    pub died: Vec<DeadWorker>,
    /// The workers that did not end in time. One whose own life is over, but not the lives of the
    /// workers that are [linked](crate::Supervisor::linked_to) to it, is followed by these.
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
        listed(f, "died", &self.died)
    }
}

/// Names what there is of one kind, after what a report has said already.
fn listed(f: &mut fmt::Formatter<'_>, what: &str, all: &[impl fmt::Display]) -> fmt::Result {
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
    /// How it is. One that is stopped or dead already has work that has not returned.
    pub health: Health,
    /// The run that it is at, if it has a name.
    pub run_id: Option<String>,
    /// The task that it is at, if it has a name.
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
        write!(f, "{} ({}", self.id, self.health)?;
        match &self.health {
            health if health.state().is_terminal() => f.write_str("; its work has not returned")?,
            // It has them in its words.
            Health::Stalled(_) => {}
            _ => during(f, self.run_id.as_deref(), self.task.as_deref())?,
        }
        f.write_str(")")
    }
}

/// A worker that died after it was asked to stop: it panicked or failed on its way out.
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
    /// `None` if it did not die so, or before this moment.
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
        write!(f, "{} ({}", self.id, self.death.cause)?;
        let (run_id, task) = (&self.death.run_id, &self.death.task);
        during(f, run_id.as_deref(), task.as_deref())?;
        f.write_str(")")
    }
}

/// Children that are being stopped: those started last first, each after the one before has ended,
/// or has used up its share of the time. What is left of the time then is for those that have not
/// ended. Real time: real threads and tasks are waited for. Time in
/// which the process did not run is not charged to them.
#[derive(Debug)]
pub(super) struct Stopping {
    registry: Registry,
    groups: Vec<Arc<Children>>,
    children: Vec<Child>,
    /// Those whose own work asks for this: they are asked to stop, and cannot be waited for.
    own: Vec<Arc<Finish>>,
    /// How many have neither ended nor used up their share; the last of them is next.
    left: usize,
    /// One has used up its share: the others share what is left of the first half of the time, so that
    /// each of them has the second half.
    late: bool,
    /// It was asked to stop, and may take so long.
    asked: Option<Patience>,
    begun: Instant,
    timeout: Duration,
    patience: Patience,
}

impl Stopping {
    /// They stay in their lists until they have ended, for others that stop them at the same time and
    /// for the next time.
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

    /// The children of a life that is over. `None` if it had none.
    pub(super) fn of_life(membership: &Membership) -> Option<Self> {
        let groups = linked(membership.worker_ref());
        let limit = groups.iter().map(|group| group.limit()).max()?;
        Some(Self::new(membership.registry(), groups, limit))
    }

    /// Whether there is nothing to wait for.
    fn is_done(&self, child: &Child) -> bool {
        child.ending.is_set() || self.own.iter().any(|own| Arc::ptr_eq(own, &child.ending))
    }

    /// Asks the next one. Returns which one to wait for, and how long until the next step;
    /// `None` if all have ended or the time is over.
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

    /// Blocks until they have ended, or the time is over.
    pub(super) fn wait(mut self) -> StopReport {
        while let Some((ending, slice)) = self.step() {
            ending.wait(Some(slice));
        }
        // A log that is slow is waited for, one that blocks is not: the process may be about to end.
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
        self.groups.iter().for_each(|group| group.forget_ended());
        report.took = self.begun.elapsed();
        report
    }
}

/// Names a child that did not end; if it only waits for children of its own, these too.
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

/// A task's wait for children to be stopped. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct StopFuture {
    stopping: Stopping,
    wait: Option<Wait>,
    timer: Timer,
    /// In place of the timer, if there is no thread for it: one of the pacemaker's.
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

/// A worker's life is over: its children are stopped, awaited, and named if they do not end.
pub(super) fn part(membership: &Membership) {
    if let Some(stopping) = Stopping::of_life(membership) {
        parted(membership, &stopping.wait());
    }
}

/// As [`part`], for a task. Dropped before it is done, it asks all of them to stop.
#[derive(Debug)]
pub(super) struct Part {
    membership: Membership,
    /// `None` once it is done, or if there are no children.
    stop: Option<StopFuture>,
}

impl Part {
    pub(super) fn new(membership: Membership) -> Self {
        let stop = Stopping::of_life(&membership).map(StopFuture::new);
        Self { membership, stop }
    }
}

impl Future for Part {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(stop) = &mut self.stop else {
            return Poll::Ready(());
        };
        let Poll::Ready(report) = Pin::new(stop).poll(context) else {
            return Poll::Pending;
        };
        self.stop = None;
        parted(&self.membership, &report);
        Poll::Ready(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.stop.is_some() {
            self.membership.dismiss_dependents();
        }
    }
}

fn parted(membership: &Membership, report: &StopReport) {
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
