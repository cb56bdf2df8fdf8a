//! Leases: claimed by the calling thread, renewed and released in the background.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Uploader;
use super::resolve::{ClaimCall, OccupiedPlace};
use super::session::{ClockReading, Deadline, LeaseState, StoreSession};
use super::sync_state::address;
use crate::clock::{Moment, Patience};
use crate::error::{Error, StoreErrorKind};
use crate::fleet::shapes::{Claim, ClaimAnswer, LeaseKey, Renewal};
use crate::fleet::store::check_count;
use crate::health::LeaseLoss;
use crate::registry::core::events::EventKind;
use crate::registry::core::store_hook::StoreHook;
use crate::registry::core::worker_ref::WorkerRef;
use crate::sync::random::random;
use crate::sync::thread_pool::ThreadPool;

/// How long a claim waits for its worker to be registered.
const REGISTRATION_PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause before a lease is renewed, or released, again whose record is locked.
const BUSY_RETRY: Duration = Duration::from_secs(1);

impl Uploader {
    pub(in crate::fleet) const fn claims(&self) -> &ThreadPool {
        &self.claims
    }

    pub(in crate::fleet) fn claim(
        &self,
        worker: &WorkerRef,
        run_id: &str,
        ttl: Duration,
    ) -> Result<Option<Arc<LeaseState>>, Error> {
        if !worker.is_current() {
            // An earlier incarnation can't claim for the current one.
            return Err(Error::Refused {
                id: worker.record.id().to_owned(),
            });
        }
        let session = self.session_of(worker)?;
        // One claim at a time: of two that the store grants one after the other, only the second is
        // valid there, and the process would believe in the first until it expires.
        let Some(place) = self.begin_claim(worker, &session, run_id) else {
            return Ok(None);
        };
        // For the same reason, no later claim is made before an earlier one is given up.
        self.withdraw_earlier(&place)?;
        let claim = Claim::new(session.key.clone(), run_id, ttl).attempt(random());
        let sent = ClockReading::of(&self.clock);
        let numbers = self.numbers.before_request();
        match place.send(&claim)? {
            ClaimAnswer::Granted(fence) => {
                let key = LeaseKey::new(claim.worker, claim.run_id, fence);
                if let Err(error) = self.numbers.check_fence(numbers, fence) {
                    self.sync_state.lock().to_release.push(key);
                    self.lose_all(&LeaseLoss::NumbersWentBack);
                    return Err(error);
                }
                let held = Arc::new(LeaseState::new(key, ttl, Arc::clone(&session), &sent));
                self.hold(&held);
                // The thread must know when to renew it.
                self.worker_changed();
                Ok(Some(held))
            }
            ClaimAnswer::Taken => Ok(None),
            ClaimAnswer::Refused(_) => {
                // The next heartbeat is refused too, and handles that.
                self.resend(worker);
                Err(Error::Refused {
                    id: worker.record.id().to_owned(),
                })
            }
        }
    }

    /// Keeps a granted claim.
    fn hold(&self, held: &Arc<LeaseState>) {
        let now = ClockReading::of(&self.clock);
        let mut sync_state = self.sync_state.lock();
        sync_state.leases.add(held);
        let until = held.belief(&now);
        if let Ok(until) = until {
            let mut next = self.next_loss.lock();
            *next = Some(next.map_or(until, |next| next.or(until)));
        }
        drop(sync_state);
        let Some(registry) = self.registry.upgrade() else {
            return;
        };
        registry.counts().leases_claimed.add(1);
        if self.closing.load(Ordering::Acquire) {
            self.lose(held, LeaseLoss::Detached);
        }
        match until {
            // Before the next regular tick of the pacemaker.
            Ok(until) if until.remaining(&now) < registry.resolution() => registry.ring(),
            Ok(_) => {}
            // Its incarnation ended meanwhile, or the answer came very late.
            Err(loss) => self.lose(held, loss),
        }
    }

    /// `None` if the worker holds the run, or is claiming it.
    fn begin_claim(
        &self,
        worker: &WorkerRef,
        session: &Arc<StoreSession>,
        run_id: &str,
    ) -> Option<OccupiedPlace<'_>> {
        let place = (address(&worker.record), run_id.to_owned());
        let mut sync_state = loop {
            let sync_state = self.wait_for_withdrawal(&place);
            let same = |lease: &&Arc<LeaseState>| lease.key.run_id == run_id && !lease.is_over();
            let lease = sync_state.leases.of_session(session).find(same).cloned();
            let Some(lease) = lease else {
                break sync_state;
            };
            drop(sync_state);
            // One that has expired is lost before the run is claimed again: a late answer to its renewal
            // must not bring it back.
            self.loss(&lease)?;
        };
        if sync_state.calls.contains_key(&place) {
            return None;
        }
        sync_state.calls.insert(place.clone(), ClaimCall::Claim);
        drop(sync_state);
        Some(OccupiedPlace::new(self, place))
    }

    /// The worker's session with the store. Waits for the registration of a worker that has just
    /// started.
    pub(super) fn session_of(&self, worker: &WorkerRef) -> Result<Arc<StoreSession>, Error> {
        let session = || {
            let mut sync_state = self.sync_state.lock();
            let synced = sync_state.get_mut(worker)?;
            let session = synced.session.clone();
            session.filter(|_| synced.is_present())
        };
        if let Some(session) = session() {
            return Ok(session);
        }
        // Whatever becomes of others. A worker whose record is locked is sent again by later rounds.
        let is_busy = || {
            let mut sync_state = self.sync_state.lock();
            sync_state
                .get_mut(worker)
                .is_some_and(|synced| synced.is_busy())
        };
        self.settle(&Patience::new(REGISTRATION_PATIENCE), || !is_busy());
        session().ok_or_else(|| {
            let status = self.status();
            Error::store(
                "claim",
                match status.last_error {
                    Some(error) => format!("the worker is not registered yet: {error}"),
                    None => "the worker is not registered yet".to_owned(),
                },
            )
        })
    }

    fn resend(&self, worker: &WorkerRef) {
        if let Some(synced) = self.sync_state.lock().get_mut(worker) {
            synced.sent = None;
        }
        self.worker_changed();
    }

    /// Releases a lease. Returns whether it was held until then.
    pub(in crate::fleet) fn release_now(&self, held: &Arc<LeaseState>) -> Result<bool, Error> {
        if self.loss(held).is_some() || !held.end(&LeaseLoss::Released) {
            return Ok(false);
        }
        // It is not renewed any more, whatever the answer.
        self.sync_state.lock().leases.remove(held);
        match self.store.release(std::slice::from_ref(&held.key)) {
            Ok(released) => Ok(released.first().copied().unwrap_or(false)),
            Err(error) => {
                self.sync_state.lock().to_release.push(held.key.clone());
                self.worker_changed();
                Err(error)
            }
        }
    }

    pub(super) fn release(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let sync_state = self.sync_state.lock();
        if sync_state.to_release.is_empty() || now < sync_state.release_at {
            return Ok(());
        }
        let keys = sync_state.to_release.clone();
        drop(sync_state);
        match self.unless_closing("release", self.store.release(&keys)) {
            // The others are released; to release them again does no harm.
            Err(Error::Store {
                kind: StoreErrorKind::Busy,
                ..
            }) => {
                self.sync_state.lock().release_at = self.clock.now().after(BUSY_RETRY);
                return Ok(());
            }
            released => released?,
        };
        self.sync_state
            .lock()
            .to_release
            .retain(|key| !keys.contains(key));
        Ok(())
    }

    pub(super) fn renew(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut by_ttl = HashMap::<Duration, Vec<Arc<LeaseState>>>::new();
        let all = self.doubted.load(Ordering::Acquire);
        for lease in self.sync_state.lock().leases.iter() {
            if all || lease.renewal_due() <= now {
                by_ttl.entry(lease.ttl).or_default().push(Arc::clone(lease));
            }
        }
        for (ttl, leases) in by_ttl {
            let keys: Vec<_> = leases.iter().map(|lease| lease.key.clone()).collect();
            let sent = ClockReading::of(&self.clock);
            let answers = self.unless_closing("renew", self.store.try_renew(&keys, ttl));
            let answers = check_count("renew", keys.len(), answers)?;
            for (lease, renewal) in leases.iter().zip(answers) {
                match renewal {
                    // If it expired while the answer was on its way, it stays lost.
                    Renewal::Renewed if self.loss(lease).is_none() => lease.renewed(&sent),
                    Renewal::Renewed => {}
                    Renewal::Lost => self.lose(lease, LeaseLoss::Revoked),
                    Renewal::Busy => {
                        lease.postpone(self.clock.now().after(BUSY_RETRY.min(ttl / 10)))
                    }
                }
            }
        }
        self.doubted.store(false, Ordering::Release);
        Ok(())
    }

    /// Why a lease is not held; `None` while it is. Who finds out first that it has been lost tells all the
    /// others.
    pub(in crate::fleet) fn loss(&self, lease: &Arc<LeaseState>) -> Option<LeaseLoss> {
        let loss = lease.belief(&ClockReading::of(&self.clock)).err()?;
        if lease.is_over() {
            return Some(loss);
        }
        self.lose(lease, loss);
        lease.belief(&ClockReading::of(&self.clock)).err()
    }

    /// Ends a lease, for this reason.
    pub(in crate::fleet) fn lose(&self, lease: &Arc<LeaseState>, mut loss: LeaseLoss) {
        loss.set_error(|| self.latest_error());
        // Before all else, because this wakes those who work on the run.
        if !lease.end(&loss) {
            return;
        }
        let mut sync_state = self.sync_state.lock();
        sync_state.leases.remove(lease);
        if loss.may_be_stored() {
            sync_state.to_release.push(lease.key.clone());
        }
        drop(sync_state);
        if loss.may_be_stored() {
            self.worker_changed();
        }
        if !loss.is_unasked() {
            return;
        }
        if let Some(registry) = self.registry.upgrade() {
            let lost = EventKind::LeaseLost {
                run_id: lease.key.run_id.clone(),
                fence: lease.key.fence,
                loss,
            };
            registry.emit_in_background(lease.owner(), lost);
        }
    }

    /// Ends all leases, for this reason.
    pub(super) fn lose_all(&self, loss: &LeaseLoss) {
        let leases: Vec<_> = self.sync_state.lock().leases.iter().cloned().collect();
        for lease in leases {
            self.lose(&lease, loss.clone());
        }
    }

    /// Ends the leases that are not held any more. Returns when the next one is lost, if nothing happens.
    pub(super) fn lose_unheld(&self) -> Moment {
        let now = ClockReading::of(&self.clock);
        let mut lost = Vec::new();
        let mut next: Option<Deadline> = None;
        let sync_state = self.sync_state.lock();
        for lease in sync_state.leases.iter() {
            match lease.belief(&now) {
                Ok(until) => next = Some(next.map_or(until, |next| next.or(until))),
                Err(loss) => lost.push((Arc::clone(lease), loss)),
            }
        }
        *self.next_loss.lock() = next;
        drop(sync_state);
        for (lease, loss) in lost {
            self.lose(&lease, loss);
        }
        next.map_or(Moment::NEVER, |next| next.moment())
    }

    /// As [`lose_unheld`](Self::lose_unheld), without a look at each lease before the next one can be lost.
    pub(super) fn lose_expired(&self) -> Moment {
        let next = *self.next_loss.lock();
        match next {
            None => Moment::NEVER,
            Some(next) if next.remaining(&ClockReading::of(&self.clock)).is_zero() => {
                self.lose_unheld()
            }
            Some(next) => next.moment(),
        }
    }

    /// Ends the leases of a worker that has ended.
    pub(super) fn lose_leases_of(&self, record: usize) {
        let leases = self.sync_state.lock().leases.of(record).to_vec();
        for lease in leases {
            self.loss(&lease);
        }
    }
}
