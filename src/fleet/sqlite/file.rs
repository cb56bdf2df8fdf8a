//! The file that is open is the file at its path. A file that was removed or replaced, or whose `-wal`
//! or `-shm` was, is not shared with other processes any more.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::config::DbConfig;

/// An open connection, and what its files were when it was opened.
pub(super) struct OpenFile {
    pub connection: Connection,
    database: Place,
    /// `-wal` and `-shm`. Other processes create new ones if these are missing.
    helpers: [Place; 2],
    /// It sees no later changes: to be opened again by the next call.
    pub frozen: bool,
    /// Its numbers are at least the time when it was opened.
    pub raised: bool,
}

/// A path, and the file that was there.
struct Place {
    path: PathBuf,
    file: Option<FileId>,
}

/// The device and the number of a file: no other file has both as long as it is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    /// `None` if there is no such file, or files have no numbers here.
    pub(super) fn at(path: &Path) -> Option<Self> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let metadata = fs::metadata(path).ok()?;
            Some(Self(metadata.dev(), metadata.ino()))
        }
        #[cfg(not(unix))]
        {
            // A file can't be removed there while it is open.
            let _ = path;
            None
        }
    }
}

impl Place {
    fn look(path: PathBuf) -> Self {
        let file = FileId::at(&path);
        Self { path, file }
    }

    fn is_as_before(&self) -> bool {
        self.file.is_none() || self.file == FileId::at(&self.path)
    }
}

impl OpenFile {
    /// `before`: the file at the path before it was opened. An error says why another one may be open.
    pub(super) fn new(
        connection: Connection,
        path: &Path,
        before: Option<FileId>,
        frozen: bool,
    ) -> Result<Self, String> {
        // SQLite puts these files next to the one that a symbolic link names.
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let helper = |suffix: &str| {
            let mut name = OsString::from(&real);
            name.push(suffix);
            Place::look(name.into())
        };
        let open = Self {
            connection,
            database: Place::look(path.to_owned()),
            helpers: [helper("-wal"), helper("-shm")],
            frozen,
            raised: false,
        };
        if before.is_some() && before != open.database.file {
            return Err("the file was replaced while it was opened".to_owned());
        }
        Ok(open)
    }

    /// Whether no process has it open, and its content is complete in this one file.
    pub(super) fn is_alone(path: &Path) -> bool {
        let mut wal = OsString::from(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
        wal.push("-wal");
        fs::metadata(PathBuf::from(wal)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Whether other processes use the same files. An error says which file is another one, or gone.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut places = std::iter::once(&self.database).chain(&self.helpers);
        let Some(other) = places.find(|place| !place.is_as_before()) else {
            return Ok(());
        };
        let path = other.path.display();
        Err(match FileId::at(&other.path) {
            Some(_) => format!("{path} was replaced while it was open"),
            None => format!("{path} was removed while it was open"),
        })
    }
}

impl Drop for OpenFile {
    /// The last connection of a database removes its `-wal` and `-shm` by their names. Those of another
    /// database must stay.
    fn drop(&mut self) {
        if !self.database.is_as_before() {
            let keep = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            let _ = self.connection.set_db_config(keep, true);
        }
    }
}

/// The name of the network file system that the file is on. Locks and shared memory there are not
/// shared with other hosts, so two workers could hold a run.
pub(super) fn network(path: &Path) -> io::Result<Option<&'static str>> {
    #[cfg(target_os = "linux")]
    {
        let folder = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let place = if path.exists() {
            path
        } else {
            folder.unwrap_or(Path::new("."))
        };
        let found = nix::sys::statfs::statfs(place)?.filesystem_type();
        Ok(network_name(found.0 as i64))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        Ok(None)
    }
}

/// By the number that statfs(2) reports. The numbers of 9P and FUSE are also those of file systems of
/// one host.
#[cfg(target_os = "linux")]
fn network_name(number: i64) -> Option<&'static str> {
    // The type is signed or not, and of 32 or 64 bits, depending on the platform.
    match number & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x00c3_6400 => Some("Ceph"),
        0x0bd0_0bd0 => Some("Lustre"),
        _ => None,
    }
}

/// A name for SQLite that makes it read the file alone, as one that no process writes.
pub(super) fn immutable(path: &Path) -> Option<String> {
    let mut uri = "file:".to_owned();
    for byte in fs::canonicalize(path).ok()?.to_str()?.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                uri.push(char::from(byte));
            }
            byte => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    Some(uri)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        let names = [0x6969, -0xac_b2be, 0xff53_4d42, 0xef53].map(network_name);
        assert_eq!(names, [Some("NFS"), Some("SMB"), Some("SMB"), None]);
        assert_eq!(network(Path::new("fleet.db")).unwrap(), None);
        assert!(network(Path::new("/not/mounted/fleet.db")).is_err());
    }
}
