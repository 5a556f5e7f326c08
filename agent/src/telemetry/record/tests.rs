use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;
use prometheus::Registry;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};

use super::*;
use crate::telemetry::scrape::Scrape;

/// The lines of the access log that were written on one thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<Line>>>);

#[derive(Clone, Debug)]
struct Line {
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        if event.metadata().target() == ACCESS_LOG {
            let mut line = Line {
                level: *event.metadata().level(),
                fields: BTreeMap::new(),
            };
            event.record(&mut line);
            self.0.lock().push(line);
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

#[derive(Default)]
struct Moving {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Moving {
    fn relay(&self, sent: u64, received: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
    }
}

impl ByteCounts for Moving {
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

struct Bench {
    registry: Registry,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new() -> Self {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        Self { registry, metrics }
    }

    fn scrape(&self) -> Scrape {
        Scrape::of(&self.registry)
    }

    fn begin(&self) -> ConnectionRecord {
        ConnectionRecord::begin(&self.metrics, "10.1.2.3:40000".parse().unwrap())
    }

    /// A connection as it stands before CONNECT is answered.
    fn tunnelled(&self) -> ConnectionRecord {
        let mut record = self.begin();
        let dst = OriginalDst("198.51.100.7:4443".parse().unwrap());
        record.captured(dst, Some(4711), Some(99));
        record.destination(Destination::declared(
            Label::of(&"*.example.com"),
            Label::of(&"egress"),
        ));
        record.decided(
            Decision::Tunnel,
            Some(Label::of(&"Tunnel/all")),
            Some(Label::of(&"spec")),
        );
        let target = Target {
            host: "secret-customer.example.com".parse().unwrap(),
            port: 4443,
        };
        record.target(target, TargetSource::Sni);
        record.proxy(Label::of(&"proxy.example:3128"));
        record.endpoint(Label::of(&"192.0.2.1:3128"));
        record
    }
}

/// What `work` wrote to the access log.
fn lines_of(work: impl FnOnce()) -> Vec<Line> {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::registry().with(lines.clone());
    tracing::subscriber::with_default(subscriber, work);
    lines.0.lock().clone()
}

const OK: TunnelCode = TunnelCode::Status(200);
const HTTP1: TunnelProtocol = TunnelProtocol::Http1Connect;

#[test]
fn a_served_connection_is_one_line_and_one_set_of_counters() {
    let bench = Bench::new();
    let lines = lines_of(|| {
        let mut record = bench.tunnelled();
        // A first endpoint that failed is no failure of the connection.
        record.failed(ResponseFlag::UpstreamFailure, &"refused");
        record.answered(HTTP1, OK);
        let bytes = Arc::new(Moving::default());
        record.established(Arc::<Moving>::clone(&bytes));
        assert_eq!(
            bench.scrape().value("underpass_tunnels_active", &[]),
            Some(1.0)
        );
        bytes.relay(100, 2000);
        record.finished();
    });

    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(line.level, Level::INFO);
    let fields: Vec<_> = line
        .fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .filter(|(name, _)| *name != "duration_ms")
        .collect();
    assert_eq!(
        fields,
        [
            ("bytes_received", "2000"),
            ("bytes_sent", "100"),
            ("decision", "tunnel"),
            ("message", "connection complete"),
            ("original_dst", "198.51.100.7:4443"),
            ("policy", "Tunnel/all"),
            ("proxy", "proxy.example:3128"),
            ("proxy.endpoint", "192.0.2.1:3128"),
            ("src.addr", "10.1.2.3:40000"),
            ("src.cgroup", "99"),
            ("src.pid", "4711"),
            ("target", "secret-customer.example.com:4443"),
            ("target.source", "sni"),
            ("tunnel.code", "200"),
            ("tunnel.protocol", "http1-connect"),
        ]
    );
    let millis: u64 = line.fields["duration_ms"].parse().unwrap();
    assert!(millis < 60_000);

    let scrape = bench.scrape();
    let target = [
        ("reporter", "source"),
        ("destination_service", "*.example.com"),
        ("destination_service_name", "*.example.com"),
        ("destination_service_namespace", "egress"),
        ("source_workload", "unknown"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "unknown"),
    ];
    let value = |name, labels: &[_]| scrape.value(name, labels);
    let opened = "istio_tcp_connections_opened_total";
    let closed = "istio_tcp_connections_closed_total";
    assert_eq!(value(opened, &target), Some(1.0));
    assert_eq!(value(closed, &target), Some(1.0));
    // Istio's directions are the server's.
    assert_eq!(value("istio_tcp_sent_bytes_total", &target), Some(2000.0));
    assert_eq!(
        value("istio_tcp_received_bytes_total", &target),
        Some(100.0)
    );
    let proxy = [("proxy", "proxy.example:3128")];
    assert_eq!(
        value("underpass_proxy_sent_bytes_total", &proxy),
        Some(100.0)
    );
    assert_eq!(
        value("underpass_proxy_received_bytes_total", &proxy),
        Some(2000.0)
    );
    let asked = [
        ("proxy", "proxy.example:3128"),
        ("policy", "Tunnel/all"),
        ("protocol", "http1-connect"),
        ("code", "200"),
    ];
    assert_eq!(value("underpass_tunnel_requests_total", &asked), Some(1.0));
    assert_eq!(value("underpass_tunnels_active", &proxy), Some(0.0));
    let found = [("source", "sni"), ("result", "found")];
    assert_eq!(value("underpass_target_deduction_total", &found), Some(1.0));
    assert!(bench.metrics.connections().is_empty());
}

#[test]
fn nothing_from_the_network_becomes_a_label() {
    let bench = Bench::new();
    let mut record = bench.tunnelled();
    record.answered(HTTP1, OK);
    record.established(Arc::new(Moving::default()));
    record.finished();
    drop(record);
    for sample in &bench.scrape().samples {
        for value in sample.labels.values() {
            for raw in ["secret-customer", "4443", "198.51.100.7", "10.1.2.3"] {
                assert!(!value.contains(raw), "{sample:?}");
            }
        }
    }
}

#[test]
fn a_refusal_of_the_proxy_is_a_warning_with_code_and_text() {
    let bench = Bench::new();
    let lines = lines_of(|| {
        let mut record = bench.tunnelled();
        record.answered(HTTP1, TunnelCode::Status(403));
        // What is refused shows at once, not when the connection ends.
        let refused = bench
            .scrape()
            .value("underpass_tunnel_requests_total", &[("code", "403")]);
        assert_eq!(refused, Some(1.0));
        let body = format!("no\r\nX: \u{1b}[2J{}", "x".repeat(10_000));
        record.failed(ResponseFlag::Connect, &body);
    });
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(line.level, Level::WARN);
    assert_eq!(line.fields["tunnel.code"], "403");
    assert_eq!(line.fields["flags"], "CONNECT");
    let error = &line.fields["error"];
    assert!(error.starts_with(r"no\r\nX: \u{1b}[2J"), "{error}");
    assert!(error.len() < 600 && !error.contains(char::is_control));

    // Never served: opened and closed together, with the same flags.
    let scrape = bench.scrape();
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
    ] {
        assert_eq!(
            scrape.value(name, &[("response_flags", "CONNECT")]),
            Some(1.0)
        );
        assert_eq!(scrape.sum(name), 1.0);
    }
    assert_eq!(scrape.sum("underpass_tunnels_active"), 0.0);
}

#[test]
fn a_denied_connection_says_by_whom_and_why() {
    let bench = Bench::new();
    let lines = lines_of(|| {
        let mut record = bench.begin();
        let policy = Some(Label::of(&"Tunnel/sni"));
        record.decided(Decision::Tunnel, policy, None);
        record.denied(DenyReason::NoName, &"AUTO_SNI, and the hello has no name");
    });
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(line.level, Level::WARN);
    assert_eq!(line.fields["decision"], "deny");
    assert_eq!(line.fields["flags"], "DENY");
    assert!(!line.fields.contains_key("proxy"));
    assert!(!line.fields.contains_key("tunnel.code"));
    let scrape = bench.scrape();
    let labels = [("policy", "Tunnel/sni"), ("reason", "no_name")];
    let denied = scrape.value("underpass_policy_denied_total", &labels);
    assert_eq!(denied, Some(1.0));
    let labels = [("destination_service", "PassthroughCluster")];
    let closed = scrape.value("istio_tcp_connections_closed_total", &labels);
    assert_eq!(closed, Some(1.0));
}

#[test]
fn a_connection_that_is_given_up_still_has_its_line() {
    let bench = Bench::new();
    let lines = lines_of(|| {
        // A task that panics drops its record while it unwinds.
        let record = bench.begin();
        let panicked = panic::catch_unwind(panic::AssertUnwindSafe(move || {
            let _held = record;
            panic::resume_unwind(Box::new("in the task"));
        }));
        assert!(panicked.is_err());
        // One that is aborted while it relays drops it without a word, too.
        let mut record = bench.tunnelled();
        let bytes = Arc::new(Moving::default());
        record.established(Arc::<Moving>::clone(&bytes));
        bytes.relay(1, 2);
    });
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!(line.level, Level::WARN);
        assert_eq!(line.fields["flags"], "LR");
        assert_eq!(line.fields["error"], "ended by the agent");
    }
    assert_eq!(lines[1].fields["bytes_received"], "2");
    assert!(bench.metrics.connections().is_empty());
}

#[test]
fn bytes_count_while_the_connection_lives() {
    let bench = Bench::new();
    let bytes = Arc::new(Moving::default());
    let mut record = bench.tunnelled();
    record.established(Arc::<Moving>::clone(&bytes));
    let sent = |flags| {
        let labels = [("response_flags", flags)];
        bench
            .scrape()
            .value("istio_tcp_received_bytes_total", &labels)
    };
    assert_eq!(sent("-"), Some(0.0));
    bytes.relay(10, 0);
    assert_eq!(sent("-"), Some(10.0));
    assert_eq!(sent("-"), Some(10.0));
    bytes.relay(5, 0);
    record.failed(ResponseFlag::UpstreamClosed, &"reset");
    drop(record);
    // The rest belongs to how it ended; nothing is counted twice.
    assert_eq!(sent("UC"), Some(5.0));
    assert_eq!(sent("-"), Some(10.0));
    let proxy = bench
        .scrape()
        .value("underpass_proxy_sent_bytes_total", &[]);
    assert_eq!(proxy, Some(15.0));
}

#[test]
fn concurrent_scrapes_count_each_byte_once() {
    const CONNECTIONS: u64 = 400;
    const STEPS: u64 = 50;
    let bench = Bench::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let scrapers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0.0;
                    while !done.load(Ordering::Relaxed) {
                        let now = bench.scrape().sum("istio_tcp_sent_bytes_total");
                        assert!(now >= last, "{now} after {last}");
                        last = now;
                    }
                })
            })
            .collect();
        let relays: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for n in 0..CONNECTIONS / 4 {
                        let bytes = Arc::new(Moving::default());
                        let mut record = bench.tunnelled();
                        record.established(Arc::<Moving>::clone(&bytes));
                        for _ in 0..STEPS {
                            bytes.relay(1, 3);
                        }
                        if n % 2 == 0 {
                            record.failed(ResponseFlag::Idle, &"idle");
                        } else {
                            record.finished();
                        }
                    }
                })
            })
            .collect();
        for relay in relays {
            relay.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for scraper in scrapers {
            scraper.join().unwrap();
        }
    });
    let scrape = bench.scrape();
    let all = (CONNECTIONS * STEPS) as f64;
    assert_eq!(scrape.sum("istio_tcp_received_bytes_total"), all);
    assert_eq!(scrape.sum("istio_tcp_sent_bytes_total"), 3.0 * all);
    assert_eq!(scrape.sum("underpass_proxy_sent_bytes_total"), all);
    assert_eq!(
        scrape.sum("underpass_proxy_received_bytes_total"),
        3.0 * all
    );
    let closed = scrape.sum("istio_tcp_connections_closed_total");
    assert_eq!(closed, CONNECTIONS as f64);
}

#[test]
fn live_connections_are_listed_as_the_access_log_names_them() {
    let bench = Bench::new();
    let first = bench.begin();
    let mut second = bench.tunnelled();
    let bytes = Arc::new(Moving::default());
    second.established(Arc::<Moving>::clone(&bytes));
    bytes.relay(1, 2);
    let table = bench.metrics.connections();
    assert_eq!(table.len(), 2);
    let listed = table.snapshot();
    assert_eq!(listed[0]["id"], first.id());
    assert_eq!(listed[0].get("target"), None);
    assert_eq!(listed[0]["established"], false);
    assert_eq!(listed[1]["target"], "secret-customer.example.com:4443");
    assert_eq!(listed[1]["rule"], "spec");
    assert_eq!(listed[1]["src.pid"], 4711);
    assert_eq!(listed[1]["bytes_received"], 2);
    drop(first);
    assert_eq!(table.snapshot().len(), 1);
}

#[test]
fn a_connection_of_requests_counts_what_goes_through_proxies_and_no_more() {
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry).unwrap());
    let mut record = ConnectionRecord::begin(&metrics, "10.0.0.1:4000".parse().unwrap());
    record.by_request();
    let first = Arc::new(Moving::default());
    let live = record.live();
    let proxy = Label::fixed("proxy.test:1");
    let moving = live.moves(Arc::clone(&first) as _, Some(&proxy), None);
    first.relay(1, 20);
    let sent = || Scrape::of(&registry).sum("underpass_proxy_sent_bytes_total");
    let received = || Scrape::of(&registry).sum("underpass_proxy_received_bytes_total");
    // While it is served.
    assert_eq!((sent(), received()), (1.0, 20.0));
    first.relay(2, 30);
    // The same request once more, on another connection.
    drop(moving);
    let moving = live.moves(Arc::clone(&first) as _, Some(&proxy), None);
    first.relay(3, 40);
    drop(moving);
    assert_eq!((sent(), received()), (6.0, 90.0));
    let direct = Arc::new(Moving::default());
    let moving = live.moves(Arc::clone(&direct) as _, None, None);
    direct.relay(1000, 1000);
    drop(moving);
    drop(record);
    assert_eq!((sent(), received()), (6.0, 90.0));
    let scrape = Scrape::of(&registry);
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
    ] {
        assert_eq!(scrape.value(name, &[]), None, "{name}");
    }
}
