//! What every [`HeartbeatStore`] must do: a test suite that this crate's stores pass, for third-party
//! stores as well.
//!
//! ```
//! use worker_heartbeat::MemoryStore;
//! use worker_heartbeat::fleet::conformance;
//!
//! conformance::assert_conforms(&MemoryStore::new());
//! ```
//!
//! It needs no control of the store's clock: heartbeats bring their age, and only the expiry of leases
//! takes real time. It leaves its workers in the store, and sweeps the whole store.

macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(Violation(format!($($reason)+)));
        }
    };
}

macro_rules! ensure_eq {
    ($left:expr, $right:expr) => {{
        let (left, right) = (&$left, &$right);
        ensure!(
            *left == *right,
            "{} is {left:?}, it should be {right:?}",
            stringify!($left)
        );
    }};
}

mod events;
mod leases;
mod reads;
mod sweeps;
mod workers;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, StoredDeath, StoredEnding,
    StoredWorker, Sweep, WorkerFilter, WorkerKey, WorkerStatus,
};
use crate::fleet::store::HeartbeatStore;
use crate::health::{DeathCause, Health, State, StopCause, Thresholds};

/// One requirement for a store.
///
/// ```
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::conformance::CASES;
///
/// for case in &CASES[..3] {
///     println!("{}: {:?}", case.name, case.run(&MemoryStore::new()));
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Case {
    /// The requirement, as a sentence.
    pub name: &'static str,
    run: fn(&Bench<'_>) -> Result<(), Violation>,
}

impl Case {
    /// Tests this requirement.
    ///
    /// ```
    /// use worker_heartbeat::MemoryStore;
    /// use worker_heartbeat::fleet::conformance::CASES;
    ///
    /// let case = CASES.iter().find(|case| case.name.contains("purge")).expect("it is a case");
    /// assert_eq!(case.run(&MemoryStore::new()), Ok(()));
    /// ```
    ///
    /// # Errors
    /// How the store violates it.
    pub fn run(&self, store: &dyn HeartbeatStore) -> Result<(), String> {
        let bench = Bench::new(store);
        (self.run)(&bench).map_err(|Violation(violation)| violation)
    }
}

/// Runs all [`CASES`].
///
/// ```
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::conformance::assert_conforms;
///
/// assert_conforms(&MemoryStore::new());
/// ```
///
/// # Panics
/// If the store violates any of them; the message lists all violations.
#[allow(clippy::panic, reason = "it is an assertion")]
pub fn assert_conforms(store: &dyn HeartbeatStore) {
    let mut violations = String::new();
    for case in CASES {
        if let Err(violation) = case.run(store) {
            violations.push_str(&format!("\n{}: {violation}", case.name));
        }
    }
    assert!(
        violations.is_empty(),
        "the store does not conform:{violations}"
    );
}

macro_rules! cases {
    ($($name:literal: $run:path,)*) => {
        /// All requirements.
        pub const CASES: &[Case] = &[$(Case { name: $name, run: $run }),*];
    };
}

cases! {
    "registrations and heartbeats are listed": workers::listed,
    "a registered worker is starting until its first heartbeat": workers::starting,
    "each registration is a higher incarnation, and older ones are refused": workers::fencing,
    "a generated id is kept in its process and unique across processes": workers::generated_ids,
    "writes for unknown workers are refused, and create nothing": workers::unknown,
    "a batch is answered in its order, each on its own": workers::batches,
    "a heartbeat never goes back": workers::never_back,
    "the last heartbeat counts": workers::newest_wins,
    "a stopped worker stays stopped, with its reason": workers::stops,
    "a death keeps its reason": workers::deaths,
    "a panic keeps its message and its location": workers::panics,
    "texts come back as they were": workers::texts,
    "the call stack of an unwell worker is kept until it is well": workers::stacks,
    "a worker is found by its id": workers::found,
    "each registration has an answer of its own": workers::each_registered,
    "new, known and repeated ids are registered in one batch": workers::mixed_batches,
    "odd values of one worker harm no other": workers::odd_values,
    "a sweep marks silent workers, and no others": sweeps::sweeps,
    "a worker that was marked offline is refused until it registers again": sweeps::offline,
    "a worker that restarts during a sweep is not marked": sweeps::restarts,
    "a worker that is overdue is not offline, and keeps its lease": sweeps::overdue,
    "a sweep charges only silence that was watched": sweeps::watched,
    "a dry run reports, and changes nothing": sweeps::dry_run,
    "a killed worker is dead at once": sweeps::killed,
    "a worker whose process is gone is dead at once, and not killed": sweeps::gone,
    "a group is offline when all its workers are": sweeps::groups,
    "the sweep judges as the judge does": sweeps::one_judge,
    "lists are in order, filtered and paged": workers::lists,
    "a list of a host contains its living workers": workers::hosts,
    "the summary counts every state": sweeps::summaries,
    "the worst workers are listed first": reads::worst_first,
    "the worst workers are filtered and paged": reads::pages,
    "a list is filtered by state and text": reads::filters,
    "workers are counted by type, group, state and cause of death": reads::counts,
    "a death is an event, with its reason, place and call stack": events::deaths,
    "each bad state is one event, and its end another": events::recoveries,
    "each death of a worker that is restarted is one event": events::restarts,
    "a worker that loses its id to another process is an event": events::fences,
    "what a sweep finds is an event, and a group is reported once": events::sweeps,
    "how workers end is counted": events::endings,
    "events are read from a cursor on, and from the latest back": events::pages,
    "a purge removes ended workers, by age": sweeps::purges,
    "one worker holds a run at a time, and fences grow": leases::one_holder,
    "a claim that is given up releases its run": leases::given_up,
    "a lease expires, and can be renewed before": leases::expiry,
    "a lease is released once, by its own fence": leases::releases,
    "a lease needs a living worker": leases::leases_of_the_living,
    "a stop releases the worker's leases": leases::stop_releases,
    "a sweep releases the leases of dead workers": leases::sweep_releases,
    "a claim shows in the worker's row": leases::claims_show,
    "a run stays taken while its holder may believe in the lease": leases::belief,
    "a worker may believe in its lease from its registration on": leases::belief_from_the_start,
    "of simultaneous claims, one is granted": leases::claims_at_once,
    "empty batches are allowed": workers::empty_batches,
}

/// A store, and names that no other case uses.
struct Bench<'a> {
    store: &'a dyn HeartbeatStore,
    name: String,
}

/// How a store violates a requirement.
struct Violation(String);

impl From<Error> for Violation {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

type Checked = Result<(), Violation>;

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a call, short enough for a wait.
const SHORT: Duration = Duration::from_millis(600);

impl<'a> Bench<'a> {
    fn new(store: &'a dyn HeartbeatStore) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            store,
            name: format!("conformance-{:x}-{n}", since.as_nanos()),
        }
    }

    fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    fn registration(&self, name: &str) -> Registration {
        let mut registration = Registration::new(self.name.clone(), self.id(name));
        registration.info.group = self.name.clone();
        registration.info.thresholds = Some(Thresholds::new(90 * SECOND));
        registration
    }

    fn register_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut Registration),
    ) -> Result<WorkerKey, Violation> {
        let mut registration = self.registration(name);
        change(&mut registration);
        self.register(registration)
    }

    fn register(&self, registration: Registration) -> Result<WorkerKey, Violation> {
        let keys = self.store.register(&[registration])?;
        match <[WorkerKey; 1]>::try_from(keys) {
            Ok([key]) => Ok(key),
            Err(keys) => Err(Violation(format!("{} keys for one worker", keys.len()))),
        }
    }

    fn start(&self, name: &str) -> Result<WorkerKey, Violation> {
        self.register(self.registration(name))
    }

    /// A worker that is well.
    fn worker(&self, name: &str) -> Result<WorkerKey, Violation> {
        let key = self.start(name)?;
        self.well(&key)?;
        Ok(key)
    }

    fn well(&self, key: &WorkerKey) -> Checked {
        ensure_eq!(
            self.beat(Beat::new(key.clone(), State::Active))?,
            Answer::Accepted
        );
        Ok(())
    }

    fn beat(&self, beat: Beat) -> Result<Answer, Violation> {
        match self.store.beat(&[beat])?[..] {
            [answer] => Ok(answer),
            ref answers => Err(Violation(format!("{} answers to one beat", answers.len()))),
        }
    }

    /// A worker whose heartbeat has this age.
    fn silent(&self, name: &str, age: Duration) -> Result<WorkerKey, Violation> {
        let key = self.start(name)?;
        ensure_eq!(self.beat(aged(&key, age))?, Answer::Accepted);
        Ok(key)
    }

    /// A worker that is well, and may be silent for a short time only.
    fn brief(&self, name: &str) -> Result<WorkerKey, Violation> {
        let key = self.register_with(name, |worker| {
            worker.info.thresholds = Some(Thresholds::new(SHORT));
        })?;
        self.well(&key)?;
        Ok(key)
    }

    fn stop(&self, key: &WorkerKey, ending: StoredEnding) -> Result<Answer, Violation> {
        Ok(self.store.stop(&[Stop::new(key.clone(), ending)])?[0])
    }

    fn rows(&self) -> Result<Vec<StoredWorker>, Violation> {
        Ok((self.store).list(&WorkerFilter::new().worker_type(&self.name))?)
    }

    fn row(&self, key: &WorkerKey) -> Result<StoredWorker, Violation> {
        let rows = self.rows()?;
        let row = rows.into_iter().find(|row| row.key.id == key.id);
        row.ok_or_else(|| Violation(format!("{key} is not listed")))
    }

    fn state(&self, key: &WorkerKey) -> Result<State, Violation> {
        Ok(self.row(key)?.health().state())
    }

    /// Sweeps, and returns which of this case's workers were marked.
    fn sweep(&self, sweep: &Sweep) -> Result<(BTreeSet<String>, Swept), Violation> {
        // Another process may be sweeping the same store.
        for _ in 0..100 {
            let report = self.store.sweep(sweep)?;
            if report.success {
                let own = |id: &String| {
                    id.strip_prefix(&format!("{}-", self.name))
                        .map(str::to_owned)
                };
                let mine = |ids: &[String]| ids.iter().filter_map(own).collect();
                let swept = Swept {
                    leases: mine(&report.released_leases),
                    group: report.affected_groups.contains(&self.name),
                };
                return Ok((mine(&report.marked_offline), swept));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(Violation("no sweep had success in 5 s".to_owned()))
    }

    fn claim(
        &self,
        worker: &WorkerKey,
        run: &str,
        ttl: Duration,
    ) -> Result<ClaimAnswer, Violation> {
        let claim = Claim::new(worker.clone(), self.id(run), ttl);
        Ok(self.store.claim(&claim)?)
    }

    fn lease(&self, worker: &WorkerKey, run: &str, ttl: Duration) -> Result<LeaseKey, Violation> {
        match self.claim(worker, run, ttl)? {
            ClaimAnswer::Granted(fence) => Ok(LeaseKey::new(worker.clone(), self.id(run), fence)),
            other => Err(Violation(format!("{worker} claims {run}: {other:?}"))),
        }
    }

    fn renew(&self, lease: &LeaseKey, ttl: Duration) -> Result<bool, Violation> {
        Ok(self.store.renew(std::slice::from_ref(lease), ttl)?[0])
    }

    fn release(&self, lease: &LeaseKey) -> Result<bool, Violation> {
        Ok(self.store.release(std::slice::from_ref(lease))?[0])
    }
}

/// What a sweep did besides marking workers.
struct Swept {
    leases: BTreeSet<String>,
    group: bool,
}

fn aged(key: &WorkerKey, age: Duration) -> Beat {
    Beat {
        heartbeat_age: Some(age),
        progress_age: Some(age),
        ..Beat::new(key.clone(), State::Active)
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// Whether an age is as expected, or a little greater: the call takes time.
fn about(age: Option<Duration>, expected: Duration) -> bool {
    let range = expected.saturating_sub(Duration::from_millis(100))..expected + 10 * SECOND;
    age.is_some_and(|age| range.contains(&age))
}

fn stopped() -> StoredEnding {
    StoredEnding::stopped(&StopCause::Stop)
}
