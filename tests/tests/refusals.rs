//! When the proxy does not open the tunnel: the workload is told soon, the operator is told why.

use std::time::Duration;

use underpass_tests::Scene;
use underpass_tests::addr::proxy_v4;
use underpass_tests::agent::{Access, Agent, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::{Options, Squid};

const REQUEST: &str = r"GET / HTTP/1.1\r\nHost: site.example\r\n\r\n";

/// Has a workload ask `site.example`; it must be told that a gateway failed, and within `limit`.
#[track_caller]
fn expect_told(scene: &Scene, limit: Duration) {
    let talk = scene.program("talk").args(["203.0.113.10", "80", REQUEST]);
    let done = talk.run(limit + Duration::from_secs(5)).expect_success();
    let what = done.stdout.split(' ').nth(1).unwrap_or_default();
    assert_eq!(what, "data", "{}", done.stdout);
    let statuses = ["HTTP/1.1 502 ", "HTTP/1.1 503 ", "HTTP/1.1 504 "];
    let is_told = statuses.iter().any(|status| done.stdout.contains(status));
    assert!(is_told, "{}", done.stdout);
    assert!(done.elapsed < limit, "{:?}", done.elapsed);
    scene.world.expect_no_direct_arrivals();
}

/// The record of the `number`th connection, which must have failed with a reason.
#[track_caller]
fn failure(agent: &Agent, number: usize) -> Access {
    let record = agent.wait_for_accesses(number + 1).swap_remove(number);
    assert_eq!(record.text("decision"), "tunnel", "{record:?}");
    assert_eq!(record.text("target"), "site.example:80", "{record:?}");
    assert_ne!(record.text("flags"), "", "{record:?}");
    assert_ne!(record.text("error"), "", "{record:?}");
    record
}

#[test]
fn a_refusal_is_reported_with_its_code_and_body() {
    let scene = Scene::new("refusals");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::Reset);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let cases = [
        ("403 Forbidden", "403"),
        ("407 Proxy Authentication Required", "407"),
        ("502 Bad Gateway", "502"),
    ];
    for (number, (status, code)) in cases.into_iter().enumerate() {
        proxy.set_answer(Answer::refusal(status, "<p>ask the network department</p>"));
        expect_told(&scene, Duration::from_secs(2));
        let record = failure(&agent, number);
        assert_eq!(record.text("tunnel.code"), code, "{record:?}");
        assert!(record.text("error").contains(code), "{record:?}");
        assert!(
            record.text("error").contains("ask the network department"),
            "{record:?}"
        );
        agent.wait_for_metric("underpass_tunnel_requests_total", &[("code", code)], 1.0);
    }
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
}

#[test]
fn an_answer_that_is_none_is_reported() {
    let scene = Scene::new("no-answers");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::Reset);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'a'; 1 << 20]].concat();
    let answers = [
        Answer::Reset,
        Answer::Send(Vec::new()),
        Answer::Send(b"HTTP/1.1 200 Connection est".into()),
        Answer::Send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".into()),
        Answer::Send(endless),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        proxy.set_answer(answer);
        expect_told(&scene, Duration::from_secs(2));
        assert_eq!(failure(&agent, number).text("tunnel.code"), "");
    }
    // None of them keeps a connection.
    agent.wait_for_metric("underpass_proxy_connections_active", &[], 0.0);
}

#[test]
fn a_proxy_that_never_answers_is_given_up_after_15_seconds() {
    let scene = Scene::new("silence");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::Silence);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    expect_told(&scene, Duration::from_secs(17));
    assert_eq!(failure(&agent, 0).text("flags"), "UT");
}

#[test]
fn a_proxy_that_is_down_is_reported() {
    let scene = Scene::new("down");
    let mut squid = Squid::start_with(
        &scene.world,
        &Options {
            connect_ports: &[80],
            ..Options::default()
        },
    );
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    scene
        .captured(&scene.curl("http://site.example/"))
        .expect_ok();

    squid.stop();
    expect_told(&scene, Duration::from_secs(2));
    let record = failure(&agent, 1);
    assert_eq!(record.text("tunnel.code"), "");
    assert!(record.text("error").contains("refused"), "{record:?}");
    let failures = "underpass_proxy_connections_failures_total";
    let refused = agent.metrics().sum(failures, &[("reason", "tcp_refused")]);
    assert!(refused >= Some(1.0), "{refused:?}");
}

#[test]
fn a_proxy_whose_name_is_unknown_is_reported() {
    let scene = Scene::new("unknown-proxy");
    let policy = tunnel_policy(&[]).replace("proxy.example", "nowhere.example");
    let agent = Agent::start(&scene.world, &policy);
    expect_told(&scene, Duration::from_secs(10));
    assert!(failure(&agent, 0).text("error").contains("nowhere.example"));
}

#[test]
fn squids_own_refusals_are_reported() {
    let scene = Scene::new("squid-refuses");
    // Stock rules: CONNECT to port 443 only.
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    expect_told(&scene, Duration::from_secs(2));
    assert_eq!(failure(&agent, 0).text("tunnel.code"), "403");
    assert_eq!(squid.wait_for_log(1)[0].status, 403);
    // Allowed, but nobody listens there.
    let curl = scene.curl("https://other.example/").args(["-4"]);
    assert_ne!(scene.captured(&curl).exit, 0);
    let record = agent.wait_for_accesses(2).swap_remove(1);
    assert_eq!(record.text("tunnel.code"), "503", "{record:?}");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn squids_demand_for_credentials_is_reported() {
    let scene = Scene::new("squid-407");
    let options = Options {
        connect_ports: &[80],
        credentials: Some(("meg", "open sesame")),
        ..Options::default()
    };
    let _squid = Squid::start_with(&scene.world, &options);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    expect_told(&scene, Duration::from_secs(2));
    assert_eq!(failure(&agent, 0).text("tunnel.code"), "407");
}
