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

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::host::ProcessIdentity;
use super::store::{
    Answer, Beat, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, Stop, Sweep,
    WorkerFilter, WorkerKey,
};
use super::stored::StoredWorker;
use crate::error::Error;
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
    "what is registered and told is listed": told_is_listed,
    "a registered worker is starting until it is heard of": starting,
    "each registration is a higher incarnation, and older ones are refused": fencing,
    "an id that nobody chose is kept in its process and unique beyond": generated_ids,
    "who is unknown is told so, and nothing comes into being": unknown,
    "a batch is answered in its order, each on its own": batches,
    "a heartbeat never goes back": never_back,
    "what is told last counts": newest_wins,
    "a stopped worker stays stopped, with its reason": stops,
    "a death keeps its reason": deaths,
    "texts come back as they were": texts,
    "a sweep marks the silent, and nobody else": sweeps,
    "a worker that was marked offline is refused until it registers anew": offline,
    "a worker that restarts during a sweep is not marked": restarts,
    "a sweep charges only silence that was watched": watched,
    "a dry run tells, and changes nothing": dry_run,
    "a killed worker is dead at once": killed,
    "a group is offline when all its workers are": groups,
    "the sweep judges as the judge does": one_judge,
    "lists are in order, filtered and paged": lists,
    "a list of a host has its living workers": hosts,
    "the summary counts every state": summaries,
    "a purge forgets the ended, by age": purges,
    "one worker holds a run at a time, and fences grow": one_holder,
    "a lease expires, and can be renewed before": expiry,
    "a lease is released once, by its own fence": releases,
    "a lease needs a living worker": leases_of_the_living,
    "a stop releases the worker's leases": stop_releases,
    "a sweep releases the leases of the dead": sweep_releases,
    "a claim shows in the worker's row": claims_show,
    "who may still believe in a lease is waited for": belief,
    "of many that claim at once one gets it": claims_at_once,
    "nothing at all is allowed": nothing,
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

fn told_is_listed(bench: &Bench<'_>) -> Tried {
    let process = ProcessIdentity {
        hostname: "host-1".into(),
        pid: 4_000_000_000,
        started: u64::from(u32::MAX) + 7,
        boot_id: "boot".into(),
        pid_namespace: 4_026_531_836,
    };
    let thresholds = Thresholds {
        stale_after: 45 * SECOND,
        stall_after: Some(300 * SECOND),
        startup_grace: 7 * SECOND,
        beats_only: false,
    };
    let key = bench.register(Registration {
        interval: 15 * SECOND,
        thresholds: Some(thresholds.clone()),
        metadata: vec![("version".into(), "1.4.2".into()), ("a".into(), "b".into())],
        restarts: 3,
        process: Some(process.clone()),
        ..bench.registration("a")
    })?;
    ensure_eq!(key.id, bench.id("a"));
    let beat = Beat {
        state: State::Processing,
        reason: Some("because".into()),
        heartbeat_age: Some(2 * SECOND),
        progress_age: Some(20 * SECOND),
        run_id: Some("run-1".into()),
        task: Some("Researching".into()),
        progress: Some((3, 10)),
        beats: 1 << 40,
        metadata: vec![("a".into(), "c".into()), ("load".into(), "0.5".into())],
        ..Beat::new(key.clone(), State::Processing)
    };
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    let row = bench.row(&key)?;
    ensure_eq!(row.key, key);
    ensure_eq!(row.worker_type, bench.name);
    ensure_eq!(row.group, bench.name);
    ensure_eq!(row.interval, 15 * SECOND);
    ensure_eq!(row.thresholds, Some(thresholds));
    let metadata: BTreeSet<_> = row.metadata.iter().cloned().collect();
    let expected = [("version", "1.4.2"), ("a", "c"), ("load", "0.5")];
    ensure_eq!(
        metadata,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    ensure_eq!(row.restarts, 3);
    ensure_eq!(row.process, Some(process));
    ensure_eq!(row.reported, State::Processing);
    ensure_eq!(row.reason.as_deref(), Some("because"));
    ensure!(
        about(row.heartbeat_age, 2 * SECOND),
        "{:?}",
        row.heartbeat_age
    );
    ensure!(
        about(row.progress_age, 20 * SECOND),
        "{:?}",
        row.progress_age
    );
    ensure!(
        about(Some(row.registered_age), Duration::ZERO),
        "{:?}",
        row.registered_age
    );
    ensure_eq!(row.run_id.as_deref(), Some("run-1"));
    ensure_eq!(row.task.as_deref(), Some("Researching"));
    ensure_eq!(row.progress, Some((3, 10)));
    ensure_eq!(row.beats, 1 << 40);
    ensure_eq!(row.lease_remaining, None);
    ensure_eq!(row.ending, None);
    ensure_eq!(row.health().state(), State::Processing);
    Ok(())
}

fn starting(bench: &Bench<'_>) -> Tried {
    let key = bench.start("a")?;
    let row = bench.row(&key)?;
    ensure_eq!(row.heartbeat_age, None);
    ensure_eq!(row.health().state(), State::Starting);
    let beat = Beat {
        heartbeat_age: None,
        progress_age: None,
        ..Beat::new(key.clone(), State::Starting)
    };
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    ensure_eq!(bench.state(&key)?, State::Starting);
    bench.well(&key)?;
    ensure_eq!(bench.state(&key)?, State::Active);
    Ok(())
}

fn fencing(bench: &Bench<'_>) -> Tried {
    let first = bench.worker("a")?;
    let second = bench.worker("a")?;
    let other = bench.worker("b")?;
    ensure_eq!(first.id, second.id);
    ensure!(
        first.incarnation < second.incarnation && second.incarnation < other.incarnation,
        "{first}, {second}, {other}"
    );
    ensure_eq!(
        bench.beat(Beat::new(first.clone(), State::Idle))?,
        Answer::Superseded
    );
    ensure_eq!(bench.stop(&first, stopped())?, Answer::Superseded);
    ensure_eq!(
        bench.claim(&first, "run", SECOND)?,
        ClaimAnswer::Refused(Answer::Superseded)
    );
    ensure_eq!(bench.row(&second)?.key, second);
    ensure_eq!(bench.state(&second)?, State::Active);
    Ok(())
}

fn generated_ids(bench: &Bench<'_>) -> Tried {
    let process = |pid| {
        Some(ProcessIdentity {
            pid,
            ..ProcessIdentity::current()
        })
    };
    let wish = |pid| Registration {
        explicit: false,
        process: process(pid),
        ..bench.registration("a")
    };
    let first = bench.register(wish(1))?;
    ensure_eq!(first.id, bench.id("a"));
    let elsewhere = bench.register(wish(2))?;
    ensure!(elsewhere.id != first.id, "two processes share {first}");
    let again = bench.register(wish(1))?;
    ensure_eq!(again.id, first.id);
    let unknown = || Registration {
        explicit: false,
        process: None,
        ..bench.registration("b")
    };
    let ids = [bench.register(unknown())?.id, bench.register(unknown())?.id];
    ensure!(ids[0] != ids[1], "nobody knows whether they are the same");
    Ok(())
}

fn unknown(bench: &Bench<'_>) -> Tried {
    let nobody = WorkerKey {
        id: bench.id("nobody"),
        incarnation: 1,
    };
    ensure_eq!(
        bench.beat(Beat::new(nobody.clone(), State::Idle))?,
        Answer::Unknown
    );
    ensure_eq!(bench.stop(&nobody, stopped())?, Answer::Unknown);
    ensure_eq!(
        bench.claim(&nobody, "run", SECOND)?,
        ClaimAnswer::Refused(Answer::Unknown)
    );
    let lease = LeaseKey {
        worker: nobody,
        run_id: bench.id("run"),
        fence: 1,
    };
    ensure!(!bench.renew(&lease, SECOND)?, "renewed for nobody");
    ensure!(!bench.release(&lease)?, "released for nobody");
    ensure_eq!(bench.rows()?.len(), 0);
    let mut known = bench.worker("a")?;
    known.incarnation += 1_000_000_000;
    ensure_eq!(bench.beat(Beat::new(known, State::Idle))?, Answer::Unknown);
    Ok(())
}

fn batches(bench: &Bench<'_>) -> Tried {
    let names: Vec<_> = (0..300).map(|n| format!("{n:03}")).collect();
    let wishes: Vec<_> = names.iter().map(|name| bench.registration(name)).collect();
    let keys = bench.store.register(&wishes)?;
    ensure_eq!(keys.len(), 300);
    for (name, key) in names.iter().zip(&keys) {
        ensure_eq!(key.id, bench.id(name));
    }
    let incarnations: BTreeSet<_> = keys.iter().map(|key| key.incarnation).collect();
    ensure_eq!(incarnations.len(), 300);
    let newer = bench.start("100")?;
    let mut beats: Vec<_> = keys
        .iter()
        .map(|key| Beat::new(key.clone(), State::Idle))
        .collect();
    beats[7].key.id = bench.id("nobody");
    let answers = bench.store.beat(&beats)?;
    ensure_eq!(answers.len(), 300);
    for (n, answer) in answers.iter().enumerate() {
        let expected = match n {
            7 => Answer::Unknown,
            100 => Answer::Superseded,
            _ => Answer::Accepted,
        };
        ensure!(*answer == expected, "answer {n} is {answer:?}");
    }
    ensure_eq!(bench.state(&newer)?, State::Starting);
    ensure_eq!(bench.state(&keys[8])?, State::Idle);
    // The same worker twice in a batch: both are taken in, the last one counts.
    let twice = [
        Beat::new(keys[8].clone(), State::Active),
        Beat::new(keys[8].clone(), State::Processing),
    ];
    ensure_eq!(bench.store.beat(&twice)?, [Answer::Accepted; 2]);
    ensure_eq!(bench.state(&keys[8])?, State::Processing);
    let twice = bench
        .store
        .register(&[bench.registration("twice"), bench.registration("twice")])?;
    ensure!(twice[0].incarnation < twice[1].incarnation, "{twice:?}");
    ensure_eq!(bench.row(&twice[0])?.key, twice[1]);
    Ok(())
}

fn never_back(bench: &Bench<'_>) -> Tried {
    let key = bench.worker("a")?;
    ensure_eq!(bench.beat(aged(&key, 60 * SECOND))?, Answer::Accepted);
    let row = bench.row(&key)?;
    ensure!(
        about(row.heartbeat_age, Duration::ZERO),
        "{:?}",
        row.heartbeat_age
    );
    ensure!(
        about(row.progress_age, Duration::ZERO),
        "{:?}",
        row.progress_age
    );
    let none = Beat {
        heartbeat_age: None,
        progress_age: None,
        ..Beat::new(key.clone(), State::Active)
    };
    ensure_eq!(bench.beat(none)?, Answer::Accepted);
    let row = bench.row(&key)?;
    ensure!(
        about(row.heartbeat_age, Duration::ZERO),
        "{:?}",
        row.heartbeat_age
    );
    Ok(())
}

fn newest_wins(bench: &Bench<'_>) -> Tried {
    let key = bench.start("a")?;
    let first = Beat {
        run_id: Some("run-1".into()),
        task: Some("task".into()),
        progress: Some((1, 2)),
        reason: Some("reason".into()),
        ..Beat::new(key.clone(), State::Processing)
    };
    bench.beat(first)?;
    bench.beat(Beat::new(key.clone(), State::Idle))?;
    let row = bench.row(&key)?;
    ensure_eq!(row.health().state(), State::Idle);
    ensure_eq!((&row.run_id, &row.task, &row.reason), (&None, &None, &None));
    ensure_eq!(row.progress, None);
    Ok(())
}

fn stops(bench: &Bench<'_>) -> Tried {
    let key = bench.worker("a")?;
    let stop = Stop {
        key: key.clone(),
        ending: Ending::Stopped(StopCause::Signal("SIGTERM")),
        ago: 30 * SECOND,
    };
    ensure_eq!(bench.store.stop(&[stop])?, [Answer::Accepted]);
    ensure_eq!(bench.stop(&key, stopped())?, Answer::Ended);
    ensure_eq!(
        bench.beat(Beat::new(key.clone(), State::Idle))?,
        Answer::Ended
    );
    let Health::Stopped { by, ago } = bench.row(&key)?.health() else {
        return Err(Trouble(bench.row(&key)?.health().to_string()));
    };
    ensure_eq!(by, StopCause::Signal("SIGTERM"));
    ensure!(about(Some(ago), 30 * SECOND), "{ago:?} ago");
    let next = bench.worker("a")?;
    ensure_eq!(bench.state(&next)?, State::Active);
    ensure_eq!(bench.row(&next)?.ending, None);
    Ok(())
}

fn deaths(bench: &Bench<'_>) -> Tried {
    let key = bench.start("a")?;
    let beat = Beat {
        run_id: Some("run-9".into()),
        ..Beat::new(key.clone(), State::Processing)
    };
    bench.beat(beat)?;
    let cause = DeathCause::Failed {
        error: "no space left on device".into(),
    };
    ensure_eq!(bench.stop(&key, dead(cause))?, Answer::Accepted);
    let health = bench.row(&key)?.health();
    ensure_eq!(health.state(), State::Dead);
    let text = health.to_string();
    ensure!(
        text.contains("failed: no space left on device") && text.contains("run-9"),
        "{text}"
    );
    Ok(())
}

fn texts(bench: &Bench<'_>) -> Tried {
    let odd = "'; DROP TABLE x; -- \" \\ {a,b} NULL ä 漢 🦀 \t\n%_";
    let key = bench.register(Registration {
        metadata: vec![(odd.into(), odd.into()), ("empty".into(), String::new())],
        ..bench.registration(&odd.replace(['\t', '\n'], ""))
    })?;
    let beat = Beat {
        reason: Some(odd.into()),
        run_id: Some(odd.into()),
        task: Some(odd.repeat(20)),
        ..Beat::new(key.clone(), State::Processing)
    };
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    let row = bench.row(&key)?;
    ensure_eq!(row.run_id.as_deref(), Some(odd));
    ensure_eq!(row.task, Some(odd.repeat(20)));
    ensure_eq!(row.reason.as_deref(), Some(odd));
    ensure!(
        row.metadata.contains(&(odd.into(), odd.into()))
            && row.metadata.contains(&("empty".into(), String::new())),
        "{:?}",
        row.metadata
    );
    Ok(())
}

fn sweeps(bench: &Bench<'_>) -> Tried {
    bench.worker("well")?;
    bench.silent("silent", 91 * SECOND)?;
    bench.silent("nearly", 80 * SECOND)?;
    let stop = bench.silent("stopped", 1_000 * SECOND)?;
    bench.stop(&stop, stopped())?;
    bench.start("starting")?;
    let patient = Registration {
        thresholds: Some(Thresholds::new(600 * SECOND)),
        ..bench.registration("patient")
    };
    let patient = bench.register(patient)?;
    bench.beat(aged(&patient, 500 * SECOND))?;
    let plain = Registration {
        thresholds: None,
        ..bench.registration("plain")
    };
    let plain = bench.register(plain)?;
    bench.beat(aged(&plain, 60 * SECOND))?;
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["silent"]));
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set([]));
    let sharper = Sweep {
        threshold: 50 * SECOND,
        ..Sweep::default()
    };
    let (marked, _) = bench.sweep(&sharper)?;
    ensure_eq!(marked, set(["plain"]));
    let row = bench.row(&plain)?;
    ensure!(
        matches!(row.health(), Health::Dead { ref death, .. } if matches!(death.cause, DeathCause::Lost)),
        "{}",
        row.health()
    );
    Ok(())
}

fn offline(bench: &Bench<'_>) -> Tried {
    let key = bench.silent("a", 100 * SECOND)?;
    let (marked, _) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["a"]));
    ensure_eq!(
        bench.beat(Beat::new(key.clone(), State::Active))?,
        Answer::Ended
    );
    ensure_eq!(
        bench.claim(&key, "run", SECOND)?,
        ClaimAnswer::Refused(Answer::Ended)
    );
    ensure_eq!(bench.state(&key)?, State::Dead);
    let next = bench.worker("a")?;
    ensure_eq!(bench.state(&next)?, State::Active);
    Ok(())
}

fn restarts(bench: &Bench<'_>) -> Tried {
    let before = bench.silent("a", 100 * SECOND)?;
    let key = bench.start("a")?;
    let sweep = Sweep {
        // Found before it restarted.
        killed: vec![before],
        ..Sweep::default()
    };
    let (marked, _) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set([]));
    bench.well(&key)
}

fn watched(bench: &Bench<'_>) -> Tried {
    bench.silent("a", 1_000 * SECOND)?;
    let sweep = |watched_for| Sweep {
        watched_for,
        ..Sweep::default()
    };
    let (marked, _) = bench.sweep(&sweep(Duration::ZERO))?;
    ensure_eq!(marked, set([]));
    let (marked, _) = bench.sweep(&sweep(89 * SECOND))?;
    ensure_eq!(marked, set([]));
    let (marked, _) = bench.sweep(&sweep(91 * SECOND))?;
    ensure_eq!(marked, set(["a"]));
    Ok(())
}

fn dry_run(bench: &Bench<'_>) -> Tried {
    let key = bench.silent("a", 100 * SECOND)?;
    bench.lease(&key, "run", SHORT)?;
    let dry = Sweep {
        dry_run: true,
        ..Sweep::default()
    };
    for _ in 0..2 {
        let (marked, swept) = bench.sweep(&dry)?;
        ensure_eq!(marked, set(["a"]));
        ensure!(swept.group, "the group is not told");
        ensure_eq!(swept.leases, set(["run"]));
    }
    ensure_eq!(bench.row(&key)?.ending, None);
    bench.well(&key)
}

fn killed(bench: &Bench<'_>) -> Tried {
    let key = bench.worker("a")?;
    let other = bench.worker("b")?;
    let sweep = Sweep {
        watched_for: Duration::ZERO,
        killed: vec![key.clone()],
        ..Sweep::default()
    };
    bench.lease(&key, "run", 600 * SECOND)?;
    let (marked, swept) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set(["a"]));
    ensure_eq!(swept.leases, set(["run"]));
    let health = bench.row(&key)?.health().to_string();
    ensure!(
        health.starts_with("dead: its process was killed"),
        "{health}"
    );
    ensure_eq!(bench.state(&other)?, State::Active);
    // A process that is gone believes in nothing.
    bench.lease(&other, "run", SECOND)?;
    Ok(())
}

fn groups(bench: &Bench<'_>) -> Tried {
    let a = bench.silent("a", 100 * SECOND)?;
    let b = bench.worker("b")?;
    let c = bench.worker("c")?;
    bench.stop(&c, stopped())?;
    let (marked, swept) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["a"]));
    ensure!(!swept.group, "one of its workers is well");
    let sweep = Sweep {
        killed: vec![a, b],
        ..Sweep::default()
    };
    let (marked, swept) = bench.sweep(&sweep)?;
    ensure_eq!(marked, set(["b"]));
    ensure!(swept.group, "none of its workers is well");
    Ok(())
}

/// Ages around every limit, with and without limits of its own.
fn one_judge(bench: &Bench<'_>) -> Tried {
    let mut expected = BTreeSet::new();
    let slow = |stale, grace| Thresholds {
        startup_grace: grace,
        ..Thresholds::new(stale)
    };
    let limits = [
        None,
        Some(slow(30 * SECOND, 60 * SECOND)),
        Some(slow(200 * SECOND, Duration::from_millis(20))),
    ];
    for (l, thresholds) in limits.into_iter().enumerate() {
        for age in [
            None,
            Some(0),
            Some(25),
            Some(35),
            Some(85),
            Some(95),
            Some(190),
            Some(210),
        ] {
            for watched_for in [5, 86, 96, 10_000] {
                let name = format!("{l}-{age:?}-{watched_for}");
                let key = bench.register(Registration {
                    thresholds: thresholds.clone(),
                    worker_type: format!("{}-{watched_for}", bench.name),
                    ..bench.registration(&name)
                })?;
                let beat = Beat {
                    heartbeat_age: age.map(Duration::from_secs),
                    progress_age: None,
                    ..Beat::new(key, State::Active)
                };
                bench.beat(beat)?;
            }
        }
    }
    // Longer than the short grace.
    thread::sleep(Duration::from_millis(50));
    let mut marked = BTreeSet::new();
    for watched_for in [5, 86, 96, 10_000] {
        let watched = Duration::from_secs(watched_for);
        for worker in bench.store.list(&WorkerFilter {
            group: Some(bench.name.clone()),
            ..WorkerFilter::default()
        })? {
            let judged = worker.judged(90 * SECOND, watched);
            if worker.ending.is_none() && judged.state().is_offline() {
                expected.insert(worker.key.id.clone());
            }
        }
        let sweep = Sweep {
            watched_for: watched,
            ..Sweep::default()
        };
        let (names, _) = bench.sweep(&sweep)?;
        marked.extend(names.iter().map(|name| bench.id(name)));
        ensure_eq!(marked, expected);
    }
    ensure!(
        expected.len() > 20,
        "only {} were convicted",
        expected.len()
    );
    Ok(())
}

fn lists(bench: &Bench<'_>) -> Tried {
    for name in ["c", "a", "b", "Z", "ä"] {
        bench.start(name)?;
    }
    let other = Registration {
        worker_type: format!("{}-other", bench.name),
        ..bench.registration("other")
    };
    bench.register(other)?;
    let names = |rows: &[StoredWorker]| -> Vec<String> {
        let start = bench.name.len() + 1;
        rows.iter()
            .map(|row| row.key.id[start..].to_owned())
            .collect()
    };
    // In the order of their bytes.
    ensure_eq!(names(&bench.rows()?), ["Z", "a", "b", "c", "ä"]);
    let mut filter = WorkerFilter {
        group: Some(bench.name.clone()),
        limit: 4,
        ..WorkerFilter::default()
    };
    let page = bench.store.list(&filter)?;
    ensure_eq!(names(&page), ["Z", "a", "b", "c"]);
    filter.after = page.last().map(|row| row.key.id.clone());
    ensure_eq!(names(&bench.store.list(&filter)?), ["other", "ä"]);
    Ok(())
}

fn hosts(bench: &Bench<'_>) -> Tried {
    let here = ProcessIdentity {
        boot_id: bench.id("boot"),
        ..ProcessIdentity::current()
    };
    let on = |process: &ProcessIdentity, name: &str| Registration {
        process: Some(process.clone()),
        ..bench.registration(name)
    };
    let key = bench.register(on(&here, "here"))?;
    let over = bench.register(on(&here, "over"))?;
    bench.stop(&over, stopped())?;
    let contained = ProcessIdentity {
        pid_namespace: here.pid_namespace + 1,
        ..here.clone()
    };
    bench.register(on(&contained, "contained"))?;
    bench.start("nowhere")?;
    let found = bench.store.list(&WorkerFilter {
        host: Some(here),
        ..WorkerFilter::default()
    })?;
    let found: Vec<_> = found.into_iter().map(|row| row.key).collect();
    ensure_eq!(found, [key]);
    Ok(())
}

fn summaries(bench: &Bench<'_>) -> Tried {
    bench.worker("well")?;
    bench.start("starting")?;
    bench.silent("silent", 100 * SECOND)?;
    let stop = bench.worker("stopped")?;
    bench.stop(&stop, stopped())?;
    let summary = bench.store.summary()?;
    let stats = summary.stats_by_type.get(&bench.name);
    let stats = stats.ok_or_else(|| Trouble("its type is missing".to_owned()))?;
    ensure_eq!((stats.total, stats.active, stats.dead), (4, 1, 1));
    ensure_eq!(stats.states.get(State::Starting), 1);
    ensure_eq!(stats.states.get(State::Stopped), 1);
    let dead = &summary.dead_workers;
    let silent = dead.iter().find(|dead| dead.id == bench.id("silent"));
    ensure!(
        silent.is_some_and(|dead| dead.health.state() == State::Stale),
        "{silent:?}"
    );
    ensure!(
        summary.groups.contains_key(&bench.name),
        "its group is missing"
    );
    Ok(())
}

fn purges(bench: &Bench<'_>) -> Tried {
    for (name, ago) in [("old", 7_200), ("young", 1_800)] {
        let key = bench.worker(name)?;
        let stop = Stop {
            key,
            ending: stopped(),
            ago: Duration::from_secs(ago),
        };
        bench.store.stop(&[stop])?;
    }
    bench.silent("silent", 7_200 * SECOND)?;
    let purged = bench.store.purge(3_600 * SECOND)?;
    ensure!(purged >= 1, "nobody was purged");
    let left: BTreeSet<_> = bench.rows()?.into_iter().map(|row| row.key.id).collect();
    ensure_eq!(left, ["young", "silent"].map(|name| bench.id(name)).into());
    ensure_eq!(bench.store.purge(Duration::MAX)?, 0);
    let again = bench.worker("old")?;
    ensure_eq!(bench.state(&again)?, State::Active);
    Ok(())
}

fn one_holder(bench: &Bench<'_>) -> Tried {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    let first = bench.lease(&a, "run", 60 * SECOND)?;
    ensure_eq!(bench.claim(&b, "run", SECOND)?, ClaimAnswer::Taken);
    let other = bench.lease(&b, "other", 60 * SECOND)?;
    ensure!(other.fence > first.fence, "{other:?} after {first:?}");
    // An answer may have been lost on its way: who holds it may ask again.
    let again = bench.lease(&a, "run", 60 * SECOND)?;
    ensure!(again.fence > other.fence, "{again:?} after {other:?}");
    ensure!(!bench.renew(&first, SECOND)?, "an older fence was renewed");
    ensure!(!bench.release(&first)?, "an older fence was released");
    ensure!(bench.renew(&again, 60 * SECOND)?, "the holder is refused");
    ensure!(bench.release(&again)?, "the holder is refused");
    let next = bench.lease(&b, "run", SECOND)?;
    ensure!(next.fence > again.fence, "{next:?} after {again:?}");
    Ok(())
}

fn expiry(bench: &Bench<'_>) -> Tried {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    let begun = Instant::now();
    let lease = bench.lease(&a, "run", SHORT)?;
    thread::sleep(SHORT / 2);
    let renewed = bench.renew(&lease, SHORT)?;
    ensure!(renewed || begun.elapsed() >= SHORT, "not renewed in time");
    thread::sleep(SHORT * 3 / 4);
    let taken = bench.claim(&b, "run", SECOND)?;
    ensure!(
        taken == ClaimAnswer::Taken || begun.elapsed() >= SHORT * 3 / 2,
        "{taken:?} before it expired"
    );
    thread::sleep(SHORT);
    ensure!(!bench.renew(&lease, SHORT)?, "renewed after it expired");
    ensure!(!bench.release(&lease)?, "released after it expired");
    if taken == ClaimAnswer::Taken {
        let next = bench.lease(&b, "run", SECOND)?;
        ensure!(next.fence > lease.fence, "{next:?} after {lease:?}");
    }
    Ok(())
}

fn releases(bench: &Bench<'_>) -> Tried {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    let lease = bench.lease(&a, "run", 60 * SECOND)?;
    let stolen = LeaseKey {
        worker: b.clone(),
        ..lease.clone()
    };
    ensure!(!bench.release(&stolen)?, "released by another worker");
    ensure!(!bench.renew(&stolen, SECOND)?, "renewed by another worker");
    ensure!(bench.release(&lease)?, "not released");
    ensure!(!bench.release(&lease)?, "released twice");
    let next = bench.lease(&b, "run", 60 * SECOND)?;
    ensure!(!bench.release(&lease)?, "a late release took another's");
    ensure!(bench.release(&next)?, "not released");
    Ok(())
}

fn leases_of_the_living(bench: &Bench<'_>) -> Tried {
    let a = bench.worker("a")?;
    let lease = bench.lease(&a, "run", 60 * SECOND)?;
    let next = bench.worker("a")?;
    ensure!(!bench.renew(&lease, SECOND)?, "renewed by an older life");
    bench.stop(&next, stopped())?;
    ensure_eq!(
        bench.claim(&next, "run-2", SECOND)?,
        ClaimAnswer::Refused(Answer::Ended)
    );
    Ok(())
}

fn stop_releases(bench: &Bench<'_>) -> Tried {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    bench.lease(&a, "run-1", 600 * SECOND)?;
    bench.lease(&a, "run-2", 600 * SECOND)?;
    bench.stop(&a, stopped())?;
    bench.lease(&b, "run-1", SECOND)?;
    bench.lease(&b, "run-2", SECOND)?;
    Ok(())
}

fn sweep_releases(bench: &Bench<'_>) -> Tried {
    let a = bench.silent("a", 100 * SECOND)?;
    bench.lease(&a, "run-1", 600 * SECOND)?;
    bench.lease(&a, "run-2", 600 * SECOND)?;
    let b = bench.worker("b")?;
    bench.lease(&b, "kept", 600 * SECOND)?;
    let (_, swept) = bench.sweep(&Sweep::default())?;
    ensure_eq!(swept.leases, set(["run-1", "run-2"]));
    let (_, swept) = bench.sweep(&Sweep::default())?;
    ensure_eq!(swept.leases, set([]));
    bench.lease(&b, "run-1", SECOND)?;
    ensure_eq!(
        bench.claim(&b, "run-2", SECOND)? == ClaimAnswer::Taken,
        false
    );
    Ok(())
}

fn claims_show(bench: &Bench<'_>) -> Tried {
    let a = bench.worker("a")?;
    let lease = bench.lease(&a, "run", 60 * SECOND)?;
    let row = bench.row(&a)?;
    ensure_eq!(row.run_id, Some(bench.id("run")));
    let remaining = row.lease_remaining.unwrap_or_default();
    ensure!(
        remaining <= 60 * SECOND && remaining > 40 * SECOND,
        "{remaining:?} remaining"
    );
    bench.release(&lease)?;
    ensure_eq!(bench.row(&a)?.lease_remaining, None);
    Ok(())
}

/// A process that lost its id to another one may still be at work, and believes in its lease until
/// its last heartbeat is as old as its limit.
fn belief(bench: &Bench<'_>) -> Tried {
    let patient = |stale_after| Registration {
        thresholds: Some(Thresholds::new(stale_after)),
        ..bench.registration("a")
    };
    let first = bench.register(patient(3 * SHORT))?;
    bench.well(&first)?;
    let begun = Instant::now();
    bench.lease(&first, "run", 600 * SECOND)?;
    let second = bench.register(patient(SHORT))?;
    bench.well(&second)?;
    let answer = bench.claim(&second, "run", SECOND)?;
    ensure!(
        answer == ClaimAnswer::Taken || begun.elapsed() >= 3 * SHORT,
        "{answer:?} while its holder may believe in it"
    );
    // Its successor's silence says nothing of it.
    thread::sleep(SHORT + SHORT / 4);
    let (_, swept) = bench.sweep(&Sweep::default())?;
    ensure!(
        !swept.leases.contains("run") || begun.elapsed() >= 3 * SHORT,
        "released while its holder may believe in it"
    );
    thread::sleep(2 * SHORT);
    let other = bench.worker("b")?;
    bench.lease(&other, "run", SECOND)?;
    Ok(())
}

fn claims_at_once(bench: &Bench<'_>) -> Tried {
    let workers: Vec<_> = (0..4)
        .map(|n| bench.worker(&n.to_string()))
        .collect::<Result<_, _>>()?;
    for round in 0..20 {
        let run = format!("run-{round}");
        let answers: Vec<_> = thread::scope(|scope| {
            let tries: Vec<_> = workers
                .iter()
                .map(|worker| scope.spawn(|| bench.claim(worker, &run, 60 * SECOND)))
                .collect();
            tries.into_iter().map(|tried| tried.join()).collect()
        });
        let mut granted = 0;
        for answer in answers {
            let Ok(answer) = answer else {
                return Err(Trouble("the store panicked".to_owned()));
            };
            match answer? {
                ClaimAnswer::Granted(_) => granted += 1,
                ClaimAnswer::Taken => {}
                refused => return Err(Trouble(format!("{refused:?}"))),
            }
        }
        ensure_eq!(granted, 1);
    }
    Ok(())
}

fn nothing(bench: &Bench<'_>) -> Tried {
    ensure_eq!(bench.store.register(&[])?.len(), 0);
    ensure_eq!(bench.store.beat(&[])?.len(), 0);
    ensure_eq!(bench.store.stop(&[])?.len(), 0);
    ensure_eq!(bench.store.renew(&[], SECOND)?.len(), 0);
    ensure_eq!(bench.store.release(&[])?.len(), 0);
    Ok(())
}
