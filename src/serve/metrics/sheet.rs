//! How families of metrics are written, whatever they are of.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::sync::printable::prefix;

/// All names begin so.
const PREFIX: &str = "worker_heartbeat_";
/// Bytes of a label's value; longer ones are cut.
const LONGEST_LABEL: usize = 200;

/// One line of a family: its labels, and its value.
pub(super) type Line<'l, const N: usize, V> = ([(&'static str, &'l str); N], V);

/// The labels of one line: names, and what applications chose.
struct Labels<'a, const N: usize>([(&'static str, &'a str); N]);

impl<const N: usize> EncodeLabelSet for Labels<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in self.0 {
            (name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// What a name is called in a label: nobody else's memory is filled with it.
pub(super) fn label(name: &str) -> &str {
    prefix(name, LONGEST_LABEL)
}

/// Writes families of metrics.
pub(super) struct Sheet<'a>(DescriptorEncoder<'a>);

impl<'a> Sheet<'a> {
    pub(super) const fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// A gauge with one line for each of these. Nothing, if there is none.
    pub(super) fn gauges<'l, const N: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = Line<'l, N, V>>,
    ) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        self.family(name, help, lines, ConstGauge::new)
    }

    /// A counter with one line for each of these; its name without `_total`.
    pub(super) fn counters<'l, const N: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = Line<'l, N, V>>,
    ) -> fmt::Result
    where
        ConstCounter<V>: EncodeMetric,
    {
        self.family(name, help, lines, ConstCounter::new)
    }

    pub(super) fn gauge<V>(&mut self, name: &str, help: &str, value: V) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        self.gauges(name, help, [([], value)])
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [([], value)])
    }

    fn family<'l, const N: usize, V, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = Line<'l, N, V>>,
        metric: impl Fn(V) -> M,
    ) -> fmt::Result {
        let mut lines = lines
            .into_iter()
            .map(|(labels, value)| (Labels(labels), metric(value)))
            .peekable();
        let Some((_, first)) = lines.peek() else {
            return Ok(());
        };
        // The encoder adds the unit to the name.
        let (stem, unit) = match name.strip_suffix("_seconds") {
            Some(stem) => (stem, Some(Unit::Seconds)),
            None => (name, None),
        };
        let name = format!("{PREFIX}{stem}");
        let mut encoder =
            self.0
                .encode_descriptor(&name, help, unit.as_ref(), first.metric_type())?;
        for (labels, metric) in lines {
            if N == 0 {
                // One line, and no empty braces.
                return metric.encode(encoder);
            }
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The same in the plain text format of Prometheus, as tools that do not know OpenMetrics read it:
/// there, a counter's family is called as its lines are, with `_total`.
pub(super) fn plain(openmetrics: &str) -> String {
    let mut plain = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == MetricType::Counter.as_str() {
                "_total"
            } else {
                ""
            };
            if let Some((_, help)) = help.take() {
                plain.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            plain.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            plain.push_str(line);
            plain.push('\n');
        }
    }
    plain
}
