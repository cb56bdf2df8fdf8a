//! Ways to learn a limit from silences.
//!
//! beatwise reads the system's clock, so its models are simulated here, with the rules and constants of
//! version 0.2.1. `check_simulation` compares their limits with those of the crate itself.

use std::collections::VecDeque;

use worker_heartbeat::{Learn, Learner, Moment};

pub(crate) trait Model {
    /// A silence ended with progress.
    fn observe(&mut self, from: f64, to: f64);
    /// The limit in force, in seconds.
    fn limit(&self) -> f64;
}

/// Makes a model with a sensitivity.
pub(crate) type Make = Box<dyn Fn(f64) -> Box<dyn Model>>;

pub(crate) fn beatwise_models() -> [(&'static str, Make); 4] {
    [
        ("fixed", Box::new(|limit| Box::new(Fixed(limit)))),
        ("EWMA", Box::new(|k| Box::new(Ewma::new(k)))),
        ("robust window", Box::new(|k| Box::new(Window::new(k)))),
        ("pattern", Box::new(|k| Box::new(Pattern::new(k)))),
    ]
}

/// A way to learn, with its name.
type Way = (&'static str, fn() -> Box<dyn Model>);

pub(crate) fn others() -> [Way; 5] {
    [
        ("TCP (RFC 6298), mean + 4 deviations", || {
            Box::new(Tcp::default())
        }),
        ("phi accrual, 1000 samples, phi 8", || {
            Box::new(Phi::default())
        }),
        ("99.9 % quantile of 1000, times 2", || {
            Box::new(Sorted::new(|sorted| {
                2.0 * sorted[sorted.len() * 999 / 1000]
            }))
        }),
        ("median + 10 MAD of 1000", || {
            Box::new(Sorted::new(|sorted| {
                let (median, mad) = median_and_mad(sorted);
                median + 10.0 * mad
            }))
        }),
        ("longest of 1000, times 2", || {
            Box::new(Sorted::new(|sorted| 2.0 * sorted[sorted.len() - 1]))
        }),
    ]
}

// --- this crate --------------------------------------------------------------------------------------

/// Seconds between two ticks of the pacemaker, for a floor of 1 s.
const RESOLUTION: f64 = 0.1;

struct Ours(Learner);

pub(crate) fn ours() -> Box<dyn Model> {
    Box::new(Ours(Learner::new(Learn::new())))
}

impl Model for Ours {
    fn observe(&mut self, from: f64, to: f64) {
        // The pacemaker sees a beat at its next tick.
        let tick =
            |time: f64| Moment::from_nanos(((time / RESOLUTION).ceil() * RESOLUTION * 1e9) as u64);
        let (from, to) = (tick(from), tick(to));
        if to > from {
            self.0.observe(from, to);
        }
    }

    fn limit(&self) -> f64 {
        // A hang is found up to a resolution later, and dated up to a resolution late. A healthy
        // silence gains nothing from the second.
        self.0.learned().allowed.as_secs_f64()
    }
}

// --- beatwise ----------------------------------------------------------------------------------------

/// Its default before anything is learned.
const STARTUP_GRACE: f64 = 30.0;
const MINIMUM_GRACE: f64 = 0.01;
/// `Adaptation::Slow`, its default.
const SLOW: f64 = 0.05;
const SLOW_STRIDE: u32 = 4;
/// Its default is 8; its window needs an odd number.
const MINIMUM_SAMPLES: u32 = 9;

struct Fixed(f64);

impl Model for Fixed {
    fn observe(&mut self, _: f64, _: f64) {}

    fn limit(&self) -> f64 {
        self.0
    }
}

struct Ewma {
    sensitivity: f64,
    samples: u32,
    mean: f64,
    deviation: f64,
}

impl Ewma {
    fn new(sensitivity: f64) -> Self {
        Self {
            sensitivity,
            samples: 0,
            mean: 0.0,
            deviation: 0.0,
        }
    }

    fn allowance(&self) -> f64 {
        MINIMUM_GRACE.max(self.sensitivity * self.deviation)
    }
}

impl Model for Ewma {
    fn observe(&mut self, from: f64, to: f64) {
        let observed = to - from;
        let range = (self.mean - self.allowance()).max(1e-6)..=self.mean + self.allowance();
        let trained = self.samples >= MINIMUM_SAMPLES;
        if trained && !range.contains(&observed) {
            return;
        }
        let accepted = if trained || self.samples < 3 {
            observed
        } else {
            observed.clamp(*range.start(), *range.end())
        };
        let alpha = if trained {
            SLOW
        } else {
            2.0 / (f64::from(MINIMUM_SAMPLES) + 1.0)
        };
        if self.samples == 0 {
            self.mean = accepted;
        } else {
            let delta = accepted - self.mean;
            self.mean += alpha * delta;
            self.deviation += alpha * (delta.abs() - self.deviation);
        }
        self.samples += 1;
    }

    fn limit(&self) -> f64 {
        if self.samples == 0 {
            STARTUP_GRACE
        } else {
            self.mean + self.allowance()
        }
    }
}

/// The longest window that it has.
const WINDOW: usize = 31;

struct Window {
    sensitivity: f64,
    samples: u32,
    values: VecDeque<f64>,
    center: f64,
    deviation: f64,
}

impl Window {
    fn new(sensitivity: f64) -> Self {
        Self {
            sensitivity,
            samples: 0,
            values: VecDeque::new(),
            center: 0.0,
            deviation: 0.0,
        }
    }

    fn allowance(&self) -> f64 {
        MINIMUM_GRACE.max(self.sensitivity * self.deviation)
    }
}

impl Model for Window {
    fn observe(&mut self, from: f64, to: f64) {
        let observed = to - from;
        let trained = self.samples >= MINIMUM_SAMPLES;
        let range = (self.center - self.allowance()).max(1e-6)..=self.center + self.allowance();
        if trained && !range.contains(&observed) {
            return;
        }
        if !trained || (self.samples - MINIMUM_SAMPLES) % SLOW_STRIDE == 0 {
            if self.values.len() == WINDOW {
                self.values.pop_front();
            }
            self.values.push_back(observed);
            let mut sorted: Vec<_> = self.values.iter().copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            let (median, mad) = median_and_mad(&sorted);
            (self.center, self.deviation) = (median, 1.4826 * mad);
        }
        self.samples += 1;
    }

    fn limit(&self) -> f64 {
        if self.samples == 0 {
            STARTUP_GRACE
        } else {
            self.center + self.allowance()
        }
    }
}

const MOST_PERIOD: usize = 8;
const CYCLES: usize = 3;
/// All that it remembers while it learns.
const MOST_SAMPLES: usize = 64;
const TOLERANCE: f64 = 0.1;
const CONTRAST: f64 = 0.2;

/// A repeating pattern of up to eight silences.
struct Pattern {
    sensitivity: f64,
    samples: usize,
    values: VecDeque<f64>,
    /// Center and deviation of each phase; none until a pattern was found.
    phases: Vec<(f64, f64)>,
    next: usize,
}

impl Pattern {
    fn new(sensitivity: f64) -> Self {
        Self {
            sensitivity,
            samples: 0,
            values: VecDeque::new(),
            phases: Vec::new(),
            next: 0,
        }
    }

    /// The phases of the best period, if it fits well enough.
    fn best(&self) -> Option<Vec<(f64, f64)>> {
        let mut best: Option<(f64, Vec<(f64, f64)>)> = None;
        for period in 2..=MOST_PERIOD {
            let least = (period * CYCLES).max(MINIMUM_SAMPLES as usize);
            if self.values.len() < least {
                continue;
            }
            let (phases, residual) = self.analyze(period);
            let centers = || phases.iter().map(|(center, _)| *center);
            let mean = centers().sum::<f64>() / period as f64;
            let lowest = centers().fold(f64::INFINITY, f64::min);
            let highest = centers().fold(0.0, f64::max);
            let better = best.as_ref().is_none_or(|(least, _)| residual < *least);
            if (highest - lowest) / mean >= CONTRAST && better {
                best = Some((residual, phases));
            }
        }
        best.filter(|(residual, _)| *residual <= TOLERANCE)
            .map(|(_, phases)| phases)
    }

    /// The phases of this period, and the median of the relative residuals.
    fn analyze(&self, period: usize) -> (Vec<(f64, f64)>, f64) {
        let length = self.values.len();
        let start = length % period;
        let oldest = self.samples - length;
        let mut by_phase = vec![Vec::new(); period];
        for index in start..length {
            by_phase[(oldest + index) % period].push(self.values[index]);
        }
        let phases: Vec<_> = by_phase
            .iter_mut()
            .map(|values| {
                values.sort_unstable_by(f64::total_cmp);
                let (median, mad) = median_and_mad(values);
                (median, 1.4826 * mad)
            })
            .collect();
        let mut residuals: Vec<_> = (start..length)
            .map(|index| {
                let (center, _) = phases[(oldest + index) % period];
                (self.values[index] - center).abs() / center
            })
            .collect();
        residuals.sort_unstable_by(f64::total_cmp);
        (phases, median(&residuals))
    }

    fn allowance(&self, deviation: f64) -> f64 {
        MINIMUM_GRACE.max(self.sensitivity * deviation)
    }
}

impl Model for Pattern {
    fn observe(&mut self, from: f64, to: f64) {
        let observed = to - from;
        if let Some(&(center, deviation)) = self.phases.get(self.next) {
            let allowance = self.allowance(deviation);
            if (center - allowance..=center + allowance).contains(&observed) {
                let delta = observed - center;
                self.phases[self.next] = (
                    center + SLOW * delta,
                    deviation + SLOW * (delta.abs() - deviation),
                );
            }
            self.next = (self.next + 1) % self.phases.len();
            return;
        }
        if self.values.len() == MOST_SAMPLES {
            self.values.pop_front();
        }
        self.values.push_back(observed);
        self.samples += 1;
        if let Some(phases) = self.best() {
            self.next = self.samples % phases.len();
            self.phases = phases;
        }
    }

    fn limit(&self) -> f64 {
        let expected = self.phases.get(self.next);
        expected.map_or(STARTUP_GRACE, |(center, deviation)| {
            center + self.allowance(*deviation)
        })
    }
}

// --- other ways --------------------------------------------------------------------------------------

/// The ceiling of all that have no limit of their own before they have learned.
const CEILING: f64 = 300.0;
const FLOOR: f64 = 1.0;

/// Jacobson's estimate of a round trip.
#[derive(Default)]
struct Tcp {
    samples: u32,
    mean: f64,
    deviation: f64,
}

impl Model for Tcp {
    fn observe(&mut self, from: f64, to: f64) {
        let observed = to - from;
        if self.samples == 0 {
            (self.mean, self.deviation) = (observed, observed / 2.0);
        } else {
            let delta = observed - self.mean;
            self.deviation += (delta.abs() - self.deviation) / 4.0;
            self.mean += delta / 8.0;
        }
        self.samples += 1;
    }

    fn limit(&self) -> f64 {
        if self.samples < 64 {
            return CEILING;
        }
        (self.mean + 4.0 * self.deviation).clamp(FLOOR, CEILING)
    }
}

/// The normal distribution of the phi accrual detector, with the least deviation that Akka has.
#[derive(Default)]
struct Phi {
    window: VecDeque<f64>,
    sum: f64,
    squares: f64,
}

impl Model for Phi {
    fn observe(&mut self, from: f64, to: f64) {
        let observed = to - from;
        self.window.push_back(observed);
        self.sum += observed;
        self.squares += observed * observed;
        if self.window.len() > 1_000 {
            let oldest = self.window.pop_front().unwrap_or_default();
            self.sum -= oldest;
            self.squares -= oldest * oldest;
        }
    }

    fn limit(&self) -> f64 {
        if self.window.len() < 64 {
            return CEILING;
        }
        let count = self.window.len() as f64;
        let mean = self.sum / count;
        let deviation = (self.squares / count - mean * mean)
            .max(0.0)
            .sqrt()
            .max(0.1);
        // A silence of 5.6 deviations has the probability 10^-8.
        (mean + 5.612 * deviation).clamp(FLOOR, CEILING)
    }
}

/// A function of the last thousand silences in order, computed for every fiftieth of them.
struct Sorted {
    window: VecDeque<f64>,
    samples: u32,
    limit: f64,
    of: fn(&[f64]) -> f64,
}

impl Sorted {
    fn new(of: fn(&[f64]) -> f64) -> Self {
        Self {
            window: VecDeque::new(),
            samples: 0,
            limit: CEILING,
            of,
        }
    }
}

impl Model for Sorted {
    fn observe(&mut self, from: f64, to: f64) {
        if self.window.len() == 1_000 {
            self.window.pop_front();
        }
        self.window.push_back(to - from);
        self.samples += 1;
        if self.samples >= 64 && self.samples % 50 == 0 {
            let mut sorted: Vec<_> = self.window.iter().copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            self.limit = (self.of)(&sorted).clamp(FLOOR, CEILING);
        }
    }

    fn limit(&self) -> f64 {
        self.limit
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 0 {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

fn median_and_mad(sorted: &[f64]) -> (f64, f64) {
    let center = median(sorted);
    let mut deviations: Vec<_> = sorted.iter().map(|value| (value - center).abs()).collect();
    deviations.sort_unstable_by(f64::total_cmp);
    (center, median(&deviations))
}
