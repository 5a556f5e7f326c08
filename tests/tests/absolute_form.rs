//! Plain HTTP through proxies that get the requests themselves, with a whole URI, and are asked for
//! no tunnel: what counts is the page at the workload, and the request line as the proxy logged it.

use underpass_tests::Scene;
use underpass_tests::addr::proxy_v4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::curl::Seen;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::forward::{Credentials, Logged, Options, Security, addresses};
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::policy::policy;
use underpass_tests::servers::squid::{self, Squid};
use underpass_tests::servers::stage::Stage;
use underpass_tests::servers::{apache, nghttpx, tinyproxy};

const URL: &str = "http://site.example/page";
const BASIC: Credentials<'_> = Credentials::Basic("me", "secret");
const CONNECTIONS: &str = "underpass_proxy_connections_total";
const REQUESTS: &str = "underpass_tunnel_requests_total";
const HEALTHY: &str = "underpass_proxy_endpoint_healthy";

/// The fields of a Tunnel that follow its `proxy`: its further ones first.
const ABSOLUTE: &[&str] = &["  plainHTTP: ABSOLUTE_FORM"];

/// As [`policy`], with requests in absolute form.
fn absolute(stage: &Stage, options: &Options<'_>, credentials: Credentials<'_>) -> String {
    let policy = policy(stage, "HTTP-CONNECT", options, credentials);
    let proxy = "  proxy:\n";
    assert!(policy.contains(proxy), "{policy}");
    policy.replacen(proxy, "  proxy:\n    plainHTTP: ABSOLUTE_FORM\n", 1)
}

/// The site's page, twice on one connection of a workload.
#[track_caller]
fn expect_pages(scene: &Scene) {
    let curl = scene.curl(URL).args([URL]);
    let seen = scene.captured(&curl).expect_ok();
    assert_eq!(seen.body, Nginx::GREETING.repeat(2));
}

#[track_caller]
fn get(scene: &Scene, url: &str) -> Seen {
    scene.captured(&scene.curl(url))
}

/// The page by an agent of its own, which makes so many connections to the proxy for two requests.
#[track_caller]
fn expect_served(stage: &Stage, policy: &str, connections: f64) {
    let agent = Agent::start(stage.world(), policy);
    expect_pages(&stage.scene);
    for record in agent.wait_for_accesses(2) {
        assert_eq!(
            record.text("tunnel.protocol"),
            "http1-absolute",
            "{record:?}"
        );
        assert_eq!(record.number("status"), 200, "{record:?}");
        assert_eq!(record.text("target"), "site.example:80", "{record:?}");
        assert_eq!(record.text("flags"), "", "{record:?}");
    }
    let labels = [("protocol", "http1-absolute"), ("code", "200")];
    agent.wait_for_metric(REQUESTS, &labels, 2.0);
    agent.wait_for_metric(CONNECTIONS, &[], connections);
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    agent.wait_for_metric("underpass_proxy_connections_active", &[], 0.0);
}

/// What a proxy is to log about a request for the page.
fn request(stage: &Stage, options: &Options<'_>, credentials: Credentials<'_>) -> Logged {
    Logged {
        method: "GET".into(),
        target: URL.into(),
        ..stage.tunnel("HTTP/1.1", options, credentials)
    }
}

/// The point of it: Squid as it is shipped lets nobody tunnel to port 80.
#[test]
fn squid_refuses_tunnels_to_port_80_and_takes_requests() {
    let stage = Stage::new("absolute-squid");
    let options = squid::Options {
        tls: Some(&stage.proxy),
        credentials: Some(("me", "secret")),
        ..squid::Options::default()
    };
    let squid = Squid::start_with(stage.world(), &options);
    let plain = Options::default();
    let tunnel = policy(&stage, "HTTP-CONNECT", &plain, BASIC);
    let agent = Agent::start(stage.world(), &tunnel);
    let seen = get(&stage.scene, URL);
    assert_eq!(seen.status, 502, "{seen:?}");
    let refused = agent.wait_for_accesses(1).remove(0);
    assert_eq!(refused.number("tunnel.code"), 403, "{refused:?}");
    drop(agent);

    let tls = Options {
        port: squid::TLS_PORT,
        security: Security::Tls(&stage.proxy),
        ..plain
    };
    let mut lines = vec!["CONNECT site.example:80 403 -".to_owned()];
    for options in [plain, tls] {
        expect_served(&stage, &absolute(&stage, &options, BASIC), 1.0);
        lines.extend([format!("GET {URL} 200 me"), format!("GET {URL} 200 me")]);
    }
    let logged = squid.wait_for_log(lines.len()).into_iter();
    let logged: Vec<_> = logged
        .map(|line| {
            format!(
                "{} {} {} {}",
                line.method, line.target, line.status, line.user
            )
        })
        .collect();
    assert_eq!(logged, lines);
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn tinyproxy_gets_a_connection_for_each_request() {
    let stage = Stage::new("absolute-tinyproxy");
    for (port, credentials) in [(3128, Credentials::None), (3129, BASIC)] {
        let options = Options {
            port,
            credentials,
            ..Options::default()
        };
        let tinyproxy = tinyproxy::start(stage.world(), &options);
        expect_served(&stage, &absolute(&stage, &options, credentials), 2.0);
        // Neither status nor credentials are in its log.
        let expected = Logged {
            status: 0,
            authorization: String::new(),
            ..request(&stage, &options, credentials)
        };
        let twice = [expected.clone(), expected];
        assert_eq!(tinyproxy.wait_for_log(2), twice);
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn apache_with_every_security() {
    let stage = Stage::new("absolute-apache");
    let mut port = 3128;
    for security in stage.securities() {
        for credentials in [Credentials::None, BASIC] {
            let options = Options {
                port,
                security,
                credentials,
            };
            port += 1;
            let apache = apache::start(stage.world(), &options);
            expect_served(&stage, &absolute(&stage, &options, credentials), 1.0);
            let expected = request(&stage, &options, credentials);
            let twice = [expected.clone(), expected];
            assert_eq!(apache.wait_for_log(2), twice);
        }
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn nghttpx_passes_requests_on() {
    let stage = Stage::new("absolute-nghttpx");
    let options = Options::default();
    let behind = Options {
        port: 3140,
        ..options
    };
    let apache = apache::start(stage.world(), &behind);
    let nghttpx = nghttpx::start(stage.world(), &options, addresses(behind.port)[0]);
    expect_served(&stage, &absolute(&stage, &options, Credentials::None), 1.0);
    for proxy in [&nghttpx, &apache] {
        let expected = request(&stage, &options, Credentials::None);
        assert_eq!(proxy.wait_for_log(2), [expected.clone(), expected]);
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn our_gateway_with_every_security_and_what_it_refuses() {
    let stage = Stage::new("absolute-gateway");
    let mut port = 3128;
    for security in stage.securities() {
        for credentials in [Credentials::None, BASIC, Credentials::Bearer("token-1")] {
            let options = Options {
                port,
                security,
                credentials,
            };
            port += 1;
            let gateway = Gateway::start_with(stage.world(), &options);
            expect_served(&stage, &absolute(&stage, &options, credentials), 1.0);
            let user = match credentials {
                Credentials::None => "",
                Credentials::Basic(user, _) => user,
                Credentials::Bearer(_) => underpass_tests::servers::gateway::TOKENS_USER,
            };
            for record in gateway.wait_for_log(2) {
                assert_eq!(record.text("method"), "GET", "{record:?}");
                assert_eq!(record.text("target"), "site.example:80", "{record:?}");
                assert_eq!(record.number("code"), 200, "{record:?}");
                assert_eq!(record.text("user"), user, "{record:?}");
            }
            if user.is_empty() {
                continue;
            }
            // The workload, who knows of no proxy, is told what is wrong.
            let without = absolute(&stage, &options, Credentials::None);
            let agent = Agent::start(stage.world(), &without);
            let seen = get(&stage.scene, URL);
            assert_eq!(seen.status, 502, "{seen:?}");
            let record = agent.wait_for_accesses(1).remove(0);
            assert_eq!(record.number("tunnel.code"), 407, "{record:?}");
            assert_eq!(record.text("flags"), "CONNECT", "{record:?}");
            let error = record.text("error");
            assert!(
                error.contains("it wants credentials and none are configured"),
                "{error}"
            );
            assert!(seen.body.contains(&error), "{seen:?}");
            let id = format!("request id: {}", record.text("request_id"));
            assert!(seen.body.contains(&id), "{seen:?}");
        }
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn what_a_proxy_answers_by_itself_is_told_from_the_site() {
    let scene = Scene::new("absolute-own-answers");
    let _squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(ABSOLUTE));
    let seen = get(&scene, "http://site.example:8081/");
    assert_eq!(seen.status, 503, "{seen:?}");
    let record = agent.wait_for_accesses(1).remove(0);
    assert_eq!(record.text("flags"), "CONNECT", "{record:?}");
    assert_eq!(record.number("status"), 503, "{record:?}");
    let error = record.text("error");
    assert!(error.contains("ERR_CONNECT_FAIL"), "{error}");
}

#[test]
fn schemes_that_prove_a_connection_are_named_and_nothing_of_them_gets_to_the_workload() {
    let scene = Scene::new("absolute-negotiate");
    let challenge = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                     Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\
                     Content-Length: 6\r\n\r\nsecret";
    let answer = Answer::Send(challenge.into());
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), answer);
    let agent = Agent::start(&scene.world, &tunnel_policy(ABSOLUTE));
    let curl = scene.curl(URL).args([
        "-H",
        "Proxy-Authorization: Basic bWU6bWU=",
        "-H",
        "Proxy-Connection: keep-alive",
    ]);
    let seen = scene.captured(&curl.args(["-D", "-"]));
    assert_eq!(seen.status, 502, "{seen:?}");
    assert!(!seen.body.contains("Proxy-Authenticate"), "{seen:?}");
    assert!(seen.body.contains("Negotiate, NTLM"), "{seen:?}");
    assert!(seen.body.contains("cntlm"), "{seen:?}");
    let request = proxy.requests().remove(0);
    assert_eq!(request.line(), format!("GET {URL} HTTP/1.1"));
    assert_eq!(request.header("Proxy-Authorization"), None, "{request:?}");
    assert_eq!(request.header("Proxy-Connection"), None, "{request:?}");
    let record = agent.wait_for_accesses(1).remove(0);
    assert_eq!(record.number("tunnel.code"), 407, "{record:?}");
}

#[test]
fn what_cannot_be_said_so_goes_through_a_tunnel() {
    let scene = Scene::new("absolute-not");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let expect = |policy: &str, curl: &[&str], url: &str, line: &str| {
        let before = proxy.requests().len();
        let agent = Agent::start(&scene.world, policy);
        let seen = scene.captured(&scene.curl(url).args(curl)).expect_ok();
        assert_eq!(seen.body, Nginx::GREETING);
        assert_eq!(
            proxy.request_lines(before + 1)[before..],
            [line],
            "{}",
            agent.tails()
        );
    };
    let policy = tunnel_policy(ABSOLUTE);
    let tls = "CONNECT site.example:443 HTTP/1.1";
    expect(&policy, &[], "https://site.example/", tls);
    // Nobody but the site can say whether it changes protocols.
    let upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket"];
    let plain = "CONNECT site.example:80 HTTP/1.1";
    expect(&policy, &upgrade, URL, plain);
    // The site does not know what to say to HTTP/2, but is asked.
    let before = proxy.requests().len();
    let agent = Agent::start(&scene.world, &policy);
    scene.captured(&scene.curl(URL).args(["--http2-prior-knowledge"]));
    let line = proxy.request_lines(before + 1).remove(before);
    assert!(line.starts_with("CONNECT "), "{line}");
    drop(agent);
    // A proxy goes by the name, and policy wants the address.
    let by_address = [ABSOLUTE, &["targetHost: ORIGINAL_DST"]].concat();
    let to_address = "CONNECT 203.0.113.10:80 HTTP/1.1";
    expect(&tunnel_policy(&by_address), &["-4"], URL, to_address);
    scene.world.expect_no_direct_arrivals();
}

/// A fixed target alone needs no look at what is said; that a request is one does.
#[test]
fn a_fixed_target_is_a_reason_to_read_requests() {
    let scene = Scene::new("absolute-fixed");
    let squid = Squid::start(&scene.world);
    let policy = [ABSOLUTE, &["targetHost: site.example", "targetPort: 80"]].concat();
    let _agent = Agent::start(&scene.world, &tunnel_policy(&policy));
    expect_pages(&scene);
    for logged in squid.wait_for_log(2) {
        assert_eq!(
            (logged.method.as_str(), logged.target.as_str()),
            ("GET", URL)
        );
    }
}

#[test]
fn a_dead_proxy_and_a_dead_endpoint_cost_nothing() {
    let scene = Scene::new("absolute-dead");
    let squid = Squid::start(&scene.world);
    let policy = "apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: { name: everything }
spec:
  proxies:
  - { host: proxy.example, port: 3999, plainHTTP: ABSOLUTE_FORM }
  - { host: other.example, port: 3128, plainHTTP: ABSOLUTE_FORM, priority: 1 }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: proxy }
spec:
  hosts: [other.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{ number: 3128, name: proxy, protocol: HTTP-CONNECT }]
  endpoints:
  - { address: 192.0.2.20, ports: { proxy: 3998 } }
  - { address: 192.0.2.20, ports: { proxy: 3128 } }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: proxy }
spec:
  host: other.example
  trafficPolicy:
    loadBalancer: { simple: ROUND_ROBIN }
    outlierDetection: { consecutiveGatewayErrors: 1, baseEjectionTime: 1m }
";
    let agent = Agent::start(&scene.world, policy);
    for _ in 0..3 {
        get(&scene, URL).expect_ok();
    }
    assert_eq!(squid.wait_for_log(3).len(), 3);
    let dead = [("endpoint", "192.0.2.20:3998")];
    agent.wait_for_metric(HEALTHY, &dead, 0.0);
    let well = [("endpoint", "192.0.2.20:3128")];
    agent.wait_for_metric(HEALTHY, &well, 1.0);
    scene.world.expect_no_direct_arrivals();
}

/// A request that has gone out may have been served: it is not sent again, but the endpoint is
/// blamed.
#[test]
fn a_proxy_that_gives_no_answer_is_passed_over() {
    let scene = Scene::new("absolute-no-answer");
    let inet = scene.world.inet();
    let silent = FakeProxy::start(inet, proxy_v4(), Answer::Send(Vec::new()));
    let policy = tunnel_policy(ABSOLUTE)
        + "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: proxy }
spec:
  host: proxy.example
  trafficPolicy:
    outlierDetection: { consecutiveGatewayErrors: 2, baseEjectionTime: 1m }
";
    let agent = Agent::start(&scene.world, &policy);
    let endpoint = [("endpoint", "proxy.example:3128")];
    for healthy in [1.0, 0.0] {
        let curl = scene.curl(URL).args(["--data", "x"]);
        assert_eq!(scene.captured(&curl).status, 502);
        agent.wait_for_metric(HEALTHY, &endpoint, healthy);
    }
    let lines = silent.request_lines(2);
    assert_eq!(
        lines,
        [
            format!("POST {URL} HTTP/1.1"),
            format!("POST {URL} HTTP/1.1")
        ]
    );
    let labels = [("reason", "closed_early")];
    agent.wait_for_metric("underpass_proxy_connections_failures_total", &labels, 2.0);
    let record = agent.wait_for_accesses(2).remove(1);
    assert_eq!(record.text("flags"), "UC", "{record:?}");
    let error = record.text("error");
    assert!(
        error.contains("proxy proxy.example:3128, asked for site.example:80"),
        "{error}"
    );
    // It is all there is, so it is tried, and well again.
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes";
    silent.set_answer(Answer::Send(page.into()));
    assert_eq!(get(&scene, URL).expect_ok().body, "yes");
    agent.wait_for_metric(HEALTHY, &endpoint, 1.0);
}
