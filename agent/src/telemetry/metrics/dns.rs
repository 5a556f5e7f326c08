//! DNS of workloads.

use prometheus::{Error, IntCounterVec, IntGauge, Registry};

use crate::dns::{Heard, Listener};

/// What is observed of it.
#[derive(Debug)]
pub struct DnsMetrics {
    answers: IntCounterVec,
    addresses: IntGauge,
}

impl DnsMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let answers = super::counters(
            registry,
            "underpass_dns_answers_total",
            "Answers of name servers to workloads, by what was learnt from them.",
            &["result"],
        )?;
        for heard in [Heard::Learnt, Heard::Nothing, Heard::Malformed] {
            answers.with_label_values(&[label(heard)]);
        }
        let addresses = super::gauge(
            registry,
            "underpass_dns_addresses",
            "Addresses of which is known under which names workloads have resolved them.",
        )?;
        Ok(Self { answers, addresses })
    }
}

impl Listener for DnsMetrics {
    fn heard(&self, heard: Heard, addresses: usize) {
        self.answers.with_label_values(&[label(heard)]).inc();
        self.addresses
            .set(i64::try_from(addresses).unwrap_or(i64::MAX));
    }
}

fn label(heard: Heard) -> &'static str {
    match heard {
        Heard::Learnt => "learnt",
        Heard::Nothing => "nothing",
        Heard::Malformed => "malformed",
    }
}
