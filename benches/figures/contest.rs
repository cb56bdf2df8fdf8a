//! Timing by turns, many times, so that a disturbance affects all contestants.

use std::hint::black_box;
use std::time::Duration;

use crate::stopwatch::Stopwatch;

/// A median, and how far the repetitions spread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// # Panics
    /// Without any value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self {
            median: percentile(&values, 50.0),
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    /// A value that was counted, not timed.
    pub(crate) fn exactly(value: f64) -> Self {
        Self::of([value])
    }
}

/// The value that `percent` of all values do not exceed.
///
/// # Panics
/// Without any value.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The number of repetitions and rounds, and their length.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// Their medians are what is reported: the middle one, the lowest and the highest.
    pub(crate) repetitions: usize,
    /// Each contestant runs once in a round, and each repetition is the median of its rounds.
    pub(crate) rounds: usize,
    /// How long a contestant runs in a round; at least once.
    pub(crate) batch: Duration,
}

impl Plan {
    /// For what takes nanoseconds.
    pub(crate) const SHORT: Self = Self {
        repetitions: 9,
        rounds: 25,
        batch: Duration::from_millis(1),
    };

    /// For what depends on something that happens each millisecond.
    pub(crate) const LONG: Self = Self {
        repetitions: 9,
        rounds: 15,
        batch: Duration::from_millis(6),
    };

    /// For what takes milliseconds.
    pub(crate) const HEAVY: Self = Self {
        repetitions: 5,
        rounds: 5,
        batch: Duration::from_millis(5),
    };
}

/// Runs something so many times, and says how long that took.
type Run<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

/// Times `work`, again and again in a tight loop.
pub(crate) fn timed<'a, T>(mut work: impl FnMut() -> T + 'a) -> Run<'a> {
    Box::new(move |times| {
        let watch = Stopwatch::start();
        for _ in 0..times {
            black_box(work());
        }
        watch.lap().own
    })
}

/// Measures its contestants by turns.
pub(crate) struct Contest<'a> {
    plan: Plan,
    contestants: Vec<Run<'a>>,
}

/// The index of a contestant.
pub(crate) type Contestant = usize;

impl<'a> Contest<'a> {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            contestants: Vec::new(),
        }
    }

    pub(crate) fn enter(&mut self, run: Run<'a>) -> Contestant {
        self.contestants.push(run);
        self.contestants.len() - 1
    }

    pub(crate) fn run(mut self) -> Outcome {
        let times: Vec<u64> = self
            .contestants
            .iter_mut()
            .map(|run| times_within(run, self.plan.batch))
            .collect();
        let count = self.contestants.len();
        let repetition = |contestants: &mut Vec<Run<'a>>| {
            (0..self.plan.rounds)
                .map(|round| {
                    let mut nanos = vec![0.0; count];
                    for turn in 0..count {
                        // Rotated, so that no contestant always follows the same one.
                        let who = (turn + round) % count;
                        let took = contestants[who](times[who]);
                        nanos[who] = took.as_nanos() as f64 / times[who] as f64;
                    }
                    nanos
                })
                .collect()
        };
        let repetitions = (0..self.plan.repetitions)
            .map(|_| repetition(&mut self.contestants))
            .collect();
        Outcome { repetitions }
    }
}

/// How often something can run in this time. Warms it up, too.
fn times_within(run: &mut Run<'_>, batch: Duration) -> u64 {
    let mut times = 1;
    loop {
        let took = run(times);
        if took >= batch / 2 || times >= 1 << 30 {
            let fitting = times as f64 * batch.as_secs_f64() / took.as_secs_f64();
            return (fitting as u64).max(1);
        }
        times *= 2;
    }
}

/// What a contest measured, in nanoseconds a run: by repetition, round, contestant.
pub(crate) struct Outcome {
    repetitions: Vec<Vec<Vec<f64>>>,
}

impl Outcome {
    /// Nanoseconds that one run took.
    pub(crate) fn nanos(&self, who: Contestant) -> Spread {
        self.compare(|round| round[who])
    }

    /// How many times as long as the other one's its run took, in the same round.
    pub(crate) fn ratio(&self, who: Contestant, to: Contestant) -> Spread {
        self.compare(|round| round[who] / round[to])
    }

    /// How many nanoseconds longer than the other one's its run took, in the same round.
    pub(crate) fn added(&self, who: Contestant, to: Contestant) -> Spread {
        self.compare(|round| round[who] - round[to])
    }

    pub(crate) fn compare(&self, figure: impl Fn(&[f64]) -> f64) -> Spread {
        Spread::of(
            self.repetitions
                .iter()
                .map(|rounds| Spread::of(rounds.iter().map(|round| figure(round))).median),
        )
    }
}
