//! Spans on their way to where they are collected.

use prometheus::{Error, IntCounter, IntCounterVec, Registry};

use super::{counters, register};
use crate::telemetry::outcome::SpanLoss;

/// Metrics of spans. Clones count together.
#[derive(Clone, Debug)]
pub struct TraceMetrics {
    exported: IntCounter,
    dropped: IntCounterVec,
}

impl TraceMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let exported = IntCounter::new(
            "underpass_trace_spans_exported_total",
            "Spans that the collector took.",
        )?;
        let dropped = counters(
            registry,
            "underpass_trace_spans_dropped_total",
            "Spans that nobody took.",
            &["reason"],
        )?;
        for reason in SpanLoss::ALL {
            dropped.with_label_values(&[reason.as_str()]);
        }
        Ok(Self {
            exported: register(registry, exported)?,
            dropped,
        })
    }

    /// The collector took this many.
    pub fn exported(&self, spans: usize) {
        self.exported.inc_by(spans as u64);
    }

    /// This many are lost.
    pub fn dropped(&self, reason: SpanLoss, spans: usize) {
        self.dropped
            .with_label_values(&[reason.as_str()])
            .inc_by(spans as u64);
    }
}
