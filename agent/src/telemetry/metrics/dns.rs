//! DNS of workloads.

use prometheus::{Error, IntCounterVec, IntGauge, Registry};

use crate::dns::{Heard, Listener, Outcome};

/// What is observed of it.
#[derive(Debug)]
pub struct DnsMetrics {
    answers: IntCounterVec,
    addresses: IntGauge,
    queries: IntCounterVec,
    virtuals: IntGauge,
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
        let queries = super::counters(
            registry,
            "underpass_dns_queries_total",
            "Queries of workloads that came to the agent, by what became of them.",
            &["result"],
        )?;
        for outcome in OUTCOMES {
            queries.with_label_values(&[result(outcome)]);
        }
        let virtuals = super::gauge(
            registry,
            "underpass_dns_virtual_hosts",
            "Hosts that have virtual addresses.",
        )?;
        Ok(Self {
            answers,
            addresses,
            queries,
            virtuals,
        })
    }

    /// A query came.
    pub fn asked(&self, outcome: Outcome) {
        self.queries.with_label_values(&[result(outcome)]).inc();
    }

    /// So many hosts have virtual addresses.
    pub fn set_virtual_hosts(&self, hosts: usize) {
        self.virtuals.set(i64::try_from(hosts).unwrap_or(i64::MAX));
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

const OUTCOMES: [Outcome; 5] = [
    Outcome::Answered,
    Outcome::Forwarded,
    Outcome::Failed,
    Outcome::Refused,
    Outcome::Stranger,
];

fn result(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered => "answered",
        Outcome::Forwarded => "forwarded",
        Outcome::Failed => "failed",
        Outcome::Refused => "refused",
        Outcome::Stranger => "stranger",
    }
}
