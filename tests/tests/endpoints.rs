//! What the agent tells about itself.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{ADMIN, Agent, METRICS, READY, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::squid::Squid;
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, World, http, poll, wait_for};

const SECONDS: Duration = Duration::from_secs(10);

#[test]
fn metrics_carry_the_names_and_labels_dashboards_expect() {
    let scene = Scene::new("metrics");
    let _squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    scene
        .captured(&scene.curl("https://site.example/").args(["-4"]))
        .expect_ok();
    agent.wait_for_accesses(1);

    let metrics = agent.metrics();
    let source = [
        ("reporter", "source"),
        ("destination_service", "PassthroughCluster"),
    ];
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
    ] {
        assert_eq!(metrics.sum(name, &source), Some(1.0), "{name}");
    }
    for name in [
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
    ] {
        assert!(metrics.sum(name, &source) > Some(300.0), "{name}");
    }
    let request = [
        ("policy", "Tunnel/everything"),
        ("protocol", "http1-connect"),
        ("code", "200"),
    ];
    assert_eq!(
        metrics.sum("underpass_tunnel_requests_total", &request),
        Some(1.0)
    );
    let proxies = metrics.label_values("underpass_tunnel_requests_total", "proxy");
    assert!(
        proxies.iter().all(|proxy| proxy.contains("proxy.example")),
        "{proxies:?}"
    );
    let deduced = [("source", "sni"), ("result", "found")];
    assert_eq!(
        metrics.sum("underpass_target_deduction_total", &deduced),
        Some(1.0)
    );
    // A client of the test joins its cgroup first, and the host's namespace a moment later.
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 1.0);
    for name in [
        "underpass_tunnel_establish_duration_seconds_count",
        "underpass_proxy_connections_total",
        "underpass_proxy_sent_bytes_total",
        "underpass_proxy_received_bytes_total",
        "underpass_capture_redirected_total",
        "underpass_capture_map_capacity",
        "underpass_build_info",
    ] {
        assert!(metrics.sum(name, &[]) > Some(0.0), "{name}");
    }
    // No label may grow with what workloads say.
    let text = http::get(scene.world.host(), METRICS, "/metrics")
        .must("scrape")
        .body;
    for unbounded in ["site.example", "203.0.113.10"] {
        assert!(!text.contains(unbounded), "{unbounded} in\n{text}");
    }
    let istio = http::get(scene.world.host(), METRICS, "/stats/prometheus").must("scrape");
    assert_eq!(istio.status, 200);
    assert!(istio.body.contains("istio_tcp_connections_opened_total"));
}

#[test]
fn readiness_is_proved_by_a_captured_connection() {
    let scene = Scene::new("ready");
    let squid = Squid::start(&scene.world);
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let ask = |path: &str| {
        http::get(scene.world.host(), READY, path)
            .must("ask")
            .status
    };
    assert_eq!(
        (ask("/healthz/ready"), ask("/healthz/live"), ask("/nothing")),
        (200, 200, 404)
    );
    // The proof does not show up as traffic.
    assert_eq!(squid.log(), []);
    assert!(agent.access_log().is_empty(), "{}", agent.tails());
    scene.world.expect_no_direct_arrivals();
    agent.wait_for_metric(
        "underpass_capture_original_destination_misses_total",
        &[],
        0.0,
    );
}

#[test]
fn it_drains_when_told_to_end() {
    let scene = Scene::new("drain");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let source = Server::sink(scene.world.inet(), SocketAddr::from((OTHER_V4, 9000)));
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let nc = scene.workload("sh").args([
        "-c",
        "(echo one; sleep 2; echo two) | nc -N 203.0.113.11 9000",
    ]);
    let nc = nc.start();
    wait_for("the tunnel is open", SECONDS, || {
        source.open_connections() == 1
    });

    agent.process().signal(nix::sys::signal::Signal::SIGTERM);
    wait_for("no longer ready", SECONDS, || {
        !http::get(scene.world.host(), READY, "/healthz/ready")
            .is_ok_and(|answer| answer.status == 200)
    });
    let report = source.wait_for_reports(1)[0];
    assert_eq!(
        (report.received, report.complete),
        (8, true),
        "what was open is served to its end"
    );
    nc.finish(SECONDS).expect_success();
    let status = agent
        .process()
        .wait(SECONDS)
        .expect("the agent ends once all is served");
    assert_eq!(status.code(), Some(0), "{}", agent.tails());
}

#[test]
fn connections_lists_what_is_open_now() {
    let scene = Scene::new("connections");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    assert_eq!(agent.admin("/connections"), Value::Array(vec![]));

    let nc = scene
        .workload("sh")
        .args(["-c", "(echo four; sleep 1000) | nc 203.0.113.11 7"]);
    let nc = nc.start();
    let open = poll(SECONDS, || {
        let open = agent.admin("/connections");
        (open[0]["bytes_received"] == 5).then_some(open)
    });
    let open = open.unwrap_or_else(|| panic!("{:?}", agent.admin("/connections")));
    assert_eq!(open.as_array().map(Vec::len), Some(1));
    assert_eq!(open[0]["original_dst"], "203.0.113.11:7");
    assert_eq!(open[0]["target"], "203.0.113.11:7");
    assert_eq!(open[0]["decision"], "tunnel");
    assert_eq!(open[0]["bytes_sent"], 5);
    assert_eq!(open[0]["src.cgroup"], scene.world.workload().id());
    let pid = open[0]["src.pid"].as_u64().expect("a process id");
    let pids = scene.world.workload().processes();
    assert!(
        pids.iter().any(|own| u64::from(*own) == pid),
        "{pid} is none of {pids:?}"
    );
    drop(nc);
    for pid in scene.world.workload().processes() {
        // What the shell has started.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    wait_for("the list is empty", SECONDS, || {
        agent.admin("/connections") == Value::Array(vec![])
    });
}

#[test]
fn the_configuration_in_force_can_be_read() {
    let world = World::new("dump");
    let policy = tunnel_policy(&["targetHost: AUTO_SNI", "noProxy: [.corp.example]"]);
    let agent = Agent::start(&world, &policy);
    let dump = agent.admin("/config_dump").to_string();
    for part in [
        "everything",
        "proxy.example",
        "3128",
        "AUTO_SNI",
        "corp.example",
    ] {
        assert!(dump.contains(part), "no {part} in {dump}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let world = World::new("port-in-use");
    for (endpoint, flag) in [(METRICS, "--metrics-addr"), (ADMIN, "--admin-addr")] {
        let _taken = Server::echo(world.host(), endpoint);
        let file = world.dir().join("policy.yaml");
        std::fs::write(&file, tunnel_policy(&[])).must("write a policy");
        let run = underpass_tests::agent::underpass(&world)
            .arg("run")
            .arg("--policy")
            .arg(file);
        let done = run
            .arg("--cgroup")
            .arg(world.workload().path())
            .run(SECONDS);
        assert_ne!(done.status.code(), Some(0), "{done:?}");
        let port = endpoint.port().to_string();
        assert!(
            done.stderr.contains(&port) && done.stderr.contains(flag),
            "{done:?}"
        );
    }
}
