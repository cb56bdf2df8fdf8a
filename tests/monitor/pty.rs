//! A program in a terminal: a real pseudo-terminal, whose screen is read.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::examples::poll;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

/// A program that runs in a terminal of its own. Killed when it is dropped.
pub struct InTerminal {
    pub child: Child,
    keys: Option<File>,
    /// Kept open, so that the terminal outlives the program.
    terminal: Option<File>,
    path: PathBuf,
    screen: Arc<Mutex<vt100::Parser>>,
    output: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
    reader: Option<thread::JoinHandle<()>>,
}

impl InTerminal {
    /// Starts the command as the leader of the session of a terminal with this size.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Self {
        // No other child inherits it, so that it can be closed.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = PathBuf::from(ptsname_r(&master).unwrap());
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&path)
            .unwrap();
        set_size(&path, rows, columns);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        // This makes the terminal the controlling one: there is no safe way to do it here.
        let mut in_session = Command::new("setsid");
        in_session
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => in_session.env(name, value),
                None => in_session.env_remove(name),
            };
        }
        let child = in_session
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let output = Arc::new(Mutex::new(Vec::new()));
        let keys = File::from(OwnedFd::from(master));
        let mut drawn = keys.try_clone().unwrap();
        let (to_screen, to_output) = (Arc::clone(&screen), Arc::clone(&output));
        fcntl(&keys, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !has_ended.load(Relaxed) {
                match drawn.read(&mut bytes) {
                    Ok(length @ 1..) => {
                        to_output
                            .lock()
                            .unwrap()
                            .extend_from_slice(&bytes[..length]);
                        to_screen.lock().unwrap().process(&bytes[..length]);
                    }
                    // Between two reads: one that waits would keep the terminal open.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    _ => break,
                }
            }
        });
        Self {
            child,
            keys: Some(keys),
            terminal: Some(slave),
            path,
            screen,
            output,
            ended,
            reader: Some(reader),
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.keys
            .as_mut()
            .unwrap()
            .write_all(keys.as_bytes())
            .unwrap();
    }

    /// As [`press`](Self::press), unless too many keys wait.
    pub fn try_press(&mut self, keys: &str) {
        let _ = self.keys.as_mut().unwrap().write_all(keys.as_bytes());
    }

    /// The text of the screen.
    pub fn screen(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// All that was written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// Whether a cell of the screen with this text has a colour.
    pub fn has_colour(&self) -> bool {
        let parser = self.screen.lock().unwrap();
        let screen = parser.screen();
        let (rows, columns) = screen.size();
        let mut cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        cells.any(|(row, column)| {
            let cell = screen.cell(row, column);
            cell.is_some_and(|cell| cell.fgcolor() != vt100::Color::Default)
        })
    }

    #[track_caller]
    pub fn until(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        poll(what, || {
            let screen = self.screen();
            shows(&screen).then_some(screen)
        })
    }

    #[track_caller]
    pub fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    /// At most to the size at the start: the screen that is read keeps it.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.path, rows, columns);
    }

    pub fn send(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }

    /// Whether keys are shown and lines are edited, as a shell needs it, on the usual screen.
    pub fn is_restored(&self) -> bool {
        let modes = tcgetattr(self.terminal.as_ref().unwrap()).unwrap();
        let parser = self.screen.lock().unwrap();
        let screen = parser.screen();
        modes
            .local_flags
            .contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
            && !screen.alternate_screen()
            && !screen.hide_cursor()
    }

    /// What is drawn from now on stays in the terminal.
    pub fn stop_reading(&mut self) {
        self.ended.store(true, Relaxed);
        self.reader.take().unwrap().join().unwrap();
    }

    /// Closes the terminal, as a window does that is closed.
    pub fn hang_up(&mut self) {
        self.stop_reading();
        self.keys = None;
        self.terminal = None;
    }

    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        poll("its end", || self.child.try_wait().unwrap())
    }
}

fn set_size(terminal: &Path, rows: u16, columns: u16) {
    let done = Command::new("stty")
        .arg("-F")
        .arg(terminal)
        .args(["rows", &rows.to_string(), "cols", &columns.to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
