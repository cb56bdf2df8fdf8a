//! Opens a file to read it, without the right to write it.

use rusqlite::{Connection, OpenFlags};

use super::SqliteStore;
use super::file::{self, OpenFile};
use super::setup::{APPLICATION_ID, is_older, is_usable, versions};
use crate::error::Error;

impl SqliteStore {
    /// Returns also whether later changes are not seen.
    pub(super) fn open_to_read(&self) -> Result<(Connection, bool), Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags);
        let connection = connection.map_err(|error| self.cannot_open(error))?;
        let busy = connection.busy_timeout(self.busy_timeout);
        busy.map_err(|error| self.cannot_open(error))?;
        match versions(&connection) {
            Ok(found) => {
                self.check_version(found)?;
                Ok((connection, false))
            }
            Err(error) => {
                // Without a writer there is no -shm, and it may not be created.
                let alone = OpenFile::is_alone(&self.path);
                let Some(uri) = file::immutable(&self.path).filter(|_| alone) else {
                    return Err(self.cannot_open(error));
                };
                let flags = flags | OpenFlags::SQLITE_OPEN_URI;
                let opened = Connection::open_with_flags(uri, flags)
                    .and_then(|connection| Ok((versions(&connection)?, connection)));
                let (found, connection) = opened.map_err(|error| self.cannot_open(error))?;
                self.check_version(found)?;
                Ok((connection, true))
            }
        }
    }

    fn check_version(&self, found: (i32, i32)) -> Result<(), Error> {
        match found {
            found if is_usable(found) => Ok(()),
            (0, 0) => Err(self.foreign("it is not set up")),
            (APPLICATION_ID, older) if is_older(older) => Err(self.foreign(
                "it was made by an older version of this library; the next process that writes to \
                 it brings it up to date",
            )),
            (APPLICATION_ID, _) => {
                Err(self.foreign("it was made by a newer version of this library"))
            }
            _ => Err(self.foreign("it belongs to another program")),
        }
    }
}
