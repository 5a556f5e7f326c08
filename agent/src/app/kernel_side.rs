//! What the kernel side counts, as metrics want it.

use std::sync::Arc;

use underpass_abi::{Counter, Outcome, map};

use crate::capture::{Flows, KernelCounters};
use crate::telemetry::metrics::{CaptureSource, MapUsage};

/// What the kernel side counts, as metrics want it.
pub(super) struct KernelSide {
    pub(super) counters: Arc<KernelCounters>,
    pub(super) flows: Arc<Flows>,
}

impl KernelSide {
    fn by(&self, pick: impl Fn(Outcome) -> Option<&'static str>) -> Vec<(&'static str, u64)> {
        Counter::ALL
            .iter()
            .filter_map(|counter| Some((pick(counter.outcome())?, self.counters.value(*counter))))
            .collect()
    }
}

impl CaptureSource for KernelSide {
    fn redirected(&self) -> u64 {
        self.counters.value(Counter::Redirected)
    }

    fn skipped(&self) -> Vec<(&'static str, u64)> {
        self.by(|outcome| match outcome {
            Outcome::Skipped(reason) => Some(reason),
            _ => None,
        })
    }

    fn refused(&self) -> Vec<(&'static str, u64)> {
        self.by(|outcome| match outcome {
            Outcome::Refused(reason) => Some(reason),
            _ => None,
        })
    }

    fn udp_refused(&self) -> Vec<(&'static str, u64)> {
        self.by(|outcome| match outcome {
            Outcome::UdpRefused(reason) => Some(reason),
            _ => None,
        })
    }

    fn queries_passed(&self) -> Vec<(&'static str, u64)> {
        self.by(|outcome| match outcome {
            Outcome::QueryPassed(reason) => Some(reason),
            _ => None,
        })
    }

    fn answers_lost(&self) -> u64 {
        self.counters.value(Counter::AnswerLost)
    }

    fn maps(&self) -> Vec<MapUsage> {
        vec![MapUsage {
            map: map::FLOWS,
            entries: self.flows.len(),
            capacity: u64::from(self.flows.capacity()),
        }]
    }
}
