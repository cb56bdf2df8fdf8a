//! A shutdown that begins by itself: see [`Trigger`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::self_pipe::WakeSender;
use super::termination::Finality;
use super::{Begun, Inner, ShutdownCause};
use crate::clock::Clock;
use crate::error::Error;
use crate::health::StopCause;
use crate::registry::Registry;
use crate::registry::core::escalation::{Escalate, Escalation, Trigger};
use crate::sync::background;
use crate::sync::panics::uncaught::UncaughtPanics;
use crate::worker::{check_duration, check_name};

const SHORTEST: Duration = Duration::from_millis(1);

/// Checks the values of a trigger.
pub(super) fn check(trigger: &Trigger) -> Result<(), Error> {
    match trigger {
        Trigger::StalledFor(limit) => check_duration("StalledFor", *limit, SHORTEST),
        Trigger::StaleFor(limit) => check_duration("StaleFor", *limit, SHORTEST),
        Trigger::OverdueFor(limit) => check_duration("OverdueFor", *limit, SHORTEST),
        Trigger::NeverStartedFor(limit) => check_duration("NeverStartedFor", *limit, SHORTEST),
        Trigger::MissingFor(limit) => check_duration("MissingFor", *limit, SHORTEST),
        Trigger::Dead { worker_type } => check_name("DeadType", worker_type),
        Trigger::GaveUp | Trigger::UncaughtPanic => Ok(()),
    }
}

/// Has the registries watch for these triggers. One that applies already begins the shutdown now, or,
/// if it depends on time, in the next tick of the pacemaker.
pub(super) fn watch(inner: &Arc<Inner>, triggers: Vec<Trigger>) {
    if triggers.is_empty() {
        return;
    }
    let triggers: Arc<[Trigger]> = triggers.into();
    for registry in &inner.registries {
        registry.add_triggers(&triggers, Arc::clone(inner) as Arc<dyn Escalate>);
    }
}

/// Watches the panics of all threads. The thread that waits for signals looks for those that have
/// ended theirs.
pub(super) fn watch_panics(wake_sender: &WakeSender) -> Result<Arc<UncaughtPanics>, Error> {
    let wake_sender = wake_sender.try_clone().map_err(|error| Error::Signal {
        signal: "panics",
        error,
    })?;
    Ok(UncaughtPanics::watch(move || wake_sender.wake()))
}

impl Escalate for Inner {
    fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    fn note(&self, escalation: Escalation) {
        self.begin(ShutdownCause::Escalated(escalation));
    }

    fn act(self: Arc<Self>) {
        let Some(Begun { cause, .. }) = self.begun.get() else {
            return;
        };
        let ShutdownCause::Escalated(escalation) = *cause else {
            return;
        };
        if thread::panicking() {
            // The thread may be in the panic hook, or about to abort the process.
            self.wake_sender.wake();
            return;
        }
        if self.announced.swap(true, Ordering::AcqRel) {
            return;
        }
        // Here and now: a caller that fails a worker, or moves a mock clock, finds the shutdown begun.
        let asked = self.registries.iter().map(Registry::clock);
        let asked = asked.map(Clock::now).collect();
        for registry in &self.registries {
            registry.escalate(escalation, &StopCause::Shutdown);
        }
        self.set_requested(*cause, asked);
        self.wake_sender.wake();
        let inner = Arc::clone(&self);
        // On another thread: the file and the log may block.
        let told = background::detach("wh-announce", move || inner.tell_begin());
        if told.is_err() {
            self.log_begin();
        }
    }
}

impl Inner {
    /// Begins the shutdown if a panic has ended a thread.
    pub(super) fn check_panics(&self) {
        let report = self.panics.as_ref().and_then(|panics| panics.take());
        if let Some(report) = report.filter(|_| !self.has_begun()) {
            self.note(Escalation::of_panic(&report));
        }
    }

    /// To the file first, which a kill may leave as the last word.
    fn tell_begin(&self) {
        if let Some(Begun { cause, .. }) = self.begun.get() {
            let message = format!("shutdown begun by {cause}");
            self.termination.write(Finality::Begin, &message);
        }
        self.log_begin();
    }
}
