//! Tunnels over HTTP/2: many share a connection, and outlive what changes around them.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::Must as _;
use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::Agent;
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::{Credentials, Logged, Options, Security};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::policy::policy;
use underpass_tests::servers::stage::Stage;
use underpass_tests::servers::tcp::Server;

const BASIC: Credentials<'_> = Credentials::Basic("me", "secret");
const CONNECTIONS: &str = "underpass_proxy_connections_total";

/// The site's page by a captured curl.
#[track_caller]
fn expect_page(stage: &Stage) {
    let curl = stage.scene.curl("https://site.example/page");
    let seen = stage.scene.captured(&curl);
    assert_eq!(seen.expect_ok().body, Nginx::GREETING);
}

#[test]
fn a_proxy_that_speaks_http1_alone_is_spoken_to_so_although_http2_is_wanted() {
    let stage = Stage::new("proxies-fallback");
    let options = Options {
        security: Security::Tls(&stage.proxy),
        credentials: BASIC,
        ..Options::default()
    };
    let envoy = envoy::start(stage.world(), &options, Versions::Http1);
    let agent = Agent::start(
        stage.world(),
        &policy(&stage, "HTTP2-CONNECT", &options, BASIC),
    );
    for _ in 0..3 {
        expect_page(&stage);
    }
    let expected = vec![stage.tunnel("HTTP/1.1", &options, BASIC); 3];
    assert_eq!(envoy.wait_for_log(3), expected);
    let asked = |protocol| {
        let metrics = agent.metrics();
        metrics.sum("underpass_tunnel_requests_total", &[("protocol", protocol)])
    };
    assert_eq!(asked("http1-connect"), Some(3.0));
    assert_eq!(asked("http2-connect").unwrap_or_default(), 0.0);
    // Not one connection was made in vain.
    let connections = agent.metrics();
    let connections = connections.sum("underpass_proxy_connections_total", &[]);
    assert_eq!(connections, Some(3.0));
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn many_tunnels_share_one_http2_connection() {
    let stage = Stage::new("proxies-shared");
    let options = Options {
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let envoy = envoy::start(stage.world(), &options, Versions::Http2);
    let agent = Agent::start(
        stage.world(),
        &policy(&stage, "HTTP2-CONNECT", &options, Credentials::None),
    );
    for _ in 0..20 {
        expect_page(&stage);
    }
    assert_eq!(envoy.wait_for_log(20).len(), 20);
    let metrics = agent.metrics();
    let value = |name, labels: &[_]| metrics.sum(name, labels);
    assert_eq!(value("underpass_proxy_connections_total", &[]), Some(1.0));
    let phases = "underpass_tunnel_establish_duration_seconds_count";
    assert_eq!(value(phases, &[("phase", "tls")]), Some(1.0));
    assert_eq!(value(phases, &[("phase", "connect")]), Some(20.0));
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn two_thousand_tunnels_at_a_time_need_a_handful_of_connections() {
    const COUNT: usize = 2000;
    let stage = Stage::new("http2-many");
    let world = stage.world();
    let options = Options {
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let envoy = envoy::start(world, &options, Versions::Http2);
    let _echo = Server::echo(world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let agent = Agent::start(
        world,
        &policy(&stage, "HTTP2-CONNECT", &options, Credentials::None),
    );
    let many = stage.scene.program("many").args(["203.0.113.11", "7"]);
    let many = many.args([COUNT.to_string(), "1".to_owned()]);
    let done = many.run(Duration::from_secs(120)).expect_success();
    assert_eq!(done.stdout, format!("{COUNT} {{}}\n"), "{}", agent.tails());
    let connections = agent.metrics().sum(CONNECTIONS, &[]).unwrap_or_default();
    assert!((1.0..=24.0).contains(&connections), "{connections}");
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    assert_eq!(envoy.wait_for_log(COUNT).len(), COUNT);
    world.expect_no_direct_arrivals();
}

/// What they prove is said of each stream, so it keeps none apart.
#[test]
fn tunnels_with_credentials_of_their_own_share_a_connection() {
    let stage = Stage::new("http2-credentials");
    let world = stage.world();
    let options = Options {
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let envoy = envoy::start(world, &options, Versions::Http2);
    let own = "---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: { name: other }
spec:
  selector: { matchLabels: { is: other } }
  proxy:
    host: proxy.example
    authentication: { credentialName: other }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: other, labels: { is: other } }
spec:
  hosts: [v4.example]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{ number: 443, name: tls, protocol: TLS }]
---
apiVersion: v1
kind: Secret
metadata: { name: other }
stringData: { header: 'Custom as-it-is' }
";
    let policy = policy(&stage, "HTTP2-CONNECT", &options, BASIC) + own;
    let agent = Agent::start(world, &policy);
    let custom = Logged {
        target: "v4.example:443".into(),
        authorization: "Custom as-it-is".into(),
        ..stage.tunnel("HTTP/2", &options, Credentials::None)
    };
    let mut expected = Vec::new();
    for _ in 0..2 {
        expect_page(&stage);
        expected.push(stage.tunnel("HTTP/2", &options, BASIC));
        assert_eq!(envoy.wait_for_log(expected.len()), expected);
        let curl = stage.scene.curl("https://v4.example/page");
        let seen = stage.scene.captured(&curl).expect_ok();
        assert_eq!(seen.body, Nginx::GREETING);
        expected.push(custom.clone());
        assert_eq!(envoy.wait_for_log(expected.len()), expected);
    }
    assert_eq!(agent.metrics().sum(CONNECTIONS, &[]), Some(1.0));
    let policies = ["Tunnel/everything", "Tunnel/other"];
    for policy in policies {
        let of = [("policy", policy), ("code", "200")];
        agent.wait_for_metric("underpass_tunnel_requests_total", &of, 2.0);
    }
    world.expect_no_direct_arrivals();
}

#[test]
fn credentials_change_under_tunnels_that_stand() {
    let stage = Stage::new("http2-rotation");
    let world = stage.world();
    let options = Options {
        security: Security::Tls(&stage.proxy),
        ..Options::default()
    };
    let envoy = envoy::start(world, &options, Versions::Http2);
    let of = |password| {
        let credentials = Credentials::Basic("me", password);
        policy(&stage, "HTTP2-CONNECT", &options, credentials)
    };
    let agent = Agent::start(world, &of("first-secret"));
    expect_page(&stage);
    fs::write(world.dir().join("policy.yaml"), of("second-secret")).must("write a policy");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent.pid().cast_signed()),
        Signal::SIGHUP,
    )
    .must("have policy read again");
    agent.wait_for_metric("underpass_policy_generation", &[], 2.0);
    expect_page(&stage);
    let expected = ["first-secret", "second-secret"]
        .map(|password| stage.tunnel("HTTP/2", &options, Credentials::Basic("me", password)));
    assert_eq!(envoy.wait_for_log(2), expected);
    assert_eq!(agent.metrics().sum(CONNECTIONS, &[]), Some(1.0));
    // Neither as it was written nor as it was sent.
    let dump = agent.admin("/config_dump").to_string();
    for request in &expected {
        let sent = request.authorization.trim_start_matches("Basic ");
        assert!(!dump.contains(sent) && !dump.contains("-secret"), "{dump}");
    }
    world.expect_no_direct_arrivals();
}
