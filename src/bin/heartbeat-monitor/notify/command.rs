//! Runs a program for each notification, with the document on its standard input.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::{Failure, Target};
use crate::args::NOTIFY_URL;
use crate::text::clean;

/// The time limit of a run.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a run may go on when the monitor ends.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// What is meant for the monitor alone: secrets, and the socket of its service manager.
const PRIVATE: [&str; 6] = [
    "POSTGRES_URL",
    "PGPASSWORD",
    NOTIFY_URL,
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

pub struct Command {
    program: PathBuf,
    timeout: Duration,
}

impl Command {
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            timeout: TIMEOUT,
        }
    }
}

impl Target for Command {
    fn name(&self) -> String {
        clean(&self.program.to_string_lossy())
    }

    fn deliver(&self, id: &str, body: &[u8], queue: &Queue) -> Result<(), Failure> {
        let mut command = process::Command::new(&self.program);
        command
            .env("NOTIFICATION_ID", id)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        PRIVATE.iter().for_each(|name| {
            command.env_remove(name);
        });
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn();
        let mut child = child.map_err(|error| Failure::new(error.to_string()))?;
        if let Some(mut input) = child.stdin.take() {
            let body = body.to_vec();
            // A program that reads nothing may keep the pipe open: nothing waits for this thread. The
            // document fits into the pipe.
            let write = move || {
                // One that does not read all is judged by its exit status.
                let _ = input.write_all(&body);
            };
            let writer = thread::Builder::new().name("notification".to_owned());
            if let Err(error) = writer.spawn(write) {
                kill(&mut child);
                return Err(Failure::new(error.to_string()));
            }
        }
        let until = Instant::now() + self.timeout;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(Failure::new(status.to_string())),
                Ok(None) if queue.closed_for().is_some_and(|ago| ago > END_TIMEOUT) => {
                    kill(&mut child);
                    return Err(Failure::new("it was killed at the end of the monitor"));
                }
                Ok(None) if Instant::now() < until => thread::sleep(LOOK),
                Ok(None) => {
                    kill(&mut child);
                    let limit = self.timeout.as_secs();
                    return Err(Failure::new(format!("it was killed after {limit} s")));
                }
                Err(error) => return Err(Failure::new(error.to_string())),
            }
        }
    }
}

/// Kills the program and what it has started, and collects its status.
fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(group) = i32::try_from(child.id()) {
        use nix::sys::signal::{Signal, killpg};
        // They may have ended meanwhile.
        let _ = killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn program(name: &str, script: &str) -> PathBuf {
        let name = format!("wh-notify-{name}-{}", process::id());
        let file = std::env::temp_dir().join(name);
        let text = format!("#!/bin/sh\n{script}\n");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started_and_one_that_reads_nothing_is_no_failure() {
        let hangs = program("hangs", "sleep 1000 & echo $! >\"$0.pid\"; wait");
        let mut command = Command::new(&hangs);
        command.timeout = Duration::from_millis(500);
        let body = vec![b'x'; 48 * 1024];
        let queue = Queue::default();
        let failure = command.deliver("id", &body, &queue).unwrap_err();
        assert!(
            failure.reason.starts_with("it was killed"),
            "{}",
            failure.reason
        );
        let pid_file = format!("{}.pid", hangs.display());
        if let Ok(pid) = fs::read_to_string(&pid_file) {
            // It ends a moment after the signal, which nothing announces; its new parent collects it.
            let is_running = || {
                let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
                stat.is_ok_and(|stat| !stat.contains(") Z "))
            };
            let patience = Instant::now() + Duration::from_secs(60);
            while !pid.trim().is_empty() && is_running() {
                assert!(Instant::now() < patience, "{pid} goes on");
                thread::sleep(LOOK);
            }
        }
        let deaf = program("deaf", "exit 0");
        assert!(Command::new(&deaf).deliver("id", &body, &queue).is_ok());
        let failing = program("failing", "cat >/dev/null; exit 7");
        let failure = Command::new(&failing)
            .deliver("id", &body, &queue)
            .unwrap_err();
        assert_eq!(failure.reason, "exit status: 7");
        let missing = Command::new(Path::new("/nowhere/program"));
        assert!(missing.deliver("id", &body, &queue).is_err());
        // Nothing of it is left behind at the end of the monitor.
        queue.close();
        let failure = Command::new(&hangs)
            .deliver("id", &body, &queue)
            .unwrap_err();
        assert_eq!(failure.reason, "it was killed at the end of the monitor");
        for file in [&hangs, &deaf, &failing] {
            fs::remove_file(file).unwrap();
        }
        let _ = fs::remove_file(pid_file);
    }
}
