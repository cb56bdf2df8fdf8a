//! Signals: which there are, and how they reach a thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Error;

/// A signal that can begin a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGINT`: Ctrl-C.
    Interrupt,
    /// `SIGTERM`: what `kill`, service managers and container runtimes send.
    Terminate,
    /// `SIGQUIT`: Ctrl-\.
    Quit,
    /// `SIGHUP`: the terminal is gone.
    Hangup,
    /// `SIGUSR1`.
    User1,
    /// `SIGUSR2`.
    User2,
}

impl Signal {
    /// The signals that are hooked by default.
    pub const DEFAULT: [Self; 4] = [Self::Interrupt, Self::Terminate, Self::Quit, Self::Hangup];

    /// The name, such as `SIGTERM`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Quit => "SIGQUIT",
            Self::Hangup => "SIGHUP",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
        }
    }

    /// The number on this system; `None` if it has no such signal.
    #[cfg(unix)]
    const fn number(self) -> Option<i32> {
        use signal_hook::consts as number;
        Some(match self {
            Self::Interrupt => number::SIGINT,
            Self::Terminate => number::SIGTERM,
            Self::Quit => number::SIGQUIT,
            Self::Hangup => number::SIGHUP,
            Self::User1 => number::SIGUSR1,
            Self::User2 => number::SIGUSR2,
        })
    }

    #[cfg(not(unix))]
    const fn number(self) -> Option<i32> {
        use signal_hook::consts as number;
        match self {
            Self::Interrupt => Some(number::SIGINT),
            Self::Terminate => Some(number::SIGTERM),
            _ => None,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The hooks of an installed shutdown: signals come in here, for one thread that waits.
#[derive(Debug)]
pub(super) struct Hooks {
    arrived: Vec<(Signal, Arc<AtomicBool>)>,
    wire: wire::Receiver,
}

impl Hooks {
    /// Hooks these signals, or none of them. Returns also the bell that wakes the waiting thread.
    pub(super) fn install(signals: &[Signal]) -> Result<(Self, wire::Bell), Error> {
        let (bell, wire) = wire::new().map_err(|source| Error::Signal {
            signal: "signals",
            source,
        })?;
        let refused = |signal: Signal, source| Error::Signal {
            signal: signal.name(),
            source,
        };
        // Everything that may run out before the first hook: a signal that was hooked once never
        // gets its default action back.
        let mut wanted: Vec<(Signal, i32, wire::Bell)> = Vec::new();
        for signal in signals {
            let known = wanted.iter().any(|(other, ..)| other == signal);
            let ignored = *signal == Signal::Hangup && hangup_is_ignored();
            if let Some(number) = signal.number()
                && !known
                && !ignored
            {
                let bell = bell
                    .try_clone()
                    .map_err(|source| refused(*signal, source))?;
                wanted.push((*signal, number, bell));
            }
        }
        let mut hooks = Self {
            arrived: Vec::new(),
            wire,
        };
        let mut ids = Vec::new();
        for (signal, number, bell) in wanted {
            let arrived = Arc::new(AtomicBool::new(false));
            // First the flag, then the wake-up, so that who is woken finds the flag.
            let hooked = signal_hook::flag::register(number, Arc::clone(&arrived))
                .map(|id| ids.push(id))
                .and_then(|()| bell.ring_on(number).map(|id| ids.extend(id)));
            if let Err(source) = hooked {
                for id in ids {
                    signal_hook::low_level::unregister(id);
                }
                return Err(refused(signal, source));
            }
            hooks.arrived.push((signal, arrived));
        }
        Ok((hooks, bell))
    }

    /// Waits until a signal comes or the bell rings, but no longer than `timeout`. Returns the
    /// signals that came.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Vec<Signal> {
        self.wire.wait(timeout);
        self.arrived
            .iter()
            .filter(|(_, arrived)| arrived.swap(false, Ordering::AcqRel))
            .map(|(signal, _)| *signal)
            .collect()
    }
}

/// Whether the process was started with `SIGHUP` ignored, as `nohup` does: then it stays ignored.
fn hangup_is_ignored() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return false;
    };
    ignored_in(&status, 1)
}

fn ignored_in(status: &str, signal: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Wakes the waiting thread from a signal handler: through a socket pair, since that is what a
/// signal handler may write to.
#[cfg(unix)]
pub(super) mod wire {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use signal_hook::SigId;

    #[derive(Debug)]
    pub(in super::super) struct Bell(UnixStream);

    #[derive(Debug)]
    pub(in super::super) struct Receiver(UnixStream);

    pub(super) fn new() -> io::Result<(Bell, Receiver)> {
        let (bell, receiver) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        Ok((Bell(bell), Receiver(receiver)))
    }

    impl Bell {
        pub(in super::super) fn ring(&self) {
            // Full means that it is ringing already.
            let _ = (&self.0).write(&[0]);
        }

        pub(super) fn try_clone(&self) -> io::Result<Self> {
            self.0.try_clone().map(Self)
        }

        pub(super) fn ring_on(self, signal: i32) -> io::Result<Option<SigId>> {
            signal_hook::low_level::pipe::register(signal, self.0).map(Some)
        }
    }

    impl Receiver {
        pub(super) fn wait(&mut self, timeout: Option<Duration>) {
            let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
            if self.0.set_read_timeout(timeout).is_err() {
                // Rather wake up too often than never.
                std::thread::sleep(Duration::from_millis(50));
                return;
            }
            let mut rings = [0; 64];
            let _ = self.0.read(&mut rings);
        }
    }
}

/// Without a pipe that signal handlers can write to: the flags are looked at twenty times a second.
#[cfg(not(unix))]
pub(super) mod wire {
    use std::io;
    use std::time::Duration;

    use signal_hook::SigId;

    #[derive(Debug)]
    pub(in super::super) struct Bell;

    #[derive(Debug)]
    pub(in super::super) struct Receiver;

    pub(super) fn new() -> io::Result<(Bell, Receiver)> {
        Ok((Bell, Receiver))
    }

    impl Bell {
        pub(in super::super) fn ring(&self) {}

        pub(super) fn try_clone(&self) -> io::Result<Self> {
            Ok(Self)
        }

        pub(super) fn ring_on(self, _signal: i32) -> io::Result<Option<SigId>> {
            Ok(None)
        }
    }

    impl Receiver {
        pub(super) fn wait(&mut self, timeout: Option<Duration>) {
            let step = Duration::from_millis(50);
            std::thread::sleep(timeout.unwrap_or(step).min(step));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_found_in_the_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(ignored_in(status, 1));
        assert!(!ignored_in(status, 2));
        assert!(ignored_in(status, 13));
        assert!(!ignored_in("", 1));
        assert!(!ignored_in("SigIgn:\tx", 1));
    }
}
