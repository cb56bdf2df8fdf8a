//! This test program again, as a process of its own: in a role that [`stage`](STAGE) plays, or with
//! one of its tests.

use std::env;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The test function that plays the role.
const STAGE: &str = "stage";
/// The variable that names the role; not set in an ordinary run of the tests.
const ROLE: &str = "WORKER_HEARTBEAT_TEST_ROLE";
/// Set in a process that runs one test; see [`in_child`].
pub(crate) const CHILD: &str = "WORKER_HEARTBEAT_TEST_CHILD";
/// How long anything may take, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The role that this process plays; `None` in an ordinary run of the tests.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// Runs a test in a process of its own, and fails if that fails or hangs.
pub(crate) fn in_child(test: impl FnOnce()) {
    with_child(test, |_| {});
}

/// As [`in_child`], with actions on the process meanwhile. One at a time: some of these processes
/// need all processors.
pub(crate) fn with_child<F: FnOnce()>(test: F, meanwhile: impl FnOnce(&mut Process)) {
    if env::var_os(CHILD).is_some() {
        test();
        println!("@passed");
        return;
    }
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // The closure's type name contains the name of its test.
    let name = std::any::type_name::<F>();
    let (_crate, name) = name.split_once("::").unwrap();
    let name = name.trim_end_matches("::{{closure}}");
    let mut process = Process::spawn(Process::command(), name, CHILD, "1");
    meanwhile(&mut process);
    process.expect_within("@passed", 2 * PATIENCE);
    let ended = process.wait();
    ended.assert_code(0);
    for line in ended.transcript.all("@measured ") {
        println!("{}", line.text.split_once("@measured ").unwrap().1);
    }
}

/// A running process and its output so far.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Line>,
    transcript: Transcript,
}

/// A line that a process has written.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub at: Instant,
    pub to: Stream,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The output of a process, in the order in which it was received.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript(Vec<Line>);

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub at: Instant,
    pub status: ExitStatus,
    pub transcript: Transcript,
}

impl Process {
    /// Starts the role, and waits until it prints that it is ready.
    pub(crate) fn start(role: &str) -> Self {
        Self::start_as(Self::command(), role)
    }

    /// As [`start`](Self::start), by a shell that runs this command first.
    pub(crate) fn start_after(command: &str, role: &str) -> Self {
        Self::start_by(
            &["sh", "-c", &format!(r#"{command}; exec "$0" "$@""#)],
            role,
        )
    }

    /// As [`start`](Self::start), by a program that gets the command line as its last arguments.
    pub(crate) fn start_by(program: &[&str], role: &str) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(env::current_exe().unwrap());
        Self::start_as(command, role)
    }

    /// As [`start`](Self::start), with the environment and the program of this command.
    pub(crate) fn start_as(command: Command, role: &str) -> Self {
        let mut process = Self::spawn(command, STAGE, ROLE, role);
        process.expect("@ready");
        process
    }

    /// This program.
    pub(crate) fn command() -> Command {
        Command::new(env::current_exe().unwrap())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Stops the process, as Ctrl-Z and a suspended machine do, and continues it after this time.
    pub(crate) fn stop_for(&self, time: Duration) {
        self.signal(Signal::SIGSTOP);
        // This is the fault itself: it lasts exactly this long.
        thread::sleep(time);
        self.signal(Signal::SIGCONT);
    }

    /// Waits until the process has stopped itself, as by Ctrl-Z, and continues it after this time.
    pub(crate) fn stays_stopped(&self, time: Duration) {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(status, WaitStatus::Stopped(self.pid(), Signal::SIGSTOP));
        // This is the fault itself: it lasts exactly this long.
        thread::sleep(time);
        self.signal(Signal::SIGCONT);
    }

    fn spawn(mut command: Command, test: &str, variable: &str, value: &str) -> Self {
        let mut child = command
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(variable, value)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        read(Stream::Stdout, child.stdout.take().unwrap(), sender.clone());
        read(Stream::Stderr, child.stderr.take().unwrap(), sender);
        Self {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
            transcript: Transcript::default(),
        }
    }

    /// Waits for a later line that contains this text.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) -> Line {
        self.expect_within(text, PATIENCE)
    }

    #[track_caller]
    fn expect_within(&mut self, text: &str, time: Duration) -> Line {
        let deadline = Instant::now() + time;
        loop {
            match self.next_line(deadline) {
                Ok(line) if line.text.contains(text) => return line,
                Ok(_) => {}
                Err(why) => panic!("{text:?} was not said ({why}); {}", self.transcript),
            }
        }
    }

    fn next_line(&mut self, deadline: Instant) -> Result<Line, RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left)?;
        self.transcript.0.push(line.clone());
        Ok(line)
    }

    /// Sends a signal. Returns the moment just before.
    pub(crate) fn signal(&self, signal: Signal) -> Instant {
        let at = Instant::now();
        kill(self.pid(), signal).unwrap();
        at
    }

    /// Sends the role a command, without waiting for an answer.
    pub(crate) fn send_line(&mut self, command: &str) {
        // The process may be ending just now; its output shows the result.
        let _ = writeln!(self.stdin, "{command}");
    }

    /// Sends the role a query; the answer is a line that begins with `@` and the query.
    pub(crate) fn ask(&mut self, question: &str) -> String {
        self.send_line(question);
        let mark = format!("@{question}: ");
        let line = self.expect(&mark);
        line.text[line.text.find(&mark).unwrap() + mark.len()..].to_owned()
    }

    /// Repeats the query until the answer begins with this text.
    pub(crate) fn ask_until(&mut self, question: &str, answer: &str) {
        let deadline = Instant::now() + PATIENCE / 3;
        while !self.ask(question).starts_with(answer) {
            assert!(Instant::now() < deadline, "{}", self.transcript);
            // Between two queries.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the process has closed its streams, without collecting its status.
    pub(crate) fn drain(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next_line(deadline) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it did not end; {}", self.transcript),
            }
        }
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(mut self) -> Ended {
        self.drain();
        // Its streams are closed, which the kernel does just before the process ends.
        let status = self.child.wait().unwrap();
        Ended {
            at: Instant::now(),
            status,
            transcript: std::mem::take(&mut self.transcript),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(to: Stream, from: impl Read + Send + 'static, sender: Sender<Line>) {
    thread::spawn(move || {
        for text in BufReader::new(from).lines().map_while(Result::ok) {
            let at = Instant::now();
            if sender.send(Line { at, to, text }).is_err() {
                return;
            }
        }
    });
}

impl Transcript {
    /// The lines that contain this text.
    pub(crate) fn all(&self, text: &str) -> Vec<&Line> {
        let lines = self.0.iter();
        lines.filter(|line| line.text.contains(text)).collect()
    }

    pub(crate) fn has(&self, text: &str) -> bool {
        !self.all(text).is_empty()
    }

    /// Whether anything was written to `stderr`.
    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|line| line.to == Stream::Stderr)
    }

    /// The position of the only line that contains this text.
    pub(crate) fn position(&self, text: &str) -> usize {
        let mut found = (0..self.0.len()).filter(|n| self.0[*n].text.contains(text));
        let Some(position) = found.next() else {
            panic!("{text:?} was not said; {self}");
        };
        assert_eq!(found.next(), None, "{text:?} was said twice; {self}");
        position
    }

    /// Asserts that these texts were printed, each once and in this order.
    #[track_caller]
    pub(crate) fn assert_order(&self, texts: &[&str]) {
        let positions: Vec<_> = texts.iter().map(|text| self.position(text)).collect();
        assert!(positions.is_sorted(), "{texts:?} are out of order; {self}");
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) {
        let status = self.status;
        assert_eq!(status.code(), Some(code), "{status}; {}", self.transcript);
    }

    /// Asserts that the signal killed the process, by its default action.
    #[track_caller]
    pub(crate) fn assert_killed_by(&self, signal: Signal) {
        let Self {
            status, transcript, ..
        } = self;
        assert_eq!(
            status.signal(),
            Some(signal as i32),
            "{status}; {transcript}"
        );
    }

    #[track_caller]
    pub(crate) fn assert_not(&self, text: &str) {
        assert!(!self.transcript.has(text), "{text:?}; {}", self.transcript);
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it said:")?;
        let first = self.0.first().map(|line| line.at);
        for (n, line) in self.0.iter().enumerate() {
            // Answers to a repeated query are shown once.
            if n > 0 && self.0[n - 1].text == line.text {
                continue;
            }
            let at = first.map_or(Duration::ZERO, |first| line.at - first);
            write!(f, "\n  {at:>10.1?} {:?} {}", line.to, line.text)?;
        }
        Ok(())
    }
}
