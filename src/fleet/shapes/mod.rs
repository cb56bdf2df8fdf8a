//! What stores and their callers exchange: plain data, without behaviour beyond the verdict on a
//! worker. Ages cross this border, never times: each store decides by its own clock.

mod key;
mod request;
mod stored;
mod sweep;
mod worker;

pub use key::{LeaseKey, WorkerKey};
pub use request::{Answer, Claim, ClaimAnswer, Renewal, Stop, WorkerFilter};
pub(crate) use stored::{DEFAULT_THRESHOLD, summarize};
pub use stored::{StoredDeath, StoredEnding, StoredWorker};
#[cfg(feature = "postgres")]
pub(crate) use sweep::PIECES;
pub use sweep::{Retention, Sweep, WatchedSpan};
pub use worker::{Beat, Registration, WorkerInfo, WorkerStatus};
