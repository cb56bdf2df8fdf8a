//! The time line.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use super::{Ghost, at, model};
use crate::registry::core::timeline::Timeline;

const RESOLUTION: Duration = Duration::from_nanos(10);

fn timeline() -> Timeline {
    let line = Timeline::new(at(100));
    line.tick(at(100), RESOLUTION);
    line
}

/// The observed time is of one tick: it never goes back, never runs ahead of the clock, and never beyond
/// what one tick allows.
///
/// Mirrors `Core::observed_now` and `pacemaker::tick`. The first tick is in time, the second one late.
#[test]
fn observed_time_is_consistent_and_never_goes_back() {
    model(2, || {
        let line = Arc::new(timeline());
        let clock = Arc::new(Ghost::default());
        clock.set(at(100));
        let pacemaker = {
            let (line, clock) = (Arc::clone(&line), Arc::clone(&clock));
            thread::spawn(move || {
                for now in [115, 155].map(at) {
                    clock.set(now);
                    line.tick(now, RESOLUTION);
                }
            })
        };
        let early = line.observed_now(clock.get());
        assert!(
            [100, 115, 135].map(at).contains(&early.tick),
            "torn: {early:?}"
        );
        assert!(early.now <= early.clock.max(early.tick));
        assert!(early.now <= early.tick.after(2 * RESOLUTION));
        pacemaker.join().unwrap();
        let observed = line.observed_now(at(160));
        assert_eq!((observed.tick, observed.now), (at(135), at(140)));
        assert!(observed.now >= early.now);
    });
}
