//! What the agent must not touch, and whom it must not serve.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use underpass_tests::Scene;
use underpass_tests::addr::{HOST_V4, INTERNAL_V4, OTHER_V4, PROXY_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::Squid;
use underpass_tests::servers::tcp::Server;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn an_internal_destination_is_reached_directly() {
    let scene = Scene::new("internal");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let seen = scene
        .captured(&scene.curl("http://internal.example/"))
        .expect_ok();
    assert_eq!(seen.remote_ip, INTERNAL_V4.to_string());
    assert_eq!(scene.nginx.requests()[0].peer, HOST_V4.to_string());
    assert_eq!(scene.world.arrivals_at(INTERNAL_V4).len(), 1);
    // Its own loopback is not even worth a thought.
    let server = Server::echo(scene.world.host(), SocketAddr::from(([127, 0, 0, 1], 7)));
    let talk = scene.program("talk").args(["127.0.0.1", "7", "to myself"]);
    assert!(
        talk.run(MINUTE)
            .stdout
            .contains(" data 127.0.0.1 b'to myself'")
    );
    assert_eq!(server.peers().len(), 1);

    assert_eq!(squid.log(), []);
    assert!(agent.access_log().is_empty(), "{}", agent.tails());
    let skipped = "underpass_capture_skipped_total";
    agent.wait_for_metric(skipped, &[("reason", "internal")], 2.0);
}

#[test]
fn no_proxy_lists_what_goes_directly() {
    let scene = Scene::new("no-proxy");
    let squid = Squid::start(&scene.world);
    let policy = tunnel_policy(&["noProxy: ['203.0.113.0/24:443']"]);
    let agent = Agent::start(&scene.world, &policy);

    let get = |option| scene.captured(&scene.curl("https://site.example/").args([option]));
    get("-4").expect_ok();
    assert_eq!(scene.nginx.requests()[0].peer, HOST_V4.to_string());
    assert_eq!(scene.world.direct_arrivals().len(), 1);
    get("-6").expect_ok();
    assert_eq!(
        scene.world.direct_arrivals().len(),
        1,
        "IPv6 is not in the list"
    );
    assert_eq!(squid.connects(1), ["site.example:443"]);
    drop(agent);
}

#[test]
fn the_agents_own_connections_are_not_captured() {
    let scene = Scene::new("own");
    let squid = Squid::start(&scene.world);
    // In the very cgroup that it captures, as on a node whose root is captured. A proxy on an
    // address of the site's kind: neither it nor the name server is internal.
    let workload = scene.world.workload();
    let agent = Agent::start_in(workload, &scene.world, &tunnel_policy(&[]), &[]);

    scene
        .captured(&scene.curl("https://site.example/"))
        .expect_ok();
    assert_eq!(squid.connects(1), ["site.example:443"]);
    assert_eq!(agent.wait_for_accesses(1).len(), 1);
    agent.wait_for_metric("underpass_capture_redirected_total", &[], 1.0);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn the_agents_own_direct_connections_are_not_captured_either() {
    let scene = Scene::new("own-direct");
    let squid = Squid::start(&scene.world);
    // Direct by name, so the agent must accept the connection to find that out, ask the name
    // server whether the name may be trusted, and then connect to the target itself.
    let policy = tunnel_policy(&["noProxy: [site.example]"]);
    let agent = Agent::start_in(scene.world.workload(), &scene.world, &policy, &[]);

    let seen = scene
        .captured(&scene.curl("https://site.example/").args(["-4"]))
        .expect_ok();
    assert_eq!(seen.remote_ip, "203.0.113.10");
    assert_eq!(agent.wait_for_accesses(1)[0].text("decision"), "direct");
    assert_eq!(scene.world.direct_arrivals().len(), 1);
    assert_eq!(squid.log(), []);
}

#[test]
fn a_program_that_uses_the_proxy_itself_keeps_working() {
    let scene = Scene::new("explicit");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let curl = scene
        .curl("https://site.example/")
        .args(["-x", "http://proxy.example:3128", "-4"]);
    let seen = scene.captured(&curl).expect_ok();
    assert_eq!(seen.connect_status, 200, "curl's own CONNECT");
    assert_eq!(seen.remote_ip, PROXY_V4.to_string());
    assert_eq!(
        squid.connects(1),
        ["site.example:443"],
        "and not one inside another"
    );
    agent.wait_for_metric(
        "underpass_capture_skipped_total",
        &[("reason", "proxy")],
        1.0,
    );
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_stranger_at_the_listener_is_reset_and_counted() {
    let scene = Scene::new("stranger");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let listeners = agent.listeners();
    assert!(!listeners.is_empty(), "the agent listens somewhere");
    for (number, listener) in listeners.iter().enumerate() {
        // The reset may come before `connect` returns, or after.
        let answer = scene
            .world
            .host()
            .connect(*listener)
            .and_then(|mut stranger| {
                stranger.set_read_timeout(Some(MINUTE))?;
                stranger.write_all(b"GET / HTTP/1.1\r\nHost: site.example\r\n\r\n")?;
                stranger.read(&mut [0; 100])
            });
        let error = answer.expect_err("no answer for a stranger");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let misses = "underpass_capture_original_destination_misses_total";
        agent.wait_for_metric(misses, &[], (number + 1) as f64);
    }
    // A workload is as much of a stranger there.
    let port = listeners[0].port().to_string();
    let address = listeners[0].ip().to_string();
    let talk = scene
        .program("talk")
        .args([address.as_str(), &port, "let me in"]);
    let said = talk.run(MINUTE).expect_success().stdout;
    assert!(said.contains(" reset "), "{said}");
    assert!(proxy.requests().is_empty());
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_workload_that_sends_and_leaves_while_the_agent_is_held_is_served_completely() {
    let scene = Scene::new("held");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let sink = Server::sink(scene.world.inet(), SocketAddr::from((OTHER_V4, 9000)));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let text = "twenty-eight bytes, no fewer";
    assert_eq!(text.len(), 28);
    agent.hold();
    let held = Instant::now();
    let send = scene
        .program("send_and_close")
        .args(["203.0.113.11", "9000", text]);
    send.run(Duration::from_secs(2)).expect_success();
    sleep(Duration::from_secs(2).saturating_sub(held.elapsed()));
    assert_eq!(
        sink.peers(),
        [],
        "who served it, with the agent held still?"
    );
    agent.resume();

    let report = sink.wait_for_reports(1)[0];
    assert_eq!((report.received, report.complete), (28, true));
    let record = agent.wait_for_accesses(1).swap_remove(0);
    assert_eq!(record.text("original_dst"), "203.0.113.11:9000");
    assert_eq!(record.number("bytes_sent"), 28);
    scene.world.expect_no_direct_arrivals();
}
