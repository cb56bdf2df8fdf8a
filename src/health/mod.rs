//! The verdict on a worker: one pure function, its input and its output.
//!
//! No clock, no lock, no I/O: time is an argument. Only [`evidence`] reads `/proc`.

mod call_stack;
mod ending;
pub(crate) mod evidence;
mod exit;
mod judge;
mod learn;
mod lease_loss;
mod limits;
mod location;
mod policy;
mod polls;
mod rate;
mod reading;
mod report;
mod state;
mod state_counts;
mod sweep;
mod verdict;

pub(crate) use call_stack::LONGEST_TEXT;
#[cfg(all(feature = "stacks", target_os = "linux", target_arch = "x86_64"))]
pub(crate) use call_stack::is_foreign;
pub use call_stack::{CallStack, StackCapture, StackFrame};
pub use ending::{Death, DeathCause, Ending, StopCause};
pub use exit::Exit;
pub use judge::judge;
pub(crate) use judge::{Context, Fault, Outlook, judge_living, next_change, verdict, vouched};
pub use learn::{Learn, Learned, Learner};
pub use lease_loss::LeaseLoss;
pub use limits::Thresholds;
pub(crate) use limits::{Limits, Term};
pub(crate) use location::CallSite;
pub use location::SourceLocation;
#[cfg(any(feature = "http", all(unix, feature = "systemd")))]
pub(crate) use policy::Preset;
pub use policy::{Policy, RuleResult, Verdict};
pub use polls::FutureInfo;
pub use rate::Rate;
pub(crate) use rate::{RateChange, RateWatch, racing_text};
pub use reading::Reading;
pub(crate) use reading::{Deadline, Signs};
pub use report::{GroupState, GroupStats, MissingWorkers, Summary, TypeStats, UnwellWorker};
pub use state::{Activity, State};
pub use state_counts::StateCounts;
pub use sweep::{StoreStatus, SweepReport, SweepTotals};
pub(crate) use verdict::during;
pub use verdict::{Health, StallCause, Stalled};
