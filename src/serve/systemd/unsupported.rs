//! Platforms without systemd.

use std::convert::Infallible;
use std::time::Duration;

use crate::error::Error;
use crate::registry::Registry;
use crate::serve::policies::Policies;

/// Never exists.
#[derive(Debug)]
pub(super) struct Notifier(Infallible);

impl Notifier {
    #[expect(clippy::unnecessary_wraps, reason = "as on platforms with systemd")]
    pub(super) fn start(_: &Registry, _: Policies) -> Result<Option<Self>, Error> {
        Ok(None)
    }

    pub(super) const fn watchdog(&self) -> Option<Duration> {
        match self.0 {}
    }
}
