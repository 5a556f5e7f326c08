use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::name::OriginalDst;
use crate::telemetry::TargetLimit;
use crate::telemetry::request::Captured;
use crate::telemetry::scrape::Scrape;
use crate::telemetry::{
    ByteCounts, ConnectionRecord, Decision, Deduction, DenyReason, Inspection, Label, Reload,
    RequestRecord, TargetSource, TunnelCode, TunnelLog, TunnelProtocol,
};
use crate::tunnel::{Observer as _, Place, Timings, Took};

/// Every metric, its type and its labels: what dashboards and alerts rely on.
const EXPECTED: [(&str, &str, &[&str]); 55] = [
    ("istio_build", "gauge", &["component", "tag"]),
    ("istio_request_bytes", "histogram", &ISTIO_HTTP),
    (
        "istio_request_duration_milliseconds",
        "histogram",
        &ISTIO_HTTP,
    ),
    ("istio_request_messages_total", "counter", &ISTIO_PEERS),
    ("istio_requests_total", "counter", &ISTIO_HTTP),
    ("istio_response_bytes", "histogram", &ISTIO_HTTP),
    ("istio_response_messages_total", "counter", &ISTIO_PEERS),
    ("istio_tcp_connections_closed_total", "counter", &ISTIO),
    ("istio_tcp_connections_opened_total", "counter", &ISTIO),
    ("istio_tcp_received_bytes_total", "counter", &ISTIO),
    ("istio_tcp_sent_bytes_total", "counter", &ISTIO),
    ("process_max_fds", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("underpass_build_info", "gauge", &["revision", "version"]),
    ("underpass_capture_healthy", "gauge", &["check"]),
    ("underpass_capture_map_capacity", "gauge", &["map"]),
    ("underpass_capture_map_entries", "gauge", &["map"]),
    (
        "underpass_capture_original_destination_misses_total",
        "counter",
        &[],
    ),
    ("underpass_capture_redirected_total", "counter", &[]),
    ("underpass_capture_refused_total", "counter", &["reason"]),
    ("underpass_capture_skipped_total", "counter", &["reason"]),
    ("underpass_capture_udp_refused_total", "counter", &["kind"]),
    ("underpass_dns_addresses", "gauge", &[]),
    ("underpass_dns_answers_lost_total", "counter", &[]),
    ("underpass_dns_answers_total", "counter", &["result"]),
    ("underpass_dns_queries_passed_total", "counter", &["reason"]),
    ("underpass_dns_queries_total", "counter", &["result"]),
    ("underpass_dns_virtual_hosts", "gauge", &[]),
    ("underpass_inspection_total", "counter", &["result"]),
    ("underpass_limit_refused_total", "counter", &["limit"]),
    ("underpass_namespace_failures_total", "counter", &["reason"]),
    ("underpass_namespaces_enrolled", "gauge", &[]),
    (
        "underpass_policy_denied_total",
        "counter",
        &["policy", "reason"],
    ),
    ("underpass_policy_generation", "gauge", &[]),
    ("underpass_policy_last_reload_successful", "gauge", &[]),
    (
        "underpass_policy_last_reload_timestamp_seconds",
        "gauge",
        &[],
    ),
    ("underpass_policy_reload_total", "counter", &["result"]),
    (
        "underpass_proxy_checks_total",
        "counter",
        &["endpoint", "proxy", "result"],
    ),
    (
        "underpass_proxy_connections_active",
        "gauge",
        &["endpoint", "proxy"],
    ),
    (
        "underpass_proxy_connections_failures_total",
        "counter",
        &["endpoint", "proxy", "reason"],
    ),
    (
        "underpass_proxy_connections_total",
        "counter",
        &["endpoint", "proxy"],
    ),
    (
        "underpass_proxy_endpoint_healthy",
        "gauge",
        &["endpoint", "proxy"],
    ),
    (
        "underpass_proxy_received_bytes_total",
        "counter",
        &["proxy"],
    ),
    ("underpass_proxy_sent_bytes_total", "counter", &["proxy"]),
    (
        "underpass_target_deduction_total",
        "counter",
        &["result", "source"],
    ),
    (
        "underpass_target_ejections_total",
        "counter",
        &["destination_service"],
    ),
    (
        "underpass_target_refused_total",
        "counter",
        &["destination_service", "reason"],
    ),
    (
        "underpass_target_retries_total",
        "counter",
        &["destination_service"],
    ),
    (
        "underpass_trace_spans_dropped_total",
        "counter",
        &["reason"],
    ),
    ("underpass_trace_spans_exported_total", "counter", &[]),
    (
        "underpass_tunnel_establish_duration_seconds",
        "histogram",
        &["phase", "protocol", "proxy"],
    ),
    (
        "underpass_tunnel_requests_total",
        "counter",
        &["code", "policy", "protocol", "proxy"],
    ),
    (
        "underpass_tunnel_retries_total",
        "counter",
        &["proxy", "reason"],
    ),
    ("underpass_tunnels_active", "gauge", &["protocol", "proxy"]),
];

const ISTIO: [&str; 23] = [
    "connection_security_policy",
    "destination_app",
    "destination_canonical_revision",
    "destination_canonical_service",
    "destination_cluster",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "destination_workload",
    "destination_workload_namespace",
    "reporter",
    "request_protocol",
    "response_flags",
    "source_app",
    "source_canonical_revision",
    "source_canonical_service",
    "source_cluster",
    "source_principal",
    "source_version",
    "source_workload",
    "source_workload_namespace",
];

/// Those that say who talks to whom.
const ISTIO_PEERS: [&str; 20] = [
    "destination_app",
    "destination_canonical_revision",
    "destination_canonical_service",
    "destination_cluster",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "destination_workload",
    "destination_workload_namespace",
    "reporter",
    "source_app",
    "source_canonical_revision",
    "source_canonical_service",
    "source_cluster",
    "source_principal",
    "source_version",
    "source_workload",
    "source_workload_namespace",
];

const ISTIO_HTTP: [&str; 25] = [
    "connection_security_policy",
    "destination_app",
    "destination_canonical_revision",
    "destination_canonical_service",
    "destination_cluster",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "destination_workload",
    "destination_workload_namespace",
    "grpc_response_status",
    "reporter",
    "request_protocol",
    "response_code",
    "response_flags",
    "source_app",
    "source_canonical_revision",
    "source_canonical_service",
    "source_cluster",
    "source_principal",
    "source_version",
    "source_workload",
    "source_workload_namespace",
];

const PROXY: Label = Label::fixed("proxy.example:3128");

fn place() -> Place {
    Place {
        proxy: PROXY.as_str().into(),
        endpoint: "192.0.2.1:3128".into(),
    }
}

struct Kernel;

impl CaptureSource for Kernel {
    fn redirected(&self) -> u64 {
        7
    }

    fn skipped(&self) -> Vec<(&'static str, u64)> {
        vec![("internal", 3), ("own", 0)]
    }

    fn refused(&self) -> Vec<(&'static str, u64)> {
        vec![("device_bound", 1)]
    }

    fn udp_refused(&self) -> Vec<(&'static str, u64)> {
        vec![("quic", 2)]
    }

    fn answers_lost(&self) -> u64 {
        1
    }

    fn queries_passed(&self) -> Vec<(&'static str, u64)> {
        vec![("agent_gone", 0)]
    }

    fn maps(&self) -> Vec<MapUsage> {
        vec![MapUsage {
            map: "ORIGINAL",
            entries: 5,
            capacity: 1024,
        }]
    }
}

struct Counted(u64, u64);

impl ByteCounts for Counted {
    fn sent(&self) -> u64 {
        self.0
    }

    fn received(&self) -> u64 {
        self.1
    }
}

/// Metrics with at least one series of each.
fn everything() -> (Registry, Arc<Metrics>) {
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry).unwrap());
    metrics.capture.watch(&registry, Arc::new(Kernel)).unwrap();
    metrics.capture.original_destination_missed();
    metrics.capture.set_healthy("programs", true);
    metrics.capture.set_namespaces_enrolled(2);
    metrics.circuits.refused(&PROXY, TargetLimit::Ejected);
    metrics.circuits.ejected(&PROXY);
    metrics.circuits.retried(&PROXY);
    metrics.policy.inspected(Inspection::Tls);
    metrics.policy.reloaded(Reload::Success);
    metrics
        .policy
        .deduced(TargetSource::Sni, Deduction::Missing);
    let protocol = TunnelProtocol::Http1Connect;
    metrics.proxy.appeared(&place());
    metrics.proxy.connected(&place());
    metrics.proxy.disconnected(&place());
    metrics.proxy.failed(&place(), "tcp_refused");
    metrics.proxy.healthy(&place(), true);
    metrics.proxy.retried(PROXY.as_str(), "tcp_refused");
    let start = tokio::time::Instant::now();
    let took = |time| Some(Took { start, time });
    let timings = Timings {
        dns: took(Duration::from_millis(2)),
        tcp: took(Duration::from_millis(30)),
        tls: None,
        connect: took(Duration::from_secs(20)),
    };
    let asked = crate::tunnel::Spoken::Http1Connect;
    metrics.proxy.took(PROXY.as_str(), asked, &timings);
    let mut served = ConnectionRecord::begin(&metrics, "10.0.0.1:4000".parse().unwrap());
    served.decided(Decision::Tunnel, Some(Label::fixed("all")), None);
    served.proxy(PROXY);
    served.answered(protocol, TunnelCode::Status(200));
    served.established(Arc::new(Counted(10, 200)));
    served.finished();
    drop(served);
    ConnectionRecord::begin(&metrics, "10.0.0.1:4001".parse().unwrap())
        .denied(DenyReason::NoName, &"no name");
    let captured = Captured {
        src: "10.0.0.1:4002".parse().unwrap(),
        original_dst: OriginalDst("192.0.2.7:80".parse().unwrap()),
        pid: 1,
        cgroup: 2,
    };
    let mut call = RequestRecord::begin(&metrics, captured);
    call.grpc();
    let live = ConnectionRecord::begin(&metrics, captured.src).live();
    drop(call.moves(&live, None));
    call.finished();
    (registry, metrics)
}

#[test]
fn names_types_and_labels_are_as_documented() {
    let (registry, _metrics) = everything();
    let scrape = Scrape::of(&registry);
    let names: Vec<_> = EXPECTED.iter().map(|(name, ..)| *name).collect();
    let found: Vec<_> = scrape.types.keys().collect();
    assert_eq!(found, names);
    for (name, kind, labels) in EXPECTED {
        assert_eq!(scrape.types[name], kind, "{name}");
        let suffix = if kind == "histogram" { "_count" } else { "" };
        let series = format!("{name}{suffix}");
        let mut samples = scrape
            .samples
            .iter()
            .filter(|s| s.name == series)
            .peekable();
        assert!(samples.peek().is_some(), "no sample of {name}");
        for sample in samples {
            let found: Vec<_> = sample.labels.keys().collect();
            assert_eq!(found, labels, "{name}");
        }
    }
}

#[test]
fn a_second_set_in_one_registry_is_an_error() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    assert!(Metrics::new(&registry).is_err());
    metrics.capture.watch(&registry, Arc::new(Kernel)).unwrap();
    assert!(metrics.capture.watch(&registry, Arc::new(Kernel)).is_err());
}

#[test]
fn the_kernel_side_is_read_on_scrape() {
    let (registry, _metrics) = everything();
    let scrape = Scrape::of(&registry);
    let value = |name, labels: &[_]| scrape.value(name, labels);
    assert_eq!(value("underpass_capture_redirected_total", &[]), Some(7.0));
    let internal = [("reason", "internal")];
    assert_eq!(
        value("underpass_capture_skipped_total", &internal),
        Some(3.0)
    );
    let map = [("map", "ORIGINAL")];
    assert_eq!(value("underpass_capture_map_entries", &map), Some(5.0));
    assert_eq!(value("underpass_capture_map_capacity", &map), Some(1024.0));
    assert_eq!(value("underpass_namespaces_enrolled", &[]), Some(2.0));
}

#[test]
fn durations_are_in_seconds_up_to_the_deadline_of_connect() {
    let (registry, _metrics) = everything();
    let scrape = Scrape::of(&registry);
    let name = "underpass_tunnel_establish_duration_seconds";
    let bucket = |phase, le| {
        let labels = [("phase", phase), ("le", le)];
        scrape.value(&format!("{name}_bucket"), &labels)
    };
    assert_eq!(bucket("tcp", "0.025"), Some(0.0));
    assert_eq!(bucket("tcp", "0.05"), Some(1.0));
    assert_eq!(bucket("connect", "15"), Some(0.0));
    assert_eq!(bucket("connect", "+Inf"), Some(1.0));
    let sum = scrape.value(&format!("{name}_sum"), &[("phase", "connect")]);
    assert_eq!(sum, Some(20.0));
}

#[test]
fn the_series_of_an_endpoint_are_there_as_long_as_it_is() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let value = |name| Scrape::of(&registry).value(name, &[("endpoint", "192.0.2.1:3128")]);
    let active = || value("underpass_proxy_connections_active");
    // Once for each of two proxies that differ in TLS.
    metrics.proxy.appeared(&place());
    metrics.proxy.appeared(&place());
    assert_eq!(active(), Some(0.0));
    metrics.proxy.connected(&place());
    metrics.proxy.connected(&place());
    metrics.proxy.disconnected(&place());
    assert_eq!(active(), Some(1.0));
    assert_eq!(value("underpass_proxy_connections_total"), Some(2.0));
    metrics.proxy.failed(&place(), "tcp_refused");
    metrics.proxy.failed(&place(), "dns");
    metrics.proxy.healthy(&place(), false);
    assert_eq!(value("underpass_proxy_endpoint_healthy"), Some(0.0));

    let other = Place {
        endpoint: "192.0.2.2:3128".into(),
        ..place()
    };
    metrics.proxy.appeared(&other);
    metrics.proxy.gone(&place());
    assert_eq!(active(), Some(1.0));
    metrics.proxy.gone(&place());
    for name in [
        "underpass_proxy_connections_active",
        "underpass_proxy_connections_total",
        "underpass_proxy_connections_failures_total",
        "underpass_proxy_endpoint_healthy",
    ] {
        assert_eq!(value(name), None, "{name}");
    }
    let scrape = Scrape::of(&registry);
    let others = scrape.value("underpass_proxy_connections_active", &[]);
    assert_eq!(others, Some(0.0), "the other endpoint has its own");
}
