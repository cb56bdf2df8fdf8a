//! Runs workers, on threads or in futures, so that no end of one goes unseen.

mod future;
mod restart;
mod thread;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub use future::{Outcome, Supervised};
pub use restart::Restart;
pub use thread::SupervisedWorker;

use crate::clock::Moment;
use crate::health::{Death, DeathCause, Ending, Health, StopCause, during};
use crate::panics::OnFatal;
use crate::registry::{Membership, Registry};
use crate::roster::events::EventKind;
use crate::roster::post::{End, Post};
use crate::roster::timeline::View;
use restart::{Decision, Fate, Restarts};

/// Runs workers on threads of their own, tells how each of them ended, and starts them again as its
/// policy says.
///
/// The first worker puts a hook before the process's panic hook. It notes message, place and call
/// stack of panics in supervised work, and always calls the hook that it found.
///
/// Dropping a supervisor leaves its workers running; [`shutdown`](Self::shutdown) ends them.
#[derive(Clone, Debug)]
pub struct Supervisor {
    registry: Registry,
    restart: Restart,
    /// In the order in which they were started.
    children: Arc<Mutex<Vec<Child>>>,
}

#[derive(Clone, Debug)]
struct Child {
    post: Post,
    ending: Arc<Finish>,
}

impl Supervisor {
    /// A supervisor whose workers belong to this registry, and are not started again.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            restart: Restart::never(),
            children: Arc::default(),
        }
    }

    /// When workers that are spawned from now on are started again.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// The registry that its workers belong to.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Asks its workers to stop, those started last first, each after the one before has ended, or
    /// has used up its share of the time. Returns after `timeout` at the latest, and names those
    /// that did not end. They are left running: a thread cannot be killed.
    pub fn shutdown(&self, timeout: Duration) -> StopReport {
        let begun = Instant::now();
        // They stay in the list until they have ended, for others that shut down at the same time and
        // for the next time.
        let children = self.children.lock().clone();
        let deadline = begun.checked_add(timeout);
        for (left, child) in children.iter().enumerate().rev() {
            let rest = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            let waiting = u32::try_from(left + 1).unwrap_or(u32::MAX);
            ask(&self.registry, &child.post);
            child.ending.wait(rest / waiting);
        }
        let view = self.registry.view();
        let mut report = StopReport::default();
        for child in children {
            let id = child.post.record.id().to_owned();
            if child.ending.exit().is_some() {
                report
                    .died
                    .extend(DeadWorker::of(&child.post, Moment::ZERO));
                report.ended.push(id);
            } else {
                report.hung.push(HungWorker::of(&child.post, &view));
            }
        }
        self.children
            .lock()
            .retain(|child| child.ending.exit().is_none());
        report.took = begun.elapsed();
        report
    }

    fn adopt(&self, post: Post, ending: Arc<Finish>) {
        let mut children = self.children.lock();
        children.retain(|child| child.ending.exit().is_none());
        children.push(Child { post, ending });
    }
}

/// How a supervisor's workers came to their end.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StopReport {
    /// Ids of the workers that ended.
    pub ended: Vec<String>,
    /// Those of them that died after they were asked to stop.
    pub died: Vec<DeadWorker>,
    /// The workers that did not end in time.
    pub hung: Vec<HungWorker>,
    /// How long it took.
    pub took: Duration,
}

impl StopReport {
    /// Whether every worker ended.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.hung.is_empty()
    }
}

/// A worker that did not end in time.
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
    pub(crate) fn of(post: &Post, view: &View) -> Self {
        let post = post.current();
        let (run_id, task) = post.task();
        Self {
            id: post.record.id().to_owned(),
            health: post.health(view),
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
    pub(crate) fn of(post: &Post, since: Moment) -> Option<Self> {
        let record = &post.record;
        Some(Self {
            death: record.death_while_stopping(since)?,
            id: record.id().to_owned(),
        })
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

/// How supervised work ended, after its last life.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// It returned without an error.
    Completed,
    /// It returned an error, and was not started again.
    Failed {
        /// The error, as text.
        error: String,
    },
    /// It panicked, and was not started again.
    Panicked {
        /// The panic message.
        message: String,
        /// File, line and column.
        location: Option<String>,
    },
    /// It ended too often, and was given up.
    GaveUp {
        /// Restarts within the policy's period.
        restarts: u32,
        /// Its last death.
        death: Option<Arc<Death>>,
    },
    /// Its future was dropped before it was done.
    Cancelled,
}

impl Exit {
    /// Whether it returned without an error.
    #[must_use]
    pub const fn is_completed(&self) -> bool {
        matches!(self, Self::Completed)
    }

    /// How a life of this outcome ends the worker.
    fn end(&self, finite: bool) -> End {
        match self {
            Self::Completed if finite => End::Stopped(StopCause::Completed),
            Self::Completed => End::Dead(DeathCause::Exited),
            Self::Failed { error } => End::Overruled(DeathCause::Failed {
                error: error.clone(),
            }),
            _ => End::Stopped(StopCause::Cancelled),
        }
    }
}

/// Where the exit of supervised work is left for those who wait for it.
#[derive(Debug, Default)]
struct Finish {
    exit: Mutex<Option<Exit>>,
    told: Condvar,
}

impl Finish {
    fn set(&self, exit: Exit) {
        self.exit.lock().get_or_insert(exit);
        self.told.notify_all();
    }

    fn exit(&self) -> Option<Exit> {
        self.exit.lock().clone()
    }

    /// Waits for the exit, but no longer than `timeout`.
    fn wait(&self, timeout: Duration) -> Option<Exit> {
        let deadline = Instant::now().checked_add(timeout);
        let mut exit = self.exit.lock();
        while exit.is_none() {
            match deadline {
                Some(deadline) => {
                    if self.told.wait_until(&mut exit, deadline).timed_out() {
                        break;
                    }
                }
                None => self.told.wait(&mut exit),
            }
        }
        exit.clone()
    }
}

/// Asks one worker to stop.
fn ask(registry: &Registry, post: &Post) {
    let roster = registry.roster();
    roster
        .request_stop(std::slice::from_ref(post), &StopCause::Supervisor)
        .tell();
}

/// Marks the worker dead and logs it when a panic is about to abort the process.
fn on_fatal(membership: &Membership) -> OnFatal {
    let (registry, post) = (membership.registry().clone(), membership.post().clone());
    Arc::new(move |report| {
        registry
            .roster()
            .end(&post, End::Overruled(report.clone().into()));
    })
}

/// One life is over: ends the incarnation and decides what comes next.
fn conclude(
    membership: &Membership,
    restarts: &mut Restarts,
    outcome: Result<Exit, crate::panics::PanicReport>,
    finite: bool,
) -> (Exit, Decision) {
    let post = membership.post();
    let asked = post.stop_requested();
    let exit = match outcome {
        Ok(exit) => {
            membership.end(exit.end(finite || asked));
            match (exit, post.ending()) {
                // It said so itself before it returned.
                (Exit::Completed, Some(Ending::Dead(death))) => match &death.cause {
                    DeathCause::Failed { error } => Exit::Failed {
                        error: error.clone(),
                    },
                    _ => Exit::Completed,
                },
                (exit, _) => exit,
            }
        }
        Err(report) => {
            let exit = Exit::Panicked {
                message: report.message.clone(),
                location: report.location.clone(),
            };
            membership.end(End::Overruled(report.into()));
            exit
        }
    };
    let fate = match post.ending() {
        _ if asked => Fate::Stopped,
        Some(Ending::Dead(death)) => Fate::from(&death.cause),
        Some(Ending::Stopped(StopCause::Completed)) => Fate::Returned,
        _ => Fate::Stopped,
    };
    let registry = membership.registry();
    let decision = if registry.is_stopping() {
        Decision::LeaveIt
    } else {
        restarts.decide(fate, registry.clock().now())
    };
    match decision {
        Decision::LeaveIt => (exit, decision),
        Decision::Restart { attempt, delay } => {
            let kind = EventKind::Restarting { attempt, delay };
            registry.roster().emit(Some(&post.record), kind);
            (exit, decision)
        }
        Decision::GiveUp { restarts } => {
            post.give_up(restarts);
            registry
                .roster()
                .emit(Some(&post.record), EventKind::GaveUp { restarts });
            let death = match post.ending() {
                Some(Ending::Dead(death)) => Some(death),
                _ => None,
            };
            (Exit::GaveUp { restarts, death }, decision)
        }
    }
}

/// Begins the next life. `None` if the worker was asked to stop meanwhile.
fn begin_again(last: &Membership) -> Option<Membership> {
    let registry = last.registry();
    let roster = registry.roster();
    if registry.is_stopping() {
        return None;
    }
    let next = last.next_life()?;
    roster
        .changed
        .store(true, std::sync::atomic::Ordering::Release);
    roster.emit(Some(&next.post().record), EventKind::Registered);
    Some(next)
}
