//! The drain, from the request to the report: workers, stores, cleanups, log.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::termination::Finality;
use super::watchdog::TOO_SLOW;
use super::{Cleanup, CleanupReport, CleanupState, End, Inner, Progress, Running, ShutdownReport};
use crate::clock::Patience;
use crate::registry::Registry;
use crate::supervisor::{DeadWorker, DrainedWorker, HungWorker};
use crate::sync::background;
use crate::sync::catch::catch;
use crate::sync::last_words;
use crate::sync::panics;
use crate::sync::wakers::wake;

/// The thread that waits for the workers and runs the cleanups. It is left behind if one of them
/// hangs.
const THREAD_NAME: &str = "wh-shutdown";
/// How long a clean shutdown waits for the log to take the ends of its workers.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    /// Whether the drain can start.
    pub(super) fn may_start_drain(&self, progress: &Progress) -> bool {
        !progress.draining && matches!(progress.end, End::Open) && self.is_requested()
    }

    /// Starts the drain, once, after the shutdown has begun. The caller waits for its end.
    pub(super) fn start_drain(self: &Arc<Self>) {
        let Some(begun) = self.begun.get() else {
            return;
        };
        let mut progress = self.progress.lock();
        if !self.may_start_drain(&progress) {
            return;
        }
        progress.draining = true;
        let now = begun.time.read();
        if !self.force_exit && now >= progress.limit {
            progress.limit = now.saturating_add(self.timeout);
        }
        let patience = Patience::until(&begun.time, progress.limit);
        drop(progress);
        // The watchdog has a deadline to watch now.
        self.wake_sender.wake();
        let inner = Arc::clone(self);
        let ending = patience.clone();
        if background::detach(THREAD_NAME, move || inner.finish(&ending)).is_err() {
            self.finish(&patience);
        }
    }

    fn finish(self: &Arc<Self>, patience: &Patience) {
        let mut registries = self.registries.iter();
        if !registries.all(|registry| registry.drain(patience)) {
            // The deadline has passed.
            self.check_deadline();
            return;
        }
        // No cleanups for workers that the end of the process has cut off.
        let is_ending = |registry: &Registry| registry.process_end().is_some();
        if self.registries.iter().any(is_ending) {
            return;
        }
        // The work of idle workers may have something left to write; it may also wait for ever.
        let log = self.log_patience();
        let work = patience.at_most(log);
        for registry in &self.registries {
            registry.wait_for_work(&work, log);
        }
        // Before the cleanups, which may close what a store needs, and with time left for them.
        let stores = patience.at_most(patience.left() / 2);
        for (n, registry) in self.registries.iter().enumerate() {
            let waiting = u32::try_from(self.registries.len() - n).unwrap_or(u32::MAX);
            registry.flush_store(&stores.at_most(stores.left() / waiting));
        }
        self.clean_up();
        // Waits for a slow log, not for one that blocks.
        let log = patience.at_most(LOG_PATIENCE.min(patience.left() / 2));
        for registry in &self.registries {
            registry.wait_for_log(&log);
        }
        if self.claim_report() {
            self.conclude(Vec::new());
        }
    }

    /// Runs the cleanups in reverse order, until the shutdown has ended in another way.
    fn clean_up(&self) {
        loop {
            let mut progress = self.progress.lock();
            if !matches!(progress.end, End::Open) {
                return;
            }
            let Some(Cleanup { name, work }) = progress.cleanups.pop() else {
                return;
            };
            progress.running = Some(Running {
                name: name.clone(),
                thread: thread::current().id(),
            });
            drop(progress);
            let mut report = CleanupReport::new(name, CleanupState::Completed);
            // Without the panic hook: it can't be installed while the application's own hook blocks.
            if let Err(caught) = catch(work) {
                report.state = CleanupState::Panicked;
                report.panic = Some(panics::message(caught.payload()));
            }
            let message = (!report.is_clean()).then(|| report.to_string());
            let mut progress = self.progress.lock();
            progress.running = None;
            progress.ran.push(report);
            drop(progress);
            if let Some(message) = message {
                last_words::write(&message);
            }
        }
    }

    /// Claims the end of the shutdown for a report. `false` if it has ended in another way.
    pub(super) fn claim_report(&self) -> bool {
        let mut progress = self.progress.lock();
        let open = matches!(progress.end, End::Open);
        if open {
            progress.end = End::Concluding;
        }
        open
    }

    /// Passes the report to all waiters.
    pub(super) fn conclude(&self, hung: Vec<HungWorker>) {
        let Some(report) = self.report(&self.progress.lock(), hung) else {
            return;
        };
        if report.is_late() {
            last_words::write(&format!("{}; {}", TOO_SLOW, report.faults()));
        }
        if !report.is_success() {
            let message = report.to_string();
            self.termination.write(Finality::Report, &message);
        }
        let mut progress = self.progress.lock();
        if !matches!(progress.end, End::Concluding) {
            return;
        }
        progress.end = End::Reported(report);
        if let (Some(timeout), Some(begun)) = (self.exit_timeout, self.begun.get()) {
            progress.exit_limit = Some(begun.time.read().saturating_add(timeout));
        }
        let waiting = progress.waiting.take();
        drop(progress);
        self.wake_sender.wake();
        self.changed.notify_all();
        waiting.for_each(wake);
    }

    /// The report as of now; `None` before the shutdown has begun.
    pub(super) fn report(
        &self,
        progress: &Progress,
        hung: Vec<HungWorker>,
    ) -> Option<ShutdownReport> {
        let begun = self.begun.get()?;
        let running = progress.running.iter().map(|running| &running.name);
        let running = running.map(|name| (name, CleanupState::Running));
        let left = progress.cleanups.iter().rev().map(|left| &left.name);
        let left = left.map(|name| (name, CleanupState::NotRun));
        let not_ended = running.chain(left);
        let mut cleanups = progress.ran.clone();
        cleanups.extend(not_ended.map(|(name, state)| CleanupReport::new(name.clone(), state)));
        Some(ShutdownReport {
            cause: begun.cause,
            hung,
            unreturned: self.unreturned(),
            died: self.died(progress),
            gave_up: self.gave_up(),
            drained: self.drained(progress),
            cleanups,
            took: begun.time.elapsed(),
        })
    }

    fn unreturned(&self) -> Vec<String> {
        let log = self.log_patience();
        let registries = self.registries.iter();
        registries
            .flat_map(|registry| registry.unreturned(log))
            .collect()
    }

    /// The workers that died after they were asked to stop.
    fn died(&self, progress: &Progress) -> Vec<DeadWorker> {
        let mut died = Vec::new();
        for (registry, asked) in self.registries.iter().zip(&progress.asked) {
            let workers = registry.worker_refs();
            died.extend(
                workers
                    .iter()
                    .filter_map(|worker| DeadWorker::of(worker, *asked)),
            );
        }
        died
    }

    /// How long the workers took to end.
    fn drained(&self, progress: &Progress) -> Vec<DrainedWorker> {
        let registries = self.registries.iter().zip(&progress.asked);
        let workers: Vec<_> = registries
            .flat_map(|(registry, asked)| {
                let workers = registry.worker_refs().into_iter();
                workers.map(|worker| (worker, *asked))
            })
            .collect();
        DrainedWorker::among(workers.iter().map(|(worker, asked)| (worker, *asked)))
    }

    /// The workers that their supervisor has given up.
    fn gave_up(&self) -> Vec<DeadWorker> {
        let workers = self.registries.iter().flat_map(Registry::worker_refs);
        workers
            .filter_map(|worker| DeadWorker::given_up(&worker))
            .collect()
    }

    /// The time that supervised work may take to return and to log its end.
    fn log_patience(&self) -> Duration {
        LOG_PATIENCE.min(self.timeout / 4)
    }

    /// The workers that have not ended.
    pub(super) fn hung(&self) -> Vec<HungWorker> {
        let mut hung = Vec::new();
        for registry in &self.registries {
            let view = registry.peek_observed_now();
            let unended = registry.unended();
            hung.extend(unended.iter().map(|worker| HungWorker::of(worker, &view)));
        }
        hung
    }
}
