//! What may flow through a tunnel: anything.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene};

const MINUTE: Duration = Duration::from_secs(60);

fn other(port: u16) -> SocketAddr {
    SocketAddr::from((OTHER_V4, port))
}

#[test]
fn plain_http_goes_through_connect_by_its_host() {
    let scene = Scene::new("http");
    let squid = Squid::start_with(
        &scene.world,
        &Options {
            connect_ports: &[80],
            ..Options::default()
        },
    );
    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let seen = scene
        .captured(&scene.curl("http://site.example/plain"))
        .expect_ok();
    assert_eq!(seen.body, Nginx::GREETING);
    assert_eq!(squid.connects(1), ["site.example:80"]);
    let request = &scene.nginx.requests()[0];
    assert_eq!(
        (request.host.as_str(), request.path.as_str()),
        ("site.example", "/plain")
    );
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_server_that_speaks_first_is_heard_within_600_ms() {
    let scene = Scene::new("banner");
    let squid = Squid::start_with(
        &scene.world,
        &Options {
            connect_ports: &[25],
            ..Options::default()
        },
    );
    let _banner = Server::banner(scene.world.inet(), other(25), "220 mail.example ESMTP\r\n");
    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let talk = scene.program("talk").args(["203.0.113.11", "25"]);
    let said = talk.run(MINUTE).expect_success().stdout;
    let (seconds, what) = said.split_once(' ').expect("a line of words");
    assert_eq!(what, "data 203.0.113.11 b'220 mail.example ESMTP\\r\\n'\n");
    let seconds: f64 = seconds.parse().must("read the time");
    assert!(seconds < 0.6, "{seconds} s");
    assert_eq!(squid.connects(1), ["203.0.113.11:25"]);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_hundred_mebibytes_each_way_arrive_unchanged() {
    const LENGTH: u64 = 100 << 20;
    let scene = Scene::new("bulk");
    let squid = Squid::start_with(
        &scene.world,
        &Options {
            connect_ports: &[7],
            ..Options::default()
        },
    );
    let _echo = Server::echo(scene.world.inet(), other(7));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let length = LENGTH.to_string();
    let echo = scene.program("echo").args(["203.0.113.11", "7", &length]);
    let said = echo.run(3 * MINUTE).expect_success().stdout;
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words[0], length);
    assert_eq!(
        words[1], words[2],
        "what came back differs from what was sent"
    );

    let record = agent.wait_for_access("the bulk", |_| true);
    assert_eq!(record.number("bytes_sent"), LENGTH);
    assert_eq!(record.number("bytes_received"), LENGTH);
    assert_eq!(record.text("error"), "");
    assert_eq!(squid.connects(1), ["203.0.113.11:7"]);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_workload_that_ends_its_stream_first_still_gets_the_answer() {
    let scene = Scene::new("client-ends");
    // Squid closes both directions when one ends; this proxy does not.
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let sink = Server::sink(scene.world.inet(), other(9000));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let end_first = scene
        .program("end_first")
        .args(["203.0.113.11", "9000", "Wikipedia"]);
    let said = end_first.run(MINUTE).expect_success().stdout;
    assert_eq!(said, "9 300286872\n");
    assert!(
        sink.wait_for_reports(1)[0].complete,
        "the end arrived as an end, not as a reset"
    );
    let record = agent.wait_for_access("the exchange", |_| true);
    assert_eq!(record.number("bytes_sent"), 9);
    assert_eq!(record.text("error"), "");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_server_that_ends_its_stream_first_still_gets_the_rest() {
    const LENGTH: usize = 3_000_000;
    let scene = Scene::new("server-ends");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let source = Server::source(scene.world.inet(), other(9001), LENGTH);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let end_last = scene
        .program("end_last")
        .args(["203.0.113.11", "9001", "still here"]);
    let said = end_last.run(MINUTE).expect_success().stdout;
    assert_eq!(said, format!("{LENGTH} 1534216206\n"));
    let report = source.wait_for_reports(1)[0];
    assert_eq!((report.received, report.complete), (10, true));
    let record = agent.wait_for_access("the exchange", |_| true);
    assert_eq!(record.number("bytes_received"), LENGTH as u64);
    assert_eq!(record.text("error"), "");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_the_target_says_right_after_connect_is_not_lost() {
    // A proxy may send the head of its answer and the target's first bytes in one segment.
    let scene = Scene::new("early");
    let answer = Answer::Send(b"HTTP/1.1 200 OK\r\n\r\n220 early bird\r\n".into());
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), answer);
    let _agent = Agent::start(&scene.world, &tunnel_policy(&[]));

    let talk = scene.program("talk").args(["203.0.113.11", "25"]);
    let said = talk.run(MINUTE).expect_success().stdout;
    assert!(
        said.contains(" data 203.0.113.11 b'220 early bird\\r\\n'"),
        "{said}"
    );
}
