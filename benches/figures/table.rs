//! The table: what was measured, what it must reach, and whether it does.

use std::fmt;

use crate::contest::Spread;

/// What a figure is counted in.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Nanoseconds,
    Microseconds,
    Times,
    Percent,
    Bytes,
    Allocations,
    Threads,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => " ns",
            Self::Microseconds => " µs",
            Self::Times => " x",
            Self::Percent => " %",
            Self::Bytes => " bytes",
            Self::Allocations | Self::Threads => "",
        }
    }
}

/// What a figure must reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    Exactly(f64),
    /// Shown for comparison.
    None,
}

impl Target {
    fn reached(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(limit) => Some(value <= limit),
            Self::AtLeast(limit) => Some(value >= limit),
            Self::Exactly(limit) => Some(value == limit),
            Self::None => None,
        }
    }
}

/// One figure.
pub(crate) struct Row {
    work: String,
    measured: Spread,
    unit: Unit,
    target: Target,
}

impl Row {
    fn reached(&self) -> Option<bool> {
        self.target.reached(self.measured.median)
    }

    fn target(&self) -> String {
        let (relation, limit) = match self.target {
            Target::AtMost(limit) => ("<= ", limit),
            Target::AtLeast(limit) => (">= ", limit),
            Target::Exactly(limit) => ("", limit),
            Target::None => return "-".to_owned(),
        };
        format!("{relation}{limit}{}", self.unit.name())
    }

    fn measured(&self) -> String {
        let Spread { median, min, max } = self.measured;
        let unit = self.unit.name();
        if min == max {
            return format!("{}{unit}", Figure(median));
        }
        format!(
            "{}{unit} ({}..{})",
            Figure(median),
            Figure(min),
            Figure(max)
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = match self.reached() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "-",
        };
        let (work, measured, target) = (&self.work, self.measured(), self.target());
        write!(f, "| {work} | {measured} | {target} | {reached} |")
    }
}

/// A number with three digits that matter.
struct Figure(f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0.abs() {
            size if size >= 100.0 || self.0.fract() == 0.0 => 0,
            size if size >= 10.0 => 1,
            size if size >= 0.1 => 2,
            _ => 3,
        };
        write!(f, "{:.digits$}", self.0)
    }
}

/// All rows, printed as they come.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) const HEAD: &str =
        "| work | measured: median (min..max) | must reach | reached |\n| --- | --- | --- | --- |";

    pub(crate) fn add(
        &mut self,
        work: impl Into<String>,
        measured: Spread,
        unit: Unit,
        target: Target,
    ) {
        let row = Row {
            work: work.into(),
            measured,
            unit,
            target,
        };
        println!("{row}");
        self.rows.push(row);
    }

    /// The figures that are not what they must be.
    pub(crate) fn missed(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.reached() == Some(false))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Self::HEAD)?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}
