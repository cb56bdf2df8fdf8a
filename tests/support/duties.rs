//! Duties of this crate's stores, beyond those of every store.

use std::time::Duration;

use worker_heartbeat::fleet::{
    Answer, Beat, ProcessIdentity, Registration, Stop, StoredDeath, StoredEnding, StoredWorker,
    WorkerFilter, WorkerKey,
};
use worker_heartbeat::{DeathCause, Error, HeartbeatStore, State, StopCause};

fn register(store: &dyn HeartbeatStore, registration: &Registration) -> Result<WorkerKey, Error> {
    Ok(store
        .register(std::slice::from_ref(registration))?
        .remove(0))
}

fn row(store: &dyn HeartbeatStore) -> StoredWorker {
    store.list(&WorkerFilter::new()).unwrap().remove(0)
}

fn end(store: &dyn HeartbeatStore, key: &WorkerKey, ending: StoredEnding) {
    let stop = Stop::new(key.clone(), ending).ago(Duration::from_millis(1));
    assert_eq!(store.stop(&[stop]).unwrap(), [Answer::Accepted]);
}

fn failed(error: &str) -> StoredEnding {
    let error = error.to_owned();
    StoredEnding::dead(&DeathCause::Failed { error })
}

/// The only worker of the store dies, stops and restarts.
pub fn last_deaths_are_kept(store: &dyn HeartbeatStore) {
    let registration = Registration::new("poller", "a");
    let mut key = register(store, &registration).unwrap();
    assert_eq!(row(store).last_death, None);
    let mut beat = Beat::new(key.clone(), State::Processing);
    beat.status.run_id = Some("run-1".into());
    beat.status.task = Some("Researching ä".into());
    store.beat(&[beat]).unwrap();
    let panic = DeathCause::Panicked {
        message: "no module named server".into(),
        location: Some("src/jobs.rs:19:5".into()),
        thread: "jobs".into(),
        backtrace: None,
    };
    end(store, &key, StoredEnding::dead(&panic));
    assert_eq!(row(store).last_death, None, "it is its ending");
    // Through restarts, and ends in good order.
    for _ in 0..3 {
        key = register(store, &registration).unwrap();
        let worker = row(store);
        assert_eq!(worker.ending, None);
        let death = worker.last_death.expect("it is kept");
        assert_eq!(death.ending, StoredEnding::dead(&panic));
        assert_eq!(death.run_id.as_deref(), Some("run-1"));
        assert_eq!(death.task.as_deref(), Some("Researching ä"));
        assert!(death.age >= Duration::from_millis(1) && death.age < Duration::from_secs(600));
        assert!(death.cause().to_string().contains("no module named server"));
        end(store, &key, StoredEnding::stopped(&StopCause::Stop));
        assert!(row(store).last_death.is_some());
    }
    key = register(store, &registration).unwrap();
    end(store, &key, failed("no disk"));
    key = register(store, &registration).unwrap();
    assert_eq!(row(store).last_death.unwrap().ending, failed("no disk"));
    // A death that did not reach the store comes with the registration; an older one does not count.
    for (error, age, expected) in [
        ("a later one", Duration::ZERO, "a later one"),
        ("an older one", Duration::from_secs(3_600), "a later one"),
    ] {
        let mut next = registration.clone();
        next.last_death = Some(StoredDeath::new(failed(error), age));
        register(store, &next).unwrap();
        assert_eq!(row(store).last_death.unwrap().ending, failed(expected));
    }
    assert_eq!(
        store.beat(&[Beat::new(key, State::Idle)]).unwrap(),
        [Answer::Superseded]
    );
}

/// The only worker of the store is claimed by several processes.
pub fn duplicates_are_refused_on_request(store: &dyn HeartbeatStore) {
    let of_process = |pid, refuse| {
        let mut process = ProcessIdentity::current();
        process.pid = pid;
        process.hostname = "pod-1".into();
        let mut registration = Registration::new("poller", "a");
        registration.info.process = Some(process);
        registration.refuse_duplicate = refuse;
        registration
    };
    let first = register(store, &of_process(4_000_001, true)).unwrap();
    for _ in 0..3 {
        let error = register(store, &of_process(4_000_002, true)).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("4000001") && text.contains("pod-1"), "{text}");
    }
    let mut unknown = Registration::new("poller", "a");
    unknown.refuse_duplicate = true;
    assert!(register(store, &unknown).is_err());
    let well = Beat::new(first.clone(), State::Active);
    assert_eq!(store.beat(&[well]).unwrap(), [Answer::Accepted]);
    // The others of a batch are registered.
    let mut other = of_process(4_000_002, true);
    other.id = "b".into();
    let both = [of_process(4_000_002, true), other];
    let answers = store.register_each(&both).unwrap();
    assert!(answers[0].is_err() && answers[1].is_ok(), "{answers:?}");
    // A restart in the process, and a process that takes over on purpose.
    let again = register(store, &of_process(4_000_001, true)).unwrap();
    assert!(again.incarnation > first.incarnation);
    let taken = register(store, &of_process(4_000_002, false)).unwrap();
    assert!(register(store, &of_process(4_000_001, true)).is_err());
    // A worker that is stale, or has ended, holds no id.
    let mut silent = Beat::new(taken.clone(), State::Active);
    silent.heartbeat_age = Some(Duration::from_secs(3_600));
    store.beat(&[silent]).unwrap();
    let next = register(store, &of_process(4_000_001, true)).unwrap();
    end(store, &next, failed("no disk"));
    register(store, &of_process(4_000_002, true)).unwrap();
}
