//! Proxies, their endpoints, and tunnels through them.

use std::time::Duration;

use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use crate::telemetry::label::Label;
use crate::telemetry::outcome::{Phase, TunnelCode, TunnelProtocol};

use super::{counters, gauges, register};

/// Seconds. From a proxy on the same node to the 15 s after which CONNECT is given up.
const ESTABLISH_BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0,
];

/// Metrics of proxies and tunnels.
#[derive(Debug)]
pub struct ProxyMetrics {
    requests: IntCounterVec,
    establish: HistogramVec,
    tunnels: IntGaugeVec,
    connections: IntCounterVec,
    active: IntGaugeVec,
    failures: IntCounterVec,
}

impl ProxyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            requests: counters(
                registry,
                "underpass_tunnel_requests_total",
                "Tunnels asked for, by the status of the answer (`none` if there was none).",
                &["proxy", "policy", "protocol", "code"],
            )?,
            establish: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "underpass_tunnel_establish_duration_seconds",
                        "Time that each phase of establishing a tunnel took.",
                    )
                    .buckets(ESTABLISH_BUCKETS.to_vec()),
                    &["proxy", "protocol", "phase"],
                )?,
            )?,
            tunnels: gauges(
                registry,
                "underpass_tunnels_active",
                "Tunnels that stand now.",
                &["proxy", "protocol"],
            )?,
            connections: counters(
                registry,
                "underpass_proxy_connections_total",
                "TCP connections established to an endpoint of a proxy.",
                &["proxy", "endpoint"],
            )?,
            active: gauges(
                registry,
                "underpass_proxy_connections_active",
                "TCP connections to an endpoint of a proxy that stand now.",
                &["proxy", "endpoint"],
            )?,
            failures: counters(
                registry,
                "underpass_proxy_connections_failures_total",
                "Tries that gave no usable connection to an endpoint of a proxy.",
                &["proxy", "endpoint", "reason"],
            )?,
        })
    }

    /// Makes the series of an endpoint, at zero.
    pub fn announce(&self, proxy: &Label, endpoint: &Label) {
        for protocol in TunnelProtocol::ALL {
            self.tunnels
                .with_label_values(&[proxy.as_str(), protocol.as_str()]);
        }
        let labels = [proxy.as_str(), endpoint.as_str()];
        self.connections.with_label_values(&labels);
        self.active.with_label_values(&labels);
    }

    /// Counts a TCP connection established to `endpoint`; it is active until the guard is dropped.
    pub fn connected(&self, proxy: &Label, endpoint: &Label) -> ActiveGuard {
        let labels = [proxy.as_str(), endpoint.as_str()];
        self.connections.with_label_values(&labels).inc();
        ActiveGuard::new(self.active.with_label_values(&labels))
    }

    /// Counts a try that gave no usable connection to `endpoint`; `reason` is the failure's own
    /// word for itself.
    pub fn connect_failed(&self, proxy: &Label, endpoint: &Label, reason: &'static str) {
        self.failures
            .with_label_values(&[proxy.as_str(), endpoint.as_str(), reason])
            .inc();
    }

    /// Records how long one phase of establishing a tunnel took.
    pub fn phase_took(
        &self,
        proxy: &Label,
        protocol: TunnelProtocol,
        phase: Phase,
        duration: Duration,
    ) {
        self.establish
            .with_label_values(&[proxy.as_str(), protocol.as_str(), phase.as_str()])
            .observe(duration.as_secs_f64());
    }

    /// Counts an answer to CONNECT, or its absence; the record of the connection does that.
    pub(crate) fn answered(
        &self,
        proxy: &Label,
        policy: &Label,
        protocol: TunnelProtocol,
        code: TunnelCode,
    ) {
        let code = code.label();
        self.requests
            .with_label_values(&[proxy.as_str(), policy.as_str(), protocol.as_str(), &code])
            .inc();
    }

    /// A tunnel stands until the guard is dropped; the record of the connection holds it.
    pub(crate) fn tunnel(&self, proxy: &Label, protocol: TunnelProtocol) -> ActiveGuard {
        ActiveGuard::new(
            self.tunnels
                .with_label_values(&[proxy.as_str(), protocol.as_str()]),
        )
    }
}

/// Something counted as active until this is dropped.
#[derive(Debug)]
#[must_use = "it is active only as long as the guard is held"]
pub struct ActiveGuard(IntGauge);

impl ActiveGuard {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
