//! Claims whose outcome is not known, because the answer of the store was lost: each is withdrawn, so
//! that the run is not taken for its whole `ttl` by a worker that does not know it.
//!
//! The next claim of the same run by the same worker waits for that. Otherwise the earlier claim could
//! arrive late, replace the later one in the store, and be withdrawn while the process believes in the
//! later one.

use std::collections::HashSet;

use parking_lot::MutexGuard;

use super::Uploader;
use super::sync_state::SyncState;
use crate::clock::Moment;
use crate::error::{Error, StoreErrorKind};
use crate::fleet::shapes::{Claim, ClaimAnswer};
use crate::fleet::store::check_count;
use crate::registry::core::store_hook::StoreHook;

/// A worker, by the address of its record, and a run: one call at a time is made about them.
pub(super) type ClaimPlace = (usize, String);

/// What the store is asked about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimCall {
    Claim,
    Withdrawal,
}

/// A claim that may have been granted, or may be granted later.
#[derive(Clone, Debug)]
pub(super) struct UnresolvedClaim {
    place: ClaimPlace,
    claim: Claim,
    /// What it was granted has expired by then, unless the request arrives even later.
    until: Moment,
}

/// The place of a claim in progress, free again when this is dropped.
pub(super) struct OccupiedPlace<'a> {
    uploader: &'a Uploader,
    place: ClaimPlace,
}

impl<'a> OccupiedPlace<'a> {
    pub(super) const fn new(uploader: &'a Uploader, place: ClaimPlace) -> Self {
        Self { uploader, place }
    }

    /// Sends the claim. Without an answer, it is withdrawn in the background.
    pub(super) fn send(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        let sent = SentClaim {
            place: self,
            claim: Some(claim),
        };
        let answer = self.uploader.store.claim(claim)?;
        sent.answered();
        Ok(answer)
    }
}

impl Drop for OccupiedPlace<'_> {
    fn drop(&mut self) {
        let mut sync_state = self.uploader.sync_state.lock();
        sync_state.calls.remove(&self.place);
        let mut unresolved = sync_state.unresolved.iter();
        let is_left = unresolved.any(|claim| claim.place == self.place);
        drop(sync_state);
        if is_left {
            // Only now: the thread leaves claims alone that are with the store.
            self.uploader.worker_changed();
        }
    }
}

/// A claim that has no answer yet. Dropped, it is unresolved: after an error and after a panic.
struct SentClaim<'a> {
    place: &'a OccupiedPlace<'a>,
    claim: Option<&'a Claim>,
}

impl SentClaim<'_> {
    fn answered(mut self) {
        self.claim = None;
    }
}

impl Drop for SentClaim<'_> {
    fn drop(&mut self) {
        let Some(claim) = self.claim else {
            return;
        };
        let uploader = self.place.uploader;
        let unresolved = UnresolvedClaim {
            place: self.place.place.clone(),
            claim: claim.clone(),
            until: uploader.clock.now().after(claim.ttl),
        };
        uploader.sync_state.lock().unresolved.push(unresolved);
    }
}

/// The places of withdrawals in progress, free again when this is dropped.
struct Withdrawals<'a> {
    uploader: &'a Uploader,
    places: HashSet<ClaimPlace>,
}

impl Drop for Withdrawals<'_> {
    fn drop(&mut self) {
        let mut sync_state = self.uploader.sync_state.lock();
        sync_state
            .calls
            .retain(|place, _| !self.places.contains(place));
        drop(sync_state);
        self.uploader.claims_changed.notify_all();
    }
}

impl Uploader {
    /// Waits while a claim of this place is being withdrawn: for one call of the store at most.
    pub(super) fn wait_for_withdrawal(&self, place: &ClaimPlace) -> MutexGuard<'_, SyncState> {
        let mut sync_state = self.sync_state.lock();
        while sync_state.calls.get(place) == Some(&ClaimCall::Withdrawal) {
            self.claims_changed.wait(&mut sync_state);
        }
        sync_state
    }

    /// Withdraws the earlier claims of this place.
    pub(super) fn withdraw_earlier(&self, place: &OccupiedPlace<'_>) -> Result<(), Error> {
        let of_place = |earlier: &&UnresolvedClaim| earlier.place == place.place;
        let unresolved: Vec<_> = {
            let sync_state = self.sync_state.lock();
            let unresolved = sync_state.unresolved.iter().filter(of_place);
            unresolved.cloned().collect()
        };
        self.withdraw(&unresolved)
    }

    /// Withdraws all unresolved claims of which no call is in progress.
    pub(super) fn resolve_claims(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut sync_state = self.sync_state.lock();
        sync_state.unresolved.retain(|claim| claim.until > now);
        let unresolved: Vec<UnresolvedClaim> = sync_state
            .unresolved
            .iter()
            .filter(|claim| !sync_state.calls.contains_key(&claim.place))
            .cloned()
            .collect();
        let places = unresolved.iter().map(|claim| claim.place.clone());
        let withdrawals = Withdrawals {
            uploader: self,
            places: places.collect(),
        };
        for place in &withdrawals.places {
            sync_state
                .calls
                .insert(place.clone(), ClaimCall::Withdrawal);
        }
        drop(sync_state);
        let withdrawn = self.withdraw(&unresolved);
        drop(withdrawals);
        match withdrawn {
            // Another client locks the record of one; the next round repeats it.
            Err(Error::Store {
                kind: StoreErrorKind::Busy,
                ..
            }) => Ok(()),
            withdrawn => withdrawn,
        }
    }

    fn withdraw(&self, unresolved: &[UnresolvedClaim]) -> Result<(), Error> {
        if unresolved.is_empty() {
            return Ok(());
        }
        let claims: Vec<Claim> = unresolved.iter().map(|one| one.claim.clone()).collect();
        check_count("withdraw", claims.len(), self.store.withdraw(&claims))?;
        let is_withdrawn = |one: &UnresolvedClaim| {
            let same = |other: &UnresolvedClaim| {
                (&other.place, other.claim.attempt) == (&one.place, one.claim.attempt)
            };
            unresolved.iter().any(same)
        };
        self.sync_state
            .lock()
            .unresolved
            .retain(|one| !is_withdrawn(one));
        Ok(())
    }
}
