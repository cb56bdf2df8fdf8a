//! Items without their long texts, for a coordinator or a proxy that refuses them. Pure.

use crate::fleet::{Beat, Claim, LeaseKey, Registration, Stop};
use crate::health::State;
use crate::sync::printable::cut;

/// An item that may be stored without its long texts.
pub(super) trait Reduce: Sized {
    /// The worker.
    fn name(&self) -> &str;

    /// The item with texts of at most this number of bytes, and without them if it is 0. `None` if
    /// that changes nothing.
    fn reduced(&self, longest: usize) -> Option<Self>;
}

/// Shortens a text. Returns whether it was longer.
fn shorten(text: &mut String, longest: usize) -> bool {
    let is_longer = text.len() > longest;
    cut(text, longest);
    is_longer
}

fn shorten_some(text: &mut Option<String>, longest: usize) -> bool {
    if longest == 0 {
        return text.take().is_some();
    }
    text.as_mut().is_some_and(|text| shorten(text, longest))
}

fn shorten_metadata(metadata: &mut Vec<(String, String)>, longest: usize) -> bool {
    if longest == 0 {
        let any = !metadata.is_empty();
        metadata.clear();
        return any;
    }
    let values = metadata.iter_mut();
    values.fold(false, |any, (_, value)| shorten(value, longest) || any)
}

impl Reduce for Registration {
    fn name(&self) -> &str {
        &self.id
    }

    fn reduced(&self, longest: usize) -> Option<Self> {
        let mut reduced = self.clone();
        shorten_metadata(&mut reduced.info.metadata, longest).then_some(reduced)
    }
}

impl Reduce for Beat {
    fn name(&self) -> &str {
        &self.key.id
    }

    fn reduced(&self, longest: usize) -> Option<Self> {
        let mut reduced = self.clone();
        let status = &mut reduced.status;
        let shortened = [
            shorten_some(&mut status.reason, longest),
            shorten_some(&mut status.stack, longest),
            shorten_some(&mut status.task, longest),
            shorten_metadata(&mut reduced.metadata, longest),
            rename(&mut status.state),
        ];
        shortened.contains(&true).then_some(reduced)
    }
}

/// An older coordinator does not know all states. Returns whether it is another one now.
fn rename(state: &mut State) -> bool {
    let is_new = *state == State::Overdue;
    if is_new {
        *state = State::Stalled;
    }
    is_new
}

impl Reduce for Claim {
    fn name(&self) -> &str {
        &self.worker.id
    }

    fn reduced(&self, _longest: usize) -> Option<Self> {
        None
    }
}

impl Reduce for Stop {
    fn name(&self) -> &str {
        &self.key.id
    }

    fn reduced(&self, longest: usize) -> Option<Self> {
        let mut reduced = self.clone();
        let ending = &mut reduced.ending;
        let shortened = [
            shorten_some(&mut ending.detail, longest),
            shorten_some(&mut ending.location, longest),
        ];
        shortened.contains(&true).then_some(reduced)
    }
}

impl Reduce for LeaseKey {
    fn name(&self) -> &str {
        &self.worker.id
    }

    fn reduced(&self, _: usize) -> Option<Self> {
        None
    }
}
