//! What was too much for the agent.

use prometheus::{Error, IntCounterVec, Registry};

use crate::telemetry::outcome::Limit;

use super::counters;

/// Metrics of the agent's limits.
#[derive(Debug)]
pub struct LimitMetrics {
    refused: IntCounterVec,
}

impl LimitMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let refused = counters(
            registry,
            "underpass_limit_refused_total",
            "Connections that the agent reset because they were over one of its limits.",
            &["limit"],
        )?;
        // They stand at zero before anything happens, so that a rate has a start.
        for limit in Limit::ALL {
            refused.with_label_values(&[limit.as_str()]);
        }
        Ok(Self { refused })
    }

    /// Counts a connection that was reset because of this limit.
    pub fn refused(&self, limit: Limit) {
        self.refused.with_label_values(&[limit.as_str()]).inc();
    }
}
