//! What every [`HeartbeatStore`] has to do: a suite that this crate's stores pass, and that
//! somebody with a store of their own can run.
//!
//! ```
//! use worker_heartbeat::MemoryStore;
//! use worker_heartbeat::fleet::conformance;
//!
//! conformance::assert_conforms(&MemoryStore::new());
//! ```
//!
//! It needs no control of the store's clock: what has to be old says so, and only leases are waited
//! for. It leaves its own workers behind, and sweeps the whole store.

macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(Trouble(format!($($reason)+)));
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

mod leases;
mod sweeps;
mod workers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::store::{
    Answer, Beat, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, Stop, Sweep,
    WorkerFilter, WorkerKey,
};
use crate::fleet::stored::StoredWorker;
use crate::health::{Death, DeathCause, Ending, Health, State, StopCause, Thresholds};

/// One thing that a store has to do.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Case {
    /// What it is, as a sentence.
    pub name: &'static str,
    run: fn(&Bench<'_>) -> Result<(), Trouble>,
}

impl Case {
    /// Runs it.
    ///
    /// # Errors
    /// What the store does otherwise.
    pub fn run(&self, store: &dyn HeartbeatStore) -> Result<(), String> {
        let bench = Bench::new(store);
        (self.run)(&bench).map_err(|Trouble(trouble)| trouble)
    }
}

/// Runs all [`CASES`].
///
/// # Panics
/// If the store does otherwise; tells everything in which it does.
#[allow(clippy::panic, reason = "it is an assertion")]
pub fn assert_conforms(store: &dyn HeartbeatStore) {
    let mut troubles = String::new();
    for case in CASES {
        if let Err(trouble) = case.run(store) {
            troubles.push_str(&format!("\n{}: {trouble}", case.name));
        }
    }
    assert!(troubles.is_empty(), "the store does not conform:{troubles}");
}

macro_rules! cases {
    ($($name:literal: $run:path,)*) => {
        /// Everything that a store has to do.
        pub const CASES: &[Case] = &[$(Case { name: $name, run: $run }),*];
    };
}

cases! {
    "what is registered and told is listed": workers::told_is_listed,
    "a registered worker is starting until it is heard of": workers::starting,
    "each registration is a higher incarnation, and older ones are refused": workers::fencing,
    "an id that nobody chose is kept in its process and unique beyond": workers::generated_ids,
    "who is unknown is told so, and nothing comes into being": workers::unknown,
    "a batch is answered in its order, each on its own": workers::batches,
    "a heartbeat never goes back": workers::never_back,
    "what is told last counts": workers::newest_wins,
    "a stopped worker stays stopped, with its reason": workers::stops,
    "a death keeps its reason": workers::deaths,
    "texts come back as they were": workers::texts,
    "a sweep marks the silent, and nobody else": sweeps::sweeps,
    "a worker that was marked offline is refused until it registers anew": sweeps::offline,
    "a worker that restarts during a sweep is not marked": sweeps::restarts,
    "a sweep charges only silence that was watched": sweeps::watched,
    "a dry run tells, and changes nothing": sweeps::dry_run,
    "a killed worker is dead at once": sweeps::killed,
    "a worker whose process is gone is dead at once, and not called killed": sweeps::gone,
    "a group is offline when all its workers are": sweeps::groups,
    "the sweep judges as the judge does": sweeps::one_judge,
    "lists are in order, filtered and paged": workers::lists,
    "a list of a host has its living workers": workers::hosts,
    "the summary counts every state": sweeps::summaries,
    "a purge forgets the ended, by age": sweeps::purges,
    "one worker holds a run at a time, and fences grow": leases::one_holder,
    "a lease expires, and can be renewed before": leases::expiry,
    "a lease is released once, by its own fence": leases::releases,
    "a lease needs a living worker": leases::leases_of_the_living,
    "a stop releases the worker's leases": leases::stop_releases,
    "a sweep releases the leases of the dead": leases::sweep_releases,
    "a claim shows in the worker's row": leases::claims_show,
    "who may still believe in a lease is waited for": leases::belief,
    "a worker believes in its lease from its registration on": leases::belief_from_the_start,
    "of many that claim at once one gets it": leases::claims_at_once,
    "nothing at all is allowed": workers::nothing,
}

/// A store and names that no other case uses.
struct Bench<'a> {
    store: &'a dyn HeartbeatStore,
    name: String,
}

/// What went wrong.
struct Trouble(String);

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

type Tried = Result<(), Trouble>;

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a call, short enough to be waited for.
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
        registration.group = self.name.clone();
        registration.thresholds = Some(Thresholds::new(90 * SECOND));
        registration
    }

    fn register(&self, registration: Registration) -> Result<WorkerKey, Trouble> {
        let keys = self.store.register(&[registration])?;
        match <[WorkerKey; 1]>::try_from(keys) {
            Ok([key]) => Ok(key),
            Err(keys) => Err(Trouble(format!("{} keys for one worker", keys.len()))),
        }
    }

    fn start(&self, name: &str) -> Result<WorkerKey, Trouble> {
        self.register(self.registration(name))
    }

    /// A worker that is well.
    fn worker(&self, name: &str) -> Result<WorkerKey, Trouble> {
        let key = self.start(name)?;
        self.well(&key)?;
        Ok(key)
    }

    fn well(&self, key: &WorkerKey) -> Tried {
        ensure_eq!(
            self.beat(Beat::new(key.clone(), State::Active))?,
            Answer::Accepted
        );
        Ok(())
    }

    fn beat(&self, beat: Beat) -> Result<Answer, Trouble> {
        match self.store.beat(&[beat])?[..] {
            [answer] => Ok(answer),
            ref answers => Err(Trouble(format!("{} answers to one beat", answers.len()))),
        }
    }

    /// A worker whose heartbeat has this age.
    fn silent(&self, name: &str, age: Duration) -> Result<WorkerKey, Trouble> {
        let key = self.start(name)?;
        ensure_eq!(self.beat(aged(&key, age))?, Answer::Accepted);
        Ok(key)
    }

    /// A worker that is well, and may be silent for a short time only.
    fn brief(&self, name: &str) -> Result<WorkerKey, Trouble> {
        let key = self.register(Registration {
            thresholds: Some(Thresholds::new(SHORT)),
            ..self.registration(name)
        })?;
        self.well(&key)?;
        Ok(key)
    }

    fn stop(&self, key: &WorkerKey, ending: Ending) -> Result<Answer, Trouble> {
        let stop = Stop {
            key: key.clone(),
            ending,
            ago: Duration::ZERO,
        };
        Ok(self.store.stop(&[stop])?[0])
    }

    fn rows(&self) -> Result<Vec<StoredWorker>, Trouble> {
        Ok(self.store.list(&WorkerFilter {
            worker_type: Some(self.name.clone()),
            ..WorkerFilter::default()
        })?)
    }

    fn row(&self, key: &WorkerKey) -> Result<StoredWorker, Trouble> {
        let rows = self.rows()?;
        let row = rows.into_iter().find(|row| row.key.id == key.id);
        row.ok_or_else(|| Trouble(format!("{key} is not listed")))
    }

    fn state(&self, key: &WorkerKey) -> Result<State, Trouble> {
        Ok(self.row(key)?.health().state())
    }

    /// Sweeps, and tells which of this case's workers were marked.
    fn sweep(&self, sweep: &Sweep) -> Result<(BTreeSet<String>, Swept), Trouble> {
        // Somebody else may be sweeping the same store.
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
        Err(Trouble("no sweep had success in 5 s".to_owned()))
    }

    fn claim(&self, worker: &WorkerKey, run: &str, ttl: Duration) -> Result<ClaimAnswer, Trouble> {
        Ok(self.store.claim(&Claim {
            worker: worker.clone(),
            run_id: self.id(run),
            ttl,
        })?)
    }

    fn lease(&self, worker: &WorkerKey, run: &str, ttl: Duration) -> Result<LeaseKey, Trouble> {
        match self.claim(worker, run, ttl)? {
            ClaimAnswer::Granted(fence) => Ok(LeaseKey {
                worker: worker.clone(),
                run_id: self.id(run),
                fence,
            }),
            other => Err(Trouble(format!("{worker} claims {run}: {other:?}"))),
        }
    }

    fn renew(&self, lease: &LeaseKey, ttl: Duration) -> Result<bool, Trouble> {
        Ok(self.store.renew(std::slice::from_ref(lease), ttl)?[0])
    }

    fn release(&self, lease: &LeaseKey) -> Result<bool, Trouble> {
        Ok(self.store.release(std::slice::from_ref(lease))?[0])
    }
}

/// What a sweep did beside marking workers.
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

/// As old as said, or a little older: the call took its time.
fn about(age: Option<Duration>, said: Duration) -> bool {
    age.is_some_and(|age| age + Duration::from_millis(100) >= said && age < said + 10 * SECOND)
}

fn dead(cause: DeathCause) -> Ending {
    Ending::Dead(Arc::new(Death {
        cause,
        run_id: None,
        task: None,
        at: SystemTime::now(),
        gave_up_after: None,
    }))
}

fn stopped() -> Ending {
    Ending::Stopped(StopCause::Stop)
}
