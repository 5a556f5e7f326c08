//! Proxies, their endpoints, and tunnels through them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use crate::telemetry::label::Label;
use crate::telemetry::outcome::{TunnelCode, TunnelProtocol};
use crate::tunnel::{Observer, Place, Spoken, Timings};

use super::{counters, gauges, register};

/// Seconds. From a proxy on the same node to the 15 s after which CONNECT is given up.
const ESTABLISH_BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0,
];

/// Metrics of proxies and tunnels. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    requests: IntCounterVec,
    establish: HistogramVec,
    tunnels: IntGaugeVec,
    connections: IntCounterVec,
    active: IntGaugeVec,
    failures: IntCounterVec,
    healthy: IntGaugeVec,
    checks: IntCounterVec,
    over_limit: IntCounterVec,
    retries: IntCounterVec,
    /// How many endpoints there are of the same words.
    places: Arc<Mutex<HashMap<Place, usize>>>,
}

impl ProxyMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry already has a metric of one of the names.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
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
            healthy: gauges(
                registry,
                "underpass_proxy_endpoint_healthy",
                "1, or 0 while an endpoint of a proxy is passed over because it kept failing.",
                &["proxy", "endpoint"],
            )?,
            checks: counters(
                registry,
                "underpass_proxy_checks_total",
                "Checks of an endpoint of a proxy by a tunnel that nobody uses, and what came of them.",
                &["proxy", "endpoint", "result"],
            )?,
            over_limit: counters(
                registry,
                "underpass_proxy_limit_refused_total",
                "Tunnels refused because as much of a proxy was in use as policy allows.",
                &["proxy", "limit"],
            )?,
            retries: counters(
                registry,
                "underpass_tunnel_retries_total",
                "Tunnels tried once more, at another endpoint of the proxy or at the next proxy, by \
                 the failure before.",
                &["proxy", "reason"],
            )?,
            places: Arc::default(),
        })
    }

    /// `underpass_tunnel_requests_total`.
    pub fn tunnel_requests(&self) -> IntCounterVec {
        self.requests.clone()
    }

    /// Makes the series of a proxy, at zero.
    pub fn announce(&self, proxy: &Label) {
        let tunnels = TunnelProtocol::ALL.iter();
        for protocol in tunnels.filter(|protocol| **protocol != TunnelProtocol::Http1Absolute) {
            self.tunnels
                .with_label_values(&[proxy.as_str(), protocol.as_str()]);
        }
        // Of the many reasons those that are met most.
        for reason in ["connect_timeout", "tcp_refused", "tcp_timeout"] {
            self.retries.with_label_values(&[proxy.as_str(), reason]);
        }
        for limit in ["connections", "pending"] {
            self.over_limit.with_label_values(&[proxy.as_str(), limit]);
        }
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

impl Observer for ProxyMetrics {
    fn appeared(&self, at: &Place) {
        *self.places.lock().entry(at.clone()).or_default() += 1;
        let labels = [&*at.proxy, &*at.endpoint];
        self.connections.with_label_values(&labels);
        self.active.with_label_values(&labels);
        for result in ["success", "failure"] {
            self.checks
                .with_label_values(&[&*at.proxy, &*at.endpoint, result]);
        }
    }

    fn gone(&self, at: &Place) {
        let mut places = self.places.lock();
        if let Some(count) = places.get_mut(at) {
            *count -= 1;
            if *count > 0 {
                return;
            }
            places.remove(at);
        }
        remove(&self.connections, at);
        remove(&self.active, at);
        remove(&self.failures, at);
        remove(&self.healthy, at);
        remove(&self.checks, at);
    }

    fn connected(&self, at: &Place) {
        let labels = [&*at.proxy, &*at.endpoint];
        self.connections.with_label_values(&labels).inc();
        self.active.with_label_values(&labels).inc();
    }

    fn disconnected(&self, at: &Place) {
        let labels = [&*at.proxy, &*at.endpoint];
        self.active.with_label_values(&labels).dec();
    }

    fn failed(&self, at: &Place, reason: &'static str) {
        let labels = [&*at.proxy, &*at.endpoint, reason];
        self.failures.with_label_values(&labels).inc();
    }

    fn healthy(&self, at: &Place, healthy: bool) {
        let labels = [&*at.proxy, &*at.endpoint];
        self.healthy
            .with_label_values(&labels)
            .set(i64::from(healthy));
    }

    fn checked(&self, at: &Place, well: bool) {
        let result = if well { "success" } else { "failure" };
        let labels = [&*at.proxy, &*at.endpoint, result];
        self.checks.with_label_values(&labels).inc();
    }

    fn over_limit(&self, proxy: &str, limit: &'static str) {
        self.over_limit.with_label_values(&[proxy, limit]).inc();
    }

    fn retried(&self, proxy: &str, reason: &'static str) {
        self.retries.with_label_values(&[proxy, reason]).inc();
    }

    fn took(&self, proxy: &str, spoken: Spoken, timings: &Timings) {
        let protocol = TunnelProtocol::from(spoken);
        for (phase, took) in timings.phases() {
            self.establish
                .with_label_values(&[proxy, protocol.as_str(), phase])
                .observe(took.time.as_secs_f64());
        }
    }
}

impl From<Spoken> for TunnelProtocol {
    fn from(spoken: Spoken) -> Self {
        match spoken {
            Spoken::Http1Absolute => Self::Http1Absolute,
            Spoken::Http1Connect => Self::Http1Connect,
            Spoken::Http2Connect => Self::Http2Connect,
            Spoken::Http2Post => Self::Http2Post,
        }
    }
}

/// Removes every series of an endpoint, whatever its other labels.
fn remove<T: MetricVecBuilder>(metric: &MetricVec<T>, at: &Place)
where
    MetricVec<T>: Collector,
{
    for family in metric.collect() {
        for series in family.get_metric() {
            let labels = series.get_label().iter();
            let labels: HashMap<&str, &str> =
                labels.map(|label| (label.name(), label.value())).collect();
            let is = |name, value| labels.get(name) == Some(&value);
            if is("proxy", &*at.proxy) && is("endpoint", &*at.endpoint) {
                // It may only be gone already.
                let _ = metric.remove(&labels);
            }
        }
    }
}
