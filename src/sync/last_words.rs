//! Messages that must not be lost: written to the log, or to `stderr` if the log does not take them.

use std::io::{self, Write};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::clock::Patience;
use crate::sync::background;
use crate::sync::catch::catch;

const THREAD_NAME: &str = "wh-words";
/// The time limit of the log, and then of `stderr`.
const PATIENCE: Duration = Duration::from_millis(500);

/// Logs a message as an error. Returns when it is written, or after a second: a log implementation may
/// block, and so may `stderr`.
pub(crate) fn write(message: &str) {
    let log = message.to_owned();
    let taken = within(THREAD_NAME, PATIENCE, move || write_log(&log));
    if taken != Some(true) {
        let line = format!("worker-heartbeat: {message}\n");
        let written = in_background(THREAD_NAME, {
            let line = line.clone();
            move || write_stderr(&line)
        });
        match written {
            Some(written) => drop(answer(&written, PATIENCE)),
            // No thread can be started.
            None => write_stderr_nonblocking(&line),
        }
    }
}

/// Runs this on a thread that is left behind if it takes longer. `None` then, and if no thread can be
/// started.
pub(crate) fn within<T: Send + 'static>(
    name: &str,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    answer(&in_background(name, work)?, patience)
}

/// Runs this on a thread that can be left behind. `None` if no thread can be started.
fn in_background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<Receiver<T>> {
    let (sender, receiver) = bounded(1);
    let spawned = background::detach(name, move || {
        // The channel has room.
        let _ = sender.try_send(work());
    });
    spawned.is_ok().then_some(receiver)
}

fn answer<T>(receiver: &Receiver<T>, patience: Duration) -> Option<T> {
    let patience = Patience::new(patience);
    while let Some(slice) = patience.slice() {
        match receiver.recv_timeout(slice) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// Whether the log takes the message: its filter lets our errors through, and it neither panics nor
/// blocks.
fn write_log(message: &str) -> bool {
    catch(|| {
        let taken = log::log_enabled!(target: "worker_heartbeat", log::Level::Error);
        if taken {
            log::error!(target: "worker_heartbeat", "{message}");
            log::logger().flush();
        }
        taken
    })
    .unwrap_or(false)
}

/// A log that hangs may hold the lock of `stderr`, so this uses another descriptor if possible.
fn write_stderr(line: &str) {
    let written = match duplicate_stderr() {
        Some(mut stderr) => stderr.write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
    // There is no other place to write to.
    drop(written);
}

/// Like [`write_stderr`], without blocking the calling thread where the system allows that: what a full
/// pipe does not take is lost.
fn write_stderr_nonblocking(line: &str) {
    match nonblocking_stderr() {
        Some(mut stderr) => drop(stderr.write_all(line.as_bytes())),
        None => write_stderr(line),
    }
}

/// `stderr`, opened again: whether it blocks is a property of the open file, which others share
/// otherwise. A socket can't be opened.
#[cfg(unix)]
fn nonblocking_stderr() -> Option<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    /// Its value on Linux on most architectures.
    const O_NONBLOCK: i32 = 0o4000;
    let known = cfg!(all(
        target_os = "linux",
        any(
            target_arch = "x86_64",
            target_arch = "x86",
            target_arch = "aarch64",
            target_arch = "arm",
            target_arch = "riscv64",
            target_arch = "powerpc64",
            target_arch = "s390x",
        )
    ));
    let mut options = std::fs::OpenOptions::new();
    let options = options.append(true).custom_flags(O_NONBLOCK);
    known.then(|| options.open("/proc/self/fd/2").ok())?
}

#[cfg(not(unix))]
const fn nonblocking_stderr() -> Option<std::fs::File> {
    None
}

#[cfg(unix)]
fn duplicate_stderr() -> Option<std::fs::File> {
    use std::os::fd::AsFd;
    io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .ok()
        .map(Into::into)
}

#[cfg(not(unix))]
const fn duplicate_stderr() -> Option<std::fs::File> {
    None
}
