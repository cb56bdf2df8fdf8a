//! The verdict on a worker: one pure function, its input and its output.
//!
//! No clock, no lock, no I/O: time is an argument. Only [`evidence`] reads `/proc`.

mod ending;
pub(crate) mod evidence;
mod exit;
mod judge;
mod limits;
mod report;
mod state;
mod verdict;

pub use ending::{Death, DeathCause, Ending, StopCause};
pub use exit::Exit;
pub(crate) use judge::{Outlook, Signs, judge_living, next_change, verdict, vouched};
pub use judge::{Reading, judge};
pub(crate) use limits::Limits;
pub use limits::Thresholds;
pub use report::{
    GroupState, GroupStats, MissingWorkers, StateCounts, StoreStatus, Summary, SweepReport,
    SweepTotals, TypeStats, UnwellWorker,
};
pub use state::{Activity, State};
pub(crate) use verdict::during;
pub use verdict::{Health, StallCause, Stalled};
