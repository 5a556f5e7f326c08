//! Policy: what was seen, which name was found, what was refused, what was read again.

use prometheus::{Error, IntCounterVec, Registry};

use crate::telemetry::label::Label;
use crate::telemetry::outcome::{Deduction, DenyReason, Inspection, Reload, TargetSource};

use super::counters;

/// Metrics of policy and of what it decides upon.
#[derive(Debug)]
pub struct PolicyMetrics {
    deductions: IntCounterVec,
    denied: IntCounterVec,
    inspections: IntCounterVec,
    reloads: IntCounterVec,
}

impl PolicyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            deductions: counters(
                registry,
                "underpass_target_deduction_total",
                "Looks for the host of a target, by where it was looked for and what came of it.",
                &["source", "result"],
            )?,
            denied: counters(
                registry,
                "underpass_policy_denied_total",
                "Connections that policy refused.",
                &["policy", "reason"],
            )?,
            inspections: counters(
                registry,
                "underpass_inspection_total",
                "Connections by what their first bytes turned out to be.",
                &["result"],
            )?,
            reloads: counters(
                registry,
                "underpass_policy_reload_total",
                "Reads of the policy, the first one included.",
                &["result"],
            )?,
        })
    }

    /// Counts what the first bytes of a connection turned out to be.
    pub fn inspected(&self, result: Inspection) {
        self.inspections.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts what came of looking for the host of the target at `source`.
    pub fn deduced(&self, source: TargetSource, result: Deduction) {
        self.deductions
            .with_label_values(&[source.as_str(), result.as_str()])
            .inc();
    }

    /// Counts a read of the policy.
    pub fn reloaded(&self, result: Reload) {
        self.reloads.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts a refused connection; its record does that.
    pub(crate) fn denied(&self, policy: &Label, reason: DenyReason) {
        self.denied
            .with_label_values(&[policy.as_str(), reason.as_str()])
            .inc();
    }
}
