//! The crate's own threads: each has a name, contains its panics, and can be waited for or left
//! behind.

use std::io;
use std::thread::{self, JoinHandle, ThreadId};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::catch::catch;
use crate::clock::Patience;
use crate::error::Error;

/// A thread that its owner waits for. Dropping this leaves the thread behind.
#[derive(Debug)]
pub(crate) struct Background {
    thread: JoinHandle<()>,
    /// Disconnected once the work and all that it owned are gone.
    ended: Receiver<()>,
}

impl Background {
    /// Starts a thread. The kernel keeps 15 bytes of its name.
    pub(crate) fn start(
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let (ending, ended) = bounded(0);
        let work = move || {
            // Dropped last.
            let _ending: crossbeam_channel::Sender<()> = ending;
            drop(catch(work));
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        let thread = thread.map_err(|error| Error::Thread {
            name: name.to_owned(),
            error,
        })?;
        Ok(Self { thread, ended })
    }

    pub(crate) fn id(&self) -> ThreadId {
        self.thread.thread().id()
    }

    /// Whether this is the calling thread.
    pub(crate) fn is_current(&self) -> bool {
        self.id() == thread::current().id()
    }

    /// Waits for its end. The thread itself does not wait.
    pub(crate) fn join(self) {
        if !self.is_current() {
            // It contains its panics.
            drop(self.thread.join());
        }
    }

    /// Waits for its end for as long as the patience lasts, and then leaves it behind. Returns whether
    /// it has ended. The thread itself does not wait.
    pub(crate) fn join_within(self, patience: &Patience) -> bool {
        if self.is_current() {
            return false;
        }
        loop {
            let Some(slice) = patience.slice() else {
                return false;
            };
            if self.ended.recv_timeout(slice) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        self.join();
        true
    }
}

/// Starts a thread that is not waited for.
pub(crate) fn detach(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let work = move || drop(catch(work));
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_thread_that_hangs_is_left_behind_and_one_that_panics_has_ended() {
        let (release, hold) = mpsc::channel::<()>();
        let hung = Background::start("hung", move || {
            let _ = hold.recv();
        })
        .unwrap();
        assert!(!hung.join_within(&Patience::new(Duration::from_millis(1))));
        drop(release);
        let panics = Background::start("panics", || panic!("contained")).unwrap();
        assert!(panics.join_within(&Patience::new(Duration::from_secs(60))));
    }

    #[test]
    fn a_thread_does_not_wait_for_itself() {
        let (handle, own) = mpsc::channel::<Background>();
        let (sender, ended) = mpsc::channel();
        let thread = Background::start("own", move || {
            let own = own.recv().unwrap();
            assert!(own.is_current());
            own.join();
            sender.send(()).unwrap();
        });
        handle.send(thread.unwrap()).unwrap();
        assert_eq!(ended.recv(), Ok(()));
    }
}
