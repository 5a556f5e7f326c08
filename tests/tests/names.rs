//! Which name the proxy is asked for.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::Scene;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::curl::Seen;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;

/// An address of no server: who reaches the site nevertheless got there by name.
const ELSEWHERE: &str = "203.0.113.11";

fn get(scene: &Scene, url: &str, options: &[&str]) -> Seen {
    scene.captured(&scene.curl(url).args(options))
}

#[test]
fn auto_sni_takes_the_server_name_of_tls() {
    let scene = Scene::new("auto-sni");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&["targetHost: AUTO_SNI"]));

    let resolve = format!("site.example:443:{ELSEWHERE}");
    let seen = get(&scene, "https://site.example/", &["--resolve", &resolve]).expect_ok();
    assert_eq!(seen.remote_ip, ELSEWHERE);
    assert_eq!(squid.connects(1), ["site.example:443"]);
    let record = agent.wait_for_access("the request", |_| true);
    assert_eq!(record.text("target"), "site.example:443");
    assert_eq!(record.text("original_dst"), "203.0.113.11:443");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn auto_sni_takes_the_host_of_plain_http() {
    let scene = Scene::new("auto-host");
    let squid = Squid::start_with(
        &scene.world,
        &Options {
            connect_ports: &[80],
            ..Options::default()
        },
    );
    let _agent = Agent::start(&scene.world, &tunnel_policy(&["targetHost: AUTO_SNI"]));

    let resolve = format!("site.example:80:{ELSEWHERE}");
    get(&scene, "http://site.example/", &["--resolve", &resolve]).expect_ok();
    assert_eq!(squid.connects(1), ["site.example:80"]);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn auto_sni_without_a_name_is_refused_with_a_reason() {
    let scene = Scene::new("auto-none");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&["targetHost: AUTO_SNI"]));
    let echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));

    // TLS to an address carries no server name; then HTTP with an address for a Host; then
    // neither of both.
    assert_ne!(get(&scene, "https://203.0.113.10/", &[]).exit, 0);
    let refused = get(&scene, "http://203.0.113.10/", &[]);
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(refused.body.contains("AUTO_SNI"), "{refused:?}");
    let talk = scene
        .program("talk")
        .args([ELSEWHERE, "7", "neither TLS nor HTTP"]);
    let said = talk.run(Duration::from_secs(10)).expect_success().stdout;
    assert!(
        said.contains(" reset ") || said.contains(" closed "),
        "{said}"
    );

    agent.wait_for_metric(
        "underpass_policy_denied_total",
        &[("reason", "no_name")],
        3.0,
    );
    let records = agent.wait_for_accesses(3);
    assert_eq!(records.len(), 3, "{records:?}");
    for record in records {
        assert_eq!(record.text("decision"), "deny", "{record:?}");
        assert_eq!(record.text("flags"), "DENY", "{record:?}");
        assert!(record.text("error").contains("name"), "{record:?}");
    }
    assert_eq!(squid.log(), []);
    assert_eq!(echo.peers(), []);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn original_dst_sends_the_address_whatever_the_name() {
    let scene = Scene::new("original-dst");
    let squid = Squid::start(&scene.world);
    let _agent = Agent::start(&scene.world, &tunnel_policy(&["targetHost: ORIGINAL_DST"]));

    get(&scene, "https://site.example/", &["-4"]).expect_ok();
    get(&scene, "https://site.example/", &["-6"]).expect_ok();
    assert_eq!(
        squid.connects(2),
        ["203.0.113.10:443", "[2001:db8:113::10]:443"]
    );
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_fixed_name_and_port_win_over_everything() {
    let scene = Scene::new("fixed");
    let squid = Squid::start(&scene.world);
    let policy = tunnel_policy(&["targetHost: site.example", "targetPort: 443"]);
    let _agent = Agent::start(&scene.world, &policy);

    let resolve = format!("other.example:8443:{ELSEWHERE}");
    let seen = get(
        &scene,
        "https://other.example:8443/",
        &["--resolve", &resolve],
    )
    .expect_ok();
    assert_eq!(seen.remote_ip, ELSEWHERE);
    assert_eq!(squid.connects(1), ["site.example:443"]);
    // The workload's TLS is not touched: the site is asked for what the workload asked for.
    assert_eq!(scene.nginx.requests()[0].sni, "other.example");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_target_port_alone_keeps_the_name() {
    let scene = Scene::new("target-port");
    let squid = Squid::start(&scene.world);
    let _agent = Agent::start(&scene.world, &tunnel_policy(&["targetPort: 443"]));

    let resolve = format!("site.example:8443:{ELSEWHERE}");
    get(
        &scene,
        "https://site.example:8443/",
        &["--resolve", &resolve],
    )
    .expect_ok();
    assert_eq!(squid.connects(1), ["site.example:443"]);
}

#[test]
fn unset_means_the_best_known_name_else_the_address() {
    let scene = Scene::new("unset");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let https = format!("site.example:443:{ELSEWHERE}");
    get(&scene, "https://site.example/", &["--resolve", &https]).expect_ok();
    let http = format!("site.example:80:{ELSEWHERE}");
    get(&scene, "http://site.example/", &["--resolve", &http]).expect_ok();
    // No server name, and a Host that is only an address.
    get(&scene, "https://203.0.113.10/", &[]).expect_ok();
    get(&scene, "http://203.0.113.10/", &[]).expect_ok();
    get(&scene, "http://[2001:db8:113::10]/", &[]).expect_ok();
    let talk = scene
        .program("talk")
        .args([ELSEWHERE, "7", "neither TLS nor HTTP"]);
    let said = talk.run(Duration::from_secs(10)).expect_success().stdout;
    assert!(
        said.contains(" data 203.0.113.11 b'neither TLS nor HTTP'"),
        "{said}"
    );

    assert_eq!(
        proxy.request_lines(6),
        [
            "CONNECT site.example:443 HTTP/1.1",
            "CONNECT site.example:80 HTTP/1.1",
            "CONNECT 203.0.113.10:443 HTTP/1.1",
            "CONNECT 203.0.113.10:80 HTTP/1.1",
            "CONNECT [2001:db8:113::10]:80 HTTP/1.1",
            "CONNECT 203.0.113.11:7 HTTP/1.1",
        ]
    );
    for request in proxy.requests() {
        let target = request.line().split(' ').nth(1).map(str::to_owned);
        assert_eq!(
            request.header("host").map(str::to_owned),
            target,
            "RFC 9110, 7.2"
        );
    }
    scene.world.expect_no_direct_arrivals();
}
