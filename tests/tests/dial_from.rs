//! `dialFrom: workload`: a proxy sees the pod, and what holds for the pod's network holds for its
//! tunnels.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use underpass_tests::addr::{HOST_V4, OTHER_V4, OTHER_V6, PROXY_V6, proxy_v4, proxy_v6};
use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::pod::{Node, Pod, address_v6};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::servers::h2_proxy::{ECHO, H2Proxy};
use underpass_tests::{Must as _, World, wait_for};

const SECONDS: Duration = Duration::from_secs(30);

fn policy(more: &[&str]) -> String {
    let policy = tunnel_policy(&[&["  dialFrom: workload"], more].concat());
    policy.replace("proxy.example", "192.0.2.20")
}

/// What a pod gets of a connection to this port from this source port.
#[track_caller]
fn heard(pod: &Pod, port: u16, source: u16) -> String {
    let ports = [port.to_string(), source.to_string()];
    let program = pod.program("from_port").arg(OTHER_V4.to_string());
    program.args(ports).run(SECONDS).expect_success().stdout
}

/// Starts pods and waits for their listeners.
#[track_caller]
fn start<const N: usize>(node: &Node<'_>, agent: &Agent, numbers: [u8; N]) -> [Pod; N] {
    let pods = numbers.map(|number| node.start(number));
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], N as f64 + 1.0);
    pods
}

#[test]
fn a_proxy_is_dialled_from_the_namespace_of_the_workload() {
    let world = World::new("dial-from");
    let node = Node::new(&world);
    let answer = Answer::opened([Step::TellTarget, Step::Finish]);
    let proxy = FakeProxy::start(world.inet(), proxy_v4(), answer);
    let agent = Agent::start(&world, &policy(&["  warmConnections: true"]));
    let [one, two] = start(&node, &agent, [1, 2]);

    // Each with its own address; what runs on the node has the node's. Connections that are kept
    // ready are nobody else's, and several in a row make some.
    let peers = || -> Vec<IpAddr> {
        let requests = proxy.requests();
        requests.iter().map(|request| request.peer.ip()).collect()
    };
    for _ in 0..5 {
        assert_eq!(
            heard(&one, 443, 0),
            "203.0.113.11:443\n",
            "{}",
            agent.tails()
        );
        assert_eq!(
            heard(&two, 443, 0),
            "203.0.113.11:443\n",
            "{}",
            agent.tails()
        );
    }
    let on_node = world.host().python("from_port").in_cgroup(world.workload());
    let on_node = on_node.args([OTHER_V4.to_string(), "443".to_owned(), "0".to_owned()]);
    on_node.run(SECONDS).expect_success();
    let [first, second] = [1, 2].map(|number| Ipv4Addr::new(10, 77, 0, number));
    let mut wanted: Vec<IpAddr> = Vec::new();
    for _ in 0..5 {
        wanted.extend([IpAddr::from(first), IpAddr::from(second)]);
    }
    wanted.push(HOST_V4.into());
    assert_eq!(peers(), wanted);

    // Where the network of a pod does not let it reach the proxy, there is no way around.
    agent.wait_for_metric("underpass_proxy_connections_active", &[], 0.0);
    let forbid = two.place().command("ip");
    let forbid = forbid.args(["route", "add", "prohibit", "192.0.2.20/32"]);
    forbid.run(SECONDS).expect_success();
    assert_eq!(heard(&two, 443, 0), "ECONNRESET\n");
    agent.wait_for_access("refused by the pod's own network", |record| {
        record.text("error").contains("Permission denied")
    });
    assert_eq!(heard(&one, 443, 0), "203.0.113.11:443\n");
    world.expect_no_direct_arrivals();

    // Nothing of it outlives the pods.
    drop((one, two));
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 1.0);
    wait_for("the namespaces are gone", SECONDS, || node.wires() == 0);
}

/// A proxy that has only an IPv6 address, and a target as well.
#[test]
fn a_proxy_is_dialled_from_the_ipv6_address_of_a_pod() {
    let world = World::new("dial-from-ipv6");
    let node = Node::new(&world);
    let answer = Answer::opened([Step::TellTarget, Step::Finish]);
    let proxy = FakeProxy::start(world.inet(), proxy_v6(), answer);
    let agent = Agent::start(
        &world,
        &policy(&[]).replace("192.0.2.20", &PROXY_V6.to_string()),
    );
    let pods = start(&node, &agent, [1, 2]);
    for (number, pod) in (1..).zip(&pods) {
        let talk = pod
            .program("talk")
            .args([OTHER_V6.to_string(), "443".to_owned()]);
        let told = talk.run(SECONDS).expect_success().stdout;
        let target = format!("[{OTHER_V6}]:443");
        assert!(told.contains(&target), "{told}\n{}", agent.tails());
        let requests = proxy.requests();
        let last = requests.last().expect("a request");
        assert_eq!(last.line(), format!("CONNECT {target} HTTP/1.1"));
        assert_eq!(last.peer.ip(), IpAddr::from(address_v6(number)));
    }
    world.expect_no_direct_arrivals();
}

#[test]
fn what_pods_share_of_a_proxy_ends_with_their_namespace() {
    let world = World::new("dial-from-http2");
    let node = Node::new(&world);
    let proxy = H2Proxy::start(&world, proxy_v4(), &[]);
    let agent = Agent::start(&world, &policy(&["  protocol: HTTP2-CONNECT"]));
    let [one, two] = start(&node, &agent, [1, 2]);
    for _ in 0..3 {
        for pod in [&one, &two] {
            let fault = pod.program("fault").arg("echo");
            let fault = fault.args([OTHER_V4.to_string(), ECHO.to_string()]);
            let seen = fault.run(SECONDS).stdout;
            assert_eq!(seen.lines().last(), Some("echoed"), "{}", agent.tails());
        }
    }
    let connections = proxy.connections();
    let requests: Vec<u64> = connections.iter().map(|one| one.requests).collect();
    assert_eq!(requests, [3, 3], "one connection of each pod");
    assert!(connections.iter().all(|one| one.ended.is_none()));

    drop(one);
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 2.0);
    proxy.wait_for("the connection of the pod that is gone has ended", |all| {
        all[0].ended.is_some() && all[1].ended.is_none()
    });
    wait_for("its namespace is gone", SECONDS, || node.wires() == 1);
    drop(two);
    wait_for("no namespace is left", SECONDS, || node.wires() == 0);
    world.expect_no_direct_arrivals();
}

#[test]
fn a_check_of_a_proxy_that_workloads_dial_is_refused() {
    let world = World::new("dial-from-check");
    let file = world.dir().join("checked.yaml");
    let text = policy(&["  healthCheck: {targetHost: site.example}"]);
    fs::write(&file, text).must("write a policy");
    let check = underpass(&world).arg("check").arg(&file);
    let told = check.run(SECONDS).stdout;
    assert!(
        told.contains("spec.proxy.healthCheck: with `dialFrom: workload`"),
        "{told}"
    );

    let text = policy(&[]);
    fs::write(&file, text).must("write a policy");
    let explain = underpass(&world).args(["explain", "203.0.113.11:443", "--output", "json"]);
    let explain = explain.arg("--policy").arg(&file);
    let told = explain.run(SECONDS).expect_success().stdout;
    let told: serde_json::Value = serde_json::from_str(&told).must("read JSON");
    assert_eq!(told[0]["proxies"][0]["dialFrom"], "workload", "{told:#}");
}
