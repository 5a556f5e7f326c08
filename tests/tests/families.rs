//! IPv4, IPv6, and IPv4 spoken through an IPv6 socket.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::Scene;
use underpass_tests::addr::{OTHER_V4, PROXY_V4, PROXY_V6, SITE_V4, SITE_V6, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::Squid;
use underpass_tests::servers::tcp::Server;

#[test]
fn ipv4_and_ipv6_are_captured_alike() {
    let scene = Scene::new("families");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let cases = [
        ("-4", SITE_V4.to_string(), "203.0.113.10:443"),
        ("-6", SITE_V6.to_string(), "[2001:db8:113::10]:443"),
    ];
    for (option, remote_ip, original_dst) in cases {
        let curl = scene.curl("https://site.example/").args([option]);
        let seen = scene.captured(&curl).expect_ok();
        assert_eq!(seen.remote_ip, remote_ip);
        agent.wait_for_access(option, |record| record.text("original_dst") == original_dst);
    }
    assert_eq!(squid.connects(2), ["site.example:443", "site.example:443"]);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn both_families_reach_a_proxy_that_has_only_one() {
    for proxy in [format!("{PROXY_V4}"), format!("'{PROXY_V6}'")] {
        let scene = Scene::new("one-family");
        let squid = Squid::start(&scene.world);
        let policy = tunnel_policy(&[]).replace("proxy.example", &proxy);
        let _agent = Agent::start(&scene.world, &policy);
        for option in ["-4", "-6"] {
            let curl = scene.curl("https://site.example/").args([option]);
            scene.captured(&curl).expect_ok();
        }
        assert_eq!(squid.connects(2), ["site.example:443", "site.example:443"]);
        scene.world.expect_no_direct_arrivals();
    }
}

#[test]
fn an_ipv4_mapped_socket_is_treated_as_ipv4() {
    let scene = Scene::new("mapped");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    for local in [&[][..], &["198.51.100.2"]] {
        let mapped = scene
            .program("mapped")
            .args(["203.0.113.11", "7"])
            .args(local);
        let said = mapped.run(Duration::from_secs(30)).expect_success().stdout;
        assert_eq!(said, "::ffff:203.0.113.11 mapped\n");
    }
    assert_eq!(
        proxy.request_lines(2),
        ["CONNECT 203.0.113.11:7 HTTP/1.1"; 2]
    );
    agent.wait_for_access("as IPv4", |record| {
        record.text("original_dst") == "203.0.113.11:7"
    });
    scene.world.expect_no_direct_arrivals();
}
