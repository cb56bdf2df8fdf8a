//! Finds workers by their ids. In shards, so that a growing table blocks only a part of the
//! workers.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::registry::core::record::Record;

const SHARDS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

/// The workers whose ids fall into one shard.
pub(super) type Shard = HashSet<ById, RandomState>;

/// A worker that is identified by its id.
#[derive(Debug)]
pub(super) struct ById(pub Arc<Record>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As `str` does: lookups are by `str`.
        self.0.id.hash(state);
    }
}

impl Default for Index {
    fn default() -> Self {
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(HashSet::with_hasher(hasher.clone())))
                .collect(),
            hasher,
        }
    }
}

impl Index {
    /// The locked shard of this id: no other thread can register the id meanwhile.
    pub(super) fn lock(&self, id: &str) -> MutexGuard<'_, Shard> {
        // Bits that the hash tables do not use.
        let shard = (self.hasher.hash_one(id) >> 32) as usize % SHARDS;
        self.shards[shard].lock()
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Record>> {
        self.lock(id).get(id).map(|found| Arc::clone(&found.0))
    }

    /// Removes this worker; another one with the same id stays.
    pub(super) fn remove(&self, record: &Arc<Record>) {
        let mut shard = self.lock(&record.id);
        if shard
            .get(&*record.id)
            .is_some_and(|found| Arc::ptr_eq(&found.0, record))
        {
            shard.remove(&*record.id);
        }
    }
}
