//! A fork of a process with a shutdown: the child inherits the signal hooks, but not the thread
//! that waits for signals.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use worker_heartbeat::{Error, Registry, Shutdown, ShutdownBuilder};

use crate::fixtures::MILLISECOND;
use crate::support::process::in_child;
use crate::support::{PATIENCE, eventually};

const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGHUP,
];

/// The exit status of a child that runs to its end.
const ENDED: i32 = 3;
const PANICKED: i32 = 4;

/// A forked child, and the socket to it.
struct Child {
    pid: Pid,
    line: UnixStream,
    is_buried: Cell<bool>,
}

impl Child {
    /// Forks, and returns in the parent when the child has written something.
    fn play(play: impl FnOnce(&mut UnixStream) -> i32) -> Self {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        // SAFETY: the C library makes its allocator usable in the child. The other threads of this
        // process wait: for a signal, or for the end of the test.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let code = catch_unwind(AssertUnwindSafe(|| play(&mut theirs)));
                // SAFETY: it ends this process, and runs nothing that the process has inherited.
                unsafe { libc::_exit(code.unwrap_or(PANICKED)) }
            }
            ForkResult::Parent { child } => {
                let mut child = Self {
                    pid: child,
                    line: ours,
                    is_buried: Cell::new(false),
                };
                child.hear();
                child
            }
        }
    }

    fn hear(&mut self) {
        hear(&mut self.line);
    }

    fn say(&mut self) {
        say(&mut self.line);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    fn status(&self) -> WaitStatus {
        let mut status = WaitStatus::StillAlive;
        eventually("the child ends", || {
            status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).unwrap();
            status != WaitStatus::StillAlive
        });
        self.is_buried.set(true);
        status
    }

    #[track_caller]
    fn comes_to_its_end(&self) {
        assert_eq!(self.status(), WaitStatus::Exited(self.pid, ENDED));
    }

    /// With a core dumped or not, as the system is set up.
    #[track_caller]
    fn is_killed_by(&self, signal: Signal) {
        let status = self.status();
        let killed = matches!(status, WaitStatus::Signaled(_, by, _) if by == signal);
        assert!(killed, "{signal}: {status:?}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_buried.get() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

fn hear(line: &mut UnixStream) {
    line.read_exact(&mut [0]).unwrap();
}

fn say(line: &mut UnixStream) {
    line.write_all(&[0]).unwrap();
}

fn rest() -> ! {
    loop {
        thread::park();
    }
}

/// Restores the default actions of signals, however the tests were started.
fn reset(to: SigHandler, signals: &[Signal]) {
    for number in signals {
        // SAFETY: nothing in this process has hooked a signal yet.
        unsafe { signal(*number, to) }.unwrap();
    }
}

fn installed(builder: ShutdownBuilder) -> Shutdown {
    reset(SigHandler::SigDfl, &SIGNALS);
    builder.registry(&Registry::new()).install().unwrap()
}

#[test]
fn a_child_that_restores_the_defaults_dies_by_them() {
    in_child(|| {
        let shutdown = installed(Shutdown::builder());
        for signal in SIGNALS {
            // This signal is sent after the call.
            let child = Child::play(|line| {
                Shutdown::restore_defaults();
                say(line);
                rest()
            });
            child.signal(signal);
            child.is_killed_by(signal);

            // This signal is sent before the call, and takes effect then.
            let mut child = Child::play(|line| {
                say(line);
                hear(line);
                say(line);
                hear(line);
                Shutdown::restore_defaults();
                ENDED
            });
            child.signal(signal);
            child.say();
            // The documented limitation: the child has the hooks.
            child.hear();
            child.say();
            child.is_killed_by(signal);
        }
        // Neither child has affected the parent.
        assert!(!shutdown.requested());
        kill(Pid::this(), Signal::SIGTERM).unwrap();
        assert_eq!(shutdown.wait().cause.to_string(), "SIGTERM");
    });
}

#[test]
fn a_child_that_asks_its_shutdown_dies_by_signals() {
    in_child(|| {
        let shutdown = installed(Shutdown::builder());
        for signal in SIGNALS {
            let asking = Child::play(|line| {
                say(line);
                while !shutdown.requested() {
                    thread::sleep(MILLISECOND);
                }
                ENDED
            });
            let waiting = Child::play(|line| {
                say(line);
                let _ = shutdown.wait();
                ENDED
            });
            for child in [asking, waiting] {
                child.signal(signal);
                child.is_killed_by(signal);
            }
        }
        assert!(!shutdown.requested());
    });
}

/// As daemons do, to leave their session.
#[test]
fn a_grandchild_is_like_a_child() {
    in_child(|| {
        let _shutdown = installed(Shutdown::builder());
        for signal in SIGNALS {
            for restored_before in [true, false] {
                let mut child = Child::play(|line| {
                    if restored_before {
                        Shutdown::restore_defaults();
                    }
                    // The grandchild dies by the signal, and its parent reports it.
                    let grandchild = Child::play(|line| {
                        if !restored_before {
                            Shutdown::restore_defaults();
                        }
                        say(line);
                        rest()
                    });
                    grandchild.signal(signal);
                    grandchild.is_killed_by(signal);
                    say(line);
                    hear(line);
                    ENDED
                });
                child.say();
                child.comes_to_its_end();
            }
        }
    });
}

#[test]
fn a_program_that_a_child_executes_has_the_defaults() {
    in_child(|| {
        let _shutdown = installed(Shutdown::builder());
        for signal in SIGNALS {
            let child = Child::play(|line| {
                let line = OwnedFd::from(line.try_clone().unwrap());
                let mut shell = Command::new("sh");
                shell
                    .args(["-c", "printf x >&0; exec sleep 1000"])
                    .stdin(line);
                panic!("{}", shell.exec())
            });
            child.signal(signal);
            child.is_killed_by(signal);
        }
    });
}

#[test]
fn a_child_can_install_a_shutdown_of_its_own() {
    in_child(|| {
        let shutdown = installed(Shutdown::builder());
        for restored in [false, true] {
            let child = Child::play(|line| {
                if restored {
                    Shutdown::restore_defaults();
                }
                let registry = Registry::new();
                let own = Shutdown::builder()
                    .registry(&registry)
                    .timeout(PATIENCE)
                    .cleanup("say", {
                        let mut line = line.try_clone().unwrap();
                        move || say(&mut line)
                    })
                    .install()
                    .unwrap();
                let again = Shutdown::builder().install();
                assert!(
                    matches!(again, Err(Error::AlreadyInstalled { .. })),
                    "{again:?}"
                );
                // A child of the child has the same limitation, and the same remedy.
                let grandchild = Child::play(|line| {
                    Shutdown::restore_defaults();
                    say(line);
                    rest()
                });
                grandchild.signal(Signal::SIGTERM);
                grandchild.is_killed_by(Signal::SIGTERM);
                assert!(!own.requested());
                say(line);
                let report = own.wait();
                assert!(report.is_clean(), "{report}");
                assert_eq!(report.cause.to_string(), "SIGTERM");
                ENDED
            });
            child.signal(Signal::SIGTERM);
            child.comes_to_its_end();
        }
        assert!(!shutdown.requested());
        kill(Pid::this(), Signal::SIGHUP).unwrap();
        assert_eq!(shutdown.wait().cause.to_string(), "SIGHUP");
    });
}

/// The actions that the signals had before the hooks come back, whatever they were.
#[test]
fn a_child_ignores_again_what_was_ignored() {
    in_child(|| {
        reset(SigHandler::SigDfl, &SIGNALS);
        reset(SigHandler::SigIgn, &[Signal::SIGHUP]);
        let _shutdown = Shutdown::builder()
            .hook_ignored_signals(true)
            .registry(&Registry::new())
            .install()
            .unwrap();
        let mut child = Child::play(|line| {
            Shutdown::restore_defaults();
            say(line);
            hear(line);
            say(line);
            rest()
        });
        child.signal(Signal::SIGHUP);
        child.say();
        child.hear();
        child.signal(Signal::SIGTERM);
        child.is_killed_by(Signal::SIGTERM);
    });
}

/// A child that ends by itself is not delayed by what it has inherited.
#[test]
fn a_child_can_shut_down_by_itself() {
    in_child(|| {
        let shutdown = installed(Shutdown::builder().timeout(Duration::from_secs(2)));
        let child = Child::play(|line| {
            say(line);
            shutdown.trigger();
            assert!(shutdown.wait().is_clean());
            ENDED
        });
        child.comes_to_its_end();
        assert!(!shutdown.requested());
    });
}
