//! What becomes of connections when the agent or its proxy is gone, and when the next agent comes.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::process::Finished;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::Squid;
use underpass_tests::{Must as _, Scene, wait_for};

const SECONDS: Duration = Duration::from_secs(20);

/// What a workload sees of the site: `data`, `refused`, …
fn look(scene: &Scene, address: &str) -> String {
    let talk = scene.program("talk").args([
        address,
        "80",
        "GET / HTTP/1.0\\r\\nHost: site.example\\r\\n\\r\\n",
    ]);
    let said = talk.run(SECONDS).expect_success().stdout;
    said.split_whitespace()
        .nth(1)
        .unwrap_or_default()
        .to_owned()
}

fn detach(scene: &Scene) -> Finished {
    underpass(&scene.world)
        .arg("detach")
        .run(SECONDS)
        .expect_success()
}

/// What is pinned, as the world's host sees it; its BPF file system is its own.
fn pins(scene: &Scene) -> BTreeSet<String> {
    let find = scene.world.host().command("find");
    let found = find.args(["/sys/fs/bpf", "-mindepth", "1"]).run(SECONDS);
    let ours = found.stdout.lines().filter(|pin| pin.contains("underpass"));
    ours.map(str::to_owned).collect()
}

#[test]
fn closed_refuses_what_a_killed_agent_captured_until_detach() {
    let scene = Scene::new("closed-kill");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    assert_eq!(look(&scene, "203.0.113.10"), "data");
    assert_eq!(pins(&scene).len(), 8, "{:?}", pins(&scene));

    agent.process().kill();
    for address in ["203.0.113.10", "2001:db8:113::10"] {
        assert_eq!(look(&scene, address), "refused", "{address}");
    }
    // What was never captured still goes its way.
    assert_eq!(look(&scene, "10.9.0.10"), "data");
    scene.world.expect_no_direct_arrivals();

    let done = detach(&scene);
    assert!(
        done.stdout.contains("removed the programs pinned in"),
        "{done:?}"
    );
    assert_eq!(pins(&scene), BTreeSet::new());
    assert_eq!(look(&scene, "203.0.113.10"), "data");
    assert_eq!(scene.world.direct_arrivals().len(), 1);
    assert!(!detach(&scene).stdout.contains("pinned"));
}

#[test]
fn closed_refuses_after_an_orderly_stop_too() {
    let scene = Scene::new("closed-stop");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    agent.process().signal(Signal::SIGTERM);
    agent.process().wait(SECONDS).expect("it ends");
    assert_eq!(look(&scene, "203.0.113.10"), "refused");
    scene.world.expect_no_direct_arrivals();
    detach(&scene);
}

#[test]
fn the_next_agent_takes_over() {
    let scene = Scene::new("take-over");
    let squid = Squid::start(&scene.world);
    let first = tunnel_policy(&[]);
    let mut agent = Agent::start(&scene.world, &first);
    let before = pins(&scene);
    agent.process().kill();
    drop(agent);

    let mut agent = Agent::start(&scene.world, &first);
    let after = pins(&scene);
    assert_eq!(after.len(), 8, "{after:?}");
    let both: Vec<_> = before.intersection(&after).collect();
    assert_eq!(both, ["/sys/fs/bpf/underpass"], "the old pins are gone");
    let curl = scene.curl("https://site.example/").args(["-4"]);
    scene.captured(&curl).expect_ok();
    assert_eq!(squid.connects(1), ["site.example:443"]);
    agent.process().kill();
    drop(agent);

    // A canary's cgroup that a killed agent left is gone as well.
    let left = |name: &str| {
        fs::read_dir(scene.world.workload().path())
            .must("list the cgroup")
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
            .count()
    };
    // So is one whose maker was killed before it could mark it.
    let unmarked = scene.world.workload().path().join("underpass-canary-1");
    fs::create_dir(unmarked).must("make a cgroup");
    let agent = Agent::start(&scene.world, &first);
    assert_eq!(left("underpass-canary"), 1);
    let told = detach(&scene).stdout;
    assert!(told.contains("its agent is running"), "{told}");
    scene.captured(&curl).expect_ok();
    drop(agent);
    detach(&scene);
    assert_eq!(left("underpass-canary"), 0);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn open_goes_direct_when_the_agent_is_gone() {
    let scene = Scene::new("open-kill");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&["failureMode: open"]));
    assert_eq!(look(&scene, "203.0.113.10"), "data");
    scene.world.expect_no_direct_arrivals();
    assert_eq!(pins(&scene), BTreeSet::new());
    agent.process().kill();
    // The kernel takes the programs off a moment after the last descriptor is closed.
    wait_for("direct connections", SECONDS, || {
        look(&scene, "203.0.113.10") == "data" && !scene.world.direct_arrivals().is_empty()
    });
}

#[test]
fn open_goes_direct_when_the_proxy_cannot_be_reached_but_not_when_it_refuses() {
    let scene = Scene::new("open-proxy");
    let agent = Agent::start(&scene.world, &tunnel_policy(&["failureMode: open"]));
    let curl = scene.curl("http://site.example/").args(["-4"]);
    let seen = scene.captured(&curl).expect_ok();
    assert_eq!(seen.body, Nginx::GREETING);
    let record = agent.wait_for_access("the direct one", |_| true);
    assert_eq!(record.text("decision"), "direct");
    assert_eq!(record.text("policy"), "Tunnel/everything");
    assert_eq!(scene.world.direct_arrivals().len(), 1);

    let proxy = FakeProxy::start(
        scene.world.inet(),
        proxy_v4(),
        Answer::refusal("403 Forbidden", "no"),
    );
    let refused = scene.captured(&curl);
    assert_eq!(refused.status, 502, "{refused:?}");
    assert_eq!(proxy.requests().len(), 1);
    assert_eq!(scene.world.direct_arrivals().len(), 1, "a refusal stands");
}

#[test]
fn a_policy_that_turns_open_lets_go_and_back() {
    let scene = Scene::new("closed-open");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let file = scene.world.dir().join("policy.yaml");
    for (mode, count) in [("open", 0), ("closed", 8), ("open", 0)] {
        fs::write(&file, tunnel_policy(&[&format!("failureMode: {mode}")])).must("write");
        agent.process().signal(Signal::SIGHUP);
        wait_for(mode, SECONDS, || pins(&scene).len() == count);
        assert_eq!(look(&scene, "203.0.113.10"), "data", "{mode}");
    }
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn addresses_on_a_port_in_no_proxy_stay_direct_without_an_agent() {
    let scene = Scene::new("closed-exceptions");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let policy = tunnel_policy(&["noProxy: ['203.0.113.10:80']"]);
    let mut agent = Agent::start(&scene.world, &policy);
    assert_eq!(look(&scene, "203.0.113.10"), "data");
    assert_eq!(scene.world.direct_arrivals().len(), 1);
    agent.process().kill();
    assert_eq!(look(&scene, "203.0.113.10"), "data");
    let other = SocketAddr::from((OTHER_V4, 80)).ip().to_string();
    assert_eq!(look(&scene, &other), "refused");
    assert_eq!(scene.world.direct_arrivals().len(), 2);
    detach(&scene);
}
