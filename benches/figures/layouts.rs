//! What `beat()` adds to a loop of work, over many layouts of the same code.
//!
//! Where a loop happens to lie in memory can change its speed by more than a beat takes. So the loop is
//! compiled with its start shifted by several numbers of bytes, with the work called and inlined, and
//! with several kinds of work; each layout is measured with and without the beat, by turns.

use std::arch::asm;
use std::hash::{DefaultHasher, Hasher};
use std::hint::black_box;
use std::time::Duration;

use worker_heartbeat::WorkerHeartbeat;

use crate::contest::{Contest, Plan, Spread};
use crate::stopwatch::Stopwatch;
use crate::table::{Table, Target, Unit};

/// Enough for a median of one layout; there are many.
const PLAN: Plan = Plan {
    repetitions: 3,
    rounds: 15,
    batch: Duration::from_micros(500),
};

/// Measures all layouts.
pub(crate) fn measure(table: &mut Table, worker: &WorkerHeartbeat) {
    let mut added = Vec::new();
    let mut bare = Vec::new();
    for (without, with) in layouts() {
        let mut contest = Contest::new(PLAN);
        let without = contest.enter(Box::new(|times| without(worker, times)));
        let with = contest.enter(Box::new(|times| with(worker, times)));
        let outcome = contest.run();
        bare.push(outcome.nanos(without).median);
        added.push(outcome.added(with, without).median);
    }
    let bare = Spread::of(bare);
    table.add(
        format!(
            "what `beat()` adds to a loop of {:.0} to {:.0} ns of work, over {} layouts of the code",
            bare.min,
            bare.max,
            added.len()
        ),
        Spread::of(added.iter().copied()),
        Unit::Nanoseconds,
        Target::AtMost(1.0),
    );
    let worst = added.into_iter().fold(f64::MIN, f64::max);
    table.add(
        "what `beat()` adds in the worst of these layouts",
        Spread::exactly(worst),
        Unit::Nanoseconds,
        Target::None,
    );
}

/// A loop, timed.
type Loop = fn(&WorkerHeartbeat, u64) -> Duration;

fn layouts() -> Vec<(Loop, Loop)> {
    let mut all = Vec::new();
    macro_rules! kinds {
        ($($work:ident)*) => {$({
            macro_rules! at {
                ($bytes:literal) => {
                    all.push((
                        run::<$bytes, false, $work> as Loop,
                        run::<$bytes, true, $work> as Loop,
                    ));
                };
            }
            at!(0);
            at!(5);
            at!(11);
            at!(16);
            at!(23);
            at!(32);
            at!(45);
            at!(58);
        })*};
    }
    kinds!(HashCalled HashInlined MixCalled MixInlined);
    all
}

/// The loop, after so many instructions of one byte each that do nothing.
#[inline(never)]
fn run<const SHIFT: usize, const BEATS: bool, W: Work>(
    worker: &WorkerHeartbeat,
    times: u64,
) -> Duration {
    let watch = Stopwatch::start();
    // SAFETY: it does nothing.
    unsafe { asm!(".rept {shift}", "nop", ".endr", shift = const SHIFT) };
    let mut state = 1;
    for _ in 0..times {
        if BEATS {
            black_box(worker).beat();
        }
        state = W::step(black_box(state));
    }
    black_box(state);
    watch.lap().own
}

/// A kind of work.
trait Work {
    fn step(state: u64) -> u64;
}

/// Hashing, as a function that is called.
struct HashCalled;

impl Work for HashCalled {
    #[inline(never)]
    fn step(state: u64) -> u64 {
        hash(state)
    }
}

/// Hashing, in the loop itself.
struct HashInlined;

impl Work for HashInlined {
    #[inline(always)]
    fn step(state: u64) -> u64 {
        hash(state)
    }
}

#[inline(always)]
fn hash(state: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    for word in 0..24 {
        hasher.write_u64(black_box(word) ^ state);
    }
    hasher.finish()
}

/// Multiplications that depend on each other, as a function that is called.
struct MixCalled;

impl Work for MixCalled {
    #[inline(never)]
    fn step(state: u64) -> u64 {
        mix(state)
    }
}

/// Multiplications that depend on each other, in the loop itself.
struct MixInlined;

impl Work for MixInlined {
    #[inline(always)]
    fn step(state: u64) -> u64 {
        mix(state)
    }
}

#[inline(always)]
fn mix(mut state: u64) -> u64 {
    for _ in 0..32 {
        state = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    state
}
