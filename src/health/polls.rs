//! What is known of a worker that is a future.

use std::fmt;
use std::time::Duration;

use super::SourceLocation;
use crate::sync::printable::{Age, Printable};

/// The future that a worker runs, and how it was polled:
/// [`Snapshot::future`](crate::Snapshot::future).
///
/// Displayed, it is a part of a sentence: `last polled 12 s ago on tokio-rt-worker (4711), 4112 polls`.
///
/// ```
/// use worker_heartbeat::WorkerHeartbeat;
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let hb = WorkerHeartbeat::builder("fetcher").start()?;
/// let fetch = hb.supervise(async { tokio::task::yield_now().await });
/// let probe = fetch.probe();
/// fetch.await?;
/// let future = probe.snapshot().future.expect("the worker is a future");
/// assert_eq!(future.polls, 2);
/// println!("{}: {future}", future.type_name); // app::main::{{closure}}::{{closure}}: last polled ...
/// # Ok::<(), worker_heartbeat::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FutureInfo {
    /// Its type, as [`std::any::type_name`] gives it; of more than 200 bytes, the end is cut.
    pub type_name: String,
    /// Where it was passed to `supervise`.
    pub location: Option<SourceLocation>,
    /// How often it was polled in this incarnation.
    pub polls: u64,
    /// Time since its last poll began, at most two resolutions too short. `None` if it was never polled, or
    /// its worker is over.
    pub last_poll_age: Option<Duration>,
    /// The thread of its last poll: its name, if it has one, and the kernel's number of it. `None` if it was
    /// never polled, or that thread has ended.
    pub last_poll_thread: Option<String>,
    /// The last poll has not returned.
    pub is_polled_now: bool,
}

impl FutureInfo {
    /// Longer names of types are cut.
    pub(crate) const LONGEST_TYPE: usize = 200;
}

impl fmt::Display for FutureInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.polls == 0 {
            return f.write_str("never polled");
        }
        f.write_str(if self.is_polled_now {
            "in a poll that began"
        } else {
            "last polled"
        })?;
        if let Some(age) = self.last_poll_age {
            write!(f, " {} ago", Age(age))?;
        }
        if let Some(thread) = &self.last_poll_thread {
            write!(f, " on {}", Printable(thread))?;
        }
        let s = if self.polls == 1 { "" } else { "s" };
        write!(f, ", {} poll{s}", self.polls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_when_and_where_it_was_polled() {
        let mut future = FutureInfo {
            type_name: "shop::fetch::{{closure}}".to_owned(),
            location: None,
            polls: 0,
            last_poll_age: None,
            last_poll_thread: None,
            is_polled_now: false,
        };
        assert_eq!(future.to_string(), "never polled");
        future.polls = 1;
        assert_eq!(future.to_string(), "last polled, 1 poll");
        future.polls = 4_112;
        future.last_poll_age = Some(Duration::from_secs(12));
        future.last_poll_thread = Some("tokio\n (4711)".to_owned());
        assert_eq!(
            future.to_string(),
            "last polled 12 s ago on tokio\\n (4711), 4112 polls"
        );
        future.is_polled_now = true;
        assert_eq!(
            future.to_string(),
            "in a poll that began 12 s ago on tokio\\n (4711), 4112 polls"
        );
    }
}
