//! Encodes families of metrics.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::registry::core::draining::Drains;
use crate::sync::printable::prefix;

const PREFIX: &str = "worker_heartbeat_";
/// Bytes of a label's value; longer values are cut.
const MAX_LABEL: usize = 200;

/// One sample of a family: its labels and its value.
pub(super) type MetricSample<'l, const N: usize, V> = ([(&'static str, &'l str); N], V);

struct Labels<'a, const N: usize>([(&'static str, &'a str); N]);

impl<const N: usize> EncodeLabelSet for Labels<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in self.0 {
            (name, value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

struct Histogram<'a>(&'a Drains);

impl EncodeMetric for Histogram<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Drains {
            count,
            sum,
            buckets,
            ..
        } = self.0;
        // Cumulative here, but not in what the encoder takes.
        let mut below = 0;
        let own = buckets.iter().map(|(bound, up_to)| {
            let own = up_to.saturating_sub(below);
            below = *up_to;
            (bound.as_secs_f64(), own)
        });
        let mut own: Vec<_> = own.collect();
        own.push((f64::INFINITY, count.saturating_sub(below)));
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), *count, &own, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The label's value for a name that the application chose, of bounded length.
pub(super) fn label(name: &str) -> &str {
    prefix(name, MAX_LABEL)
}

pub(super) struct Encoder<'a>(DescriptorEncoder<'a>);

impl<'a> Encoder<'a> {
    pub(super) const fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// A gauge with these samples; nothing if there are none.
    pub(super) fn gauges<'l, const N: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = MetricSample<'l, N, V>>,
    ) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        self.family(name, help, samples, ConstGauge::new)
    }

    /// A counter with these samples; `name` is without `_total`.
    pub(super) fn counters<'l, const N: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = MetricSample<'l, N, V>>,
    ) -> fmt::Result
    where
        ConstCounter<V>: EncodeMetric,
    {
        self.family(name, help, samples, ConstCounter::new)
    }

    /// A histogram of times in seconds with these samples.
    pub(super) fn histograms<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = MetricSample<'l, N, &'l Drains>>,
    ) -> fmt::Result {
        self.family(name, help, samples, Histogram)
    }

    pub(super) fn gauge<V>(&mut self, name: &str, help: &str, value: V) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        self.gauges(name, help, [([], value)])
    }

    pub(super) fn counter<V>(&mut self, name: &str, help: &str, value: V) -> fmt::Result
    where
        ConstCounter<V>: EncodeMetric,
    {
        self.counters(name, help, [([], value)])
    }

    fn family<'l, const N: usize, V, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = MetricSample<'l, N, V>>,
        metric: impl Fn(V) -> M,
    ) -> fmt::Result {
        let samples = samples.into_iter();
        let mut samples = samples
            .map(|(labels, value)| (Labels(labels), metric(value)))
            .peekable();
        let Some((_, first)) = samples.peek() else {
            return Ok(());
        };
        // encode_descriptor() appends the unit to the name.
        let (stem, unit) = match name.strip_suffix("_seconds") {
            Some(stem) => (stem, Some(Unit::Seconds)),
            None => (name, None),
        };
        let name = format!("{PREFIX}{stem}");
        let kind = first.metric_type();
        let mut encoder = self.0.encode_descriptor(&name, help, unit.as_ref(), kind)?;
        for (labels, metric) in samples {
            if N == 0 {
                // A single sample, without empty braces.
                return metric.encode(encoder);
            }
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Converts OpenMetrics to the older text format of Prometheus, in which the family of a counter has
/// the name of its samples, with `_total`.
pub(super) fn prometheus_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let is_counter = kind == MetricType::Counter.as_str();
            let suffix = if is_counter { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
