//! Registration of workers, in one statement.

use tokio_postgres::types::Type;

use super::connection::Connection;
use super::{column, rows};
use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{Registration, WorkerKey};

pub(super) fn register(
    connection: &Connection,
    workers: &[Registration],
) -> Result<Vec<WorkerKey>, Error> {
    if workers.is_empty() {
        return Ok(Vec::new());
    }
    let here = ProcessIdentity::current();
    let own = |worker: &&Registration| worker.info.process.as_ref() == Some(&here);
    let texts = |of: fn(&Registration) -> &str| column(workers, |worker| rows::text(of(worker)));
    let ids = texts(|worker| &worker.id);
    let explicit = column(workers, |worker| worker.explicit);
    let types = texts(|worker| &worker.info.worker_type);
    let groups = texts(|worker| &worker.info.group);
    let intervals = column(workers, |worker| rows::limit(worker.info.interval));
    let stale_after = column(workers, |worker| {
        worker
            .info
            .thresholds
            .as_ref()
            .map(|own| rows::limit(own.stale_after))
    });
    let stall_after = column(workers, |worker| {
        worker
            .info
            .thresholds
            .as_ref()?
            .stall_after
            .map(rows::limit)
    });
    let startup_grace = column(workers, |worker| {
        worker
            .info
            .thresholds
            .as_ref()
            .map(|own| rows::limit(own.startup_grace))
    });
    let beats_only = column(workers, |worker| {
        worker
            .info
            .thresholds
            .as_ref()
            .is_some_and(|own| own.beats_only)
    });
    let metadata = column(workers, |worker| rows::json(&worker.info.metadata));
    let restarts = column(workers, |worker| i64::from(worker.info.restarts));
    let process = |of: fn(&ProcessIdentity) -> i64| {
        column(workers, |worker| worker.info.process.as_ref().map(of))
    };
    let named = |of: fn(&ProcessIdentity) -> &str| {
        column(workers, |worker| {
            worker.info.process.as_ref().map(|own| rows::text(of(own)))
        })
    };
    let hostnames = named(|process| &process.hostname);
    let pids = process(|process| i64::from(process.pid));
    let started = process(|process| rows::number(process.started));
    let boot_ids = named(|process| &process.boot_id);
    let namespaces = process(|process| rows::number(process.pid_namespace));
    let own: Vec<bool> = workers.iter().map(|worker| own(&worker)).collect();
    let answers = connection.query(
        "register",
        true,
        "SELECT ord, worker_id, incarnation FROM @schema@.register_workers($1, $2, $3, $4, $5, \
     $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, @session@)",
        &[
            (&ids, Type::TEXT_ARRAY),
            (&explicit, Type::BOOL_ARRAY),
            (&types, Type::TEXT_ARRAY),
            (&groups, Type::TEXT_ARRAY),
            (&intervals, Type::INT8_ARRAY),
            (&stale_after, Type::INT8_ARRAY),
            (&stall_after, Type::INT8_ARRAY),
            (&startup_grace, Type::INT8_ARRAY),
            (&beats_only, Type::BOOL_ARRAY),
            (&metadata, Type::TEXT_ARRAY),
            (&restarts, Type::INT8_ARRAY),
            (&hostnames, Type::TEXT_ARRAY),
            (&pids, Type::INT8_ARRAY),
            (&started, Type::INT8_ARRAY),
            (&boot_ids, Type::TEXT_ARRAY),
            (&namespaces, Type::INT8_ARRAY),
            (&own, Type::BOOL_ARRAY),
        ],
    )?;
    let mut keys = answers
        .iter()
        .map(|row| {
            let key = WorkerKey {
                id: row.try_get(1)?,
                incarnation: rows::bits(row.try_get(2)?),
            };
            Ok((row.try_get(0)?, key))
        })
        .collect::<Result<Vec<(i64, WorkerKey)>, _>>()
        .map_err(|error| rows::unreadable("register", &error))?;
    keys.sort_unstable_by_key(|(ord, _)| *ord);
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}
