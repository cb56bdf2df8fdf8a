//! The session of a process, whose end proves that the process is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::PgError;
use super::open::OpenConnection;
use super::settings::Settings;

/// A session that the store's tables know.
pub(super) struct Session {
    pub id: i64,
    epoch: String,
    _only: Only,
}

/// One session at a time: workers that refer to two of them would be gone with either.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<AtomicBool>);

struct Only(Arc<AtomicBool>);

impl Drop for Only {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Unchanged,
    /// Its record was deleted, or is from before a crash of the server.
    Gone,
    /// The statement ran in a session of another connection.
    Pooled,
}

impl Sessions {
    /// Opens the store's session on this connection, unless it has one on any. Returns whether it was
    /// opened.
    pub(super) fn open(
        &self,
        open: &mut OpenConnection,
        settings: &Settings,
    ) -> Result<bool, PgError> {
        if open.session.is_some() || self.0.swap(true, Ordering::AcqRel) {
            return Ok(false);
        }
        let only = Only(Arc::clone(&self.0));
        let sql = settings.sql("SELECT @schema@.open_session(), @schema@.server_epoch()");
        let rows = open.query(settings, &sql, &[])?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        // NULL if the server does not show when the session began.
        let id: Option<i64> = row.try_get(0)?;
        let epoch = row.try_get(1)?;
        open.own_session = id.is_some();
        open.session = id.map(|id| Session {
            id,
            epoch,
            _only: only,
        });
        Ok(open.session.is_some())
    }
}

impl Session {
    pub(super) fn check(
        &self,
        open: &OpenConnection,
        settings: &Settings,
    ) -> Result<Check, PgError> {
        let id = self.id;
        let sql = format!(
            "SELECT current_setting('worker_heartbeat.session', true) \
             IS NOT DISTINCT FROM '{id}', @schema@.is_session({id}), @schema@.server_epoch()"
        );
        let rows = open.query(settings, &settings.sql(&sql), &[])?;
        let Some(row) = rows.first() else {
            return Ok(Check::Gone);
        };
        let (is_own, is_recorded): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        let epoch: String = row.try_get(2)?;
        Ok(if !is_own {
            Check::Pooled
        } else if is_recorded && epoch == self.epoch {
            Check::Unchanged
        } else {
            Check::Gone
        })
    }

    /// The process goes on, so the end of this session must prove nothing: its record is deleted.
    pub(super) fn forget(&self, settings: &Settings) -> String {
        let id = self.id;
        settings.sql(&format!(
            "DELETE FROM @schema@.sessions WHERE session_id = {id}"
        ))
    }
}
