//! The gateway's metrics. Their labels are enums, the numbers of HTTP and the proxies of the policy;
//! nothing that a client or target sent otherwise is one.

use std::collections::HashMap;
use std::sync::Arc;

use http::{Method, StatusCode, Version};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::access::Route;
use super::rules::Forbidden;
use crate::relay::Traffic;
use crate::telemetry::Reload;
use crate::telemetry::metrics::ProxyMetrics;

/// What is counted, in one registry.
#[derive(Debug)]
pub struct GatewayMetrics {
    requests: IntCounterVec,
    denied: IntCounterVec,
    tunnels: IntGaugeVec,
    connections: IntGaugeVec,
    accepted: IntCounterVec,
    handshake_failures: IntCounter,
    reloads: IntCounterVec,
    routes: IntCounterVec,
    proxies: ProxyMetrics,
    bytes: Bytes,
}

impl GatewayMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When the registry already has a metric of one of the names.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let bytes = Bytes::new()?;
        registry.register(Box::new(bytes.clone()))?;
        let handshake_failures = IntCounter::new(
            "underpass_gateway_tls_handshake_failures_total",
            "Clients with whom no TLS connection was made.",
        )?;
        registry.register(Box::new(handshake_failures.clone()))?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, Error>(counters)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, Error>(gauges)
        };
        Ok(Self {
            requests: counters(
                "underpass_gateway_requests_total",
                "Requests that have ended; code is none where there was no answer.",
                &["method", "protocol", "code"],
            )?,
            denied: counters(
                "underpass_gateway_denied_total",
                "Requests that the gateway itself refused.",
                &["reason"],
            )?,
            tunnels: gauges(
                "underpass_gateway_tunnels_active",
                "Tunnels that stand.",
                &["protocol"],
            )?,
            connections: gauges(
                "underpass_gateway_connections_active",
                "Connections of clients.",
                &["transport"],
            )?,
            accepted: counters(
                "underpass_gateway_connections_total",
                "Connections of clients that were accepted.",
                &["transport"],
            )?,
            handshake_failures,
            reloads: counters(
                "underpass_gateway_reloads_total",
                "Files read again.",
                &["what", "result"],
            )?,
            routes: counters(
                "underpass_gateway_routes_total",
                "Requests that were judged, by what became of them.",
                &["route"],
            )?,
            proxies: ProxyMetrics::new(registry)?,
            bytes,
        })
    }

    /// A client is connected, until the result is dropped.
    pub(super) fn connected(&self, tls: bool) -> Gauged {
        let transport = if tls { "tls" } else { "plain" };
        self.accepted.with_label_values(&[transport]).inc();
        Gauged::new(self.connections.with_label_values(&[transport]))
    }

    /// A tunnel stands, until the result is dropped.
    pub(super) fn tunnel(&self, version: Version) -> Gauged {
        Gauged::new(self.tunnels.with_label_values(&[protocol(version)]))
    }

    pub(super) fn handshake_failed(&self) {
        self.handshake_failures.inc();
    }

    pub(super) fn reloaded(&self, what: &str, result: Reload) {
        let labels = [what, result.as_str()];
        self.reloads.with_label_values(&labels).inc();
    }

    pub(super) fn denied(&self, reason: Denial) {
        self.denied.with_label_values(&[reason.label()]).inc();
    }

    pub(super) fn went(&self, route: Route) {
        self.routes.with_label_values(&[route.as_str()]).inc();
    }

    /// Of further proxies, which are counted as an agent counts its own.
    pub(super) fn proxies(&self) -> &ProxyMetrics {
        &self.proxies
    }

    /// A request that has ended.
    pub(super) fn request(&self, asked: Option<(&Method, Version)>, code: Option<StatusCode>) {
        let (method, version) = match asked {
            Some((method, version)) => (label(method), protocol(version)),
            None => ("other", protocol(Version::HTTP_11)),
        };
        let labels = [
            method,
            version,
            code.as_ref().map_or("none", StatusCode::as_str),
        ];
        self.requests.with_label_values(&labels).inc();
    }

    /// Counts the bytes of `traffic` from now on, until the result is dropped.
    pub(super) fn follow(&self, traffic: &Arc<Traffic>) -> Counted {
        let mut table = self.bytes.table.lock();
        let key = table.next;
        table.next += 1;
        table.live.insert(key, Arc::clone(traffic));
        Counted {
            table: Arc::clone(&self.bytes.table),
            key,
        }
    }
}

/// Why a request was refused by the gateway itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Denial {
    Credentials,
    DenyRule,
    Limit,
    Loop,
    Malformed,
    NoRule,
    Policy,
    Reserved,
}

impl Denial {
    fn label(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::DenyRule => "deny_rule",
            Self::Limit => "limit",
            Self::Loop => "loop",
            Self::Malformed => "malformed",
            Self::NoRule => "no_rule",
            Self::Policy => "policy",
            Self::Reserved => "reserved_address",
        }
    }

    /// Whether it is a judgement of where the client wants to go.
    pub(super) fn is_about_the_target(self) -> bool {
        match self {
            Self::DenyRule | Self::NoRule | Self::Policy | Self::Reserved => true,
            Self::Credentials | Self::Limit | Self::Loop | Self::Malformed => false,
        }
    }
}

impl From<Forbidden> for Denial {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::Denied => Self::DenyRule,
            Forbidden::NoRule => Self::NoRule,
            Forbidden::Reserved(_) => Self::Reserved,
        }
    }
}

/// One more on a gauge.
#[derive(Debug)]
pub(super) struct Gauged(IntGauge);

impl Gauged {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Keeps a [`Traffic`] counted.
#[derive(Debug)]
pub(super) struct Counted {
    table: Arc<Mutex<Table>>,
    key: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if let Some(traffic) = table.live.remove(&self.key) {
            table.ended.0 += traffic.sent();
            table.ended.1 += traffic.received();
        }
    }
}

/// Bytes, counted at each scrape and not first when a tunnel of hours ends.
#[derive(Clone, Debug)]
struct Bytes {
    table: Arc<Mutex<Table>>,
    sent: IntCounter,
    received: IntCounter,
}

#[derive(Debug, Default)]
struct Table {
    live: HashMap<u64, Arc<Traffic>>,
    next: u64,
    ended: (u64, u64),
}

impl Bytes {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            table: Arc::default(),
            sent: IntCounter::new(
                "underpass_gateway_sent_bytes_total",
                "Bytes of clients that went to targets.",
            )?,
            received: IntCounter::new(
                "underpass_gateway_received_bytes_total",
                "Bytes of targets that went to clients.",
            )?,
        })
    }
}

impl Collector for Bytes {
    fn desc(&self) -> Vec<&Desc> {
        [self.sent.desc(), self.received.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Locked until the counters are set, so that two scrapes at a time count nothing twice.
        let table = self.table.lock();
        let (mut sent, mut received) = table.ended;
        for traffic in table.live.values() {
            sent += traffic.sent();
            received += traffic.received();
        }
        self.sent.inc_by(sent.saturating_sub(self.sent.get()));
        self.received
            .inc_by(received.saturating_sub(self.received.get()));
        drop(table);
        [self.sent.collect(), self.received.collect()].concat()
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "http2",
        _ => "http1",
    }
}

/// A client may make up methods.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::CONNECT => "connect",
        Method::DELETE => "delete",
        Method::GET => "get",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        Method::PATCH => "patch",
        Method::POST => "post",
        Method::PUT => "put",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Progress;
    use crate::telemetry::scrape::Scrape;

    #[test]
    fn bytes_are_counted_while_they_flow_and_only_once() {
        let registry = Registry::new();
        let metrics = GatewayMetrics::new(&registry).unwrap();
        let progress = Progress::default();
        let followed = metrics.follow(&progress.traffic);
        let name = "underpass_gateway_received_bytes_total";
        let received = || Scrape::of(&registry).value(name, &[]);
        progress.answered(200, 5);
        assert_eq!(received(), Some(5.0));
        progress.answered(200, 2);
        drop(followed);
        assert_eq!(received(), Some(7.0));
        progress.answered(200, 100);
        assert_eq!(received(), Some(7.0), "nobody follows it any more");
        assert!(metrics.bytes.table.lock().live.is_empty());
    }

    #[test]
    fn labels_are_bounded_whatever_clients_send() {
        let registry = Registry::new();
        let metrics = GatewayMetrics::new(&registry).unwrap();
        for method in ["GET", "HUNTER2", "get", "BREW"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            metrics.request(Some((&method, Version::HTTP_11)), Some(StatusCode::OK));
        }
        metrics.request(None, None);
        let scrape = Scrape::of(&registry);
        let name = "underpass_gateway_requests_total";
        assert_eq!(scrape.value(name, &[("method", "get")]), Some(1.0));
        let other = [("method", "other"), ("code", "200")];
        assert_eq!(scrape.value(name, &other), Some(3.0));
        assert_eq!(scrape.value(name, &[("code", "none")]), Some(1.0));
        drop(metrics.connected(true));
        let active = Scrape::of(&registry).value("underpass_gateway_connections_active", &[]);
        assert_eq!(active, Some(0.0));
    }
}
