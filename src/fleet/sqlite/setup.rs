//! Sets a file up, and brings one of an older version up to date.

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::SqliteStore;
use crate::error::Error;

const SCHEMA: &str = concat!(
    include_str!("schema.sql"),
    include_str!("sweeps.sql"),
    include_str!("events.sql"),
);
/// For files of older versions.
const LATER_TABLES: &str = concat!(include_str!("sweeps.sql"), include_str!("events.sql"));
/// Distinguishes these files from those of other programs.
pub(super) const APPLICATION_ID: i32 = 0x7768_6274;
/// In the field `user_version` of the file. A later version that only adds to the tables writes the
/// oldest version that may still use them into the upper 16 bits, so that processes of both work
/// during an upgrade.
pub(super) const SCHEMA_VERSION: i32 = 6;
/// The oldest version that may use the tables: later ones only added columns and tables.
const OLDEST_USER: i32 = 4;
const USER_VERSION: i32 = OLDEST_USER << 16 | SCHEMA_VERSION;
/// Columns that files of older versions lack, by table.
const LATER_COLUMNS: [(&str, &str, &str); 9] = [
    ("workers", "ending_location", "TEXT"),
    ("workers", "withdrawn", "TEXT"),
    ("leases", "attempt", "INTEGER"),
    ("workers", "last_death_at", "INTEGER"),
    ("workers", "last_death", "TEXT"),
    ("workers", "task_deadline_ns", "INTEGER"),
    ("workers", "progress_after_ns", "INTEGER"),
    ("workers", "last_location", "TEXT"),
    ("workers", "stack", "TEXT"),
];
/// The write-ahead log grows while another process reads for long. It is cut to this size afterwards.
const LARGEST_WAL: i64 = 8 * 1024 * 1024;

impl SqliteStore {
    pub(super) fn open_to_write(&self) -> Result<Connection, Error> {
        let failed = |error| self.cannot_open(error);
        // Without SQLITE_OPEN_URI: a path is never taken for a URI.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags).map_err(failed)?;
        connection.busy_timeout(self.busy_timeout).map_err(failed)?;
        // Without a lock, so that readers don't wait for another process that is writing.
        if !is_usable(versions(&connection).map_err(failed)?) {
            self.check(&mut connection)?;
        }
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| connection.pragma_update(None, "journal_size_limit", LARGEST_WAL))
            .map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(32);
        // Creates the -wal and -shm that all processes share.
        connection
            .query_row("SELECT last FROM numbers", [], |_| Ok(()))
            .map_err(failed)?;
        Ok(connection)
    }

    /// Creates the tables if there are none; refuses files of other programs.
    fn check(&self, connection: &mut Connection) -> Result<(), Error> {
        let failed = |error| self.cannot_open(error);
        // Immediate: if several processes start at once, one of them creates the tables.
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let pragma = |name| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let application = pragma("application_id").map_err(failed)?;
        let version = pragma("user_version").map_err(failed)?;
        match (application, version) {
            found if is_usable(found) => {}
            (APPLICATION_ID, older) if is_older(older) => add_columns(&transaction)
                .and_then(|()| transaction.execute_batch(LATER_TABLES))
                .and_then(|()| transaction.pragma_update(None, "user_version", USER_VERSION))
                .map_err(failed)?,
            (0, 0) => {
                let tables: i64 = transaction
                    .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
                    .map_err(failed)?;
                if tables > 0 {
                    return Err(self.foreign("it belongs to another program"));
                }
                transaction
                    .execute_batch(SCHEMA)
                    .and_then(|()| {
                        transaction.pragma_update(None, "application_id", APPLICATION_ID)
                    })
                    .and_then(|()| transaction.pragma_update(None, "user_version", USER_VERSION))
                    .map_err(failed)?;
            }
            (APPLICATION_ID, _) => {
                return Err(self.foreign("it was made by a newer version of this library"));
            }
            _ => return Err(self.foreign("it belongs to another program")),
        }
        transaction.commit().map_err(failed)
    }
}

/// Whether a file has the tables of this version, or of a newer one that this version may use.
pub(super) fn is_usable((application, version): (i32, i32)) -> bool {
    application == APPLICATION_ID
        && (version == USER_VERSION
            || (version & 0xffff > SCHEMA_VERSION
                && (1..=SCHEMA_VERSION).contains(&(version >> 16))))
}

/// Whether a file has the tables of an older version, which this one brings up to date. Above its lower
/// 16 bits, the number of some has the oldest version that may use it.
pub(super) const fn is_older(version: i32) -> bool {
    let own = version & 0xffff;
    own >= 1 && own <= SCHEMA_VERSION && version != USER_VERSION
}

/// The application that a file belongs to, and the version of its tables.
pub(super) fn versions(connection: &Connection) -> rusqlite::Result<(i32, i32)> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

/// Brings the tables of an older version up to date.
fn add_columns(transaction: &Connection) -> rusqlite::Result<()> {
    for (table, column, column_type) in LATER_COLUMNS {
        let exists = "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)";
        let exists: bool = transaction.query_row(exists, [table, column], |row| row.get(0))?;
        if !exists {
            let add = format!("ALTER TABLE {table} ADD COLUMN {column} {column_type}");
            transaction.execute_batch(&add)?;
        }
    }
    Ok(())
}
