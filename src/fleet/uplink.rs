//! What carries a registry's heartbeats to a store: one thread, one batch a tick, the newest state.
//!
//! Nothing is queued. What the store has to be told is found by comparing what is with what it was
//! told last; if it can't be told, that is done again later, with the state of then.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::config::{FleetConfig, OnOffline};
use super::host::ProcessIdentity;
use super::jitter::Jitter;
use super::lease::{Bond, Held, Lease, Now};
use super::store::{
    Answer, Beat, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, Stop,
};
use crate::clock::{Alarm, Clock, Moment, Sleeper};
use crate::error::Error;
use crate::health::{State, StoreStatus};
use crate::panics;
use crate::registry::{Registry, WeakRegistry};
use crate::roster::Companion;
use crate::roster::events::EventKind;
use crate::roster::post::Post;
use crate::roster::record::Record;

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-uploader";
/// New tasks are told at once, but no oftener than this.
const TASK_SPACING: Duration = Duration::from_millis(100);
/// Calls to a store that fails: first after this, then after twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// So many workers go into one call.
const BATCH: usize = 5_000;
/// How long a claim waits for its worker to be registered.
const REGISTRATION_PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of an attachment waits for its thread at least.
const LEAST_FAREWELL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Uplink {
    store: Box<dyn HeartbeatStore>,
    config: FleetConfig,
    registry: WeakRegistry,
    clock: Clock,
    alarm: Alarm,
    /// Something is to be told at once.
    urgent: AtomicBool,
    /// A new task is to be told soon.
    task: AtomicBool,
    closing: AtomicBool,
    book: Mutex<Book>,
    progress: Mutex<Progress>,
    progressed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: Mutex<Option<ThreadId>>,
}

/// What the store was told.
#[derive(Debug, Default)]
struct Book {
    /// By the address of their records, which they keep alive.
    known: HashMap<usize, Known>,
    leases: Vec<Arc<Held>>,
    /// Worker and run of each claim that waits for its answer.
    claiming: HashSet<(usize, String)>,
    to_release: Vec<LeaseKey>,
}

#[derive(Debug)]
struct Known {
    post: Post,
    /// The life, as the process counts it, that was registered.
    incarnation: u32,
    bond: Option<Arc<Bond>>,
    told: Option<Told>,
    ended: bool,
}

/// What a worker's last accepted heartbeat told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    state: State,
    task: u32,
    at: Moment,
}

#[derive(Debug, Default)]
struct Progress {
    begun: u64,
    done: u64,
    status: StoreStatus,
    /// When the store was last told everything.
    succeeded_at: Option<Moment>,
    /// The thread is at its end.
    ended: bool,
}

impl Registry {
    /// Attaches this registry to a store: from now on, all its workers are registered there, those
    /// to come included, and their heartbeats are carried there by a thread of its own, in one
    /// batch for all of them at each `interval`, up to a tenth earlier. A start, a stop, a death, a
    /// change of state and a new task are told at once.
    ///
    /// A store that fails stops and slows nobody. That is counted, told once an episode, and tried
    /// again, with longer and longer breaks of at most 10 s; what was to be told then is not kept,
    /// the newest state is told.
    ///
    /// It ends with [`Attachment::detach`], or with the registry. The end of the last worker waits
    /// for the store to be told of it: see [`FleetConfig::farewell`].
    ///
    /// # Errors
    /// [`Error::AlreadyAttached`]; [`Error::Thread`] if the thread cannot be started.
    pub fn attach(
        &self,
        store: impl HeartbeatStore + 'static,
        config: FleetConfig,
    ) -> Result<Attachment, Error> {
        let sleeper = Sleeper::new(self.clock());
        let uplink = Arc::new(Uplink {
            store: Box::new(store),
            config,
            registry: self.downgrade(),
            clock: self.clock().clone(),
            alarm: sleeper.alarm(),
            urgent: AtomicBool::new(true),
            task: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            book: Mutex::default(),
            progress: Mutex::default(),
            progressed: Condvar::new(),
            thread: Mutex::new(None),
            thread_id: Mutex::new(None),
        });
        if !self.roster().accompany(Some(uplink.clone())) {
            return Err(Error::AlreadyAttached);
        }
        let carried = Arc::clone(&uplink);
        let started = thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || carried.run(&sleeper));
        match started {
            Ok(thread) => {
                *uplink.thread_id.lock() = Some(thread.thread().id());
                *uplink.thread.lock() = Some(thread);
            }
            Err(source) => {
                self.roster().accompany(None);
                return Err(Error::Thread {
                    name: THREAD_NAME.to_owned(),
                    source,
                });
            }
        }
        Ok(Attachment { uplink })
    }
}

/// A registry's attachment to a store. A cheap clone; dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Attachment {
    uplink: Arc<Uplink>,
}

impl Attachment {
    /// How the registry gets on with the store.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        self.uplink.status()
    }

    /// Waits until the store has been told everything that is so now, but no longer than `timeout`
    /// of real time, and not for a store that fails. Returns whether it has.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.uplink.flush(timeout)
    }

    /// Tells the store once more, and ends the attachment. The workers stay as they are, there and
    /// here: those that live are found stale by a sweep.
    pub fn detach(self) {
        self.uplink.flush(self.uplink.config.farewell);
        if let Some(registry) = self.uplink.registry.upgrade() {
            registry.roster().accompany(None);
        }
        self.uplink.close();
    }
}

impl Companion for Uplink {
    fn news(&self) {
        if !self.urgent.swap(true, Ordering::AcqRel) {
            self.alarm.ring();
        }
    }

    fn new_task(&self) {
        if !self.task.swap(true, Ordering::AcqRel) {
            self.alarm.ring();
        }
    }

    fn farewell(&self, patience: Duration) {
        self.flush(self.config.farewell.min(patience));
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.alarm.ring();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        if thread.thread().id() == thread::current().id() {
            return;
        }
        // A store that hangs is left behind, with the thread that waits for it.
        let deadline = Instant::now().checked_add(self.config.farewell.max(LEAST_FAREWELL));
        let mut progress = self.progress.lock();
        while !progress.ended {
            match deadline {
                Some(deadline) => {
                    if self
                        .progressed
                        .wait_until(&mut progress, deadline)
                        .timed_out()
                    {
                        return;
                    }
                }
                None => self.progressed.wait(&mut progress),
            }
        }
        drop(progress);
        // Every panic on it is contained, and it has said its last.
        drop(thread.join());
    }

    fn status(&self) -> StoreStatus {
        let progress = self.progress.lock();
        StoreStatus {
            last_success_age: progress.succeeded_at.map(|at| self.clock.now().since(at)),
            ..progress.status.clone()
        }
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Uplink {
    pub(super) fn of(registry: &Registry) -> Option<Arc<Self>> {
        registry.roster().companion()?.as_any().downcast().ok()
    }

    pub(super) const fn clock(&self) -> &Clock {
        &self.clock
    }

    fn flush(&self, timeout: Duration) -> bool {
        if *self.thread_id.lock() == Some(thread::current().id()) {
            return false;
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut progress = self.progress.lock();
        // A round that has begun may have looked before the news.
        let wanted = progress.begun + 1;
        self.urgent.store(true, Ordering::Release);
        self.alarm.ring();
        while progress.done < wanted {
            if progress.status.failures_in_a_row > 0 || self.closing.load(Ordering::Acquire) {
                return false;
            }
            match deadline {
                Some(deadline) => {
                    if self
                        .progressed
                        .wait_until(&mut progress, deadline)
                        .timed_out()
                    {
                        return progress.done >= wanted;
                    }
                }
                None => self.progressed.wait(&mut progress),
            }
        }
        true
    }

    // --- the thread -----------------------------------------------------------------------------

    fn run(&self, sleeper: &Sleeper) {
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
            let carried = catch_unwind(AssertUnwindSafe(|| self.carry(&registry))).unwrap_or_else(
                |payload| {
                    panics::dispose(payload);
                    Err(Error::store("be called", "it panicked"))
                },
            );
            last = now;
            let pause = self.conclude(&registry, carried, &mut jitter);
            next = self.clock.now().after(pause);
        }
        self.progress.lock().ended = true;
        self.progressed.notify_all();
    }

    fn keep_alive_after(&self, now: Moment) -> Moment {
        self.store
            .keep_alive_interval()
            .map_or(Moment::NEVER, |interval| now.after(interval))
    }

    /// Returns whether heartbeats have to be sent again.
    fn keep_alive(&self) -> bool {
        let kept = catch_unwind(AssertUnwindSafe(|| self.store.keep_alive()));
        let renewed = match kept {
            Ok(Ok(renewed)) => renewed,
            // The heartbeats that follow find out what is wrong.
            Ok(Err(_)) => true,
            Err(payload) => {
                panics::dispose(payload);
                true
            }
        };
        if renewed {
            for known in self.book.lock().known.values_mut() {
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
                let error = error.to_string();
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
            registry.roster().emit(None, news);
        }
        pause
    }

    fn shortest_interval(&self) -> Duration {
        let book = self.book.lock();
        let living = book.known.values().filter(|known| !known.ended);
        living
            .map(|known| known.post.record.profile.interval)
            .min()
            .unwrap_or(crate::worker::DEFAULT_INTERVAL)
    }

    /// Tells the store all that it does not know yet. Returns how long to wait.
    fn carry(&self, registry: &Registry) -> Result<Duration, Error> {
        self.notice(registry);
        let mut refused = None;
        // What the store has forgotten, or marked offline, is registered in the second round.
        for _ in 0..3 {
            refused = match self.register(registry) {
                // Who is let in already goes on being heard of, and holding leases.
                Err(error @ Error::Invalid { .. }) => Some(error),
                registered => registered.map(|()| None)?,
            };
            self.stop(registry)?;
            if self.beat(registry)? {
                break;
            }
        }
        self.release()?;
        self.renew(registry)?;
        if let Some(refused) = refused {
            return Err(refused);
        }
        let now = self.clock.now();
        let book = self.book.lock();
        let registered = book
            .known
            .values()
            .filter(|known| known.bond.is_some() && !known.ended)
            .count();
        let renewal = book.leases.iter().map(|lease| lease.renewal_due()).min();
        drop(book);
        self.progress.lock().status.registered = registered;
        let heartbeat = self
            .book
            .lock()
            .known
            .values()
            .filter(|known| !known.ended)
            .filter_map(Known::due_at)
            .min();
        let next = [renewal, heartbeat].into_iter().flatten().min();
        Ok(next.map_or(crate::worker::DEFAULT_INTERVAL, |due| due.since(now)))
    }

    /// Takes note of who is there.
    fn notice(&self, registry: &Registry) {
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

    fn register(&self, registry: &Registry) -> Result<(), Error> {
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
    fn stop(&self, registry: &Registry) -> Result<(), Error> {
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
    fn beat(&self, registry: &Registry) -> Result<bool, Error> {
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

    fn report(&self, registry: &Registry, post: &Post, bond: &Arc<Bond>) -> Beat {
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

    // --- leases ---------------------------------------------------------------------------------

    pub(super) fn claim(
        self: &Arc<Self>,
        post: &Post,
        run_id: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>, Error> {
        let bond = self.bond_of(post)?;
        // One claim at a time: of two that the store grants one after the other, only the second
        // counts there, and the first would be believed in until it expires.
        let Some(_claiming) = self.begin_claim(post, &bond, run_id) else {
            return Ok(None);
        };
        let claim = Claim {
            worker: bond.key.clone(),
            run_id: run_id.to_owned(),
            ttl,
        };
        let sent = Now::of(&self.clock);
        match self.store.claim(&claim)? {
            ClaimAnswer::Granted(fence) => {
                let key = LeaseKey {
                    worker: claim.worker,
                    run_id: claim.run_id,
                    fence,
                };
                let held = Arc::new(Held::new(key, ttl, bond, &sent));
                self.book.lock().leases.push(Arc::clone(&held));
                // The thread learns when to renew it.
                Companion::news(&**self);
                Ok(Some(Lease::new(held, Arc::clone(self))))
            }
            ClaimAnswer::Taken => Ok(None),
            ClaimAnswer::Refused(_) => {
                // The next heartbeat learns the same, and does what has to be done.
                self.retell(post);
                Err(Error::Refused {
                    id: post.record.id().to_owned(),
                })
            }
        }
    }

    /// `None` if the worker holds the run, or is just claiming it.
    fn begin_claim(&self, post: &Post, bond: &Arc<Bond>, run_id: &str) -> Option<Claiming<'_>> {
        let now = Now::of(&self.clock);
        let mut book = self.book.lock();
        let held = book.leases.iter().any(|lease| {
            lease.hangs_on(bond) && lease.key.run_id == run_id && !lease.remaining(&now).is_zero()
        });
        let place = (address(&post.record), run_id.to_owned());
        if held || !book.claiming.insert(place.clone()) {
            return None;
        }
        Some(Claiming {
            uplink: self,
            place,
        })
    }

    /// The worker's incarnation as the store knows it. One that is just starting is waited for.
    fn bond_of(&self, post: &Post) -> Result<Arc<Bond>, Error> {
        let known = || {
            let book = self.book.lock();
            let known = book.known.get(&address(&post.record))?;
            known
                .bond
                .clone()
                .filter(|_| known.incarnation == post.record.incarnation())
        };
        if let Some(bond) = known() {
            return Ok(bond);
        }
        self.flush(REGISTRATION_PATIENCE);
        known().ok_or_else(|| {
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

    fn retell(&self, post: &Post) {
        if let Some(known) = self.book.lock().known.get_mut(&address(&post.record)) {
            known.told = None;
        }
        self.news();
    }

    pub(super) fn release_now(&self, held: &Arc<Held>) -> Result<bool, Error> {
        let key = held.key.clone();
        match self.store.release(std::slice::from_ref(&key)) {
            Ok(released) => {
                self.book.lock().leases.retain(|lease| lease.key != key);
                Ok(released.first().copied().unwrap_or(false))
            }
            Err(error) => {
                self.release_soon(held);
                Err(error)
            }
        }
    }

    pub(super) fn release_soon(&self, held: &Arc<Held>) {
        let mut book = self.book.lock();
        book.leases.retain(|lease| !Arc::ptr_eq(lease, held));
        if !held.is_broken() {
            book.to_release.push(held.key.clone());
        }
        drop(book);
        self.news();
    }

    fn release(&self) -> Result<(), Error> {
        let keys = self.book.lock().to_release.clone();
        if keys.is_empty() {
            return Ok(());
        }
        self.store.release(&keys)?;
        self.book
            .lock()
            .to_release
            .retain(|key| !keys.contains(key));
        Ok(())
    }

    fn renew(&self, registry: &Registry) -> Result<(), Error> {
        let now = self.clock.now();
        let mut by_ttl = HashMap::<Duration, Vec<Arc<Held>>>::new();
        for lease in &self.book.lock().leases {
            if lease.renewal_due() <= now {
                by_ttl.entry(lease.ttl).or_default().push(Arc::clone(lease));
            }
        }
        for (ttl, leases) in by_ttl {
            let keys: Vec<_> = leases.iter().map(|lease| lease.key.clone()).collect();
            let sent = Now::of(&self.clock);
            let answers = answered("renew", keys.len(), self.store.renew(&keys, ttl)?)?;
            for (lease, held) in leases.iter().zip(answers) {
                if held {
                    lease.renewed(&sent);
                } else {
                    self.lose(registry, lease);
                }
            }
        }
        self.lose_leases(registry);
        Ok(())
    }

    /// Tells of those whose worker is not what it was for the store, or is over.
    fn lose_leases(&self, registry: &Registry) {
        let broken: Vec<_> = {
            let book = self.book.lock();
            let broken = book.leases.iter().filter(|lease| lease.is_broken());
            broken.cloned().collect()
        };
        for lease in broken {
            self.lose(registry, &lease);
        }
    }

    fn lose(&self, registry: &Registry, lease: &Arc<Held>) {
        let mut book = self.book.lock();
        book.leases.retain(|other| !Arc::ptr_eq(other, lease));
        let owner: Option<Arc<Record>> = book
            .known
            .values()
            .find(|known| known.post.record.id() == lease.key.worker.id)
            .map(|known| Arc::clone(&known.post.record));
        drop(book);
        if lease.end() {
            registry.roster().emit(
                owner.as_deref(),
                EventKind::LeaseLost {
                    run_id: lease.key.run_id.clone(),
                    fence: lease.key.fence,
                },
            );
        }
    }
}

/// A claim that waits for its answer.
struct Claiming<'a> {
    uplink: &'a Uplink,
    place: (usize, String),
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.uplink.book.lock().claiming.remove(&self.place);
    }
}

impl Known {
    /// Another heartbeat is due: its time has come, or something changed.
    fn is_due(&self, now: &Told) -> bool {
        let interval = self.post.record.profile.interval;
        self.told.is_none_or(|told| {
            (told.state, told.task) != (now.state, now.task)
                // A tick that comes a little early is this worker's tick too.
                || now.at.since(told.at) >= interval / 4 * 3
        })
    }

    fn due_at(&self) -> Option<Moment> {
        Some(self.told?.at.after(self.post.record.profile.interval))
    }

    /// The store does not know this incarnation, or not any more.
    fn forget(&mut self) {
        if let Some(bond) = self.bond.take() {
            bond.break_off();
        }
        self.told = None;
    }

    /// Nothing is left to be told.
    fn finish(&mut self) {
        self.forget();
        self.ended = true;
        self.post.record.set_told();
    }
}

fn address(record: &Arc<Record>) -> usize {
    Arc::as_ptr(record).addr()
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
fn answered<T>(operation: &'static str, asked: usize, answers: Vec<T>) -> Result<Vec<T>, Error> {
    if answers.len() == asked {
        return Ok(answers);
    }
    Err(Error::store(
        operation,
        format_args!("{} answers to {asked} questions", answers.len()),
    ))
}
