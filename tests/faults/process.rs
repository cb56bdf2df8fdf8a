//! This test program once more, as a process that a fault strikes.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::support::PATIENCE;

/// Set in a process that plays the child.
pub(crate) const CHILD: &str = "WORKER_HEARTBEAT_FAULT";

/// Plays a test in a process of its own, and fails if that fails or hangs.
pub(crate) fn in_child(play: impl FnOnce()) {
    with_child(play, |_| {});
}

/// The same, with something to do to the process meanwhile.
pub(crate) fn with_child<F: FnOnce()>(play: F, meddle: impl FnOnce(&mut Process)) {
    if env::var_os(CHILD).is_some() {
        play();
        println!("@played");
        return;
    }
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // The closure is named after the test that it stands in.
    let test = std::any::type_name::<F>();
    let test = test.trim_start_matches("faults::");
    let mut process = Process::start(test.trim_end_matches("::{{closure}}"));
    meddle(&mut process);
    process.finish();
}

/// A running child, and what it has said so far.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Process {
    pub(crate) fn start(test: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        read(child.stdout.take().unwrap(), sender.clone());
        read(child.stderr.take().unwrap(), sender);
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Waits until it says this, from here on.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{text:?} was not said, but: {:#?}", self.said);
            };
            let found = line.contains(text);
            self.said.push(line);
            if found {
                return;
            }
        }
    }

    /// It is stopped, as by Ctrl-Z; lets it go on after a while.
    pub(crate) fn stays_stopped(&self, time: Duration) {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(status, WaitStatus::Stopped(self.pid(), Signal::SIGSTOP));
        // This is the fault itself: it lasts as long as it is said to.
        thread::sleep(time);
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    /// Waits for its end, which has to be a good one, and passes on what it measured.
    pub(crate) fn finish(mut self) {
        self.expect("@played");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:#?}",
                self.said
            );
            // Real processes need real time.
            thread::sleep(Duration::from_millis(1));
        };
        assert!(status.success(), "{status}: {:#?}", self.said);
        for line in &self.said {
            if let Some((_, figures)) = line.split_once("@measured ") {
                println!("{figures}");
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn read(from: impl Read + Send + 'static, sender: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
}
