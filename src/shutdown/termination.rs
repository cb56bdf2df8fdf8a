//! The termination message of a container: why it ended, for `kubectl describe`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::sync::last_words;
use crate::sync::log::log_line;
use crate::sync::printable::prefix;

/// Kubernetes keeps this many bytes.
const LONGEST: usize = 4_096;
const PATIENCE: Duration = Duration::from_millis(500);

/// How final a message is. A later one replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Finality {
    Nothing,
    Begin,
    Report,
    Forced,
}

/// The file, if one is configured.
#[derive(Debug)]
pub(super) struct TerminationMessage {
    file: Option<Arc<File>>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The last message that was written.
    last: Mutex<Finality>,
}

impl TerminationMessage {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        let file = path.map(|path| File {
            path,
            last: Mutex::new(Finality::Nothing),
        });
        Self {
            file: file.map(Arc::new),
        }
    }

    /// Writes the message, on a thread that is left behind if the file blocks.
    pub(super) fn write(&self, finality: Finality, message: &str) {
        let Some(file) = self.file.clone() else {
            return;
        };
        let message = prefix(message, LONGEST).to_owned();
        let write = move || {
            if let Err(error) = file.write(finality, &message) {
                log_line(
                    log::Level::Warn,
                    format_args!("cannot write the termination message: {error}"),
                );
            }
        };
        last_words::within("wh-termination", PATIENCE, write);
    }
}

impl File {
    fn write(&self, finality: Finality, message: &str) -> std::io::Result<()> {
        // A predecessor that hangs holds it.
        let Some(mut last) = self.last.try_lock_for(PATIENCE) else {
            return Ok(());
        };
        // Kubernetes mounts the file. Elsewhere there is none, and another kind of file may block.
        if *last >= finality || !self.path.metadata().is_ok_and(|file| file.is_file()) {
            return Ok(());
        }
        let file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.path);
        file?.write_all(message.as_bytes())?;
        *last = finality;
        Ok(())
    }
}
