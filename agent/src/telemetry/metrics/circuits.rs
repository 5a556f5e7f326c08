//! Limits of targets, and targets that keep failing.

use prometheus::{Error, IntCounterVec, Registry};

use super::counters;
use crate::telemetry::label::Label;
use crate::telemetry::outcome::TargetLimit;

/// Metrics of what policy says of targets.
#[derive(Debug)]
pub struct CircuitMetrics {
    refused: IntCounterVec,
    ejections: IntCounterVec,
    retries: IntCounterVec,
}

impl CircuitMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            refused: counters(
                registry,
                "underpass_target_refused_total",
                "Connections, requests and retries that were not made because of what policy says \
                 of their target.",
                &["destination_service", "reason"],
            )?,
            ejections: counters(
                registry,
                "underpass_target_ejections_total",
                "Times that a target had failed too often and was refused from then on.",
                &["destination_service"],
            )?,
            retries: counters(
                registry,
                "underpass_target_retries_total",
                "Requests that were tried again, each time.",
                &["destination_service"],
            )?,
        })
    }

    /// Counts one that was too many, or whose target is ejected.
    pub fn refused(&self, service: &Label, reason: TargetLimit) {
        self.refused
            .with_label_values(&[service.as_str(), reason.as_str()])
            .inc();
    }

    /// Counts a target that was ejected.
    pub fn ejected(&self, service: &Label) {
        self.ejections.with_label_values(&[service.as_str()]).inc();
    }

    /// Counts a retry.
    pub fn retried(&self, service: &Label) {
        self.retries.with_label_values(&[service.as_str()]).inc();
    }
}
