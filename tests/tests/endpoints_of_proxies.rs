//! A proxy with several endpoints, or several proxies, of which some fail: the workload sees none
//! of it, in bounded time, and no byte of its is lost or sent twice.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use underpass_tests::addr::{OTHER_V4, PROXY_V4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::servers::forward::{Options, Security};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::stage::Stage;
use underpass_tests::servers::tcp::Server;
use underpass_tests::{World, poll};

/// The port of the echo server.
const ECHO: u16 = 7;
/// An address that the world's router takes and nobody has.
const BLACK_HOLE: &str = "192.0.2.99";
/// What a tunnel may take that is not to be held up.
const SOON: Duration = Duration::from_secs(3);

const HEALTHY: &str = "underpass_proxy_endpoint_healthy";
const OVER_LIMIT: &str = "underpass_proxy_limit_refused_total";
const RETRIES: &str = "underpass_tunnel_retries_total";

/// The ports of the proxy's endpoints.
const PORTS: [u16; 2] = [3128, 3129];

/// Everything through `proxy.example`, whose endpoints are these, under these further fields of its
/// DestinationRule.
fn policy(protocol: &str, endpoints: &[(&str, u16)], traffic: &str) -> String {
    let mut policy = format!(
        "apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {{ name: everything }}
spec:
  proxy: {{ host: proxy.example }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: proxy }}
spec:
  host: proxy.example
  trafficPolicy:
    loadBalancer: {{ simple: ROUND_ROBIN }}
    outlierDetection: {{ consecutiveGatewayErrors: 2, baseEjectionTime: 500ms }}
{traffic}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: proxy }}
spec:
  hosts: [proxy.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{ number: 3128, name: proxy, protocol: {protocol} }}]
  endpoints:
"
    );
    for (address, port) in endpoints {
        let _ = writeln!(
            policy,
            "  - {{ address: {address}, ports: {{ proxy: {port} }} }}"
        );
    }
    policy
}

/// Both ports of the proxy's host.
fn both() -> [(&'static str, u16); 2] {
    PORTS.map(|port| ("192.0.2.20", port))
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((PROXY_V4, port))
}

/// A world with an echo server behind two proxies that tunnel.
struct Endpoints {
    proxies: [Option<FakeProxy>; 2],
    echo: Server,
    _dns: Dns,
    world: World,
}

impl Endpoints {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let start = |port| FakeProxy::start(world.inet(), at(port), Answer::tunnel());
        Self {
            proxies: PORTS.map(|port| Some(start(port))),
            echo: Server::echo(world.inet(), SocketAddr::from((OTHER_V4, ECHO))),
            _dns: Dns::start(&world),
            world,
        }
    }

    fn agent(&self, traffic: &str) -> Agent {
        Agent::start(&self.world, &policy("HTTP-CONNECT", &both(), traffic))
    }

    fn start(&mut self, number: usize) {
        let proxy = FakeProxy::start(self.world.inet(), at(PORTS[number]), Answer::tunnel());
        self.proxies[number] = Some(proxy);
    }

    fn stop(&mut self, number: usize) {
        self.proxies[number] = None;
    }

    fn proxy(&self, number: usize) -> &FakeProxy {
        self.proxies[number].as_ref().expect("the proxy runs")
    }

    /// A workload that says something to the echo server, or does something else there; what it
    /// saw.
    fn see(&self, what: &str) -> String {
        let host = OTHER_V4.to_string();
        let program = self.world.host().python("fault");
        let program = program.in_cgroup(self.world.workload());
        let program = program.args([what, &host, &ECHO.to_string()]);
        let done = program.run(Duration::from_secs(25));
        let saw = done.stdout.lines().last().map(str::to_owned);
        saw.unwrap_or_else(|| format!("nothing: {}", done.stderr))
    }

    /// `count` workloads, one after the other, are served, each within `limit`, and each once.
    #[track_caller]
    fn expect_served(&self, agent: &Agent, count: usize, limit: Duration) {
        let before = self.echo.peers().len();
        for _ in 0..count {
            let start = Instant::now();
            assert_eq!(self.see("echo"), "echoed", "{}", agent.tails());
            let took = start.elapsed();
            assert!(took < limit, "{took:?}\n{}", agent.tails());
        }
        assert_eq!(self.echo.peers().len() - before, count);
        self.world.expect_no_direct_arrivals();
    }
}

#[track_caller]
fn wait_for_health(agent: &Agent, port: u16, healthy: bool) {
    wait_for_health_of(agent, "proxy.example:3128", port, healthy);
}

#[track_caller]
fn wait_for_health_of(agent: &Agent, proxy: &str, port: u16, healthy: bool) {
    let endpoint = format!("192.0.2.20:{port}");
    let labels = [("proxy", proxy), ("endpoint", &*endpoint)];
    agent.wait_for_metric(HEALTHY, &labels, f64::from(u8::from(healthy)));
}

#[test]
fn an_endpoint_that_dies_is_passed_over_and_used_again_when_it_is_back() {
    let mut endpoints = Endpoints::new("endpoint-dies");
    let agent = endpoints.agent("");
    endpoints.expect_served(&agent, 4, SOON);
    for number in 0..2 {
        assert_eq!(endpoints.proxy(number).requests().len(), 2, "in turn");
    }
    wait_for_health(&agent, PORTS[0], true);

    endpoints.stop(0);
    endpoints.expect_served(&agent, 8, SOON);
    wait_for_health(&agent, PORTS[0], false);
    let refused = [("reason", "tcp_refused")];
    let retries = agent.metrics().sum(RETRIES, &refused).unwrap_or_default();
    assert!(retries >= 2.0, "{retries}");

    endpoints.start(0);
    let is_back = || {
        endpoints.expect_served(&agent, 1, SOON);
        (!endpoints.proxy(0).requests().is_empty()).then_some(())
    };
    assert!(poll(Duration::from_secs(20), is_back).is_some());
    wait_for_health(&agent, PORTS[0], true);
}

#[test]
fn an_endpoint_that_answers_no_packet_costs_its_timeout_and_then_nothing() {
    let endpoints = Endpoints::new("endpoint-black-hole");
    let hole = [(BLACK_HOLE, 3128), ("192.0.2.20", 3129)];
    let timeout = "    connectionPool: { tcp: { connectTimeout: 300ms } }";
    let policy = policy("HTTP-CONNECT", &hole, timeout);
    let agent = Agent::start(&endpoints.world, &policy);
    endpoints.expect_served(&agent, 6, SOON);
    let timeouts = [("reason", "tcp_timeout")];
    let retries = agent.metrics().sum(RETRIES, &timeouts).unwrap_or_default();
    assert!(retries >= 2.0, "{retries}");
}

#[test]
fn an_endpoint_that_fails_after_connect_is_made_good_by_the_other() {
    let endpoints = Endpoints::new("endpoint-breaks-off");
    let agent = endpoints.agent("");
    for (answer, reason) in [
        (Answer::Reset, "reset"),
        (Answer::Send(Vec::new()), "closed_early"),
        (Answer::Send(b"HTTP/1.1 2".into()), "closed_early"),
        (Answer::Send(b"220 mail\r\n".into()), "malformed"),
    ] {
        endpoints.proxy(0).set_answer(answer);
        let labels = [("reason", reason)];
        let before = agent.metrics().sum(RETRIES, &labels).unwrap_or_default();
        let is_tried = || {
            endpoints.expect_served(&agent, 1, SOON);
            let retries = agent.metrics().sum(RETRIES, &labels).unwrap_or_default();
            (retries > before).then_some(())
        };
        // It may be passed over for a moment.
        assert!(poll(Duration::from_secs(20), is_tried).is_some());
    }
    // Half of the time there is goes to the one that says nothing.
    endpoints.proxy(0).set_answer(Answer::Silence);
    endpoints.expect_served(&agent, 4, Duration::from_secs(10));
}

#[test]
fn a_tunnel_that_breaks_is_an_error_and_not_tried_again() {
    let endpoints = Endpoints::new("endpoint-mid-stream");
    let agent = endpoints.agent("");
    let breaks = || Answer::opened([Step::Read(5), Step::Send(b"hel".into()), Step::Reset]);
    for number in 0..2 {
        endpoints.proxy(number).set_answer(breaks());
        assert_eq!(endpoints.see("echo"), "reset");
    }
    for number in 0..2 {
        let requests = endpoints.proxy(number).requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
    }
    assert!(endpoints.echo.peers().is_empty());
    // The proxy did what it should until then.
    wait_for_health(&agent, PORTS[0], true);
    assert_eq!(agent.metrics().sum(RETRIES, &[]), Some(0.0));
    endpoints.world.expect_no_direct_arrivals();
}

#[test]
fn when_all_endpoints_are_down_connections_fail_at_once_and_work_again_at_once() {
    let mut endpoints = Endpoints::new("endpoints-all-down");
    let long = "    connectionPool: { tcp: { connectTimeout: 1s } }";
    let agent = endpoints.agent(long);
    endpoints.expect_served(&agent, 2, SOON);
    endpoints.stop(0);
    endpoints.stop(1);
    for _ in 0..6 {
        let start = Instant::now();
        assert_eq!(endpoints.see("echo"), "reset");
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
    for port in PORTS {
        wait_for_health(&agent, port, false);
    }
    let failed = agent.wait_for_access("a failure", |record| record.text("flags") == "UF");
    assert!(failed.text("error").contains("connection refused"));
    endpoints.start(1);
    endpoints.expect_served(&agent, 4, SOON);
    wait_for_health(&agent, PORTS[1], true);
}

#[test]
fn the_next_proxy_serves_while_the_first_cannot() {
    let mut endpoints = Endpoints::new("proxies-by-priority");
    let proxies = "proxies:\n  - { host: 192.0.2.20, port: 3128 }\n  \
                   - { host: 192.0.2.20, port: 3129, priority: 1 }";
    let usual = tunnel_policy(&[]);
    let (head, _) = usual.split_once("  proxy:").expect("a proxy");
    let agent = Agent::start(&endpoints.world, &format!("{head}  {proxies}\n"));
    endpoints.expect_served(&agent, 3, SOON);
    assert_eq!(endpoints.proxy(0).requests().len(), 3);
    endpoints.stop(0);
    endpoints.expect_served(&agent, 3, SOON);
    wait_for_health_of(&agent, "192.0.2.20:3128", PORTS[0], false);
    let retries = || agent.metrics().sum(RETRIES, &[("reason", "tcp_refused")]);
    assert_eq!(retries(), Some(3.0));
    // From now on it is not even tried, but for now and then.
    endpoints.expect_served(&agent, 5, SOON);
    assert!(retries() <= Some(4.0), "{:?}", retries());
    assert_eq!(endpoints.proxy(1).requests().len(), 8);
    endpoints.start(0);
    let is_back = || {
        endpoints.expect_served(&agent, 1, SOON);
        (!endpoints.proxy(0).requests().is_empty()).then_some(())
    };
    assert!(poll(Duration::from_secs(20), is_back).is_some());
    let others = endpoints.proxy(1).requests().len();
    endpoints.expect_served(&agent, 3, SOON);
    assert_eq!(endpoints.proxy(0).requests().len(), 4);
    assert_eq!(endpoints.proxy(1).requests().len(), others);
}

#[test]
fn the_limit_of_connections_is_told_apart() {
    let endpoints = Endpoints::new("endpoints-limit");
    let agent = endpoints.agent("    connectionPool: { tcp: { maxConnections: 1 } }");
    for number in 0..2 {
        let answer = Answer::opened([Step::Hold]);
        endpoints.proxy(number).set_answer(answer);
    }
    let program = endpoints.world.host().python("fault");
    let program = program.in_cgroup(endpoints.world.workload());
    let other = OTHER_V4.to_string();
    let _holds = program.args(["echo", &other, "7"]).start();
    let stands = "underpass_proxy_connections_active";
    agent.wait_for_metric(stands, &[], 1.0);
    assert_eq!(endpoints.see("echo"), "reset");
    let refused = agent.wait_for_access("a refusal", |record| record.text("flags") == "UO");
    let error = refused.text("error");
    assert!(error.contains("maxConnections"), "{error}");
    agent.wait_for_metric(OVER_LIMIT, &[("limit", "connections")], 1.0);
    for number in 0..2 {
        endpoints.proxy(number).let_go();
    }
}

#[test]
fn the_limit_of_tunnels_being_opened_is_told_apart() {
    let endpoints = Endpoints::new("endpoints-pending");
    let agent = endpoints.agent("    connectionPool: { http: { http1MaxPendingRequests: 1 } }");
    let late = [
        Step::Hold,
        Step::Send(b"HTTP/1.1 200 OK\r\n\r\n".into()),
        Step::Echo,
    ];
    for number in 0..2 {
        let answer = Answer::Play(late.clone().into());
        endpoints.proxy(number).set_answer(answer);
    }
    let program = endpoints.world.host().python("fault");
    let program = program.in_cgroup(endpoints.world.workload());
    let other = OTHER_V4.to_string();
    let waits = program.args(["echo", &other, "7"]).start();
    let asked = || (0..2).any(|number| !endpoints.proxy(number).requests().is_empty());
    assert!(poll(SOON, || asked().then_some(())).is_some());
    let start = Instant::now();
    assert_eq!(endpoints.see("echo"), "reset");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let refused = agent.wait_for_access("a refusal", |record| record.text("flags") == "UO");
    let error = refused.text("error");
    assert!(error.contains("http1MaxPendingRequests"), "{error}");
    agent.wait_for_metric(OVER_LIMIT, &[("limit", "pending")], 1.0);
    for number in 0..2 {
        endpoints.proxy(number).let_go();
    }
    let done = waits.finish(Duration::from_secs(20));
    assert!(done.stdout.ends_with("echoed\n"), "{done:?}");
    assert_eq!(endpoints.see("echo"), "echoed", "there is room again");
    endpoints.world.expect_no_direct_arrivals();
}

/// Everything through endpoints that speak TLS as `options` say.
fn secured(stage: &Stage, protocol: &str) -> String {
    let tls = format!(
        "    tls: {{ mode: SIMPLE, caCertificates: {} }}",
        stage.scene.pki.ca().display()
    );
    policy(protocol, &both(), &tls)
}

#[track_caller]
fn expect_pages(stage: &Stage, count: usize) {
    for _ in 0..count {
        let start = Instant::now();
        let curl = stage.scene.curl("https://site.example/page");
        let seen = stage.scene.captured(&curl);
        assert_eq!(seen.expect_ok().body, Nginx::GREETING);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn an_endpoint_that_breaks_off_the_handshake_of_tls_is_made_good_by_the_other() {
    let stage = Stage::new("endpoint-tls");
    let options = Options {
        port: PORTS[0],
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let envoy = envoy::start(stage.world(), &options, Versions::Http1);
    // It closes as soon as it has a connection.
    let _closing = Server::start(stage.world().inet(), at(PORTS[1]), |_, _| ());
    let agent = Agent::start(stage.world(), &secured(&stage, "HTTP-CONNECT"));
    expect_pages(&stage, 6);
    assert_eq!(envoy.wait_for_log(6).len(), 6);
    wait_for_health(&agent, PORTS[0], true);
    let metrics = agent.metrics();
    assert!(metrics.sum(RETRIES, &[]) >= Some(1.0));
    let failures = "underpass_proxy_connections_failures_total";
    let at_second = [("endpoint", "192.0.2.20:3129")];
    assert!(metrics.sum(failures, &at_second) >= Some(1.0));
}

#[test]
fn over_http2_an_endpoint_that_goes_takes_its_streams_with_it_and_no_more() {
    let stage = Stage::new("endpoint-http2");
    let options = PORTS.map(|port| Options {
        port,
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    });
    let start = |options: &Options<'_>| envoy::start(stage.world(), options, Versions::Http2);
    let [mut first, second] = options.each_ref().map(start);
    let agent = Agent::start(stage.world(), &secured(&stage, "HTTP2-CONNECT"));
    expect_pages(&stage, 4);
    assert_eq!(first.wait_for_log(2).len(), 2);
    assert_eq!(second.wait_for_log(2).len(), 2);
    first.stop();
    expect_pages(&stage, 8);
    assert_eq!(second.wait_for_log(10).len(), 10);
    wait_for_health(&agent, PORTS[0], false);
    wait_for_health(&agent, PORTS[1], true);
}

#[test]
fn endpoints_are_checked_by_tunnels_of_nobodys() {
    let mut endpoints = Endpoints::new("endpoint-checked");
    let check = format!("{{ targetHost: {OTHER_V4}, targetPort: {ECHO}, interval: 1s }}");
    let policy = policy("HTTP-CONNECT", &both(), "").replacen(
        "{ host: proxy.example }",
        &format!("{{ host: proxy.example, healthCheck: {check} }}"),
        1,
    );
    endpoints.stop(0);
    let agent = Agent::start(&endpoints.world, &policy);
    // Nobody has used it.
    wait_for_health(&agent, PORTS[0], false);
    wait_for_health(&agent, PORTS[1], true);
    let lines = endpoints.proxy(1).request_lines(1);
    assert_eq!(lines[0], format!("CONNECT {OTHER_V4}:{ECHO} HTTP/1.1"));
    endpoints.start(0);
    wait_for_health(&agent, PORTS[0], true);
    let metrics = agent.metrics();
    let checks = "underpass_proxy_checks_total";
    let of = |result| {
        metrics
            .sum(checks, &[("result", result)])
            .unwrap_or_default()
    };
    assert!(
        of("success") >= 2.0 && of("failure") >= 2.0,
        "{}",
        agent.tails()
    );
    for name in [
        "underpass_tunnel_requests_total",
        "underpass_tunnel_establish_duration_seconds_count",
        "underpass_proxy_connections_failures_total",
    ] {
        assert_eq!(metrics.sum(name, &[]).unwrap_or_default(), 0.0, "{name}");
    }
    assert_eq!(agent.access_log().len(), 0);
    endpoints.world.expect_no_direct_arrivals();
}
