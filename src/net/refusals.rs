//! Counts refused requests, and logs them: once an episode, because a stranger decides how many there
//! are.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sync::log::log_line;

/// An episode is over when there was no such request for this long.
const EPISODE: Duration = Duration::from_secs(60);

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    WrongToken,
    NoToken,
    /// There is no token, so only local callers have access.
    Stranger,
}

impl Refused {
    pub(crate) const ALL: [Self; 3] = [Self::WrongToken, Self::NoToken, Self::Stranger];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WrongToken => "wrong_token",
            Self::NoToken => "no_token",
            Self::Stranger => "stranger",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::WrongToken => "a request with a wrong token",
            Self::NoToken => "a request without the token",
            Self::Stranger => "a request that only local callers may make without a token",
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refusals([Kind; Refused::ALL.len()]);

#[derive(Debug, Default)]
struct Kind {
    count: AtomicU64,
    latest: Mutex<Option<Instant>>,
}

impl Refusals {
    pub(crate) fn count(&self, refused: Refused, peer: Option<SocketAddr>) {
        if self.0[refused as usize].note(Instant::now()) {
            let peer = peer.map_or_else(String::new, |peer| format!(" from {peer}"));
            log_line(
                log::Level::Warn,
                format_args!(
                    "http: {}{peer} was refused; further ones are counted, and not logged until \
                     there was none for {EPISODE:?}",
                    refused.text()
                ),
            );
        }
    }

    pub(crate) fn get(&self, refused: Refused) -> u64 {
        self.0[refused as usize].count.load(Ordering::Relaxed)
    }
}

impl Kind {
    /// Counts a request, and returns whether it begins an episode.
    fn note(&self, now: Instant) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let latest = self.latest.lock().replace(now);
        latest.is_none_or(|at| now.saturating_duration_since(at) >= EPISODE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_begins_once_however_many_requests_it_has() {
        let refusals = Refusals::default();
        let kind = &refusals.0[Refused::WrongToken as usize];
        let begun = Instant::now();
        assert!(kind.note(begun));
        for n in 1..=10_000 {
            assert!(!kind.note(begun + Duration::from_millis(n)), "{n}");
        }
        let end = begun + Duration::from_secs(10);
        assert!(!kind.note(end + EPISODE - Duration::from_millis(1)));
        assert!(kind.note(end + EPISODE * 2), "another episode");
        assert_eq!(refusals.get(Refused::WrongToken), 10_003);
        assert_eq!(refusals.get(Refused::NoToken), 0);
    }
}
