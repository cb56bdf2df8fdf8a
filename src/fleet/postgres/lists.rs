//! Reads of workers.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::error::{Cause, Failed};
use super::{Connections, rows};
use crate::error::Error;
use crate::fleet::shapes::{StoredWorker, WorkerFilter};

impl Connections {
    pub(super) fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let mut filter = filter.clone();
        let wanted = filter.after.clone();
        loop {
            // Nothing has a name with a character that the database lacks.
            let names = [&filter.worker_type, &filter.group, &filter.search];
            if !names
                .into_iter()
                .flatten()
                .all(|name| self.texts.fits(name))
            {
                return Ok(Vec::new());
            }
            if let Some(after) = &mut filter.after {
                after.truncate(self.texts.fitting_prefix(after).len());
            }
            let mut page = match self.page(&filter) {
                Ok(page) => page,
                Err(failed) => {
                    let texts = [
                        &filter.worker_type,
                        &filter.group,
                        &filter.search,
                        &filter.after,
                    ];
                    self.learn_from(failed, texts.into_iter().flatten().map(String::as_str))?;
                    continue;
                }
            };
            if filter.after == wanted {
                return Ok(page);
            }
            // It begins too early, after the prefix.
            let last = page.last().map(|worker| worker.key.id.clone());
            page.retain(|worker| Some(&worker.key.id) > wanted.as_ref());
            if last.is_none() || !page.is_empty() {
                return Ok(page);
            }
            filter.after = last;
        }
    }

    /// Returns if the statement may be repeated, without characters that the database lacks.
    pub(super) fn learn_from<'a>(
        &self,
        failed: Failed,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Error> {
        if failed.cause != Cause::Encoding {
            return Err(failed.error);
        }
        match self.texts.learn(&self.scans, texts) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed.error),
            Err(failed) => Err(failed.error),
        }
    }

    fn page(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Failed> {
        let host = filter.host.as_ref();
        let process = filter.process.as_ref();
        let sql = format!(
            "SELECT {} FROM @schema@.worker_heartbeats w \
             WHERE @schema@.is_asked_for(w, $1, $2, $11) \
             AND ($12::text[] IS NULL OR @schema@.worker_state(w) = ANY ($12)) \
             AND ($3 IS NULL OR w.ended_at IS NULL AND w.pid IS NOT NULL AND w.boot_id = $3 \
             AND w.pid_namespace = $4) \
             AND ($7 IS NULL OR w.ended_at IS NULL AND w.pid = $7 AND w.process_started = $8 \
             AND w.boot_id = $9 AND w.pid_namespace = $10) \
             AND ($5 IS NULL OR w.worker_id > $5) ORDER BY w.worker_id LIMIT $6",
            rows::COLUMNS
        );
        let found = self.scans.try_query(
            "list",
            true,
            &sql,
            &[
                (&clean(&filter.worker_type), Type::TEXT),
                (&clean(&filter.group), Type::TEXT),
                (&host.map(|host| host.boot_id.as_str()), Type::TEXT),
                (
                    &host.map(|host| rows::number(host.pid_namespace)),
                    Type::INT8,
                ),
                (&clean(&filter.after), Type::TEXT),
                (&limit(filter), Type::INT8),
                (&process.map(|process| i64::from(process.pid)), Type::INT8),
                (
                    &process.map(|process| rows::number(process.started)),
                    Type::INT8,
                ),
                (&process.map(|process| process.boot_id.as_str()), Type::TEXT),
                (
                    &process.map(|process| rows::number(process.pid_namespace)),
                    Type::INT8,
                ),
                (&search(filter), Type::TEXT),
                (&states(filter), Type::TEXT_ARRAY),
            ],
        )?;
        Ok(workers(&found)?)
    }

    pub(super) fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        let sql = format!(
            "SELECT {} FROM @schema@.worker_heartbeats w WHERE w.worker_id = $1",
            rows::COLUMNS
        );
        while self.texts.fits(id) {
            let found = self
                .scans
                .try_query("find", true, &sql, &[(&rows::text(id), Type::TEXT)]);
            match found {
                Ok(found) => {
                    let worker = found.first().map(rows::worker).transpose();
                    return worker.map_err(|error| rows::unreadable("find", &error));
                }
                Err(failed) => self.learn_from(failed, [id])?,
            }
        }
        Ok(None)
    }
}

pub(super) fn workers(found: &[Row]) -> Result<Vec<StoredWorker>, Error> {
    let workers: Result<Vec<_>, _> = found.iter().map(rows::worker).collect();
    workers.map_err(|error| rows::unreadable("list", &error))
}

pub(super) fn clean(text: &Option<String>) -> Option<String> {
    text.as_deref().map(|text| rows::text(text).into_owned())
}

pub(super) fn search(filter: &WorkerFilter) -> Option<String> {
    clean(&filter.search).map(|text| text.to_ascii_lowercase())
}

pub(super) fn states(filter: &WorkerFilter) -> Option<Vec<&'static str>> {
    let names = || filter.states.iter().map(|state| state.name()).collect();
    (!filter.states.is_empty()).then(names)
}

pub(super) fn limit(filter: &WorkerFilter) -> i64 {
    i64::try_from(filter.limit).unwrap_or(i64::MAX)
}
