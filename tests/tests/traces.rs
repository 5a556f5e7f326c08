//! Traces: joined, passed on, and told to a collector.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_tests::addr::{DNS_V4, NAMES};
use underpass_tests::agent::{Agent, Endpoints, exec, tunnel_policy, underpass};
use underpass_tests::pki::Pki;
use underpass_tests::process::{Finished, Running};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene, World, poll};

const MINUTE: Duration = Duration::from_secs(60);

/// What a program says of its trace.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const TRACED: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Neither internal nor a target nor the proxy: to be reached directly only by sockets of our own.
const COLLECTOR: &str = "http://collector.example:4318";

/// The metrics.
const EXPORTED: &str = "underpass_trace_spans_exported_total";
const DROPPED: &str = "underpass_trace_spans_dropped_total";

struct Traces {
    agent: Agent,
    _squid: Squid,
    scene: Scene,
}

impl Traces {
    /// An agent in the very cgroup that it captures, with these variables in its environment.
    #[track_caller]
    fn new(name: &str, options: &[&str], variables: &[(&str, &str)]) -> Self {
        let world = World::new(name);
        let mut names = NAMES.to_vec();
        names.push(("collector.example", &[IpAddr::V4(DNS_V4)]));
        let dns = Dns::start_with(&world, &names, 0);
        let pki = Pki::new(&world);
        let nginx = Nginx::start(&world, &pki);
        let squid = Squid::start_with(
            &world,
            &Options {
                connect_ports: &[80],
                ..Options::default()
            },
        );
        let mut program = underpass(&world)
            .in_cgroup(world.workload())
            .env("SSL_CERT_FILE", pki.ca());
        for (key, value) in variables {
            program = program.env(key, value);
        }
        // What speaks plain HTTP to site.example speaks TLS in the tunnel; to v4.example it does not.
        let policy = tunnel_policy(&[])
            + "---\n\
               apiVersion: networking.istio.io/v1beta1\n\
               kind: ServiceEntry\n\
               metadata: {name: site}\n\
               spec:\n\
               \x20 hosts: [site.example]\n\
               \x20 ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443},\n\
               \x20         {number: 443, name: tls, protocol: TLS}]\n\
               \x20 location: MESH_EXTERNAL\n\
               \x20 resolution: DNS\n\
               ---\n\
               apiVersion: networking.istio.io/v1beta1\n\
               kind: DestinationRule\n\
               metadata: {name: site}\n\
               spec:\n\
               \x20 host: site.example\n\
               \x20 trafficPolicy:\n\
               \x20   portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]\n";
        let mut agent = Agent::launch(program, &world, &policy, options, Endpoints::default());
        agent.wait_until_ready();
        let scene = Scene {
            nginx,
            dns,
            pki,
            world,
        };
        Self {
            agent,
            _squid: squid,
            scene,
        }
    }

    #[track_caller]
    fn get(&self, url: &str, headers: &[&str]) {
        let mut curl = self.scene.curl(url);
        for header in headers {
            curl = curl.args(["--header", header]);
        }
        self.scene.captured(&curl).expect_ok();
    }

    /// Starts what takes the spans.
    #[track_caller]
    fn collector(&self) -> Collector {
        let inet = self.scene.world.inet();
        let program = inet.python("collector");
        let mut running = program.args([&DNS_V4.to_string(), "4318"]).start();
        running.wait_until_listening(inet, SocketAddr::from((DNS_V4, 4318)));
        Collector(running)
    }
}

struct Collector(Running);

impl Collector {
    fn spans(&self) -> Vec<Span> {
        let told = self.0.stdout();
        let spans = told.lines().map(serde_json::from_str);
        spans.map(|span| Span(span.must("read a span"))).collect()
    }

    #[track_caller]
    fn wait_for(&self, count: usize) -> Vec<Span> {
        let all = || Some(self.spans()).filter(|spans| spans.len() >= count);
        let spans =
            poll(MINUTE, all).unwrap_or_else(|| panic!("no {count} spans: {:#?}", self.spans()));
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }
}

#[derive(Debug)]
struct Span(Value);

impl Span {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_default()
    }

    fn told(&self, key: &str) -> &Value {
        &self.0["attributes"][key]
    }
}

#[track_caller]
fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut named = spans.iter().filter(|span| span.text("name") == name);
    let one = named
        .next()
        .unwrap_or_else(|| panic!("no {name}: {spans:#?}"));
    assert!(named.next().is_none(), "{name} twice: {spans:#?}");
    one
}

#[test]
fn a_traced_request_has_one_tree_of_spans_and_goes_on_below_ours() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cret%20key"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=node-7"),
    ];
    let mut traces = Traces::new("traces", &[], &variables);
    let collector = traces.collector();
    traces.get(
        "http://site.example/path-s3cret?key=s3cret",
        &[TRACED, "tracestate: other=s3cret", "Authorization: s3cret"],
    );

    let spans = collector.wait_for(10);
    let request = named(&spans, "GET");
    let connection = named(&spans, "connection");
    let tunnel = named(&spans, "tunnel");
    for (name, parent) in [
        ("GET", SPAN),
        ("connection", SPAN),
        ("capture", connection.text("span")),
        ("inspect", connection.text("span")),
        ("policy", request.text("span")),
        ("tunnel", request.text("span")),
        ("originate", request.text("span")),
        ("dns", tunnel.text("span")),
        ("tcp", tunnel.text("span")),
        ("connect", tunnel.text("span")),
    ] {
        let span = named(&spans, name);
        assert_eq!(span.text("trace"), TRACE, "{span:?}");
        assert_eq!(span.text("parent"), parent, "{span:?}");
        assert_eq!(span.text("path"), "/v1/traces");
        assert!(span.number("start") <= span.number("end"), "{span:?}");
        assert_eq!(span.0["status"], Value::Null, "{span:?}");
        assert_eq!(span.0["headers"]["api-key"], "s3cret key");
        assert_eq!(span.0["resource"]["service.name"], "underpass");
        assert_eq!(span.0["resource"]["k8s.node.name"], "node-7");
        let shown = format!("{}", span.0["attributes"]);
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(!span.0.to_string().contains("unknown"), "{span:?}");
    }
    let in_order = ["policy", "tunnel", "dns", "tcp", "connect", "originate"];
    for pair in in_order.windows(2) {
        let [first, second] = [named(&spans, pair[0]), named(&spans, pair[1])];
        assert!(first.number("start") <= second.number("start"), "{pair:?}");
    }
    for (key, value) in [
        ("http.request.method", "GET"),
        ("server.address", "site.example"),
        ("url.scheme", "http"),
        ("underpass.target", "site.example:443"),
        ("underpass.target.source", "declared"),
        ("underpass.decision", "tunnel"),
        ("underpass.policy", "Tunnel/everything"),
        ("underpass.proxy", "proxy.example:3128"),
        ("underpass.proxy.endpoint", "proxy.example:3128"),
        ("underpass.tunnel.protocol", "http1-connect"),
    ] {
        assert_eq!(request.told(key), value, "{request:?}");
    }
    assert_eq!(request.told("http.response.status_code"), 200);
    assert_eq!(request.told("underpass.tunnel.status_code"), 200);
    assert_eq!(request.told("underpass.flags"), &Value::Null);
    assert_eq!(request.0["links"][0]["span"], connection.text("span"));
    assert_eq!(connection.told("destination.port"), 80);
    assert_eq!(connection.told("network.transport"), "tcp");
    assert_eq!(
        named(&spans, "inspect").told("underpass.inspection"),
        "http"
    );
    assert_eq!(named(&spans, "tcp").told("network.peer.port"), 3128);

    let seen = traces.scene.nginx.requests();
    let below = format!("00-{TRACE}-{}-01", request.text("span"));
    assert_eq!(seen[0].traceparent, below);
    assert_eq!(seen[0].tracestate, "other=s3cret");
    traces.agent.wait_for_metric(EXPORTED, &[], 10.0);
    traces.agent.wait_for_metric(DROPPED, &[], 0.0);
    let captured = "underpass_capture_redirected_total";
    traces.agent.wait_for_metric(captured, &[], 1.0);
    let dump = traces.agent.admin("/config_dump").to_string();
    assert!(!dump.contains("s3cret"), "{dump}");
    let log = traces.agent.process().stderr();
    assert!(log.contains(COLLECTOR) && !log.contains("s3cret"), "{log}");
}

#[test]
fn a_traced_request_of_http2_goes_on_below_ours_too() {
    let mut traces = Traces::new("traces-http2", &["--otlp-endpoint", COLLECTOR], &[]);
    let collector = traces.collector();
    let url = "http://site.example/";
    let curl = traces.scene.curl(url).args(["--http2-prior-knowledge"]);
    let traced = ["--header", TRACED, "--header", "tracestate: a=b"];
    let seen = traces.scene.captured(&curl.args(traced)).expect_ok();
    assert_eq!(seen.http_version, "2");
    let untraced = traces.scene.curl(url).args(["--http2-prior-knowledge"]);
    traces.scene.captured(&untraced).expect_ok();
    traces.agent.wait_for_accesses(2);
    end(&mut traces.agent);

    let spans = collector.spans();
    let request = named(&spans, "GET");
    let connection = named(&spans, "connection");
    for span in [request, connection] {
        assert_eq!(span.text("trace"), TRACE, "{span:?}");
        assert_eq!(span.text("parent"), SPAN, "{span:?}");
    }
    assert_eq!(request.0["links"][0]["span"], connection.text("span"));
    for below in ["policy", "tunnel", "originate"] {
        let span = named(&spans, below);
        assert_eq!(span.text("parent"), request.text("span"), "{span:?}");
    }
    let seen = traces.scene.nginx.requests();
    let told: Vec<_> = seen
        .iter()
        .map(|request| (&*request.traceparent, &*request.tracestate))
        .collect();
    let below = format!("00-{TRACE}-{}-01", request.text("span"));
    assert_eq!(told, [(&*below, "a=b"), ("", "")]);
}

#[test]
fn what_is_not_sampled_goes_on_as_it_came() {
    let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let whatever = "ff-junk";
    let mut traces = Traces::new("traces-not", &["--otlp-endpoint", COLLECTOR], &[]);
    let collector = traces.collector();
    let url = "http://v4.example/";
    for traceparent in [unsampled, whatever] {
        let header = format!("TraceParent: {traceparent}");
        traces.get(url, &[&header, "tracestate: a=b"]);
    }
    traces.get(url, &[]);
    traces.get("https://site.example/", &[TRACED]);
    let seen = traces.scene.nginx.requests();
    let told: Vec<_> = seen
        .iter()
        .map(|request| (&*request.traceparent, &*request.tracestate))
        .collect();
    let traced = TRACED.trim_start_matches("traceparent: ");
    let as_they_came = [
        (unsampled, "a=b"),
        (whatever, "a=b"),
        ("", ""),
        (traced, ""),
    ];
    assert_eq!(told, as_they_came);
    // A span that was on its way would have gone out now.
    end(&mut traces.agent);
    assert!(collector.spans().is_empty(), "{:#?}", collector.spans());
}

#[test]
fn without_a_collector_a_trace_is_only_passed_on() {
    let traces = Traces::new("traces-none", &[], &[("OTEL_TRACES_SAMPLER", "always_on")]);
    traces.get("http://v4.example/", &[TRACED, "tracestate: a=b"]);
    traces.get("http://v4.example/", &[]);
    let seen = traces.scene.nginx.requests();
    assert_eq!(format!("traceparent: {}", seen[0].traceparent), TRACED);
    assert_eq!(seen[0].tracestate, "a=b");
    assert_eq!(seen[1].traceparent, "");
}

#[test]
fn where_we_begin_traces_every_connection_has_one_and_the_last_spans_are_sent() {
    let variables = [("OTEL_TRACES_SAMPLER", "parentbased_always_on")];
    let mut traces = Traces::new("traces-all", &["--otlp-endpoint", COLLECTOR], &variables);
    let collector = traces.collector();
    traces.get(
        "http://v4.example/",
        &["traceparent: junk", "tracestate: a=b"],
    );
    traces.get("https://site.example/", &[]);
    traces.agent.wait_for_accesses(2);
    // Before the spans' time to gather is over.
    end(&mut traces.agent);

    let (requests, bytes): (Vec<_>, Vec<_>) = {
        let spans = collector.spans();
        let http = named(&spans, "GET").text("trace").to_owned();
        spans
            .into_iter()
            .partition(|span| span.text("trace") == http)
    };
    let connection = named(&requests, "connection");
    let request = named(&requests, "GET");
    assert_eq!(connection.text("parent"), "");
    assert_eq!(request.text("parent"), connection.text("span"));
    let seen = traces.scene.nginx.requests();
    let below = format!("00-{}-{}-01", request.text("trace"), request.text("span"));
    assert_eq!(seen[0].traceparent, below);
    assert_eq!(seen[0].tracestate, "", "it belonged to what was junk");
    assert_eq!(seen[1].traceparent, "", "it cannot be seen");

    let connection = named(&bytes, "connection");
    assert_eq!(connection.text("parent"), "");
    assert_eq!(connection.told("underpass.target"), "site.example:443");
    assert_eq!(connection.told("underpass.decision"), "tunnel");
    assert_eq!(connection.told("server.port"), 443);
    let received = connection.told("underpass.bytes_received").as_u64();
    assert!(received > Some(1000), "{connection:?}");
    let tunnel = named(&bytes, "tunnel");
    for (name, parent) in [
        ("capture", connection),
        ("inspect", connection),
        ("policy", connection),
        ("tunnel", connection),
        ("tcp", tunnel),
        ("connect", tunnel),
    ] {
        let span = named(&bytes, name);
        assert_eq!(span.text("parent"), parent.text("span"), "{span:?}");
    }
}

#[test]
fn a_collector_that_is_away_harms_nobody_and_is_tried_again() {
    let variables = [
        ("OTEL_TRACES_SAMPLER", "always_on"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://collector.example:4318/here",
        ),
    ];
    let mut traces = Traces::new("traces-away", &[], &variables);
    // Some more than the queue and one message hold: two spans for each request.
    let url = "http://v4.example/?[1-1400]";
    let curl = traces.scene.workload("curl");
    let curl = curl.args(["--disable", "--silent", "--show-error", "--fail", url]);
    let served = curl.run(MINUTE).expect_success().stdout;
    assert_eq!(served.matches(Nginx::GREETING).count(), 1400);
    let dropped = |agent: &Agent| agent.metrics().sum(DROPPED, &[("reason", "queue_full")]);
    let lost = dropped(&traces.agent).expect("the metric is there");
    assert!((200.0..1000.0).contains(&lost), "{lost}");
    let log = traces.agent.process().wait_for_logged("cannot send spans");
    assert_eq!(log.matches("cannot send spans").count(), 1);

    let collector = traces.collector();
    let waiting = || (traces.agent.metrics().sum(EXPORTED, &[]) >= Some(2048.0)).then_some(());
    poll(MINUTE, waiting).unwrap_or_else(|| panic!("never sent\n{}", traces.agent.tails()));
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| span.text("path") == "/here")
    );
    assert_eq!(dropped(&traces.agent), Some(lost));
}

#[test]
fn what_cannot_be_used_is_told_at_the_start_without_secrets() {
    let world = World::new("traces-usage");
    let policy = world.dir().join("policy.yaml");
    std::fs::write(&policy, tunnel_policy(&[])).must("write a policy");
    let run = |options: &[&str], variables: &[(&str, &str)]| -> Finished {
        let mut program = underpass(&world).arg("run").arg("--policy").arg(&policy);
        for (key, value) in variables {
            program = program.env(key, value);
        }
        program.args(options).run(MINUTE)
    };
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR);
    for (options, variables, says) in [
        (
            &["--otlp-endpoint", "s3cret"][..],
            &[][..],
            "--otlp-endpoint",
        ),
        (
            &[],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://s3cret:4317")],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            &[],
            &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ),
        (
            &[],
            &[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret")],
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (
            &[],
            &[endpoint, ("OTEL_TRACES_SAMPLER", "sometimes")],
            "OTEL_TRACES_SAMPLER",
        ),
    ] {
        let done = run(options, variables);
        assert_eq!(done.status.code(), Some(64), "{done:?}");
        assert!(done.stderr.contains(says), "{done:?}");
        assert!(!done.stderr.contains("s3cret"), "{done:?}");
    }

    // The environment of `exec` is the command's; its options are ours.
    let proxy = "http://proxy.example:3128";
    let command = exec(&world, proxy, &[]).env("OTEL_EXPORTER_OTLP_ENDPOINT", "junk");
    let done = command
        .arg("printenv")
        .arg("OTEL_EXPORTER_OTLP_ENDPOINT")
        .run(MINUTE);
    assert_eq!(done.expect_success().stdout, "junk\n");
    let done = exec(&world, proxy, &["--otlp-endpoint", "junk"])
        .arg("true")
        .run(MINUTE);
    assert_eq!(done.status.code(), Some(64), "{done:?}");
}

#[track_caller]
fn end(agent: &mut Agent) {
    agent.process().signal(Signal::SIGTERM);
    let ended = agent.process().wait(MINUTE);
    assert!(
        ended.is_some_and(|status| status.success()),
        "{}",
        agent.tails()
    );
}
