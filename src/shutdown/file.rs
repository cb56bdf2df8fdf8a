//! A file that begins a shutdown when it appears or changes.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use super::{Inner, ShutdownCause};
use crate::error::Error;
use crate::registry::core::escalation::Escalate;
use crate::sync::background;
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

/// A thread of its own: a file system that hangs must hold neither signals nor heartbeats.
const THREAD_NAME: &str = "wh-file";
const INTERVAL: Duration = Duration::from_millis(250);

/// A file that is watched.
#[derive(Debug)]
pub(super) struct WatchedFile {
    path: PathBuf,
    /// Its state as far as it began no shutdown: what was there at the installation is from an
    /// earlier life.
    known: FileState,
    /// It can't be read, which was logged.
    failing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum FileState {
    Absent,
    /// What changes when it is written, touched or replaced.
    There {
        modified: Option<SystemTime>,
        len: u64,
        /// Its device and its inode.
        place: (u64, u64),
    },
    /// Why it can't be read.
    Unknown(String),
}

impl FileState {
    fn read(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(file) if file.is_dir() => Self::Unknown("it is a directory".to_owned()),
            Ok(file) => Self::There {
                modified: file.modified().ok(),
                len: file.len(),
                place: place(&file),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Absent,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

#[cfg(unix)]
fn place(file: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

#[cfg(not(unix))]
const fn place(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

impl WatchedFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            known: FileState::read(&path),
            path,
            failing: false,
        }
    }

    /// Whether it appeared, or was written, touched or replaced.
    fn has_come(&mut self) -> bool {
        let found = FileState::read(&self.path);
        if let FileState::Unknown(error) = &found {
            if !self.failing {
                let path = self.name();
                log_line(
                    log::Level::Warn,
                    format_args!("cannot watch file {}: {error}", Printable(&path)),
                );
            }
            self.failing = true;
            return false;
        }
        self.failing = false;
        let comes = match (&self.known, &found) {
            // It may have been there before.
            (FileState::Unknown(_), _) | (_, FileState::Absent) => false,
            (known, found) => known != found,
        };
        self.known = found;
        comes
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// Starts the thread that watches a file until the shutdown begins.
pub(super) fn watch(inner: &Arc<Inner>, mut file: WatchedFile) -> Result<(), Error> {
    let inner = Arc::clone(inner);
    let watching = background::detach(THREAD_NAME, move || {
        while !inner.has_begun() {
            if file.has_come() {
                // Once in a process for each file.
                let name = Box::leak(file.name().into_boxed_str());
                inner.begin_here(ShutdownCause::File(name));
                return;
            }
            // There is no other way to hear of files on every system.
            thread::sleep(INTERVAL);
        }
    });
    watching.map_err(|error| Error::Thread {
        name: THREAD_NAME.to_owned(),
        error,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_after_the_installation_counts() {
        let path = std::env::temp_dir().join(format!("wh-file-{}", std::process::id()));
        let touch = || fs::write(&path, "").unwrap();
        let _ = fs::remove_file(&path);
        let mut absent = WatchedFile::new(path.clone());
        assert!(!absent.has_come());
        touch();
        assert!(absent.has_come());
        let mut stale = WatchedFile::new(path.clone());
        assert!(!stale.has_come(), "from an earlier life");
        fs::write(&path, "now").unwrap();
        assert!(stale.has_come());
        let mut replaced = WatchedFile::new(path.clone());
        fs::remove_file(&path).unwrap();
        assert!(!replaced.has_come());
        touch();
        assert!(replaced.has_come());
        fs::remove_file(&path).unwrap();
        let below = path.join("below");
        touch();
        let mut unknown = WatchedFile::new(below.clone());
        assert!(!unknown.has_come() && unknown.failing);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(&below, "").unwrap();
        assert!(!unknown.has_come(), "nobody knows since when");
        assert!(!unknown.failing);
        fs::write(&below, "now").unwrap();
        assert!(unknown.has_come());
        let mut directory = WatchedFile::new(path.clone());
        assert!(!directory.has_come() && directory.failing);
        fs::remove_dir_all(&path).unwrap();
    }
}
