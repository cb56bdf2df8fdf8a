//! What can be said of a worker, and the one function that says it.
//!
//! Pure: no clock, no lock, no I/O (the evidence reads `/proc`). Time is handed in.

pub(crate) mod evidence;
mod judge;
mod report;
mod state;
mod verdict;

pub(crate) use judge::{Limits, Signs, next_change, verdict, vouched};
pub use judge::{Reading, Thresholds, judge};
pub use report::{
    GroupState, GroupStats, MissingWorkers, StateCounts, StoreStatus, Summary, SweepReport,
    SweepTotals, TypeStats, UnwellWorker,
};
pub use state::{Activity, State};
pub(crate) use verdict::during;
pub use verdict::{Death, DeathCause, Ending, Health, StallCause, Stalled, StopCause};
