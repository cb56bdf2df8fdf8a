//! Silences of healthy work, as they were chosen to differ: in seconds, the same for each seed.

use std::f64::consts::TAU;

/// Numbers that look random and are the same in every run (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Between 0 and 1, neither of them.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Of a normal distribution.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (TAU * self.unit()).cos()
    }

    /// About this long, by a factor of e to the `spread`.
    fn about(&mut self, length: f64, spread: f64) -> f64 {
        length * (spread * self.normal()).exp()
    }
}

pub(crate) struct Trace {
    pub(crate) name: &'static str,
    /// The silence that begins at this time, with this number.
    pub(crate) silence: fn(&mut Dice, f64, u64) -> f64,
}

const DAY: f64 = 86_400.0;
const HOUR: f64 = 3_600.0;

pub(crate) const TRACES: [Trace; 7] = [
    Trace {
        name: "steady: 1 s ± 5 %",
        silence: |dice, _, _| (1.0 + 0.05 * dice.normal()).max(0.1),
    },
    Trace {
        name: "drifting: 0.5 s to 3.5 s and back in a day",
        silence: |dice, now, _| dice.about(2.0 + 1.5 * (now / DAY * TAU).sin(), 0.1),
    },
    Trace {
        name: "bursty: 0.5 s, by a factor of 2.2; 0.2 % outliers of 5 s to 50 s",
        silence: |dice, _, _| {
            if dice.unit() < 0.002 {
                5.0 * 10.0_f64.powf(dice.unit())
            } else {
                dice.about(0.5, 0.8)
            }
        },
    },
    Trace {
        name: "two phases: three of 1 s, one of 12 s",
        silence: |dice, _, number| dice.about(if number % 4 == 3 { 12.0 } else { 1.0 }, 0.1),
    },
    Trace {
        name: "a shift: 1 s, but 25 s between 2 and 3 o'clock",
        silence: |dice, now, _| {
            let hour = (now / HOUR) % 24.0;
            dice.about(
                if (2.0..3.0).contains(&hour) {
                    25.0
                } else {
                    1.0
                },
                0.1,
            )
        },
    },
    Trace {
        name: "heavy tail: 0.5 s, by a factor of 2.7",
        silence: |dice, _, _| dice.about(0.5, 1.0),
    },
    Trace {
        name: "rare: 1 s, by a factor of 1.35; 0.03 % of 20 s",
        silence: |dice, _, _| {
            if dice.unit() < 0.000_3 {
                20.0
            } else {
                dice.about(1.0, 0.3)
            }
        },
    },
];
