//! A node full of pods: each in a network namespace of its own, and all captured.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::{PROXY_V4, proxy_v4};
use underpass_tests::agent::Agent;
use underpass_tests::pod::{Node, Pod};
use underpass_tests::process::Running;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::{World, poll, wait_for};

const SECONDS: Duration = Duration::from_secs(30);
const PODS: u8 = 50;

/// Everybody connects from this port, at the same time.
const SOURCE: &str = "33333";

/// Each pod is told by its own cgroup; those with an odd number take another proxy.
const POLICY: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: even}
spec:
  targetHost: ORIGINAL_DST
  proxy: {host: 192.0.2.20, port: 3128, headers: {X-Cgroup: '{workload.cgroup}'}}
---
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata: {name: odd}
spec:
  targetHost: ORIGINAL_DST
  workloadSelector: {cgroups: [ODD]}
  proxy: {host: 192.0.2.20, port: 3129, headers: {X-Cgroup: '{workload.cgroup}'}}
";

struct Proxies {
    even: FakeProxy,
    odd: FakeProxy,
}

impl Proxies {
    fn start(world: &World) -> Self {
        let answer = || Answer::opened([Step::TellTarget, Step::Finish]);
        let odd = SocketAddr::from((PROXY_V4, 3129));
        Self {
            even: FakeProxy::start(world.inet(), proxy_v4(), answer()),
            odd: FakeProxy::start(world.inet(), odd, answer()),
        }
    }
}

fn policy(node: &Node<'_>) -> String {
    let odd: Vec<String> = (1..=2 * PODS)
        .filter(|number| number % 2 == 1)
        .map(|number| node.container_of(number))
        .collect();
    POLICY.replace("ODD", &odd.join(", "))
}

/// A connection to the port that is the pod's own.
fn connect(pod: &Pod, number: u8) -> Running {
    let port = (9000 + u16::from(number)).to_string();
    let program = pod.program("from_port");
    program.args(["203.0.113.11", &port, SOURCE]).start()
}

fn enrolled(agent: &Agent) -> BTreeSet<u64> {
    let told = agent.admin("/status");
    let of_workloads = told["namespaces"]["workloads"].as_array().cloned();
    let inodes = of_workloads.into_iter().flatten();
    inodes.filter_map(|told| told["inode"].as_u64()).collect()
}

#[track_caller]
fn wait_until_enrolled(agent: &Agent, pods: &[(u8, Pod)]) {
    let wanted: BTreeSet<u64> = pods.iter().map(|(_, pod)| pod.place().netns()).collect();
    let reached = poll(SECONDS, || (enrolled(agent) == wanted).then_some(()));
    assert!(
        reached.is_some(),
        "enrolled {:?}, not {wanted:?}\n{:#}\n{}",
        enrolled(agent),
        agent.admin("/status")["namespaces"],
        agent.tails()
    );
}

/// All of them connect at once from the same port, and each comes out where it wanted to go, by
/// its own proxy and under its own name.
#[track_caller]
fn expect_each_its_own(pods: &[(u8, Pod)], proxies: &Proxies, agent: &Agent) {
    let seen = |proxy: &FakeProxy| proxy.requests().len();
    let before = (seen(&proxies.even), seen(&proxies.odd));
    let running: Vec<(u8, Running)> = pods
        .iter()
        .map(|(number, pod)| (*number, connect(pod, *number)))
        .collect();
    for (number, running) in running {
        let heard = running.finish(SECONDS).expect_success().stdout;
        let wanted = format!("203.0.113.11:{}\n", 9000 + u16::from(number));
        assert_eq!(heard, wanted, "pod {number}\n{}", agent.tails());
    }
    let requests = [
        (0, &proxies.even.requests()[before.0..]),
        (1, &proxies.odd.requests()[before.1..]),
    ];
    for (remainder, requests) in requests {
        let mut came: Vec<(String, String)> = requests
            .iter()
            .map(|request| {
                let name = request.header("X-Cgroup").unwrap_or_default();
                (request.line().to_owned(), name.to_owned())
            })
            .collect();
        let mut wanted: Vec<(String, String)> = pods
            .iter()
            .filter(|(number, _)| number % 2 == remainder)
            .map(|(number, pod)| {
                let port = 9000 + u16::from(*number);
                let line = format!("CONNECT 203.0.113.11:{port} HTTP/1.1");
                (line, pod.container().name())
            })
            .collect();
        came.sort();
        wanted.sort();
        assert_eq!(came, wanted);
    }
}

#[test]
fn every_pod_finds_its_own_destination_and_policy() {
    let world = World::new("pods");
    let node = Node::new(&world);
    let proxies = Proxies::start(&world);

    // Half of them are there before the agent.
    let start = |number| (number, node.start(number));
    let mut pods: Vec<(u8, Pod)> = (1..=PODS / 2).map(start).collect();
    let direct = connect(&pods[0].1, 1).finish(SECONDS).stdout;
    assert_eq!(
        direct, "ECONNREFUSED\n",
        "so there is a way past the tunnel"
    );
    assert_eq!(world.direct_arrivals().len(), 1);

    let agent = Agent::start(&world, &policy(&node));
    wait_until_enrolled(&agent, &pods);
    expect_each_its_own(&pods, &proxies, &agent);

    // The others come later.
    pods.extend((PODS / 2 + 1..=PODS).map(start));
    wait_until_enrolled(&agent, &pods);
    expect_each_its_own(&pods, &proxies, &agent);
    let count = f64::from(PODS) + 1.0;
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], count);

    // Some go, and come back under their old names.
    pods.retain(|(number, _)| number % 3 != 0);
    wait_until_enrolled(&agent, &pods);
    pods.extend((1..=PODS).filter(|number| number % 3 == 0).map(start));
    wait_until_enrolled(&agent, &pods);
    expect_each_its_own(&pods, &proxies, &agent);
    let misses = "underpass_capture_original_destination_misses_total";
    agent.wait_for_metric(misses, &[], 0.0);
    assert_eq!(world.direct_arrivals().len(), 1, "that without an agent");
}

#[test]
fn the_first_connection_of_a_pod_never_slips_past() {
    let world = World::new("pods-first");
    let node = Node::new(&world);
    let proxies = Proxies::start(&world);
    let agent = Agent::start(&world, &policy(&node));
    let mut tunnelled = 0;
    for number in 1..=PODS {
        let pod = node.start(number);
        let heard = connect(&pod, number).finish(SECONDS).stdout;
        match heard.trim() {
            "EPERM" => {}
            target => {
                assert_eq!(target, format!("203.0.113.11:{}", 9000 + u16::from(number)));
                tunnelled += 1;
            }
        }
    }
    let requests = proxies.even.requests().len() + proxies.odd.requests().len();
    assert_eq!(requests, tunnelled);
    world.expect_no_direct_arrivals();
    drop(agent);
}

#[test]
fn pods_that_come_and_go_leave_nothing_behind() {
    let world = World::new("pods-churn");
    let node = Node::new(&world);
    let proxies = Proxies::start(&world);
    let agent = Agent::start(&world, &policy(&node));
    let start = |number| (number, node.start(number));

    let round = || {
        let pods: Vec<(u8, Pod)> = (1..=PODS).map(start).collect();
        wait_until_enrolled(&agent, &pods);
        expect_each_its_own(&pods, &proxies, &agent);
        drop(pods);
        wait_until_enrolled(&agent, &[]);
        wait_for("the namespaces are gone", SECONDS, || node.wires() == 0);
    };
    round();
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    let settled = |agent: &Agent| {
        let told: Value = agent.admin("/status");
        (told["maps"].clone(), agent.open_files())
    };
    let mut before = settled(&agent);
    wait_for("the agent is at rest", SECONDS, || {
        let now = settled(&agent);
        std::mem::replace(&mut before, now.clone()) == now
    });
    // A thousand in all.
    for _ in 0..18 {
        let pods: Vec<(u8, Pod)> = (1..=PODS)
            .map(|number| (number, node.start_idle(number)))
            .collect();
        wait_until_enrolled(&agent, &pods);
        drop(pods);
        wait_until_enrolled(&agent, &[]);
    }
    round();
    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 1.0);
    let rested = poll(SECONDS, || {
        let (maps, files) = settled(&agent);
        (maps == before.0 && files <= before.1).then_some(())
    });
    assert!(
        rested.is_some(),
        "before {before:?}, after {:?}",
        settled(&agent)
    );
    world.expect_no_direct_arrivals();
}
