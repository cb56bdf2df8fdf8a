//! One statement in a transaction of its own. All limits are the transaction's: nothing of a session
//! is set, because a connection of a proxy or of a pool is used by other clients, too.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

pub(super) type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// How far a transaction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is known of it: a proxy may hold it back.
    Sent,
    /// It has begun.
    Running,
    /// Its statement is done, and its commit is not: it may wait for a standby.
    Committing,
}

/// Begins a transaction. The server's limits are shorter than the caller's, so that the server ends a
/// statement before the caller gives up, and a lock that cannot be had is reported as such. The functions
/// of the schema rely on read committed: each of their steps sees what was committed before.
pub(super) fn begin(limit: Duration) -> String {
    let millis = |part: f64| limit.mul_f64(part).as_millis().max(1);
    let (statement, lock) = (millis(0.9), millis(0.6));
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {statement}; \
         SET LOCAL lock_timeout = {lock}; \
         SET LOCAL idle_in_transaction_session_timeout = {statement}"
    )
}

/// Runs the statement between `begin` and a commit, in one round trip: no lock outlives the call,
/// even if the caller is suspended or cut off. If this is dropped before it is done, `phase` says
/// how far it came.
pub(super) async fn run(
    client: &Client,
    begin: &str,
    sql: &str,
    params: Params<'_>,
    phase: &Cell<Phase>,
) -> Result<Vec<Row>, Error> {
    phase.set(Phase::Sent);
    let mut begin = pin!(client.batch_execute(begin));
    let mut statement = pin!(client.query_typed(sql, params));
    let mut commit = pin!(client.batch_execute("COMMIT"));
    let (mut begun, mut rows, mut committed) = (None, None, None);
    poll_fn(move |cx| {
        // A request is sent when it is first polled. So all are sent at once, in this order.
        poll(&mut begun, begin.as_mut(), cx);
        poll(&mut rows, statement.as_mut(), cx);
        poll(&mut committed, commit.as_mut(), cx);
        phase.set(match (&begun, &rows) {
            // The commit of a transaction that failed rolls it back, and waits for no standby.
            (_, Some(Ok(_))) => Phase::Committing,
            (Some(_), _) => Phase::Running,
            _ => Phase::Sent,
        });
        // All are answered in their order. But another thread may have brought the last answers after
        // an earlier one was asked for here: that one is ready too, and is polled again.
        match (begun.take(), rows.take(), committed.take()) {
            // The first error is the cause of the others.
            (Some(begun), Some(rows), Some(committed)) => {
                Poll::Ready(begun.and(rows).and_then(|rows| committed.map(|()| rows)))
            }
            unfinished => {
                (begun, rows, committed) = unfinished;
                Poll::Pending
            }
        }
    })
    .await
}

fn poll<F: Future>(done: &mut Option<F::Output>, future: Pin<&mut F>, cx: &mut Context<'_>) {
    if done.is_none() {
        if let Poll::Ready(output) = future.poll(cx) {
            *done = Some(output);
        }
    }
}
