//! The pace of a worker, as the pacemaker sees it.

use super::WorkerRef;
use crate::cell::CellSnapshot;
use crate::clock::Moment;
use crate::health::{RateChange, Signs};
use crate::registry::core::pace::{Pace, PaceChange};
use crate::registry::core::timeline::ObservedNow;

/// What the pacemaker has to do for the pace of a worker.
pub(crate) struct PaceSeen {
    /// A limit of its type got shorter.
    pub shortened: bool,
    /// Its rate is to be reported.
    pub rate: Option<RateChange>,
    /// When to look again, even without progress.
    pub due: Moment,
}

impl WorkerRef {
    /// Learns from the silence that ended with the worker's last progress, and measures its rate, where
    /// its profile wants that.
    pub(crate) fn observe_pace(
        &self,
        snapshot: &CellSnapshot,
        signs: &Signs,
        observed: &ObservedNow,
    ) -> PaceSeen {
        let profile = &self.record.profile;
        let nothing = PaceSeen {
            shortened: false,
            rate: None,
            due: Moment::NEVER,
        };
        let (true, Some(since)) = (profile.pace.is_watched(), signs.progress_at) else {
            return nothing;
        };
        let mut detail = self.record.detail();
        if detail.ended.is_some() || !self.is_current() {
            return nothing;
        }
        let Some(pace) = &mut detail.pace else {
            let begun = Pace::begin(signs, since, snapshot.beats, observed);
            detail.pace = Some(Box::new(begun));
            return nothing;
        };
        let seen = (signs, since, snapshot.beats);
        let PaceChange { shortened, rate } =
            pace.observe(&profile.pace, profile.learned.as_deref(), seen, observed);
        PaceSeen {
            shortened,
            rate,
            due: pace.due(&profile.pace),
        }
    }
}
