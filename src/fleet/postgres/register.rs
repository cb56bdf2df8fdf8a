//! Registration of workers, in one statement.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::batch::{Batch, Fault, Item};
use super::error::{Cause, Failed};
use super::{Connections, column, leases, rows};
use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{Registration, WorkerKey};
use crate::health::Thresholds;

impl Connections {
    /// All of them, or none.
    pub(super) fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        let workers: Vec<&Registration> = workers.iter().collect();
        loop {
            let names = workers.iter().find(|worker| !self.texts.fits(&worker.id));
            if let Some(worker) = names {
                return Err(unnamed(worker));
            }
            let ids = column(&workers, |worker| &*worker.id);
            let locked = || Ok(!self.locked_workers(&ids, true)?.is_empty());
            let failed = match self.patiently("register", || send(self, &workers), locked) {
                Ok(keys) => return Ok(keys),
                Err(failed) => failed,
            };
            return Err(match failed.cause {
                Cause::Locked => leases::locked("register"),
                Cause::Data => refused(&failed.error),
                Cause::Encoding => {
                    let texts = workers
                        .iter()
                        .flat_map(|worker| worker.texts().into_iter().chain(worker.names()));
                    let learned = self.texts.learn(&self.heartbeats, texts);
                    if learned.map_err(|failed| failed.error)? {
                        continue;
                    }
                    refused(&failed.error)
                }
                Cause::Other => failed.error,
            });
        }
    }

    pub(super) fn register_each(
        &self,
        workers: &[Registration],
    ) -> Result<Vec<Result<WorkerKey, Error>>, Error> {
        let workers: Vec<&Registration> = workers.iter().collect();
        let written = Batch {
            connection: &self.heartbeats,
            texts: &self.texts,
            suspects: &self.suspects,
            send: &|workers| send(self, workers),
            locked: &|workers| self.locked_workers(&column(workers, |worker| &*worker.id), true),
        }
        .write(&workers)?;
        let answered = workers.iter().zip(written).map(|(worker, written)| {
            written.map_err(|fault| match fault {
                Fault::Locked => leases::locked("register"),
                Fault::Name => unnamed(worker),
                Fault::Data(why) => refused(&why),
            })
        });
        Ok(answered.collect())
    }
}

fn unnamed(worker: &Registration) -> Error {
    let allowed = "characters that the encoding of the database has";
    Error::invalid("id", format!("{:?}", worker.id), allowed)
}

fn refused(why: &dyn std::fmt::Display) -> Error {
    let allowed = format!("what the database can keep ({why})");
    Error::invalid("registration", "one that the database refuses", allowed)
}

fn send(connections: &Connections, workers: &[&Registration]) -> Result<Vec<WorkerKey>, Failed> {
    if workers.is_empty() {
        return Ok(Vec::new());
    }
    let here = ProcessIdentity::current();
    let own = |worker: &&Registration| worker.info.process.as_ref() == Some(&here);
    let kept = |text: &str| connections.texts.text(text).into_owned();
    let texts = |of: fn(&Registration) -> &str| column(workers, |worker| kept(of(worker)));
    let ids = column(workers, |worker| rows::text(&worker.id));
    let explicit = column(workers, |worker| worker.explicit);
    let types = texts(|worker| &worker.info.worker_type);
    let groups = texts(|worker| &worker.info.group);
    let intervals = column(workers, |worker| rows::limit(worker.info.interval));
    let limit = |of: fn(&Thresholds) -> Option<Duration>| {
        column(workers, |worker| {
            let own = worker.info.thresholds.as_ref()?;
            of(own).map(rows::limit)
        })
    };
    let stale_after = limit(|own| Some(own.stale_after));
    let stall_after = limit(|own| own.stall_after);
    let startup_grace = limit(|own| Some(own.startup_grace));
    let task_deadline = limit(|own| own.task_deadline);
    let progress_after = limit(|own| own.progress_after);
    let beats_only = column(workers, |worker| {
        worker
            .info
            .thresholds
            .as_ref()
            .is_some_and(|own| own.beats_only)
    });
    let metadata = column(workers, |worker| {
        connections.texts.json(&worker.info.metadata)
    });
    let restarts = column(workers, |worker| i64::from(worker.info.restarts));
    let process = |of: fn(&ProcessIdentity) -> i64| {
        column(workers, |worker| worker.info.process.as_ref().map(of))
    };
    let named = |of: fn(&ProcessIdentity) -> &str| {
        column(workers, |worker| {
            worker.info.process.as_ref().map(|own| kept(of(own)))
        })
    };
    let hostnames = named(|process| &process.hostname);
    let pids = process(|process| i64::from(process.pid));
    let started = process(|process| rows::number(process.started));
    let boot_ids = named(|process| &process.boot_id);
    let namespaces = process(|process| rows::number(process.pid_namespace));
    let own: Vec<bool> = workers.iter().map(own).collect();
    let deaths = column(workers, |worker| {
        let death = worker.last_death.as_ref()?;
        let ending = &death.ending;
        let some = |text: &Option<String>| text.as_deref().map(kept);
        let fields = serde_json::json!({
            "cause": kept(&ending.cause),
            "detail": some(&ending.detail),
            "location": some(&ending.location),
            "run_id": some(&death.run_id),
            "task": some(&death.task),
            "age": rows::age(death.age),
        });
        Some(fields.to_string())
    });
    let refuse = column(workers, |worker| worker.refuse_duplicate);
    let answers = connections.heartbeats.try_query(
        "register",
        true,
        "SELECT ord, worker_id, incarnation FROM @schema@.register_workers($1, $2, $3, $4, $5, \
     $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, @session@, $18, $19, $20, $21)",
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
            (&deaths, Type::TEXT_ARRAY),
            (&refuse, Type::BOOL_ARRAY),
            (&task_deadline, Type::INT8_ARRAY),
            (&progress_after, Type::INT8_ARRAY),
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
