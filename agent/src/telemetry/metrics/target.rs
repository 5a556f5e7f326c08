//! Targets, under the names and labels of Istio's standard metrics for TCP.

use prometheus::{Error, IntCounterVec, Registry};

use crate::telemetry::label::{Destination, Workload};
use crate::telemetry::outcome::ResponseFlag;

use super::counters;

/// How many labels each of Istio's TCP metrics has.
pub(super) const LABEL_COUNT: usize = 23;

/// Their names, in the order of [`target_values`].
pub(super) const LABELS: [&str; LABEL_COUNT] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

/// The values of [`LABELS`] for a connection.
pub(crate) fn target_values<'a>(
    workload: &'a Workload,
    destination: &'a Destination,
    flag: ResponseFlag,
) -> [&'a str; LABEL_COUNT] {
    values_of(workload, destination, "tcp", flag)
}

/// The values of [`LABELS`]; `protocol` is that of requests, or `tcp`.
pub(super) fn values_of<'a>(
    workload: &'a Workload,
    destination: &'a Destination,
    protocol: &'static str,
    flag: ResponseFlag,
) -> [&'a str; LABEL_COUNT] {
    let unknown = "unknown";
    [
        "source",
        workload.name.as_str(),
        workload.namespace.as_str(),
        workload.principal.as_str(),
        workload.app.as_str(),
        workload.version.as_str(),
        workload.canonical_service.as_str(),
        workload.canonical_revision.as_str(),
        workload.cluster.as_str(),
        unknown,
        unknown,
        unknown,
        unknown,
        unknown,
        destination.host().as_str(),
        destination.host().as_str(),
        destination.namespace().as_str(),
        unknown,
        unknown,
        unknown,
        protocol,
        flag.as_str(),
        // Of Istio's own mutual TLS, which no external target speaks.
        unknown,
    ]
}

/// Connections by target. Each is opened once and closed once: opened when it begins to be served
/// (with `response_flags="-"`), or, if it never was, together with closed (with the same flags).
#[derive(Debug)]
pub(crate) struct TargetMetrics {
    opened: IntCounterVec,
    closed: IntCounterVec,
}

impl TargetMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            opened: counters(
                registry,
                "istio_tcp_connections_opened_total",
                "Connections opened.",
                &LABELS,
            )?,
            closed: counters(
                registry,
                "istio_tcp_connections_closed_total",
                "Connections closed.",
                &LABELS,
            )?,
        })
    }

    pub(crate) fn opened(&self, values: &[&str; LABEL_COUNT]) {
        self.opened.with_label_values(values).inc();
    }

    pub(crate) fn closed(&self, values: &[&str; LABEL_COUNT]) {
        self.closed.with_label_values(values).inc();
    }
}
