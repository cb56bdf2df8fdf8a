//! A model test of the safety of leases: it explores all interleavings of the rules of stores.
//!
//! Two processes compete for one run, with ids of their own or with one id. The search covers every
//! order in which they send, in which messages arrive once, twice or never, in which processes stand
//! still, crash and take the id from each other, in which sweeps run and time passes. In every state:
//!
//! * at most one process believes that it holds the run;
//! * a granted fence is higher than every one before, or that of the same attempt;
//! * a run that was released, or whose lease expired, can be claimed;
//! * an attempt that was withdrawn holds no run, even if its request arrives later;
//! * a lease whose loss was reported is not believed in again.
//!
//! Visited states are identified by 64 bits of their hash.

mod searches;

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, SystemTime};

use crate::clock::Moment;
use crate::fleet::memory::MemoryTables;
use crate::fleet::rules;
use crate::fleet::shapes::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Sweep, WorkerKey,
};
use crate::fleet::sweep_rules;
use crate::fleet::uploader::session::{ClockReading, Deadline};
use crate::health::{State as Health, Thresholds};

const RUN: &str = "run";
const SECOND: Duration = Duration::from_secs(1);
const EPOCH: u64 = 1_000;

/// The bounds of the search.
#[derive(Clone, Copy)]
struct Bounds {
    ttl: Duration,
    stale_after: Duration,
    seconds: u64,
    /// Requests of one process.
    requests: u8,
    /// A claim that was given up is withdrawn before the next one.
    withdrawals: bool,
    /// Messages on their way at a time.
    in_flight: usize,
    /// Both processes register under one id.
    one_id: bool,
    /// What they send beside registrations and claims.
    beats: bool,
    renewals: bool,
    sweeps: u8,
    duplicates: u8,
    /// Losses are reported, at any time after the lease has expired, and the run is released then.
    losses: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    tables: MemoryTables,
    second: u64,
    processes: [Process; 2],
    messages: Vec<Message>,
    highest_fence: u64,
    sweeps: u8,
    /// Attempts that the store withdrew.
    withdrawn: BTreeSet<(WorkerKey, u8)>,
    /// Messages that may still arrive twice.
    duplicates: u8,
}

/// The state of one process with one worker, as the process knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    crashed: bool,
    requests: u8,
    key: Option<WorkerKey>,
    /// Until when the last accepted heartbeat lets it believe.
    session: Option<Deadline>,
    lease: Option<(LeaseKey, Deadline)>,
    /// The claim that it waits for: one at a time.
    claiming: Option<u8>,
    /// A claim whose outcome it does not know, which it withdraws before the next one.
    unresolved: Option<u8>,
    /// The lease whose loss was reported last.
    lost: Option<LeaseKey>,
    /// It expired, and is still to be released.
    to_release: Option<LeaseKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Message {
    Request(usize, u64, Request),
    Response(usize, u64, Response),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Request {
    Register,
    Beat(WorkerKey),
    Claim(WorkerKey, u8),
    Withdraw(WorkerKey, u8),
    Renew(LeaseKey),
    Release(LeaseKey),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Response {
    Registered(WorkerKey),
    Beaten(WorkerKey, Answer),
    Claimed(LeaseKey, u8),
    Withdrawn(u8),
    Renewed(LeaseKey, bool),
}

fn attempt(worker: &WorkerKey, serial: u8, bounds: &Bounds) -> Claim {
    Claim::new(worker.clone(), RUN, bounds.ttl).attempt(serial.into())
}

fn now(second: u64) -> ClockReading {
    ClockReading {
        moment: Moment::ZERO.after(SECOND * (EPOCH + second) as u32),
        wall: SystemTime::UNIX_EPOCH + SECOND * (EPOCH + second) as u32,
    }
}

impl Process {
    /// As [`Lease::is_held`](crate::Lease::is_held) decides.
    fn believes(&self, now: &ClockReading) -> bool {
        match (&self.key, &self.session, &self.lease) {
            (Some(key), Some(session), Some((lease, until))) => {
                !self.crashed
                    && lease.worker == *key
                    && !until.remaining(now).min(session.remaining(now)).is_zero()
            }
            _ => false,
        }
    }

    /// A thread notices that the lease has expired, and wakes the waiters.
    fn notice_loss(&mut self, now: &ClockReading) {
        if self.lease.is_some() && !self.believes(now) {
            self.lost = self.lease.take().map(|(lease, _)| lease);
            self.to_release.clone_from(&self.lost);
        }
    }

    /// The requests that it may send next.
    fn requests(&self, bounds: &Bounds) -> Vec<Request> {
        let mut requests = Vec::new();
        let Some(key) = &self.key else {
            return vec![Request::Register];
        };
        if bounds.beats {
            requests.push(Request::Beat(key.clone()));
        }
        requests.extend(self.to_release.clone().map(Request::Release));
        match &self.lease {
            Some((lease, _)) if bounds.renewals => {
                requests.push(Request::Renew(lease.clone()));
                requests.push(Request::Release(lease.clone()));
            }
            None if self.claiming.is_none() => requests.push(match self.unresolved {
                Some(attempt) => Request::Withdraw(key.clone(), attempt),
                None => Request::Claim(key.clone(), self.requests),
            }),
            _ => {}
        }
        requests
    }
}

impl World {
    fn next(&self, bounds: &Bounds) -> Vec<Self> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            world.messages.sort_by_cached_key(|message| {
                std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::new().hash_one(message)
            });
            next.push(world);
        };
        if self.second < bounds.seconds {
            // A process stands still while only time passes.
            add(&|world| world.second += 1);
        }
        for (i, process) in self.processes.iter().enumerate() {
            if process.crashed {
                continue;
            }
            if process.requests < bounds.requests && self.messages.len() < bounds.in_flight {
                for request in process.requests(bounds) {
                    add(&|world| world.send(i, request.clone()));
                }
            }
            if bounds.losses && process.lease.is_some() && !process.believes(&now(self.second)) {
                add(&|world| world.processes[i].notice_loss(&now(world.second)));
            }
            if process.claiming.is_some() {
                // It gives up. The claim may still arrive.
                add(&|world| {
                    let process = &mut world.processes[i];
                    let claim = process.claiming.take();
                    process.unresolved = claim.filter(|_| bounds.withdrawals);
                });
            }
            if process.lease.is_some() {
                add(&|world| {
                    world.processes[i] = Process {
                        crashed: true,
                        ..world.processes[i].clone()
                    };
                });
            }
        }
        for n in 0..self.messages.len() {
            // Lost, delivered, or delivered and still in flight. A message that stays in flight for
            // ever is lost as well.
            if self.messages.len() == bounds.in_flight {
                add(&|world| drop(world.messages.remove(n)));
            }
            add(&|world| {
                let message = world.messages.remove(n);
                world.deliver(message, bounds);
            });
            if matches!(self.messages[n], Message::Request(..)) && self.duplicates > 0 {
                add(&|world| {
                    world.duplicates -= 1;
                    world.deliver(world.messages[n].clone(), bounds);
                });
            }
        }
        if self.sweeps > 0 {
            add(&|world| world.sweep());
        }
        next
    }

    fn send(&mut self, i: usize, request: Request) {
        let process = &mut self.processes[i];
        process.requests += 1;
        match request {
            // It stops believing when it sends the release.
            Request::Release(ref key) => {
                process.lease.take_if(|(held, _)| held == key);
                process.to_release.take_if(|lost| lost == key);
            }
            Request::Claim(_, serial) => process.claiming = Some(serial),
            _ => {}
        }
        self.messages
            .push(Message::Request(i, self.second, request));
    }

    fn deliver(&mut self, message: Message, bounds: &Bounds) {
        match message {
            Message::Request(i, sent, request) => {
                if let Some(reply) = self.answer(i, request, bounds) {
                    self.messages.push(Message::Response(i, sent, reply));
                }
            }
            Message::Response(i, sent, reply) => {
                let process = &mut self.processes[i];
                if process.crashed {
                    return;
                }
                let at = now(self.second);
                let sent = now(sent);
                let renewed = sent.deadline(bounds.ttl, Duration::ZERO);
                let session = sent.deadline(bounds.stale_after, Duration::ZERO);
                match reply {
                    Response::Registered(key) => {
                        if process.key.is_none() {
                            process.key = Some(key);
                            process.session = Some(session);
                        }
                    }
                    Response::Beaten(key, answer) if process.key.as_ref() == Some(&key) => {
                        if answer == Answer::Accepted {
                            // Replies may come in another order than their requests.
                            process.session = process.session.max(Some(session));
                        } else {
                            process.key = None;
                            let lost = process.lease.take().map(|(lease, _)| lease);
                            process.lost = lost.filter(|_| bounds.losses);
                        }
                    }
                    Response::Claimed(lease, serial) => {
                        if process.claiming == Some(serial) {
                            process.claiming = None;
                            if process.key.as_ref() == Some(&lease.worker) {
                                process.lease = Some((lease, renewed));
                            }
                        }
                    }
                    Response::Withdrawn(attempt) => {
                        process
                            .unresolved
                            .take_if(|unresolved| *unresolved == attempt);
                    }
                    Response::Renewed(key, held) => {
                        // Late, for a lease that has expired.
                        if bounds.losses {
                            process.notice_loss(&at);
                        }
                        let lease = process.lease.take_if(|(lease, _)| *lease == key);
                        if let Some((lease, until)) = lease.filter(|_| held) {
                            process.lease = Some((lease, renewed.max(until)));
                        }
                    }
                    Response::Beaten(..) => {}
                }
            }
        }
    }

    fn answer(&mut self, i: usize, request: Request, bounds: &Bounds) -> Option<Response> {
        let at = now(self.second).moment;
        let tables = &mut self.tables;
        match request {
            Request::Register => {
                let id = if bounds.one_id { 0 } else { i };
                let mut registration = Registration::new("t", id.to_string());
                registration.info.thresholds = Some(Thresholds::new(bounds.stale_after));
                let key = rules::register(tables, &registration, at).unwrap();
                Some(Response::Registered(key))
            }
            Request::Beat(key) => {
                // The age is that at the moment of sending: the store may take the heartbeat for
                // younger than it is, never for older.
                let beat = Beat::new(key.clone(), Health::Active);
                let answer = rules::beat(tables, &beat, at).unwrap();
                Some(Response::Beaten(key, answer))
            }
            Request::Claim(worker, serial) => {
                let claim = attempt(&worker, serial, bounds);
                let held = tables.leases.get(RUN).cloned();
                let held = held.filter(|lease| lease.expires_at > at);
                let free = held.is_none() && !self.withdrawn.contains(&(worker.clone(), serial));
                match rules::claim(tables, &claim, at).unwrap() {
                    ClaimAnswer::Granted(fence) => {
                        let again = held.is_some_and(|lease| {
                            lease.key.worker == worker && lease.attempt == claim.attempt
                        });
                        assert!(
                            fence > self.highest_fence || again && fence == self.highest_fence,
                            "fences grow"
                        );
                        self.highest_fence = fence;
                        let lease = LeaseKey::new(worker, RUN, fence);
                        Some(Response::Claimed(lease, serial))
                    }
                    ClaimAnswer::Taken => {
                        assert!(!free, "a free run can be claimed");
                        None
                    }
                    ClaimAnswer::Refused(_) => None,
                }
            }
            Request::Withdraw(worker, serial) => {
                rules::withdraw(tables, &attempt(&worker, serial, bounds), at).unwrap();
                self.withdrawn.insert((worker, serial));
                Some(Response::Withdrawn(serial))
            }
            Request::Renew(lease) => {
                let held = rules::renew(tables, &lease, bounds.ttl, at).unwrap();
                Some(Response::Renewed(lease, held))
            }
            Request::Release(lease) => {
                rules::release(tables, &lease, at).unwrap();
                None
            }
        }
    }

    fn sweep(&mut self) {
        self.sweeps -= 1;
        let gone = self.processes.iter().filter(|process| process.crashed);
        let sweep = Sweep {
            killed: gone.filter_map(|process| process.key.clone()).collect(),
            ..Sweep::default()
        };
        sweep_rules::sweep(
            &mut self.tables,
            &sweep,
            now(self.second).moment,
            usize::MAX,
        )
        .unwrap();
    }
}

/// Visits every reachable state. Returns the number of states, and of those in which a process
/// believes.
fn explore(bounds: &Bounds) -> (usize, usize) {
    let hasher = RandomState::new();
    let mut seen = HashSet::new();
    let mut believers = 0;
    let mut world = World {
        tables: MemoryTables::default(),
        second: 0,
        processes: Default::default(),
        messages: Vec::new(),
        highest_fence: 0,
        sweeps: bounds.sweeps,
        withdrawn: BTreeSet::new(),
        duplicates: bounds.duplicates,
    };
    // The first process is registered at the start; with ids of their own, both are.
    for i in 0..if bounds.one_id { 1 } else { 2 } {
        world.deliver(Message::Request(i, 0, Request::Register), bounds);
        let reply = world.messages.remove(0);
        world.deliver(reply, bounds);
    }
    let mut open = vec![world];
    while let Some(world) = open.pop() {
        let now = now(world.second);
        let holders = world.processes.iter().filter(|p| p.believes(&now)).count();
        assert!(
            holders < 2,
            "two processes believe that they hold the run: {world:#?}"
        );
        believers += holders;
        for process in world.processes.iter().filter(|p| p.believes(&now)) {
            let held = process.lease.as_ref().map(|(lease, _)| lease);
            assert_ne!(
                held,
                process.lost.as_ref(),
                "a lost lease came back: {world:#?}"
            );
        }
        let locked = world.tables.leases.get(RUN).is_some_and(|lease| {
            let withdrawn = |(worker, serial): &(WorkerKey, u8)| {
                *worker == lease.key.worker && lease.attempt == Some((*serial).into())
            };
            lease.expires_at > now.moment && world.withdrawn.iter().any(withdrawn)
        });
        assert!(!locked, "a withdrawn attempt holds the run: {world:#?}");
        let next = world.next(bounds).into_iter();
        open.extend(next.filter(|world| seen.insert(hasher.hash_one(world))));
    }
    (seen.len(), believers)
}
