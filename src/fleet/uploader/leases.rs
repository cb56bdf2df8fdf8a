//! Leases: claimed by the calling thread, renewed and released in the background.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Uploader;
use super::resolve::{ClaimCall, OccupiedPlace};
use super::session::{ClockReading, LeaseState, StoreSession};
use super::sync_state::address;
use crate::clock::Patience;
use crate::error::{Error, StoreErrorKind};
use crate::fleet::shapes::{Claim, ClaimAnswer, LeaseKey, Renewal};
use crate::fleet::store::check_count;
use crate::registry::Registry;
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
                    self.lose_all();
                    return Err(error);
                }
                let held = Arc::new(LeaseState::new(key, ttl, Arc::clone(&session), &sent));
                self.hold(&held, &session);
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
    fn hold(&self, held: &Arc<LeaseState>, session: &Arc<StoreSession>) {
        let mut sync_state = self.sync_state.lock();
        // An earlier lease that seemed to have expired: a late answer to its renewal must not bring
        // it back.
        let same = |lease: &&Arc<LeaseState>| lease.key.run_id == held.key.run_id;
        let before: Vec<_> = sync_state
            .leases_of(session)
            .filter(same)
            .cloned()
            .collect();
        sync_state.leases.push(Arc::clone(held));
        if held.is_broken() {
            // The incarnation ended meanwhile, so that its holder can't release the lease.
            sync_state.to_release.push(held.key.clone());
        }
        drop(sync_state);
        if let Some(registry) = self.registry.upgrade() {
            registry.counts().leases_claimed.add(1);
            for lease in before {
                self.lose(&registry, &lease);
            }
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
        let mut sync_state = self.wait_for_withdrawal(&place);
        let now = ClockReading::of(&self.clock);
        let held = sync_state
            .leases_of(session)
            .any(|lease| lease.key.run_id == run_id && !lease.remaining(&now).is_zero());
        if held || sync_state.calls.contains_key(&place) {
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

    pub(in crate::fleet) fn release_now(&self, held: &Arc<LeaseState>) -> Result<bool, Error> {
        let key = held.key.clone();
        // It is not renewed any more, whatever the answer.
        self.sync_state
            .lock()
            .leases
            .retain(|lease| lease.key != key);
        match self.store.release(std::slice::from_ref(&key)) {
            Ok(released) => Ok(released.first().copied().unwrap_or(false)),
            Err(error) => {
                self.release_soon(held);
                Err(error)
            }
        }
    }

    pub(in crate::fleet) fn release_soon(&self, held: &Arc<LeaseState>) {
        let mut sync_state = self.sync_state.lock();
        sync_state.leases.retain(|lease| !Arc::ptr_eq(lease, held));
        if !held.is_broken() {
            sync_state.to_release.push(held.key.clone());
        }
        drop(sync_state);
        self.worker_changed();
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

    pub(super) fn renew(&self, registry: &Registry) -> Result<(), Error> {
        let now = self.clock.now();
        let mut by_ttl = HashMap::<Duration, Vec<Arc<LeaseState>>>::new();
        let all = self.doubted.load(Ordering::Acquire);
        for lease in &self.sync_state.lock().leases {
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
                    Renewal::Renewed => lease.renewed(&sent),
                    Renewal::Lost => self.lose(registry, lease),
                    Renewal::Busy => {
                        lease.postpone(self.clock.now().after(BUSY_RETRY.min(ttl / 10)))
                    }
                }
            }
        }
        self.doubted.store(false, Ordering::Release);
        self.lose_leases(registry);
        Ok(())
    }

    /// Ends all leases: the store's numbers went back, so that it may have granted them to others.
    pub(super) fn lose_all(&self) {
        let leases = self.sync_state.lock().leases.clone();
        if let Some(registry) = self.registry.upgrade() {
            for lease in leases {
                self.lose(&registry, &lease);
            }
        }
    }

    /// Ends the leases of broken sessions.
    pub(super) fn lose_leases(&self, registry: &Registry) {
        let broken: Vec<_> = {
            let sync_state = self.sync_state.lock();
            let broken = sync_state.leases.iter().filter(|lease| lease.is_broken());
            broken.cloned().collect()
        };
        for lease in broken {
            self.lose(registry, &lease);
        }
    }

    pub(super) fn lose(&self, registry: &Registry, lease: &Arc<LeaseState>) {
        let is_other = |other: &Arc<LeaseState>| !Arc::ptr_eq(other, lease);
        self.sync_state.lock().leases.retain(is_other);
        if lease.end() {
            registry.emit(
                Some(lease.owner()),
                EventKind::LeaseLost {
                    run_id: lease.key.run_id.clone(),
                    fence: lease.key.fence,
                },
            );
        }
    }
}
