//! Which signals this process ignores, catches and blocks, as Linux shows it (proc(5)). Unknown on
//! other systems and without `/proc`.

use std::fs;

/// The dispositions of the signals of this process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SignalState {
    ignored: u64,
    caught: u64,
    blocked: u64,
}

/// The action of a signal before it was hooked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// The default action: it ends the process.
    Default,
    Ignored,
    /// It has a handler already.
    Caught,
}

impl SignalState {
    pub(super) fn read() -> Self {
        fs::read_to_string("/proc/thread-self/status")
            .map(|status| Self::parse(&status))
            .unwrap_or_default()
    }

    fn parse(status: &str) -> Self {
        let mask = |name| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
                .unwrap_or(0)
        };
        Self {
            ignored: mask("SigIgn"),
            caught: mask("SigCgt"),
            blocked: mask("SigBlk"),
        }
    }

    pub(super) const fn before(&self, signal: i32) -> Before {
        if has(self.ignored, signal) {
            Before::Ignored
        } else if has(self.caught, signal) {
            Before::Caught
        } else {
            Before::Default
        }
    }

    /// Whether every thread of this process blocks the signal. A new thread inherits the mask of the
    /// thread that starts it.
    pub(super) fn is_blocked_everywhere(&self, signal: i32) -> bool {
        has(self.blocked, signal)
            && fs::read_dir("/proc/self/task").is_ok_and(|threads| {
                threads
                    .filter_map(|thread| {
                        fs::read_to_string(thread.ok()?.path().join("status")).ok()
                    })
                    .all(|status| has(Self::parse(&status).blocked, signal))
            })
    }
}

const fn has(mask: u64, signal: i32) -> bool {
    // Signals count from 1; other numbers are in no mask.
    signal > 0 && signal <= 64 && (mask >> (signal - 1)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_found_in_their_masks() {
        let state = SignalState::parse(
            "Name:\tx\nSigBlk:\t0000000000004000\nSigIgn:\t0000000000001001\n\
             SigCgt:\t8000000000000002\n",
        );
        assert_eq!(state.before(1), Before::Ignored);
        assert_eq!(state.before(2), Before::Caught);
        assert_eq!(state.before(3), Before::Default);
        assert_eq!(state.before(13), Before::Ignored);
        assert_eq!(state.before(64), Before::Caught);
        assert!(has(state.blocked, 15) && !has(state.blocked, 14));
        // This thread does not block it.
        assert!(!state.is_blocked_everywhere(15));
        assert!(!state.is_blocked_everywhere(14));
    }

    #[test]
    fn a_status_without_masks_has_no_signals() {
        for status in ["", "SigIgn:\tx", "SigIgn 1"] {
            let state = SignalState::parse(status);
            for signal in [i32::MIN, -1, 0, 1, 64, 65, i32::MAX] {
                assert_eq!(state.before(signal), Before::Default);
                assert!(!state.is_blocked_everywhere(signal));
            }
        }
    }
}
