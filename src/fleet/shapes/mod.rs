//! What stores and their callers exchange: plain data, without behaviour beyond the verdict on a
//! worker. Ages cross this border, never times: each store decides by its own clock.

mod counts;
mod event;
mod filter;
mod key;
mod request;
mod stored;
mod sweep;
mod worker;

pub use counts::FleetCounts;
pub(crate) use counts::{MOST_NAMES, MOST_UNWELL};
pub use event::{EventFilter, EventPage, FleetEvent, FleetEventKind};
pub use filter::WorkerFilter;
pub(crate) use filter::Worst;
#[cfg(feature = "postgres")]
pub(crate) use filter::severity_rank;
pub use key::{LeaseKey, WorkerKey};
pub use request::{Answer, Claim, ClaimAnswer, Renewal, Stop};
pub(crate) use stored::{DEFAULT_THRESHOLD, JudgedFacts};
pub use stored::{StoredDeath, StoredEnding, StoredWorker};
pub(crate) use sweep::MOST_EVENTS_KEPT;
#[cfg(feature = "postgres")]
pub(crate) use sweep::PIECES;
pub use sweep::{Retention, Sweep, WatchedSpan};
pub use worker::{Beat, Registration, WorkerInfo, WorkerStatus};
