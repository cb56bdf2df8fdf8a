//! The thread: when to call the store, and how long to wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Uploader;
use super::sync_state::SyncedWorker;
use crate::clock::{Moment, Sleeper};
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::core::events::EventKind;
use crate::sync::catch::catch;
use crate::sync::describe::chain;
use crate::sync::log::log_line;
use crate::sync::printable::Printable;
use crate::sync::random::Jitter;

/// The shortest time between two rounds for new tasks.
const TASK_SPACING: Duration = Duration::from_millis(100);
/// The shortest pause between two rounds, even with a shorter interval or a slow store.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// The pause after the first failure of a store; it doubles with each failure in a row.
const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// The pause before the next attempt, after this number of earlier failures.
pub(super) fn retry_pause(times: u32) -> Duration {
    (FIRST_RETRY * 2_u32.pow(times.min(16))).min(LONGEST_RETRY)
}

impl Uploader {
    pub(super) fn run(&self, sleeper: &Sleeper) {
        let mut jitter = Jitter::new();
        let mut next = self.clock.now();
        let mut last = Moment::ZERO;
        let mut keep_alive_at = self.keep_alive_after(self.clock.now());
        loop {
            // The pacemaker does so too. It may be held up by the log, as this thread by the store.
            let next_loss = self.lose_expired();
            sleeper.sleep_until(next.min(keep_alive_at).min(next_loss));
            if self.closing.load(Ordering::Acquire) {
                break;
            }
            let now = self.clock.now();
            let failing = self.rounds.lock().status.failures_in_a_row > 0;
            if now >= keep_alive_at {
                keep_alive_at = self.keep_alive_after(now);
                // A failing store is called again anyway.
                if !failing && self.keep_alive() {
                    next = now;
                }
            }
            if !failing {
                if self.urgent.load(Ordering::Acquire) {
                    next = now;
                } else if self.task.load(Ordering::Acquire) {
                    next = next.min(last.after(TASK_SPACING));
                }
            }
            if now < next {
                continue;
            }
            let Some(registry) = self.registry.upgrade() else {
                break;
            };
            self.urgent.store(false, Ordering::Release);
            self.task.store(false, Ordering::Release);
            self.rounds.lock().begun += 1;
            let done = catch(|| self.synchronize(&registry))
                .unwrap_or_else(|_| Err(Error::store("be called", "it panicked")));
            self.lose_unheld();
            last = now;
            let pause = self.conclude(&registry, done, &mut jitter);
            next = self.clock.now().after(pause.max(SHORTEST_PAUSE));
        }
        self.round_done.notify_all();
    }

    fn keep_alive_after(&self, now: Moment) -> Moment {
        self.store
            .keep_alive_interval()
            .map_or(Moment::NEVER, |interval| {
                now.after(interval.max(SHORTEST_PAUSE))
            })
    }

    /// Returns whether heartbeats must be sent again.
    fn keep_alive(&self) -> bool {
        let renewed = match catch(|| self.store.keep_alive()) {
            Ok(Ok(renewed)) => renewed,
            // The next heartbeats report the failure.
            Ok(Err(_)) | Err(_) => true,
        };
        if renewed {
            self.doubted.store(true, Ordering::Release);
            for synced in self.sync_state.lock().workers.values_mut() {
                synced.sent = None;
            }
        }
        renewed
    }

    /// Notes the result of a round, with an event where it changes, and returns how long to wait.
    fn conclude(
        &self,
        registry: &Registry,
        done: Result<Duration, Error>,
        jitter: &mut Jitter,
    ) -> Duration {
        let mut rounds = self.rounds.lock();
        let status = &mut rounds.status;
        let (pause, event) = match done {
            Ok(interval) => {
                let failures = std::mem::take(&mut status.failures_in_a_row);
                rounds.done = rounds.begun;
                rounds.succeeded_at = Some(self.clock.now());
                let event = (failures > 0).then_some(EventKind::StoreRestored { failures });
                (jitter.shorten(interval), event)
            }
            Err(error) => {
                self.doubted.store(true, Ordering::Release);
                let error = chain(&error);
                registry.counts().store_failures.add(1);
                status.failures += 1;
                status.failures_in_a_row += 1;
                status.last_error = Some(error.clone());
                let times = u32::try_from(status.failures_in_a_row - 1).unwrap_or(u32::MAX);
                let pause = retry_pause(times);
                // A session that is kept alive must come back before its grace is over.
                let limit = self.shortest_interval() / 4;
                let limit = limit.min(self.store.keep_alive_interval().unwrap_or(limit));
                let pause = pause.min(limit.max(FIRST_RETRY));
                let event =
                    (status.failures_in_a_row == 1).then_some(EventKind::StoreFailing { error });
                (jitter.shorten(pause), event)
            }
        };
        drop(rounds);
        self.round_done.notify_all();
        if let Some(event) = event {
            registry.emit(None, event);
        }
        pause
    }

    fn shortest_interval(&self) -> Duration {
        let sync_state = self.sync_state.lock();
        let intervals = sync_state
            .unfinished()
            .map(|synced| synced.worker.record.profile.interval);
        intervals.min().unwrap_or(crate::worker::DEFAULT_INTERVAL)
    }

    /// Sends the store everything that it lacks. Returns how long to wait.
    fn synchronize(&self, registry: &Registry) -> Result<Duration, Error> {
        self.track(registry);
        let mut all_known = false;
        // Workers that the store has lost, or marked offline, are registered by the second pass.
        for _ in 0..3 {
            self.register(registry)?;
            self.stop(registry)?;
            all_known = self.beat(registry)?;
            if all_known {
                break;
            }
        }
        if !all_known {
            return Err(Error::store(
                "beat",
                "it does not know workers that it has just registered",
            ));
        }
        self.release()?;
        self.renew()?;
        // The last one: an unknown outcome may be the fault of one claim.
        self.resolve_claims()?;
        let sync_state = self.sync_state.lock();
        let unfinished = || sync_state.unfinished();
        let registered = unfinished().filter(|synced| synced.session.is_some());
        let registered = registered.count();
        let refused = unfinished().filter(|synced| synced.is_refused()).count();
        let busy = unfinished().filter(|synced| synced.is_busy()).count();
        // The first attempt may have met a transaction that is over in a moment.
        let locked = unfinished().find(|synced| synced.busy.is_some_and(|busy| busy.times > 1));
        let locked = locked.map(|synced| synced.worker.record.id().to_owned());
        let renewals = sync_state.leases.iter().map(|lease| lease.renewal_due());
        let releases = (!sync_state.to_release.is_empty()).then_some(sync_state.release_at);
        let next = unfinished().filter_map(SyncedWorker::next_at);
        let next = next.chain(renewals).chain(releases).min();
        drop(sync_state);
        let mut rounds = self.rounds.lock();
        rounds.status.registered = registered;
        rounds.status.refused = refused;
        rounds.status.busy = busy;
        let is_new = match &locked {
            Some(_) => !std::mem::replace(&mut rounds.told_busy, true),
            None => busy == 0 && std::mem::take(&mut rounds.told_busy),
        };
        drop(rounds);
        if is_new {
            tell_busy(locked.as_deref(), busy);
        }
        let now = self.clock.now();
        Ok(next.map_or(crate::worker::DEFAULT_INTERVAL, |due| due.since(now)))
    }
}

/// Once when records are locked, and once when none is any more.
fn tell_busy(locked: Option<&str>, count: usize) {
    match locked {
        Some(id) => log_line(
            log::Level::Warn,
            format_args!(
                "store: another client locks the record of worker {} ({count} in total); it is sent \
                 again until that ends",
                Printable(id)
            ),
        ),
        None => log_line(
            log::Level::Info,
            format_args!("store: no record of a worker is locked any more"),
        ),
    }
}
