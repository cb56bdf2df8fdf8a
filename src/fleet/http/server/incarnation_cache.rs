//! The current incarnations of workers that identify themselves by their id alone.
//!
//! Only a cache: the store decides. An entry that is out of date is read from the store again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::fleet::{StoredWorker, WorkerKey};
use crate::worker::MOST_METADATA;

/// See the module.
#[derive(Debug)]
pub(super) struct IncarnationCache {
    by_id: HashMap<String, Entry>,
    most: usize,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Entry {
    incarnation: u64,
    beats: u64,
    /// Hashes of the names of its metadata.
    names: Vec<u64>,
    /// The run that it claimed last, and the end of that lease unless it is renewed.
    leased: Option<(String, Instant)>,
}

impl IncarnationCache {
    pub(super) fn new(most: usize) -> Self {
        Self {
            by_id: HashMap::new(),
            most: most.max(1),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn incarnation(&self, id: &str) -> Option<u64> {
        self.by_id.get(id).map(|entry| entry.incarnation)
    }

    pub(super) fn learn(&mut self, key: &WorkerKey, beats: u64, metadata: &[(String, String)]) {
        if self.by_id.len() >= self.most && !self.by_id.contains_key(&key.id) {
            // Workers that send another request are read from the store again.
            self.by_id.clear();
        }
        let names = metadata.iter().map(|(name, _)| self.hasher.hash_one(name));
        let entry = Entry {
            incarnation: key.incarnation,
            beats,
            names: names.collect(),
            leased: None,
        };
        self.by_id.insert(key.id.clone(), entry);
    }

    pub(super) fn refresh(&mut self, worker: &StoredWorker) {
        let leased = self.by_id.get_mut(&worker.key.id).and_then(|entry| {
            let same = entry.incarnation == worker.key.incarnation;
            entry.leased.take().filter(|_| same)
        });
        self.learn(&worker.key, worker.status.beats, &worker.info.metadata);
        if let Some(entry) = self.by_id.get_mut(&worker.key.id) {
            entry.leased = leased;
        }
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.by_id.remove(id);
    }

    fn entry(&mut self, key: &WorkerKey) -> Option<&mut Entry> {
        let entry = self.by_id.get_mut(&key.id)?;
        (entry.incarnation == key.incarnation).then_some(entry)
    }

    /// Counts a step of progress, and returns the count.
    pub(super) fn count(&mut self, key: &WorkerKey) -> u64 {
        self.entry(key).map_or(1, |entry| {
            entry.beats = entry.beats.saturating_add(1);
            entry.beats
        })
    }

    pub(super) fn beats(&mut self, key: &WorkerKey) -> u64 {
        self.entry(key).map_or(0, |entry| entry.beats)
    }

    /// Whether its metadata has an entry of this name.
    pub(super) fn has(&mut self, key: &WorkerKey, name: &str) -> bool {
        let name = self.hasher.hash_one(name);
        self.entry(key)
            .is_some_and(|entry| entry.names.contains(&name))
    }

    /// Adds metadata. `false` if the worker would have too many entries: heartbeats never remove
    /// any.
    pub(super) fn add(&mut self, key: &WorkerKey, metadata: &[(String, String)]) -> bool {
        let hashes: Vec<u64> = metadata
            .iter()
            .map(|(name, _)| self.hasher.hash_one(name))
            .collect();
        let Some(entry) = self.entry(key) else {
            // The store will refuse it, or it is not cached yet.
            return hashes.len() <= MOST_METADATA;
        };
        let new: Vec<u64> = hashes
            .into_iter()
            .filter(|name| !entry.names.contains(name))
            .collect();
        if !new.is_empty() && entry.names.len() + new.len() > MOST_METADATA {
            return false;
        }
        entry.names.extend(new);
        true
    }

    pub(super) fn leased(&mut self, key: &WorkerKey, run_id: &str, ttl: Duration) {
        if let Some(entry) = self.entry(key) {
            entry.leased = Instant::now()
                .checked_add(ttl)
                .map(|until| (run_id.to_owned(), until));
        }
    }

    pub(super) fn released(&mut self, key: &WorkerKey, run_id: &str) {
        if let Some(entry) = self.entry(key) {
            entry.leased.take_if(|(run, _)| run == run_id);
        }
    }

    /// The run that it claimed, if its lease may still last.
    pub(super) fn run_of(&mut self, key: &WorkerKey) -> Option<String> {
        let (run_id, until) = self.entry(key)?.leased.as_ref()?;
        (*until > Instant::now()).then(|| run_id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_bounded_however_many_heartbeats_bring_it() {
        let key = WorkerKey::new("a", 1);
        let mut known = IncarnationCache::new(10);
        known.learn(&key, 0, &[]);
        let pair = |n: usize| [(n.to_string(), String::new())];
        for n in 0..MOST_METADATA {
            assert!(known.add(&key, &pair(n)));
        }
        assert!(!known.add(&key, &pair(MOST_METADATA)));
        assert!(known.add(&key, &pair(0)), "an entry may change");
        for n in 0..100 {
            known.learn(&WorkerKey::new(n.to_string(), 1), 0, &[]);
            assert!(known.by_id.len() <= 10);
        }
    }
}
