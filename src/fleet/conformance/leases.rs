//! Leases and their fences.

use super::*;

pub(super) fn one_holder(bench: &Bench<'_>) -> Checked {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    let first = bench.lease(&a, "run", 60 * SECOND)?;
    ensure_eq!(bench.claim(&b, "run", SECOND)?, ClaimAnswer::Taken);
    let other = bench.lease(&b, "other", 60 * SECOND)?;
    ensure!(other.fence > first.fence, "{other:?} after {first:?}");
    // The holder may claim again: the answer may have been lost.
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

/// A store may ignore attempts: then a repeated claim gets a new fence, as any claim of the holder.
pub(super) fn given_up(bench: &Bench<'_>) -> Checked {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    let attempt = |worker: &WorkerKey, attempt| {
        Claim::new(worker.clone(), bench.id("run"), 60 * SECOND).attempt(attempt)
    };
    let claim = attempt(&a, 7);
    let ClaimAnswer::Granted(first) = bench.store.claim(&claim)? else {
        return Err(Violation("a free run is not granted".to_owned()));
    };
    let ClaimAnswer::Granted(again) = bench.store.claim(&claim)? else {
        return Err(Violation("a repeated claim is not granted".to_owned()));
    };
    ensure!(again >= first, "{again} after {first}");
    let lease = LeaseKey::new(a.clone(), bench.id("run"), again);
    ensure!(bench.renew(&lease, 60 * SECOND)?, "the holder is refused");
    ensure_eq!(bench.store.withdraw(std::slice::from_ref(&claim))?, [true]);
    ensure!(
        !bench.renew(&lease, SECOND)?,
        "renewed after it was given up"
    );
    let other = bench.lease(&b, "run", 60 * SECOND)?;
    ensure!(other.fence > again, "{other:?} after {lease:?}");
    ensure_eq!(bench.store.withdraw(std::slice::from_ref(&claim))?, [false]);
    ensure!(bench.renew(&other, 60 * SECOND)?, "the holder is refused");
    ensure!(bench.release(&other)?, "the holder is refused");
    if again == first {
        // The store knows attempts. The request arrives late.
        ensure_eq!(bench.store.claim(&claim)?, ClaimAnswer::Taken);
        // One that is withdrawn before it arrives.
        let claims = [attempt(&a, 8), attempt(&b, 8)];
        ensure_eq!(bench.store.withdraw(&claims[..1])?, [false]);
        ensure_eq!(bench.store.claim(&claims[0])?, ClaimAnswer::Taken);
        let granted = bench.store.claim(&claims[1])?;
        ensure!(matches!(granted, ClaimAnswer::Granted(_)), "{granted:?}");
    }
    Ok(())
}

pub(super) fn expiry(bench: &Bench<'_>) -> Checked {
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

pub(super) fn releases(bench: &Bench<'_>) -> Checked {
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
    ensure!(
        !bench.release(&lease)?,
        "a late release took the lease of another worker"
    );
    ensure!(bench.release(&next)?, "not released");
    Ok(())
}

pub(super) fn leases_of_the_living(bench: &Bench<'_>) -> Checked {
    let a = bench.worker("a")?;
    let lease = bench.lease(&a, "run", 60 * SECOND)?;
    let next = bench.worker("a")?;
    ensure!(
        !bench.renew(&lease, SECOND)?,
        "renewed by an older incarnation"
    );
    bench.stop(&next, stopped())?;
    ensure_eq!(
        bench.claim(&next, "run-2", SECOND)?,
        ClaimAnswer::Refused(Answer::Ended)
    );
    Ok(())
}

pub(super) fn stop_releases(bench: &Bench<'_>) -> Checked {
    let (a, b) = (bench.worker("a")?, bench.worker("b")?);
    bench.lease(&a, "run-1", 600 * SECOND)?;
    bench.lease(&a, "run-2", 600 * SECOND)?;
    bench.stop(&a, stopped())?;
    bench.lease(&b, "run-1", SECOND)?;
    bench.lease(&b, "run-2", SECOND)?;
    Ok(())
}

pub(super) fn sweep_releases(bench: &Bench<'_>) -> Checked {
    let a = bench.brief("a")?;
    bench.lease(&a, "run-1", 600 * SECOND)?;
    bench.lease(&a, "run-2", 600 * SECOND)?;
    thread::sleep(SHORT * 5 / 4);
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

pub(super) fn claims_show(bench: &Bench<'_>) -> Checked {
    let a = bench.worker("a")?;
    let lease = bench.lease(&a, "run", 60 * SECOND)?;
    let row = bench.row(&a)?;
    ensure_eq!(row.status.run_id, Some(bench.id("run")));
    let remaining = row.lease_remaining.unwrap_or_default();
    ensure!(
        remaining <= 60 * SECOND && remaining > 40 * SECOND,
        "{remaining:?} remaining"
    );
    bench.release(&lease)?;
    ensure_eq!(bench.row(&a)?.lease_remaining, None);
    Ok(())
}

/// A process whose id another one took may still be at work, and believes in its lease until its last
/// heartbeat is as old as its limit.
pub(super) fn belief(bench: &Bench<'_>) -> Checked {
    let start = |stale_after| {
        bench.register_with("a", |worker| {
            worker.info.thresholds = Some(Thresholds::new(stale_after));
        })
    };
    let first = start(3 * SHORT)?;
    bench.well(&first)?;
    let begun = Instant::now();
    bench.lease(&first, "run", 600 * SECOND)?;
    let second = start(SHORT)?;
    bench.well(&second)?;
    let answer = bench.claim(&second, "run", SECOND)?;
    ensure!(
        answer == ClaimAnswer::Taken || begun.elapsed() >= 3 * SHORT,
        "{answer:?} while its holder may believe in it"
    );
    // The silence of its successor proves nothing about it.
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

pub(super) fn claims_at_once(bench: &Bench<'_>) -> Checked {
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
                return Err(Violation("the store panicked".to_owned()));
            };
            match answer? {
                ClaimAnswer::Granted(_) => granted += 1,
                ClaimAnswer::Taken => {}
                refused => return Err(Violation(format!("{refused:?}"))),
            }
        }
        ensure_eq!(granted, 1);
    }
    Ok(())
}

/// From its registration on, a worker believes for as long as it may be silent, however old its first
/// heartbeat is: the answer to that may be lost.
pub(super) fn belief_from_the_start(bench: &Bench<'_>) -> Checked {
    let begun = Instant::now();
    let key = bench.register_with("a", |worker| {
        worker.info.thresholds = Some(Thresholds::new(2 * SHORT));
    })?;
    bench.lease(&key, "run", 600 * SECOND)?;
    bench.beat(aged(&key, 100 * SECOND))?;
    let (marked, swept) = bench.sweep(&Sweep::default())?;
    ensure_eq!(marked, set(["a"]));
    ensure!(
        swept.leases.is_empty() || begun.elapsed() >= 2 * SHORT,
        "released while its holder may believe in it"
    );
    let other = bench.worker("b")?;
    let answer = bench.claim(&other, "run", SECOND)?;
    ensure!(
        answer == ClaimAnswer::Taken || begun.elapsed() >= 2 * SHORT,
        "{answer:?} while its holder may believe in it"
    );
    thread::sleep(2 * SHORT);
    if answer == ClaimAnswer::Taken {
        bench.lease(&other, "run", SECOND)?;
    }
    Ok(())
}
