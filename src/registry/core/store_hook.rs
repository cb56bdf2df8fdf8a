//! The registry's connection to what reports its workers to a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::record::Record;
use crate::clock::{Moment, Patience};
use crate::health::StoreStatus;

/// What reports the workers to a store, and has to know at once what happens to them.
pub(crate) trait StoreHook: Send + Sync + std::fmt::Debug {
    /// A worker began, ended or changed its state.
    fn worker_changed(&self);
    /// A worker has ended: its leases are lost. Not under a lock of the worker, because this wakes tasks.
    fn worker_ended(&self, record: &Arc<Record>);
    /// Ends the leases that have expired. Returns when the next one will.
    fn lose_expired_leases(&self) -> Moment;
    /// A worker began another task.
    fn task_changed(&self);
    /// The last worker is gone, or the process is about to end: waits until all is reported, within
    /// the patience.
    fn farewell(&self, patience: &Patience);
    /// The longest time that a farewell may take.
    fn patience(&self) -> Duration;
    /// The registry is gone.
    fn close(&self);
    fn status(&self) -> StoreStatus;
    /// The number of leases held now.
    fn leases_held(&self) -> usize;
    fn as_any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync>;
}

/// The store hook of a registry, if it has one.
#[derive(Debug, Default)]
pub(crate) struct StoreHookSlot {
    hook: RwLock<Option<Arc<dyn StoreHook>>>,
    /// Whether there is one, so that updates of registries without a store take no lock.
    hooked: AtomicBool,
}

impl StoreHookSlot {
    #[inline]
    pub(crate) fn get(&self) -> Option<Arc<dyn StoreHook>> {
        if self.hooked.load(Ordering::Acquire) {
            self.hook.read().clone()
        } else {
            None
        }
    }

    /// Sets the hook, unless there is one already. Returns whether it did.
    pub(crate) fn set(&self, hook: Arc<dyn StoreHook>) -> bool {
        let mut slot = self.hook.write();
        if slot.is_some() {
            return false;
        }
        *slot = Some(hook);
        self.hooked.store(true, Ordering::Release);
        true
    }

    /// Removes this hook; another one stays.
    pub(crate) fn remove(&self, hook: *const ()) {
        let mut slot = self.hook.write();
        let is_this = |other: &Arc<dyn StoreHook>| std::ptr::addr_eq(Arc::as_ptr(other), hook);
        if slot.as_ref().is_some_and(is_this) {
            self.hooked.store(false, Ordering::Release);
            *slot = None;
        }
    }
}
