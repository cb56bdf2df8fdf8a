//! What the page says of the process that serves it.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use super::events::unix_millis;
use crate::fleet::ProcessIdentity;
use crate::serve::disclosure::Audience;

/// Which process it is, and since when it serves the page.
#[derive(Serialize)]
pub(super) struct ServerInfo {
    /// Milliseconds since the Unix epoch.
    since: u64,
    #[serde(flatten)]
    process: Option<Process>,
}

/// What not everybody may know.
#[derive(Serialize)]
struct Process {
    /// The name of the program.
    program: Option<String>,
    pid: u32,
    host: String,
    /// Of this crate.
    version: &'static str,
}

impl ServerInfo {
    /// Of this process, as this audience may see it.
    pub(super) fn new(since: SystemTime, audience: Audience) -> Self {
        let process = || {
            let identity = ProcessIdentity::current();
            let program = std::env::current_exe().ok();
            let program = program.as_deref().and_then(|path| path.file_name());
            Process {
                program: program.map(|name| name.to_string_lossy().into_owned()),
                pid: identity.pid,
                host: identity.hostname,
                version: env!("CARGO_PKG_VERSION"),
            }
        };
        Self {
            since: unix_millis(since),
            process: (audience == Audience::Full).then(process),
        }
    }

    pub(super) fn into_json(self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}
