//! Registration, heartbeats, ends, lists.

use super::*;

pub(super) fn told_is_listed(bench: &Bench<'_>) -> Tried {
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

pub(super) fn starting(bench: &Bench<'_>) -> Tried {
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

pub(super) fn fencing(bench: &Bench<'_>) -> Tried {
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

pub(super) fn generated_ids(bench: &Bench<'_>) -> Tried {
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

pub(super) fn unknown(bench: &Bench<'_>) -> Tried {
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

pub(super) fn batches(bench: &Bench<'_>) -> Tried {
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

pub(super) fn never_back(bench: &Bench<'_>) -> Tried {
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

pub(super) fn newest_wins(bench: &Bench<'_>) -> Tried {
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

pub(super) fn stops(bench: &Bench<'_>) -> Tried {
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

pub(super) fn deaths(bench: &Bench<'_>) -> Tried {
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

pub(super) fn texts(bench: &Bench<'_>) -> Tried {
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

pub(super) fn lists(bench: &Bench<'_>) -> Tried {
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

pub(super) fn hosts(bench: &Bench<'_>) -> Tried {
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

pub(super) fn nothing(bench: &Bench<'_>) -> Tried {
    ensure_eq!(bench.store.register(&[])?.len(), 0);
    ensure_eq!(bench.store.beat(&[])?.len(), 0);
    ensure_eq!(bench.store.stop(&[])?.len(), 0);
    ensure_eq!(bench.store.renew(&[], SECOND)?.len(), 0);
    ensure_eq!(bench.store.release(&[])?.len(), 0);
    Ok(())
}
