//! The thread: when to tell the store, and how long to wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Uploader;
use super::sync_state::Known;
use crate::clock::{Moment, Sleeper};
use crate::error::Error;
use crate::fleet::jitter::Jitter;
use crate::registry::Registry;
use crate::registry::core::events::EventKind;
use crate::sync::catch::catch;
use crate::sync::describe::written;

/// New tasks are told at once, but no oftener than this.
const TASK_SPACING: Duration = Duration::from_millis(100);
/// However short an interval is, and however slow the store.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// Calls to a store that fails: first after this, then after twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(10);

impl Uploader {
    pub(super) fn run(&self, sleeper: &Sleeper) {
        let mut jitter = Jitter::new();
        let mut next = self.clock.now();
        let mut last = Moment::ZERO;
        let mut keep_alive_at = self.keep_alive_after(self.clock.now());
        loop {
            sleeper.sleep_until(next.min(keep_alive_at));
            if self.closing.load(Ordering::Acquire) {
                break;
            }
            let now = self.clock.now();
            let failing = self.progress.lock().status.failures_in_a_row > 0;
            if now >= keep_alive_at {
                keep_alive_at = self.keep_alive_after(now);
                // A store that fails is called again anyhow, and tells that it is there.
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
            self.progress.lock().begun += 1;
            let carried = catch(|| self.carry(&registry))
                .unwrap_or_else(|_| Err(Error::store("be called", "it panicked")));
            last = now;
            let pause = self.conclude(&registry, carried, &mut jitter);
            next = self.clock.now().after(pause.max(SHORTEST_PAUSE));
        }
        self.progressed.notify_all();
    }

    fn keep_alive_after(&self, now: Moment) -> Moment {
        self.store
            .keep_alive_interval()
            .map_or(Moment::NEVER, |interval| {
                now.after(interval.max(SHORTEST_PAUSE))
            })
    }

    /// Returns whether heartbeats have to be sent again.
    fn keep_alive(&self) -> bool {
        let renewed = match catch(|| self.store.keep_alive()) {
            Ok(Ok(renewed)) => renewed,
            // The heartbeats that follow find out what is wrong.
            Ok(Err(_)) | Err(_) => true,
        };
        if renewed {
            for known in self.sync_state.lock().known.values_mut() {
                known.told = None;
            }
        }
        renewed
    }

    /// Takes note of how it went, tells, and returns how long to wait.
    fn conclude(
        &self,
        registry: &Registry,
        carried: Result<Duration, Error>,
        jitter: &mut Jitter,
    ) -> Duration {
        let mut progress = self.progress.lock();
        let status = &mut progress.status;
        let (pause, news) = match carried {
            Ok(interval) => {
                let failures = std::mem::take(&mut status.failures_in_a_row);
                progress.done = progress.begun;
                progress.succeeded_at = Some(self.clock.now());
                let news = (failures > 0).then_some(EventKind::StoreRestored { failures });
                (jitter.shorten(interval), news)
            }
            Err(error) => {
                let error = written(format_args!("{error}"));
                registry.counts().store_failures.add(1);
                status.failures += 1;
                status.failures_in_a_row += 1;
                status.last_error = Some(error.clone());
                let doublings = (status.failures_in_a_row - 1).min(16) as u32;
                let pause = (FIRST_RETRY * 2_u32.pow(doublings)).min(LONGEST_RETRY);
                // Who is looked for between heartbeats has to come back before it is given up.
                let limit = self.shortest_interval() / 4;
                let limit = limit.min(self.store.keep_alive_interval().unwrap_or(limit));
                let pause = pause.min(limit.max(FIRST_RETRY));
                let news =
                    (status.failures_in_a_row == 1).then_some(EventKind::StoreFailing { error });
                (jitter.shorten(pause), news)
            }
        };
        drop(progress);
        self.progressed.notify_all();
        if let Some(news) = news {
            registry.emit(None, news);
        }
        pause
    }

    fn shortest_interval(&self) -> Duration {
        let sync_state = self.sync_state.lock();
        let living = sync_state.known.values().filter(|known| !known.ended);
        living
            .map(|known| known.worker.record.profile.interval)
            .min()
            .unwrap_or(crate::worker::DEFAULT_INTERVAL)
    }

    /// Tells the store all that it does not know yet. Returns how long to wait.
    fn carry(&self, registry: &Registry) -> Result<Duration, Error> {
        self.notice(registry);
        let mut known = false;
        // What the store has forgotten, or marked offline, is registered in the second round.
        for _ in 0..3 {
            self.register(registry)?;
            self.stop(registry)?;
            known = self.beat(registry)?;
            if known {
                break;
            }
        }
        if !known {
            return Err(Error::store(
                "beat",
                "it does not know workers that it has just registered",
            ));
        }
        self.release()?;
        self.renew(registry)?;
        let sync_state = self.sync_state.lock();
        let living = || sync_state.known.values().filter(|known| !known.ended);
        let registered = living().filter(|known| known.session.is_some()).count();
        let refused = living().filter(|known| known.is_refused()).count();
        let renewals = sync_state.leases.iter().map(|lease| lease.renewal_due());
        let next = living().filter_map(Known::next_at).chain(renewals).min();
        drop(sync_state);
        let mut progress = self.progress.lock();
        progress.status.registered = registered;
        progress.status.refused = refused;
        drop(progress);
        let now = self.clock.now();
        Ok(next.map_or(crate::worker::DEFAULT_INTERVAL, |due| due.since(now)))
    }
}
