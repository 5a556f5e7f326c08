//! Tunnels through the forward proxies of other makers, by every protocol, security and kind of
//! credentials that each knows: policy is documents, and what counts is the page at the workload
//! and the request as the proxy logged it.

use std::time::Duration;

use underpass_tests::agent::{Access, Agent};
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::{
    Credentials, ForwardProxy, Logged, Options, Security, addresses,
};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::policy::policy;
use underpass_tests::servers::stage::Stage;
use underpass_tests::servers::{apache, nghttpx, squid, tinyproxy};

const BASIC: Credentials<'_> = Credentials::Basic("me", "secret");
const BEARER: Credentials<'_> = Credentials::Bearer("token-1");

/// The site's page by a captured curl.
#[track_caller]
fn expect_page(stage: &Stage) {
    let curl = stage.scene.curl("https://site.example/page");
    let seen = stage.scene.captured(&curl);
    assert_eq!(seen.expect_ok().body, Nginx::GREETING);
}

/// The site's page by an agent of its own with this policy.
#[track_caller]
fn get(stage: &Stage, protocol: &str, options: &Options<'_>, credentials: Credentials<'_>) {
    let agent = Agent::start(
        stage.world(),
        &policy(stage, protocol, options, credentials),
    );
    expect_page(stage);
    agent.wait_for_accesses(1);
}

/// Without the credentials there is no page, and the log says why.
#[track_caller]
fn expect_refusal(stage: &Stage, protocol: &str, options: &Options<'_>, status: u16) {
    let without = policy(stage, protocol, options, Credentials::None);
    expect_refusal_of(stage, &without, status);
}

#[track_caller]
fn expect_refusal_of(stage: &Stage, policy: &str, status: u16) {
    let agent = Agent::start(stage.world(), policy);
    let curl = stage.scene.curl("https://site.example/page");
    assert_ne!(stage.scene.captured(&curl).exit, 0);
    let refused = |record: &Access| record.text("tunnel.code") == status.to_string();
    let record = agent.wait_for_access("a refusal", refused);
    assert_eq!(record.text("flags"), "CONNECT", "{record:?}");
}

/// Waits for `expected`, which is all there is in the log.
#[track_caller]
fn expect_log(proxy: &ForwardProxy, expected: &[Logged]) {
    assert_eq!(proxy.wait_for_log(expected.len()), expected);
}

/// What a proxy logs, and whom it refuses.
#[derive(Clone, Copy)]
struct Ways {
    /// Its words for the version of HTTP.
    version: &'static str,
    /// The status for who lacks its token.
    token_refusal: u16,
    /// What it tells of a request.
    told: fn(Logged) -> Logged,
}

impl Ways {
    const fn new(version: &'static str, token_refusal: u16) -> Self {
        Self {
            version,
            token_refusal,
            told: |logged| logged,
        }
    }
}

/// Every security with every kind of credentials.
fn matrix(stage: &Stage, protocol: &str, ways: Ways, start: impl Fn(&Options<'_>) -> ForwardProxy) {
    let method = if protocol == "HTTP2-POST" {
        "POST"
    } else {
        "CONNECT"
    };
    let mut port = 3128;
    for security in stage.securities() {
        for credentials in [Credentials::None, BASIC, BEARER] {
            let options = Options {
                port,
                security,
                credentials,
            };
            port += 1;
            let proxy = start(&options);
            get(stage, protocol, &options, credentials);
            let expected = (ways.told)(Logged {
                method: method.into(),
                ..stage.tunnel(ways.version, &options, credentials)
            });
            expect_log(&proxy, std::slice::from_ref(&expected));
            let status = match credentials {
                Credentials::None => continue,
                Credentials::Basic(..) => 407,
                Credentials::Bearer(_) => ways.token_refusal,
            };
            expect_refusal(stage, protocol, &options, status);
            let refused = Logged {
                status,
                authorization: String::new(),
                ..expected.clone()
            };
            expect_log(&proxy, &[expected, refused]);
        }
    }
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn squid_over_http1() {
    let stage = Stage::new("proxies-squid");
    let ways = Ways {
        told: squid::told,
        ..Ways::new("HTTP/1.1", 403)
    };
    matrix(&stage, "HTTP-CONNECT", ways, |options| {
        squid::with_openssl(stage.world(), options)
    });
}

#[test]
fn tinyproxy_with_and_without_a_password() {
    let stage = Stage::new("proxies-tinyproxy");
    let at = |port, credentials| Options {
        port,
        credentials,
        ..Options::default()
    };
    let start = |options: &Options<'_>| tinyproxy::start(stage.world(), options);
    let options = [at(3128, Credentials::None), at(3129, BASIC)];
    let proxies = options.each_ref().map(start);
    for (options, tinyproxy) in options.iter().zip(&proxies) {
        let credentials = options.credentials;
        get(&stage, "HTTP-CONNECT", options, credentials);
        // Neither status nor credentials are in its log.
        let expected = Logged {
            status: 0,
            authorization: String::new(),
            ..stage.tunnel("HTTP/1.1", options, credentials)
        };
        expect_log(tinyproxy, &[expected]);
    }
    let options = at(3129, BASIC);
    expect_refusal(&stage, "HTTP-CONNECT", &options, 407);
    let wrong = Credentials::Basic("me", "wrong");
    let agent = Agent::start(
        stage.world(),
        &policy(&stage, "HTTP-CONNECT", &options, wrong),
    );
    let curl = stage.scene.curl("https://site.example/page");
    assert_ne!(stage.scene.captured(&curl).exit, 0);
    // It says so as if it were the site.
    let refused = |record: &Access| record.text("tunnel.code") == "401";
    let record = agent.wait_for_access("a refusal", refused);
    let error = record.text("error");
    assert!(error.contains("does not accept the credentials"), "{error}");
    assert!(!error.contains("wrong"), "{error}");
    stage.world().expect_no_direct_arrivals();
}

#[test]
fn apache_over_http1() {
    let stage = Stage::new("proxies-apache-1");
    matrix(
        &stage,
        "HTTP-CONNECT",
        Ways::new("HTTP/1.1", 403),
        |options| apache::start(stage.world(), options),
    );
}

#[test]
fn apache_over_http2() {
    let stage = Stage::new("proxies-apache-2");
    matrix(
        &stage,
        "HTTP2-CONNECT",
        Ways::new("HTTP/2.0", 403),
        |options| apache::start(stage.world(), options),
    );
}

#[test]
fn envoy_over_http1() {
    let stage = Stage::new("proxies-envoy-1");
    matrix(
        &stage,
        "HTTP-CONNECT",
        Ways::new("HTTP/1.1", 407),
        |options| envoy::start(stage.world(), options, Versions::Http1),
    );
}

#[test]
fn envoy_over_http2() {
    let stage = Stage::new("proxies-envoy-2");
    matrix(
        &stage,
        "HTTP2-CONNECT",
        Ways::new("HTTP/2", 407),
        |options| envoy::start(stage.world(), options, Versions::Http2),
    );
}

#[test]
fn envoy_by_post() {
    let stage = Stage::new("proxies-envoy-post");
    matrix(&stage, "HTTP2-POST", Ways::new("HTTP/2", 407), |options| {
        envoy::start(stage.world(), options, Versions::Http2)
    });
}

#[test]
fn nghttpx_over_both_versions_passes_credentials_on() {
    let stage = Stage::new("proxies-nghttpx");
    let world = stage.world();
    let behind = Options {
        port: 3140,
        credentials: BASIC,
        ..Options::default()
    };
    let apache = apache::start(world, &behind);
    let mut port = 3128;
    let mut passed_on = 0;
    for security in stage.securities() {
        for (protocol, logged) in [("HTTP-CONNECT", "HTTP/1.1"), ("HTTP2-CONNECT", "HTTP/2")] {
            let options = Options {
                port,
                security,
                credentials: Credentials::None,
            };
            port += 1;
            let nghttpx = nghttpx::start(world, &options, addresses(behind.port)[0]);
            // It passes the end of one direction on only with that of the other, so the tunnel is
            // over when the agent is.
            let policy = policy(&stage, protocol, &options, BASIC);
            let agent = Agent::start(world, &policy);
            expect_page(&stage);
            drop(agent);
            expect_log(&nghttpx, &[stage.tunnel(logged, &options, BASIC)]);
            passed_on += 1;
            let last = apache.wait_for_log(passed_on).pop();
            assert_eq!(last, Some(stage.tunnel("HTTP/1.1", &behind, BASIC)));
        }
    }
    world.expect_no_direct_arrivals();
}

/// A proxy that closes connections on which nothing is said for a second, long before the agent
/// would.
#[test]
fn connections_are_made_ahead_of_demand_and_closed_ones_are_not_used() {
    const BURST: usize = 5;
    let stage = Stage::new("proxies-warm");
    for (port, warm) in [(3128, true), (3129, false)] {
        let options = Options {
            port,
            security: Security::Tls(&stage.proxy),
            credentials: BASIC,
        };
        let apache = apache::start_with(stage.world(), &options, "Timeout 1\n");
        let policy = policy(&stage, "HTTP-CONNECT", &options, BASIC);
        let proxy = format!("  proxy:\n    warmConnections: {warm}\n");
        let agent = Agent::start(stage.world(), &policy.replacen("  proxy:\n", &proxy, 1));
        for _ in 0..BURST {
            expect_page(&stage);
        }
        if warm {
            std::thread::sleep(Duration::from_millis(1500));
        }
        for _ in 0..BURST {
            expect_page(&stage);
        }
        let tunnels = 2 * BURST;
        agent.wait_for_accesses(tunnels);
        assert_eq!(apache.wait_for_log(tunnels).len(), tunnels, "once each");
        let metrics = agent.metrics();
        let phases = "underpass_tunnel_establish_duration_seconds_count";
        let took = |phase| metrics.sum(phases, &[("phase", phase)]);
        assert_eq!(took("connect"), Some(tunnels as f64));
        let made = took("tls").unwrap_or_default();
        if warm {
            assert!(made < tunnels as f64, "all of {tunnels} waited for TLS");
        } else {
            assert_eq!(made, tunnels as f64);
        }
        let failures = "underpass_proxy_connections_failures_total";
        assert_eq!(metrics.sum(failures, &[]).unwrap_or_default(), 0.0);
    }
    stage.world().expect_no_direct_arrivals();
}
