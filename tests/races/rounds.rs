//! How threads meet: awake, each on a processor of its own, within nanoseconds of each other.

use std::hint::black_box;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::support::{eventually, pacemakers};

/// How often two sides meet, unless a test says otherwise.
pub(crate) const ROUNDS: usize = 20_000;
/// On a loaded machine each meeting waits for the processors: then there are fewer rounds.
const LONGEST: Duration = Duration::from_secs(8);
/// A test that takes longer than this hangs: it takes seconds on a quiet machine, a minute on a
/// loaded one.
const HANGS: Duration = Duration::from_secs(240);

/// Runs a test while no other one runs, fails it if it hangs, and checks that it leaves no
/// pacemaker.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (ended, is_ended) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let _ended = ended;
        // A test that failed before may have left some.
        let before = pacemakers().len();
        let begun = Instant::now();
        test();
        println!("it took {:.1?}", begun.elapsed());
        eventually("no pacemaker is left", || pacemakers().len() == before);
    });
    if is_ended.recv_timeout(HANGS) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("it hangs");
    }
    if let Err(why) = thread.join() {
        resume_unwind(why);
    }
}

/// Pins the calling thread to one of the processors, so that the sides of a race do not share one.
/// Threads that it starts afterwards inherit the affinity.
pub(crate) fn settle_on(side: usize) {
    let this = Pid::from_raw(0);
    let Ok(all) = sched_getaffinity(this) else {
        return;
    };
    let usable: Vec<_> = (0..CpuSet::count())
        .filter(|cpu| all.is_set(*cpu).unwrap_or(false))
        .collect();
    let mut one = CpuSet::new();
    one.set(usable[side % usable.len()]).unwrap();
    // If it fails, the sides meet less closely; the invariant holds all the same.
    let _ = sched_setaffinity(this, &one);
}

/// A spinning barrier, so that threads leave it within nanoseconds of each other.
pub(crate) struct Meeting {
    parties: usize,
    arrived: AtomicUsize,
    broken: AtomicBool,
}

/// Breaks a meeting if its thread panics, so that no thread waits for it.
pub(crate) struct Attendance<'a>(&'a Meeting);

impl Meeting {
    pub(crate) fn of(parties: usize) -> Self {
        Self {
            parties,
            arrived: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    pub(crate) fn attend(&self) -> Attendance<'_> {
        Attendance(self)
    }

    pub(crate) fn wait(&self) {
        let before = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (before / self.parties + 1) * self.parties;
        let mut turns = 0_u32;
        while self.arrived.load(Ordering::Acquire) < all {
            assert!(!self.broken.load(Ordering::Relaxed), "another side failed");
            turns += 1;
            if turns < 2_000 {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

/// A short delay, different in each round and for each side, so that the sides meet in many ways.
pub(crate) fn stagger(round: usize, side: usize) {
    dawdle(chance(round * 31 + side * 17) % 200);
}

/// A pseudo-random number that is the same in each run.
pub(crate) fn chance(seed: usize) -> usize {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
}

/// Spends a few nanoseconds, awake.
pub(crate) fn dawdle(turns: usize) {
    for turn in 0..turns {
        black_box(turn);
    }
}

/// The numbers of the rounds, of which there are `count` if time allows.
pub(crate) fn rounds(count: usize) -> impl Iterator<Item = usize> {
    let begun = Instant::now();
    (0..count).take_while(move |round| *round < 100 || begun.elapsed() < LONGEST)
}

/// In each round: prepares the state, starts all sides at once, and checks the outcome.
pub(crate) fn race<T: Send + Sync>(
    count: usize,
    mut set_up: impl FnMut(usize) -> T,
    sides: &[&(dyn Fn(&T) + Sync)],
    mut check: impl FnMut(usize, T),
) {
    let meeting = Meeting::of(sides.len());
    let stage = RwLock::new(None::<Arc<T>>);
    thread::scope(|scope| {
        for (number, side) in sides.iter().enumerate().skip(1) {
            let (meeting, stage) = (&meeting, &stage);
            scope.spawn(move || {
                settle_on(number);
                let _attendance = meeting.attend();
                for round in 0.. {
                    meeting.wait();
                    let Some(set) = stage.read().unwrap().clone() else {
                        return;
                    };
                    meeting.wait();
                    stagger(round, number);
                    side(&set);
                    drop(set);
                    meeting.wait();
                }
            });
        }
        settle_on(0);
        let _attendance = meeting.attend();
        for round in rounds(count) {
            let set = Arc::new(set_up(round));
            *stage.write().unwrap() = Some(Arc::clone(&set));
            meeting.wait();
            meeting.wait();
            stagger(round, 0);
            sides[0](&set);
            meeting.wait();
            *stage.write().unwrap() = None;
            check(round, Arc::into_inner(set).unwrap());
        }
        meeting.wait();
    });
}
