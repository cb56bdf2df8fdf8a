//! Registration, heartbeats, ends, lists.

use super::*;

pub(super) fn listed(bench: &Bench<'_>) -> Checked {
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
        task_deadline: Some(3_600 * SECOND),
        progress_after: Some(600 * SECOND),
        startup_grace: 7 * SECOND,
        beats_only: false,
    };
    let mut registration = bench.registration("a");
    registration.info.interval = 15 * SECOND;
    registration.info.thresholds = Some(thresholds);
    registration.info.metadata = vec![("version".into(), "1.4.2".into()), ("a".into(), "b".into())];
    registration.info.restarts = 3;
    registration.info.process = Some(process);
    let mut info = registration.info.clone();
    let key = bench.register(registration)?;
    ensure_eq!(key.id, bench.id("a"));
    let mut beat = aged(&key, 2 * SECOND);
    beat.progress_age = Some(20 * SECOND);
    beat.status = WorkerStatus {
        state: State::Processing,
        reason: Some("because".into()),
        run_id: Some("run-1".into()),
        task: Some("Researching".into()),
        progress: Some((3, 10)),
        last_location: Some("src/jobs.rs:42".into()),
        beats: 1 << 40,
        stack: None,
    };
    beat.metadata = vec![("a".into(), "c".into()), ("load".into(), "0.5".into())];
    let status = beat.status.clone();
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    let mut row = bench.row(&key)?;
    ensure_eq!(row.key, key);
    // In any order.
    row.info.metadata.sort_unstable();
    let metadata = [("a", "c"), ("load", "0.5"), ("version", "1.4.2")];
    info.metadata = metadata
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    ensure_eq!(row.info, info);
    ensure_eq!(row.status, status);
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
    ensure_eq!(row.lease_remaining, None);
    ensure_eq!(row.ending, None);
    ensure_eq!(row.health().state(), State::Processing);
    Ok(())
}

pub(super) fn stacks(bench: &Bench<'_>) -> Checked {
    let key = bench.worker("a")?;
    let report = |state, stack: Option<&str>| {
        let mut beat = Beat::new(key.clone(), state);
        beat.status.stack = stack.map(str::to_owned);
        ensure_eq!(bench.beat(beat)?, Answer::Accepted);
        Ok::<_, Violation>(bench.row(&key)?.status.stack)
    };
    let first = ">   0: shop::stock::reserve (src/stock.rs:88)\n    1: main";
    let kept = Some(first.to_owned());
    ensure_eq!(report(State::Stalled, None)?, None);
    ensure_eq!(report(State::Stalled, Some(first))?, kept);
    // Heartbeats do not repeat it.
    for state in [State::Stalled, State::Unobserved, State::Stale] {
        ensure_eq!(report(state, None)?, kept);
    }
    ensure_eq!(report(State::Active, None)?, None);
    ensure_eq!(report(State::Stalled, None)?, None);
    ensure_eq!(report(State::Stalled, Some("b"))?, Some("b".to_owned()));
    // Of the next episode, there is none.
    ensure_eq!(report(State::Stalled, Some(""))?, None);
    // A worker that ends while it hangs: where it hung.
    ensure_eq!(report(State::Stalled, Some(first))?, kept);
    ensure_eq!(bench.stop(&key, stopped())?, Answer::Accepted);
    ensure_eq!(bench.row(&key)?.status.stack, kept);
    let next = bench.worker("a")?;
    ensure_eq!(bench.row(&next)?.status.stack, None);
    Ok(())
}

pub(super) fn starting(bench: &Bench<'_>) -> Checked {
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

pub(super) fn fencing(bench: &Bench<'_>) -> Checked {
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

fn process(pid: u32) -> Option<ProcessIdentity> {
    Some(ProcessIdentity {
        pid,
        ..ProcessIdentity::current()
    })
}

pub(super) fn generated_ids(bench: &Bench<'_>) -> Checked {
    let generated = |name, process| {
        bench.register_with(name, |worker| {
            worker.explicit = false;
            worker.info.process = process;
        })
    };
    let first = generated("a", process(1))?;
    ensure_eq!(first.id, bench.id("a"));
    let elsewhere = generated("a", process(2))?;
    ensure!(elsewhere.id != first.id, "two processes share {first}");
    let again = generated("a", process(1))?;
    ensure_eq!(again.id, first.id);
    let ids = [generated("b", None)?.id, generated("b", None)?.id];
    ensure!(ids[0] != ids[1], "two unknown processes may share an id");
    Ok(())
}

pub(super) fn unknown(bench: &Bench<'_>) -> Checked {
    let absent = WorkerKey::new(bench.id("unknown"), 1);
    ensure_eq!(
        bench.beat(Beat::new(absent.clone(), State::Idle))?,
        Answer::Unknown
    );
    ensure_eq!(bench.stop(&absent, stopped())?, Answer::Unknown);
    ensure_eq!(
        bench.claim(&absent, "run", SECOND)?,
        ClaimAnswer::Refused(Answer::Unknown)
    );
    let lease = LeaseKey::new(absent, bench.id("run"), 1);
    ensure!(
        !bench.renew(&lease, SECOND)?,
        "renewed for an unknown worker"
    );
    ensure!(!bench.release(&lease)?, "released for an unknown worker");
    ensure_eq!(bench.rows()?.len(), 0);
    let mut known = bench.worker("a")?;
    known.incarnation += 1_000_000_000;
    ensure_eq!(bench.beat(Beat::new(known, State::Idle))?, Answer::Unknown);
    Ok(())
}

pub(super) fn batches(bench: &Bench<'_>) -> Checked {
    let names: Vec<_> = (0..300).map(|n| format!("{n:03}")).collect();
    let registrations: Vec<_> = names.iter().map(|name| bench.registration(name)).collect();
    let keys = bench.store.register(&registrations)?;
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
    beats[7].key.id = bench.id("unknown");
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
    // The same worker twice in a batch: both are accepted, the last one counts.
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

pub(super) fn never_back(bench: &Bench<'_>) -> Checked {
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

pub(super) fn newest_wins(bench: &Bench<'_>) -> Checked {
    let key = bench.start("a")?;
    let mut first = Beat::new(key.clone(), State::Processing);
    first.status.run_id = Some("run-1".into());
    first.status.task = Some("task".into());
    first.status.progress = Some((1, 2));
    first.status.reason = Some("reason".into());
    first.status.last_location = Some("src/jobs.rs:42".into());
    bench.beat(first)?;
    bench.beat(Beat::new(key.clone(), State::Idle))?;
    let row = bench.row(&key)?;
    ensure_eq!(row.health().state(), State::Idle);
    ensure_eq!(row.status, WorkerStatus::new(State::Idle));
    Ok(())
}

pub(super) fn stops(bench: &Bench<'_>) -> Checked {
    let key = bench.worker("a")?;
    let stop = Stop {
        key: key.clone(),
        ending: StoredEnding::stopped(&StopCause::Signal("SIGTERM")),
        ago: 30 * SECOND,
    };
    ensure_eq!(bench.store.stop(&[stop])?, [Answer::Accepted]);
    ensure_eq!(bench.stop(&key, stopped())?, Answer::Ended);
    ensure_eq!(
        bench.beat(Beat::new(key.clone(), State::Idle))?,
        Answer::Ended
    );
    let Health::Stopped { by, ago } = bench.row(&key)?.health() else {
        return Err(Violation(bench.row(&key)?.health().to_string()));
    };
    ensure_eq!(by, StopCause::Signal("SIGTERM"));
    ensure!(about(Some(ago), 30 * SECOND), "{ago:?} ago");
    let next = bench.worker("a")?;
    ensure_eq!(bench.state(&next)?, State::Active);
    ensure_eq!(bench.row(&next)?.ending, None);
    Ok(())
}

pub(super) fn deaths(bench: &Bench<'_>) -> Checked {
    let key = bench.start("a")?;
    let mut beat = Beat::new(key.clone(), State::Processing);
    beat.status.run_id = Some("run-9".into());
    bench.beat(beat)?;
    let cause = DeathCause::Failed {
        error: "no space left on device".into(),
    };
    ensure_eq!(
        bench.stop(&key, StoredEnding::dead(&cause))?,
        Answer::Accepted
    );
    let health = bench.row(&key)?.health();
    ensure_eq!(health.state(), State::Dead);
    let text = health.to_string();
    ensure!(
        text.contains("failed: no space left on device") && text.contains("run-9"),
        "{text}"
    );
    Ok(())
}

pub(super) fn panics(bench: &Bench<'_>) -> Checked {
    for (name, place) in [("a", Some("src/jobs.rs:19:5")), ("b", None)] {
        let key = bench.worker(name)?;
        let cause = DeathCause::Panicked {
            message: "no module named server".into(),
            location: place.map(str::to_owned),
            thread: "jobs".into(),
            backtrace: None,
        };
        let ending = StoredEnding::dead(&cause);
        ensure_eq!(bench.stop(&key, ending.clone())?, Answer::Accepted);
        let row = bench.row(&key)?;
        ensure_eq!(row.ending.as_ref().map(|(ending, _)| ending), Some(&ending));
        let Health::Dead { death, .. } = row.health() else {
            return Err(Violation(row.health().to_string()));
        };
        let DeathCause::Panicked {
            message, location, ..
        } = &death.cause
        else {
            return Err(Violation(death.cause.to_string()));
        };
        ensure_eq!(message, "no module named server");
        ensure_eq!(location.as_deref(), place);
    }
    // A later incarnation does not inherit it.
    let next = bench.worker("a")?;
    ensure_eq!(bench.row(&next)?.ending, None);
    Ok(())
}

pub(super) fn texts(bench: &Bench<'_>) -> Checked {
    let odd = "'; DROP TABLE x; -- \" \\ {a,b} NULL ä 漢 🦀 \t\n%_";
    let key = bench.register_with(&odd.replace(['\t', '\n'], ""), |worker| {
        worker.info.metadata = vec![(odd.into(), odd.into()), ("empty".into(), String::new())];
    })?;
    let mut beat = Beat::new(key.clone(), State::Processing);
    beat.status.reason = Some(odd.into());
    beat.status.run_id = Some(odd.into());
    beat.status.task = Some(odd.repeat(20));
    let status = beat.status.clone();
    ensure_eq!(bench.beat(beat)?, Answer::Accepted);
    let row = bench.row(&key)?;
    ensure_eq!(row.status, status);
    let metadata = &row.info.metadata;
    ensure!(
        metadata.contains(&(odd.into(), odd.into()))
            && metadata.contains(&("empty".into(), String::new())),
        "{metadata:?}"
    );
    Ok(())
}

pub(super) fn lists(bench: &Bench<'_>) -> Checked {
    for name in ["c", "a", "b", "Z", "ä"] {
        bench.start(name)?;
    }
    bench.register_with("other", |worker| worker.info.worker_type.push_str("-other"))?;
    let names = |rows: &[StoredWorker]| -> Vec<String> {
        let start = bench.name.len() + 1;
        rows.iter()
            .map(|row| row.key.id[start..].to_owned())
            .collect()
    };
    // In the order of their bytes.
    ensure_eq!(names(&bench.rows()?), ["Z", "a", "b", "c", "ä"]);
    let mut filter = WorkerFilter::new().group(&bench.name).limit(4);
    let page = bench.store.list(&filter)?;
    ensure_eq!(names(&page), ["Z", "a", "b", "c"]);
    filter.after = page.last().map(|row| row.key.id.clone());
    ensure_eq!(names(&bench.store.list(&filter)?), ["other", "ä"]);
    Ok(())
}

pub(super) fn hosts(bench: &Bench<'_>) -> Checked {
    let here = ProcessIdentity {
        boot_id: bench.id("boot"),
        ..ProcessIdentity::current()
    };
    let start = |process: &ProcessIdentity, name: &str| {
        bench.register_with(name, |worker| worker.info.process = Some(process.clone()))
    };
    let key = start(&here, "here")?;
    let over = start(&here, "over")?;
    bench.stop(&over, stopped())?;
    let contained = ProcessIdentity {
        pid_namespace: here.pid_namespace + 1,
        ..here.clone()
    };
    start(&contained, "contained")?;
    bench.start("nowhere")?;
    let found = bench.store.list(&WorkerFilter::new().host(here))?;
    let found: Vec<_> = found.into_iter().map(|row| row.key).collect();
    ensure_eq!(found, [key]);
    Ok(())
}

pub(super) fn empty_batches(bench: &Bench<'_>) -> Checked {
    ensure_eq!(bench.store.register(&[])?.len(), 0);
    ensure_eq!(bench.store.beat(&[])?.len(), 0);
    ensure_eq!(bench.store.stop(&[])?.len(), 0);
    ensure_eq!(bench.store.renew(&[], SECOND)?.len(), 0);
    ensure_eq!(bench.store.release(&[])?.len(), 0);
    Ok(())
}

pub(super) fn found(bench: &Bench<'_>) -> Checked {
    // Ids that come just before and just behind it in a list.
    let names = ["b", "a", "b-1", "b0", "c"];
    let keys: Vec<_> = names
        .iter()
        .map(|name| bench.start(name))
        .collect::<Result<_, _>>()?;
    for key in &keys {
        let found = bench.store.find(&key.id)?;
        ensure_eq!(found.map(|worker| worker.key), Some(key.clone()));
    }
    for name in ["", "b-", "b-0", "d", "B", "\u{e9}", "\u{10ffff}"] {
        let found = bench.store.find(&bench.id(name))?;
        ensure!(found.is_none(), "{found:?} found by {name:?}");
    }
    Ok(())
}

pub(super) fn each_registered(bench: &Bench<'_>) -> Checked {
    let all = ["a", "b", "c"].map(|name| bench.registration(name));
    let keys = bench.store.register_each(&all)?;
    ensure_eq!(keys.len(), all.len());
    for (registration, key) in all.iter().zip(keys) {
        ensure_eq!(key?.id, registration.id);
    }
    ensure_eq!(bench.rows()?.len(), all.len());
    Ok(())
}

pub(super) fn mixed_batches(bench: &Bench<'_>) -> Checked {
    let known = bench.worker("b")?;
    let holder = bench.worker("d")?;
    bench.lease(&holder, "run", 3_600 * SECOND)?;
    let generated = |name: &str| {
        let mut registration = bench.registration(name);
        registration.explicit = false;
        registration
    };
    let mut foreign = generated("c");
    foreign.info.process = process(1);
    let foreign = bench.register(foreign)?;
    let died = StoredEnding::dead(&DeathCause::Exited);
    ensure_eq!(bench.stop(&known, died)?, Answer::Accepted);
    let mut taken = generated("c");
    taken.info.process = process(2);
    let mut last = bench.registration("d");
    last.info.group = format!("{}-last", bench.name);
    let batch = [
        last.clone(),
        bench.registration("new"),
        taken,
        bench.registration("b"),
        bench.registration("a"),
        bench.registration("d"),
        last,
    ];
    let keys = bench.store.register(&batch)?;
    ensure_eq!(keys.len(), batch.len());
    for (n, (registration, key)) in batch.iter().zip(&keys).enumerate() {
        ensure_eq!((n, key.id == registration.id), (n, n != 2));
    }
    // The last of an id counts.
    ensure!(keys[0].incarnation < keys[5].incarnation, "{keys:?}");
    ensure!(keys[5].incarnation < keys[6].incarnation, "{keys:?}");
    ensure!(holder.incarnation < keys[0].incarnation, "{keys:?}");
    ensure!(known.incarnation < keys[3].incarnation, "{keys:?}");
    let row = bench.row(&keys[6])?;
    ensure_eq!(
        (row.key, row.info.group),
        (keys[6].clone(), format!("{}-last", bench.name))
    );
    ensure_eq!(bench.row(&foreign)?.key, foreign);
    ensure_eq!(bench.state(&keys[3])?, State::Starting);
    // The earlier life may believe in its lease for as long as its heartbeat lasts, and no longer.
    ensure_eq!(
        bench.claim(&keys[1], "run", 60 * SECOND)?,
        ClaimAnswer::Taken
    );
    ensure_eq!(bench.rows()?.len(), 6);
    Ok(())
}

/// A store keeps as much of them as it can.
pub(super) fn odd_values(bench: &Bench<'_>) -> Checked {
    const LONG: Duration = Duration::from_secs(9 * 365 * 86_400);
    let well = bench.worker("well")?;
    let mut registration = bench.registration("odd");
    registration.info.interval = LONG;
    registration.info.restarts = u32::MAX;
    registration.info.metadata = vec![("\0 \u{1f980} name".into(), "\0".into())];
    let mut thresholds = Thresholds::new(LONG);
    thresholds.stall_after = Some(LONG);
    registration.info.thresholds = Some(thresholds);
    let key = bench.register(registration)?;
    let mut odd = Beat::new(key.clone(), State::Processing);
    odd.heartbeat_age = Some(Duration::MAX);
    odd.progress_age = Some(Duration::MAX);
    odd.status.task = Some("\0 \u{1f980} \u{10ffff} \u{202e}".into());
    odd.status.reason = Some("x".repeat(100_000));
    odd.status.progress = Some((u64::MAX, u64::MAX));
    odd.status.beats = u64::MAX;
    let beats = [odd, Beat::new(well.clone(), State::Idle)];
    let answers = bench.store.beat(&beats)?;
    ensure_eq!(answers[1], Answer::Accepted);
    ensure_eq!(bench.state(&well)?, State::Idle);
    ensure_eq!(bench.rows()?.len(), 2);
    bench.sweep(&Sweep::default())?;
    ensure_eq!(bench.state(&well)?, State::Idle);
    let mut ending = stopped();
    ending.cause = "\0".into();
    ending.detail = Some("\0 \u{1f980}".into());
    let mut stop = Stop::new(key, ending);
    stop.ago = Duration::MAX;
    let stops = [stop, Stop::new(well.clone(), stopped())];
    ensure_eq!(bench.store.stop(&stops)?[1], Answer::Accepted);
    ensure_eq!(bench.state(&well)?, State::Stopped);
    Ok(())
}
