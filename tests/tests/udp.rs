//! No way out by UDP past what TCP is under.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{DNS_V4, INTERNAL_V4, OTHER_V4, OTHER_V6, SITE_V4, SITE_V6, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::arrivals::Kind;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::Squid;
use underpass_tests::{Must as _, Scene, wait_for};

const SECONDS: Duration = Duration::from_secs(30);
const REFUSED: &str = "underpass_capture_udp_refused_total";

/// What came of each way to send a datagram there, by a workload.
fn send(scene: &Scene, to: impl Into<IpAddr>, port: u16) -> Vec<String> {
    let sender = scene.program("udp");
    let sender = sender.args([to.into().to_string(), port.to_string()]);
    let said = sender.run(SECONDS).expect_success().stdout;
    said.lines().map(str::to_owned).collect()
}

/// Panics unless every way came to the same.
#[track_caller]
fn expect(scene: &Scene, to: impl Into<IpAddr>, port: u16, outcome: &str) {
    let to = to.into();
    let said = send(scene, to, port);
    let ways = if to.is_ipv4() { 6 } else { 4 };
    assert_eq!(said.len(), ways, "{to} port {port}: {said:?}");
    for line in &said {
        let (_, came) = line.split_once(' ').expect("a way and its outcome");
        assert_eq!(came, outcome, "{to} port {port}: {said:?}");
    }
}

/// How many datagrams got to an address.
fn datagrams(scene: &Scene, to: impl Into<IpAddr>) -> usize {
    let arrivals = scene.world.arrivals_at(to);
    let datagrams = arrivals.iter().filter(|arrival| arrival.kind == Kind::Udp);
    datagrams.count()
}

#[test]
fn quic_is_refused_and_other_udp_passes() {
    let scene = Scene::new("udp-quic");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    // A socket may be connected, as getaddrinfo does, but sends nothing.
    expect(&scene, SITE_V4, 443, "EPERM");
    expect(&scene, SITE_V6, 443, "EPERM");
    scene.world.expect_no_direct_arrivals();
    agent.wait_for_metric(REFUSED, &[("kind", "quic")], 10.0);

    expect(&scene, OTHER_V4, 9, "sent");
    assert_eq!(datagrams(&scene, OTHER_V4), 6);
    // Behind extension headers anything may be.
    let said = send(&scene, OTHER_V6, 9);
    let expected = [
        "connected sent",
        "unconnected sent",
        "scattered sent",
        "extended EPERM",
    ];
    assert_eq!(said, expected);
    // Neither DNS, nor what is internal, nor loopback.
    expect(&scene, OTHER_V4, 53, "sent");
    expect(&scene, DNS_V4, 53, "sent");
    expect(&scene, INTERNAL_V4, 443, "sent");
    expect(&scene, [127, 0, 0, 1], 443, "sent");
    assert_eq!(agent.metrics().sum(REFUSED, &[]), Some(11.0));
}

#[test]
fn a_flood_is_counted_and_logged_in_measure() {
    let scene = Scene::new("udp-flood");
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let sender = scene.program("udp").args(["203.0.113.10", "443", "2000"]);
    let said = sender.run(SECONDS).expect_success().stdout;
    assert_eq!(said.matches("EPERM").count(), 2000);
    agent.wait_for_metric(REFUSED, &[("kind", "quic")], 2000.0);
    let lines = || {
        agent
            .tails()
            .matches("UDP refused, to 203.0.113.10 port 443")
            .count()
    };
    wait_for("the log", SECONDS, || lines() > 0);
    assert!(lines() < 200, "{}", agent.tails());
}

#[test]
fn policy_says_what_becomes_of_udp() {
    let scene = Scene::new("udp-policy");
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&["udp: Deny"]));
    let file = scene.world.dir().join("policy.yaml");
    let reload = |agent: &mut Agent, generation: f64, spec: &[&str]| {
        std::fs::write(&file, tunnel_policy(spec)).must("write the policy");
        agent.process().signal(Signal::SIGHUP);
        agent.wait_for_metric("underpass_policy_generation", &[], generation);
    };

    expect(&scene, OTHER_V4, 9, "EPERM");
    expect(&scene, OTHER_V6, 443, "EPERM");
    expect(&scene, OTHER_V4, 53, "sent");
    expect(&scene, INTERNAL_V4, 9, "sent");
    agent.wait_for_metric(REFUSED, &[("kind", "other")], 6.0);

    reload(&mut agent, 2.0, &["udp: Allow"]);
    expect(&scene, OTHER_V4, 443, "sent");
    expect(&scene, OTHER_V6, 9, "sent");

    reload(
        &mut agent,
        3.0,
        &["udp: Deny", "noProxy: [203.0.113.11, '*:123']"],
    );
    expect(&scene, OTHER_V4, 443, "sent");
    expect(&scene, OTHER_V4, 9, "sent");
    expect(&scene, SITE_V4, 123, "sent");
    expect(&scene, SITE_V4, 9, "EPERM");
}

#[test]
fn without_the_agent_udp_goes_as_tcp_does() {
    let scene = Scene::new("udp-gone");
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&["udp: Deny"]));
    expect(&scene, SITE_V4, 443, "EPERM");
    agent.process().kill();
    expect(&scene, SITE_V4, 443, "EPERM");
    expect(&scene, SITE_V6, 9, "EPERM");
    expect(&scene, SITE_V4, 53, "sent");

    let open = tunnel_policy(&["udp: Deny", "failureMode: open"]);
    let mut agent = Agent::start(&scene.world, &open);
    expect(&scene, SITE_V4, 443, "EPERM");
    expect(&scene, SITE_V6, 9, "EPERM");
    agent.process().kill();
    expect(&scene, SITE_V4, 443, "sent");
    expect(&scene, SITE_V6, 9, "sent");

    // One open beside one closed: the programs stay, and let pass what is open.
    let both = tunnel_policy(&["failureMode: open"])
        + "  selector: {matchLabels: {t: open}}\n\
           ---\n\
           apiVersion: underpass.dev/v1alpha1\n\
           kind: Tunnel\n\
           metadata: {name: rest}\n\
           spec: {proxy: {host: proxy.example, port: 3128}}\n\
           ---\n\
           apiVersion: networking.istio.io/v1\n\
           kind: ServiceEntry\n\
           metadata: {name: open, labels: {t: open}}\n\
           spec: {hosts: [site.example], addresses: [203.0.113.10]}\n";
    let mut agent = Agent::start(&scene.world, &both);
    expect(&scene, SITE_V4, 443, "EPERM");
    expect(&scene, OTHER_V4, 443, "EPERM");
    agent.process().kill();
    expect(&scene, SITE_V4, 443, "sent");
    expect(&scene, OTHER_V4, 443, "EPERM");
    let detach = underpass(&scene.world).arg("detach");
    detach.run(SECONDS).expect_success();
    expect(&scene, OTHER_V4, 443, "sent");
}

/// Where `cargo xtask setup` has put curl with HTTP/3.
fn http3_client() -> PathBuf {
    let own = std::env::current_exe().must("find this program");
    let mut beside = own.ancestors().map(|dir| dir.join("tools/http3-client"));
    let there = beside.find(|path| path.exists());
    there.expect("no client of HTTP/3: run `cargo xtask setup`")
}

/// `VERSION HTTP-VERSION` for each version of `http3.py`, and the seconds that it took.
fn get(scene: &Scene, versions: &[&str]) -> Vec<(String, f64)> {
    let client = scene.program("http3").arg(http3_client());
    let client = client.arg(scene.pki.ca()).arg("https://site.example/");
    let said = client.args(versions).run(SECONDS).expect_success().stdout;
    let line = |line: &str| {
        let (what, took) = line.rsplit_once(' ').expect("a time");
        (what.to_owned(), took.parse().must("read a time"))
    };
    said.lines().map(line).collect()
}

#[test]
fn http3_falls_back_to_tcp_at_once() {
    let scene = Scene::new("udp-http3");
    let squid = Squid::start(&scene.world);

    // It does speak HTTP/3, or would, were there a server.
    get(&scene, &["only"]);
    let tries = |scene: &Scene| datagrams(scene, SITE_V4) + datagrams(scene, SITE_V6);
    let before = tries(&scene);
    assert!(before > 0, "it sends no QUIC");

    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let said = get(&scene, &["auto", "only"]);
    println!("{said:?}");
    let [(auto, took), (only, gave_up)] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(auto == "auto HTTP/1.1" || auto == "auto HTTP/2", "{said:?}");
    assert_eq!(only, "only failed");
    // Its own limits are 20 s for each, and 200 ms before it tries TCP as well.
    assert!(*took < 5.0 && *gave_up < 5.0, "{said:?}");
    assert_eq!(squid.connects(1), ["site.example:443"]);
    assert_eq!(tries(&scene), before);
    let refused = agent.metrics().sum(REFUSED, &[("kind", "quic")]);
    assert!(refused > Some(0.0), "{refused:?}");
}
