//! Leases: claims, renewals and releases.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::types::{ToSql, Type};

use super::batch::{Batch, Fault};
use super::connection::Connection;
use super::error::{Cause, Failed};
use super::writes::names;
use super::{Connections, column, one, rows};
use crate::error::{Error, StoreErrorKind};
use crate::fleet::shapes::{Answer, Claim, ClaimAnswer, LeaseKey, Renewal};

/// How long a claim or a registration waits for a row that another transaction locks.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Between two attempts, during which the connection is free for other callers.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl Connections {
    /// Repeats a statement that waits only briefly for a lock, so that it does not occupy the
    /// connection all the time. `locked`: whether another transaction locks its rows. The limit of a wait
    /// holds for other locks too, such as that of a table which grows on a slow disk: these are waited for
    /// until the time limit of a statement.
    pub(super) fn patiently<T>(
        &self,
        operation: &'static str,
        send: impl Fn() -> Result<T, Failed>,
        locked: impl Fn() -> Result<bool, Failed>,
    ) -> Result<T, Failed> {
        let begun = Instant::now();
        let longest = self.heartbeats.statement_timeout().max(LONGEST_WAIT);
        loop {
            let cause = match send() {
                Ok(done) => return Ok(done),
                Err(failed) if failed.cause != Cause::Locked => return Err(failed),
                Err(failed) => failed.cause,
            };
            let waited = begun.elapsed() + RETRY_INTERVAL;
            if waited >= longest || (waited >= LONGEST_WAIT && locked()?) {
                let error = self::locked(operation);
                return Err(Failed { cause, error });
            }
            thread::sleep(RETRY_INTERVAL);
        }
    }

    pub(super) fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        let send = || {
            self.leases.try_query(
                "claim",
                true,
                "SELECT answer, fence FROM @schema@.claim_run($1, $2, $3, $4, $5)",
                &[
                    (&rows::text(&claim.worker.id), Type::TEXT),
                    (&rows::ordered(claim.worker.incarnation), Type::INT8),
                    (&rows::text(&claim.run_id), Type::TEXT),
                    (&rows::limit(claim.ttl), Type::INT8),
                    (&claim.attempt.map(rows::number), Type::INT8),
                ],
            )
        };
        let answer = loop {
            if !self.texts.fits(&claim.worker.id) {
                return Ok(ClaimAnswer::Refused(Answer::Unknown));
            }
            if !self.texts.fits(&claim.run_id) {
                let allowed = "characters that the encoding of the database has";
                let run_id = format!("{:?}", claim.run_id);
                return Err(Error::invalid("run_id", run_id, allowed));
            }
            match self.patiently("claim", send, || Ok(true)) {
                Ok(answer) => break answer,
                Err(failed) if failed.cause == Cause::Encoding => {
                    let texts = [&*claim.worker.id, &*claim.run_id];
                    let learned = self.texts.learn(&self.leases, texts);
                    if !learned.map_err(|failed| failed.error)? {
                        return Err(failed.error);
                    }
                }
                Err(failed) => return Err(failed.error),
            }
        };
        match one::<&str>(&answer, "claim")? {
            "taken" => Ok(ClaimAnswer::Taken),
            "granted" => {
                let fence = answer[0].try_get::<_, i64>(1);
                let fence = fence.map_err(|error| rows::unreadable("claim", &error))?;
                Ok(ClaimAnswer::Granted(rows::bits(fence)))
            }
            refused => Ok(ClaimAnswer::Refused(rows::answer(refused))),
        }
    }

    pub(super) fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        match self.withdrawn(claims) {
            // One of them at fault must not keep others.
            Err(failed) if claims.len() > 1 && failed.cause != Cause::Other => {
                let each: Vec<_> = claims.chunks(1).map(|claim| self.withdraw(claim)).collect();
                let each: Result<Vec<_>, _> = each.into_iter().collect();
                Ok(each?.concat())
            }
            Err(failed) => match failed.cause {
                Cause::Locked => Err(locked("withdraw")),
                // The claim could not be stored either.
                Cause::Encoding | Cause::Data => Ok(vec![false; claims.len()]),
                Cause::Other => Err(failed.error),
            },
            Ok(withdrawn) => Ok(withdrawn),
        }
    }

    fn withdrawn(&self, claims: &[Claim]) -> Result<Vec<bool>, Failed> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let incarnation = |claim: &Claim| rows::ordered(claim.worker.incarnation);
        let released = self.leases.try_query(
            "withdraw",
            true,
            "SELECT ord FROM @schema@.withdraw_claims($1, $2, $3, $4) ord",
            &[
                (
                    &column(claims, |claim| rows::text(&claim.worker.id)),
                    Type::TEXT_ARRAY,
                ),
                (&column(claims, incarnation), Type::INT8_ARRAY),
                (
                    &column(claims, |claim| rows::text(&claim.run_id)),
                    Type::TEXT_ARRAY,
                ),
                (
                    &column(claims, |claim| claim.attempt.map(rows::number)),
                    Type::INT8_ARRAY,
                ),
            ],
        )?;
        let places: HashSet<i64> = released
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()
            .map_err(|error| rows::unreadable("withdraw", &error))?;
        Ok((1..)
            .take(claims.len())
            .map(|place| places.contains(&place))
            .collect())
    }

    pub(super) fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<Renewal>, Error> {
        let sql = "SELECT f FROM @schema@.renew_leases($1, $2, $3, $4, $5) f";
        let renewed = self.in_one_batch("renew", sql, leases, Some(rows::limit(ttl)))?;
        let renewal = |answer: Result<bool, Fault>| match answer {
            Ok(held) => Renewal::from(held),
            Err(Fault::Locked) => Renewal::Busy,
            Err(Fault::Name | Fault::Data(_)) => Renewal::Lost,
        };
        Ok(renewed.into_iter().map(renewal).collect())
    }

    pub(super) fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        let sql = "SELECT f FROM @schema@.release_leases($1, $2, $3, $4) f";
        let released = self.in_one_batch("release", sql, leases, None)?;
        if released.contains(&Err(Fault::Locked)) {
            return Err(locked("release"));
        }
        let mut seen = HashSet::new();
        let answers = leases.iter().zip(released);
        // A lease that is listed twice is released once.
        Ok(answers
            .map(|(lease, released)| released.unwrap_or(false) && seen.insert(lease.fence))
            .collect())
    }

    /// Whether each of these leases is among those that the statement returns.
    fn in_one_batch(
        &self,
        operation: &'static str,
        sql: &str,
        leases: &[LeaseKey],
        ttl: Option<i64>,
    ) -> Result<Vec<Result<bool, Fault>>, Error> {
        let mut sorted: Vec<(usize, &LeaseKey)> = leases.iter().enumerate().collect();
        sorted.sort_unstable_by_key(|(_, lease)| &lease.run_id);
        let (places, sorted): (Vec<usize>, Vec<&LeaseKey>) = sorted.into_iter().unzip();
        let written = Batch {
            connection: self.for_leases(ttl),
            texts: &self.texts,
            suspects: &self.suspects_among_leases,
            send: &|leases| self.fences(operation, sql, leases, ttl),
            locked: &|leases| self.locked_leases(leases),
        }
        .write(&sorted)?;
        let mut answers: Vec<_> = places.into_iter().zip(written).collect();
        answers.sort_unstable_by_key(|(place, _)| *place);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// A claim that waits must not cost the process its leases, so renewals go with heartbeats.
    const fn for_leases(&self, ttl: Option<i64>) -> &Connection {
        match ttl {
            Some(_) => &self.heartbeats,
            None => &self.leases,
        }
    }

    fn fences(
        &self,
        operation: &'static str,
        sql: &str,
        leases: &[&LeaseKey],
        ttl: Option<i64>,
    ) -> Result<Vec<bool>, Failed> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let ids = column(leases, |lease| rows::text(&lease.worker.id));
        let incarnations = column(leases, |lease| rows::ordered(lease.worker.incarnation));
        let runs = column(leases, |lease| rows::text(&lease.run_id));
        let fences = column(leases, |lease| rows::ordered(lease.fence));
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&ids, Type::TEXT_ARRAY),
            (&incarnations, Type::INT8_ARRAY),
            (&runs, Type::TEXT_ARRAY),
            (&fences, Type::INT8_ARRAY),
        ];
        if let Some(ttl) = &ttl {
            params.push((ttl, Type::INT8));
        }
        // A release that succeeded, and is sent again, would find nothing to release.
        let idempotent = ttl.is_some();
        let found = self
            .for_leases(ttl)
            .try_query(operation, idempotent, sql, &params)?;
        let found: HashSet<i64> = found
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()
            .map_err(|error| rows::unreadable(operation, &error))?;
        let is_found = |lease: &&LeaseKey| found.contains(&rows::ordered(lease.fence));
        Ok(leases.iter().map(is_found).collect())
    }

    /// The runs whose leases other transactions lock.
    fn locked_leases(&self, leases: &[&LeaseKey]) -> Result<HashSet<String>, Failed> {
        let runs = column(leases, |lease| rows::text(&lease.run_id));
        let ids = column(leases, |lease| rows::text(&lease.worker.id));
        let locked = self.leases.try_query(
            "find locked leases",
            true,
            "SELECT run FROM @schema@.locked_leases($1, $2) run",
            &[(&runs, Type::TEXT_ARRAY), (&ids, Type::TEXT_ARRAY)],
        )?;
        names(&locked)
    }
}

/// Nothing was done, because another client locks a record.
pub(super) fn locked(operation: &'static str) -> Error {
    let message = "another client of the database locks its record";
    Error::store_kind(operation, StoreErrorKind::Busy, message)
}
