//! `underpass status`: what a running agent tells.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{ADMIN, Agent, READY, tunnel_policy, underpass};
use underpass_tests::process::Finished;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, World, http, wait_for};

const SECONDS: Duration = Duration::from_secs(20);

fn status(world: &World, options: &[&str]) -> Finished {
    underpass(world).arg("status").args(options).run(SECONDS)
}

/// Expects this exit status; what was said as JSON.
#[track_caller]
fn as_json(world: &World, exit: i32) -> Value {
    let done = status(world, &["--output", "json"]);
    assert_eq!(done.status.code(), Some(exit), "{done:?}");
    serde_json::from_str(&done.stdout).must(format_args!("read {done:?}"))
}

#[test]
fn a_ready_agent_tells_how_it_is() {
    let scene = Scene::new("status");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let site = scene.curl("http://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();

    let told = as_json(&scene.world, 0);
    assert_eq!(told["ready"], true, "{told}");
    assert_eq!(told["pid"], agent.pid(), "{told}");
    let cgroup = scene.world.workload().path().display().to_string();
    assert_eq!(told["cgroup"], cgroup, "{told}");
    let checks = told["checks"].as_array().expect("a list of checks");
    for name in ["canary-ipv4", "flow-map", "programs", "tasks"] {
        let is_well = |check: &Value| check["name"] == name && check["state"] == "ok";
        assert!(checks.iter().any(is_well), "{name} in {told}");
    }
    assert_eq!(told["policy"]["generation"], 1, "{told}");
    assert_eq!(told["policy"]["reload"]["result"], "success", "{told}");
    let proxies = serde_json::json!(["proxy.example:3128"]);
    assert_eq!(told["policy"]["proxies"], proxies, "{told}");
    assert_eq!(told["capture"]["redirected"], 1, "{told}");
    assert_eq!(told["maps"]["FLOWS"]["capacity"], 65_536, "{told}");
    // One per address of proxy.example.
    assert_eq!(told["maps"]["PROXIES"]["entries"], 2, "{told}");
    let prefixes = told["maps"]["PREFIXES"]["entries"].as_u64();
    assert!(prefixes > told["policy"]["prefixes"].as_u64(), "{told}");

    let done = status(&scene.world, &[]);
    let text = done.expect_success().stdout;
    assert!(text.contains(": ready\n"), "{text}");
    // What curl has asked for.
    let name = "workload: site.example at 203.0.113.10";
    for part in [
        &*cgroup,
        "generation 1",
        "proxy.example:3128",
        "of 65536",
        name,
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn a_policy_that_was_not_taken_is_told_with_its_problems() {
    let world = World::new("status-reload");
    let agent = Agent::start(&world, &tunnel_policy(&[]));
    let file = world.dir().join("policy.yaml");
    let bad = tunnel_policy(&["targetHots: AUTO_SNI", "targetPort: 0"]);
    fs::write(world.dir().join("bad"), bad).must("write a bad policy");
    fs::rename(world.dir().join("bad"), &file).must("put it in place");
    let failure = [("result", "failure")];
    agent.wait_for_metric("underpass_policy_reload_total", &failure, 1.0);

    // The old policy is in force, so the agent does its job.
    let told = as_json(&world, 0);
    assert_eq!(told["policy"]["generation"], 1, "{told}");
    assert_eq!(told["policy"]["reload"]["result"], "failure", "{told}");
    let text = status(&world, &[]).expect_success().stdout;
    for part in [
        format!("{}:9: Tunnel/everything", file.display()),
        "targetHots".to_owned(),
        format!("{}:10: Tunnel/everything", file.display()),
        "failure at 20".to_owned(),
    ] {
        assert!(text.contains(&part), "no {part} in {text}");
    }
}

#[test]
fn an_agent_that_drains_answers_that_it_is_not_ready() {
    let scene = Scene::new("status-drain");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let sink = Server::sink(scene.world.inet(), SocketAddr::from((OTHER_V4, 9000)));
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let gate = scene.world.dir().join("go-on");
    let script = format!(
        "(echo one; while [ ! -e {} ]; do sleep 0.02; done) | nc -N 203.0.113.11 9000",
        gate.display()
    );
    let nc = scene.workload("sh").args(["-c", &script]).start();
    wait_for("the tunnel is open", SECONDS, || {
        sink.open_connections() == 1
    });
    agent.process().signal(Signal::SIGTERM);
    wait_for("no longer ready", SECONDS, || {
        !http::get(scene.world.host(), READY, "/healthz/ready")
            .is_ok_and(|answer| answer.status == 200)
    });

    let told = as_json(&scene.world, 1);
    assert_eq!(told["ready"], false, "{told}");
    assert_eq!(told["connections"], 1, "{told}");
    let done = status(&scene.world, &[]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let mut lines = done.stdout.lines();
    assert!(
        lines.any(|line| line.contains("check draining") && line.ends_with("pending")),
        "{done:?}"
    );
    assert!(done.stdout.contains("NOT READY"), "{done:?}");

    fs::write(&gate, "").must("go on");
    nc.finish(SECONDS).expect_success();
    agent.process().wait(SECONDS).expect("it ends");
}

#[test]
fn nobody_there_is_told_with_the_address_and_what_may_be_wrong() {
    let world = World::new("status-nobody");
    let done = status(&world, &[]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    for part in [
        &*ADMIN.to_string(),
        "refused",
        "underpass run",
        "--admin-addr",
    ] {
        assert!(done.stderr.contains(part), "no {part} in {done:?}");
    }
    assert_eq!(done.stdout, "");

    let other = SocketAddr::from(([127, 0, 0, 1], 15999));
    let _echo = Server::echo(world.host(), other);
    let done = status(&world, &["--admin-addr", &other.to_string()]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    for part in ["127.0.0.1:15999", "not the admin interface", "not HTTP"] {
        assert!(done.stderr.contains(part), "no {part} in {done:?}");
    }

    let done = status(&world, &["--output", "xml"]);
    assert_eq!(done.status.code(), Some(64), "{done:?}");
}
