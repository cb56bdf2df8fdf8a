//! Wakes the waiting thread from a signal handler.

use signal_hook::SigId;
use std::io;
use std::time::Duration;

/// Through a socket pair, since that is what a signal handler may write to.
#[cfg(unix)]
mod system {
    use super::{Duration, SigId, io};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[derive(Debug)]
    pub(in super::super) struct Bell(UnixStream);

    #[derive(Debug)]
    pub(in super::super) struct Receiver(UnixStream);

    pub(in super::super) fn new() -> io::Result<(Bell, Receiver)> {
        let (bell, receiver) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        Ok((Bell(bell), Receiver(receiver)))
    }

    impl Bell {
        pub(in super::super) fn ring(&self) {
            // Full means that it is ringing already.
            let _ = (&self.0).write(&[0]);
        }

        pub(in super::super) fn try_clone(&self) -> io::Result<Self> {
            self.0.try_clone().map(Self)
        }

        pub(in super::super) fn ring_on(self, signal: i32) -> io::Result<Option<SigId>> {
            signal_hook::low_level::pipe::register(signal, self.0).map(Some)
        }
    }

    impl Receiver {
        pub(in super::super) fn wait(&mut self, timeout: Option<Duration>) {
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
mod system {
    use super::{Duration, SigId, io};

    #[derive(Debug)]
    pub(in super::super) struct Bell;

    #[derive(Debug)]
    pub(in super::super) struct Receiver;

    pub(in super::super) fn new() -> io::Result<(Bell, Receiver)> {
        Ok((Bell, Receiver))
    }

    impl Bell {
        pub(in super::super) fn ring(&self) {}

        pub(in super::super) fn try_clone(&self) -> io::Result<Self> {
            Ok(Self)
        }

        pub(in super::super) fn ring_on(self, _signal: i32) -> io::Result<Option<SigId>> {
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

pub(super) use system::{Bell, Receiver, new};
