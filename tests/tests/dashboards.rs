//! Dashboards that Istio publishes (mesh, service, workload), on what an agent counts: a real
//! Prometheus scrapes it and is asked what their panels ask. Left out is what an external target
//! cannot tell: panels of what its own sidecar reports (`reporter="destination"`), and of Istio's
//! own mutual TLS.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Agent, METRICS, tunnel_policy};
use underpass_tests::http;
use underpass_tests::process::Running;
use underpass_tests::servers::prometheus::Prometheus;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene};

const MINUTE: Duration = Duration::from_secs(60);

/// Where the services of `other.example` are: HTTP at 8080, gRPC at 8081, an echo at 7.
const OTHER: &str = "203.0.113.11";

/// Bytes tell no name, so it is by its address that the echo is known to be this service.
const SERVICES: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other}
spec:
  hosts: [other.example]
  addresses: [203.0.113.11]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
  - {number: 8080, name: http, protocol: HTTP}
  - {number: 8081, name: grpc, protocol: GRPC}
  - {number: 7, name: tcp, protocol: TCP}
";

/// What a client, a service and a workload are called in the queries. All that the agent knows of
/// an external target is the host that policy declares; the rest is `unknown`, as Istio says it.
const CLIENT: &str = "source_workload=~\"unknown\", source_workload_namespace=~\"unknown\"";
const SERVICE: &str = "destination_service=\"other.example\"";
const SERVICES_CALLED: &str = "destination_service=~\"other.example\"";
const WORKLOAD: &str =
    "destination_workload=~\"unknown\", destination_workload_namespace=~\"unknown\"";
const PLAIN: &str = "connection_security_policy!=\"mutual_tls\"";

/// What stays the same in the panels of one row of a dashboard.
struct Row {
    name: &'static str,
    selector: String,
    by: &'static str,
}

fn rows() -> Vec<Row> {
    let source = "reporter=~\"source\"";
    let by_client = "source_workload, source_workload_namespace";
    let row = |name, selector: &[&str], by| Row {
        name,
        selector: selector.join(", "),
        by,
    };
    vec![
        row("mesh", &["reporter=~\"source|waypoint\""], ""),
        row(
            "mesh, by workload",
            &["reporter=~\"source|waypoint\""],
            "destination_workload, destination_workload_namespace, destination_service",
        ),
        row("service", &[source, SERVICE], ""),
        row(
            "service, by client",
            &[source, PLAIN, SERVICE, CLIENT],
            by_client,
        ),
        row("workload", &[source, WORKLOAD], ""),
        row(
            "workload, by client",
            &[source, PLAIN, WORKLOAD, CLIENT],
            by_client,
        ),
        row(
            "workload, by what it calls",
            &["reporter=\"source\"", PLAIN, CLIENT, SERVICES_CALLED],
            "destination_service",
        ),
        row(
            "workload, by what it calls, without an identity",
            &[
                "destination_principal!~\"spiffe.*\"",
                "reporter=\"source\"",
                CLIENT,
                SERVICES_CALLED,
            ],
            "destination_service",
        ),
    ]
}

/// The panels of a row: what is asked, and whether all that happens here must show in it.
fn panels(row: &Row) -> Vec<String> {
    let rate = |metric: &str, more: &str, by: &[&str]| {
        let by: Vec<&str> = by.iter().filter(|one| !one.is_empty()).copied().collect();
        let by = by.join(", ");
        format!(
            "sum(irate({metric}{{{}{more}}}[1m])) by ({by})",
            row.selector
        )
    };
    let requests = "istio_requests_total";
    let mut panels = vec![
        format!(
            "round({}, 0.001)",
            rate(requests, "", &[row.by, "response_code"])
        ),
        format!(
            "round({}, 0.01)",
            rate(requests, ", response_code=~\"4..\"", &[])
        ),
        format!(
            "round({}, 0.01)",
            rate(requests, ", response_code=~\"5..\"", &[])
        ),
        format!(
            "{} / {}",
            rate(requests, ", response_code!~\"5.*\"", &[row.by]),
            rate(requests, "", &[row.by])
        ),
        format!(
            "{} + {}",
            rate("istio_tcp_sent_bytes_total", "", &[row.by]),
            rate("istio_tcp_received_bytes_total", "", &[row.by])
        ),
        rate("istio_tcp_connections_opened_total", "", &[row.by]),
        rate("istio_tcp_connections_closed_total", "", &[row.by]),
        rate("istio_request_messages_total", "", &[row.by]),
        rate("istio_response_messages_total", "", &[row.by]),
        rate(
            requests,
            ", request_protocol=\"grpc\", grpc_response_status!=\"0\"",
            &[row.by, "grpc_response_status"],
        ),
        format!(
            "{} / {}",
            rate(requests, ", grpc_response_status=\"0\"", &[row.by]),
            rate(requests, ", request_protocol=\"grpc\"", &[row.by])
        ),
    ];
    for metric in [
        "istio_request_duration_milliseconds_bucket",
        "istio_request_bytes_bucket",
        "istio_response_bytes_bucket",
    ] {
        for quantile in ["0.50", "0.90", "0.95", "0.99"] {
            let rate = rate(metric, "", &[row.by, "le"]);
            panels.push(format!("histogram_quantile({quantile}, {rate})"));
        }
    }
    panels
}

/// What the variables of published dashboards stand for here.
const MEANS: [(&str, &str); 9] = [
    ("$__rate_interval", "1m"),
    ("$qrep", "source"),
    ("$service", "other.example"),
    ("$dstsvc", "other.example"),
    ("$workload", "unknown"),
    ("$namespace", "unknown"),
    ("$srcwl", "unknown"),
    ("$srcns", "unknown"),
    ("$srccluster", "unknown"),
];

/// In panels of what only a sidecar of the target, or one of Istio's own peers, can tell.
const OF_OTHERS: [&str; 3] = [
    "reporter=\"destination\"",
    "connection_security_policy=\"mutual_tls\"",
    "destination_principal=~\"spiffe",
];

/// What the dashboards in the directory `DASHBOARDS` ask, with the file of each.
fn published() -> Vec<(String, String)> {
    let Some(dir) = std::env::var_os("DASHBOARDS") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).must("read the directory of dashboards") {
        let path = entry.must("read the directory of dashboards").path();
        let text = fs::read_to_string(&path).must("read a dashboard");
        let dashboard: Value = serde_json::from_str(&text).must("read JSON");
        let before = found.len();
        let file = path.display().to_string();
        collect(&dashboard, &mut |asked| {
            if !OF_OTHERS.iter().any(|part| asked.contains(part)) {
                let means = |text: String, (name, value): &(&str, &str)| text.replace(name, value);
                found.push((file.clone(), MEANS.iter().fold(asked.to_owned(), means)));
            }
        });
        assert!(found.len() > before, "{file} asks nothing");
    }
    found
}

/// Every query below this value.
fn collect(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Array(values) => values.iter().for_each(|one| collect(one, found)),
        Value::Object(fields) => {
            for (name, one) in fields {
                match one.as_str() {
                    Some(asked) if name == "expr" => found(asked),
                    _ => collect(one, found),
                }
            }
        }
        _ => {}
    }
}

/// What fills the lists from which the reader of a dashboard chooses, and what it must hold.
const VARIABLES: [(&str, &str, &str); 7] = [
    ("", "destination_service", "other.example"),
    ("", "destination_workload_namespace", "unknown"),
    (
        "reporter=~\"source\", destination_service=\"other.example\"",
        "source_cluster",
        "unknown",
    ),
    (
        "reporter=~\"source\", destination_service=\"other.example\"",
        "source_workload_namespace",
        "unknown",
    ),
    (
        "destination_workload_namespace=~\"unknown\"",
        "destination_workload",
        "unknown",
    ),
    (
        "source_workload_namespace=~\"unknown\"",
        "source_workload",
        "unknown",
    ),
    (
        "reporter=\"source\", source_workload=~\"unknown\", source_workload_namespace=~\"unknown\"",
        "destination_service",
        "other.example",
    ),
];

/// A target of both kinds, an agent before it, and requests and connections that end well and not.
struct Busy {
    agent: Agent,
    _site: Running,
    _grpc: Running,
    _echo: Server,
    _squid: Squid,
    scene: Scene,
}

/// One round of requests, by their statuses.
const STATUSES: [&str; 4] = ["200", "204", "404", "503"];

/// One of calls of gRPC, and how many messages answer them.
const CALLS: &str = r#"[["as", "other.example:8081"], ["echo", "abc", []], ["count", 5, 100],
    ["fail", 5, "no such thing"]]"#;
const MESSAGES: f64 = 1.0 + 5.0;

/// Requests and calls of one round.
const REQUESTS: usize = STATUSES.len() + 3;

impl Busy {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[7, 8080, 8081],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let inet = scene.world.inet();
        let mut site = inet.python("site").args([OTHER, "8080"]).start();
        site.wait_until_listening(inet, SocketAddr::from((OTHER_V4, 8080)));
        let mut grpc = inet
            .debian_python("grpc_site")
            .args([OTHER, "8081"])
            .start();
        grpc.wait_until_listening(inet, SocketAddr::from((OTHER_V4, 8081)));
        let echo = Server::echo(inet, SocketAddr::from((OTHER_V4, 7)));
        let agent = Agent::start(&scene.world, &(tunnel_policy(&[]) + SERVICES));
        Self {
            agent,
            _site: site,
            _grpc: grpc,
            _echo: echo,
            _squid: squid,
            scene,
        }
    }

    /// One request of each status, calls, and two connections of bytes.
    #[track_caller]
    fn round(&self) {
        for status in STATUSES {
            let url = format!("http://other.example:8080/status/{status}");
            let seen = self.scene.captured(&self.scene.curl(&url).args(["-4"]));
            assert_eq!(seen.status.to_string(), status, "{seen:?}");
        }
        let calls = self.scene.grpc_client("203.0.113.11:8081").input(CALLS);
        let said = calls.run(MINUTE).expect_success().stdout;
        assert_eq!(said.matches("\"ok\": [").count(), 2, "{said}");
        assert!(said.contains("NOT_FOUND"), "{said}");
        for _ in 0..2 {
            let echo = self.scene.program("fault").args(["echo", OTHER, "7"]);
            let said = echo.run(MINUTE).expect_success().stdout;
            assert!(said.ends_with("echoed\n"), "{said}");
        }
    }
}

#[test]
fn every_panel_has_data() {
    let busy = Busy::new("dashboards");
    // The series are there before the second round makes them grow.
    busy.round();
    let prometheus = Prometheus::start(&busy.scene.world);
    prometheus.wait_for("sum(istio_requests_total)", REQUESTS as f64);
    prometheus.wait_for("sum(istio_response_messages_total)", MESSAGES);
    prometheus.wait_for("sum(istio_tcp_connections_closed_total)", 2.0);
    busy.round();
    prometheus.wait_for("sum(istio_requests_total)", 2.0 * REQUESTS as f64);
    prometheus.wait_for("sum(istio_response_messages_total)", 2.0 * MESSAGES);
    prometheus.wait_for("sum(istio_tcp_connections_closed_total)", 4.0);

    let own = rows().into_iter().flat_map(|row| {
        let name = |panel| (row.name.to_owned(), panel);
        panels(&row).into_iter().map(name).collect::<Vec<_>>()
    });
    let mut empty = Vec::new();
    let mut asked = 0;
    for (whose, panel) in own.chain(published()) {
        asked += 1;
        let series = prometheus.ask(&panel);
        let grows = |series: &[f64]| series.iter().any(|value| *value > 0.0);
        if !series.iter().any(|one| grows(&one.values)) {
            empty.push(format!("{whose}: {panel}\n    {series:?}"));
        }
    }
    println!("{asked} queries of panels");
    assert!(empty.is_empty(), "no data for\n{}", empty.join("\n"));
    for (selector, label, value) in VARIABLES {
        for metric in ["istio_requests_total", "istio_tcp_sent_bytes_total"] {
            let query = format!("sum({metric}{{{selector}}}) by ({label})");
            let series = prometheus.ask(&query);
            let offered: Vec<_> = series.iter().map(|one| one.labels[label].clone()).collect();
            assert_eq!(offered, [value], "{query}");
            asked += 1;
        }
    }
    // The panel of what of a mesh is installed.
    let query = "sum(istio_build) by (component, tag)";
    let series = prometheus.ask(query);
    assert_eq!(series[0].labels["component"], "underpass", "{series:?}");
    assert!(asked > 150, "{asked}");
}

/// Prometheus' own linter has one wish: a name that is Istio's, with its unit.
#[test]
fn the_linter_is_content() {
    let busy = Busy::new("promtool");
    busy.round();
    busy.agent.wait_for_accesses(REQUESTS + 2);
    let scrape = http::get(busy.scene.world.host(), METRICS, "/metrics").must("scrape");
    let promtool = busy.scene.world.host().command("promtool");
    let promtool = promtool.args(["check", "metrics"]).input(scrape.body);
    let done = promtool.run(MINUTE);
    let said = format!("{}{}", done.stdout, done.stderr);
    let wish = "istio_request_duration_milliseconds use base unit \"seconds\" instead of \
                \"milliseconds\"\n";
    assert_eq!(said, wish, "{}", done.status);
}
