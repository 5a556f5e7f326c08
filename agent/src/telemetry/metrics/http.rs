//! Requests, under the names and labels of Istio's standard metrics for HTTP.

use prometheus::{Error, HistogramOpts, HistogramVec, IntCounterVec, Registry};

use super::target::{LABEL_COUNT, LABELS, values_of};
use super::{counters, register};
use crate::telemetry::label::{Destination, Workload};
use crate::telemetry::outcome::{ResponseFlag, TunnelCode};

/// Envoy's, for whatever it measures.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// Of the answer; none if there was none.
    pub(crate) status: Option<u16>,
    /// `grpc-status` of one that speaks gRPC; `Some(None)` if there was no answer.
    pub(crate) grpc: Option<Option<u16>>,
    pub(crate) flag: ResponseFlag,
    pub(crate) milliseconds: f64,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
}

/// Requests by target. Each is counted once, at its end.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    request_bytes: HistogramVec,
    response_bytes: HistogramVec,
}

impl HttpMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let labels = labels();
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            register(registry, HistogramVec::new(options, &labels)?)
        };
        Ok(Self {
            requests: counters(registry, "istio_requests_total", "Requests.", &labels)?,
            duration: histogram(
                "istio_request_duration_milliseconds",
                "Time from the head of a request to the end of its answer.",
            )?,
            request_bytes: histogram("istio_request_bytes", "Size of requests, heads included.")?,
            response_bytes: histogram("istio_response_bytes", "Size of answers, heads included.")?,
        })
    }

    pub(crate) fn ended(&self, workload: &Workload, destination: &Destination, ended: &Ended) {
        // Envoy's word for no answer is 0. The rest is as bounded as what proxies answer.
        let code = match ended.status {
            None => "0".to_owned(),
            Some(status) => TunnelCode::Status(status).label(),
        };
        let protocol = if ended.grpc.is_some() { "grpc" } else { "http" };
        // Numbers that gRPC does not know are the target's invention.
        let grpc = ended.grpc.flatten().map(|status| match status {
            0..=16 => status,
            _ => 2,
        });
        let grpc = grpc.map(|status| status.to_string()).unwrap_or_default();
        let common = values_of(workload, destination, protocol, ended.flag);
        let mut values = [""; LABEL_COUNT + 2];
        values[..LABEL_COUNT].copy_from_slice(&common);
        values[LABEL_COUNT] = &code;
        values[LABEL_COUNT + 1] = &grpc;
        self.requests.with_label_values(&values).inc();
        let milliseconds = self.duration.with_label_values(&values);
        milliseconds.observe(ended.milliseconds);
        // Sizes are far from where a float is not exact any more.
        let size = self.request_bytes.with_label_values(&values);
        size.observe(ended.request_bytes as f64);
        let size = self.response_bytes.with_label_values(&values);
        size.observe(ended.response_bytes as f64);
    }
}

fn labels() -> [&'static str; LABEL_COUNT + 2] {
    let mut labels = [""; LABEL_COUNT + 2];
    labels[..LABEL_COUNT].copy_from_slice(&LABELS);
    labels[LABEL_COUNT] = "response_code";
    labels[LABEL_COUNT + 1] = "grpc_response_status";
    labels
}
