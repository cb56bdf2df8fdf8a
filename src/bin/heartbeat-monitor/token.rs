//! The token of the coordinator: read from a file, and again on SIGHUP.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use worker_heartbeat::{BoxError, RunningHealthEndpoint};

/// The token in this file, without the end of its line.
pub fn read(file: &Path) -> Result<String, BoxError> {
    let token = fs::read_to_string(file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(token.trim().to_owned())
}

#[cfg(unix)]
pub use unix::Reload;

#[cfg(unix)]
mod unix {
    use std::thread::{self, JoinHandle};

    use signal_hook::consts::SIGHUP;
    use signal_hook::iterator::{Handle, Signals};

    use super::*;
    use crate::chain;
    use crate::text::clean;

    /// A thread that reads the token again on SIGHUP. Dropping it ends the thread.
    pub struct Reload {
        signals: Handle,
        thread: Option<JoinHandle<()>>,
    }

    impl Reload {
        /// `None` without a token file, or without a server.
        pub fn start(
            file: Option<&Path>,
            server: Option<&Arc<RunningHealthEndpoint>>,
        ) -> Result<Option<Self>, BoxError> {
            let (Some(file), Some(server)) = (file, server) else {
                return Ok(None);
            };
            let mut signals = Signals::new([SIGHUP])?;
            let handle = signals.handle();
            let (file, server) = (file.to_owned(), Arc::clone(server));
            let thread = thread::Builder::new()
                .name("token".to_owned())
                .spawn(move || {
                    for _ in signals.forever() {
                        reload(&file, &server);
                    }
                })?;
            Ok(Some(Self {
                signals: handle,
                thread: Some(thread),
            }))
        }
    }

    /// A file that cannot be read, or is empty, changes nothing.
    fn reload(file: &Path, server: &RunningHealthEndpoint) {
        let replaced = read(file).and_then(|token| Ok(server.replace_token(token)?));
        match replaced {
            Ok(()) => log::info!("read the token again"),
            Err(error) => {
                let error = clean(&chain(&*error));
                log::error!("the token remains as it was: {error}");
            }
        }
    }

    impl Drop for Reload {
        fn drop(&mut self) {
            self.signals.close();
            if let Some(thread) = self.thread.take() {
                // A panic of it was reported.
                let _ = thread.join();
            }
        }
    }
}

/// Without signals, the token is read once.
#[cfg(not(unix))]
pub struct Reload;

#[cfg(not(unix))]
impl Reload {
    pub fn start(
        _file: Option<&Path>,
        _server: Option<&Arc<RunningHealthEndpoint>>,
    ) -> Result<Option<Self>, BoxError> {
        Ok(None)
    }
}
