//! Metrics whose values are read somewhere else on every scrape.

use std::collections::HashMap;

use prometheus::Error;
use prometheus::core::Desc;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// One metric with at most one label.
#[derive(Clone, Debug)]
pub(super) struct Family {
    desc: Desc,
    kind: MetricType,
}

impl Family {
    pub(super) fn counter(name: &str, help: &str, label: Option<&str>) -> Result<Self, Error> {
        Self::new(MetricType::COUNTER, name, help, label)
    }

    pub(super) fn gauge(name: &str, help: &str, label: Option<&str>) -> Result<Self, Error> {
        Self::new(MetricType::GAUGE, name, help, label)
    }

    fn new(kind: MetricType, name: &str, help: &str, label: Option<&str>) -> Result<Self, Error> {
        let labels = label.into_iter().map(str::to_owned).collect();
        Ok(Self {
            desc: Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?,
            kind,
        })
    }

    pub(super) fn desc(&self) -> &Desc {
        &self.desc
    }

    /// The one sample of a metric without a label.
    pub(super) fn single(&self, value: u64) -> MetricFamily {
        self.samples([("", value)])
    }

    /// One sample per label value.
    pub(super) fn samples<'a>(
        &self,
        samples: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        let samples = samples.into_iter();
        family.set_metric(
            samples
                .map(|(label, value)| self.sample(label, value))
                .collect(),
        );
        family
    }

    fn sample(&self, label: &str, value: u64) -> Metric {
        let pairs = self.desc.variable_labels.iter().map(|name| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(label.to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        // Prometheus has floats only; exact up to 2^53.
        let value = value as f64;
        if self.kind == MetricType::GAUGE {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        } else {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        metric
    }
}
