//! Who is there, who is new, who is over, and how they are: told to the store in batches.

use std::sync::Arc;

use super::Uplink;
use super::book::{Known, Told, address};
use crate::error::Error;
use crate::fleet::bond::{Bond, Held, Now};
use crate::fleet::config::OnOffline;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::store::{Answer, Beat, Registration, Stop};
use crate::registry::Registry;
use crate::roster::post::Post;

/// So many workers go into one call.
const BATCH: usize = 5_000;

impl Uplink {
    /// Takes note of who is there.
    pub(super) fn notice(&self, registry: &Registry) {
        let posts = registry.posts();
        let mut book = self.book.lock();
        let book = &mut *book;
        // Those that the store was told of to the end, and those that left without a trace.
        book.known.retain(|_, known| !known.ended);
        for post in posts {
            let record = &post.record;
            let number = address(record);
            match book.known.get_mut(&number) {
                Some(known) => {
                    if known.incarnation != record.incarnation() {
                        // Another life, which is registered as such. The one before is over, so
                        // nobody believes in its leases any more.
                        if let Some(bond) = &known.bond {
                            let own = book.leases.iter().filter(|held| held.hangs_on(bond));
                            book.to_release.extend(own.map(|held| held.key.clone()));
                        }
                        known.forget();
                        known.incarnation = record.incarnation();
                    }
                }
                None if record.is_told() => {}
                None => {
                    let incarnation = record.incarnation();
                    book.known.insert(
                        number,
                        Known {
                            post,
                            incarnation,
                            bond: None,
                            told: None,
                            ended: false,
                        },
                    );
                }
            }
        }
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), Error> {
        loop {
            let batch: Vec<(usize, Post, u32)> = self
                .book
                .lock()
                .known
                .iter()
                .filter(|(_, known)| known.bond.is_none() && !known.ended)
                .map(|(number, known)| (*number, known.post.clone(), known.incarnation))
                .take(BATCH)
                .collect();
            if batch.is_empty() {
                return Ok(());
            }
            let process = ProcessIdentity::current();
            let wishes: Vec<_> = batch
                .iter()
                .map(|(_, post, _)| wish(registry, post, &process))
                .collect();
            let sent = Now::of(&self.clock);
            let keys = answered("register", wishes.len(), self.store.register(&wishes)?)?;
            let mut book = self.book.lock();
            for ((number, post, incarnation), key) in batch.into_iter().zip(keys) {
                post.record.adopt(&key.id);
                let stale_after = post.record.profile.thresholds.stale_after;
                if let Some(known) = book.known.get_mut(&number)
                    && known.incarnation == incarnation
                {
                    let bond = Bond::new(key, stale_after, post.clone(), incarnation, &sent);
                    known.bond = Some(Arc::new(bond));
                    known.told = None;
                }
            }
        }
    }

    /// Tells who is over.
    pub(super) fn stop(&self, registry: &Registry) -> Result<(), Error> {
        let now = registry.view().clock;
        let over: Vec<(usize, Stop)> = self
            .book
            .lock()
            .known
            .iter()
            .filter(|(_, known)| !known.ended)
            .filter_map(|(number, known)| {
                let ended = known.post.record.ended()?;
                let key = known.bond.as_ref()?.key.clone();
                let stop = Stop {
                    key,
                    ending: ended.ending,
                    ago: now.since(ended.at),
                };
                Some((*number, stop))
            })
            .collect();
        for batch in over.chunks(BATCH) {
            let stops: Vec<Stop> = batch.iter().map(|(_, stop)| stop.clone()).collect();
            let answers = answered("stop", stops.len(), self.store.stop(&stops)?)?;
            let mut book = self.book.lock();
            for ((number, stop), answer) in batch.iter().zip(answers) {
                let Some(known) = book.known.get_mut(number) else {
                    continue;
                };
                if known.bond.as_ref().is_none_or(|bond| bond.key != stop.key) {
                    continue;
                }
                if answer == Answer::Unknown {
                    // Registered again, and then told.
                    known.forget();
                } else {
                    let bond = known.bond.clone();
                    known.finish();
                    // Released with the worker's end.
                    let own = |held: &Held| bond.as_ref().is_some_and(|bond| held.hangs_on(bond));
                    book.leases.retain(|held| !(own(held) && held.end()));
                }
            }
        }
        Ok(())
    }

    /// Sends heartbeats of those for whom it is time. Returns whether the store knew all of them.
    pub(super) fn beat(&self, registry: &Registry) -> Result<bool, Error> {
        let now = self.clock.now();
        let view = registry.view();
        let due: Vec<(usize, Post, Arc<Bond>, Told)> = {
            let book = self.book.lock();
            let living = book.known.iter().filter(|(_, known)| !known.ended);
            living
                .filter_map(|(number, known)| {
                    let bond = known.bond.clone()?;
                    let state = known.post.health(&view).state();
                    let task = known.post.living_glance()?.work.task;
                    let told = Told {
                        state,
                        task,
                        at: now,
                    };
                    known
                        .is_due(&told)
                        .then(|| (*number, known.post.clone(), bond, told))
                })
                .collect()
        };
        let mut all_known = true;
        for batch in due.chunks(BATCH) {
            let sent = Now::of(&self.clock);
            let beats: Vec<Beat> = batch
                .iter()
                .map(|(_, post, bond, _)| self.report(registry, post, bond))
                .collect();
            let answers = answered("beat", beats.len(), self.store.beat(&beats)?)?;
            for (((number, post, bond, told), beat), answer) in
                batch.iter().zip(&beats).zip(answers)
            {
                match answer {
                    Answer::Accepted => bond.told(&sent, beat.heartbeat_age),
                    Answer::Superseded => {
                        bond.break_off();
                        registry.roster().fence(post);
                    }
                    Answer::Ended if self.config.on_offline == OnOffline::Fence => {
                        bond.break_off();
                        registry.roster().fence(post);
                    }
                    Answer::Ended | Answer::Unknown => all_known = false,
                }
                let mut book = self.book.lock();
                let Some(known) = book.known.get_mut(number) else {
                    continue;
                };
                if !known
                    .bond
                    .as_ref()
                    .is_some_and(|own| Arc::ptr_eq(own, bond))
                {
                    continue;
                }
                match answer {
                    Answer::Accepted => known.told = Some(*told),
                    // Fenced, unless its life ended by itself: then its end is told, and refused.
                    _ if post.record.is_over() => known.finish(),
                    _ => known.forget(),
                }
            }
        }
        self.lose_leases(registry);
        Ok(all_known)
    }

    pub(super) fn report(&self, registry: &Registry, post: &Post, bond: &Arc<Bond>) -> Beat {
        let snapshot = registry.snapshot_as_it_is(post);
        let leased = || {
            let book = self.book.lock();
            let own = book.leases.iter().find(|lease| lease.hangs_on(bond));
            own.map(|lease| lease.key.run_id.clone())
        };
        Beat {
            key: bond.key.clone(),
            state: snapshot.health.state(),
            reason: snapshot.health.reason(),
            heartbeat_age: snapshot.heartbeat_age,
            progress_age: snapshot.progress_age,
            run_id: snapshot.run_id.or_else(leased),
            task: snapshot.task,
            progress: snapshot.progress,
            beats: snapshot.beats,
            metadata: Vec::new(),
        }
    }
}

fn wish(registry: &Registry, post: &Post, process: &ProcessIdentity) -> Registration {
    let snapshot = registry.snapshot_as_it_is(post);
    let record = &post.record;
    let explicit = !record.is_generated();
    Registration {
        id: if explicit || record.is_adopted() {
            record.id().to_owned()
        } else {
            // `{type}-{pid}-{n}` is unique in this process only.
            let n = record.id.rsplit_once('-').map_or("1", |(_, n)| n);
            format!(
                "{}-{}-{}-{n}",
                snapshot.worker_type, process.hostname, process.pid
            )
        },
        explicit,
        worker_type: snapshot.worker_type,
        group: snapshot.group,
        interval: snapshot.interval,
        thresholds: Some(snapshot.thresholds),
        metadata: snapshot.metadata,
        restarts: snapshot.restarts,
        process: Some(process.clone()),
    }
}

/// A store that answers too little, or too much, is not to be trusted with any of it.
pub(super) fn answered<T>(
    operation: &'static str,
    asked: usize,
    answers: Vec<T>,
) -> Result<Vec<T>, Error> {
    if answers.len() == asked {
        return Ok(answers);
    }
    Err(Error::store(
        operation,
        format_args!("{} answers to {asked} questions", answers.len()),
    ))
}
