//! Policy: what was seen, which name was found, what was refused, what was read again.

use std::time::SystemTime;

use prometheus::{Error, IntCounterVec, IntGauge, Registry};

use crate::telemetry::label::Label;
use crate::telemetry::outcome::{Deduction, DenyReason, Inspection, Reload, TargetSource};

use super::{counters, gauge};

/// Metrics of policy and of what it decides upon.
#[derive(Debug)]
pub struct PolicyMetrics {
    deductions: IntCounterVec,
    denied: IntCounterVec,
    generation: IntGauge,
    inspections: IntCounterVec,
    last_reload_successful: IntGauge,
    last_reload_timestamp: IntGauge,
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
            generation: gauge(
                registry,
                "underpass_policy_generation",
                "Policies that were in force since the agent started, the present one included.",
            )?,
            inspections: counters(
                registry,
                "underpass_inspection_total",
                "Connections by what their first bytes turned out to be.",
                &["result"],
            )?,
            last_reload_successful: gauge(
                registry,
                "underpass_policy_last_reload_successful",
                "Whether all of the policy that was read last is in force: 1, or 0 if it is not.",
            )?,
            last_reload_timestamp: gauge(
                registry,
                "underpass_policy_last_reload_timestamp_seconds",
                "When policy was last read, in seconds since 1970.",
            )?,
            reloads: counters(
                registry,
                "underpass_policy_reload_total",
                "Reads of the policy after the first one.",
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

    /// Counts a read of the policy after the first one.
    pub fn reloaded(&self, result: Reload) {
        self.reloads.with_label_values(&[result.as_str()]).inc();
        self.read_now(result == Reload::Success);
    }

    /// Says that the first policy was read and is in force, all of it or but for what was rejected.
    pub fn started(&self, all: bool) {
        self.read_now(all);
        self.in_force(1);
    }

    /// Says which policy since the start is in force, from 1.
    pub fn in_force(&self, generation: u64) {
        self.generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    fn read_now(&self, successful: bool) {
        self.last_reload_successful.set(successful.into());
        // A clock before 1970 tells no time.
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.last_reload_timestamp
            .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Counts a refused connection; its record does that.
    pub(crate) fn denied(&self, policy: &Label, reason: DenyReason) {
        self.denied
            .with_label_values(&[policy.as_str(), reason.as_str()])
            .inc();
    }
}
