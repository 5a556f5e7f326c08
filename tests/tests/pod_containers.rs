//! Who is who in the pods of a cluster: several containers in one, several policies on a node, and what is
//! in a sandbox.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::addr::{PROXY_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::pod::{Node, Pod, uid};
use underpass_tests::process::Running;
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::{Scene, World, wait_for};

const TUNNELS: &str = "/apis/underpass.dev/v1alpha1/tunnels";
const PODS: &str = "/api/v1/pods";
const ROOT: &str = "underpass-system";
const SECONDS: Duration = Duration::from_secs(30);

/// The id of the second container of each pod.
const SIDECAR: &str = "5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d5ec0d0001";

/// Teams, each with a Tunnel for its pods, and the port of its proxy.
const TEAMS: [(&str, u16); 3] = [("red", 3128), ("green", 3129), ("blue", 3130)];

/// That of the container that policy names on its own.
const OF_SIDECAR: u16 = 3131;

fn tunnel(port: u16, selector: &Value) -> Value {
    let spec = json!({"targetHost": "ORIGINAL_DST", "workloadSelector": selector,
                      "proxy": {"host": PROXY_V4, "port": port}});
    json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "Tunnel", "spec": spec})
}

/// Containers of the same pod share its network, and those of all pods connect from the same address
/// and port at the same time: each comes out where it wants to, by the proxy that is for it.
#[test]
fn containers_of_one_pod_and_pods_of_one_node_are_told_apart() {
    let scene = Scene::new("pod-containers");
    let world = &scene.world;
    let node = Node::of_cluster(world);
    let api = ApiServer::start(&scene);
    let answer = || Answer::opened([Step::TellTarget, Step::Finish]);
    let proxy = |port| FakeProxy::start(world.inet(), SocketAddr::from((PROXY_V4, port)), answer());
    let proxies = [TEAMS[0].1, TEAMS[1].1, TEAMS[2].1, OF_SIDECAR].map(proxy);
    let pods: Vec<(u8, Pod)> = (1..=3).map(|number| (number, node.start(number))).collect();
    let sidecars: Vec<Cgroup> = pods.iter().map(|(_, pod)| pod.another(SIDECAR)).collect();
    // As the agent sees it, whose hierarchy begins at the world's root.
    let of_second = sidecars[1].name();
    let of_second = of_second
        .strip_prefix(&world.root().name())
        .expect("below the root");
    // The oldest, and the first by name, goes before the others.
    api.apply(
        TUNNELS,
        ROOT,
        "a-sidecar",
        tunnel(OF_SIDECAR, &json!({"cgroups": [of_second]})),
    );
    for (number, (team, port)) in (1..).zip(TEAMS) {
        let id = uid(number);
        let annotations =
            json!({"kubernetes.io/config.hash": id, "kubernetes.io/config.mirror": id});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"annotations": annotations, "labels": {"team": team}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "c"}]},
        });
        api.apply(PODS, "shop", &format!("pod-{team}"), pod);
        api.apply(
            TUNNELS,
            ROOT,
            team,
            tunnel(port, &json!({"matchLabels": {"team": team}})),
        );
    }
    let mut agent = Agent::launch_on_node(&scene, api.kubeconfig(), &[]);
    agent.wait_until_ready();
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 4.0);

    let connect = |pod: &Pod, cgroup: &Cgroup, port: u16, source: u16| -> Running {
        let program = pod.place().python("from_port").in_cgroup(cgroup);
        let ports = [port.to_string(), source.to_string()];
        program.arg("203.0.113.11").args(ports).start()
    };
    let mut running = Vec::new();
    for ((number, pod), sidecar) in pods.iter().zip(&sidecars) {
        let port = 9000 + 10 * u16::from(*number);
        running.push((port, connect(pod, pod.container(), port, 33333)));
        running.push((port + 1, connect(pod, sidecar, port + 1, 33334)));
    }
    for (port, running) in running {
        let heard = running.finish(SECONDS).expect_success().stdout;
        assert_eq!(heard, format!("203.0.113.11:{port}\n"), "{}", agent.tails());
    }
    let asked = |proxy: &FakeProxy| {
        let mut lines: Vec<String> = proxy
            .requests()
            .iter()
            .map(|it| it.line().to_owned())
            .collect();
        lines.sort();
        lines
    };
    let line = |port: u16| format!("CONNECT 203.0.113.11:{port} HTTP/1.1");
    assert_eq!(asked(&proxies[0]), [line(9010), line(9011)]);
    assert_eq!(asked(&proxies[1]), [line(9020)]);
    assert_eq!(asked(&proxies[2]), [line(9030), line(9031)]);
    assert_eq!(asked(&proxies[3]), [line(9021)]);

    let first = format!("{:064x}", 2);
    for (port, container) in [(9020, first.as_str()), (9021, SIDECAR)] {
        let record = agent.wait_for_access("of the second pod", |record| {
            record.text("original_dst").ends_with(&format!(":{port}"))
        });
        assert_eq!(record.text("src.namespace"), "shop", "{record:?}");
        assert_eq!(record.text("src.pod"), "pod-green", "{record:?}");
        assert_eq!(record.text("src.container"), container, "{record:?}");
    }
    world.expect_no_direct_arrivals();
}

/// What gVisor and virtual machines send is not seen by the hooks; that it is not covered must be.
#[test]
fn a_sandbox_is_reported_as_not_covered() {
    let world = World::new("pod-sandbox");
    let node = Node::new(&world);
    let _proxy = FakeProxy::start(world.inet(), proxy_v4(), Answer::tunnel());
    let policy = tunnel_policy(&[]).replace("proxy.example", "192.0.2.20");
    let mut agent = Agent::start(&world, &policy);
    let pod = node.start(1);
    let failures = "underpass_namespace_failures_total";
    let sandboxed = [("reason", "sandboxed")];
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 2.0);
    agent.wait_for_metric(failures, &sandboxed, 0.0);

    // A program of that name, as kubelet's runtime starts it in the cgroup of a pod.
    let runsc = world.dir().join("runsc");
    let copy = world.host().command("cp").arg("/bin/sleep").arg(&runsc);
    copy.run(SECONDS).expect_success();
    let runsc = pod
        .command(runsc.to_str().expect("a path"))
        .arg("1000")
        .start();
    agent.wait_for_metric(failures, &sandboxed, 1.0);
    let told = agent.admin("/status")["namespaces"]["sandboxed"].clone();
    let cgroup = pod.container().path().display().to_string();
    assert_eq!(told, json!({cgroup: "gVisor"}));
    let log = agent.process().wait_for_logged("a pod is not covered");
    assert_eq!(log.matches("a pod is not covered").count(), 1, "{log}");
    drop(runsc);
    wait_for("it is gone", SECONDS, || {
        agent.admin("/status")["namespaces"]["sandboxed"] == json!({})
    });
    agent.wait_for_metric(failures, &sandboxed, 1.0);
}
