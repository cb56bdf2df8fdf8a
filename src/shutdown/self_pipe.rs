//! Wakes the waiting thread from a signal handler (the self-pipe trick).

use signal_hook::SigId;
use std::io;
use std::time::Duration;

/// A socket pair: a signal handler may write to it.
#[cfg(unix)]
mod system {
    use super::{Duration, SigId, io};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[derive(Debug)]
    pub(in super::super) struct WakeSender(UnixStream);

    #[derive(Debug)]
    pub(in super::super) struct Receiver(UnixStream);

    pub(in super::super) fn new() -> io::Result<(WakeSender, Receiver)> {
        let (wake_sender, receiver) = UnixStream::pair()?;
        wake_sender.set_nonblocking(true)?;
        Ok((WakeSender(wake_sender), Receiver(receiver)))
    }

    impl WakeSender {
        pub(in super::super) fn wake(&self) {
            // A full buffer means that a wake-up is pending.
            let _ = (&self.0).write(&[0]);
        }

        pub(in super::super) fn try_clone(&self) -> io::Result<Self> {
            self.0.try_clone().map(Self)
        }

        pub(in super::super) fn wake_on_signal(self, signal: i32) -> io::Result<Option<SigId>> {
            signal_hook::low_level::pipe::register(signal, self.0).map(Some)
        }
    }

    impl Receiver {
        pub(in super::super) fn wait(&mut self, timeout: Option<Duration>) {
            let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
            if self.0.set_read_timeout(timeout).is_err() {
                // Better to wake up too often than never.
                std::thread::sleep(Duration::from_millis(50));
                return;
            }
            let mut rings = [0; 64];
            let _ = self.0.read(&mut rings);
        }
    }
}

/// Without a pipe that signal handlers can write to, the flags are polled twenty times a second.
#[cfg(not(unix))]
mod system {
    use super::{Duration, SigId, io};

    #[derive(Debug)]
    pub(in super::super) struct WakeSender;

    #[derive(Debug)]
    pub(in super::super) struct Receiver;

    pub(in super::super) fn new() -> io::Result<(WakeSender, Receiver)> {
        Ok((WakeSender, Receiver))
    }

    impl WakeSender {
        pub(in super::super) fn wake(&self) {}

        pub(in super::super) fn try_clone(&self) -> io::Result<Self> {
            Ok(Self)
        }

        pub(in super::super) fn wake_on_signal(self, _signal: i32) -> io::Result<Option<SigId>> {
            Ok(None)
        }
    }

    impl Receiver {
        pub(in super::super) fn wait(&mut self, timeout: Option<Duration>) {
            let step = Duration::from_millis(50);
            std::thread::sleep(timeout.unwrap_or(step).min(step));
        }
    }
}

pub(super) use system::{Receiver, WakeSender, new};
