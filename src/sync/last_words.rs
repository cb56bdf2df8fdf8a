//! What must not be lost: it goes to the log, or to `stderr` if the log does not take it.

use std::io::{self, Write};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::clock::Patience;
use crate::sync::background;
use crate::sync::panics;

/// How long the log may take, and then `stderr`.
const PATIENCE: Duration = Duration::from_millis(500);

/// Says it as an error. Returns when it is said, or after a second: a log implementation may block,
/// and so may `stderr`.
pub(crate) fn say(words: &str) {
    let log = words.to_owned();
    let taken = aside(move || tell_log(&log)).and_then(|taken| answer(&taken));
    if taken != Some(true) {
        let line = format!("worker-heartbeat: {words}\n");
        let written = aside({
            let line = line.clone();
            move || tell_stderr(&line)
        });
        match written {
            Some(written) => drop(answer(&written)),
            // Without a thread to leave behind.
            None => tell_stderr_here(&line),
        }
    }
}

/// Runs this on a thread that can be left behind. `None` if there cannot be one.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<Receiver<T>> {
    let (sender, receiver) = bounded(1);
    let spawned = background::detach("wh-words", move || {
        // There is room for it.
        let _ = sender.try_send(work());
    });
    spawned.is_ok().then_some(receiver)
}

fn answer<T>(receiver: &Receiver<T>) -> Option<T> {
    let patience = Patience::new(PATIENCE);
    while let Some(slice) = patience.slice() {
        match receiver.recv_timeout(slice) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// Whether the log takes it: it lets our errors through, and neither panics nor blocks.
fn tell_log(words: &str) -> bool {
    panics::catch(|| {
        let taken = log::log_enabled!(target: "worker_heartbeat", log::Level::Error);
        if taken {
            log::error!(target: "worker_heartbeat", "{words}");
            log::logger().flush();
        }
        taken
    })
    .unwrap_or(false)
}

/// The log may hold the lock of `stderr` while it hangs, so this takes another way if there is one.
fn tell_stderr(line: &str) {
    let written = match another_stderr() {
        Some(mut stderr) => stderr.write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
    // There is no other place for it.
    drop(written);
}

/// As [`tell_stderr`], without blocking the calling thread, if the system has a way for that: words
/// that a full pipe does not take are lost.
fn tell_stderr_here(line: &str) {
    match stderr_that_never_blocks() {
        Some(mut stderr) => drop(stderr.write_all(line.as_bytes())),
        None => tell_stderr(line),
    }
}

/// `stderr`, opened once more: whether it blocks is a property of that, and not shared with others.
/// A socket cannot be opened.
#[cfg(unix)]
fn stderr_that_never_blocks() -> Option<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    /// The number that it has with Linux on most processors.
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
const fn stderr_that_never_blocks() -> Option<std::fs::File> {
    None
}

#[cfg(unix)]
fn another_stderr() -> Option<std::fs::File> {
    use std::os::fd::AsFd;
    io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .ok()
        .map(Into::into)
}

#[cfg(not(unix))]
const fn another_stderr() -> Option<std::fs::File> {
    None
}
