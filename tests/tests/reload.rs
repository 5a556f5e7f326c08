//! SIGHUP: policy is read again.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{DNS_V4, HOST_V4, OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, wait_for};

const RELOADS: &str = "underpass_policy_reload_total";

#[test]
fn a_good_policy_counts_from_then_on_and_a_bad_one_changes_nothing() {
    let scene = Scene::new("reload");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let file = scene.world.dir().join("policy.yaml");
    let site = scene.curl("http://site.example/").args(["-4"]);
    let asked = |count: usize| {
        scene.captured(&site).expect_ok();
        proxy.request_lines(count).swap_remove(count - 1)
    };
    assert_eq!(asked(1), "CONNECT site.example:80 HTTP/1.1");

    let by_address = tunnel_policy(&["targetHost: ORIGINAL_DST"]);
    fs::write(&file, &by_address).must("change the policy");
    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    assert_eq!(asked(2), "CONNECT 203.0.113.10:80 HTTP/1.1");
    let dump = agent.admin("/config_dump").to_string();
    assert!(dump.contains("ORIGINAL_DST"), "{dump}");

    // The ninth line of the file.
    fs::write(&file, tunnel_policy(&["targetHots: AUTO_SNI"])).must("break the policy");
    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 1.0);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    let place = format!("{}:9", file.display());
    wait_for("the log names the place", Duration::from_secs(5), || {
        agent.process().stderr().contains(&place)
    });
    assert!(agent.process().stderr().contains("targetHots"));
    assert_eq!(asked(3), "CONNECT 203.0.113.10:80 HTTP/1.1");

    fs::remove_file(&file).must("remove the policy");
    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 2.0);
    assert_eq!(asked(4), "CONNECT 203.0.113.10:80 HTTP/1.1");

    fs::write(&file, tunnel_policy(&[])).must("mend the policy");
    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 2.0);
    assert_eq!(asked(5), "CONNECT site.example:80 HTTP/1.1");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_programs_and_agent_call_external_changes_together() {
    let scene = Scene::new("reload-prefixes");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let site = scene.curl("http://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    assert_eq!(proxy.requests().len(), 1);
    scene.world.expect_no_direct_arrivals();

    let file = scene.world.dir().join("policy.yaml");
    let direct = tunnel_policy(&["noProxy: [203.0.113.0/24]"]);
    fs::write(&file, direct).must("change the policy");
    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    scene.captured(&site).expect_ok();
    assert_eq!(proxy.requests().len(), 1);
    assert_eq!(scene.world.direct_arrivals().len(), 1, "it goes direct now");
}

#[test]
fn a_proxy_that_is_new_is_left_alone_too() {
    let scene = Scene::new("reload-proxy");
    let (first, second) = (proxy_v4(), SocketAddr::from((DNS_V4, 3129)));
    let _first = FakeProxy::start(scene.world.inet(), first, Answer::tunnel());
    let second_proxy = FakeProxy::start(scene.world.inet(), second, Answer::tunnel());
    // By address, so that there is no other reason to look where the proxies are.
    let by = |proxy: SocketAddr| {
        tunnel_policy(&[])
            .replace("proxy.example", &proxy.ip().to_string())
            .replace("3128", &proxy.port().to_string())
    };
    let mut agent = Agent::start(&scene.world, &by(first));
    fs::write(scene.world.dir().join("policy.yaml"), by(second)).must("change the policy");
    agent.process().signal(Signal::SIGHUP);
    wait_for(
        "the agent knows the new proxy",
        Duration::from_secs(5),
        || {
            let dump = agent.admin("/config_dump");
            dump["proxy_addresses"] == serde_json::json!([second])
        },
    );

    // A program that speaks to the new proxy itself reaches it itself.
    let own = scene
        .curl("https://site.example/")
        .args(["-4", "-x", &format!("http://{second}")]);
    scene.captured(&own).expect_ok();
    assert_eq!(second_proxy.requests()[0].peer.ip(), HOST_V4);
    assert_eq!(
        scene
            .world
            .arrivals_at(DNS_V4)
            .iter()
            .filter(|arrival| arrival.destination == second)
            .count(),
        1
    );
    assert!(agent.access_log().is_empty(), "{}", agent.tails());
}

#[test]
fn what_is_open_stays_open() {
    let scene = Scene::new("reload-open");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let sink = Server::sink(scene.world.inet(), SocketAddr::from((OTHER_V4, 9000)));
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let gate = scene.world.dir().join("go-on");
    let script = format!(
        "(echo one; while [ ! -e {} ]; do sleep 0.02; done; echo two) | nc -N 203.0.113.11 9000",
        gate.display()
    );
    let nc = scene.workload("sh").args(["-c", &script]).start();
    wait_for("the tunnel is open", Duration::from_secs(10), || {
        sink.open_connections() == 1
    });
    let file = scene.world.dir().join("policy.yaml");
    fs::write(&file, tunnel_policy(&["noProxy: [203.0.113.0/24]"])).must("change the policy");
    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    fs::write(&gate, "").must("go on");
    let report = sink.wait_for_reports(1)[0];
    assert_eq!((report.received, report.complete), (8, true));
    nc.finish(Duration::from_secs(10)).expect_success();
    scene.world.expect_no_direct_arrivals();
}
