//! Pods of a node in a cluster: which Tunnels are theirs, and proxies that are pods as well.

use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use underpass_tests::addr::{DNS_V4, INTERNAL_V4, OTHER_V4, PROXY_V4, proxy_v4};
use underpass_tests::cluster::{
    ROOT, SECONDS, TUNNELS, condition, of_spec, proxies, start, wait_until_programmed,
};
use underpass_tests::pod::{Node, Pod};
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Scene, poll, wait_for};

const PODS: &str = "/api/v1/pods";
const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Where everybody connects to.
const PORT: u16 = 9000;

/// A proxy that says a word instead of opening a tunnel.
#[track_caller]
fn proxy(scene: &Scene, address: impl Into<SocketAddr>, word: &str) -> FakeProxy {
    let answer = Answer::opened([Step::Send(word.into()), Step::Finish]);
    FakeProxy::start(scene.world.inet(), address.into(), answer)
}

/// What a pod hears when it connects: the word of its proxy, or of the target.
#[track_caller]
fn heard(pod: &Pod) -> String {
    let program = pod.program("talk");
    let done = program.args([OTHER_V4.to_string(), PORT.to_string()]);
    let told = done.run(SECONDS).expect_success().stdout;
    let words: Vec<&str> = told.trim().splitn(4, ' ').collect();
    match words[..] {
        [_, "data", _, data] => data
            .trim_start_matches("b'")
            .trim_end_matches('\'')
            .to_owned(),
        _ => told,
    }
}

/// Tells the API of a pod of this node. Its uid is the one that its cgroup has.
#[track_caller]
fn apply_pod(api: &ApiServer, namespace: &str, number: u8, app: &str) {
    let uid = format!("00000000-0000-4000-8000-{number:012}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"labels": {"app": app}, "annotations": {
            // An API server gives uids itself, and kubelet calls a static pod by this.
            "kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid,
        }},
        "spec": {"nodeName": "node-1", "containers": [{"name": "it", "image": "it"}]},
    });
    api.apply(PODS, namespace, &format!("pod-{number}"), pod);
}

fn tunnel(port: u16, more: Value) -> Value {
    let mut spec = json!({
        "targetHost": "ORIGINAL_DST",
        "proxy": {"host": PROXY_V4, "port": port},
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    of_spec(&spec)
}

#[test]
fn a_tunnel_is_for_the_pods_of_its_namespace_that_it_selects_and_the_root_is_for_all() {
    let scene = Scene::new("kube-pods");
    let node = Node::new(&scene.world);
    let api = ApiServer::start(&scene);
    let words = ["team-a", "web", "root", "root web"];
    let ports = [3129, 3130, 3131, 3132];
    let _proxies: Vec<FakeProxy> = ports
        .into_iter()
        .zip(words)
        .map(|(port, word)| proxy(&scene, (PROXY_V4, port), word))
        .collect();
    let target = SocketAddr::from((OTHER_V4, PORT));
    let _target = Server::banner(scene.world.inet(), target, "direct");

    let pods = [node.start(1), node.start(2), node.start(3)];
    let [web, job, foreign] = &pods;
    apply_pod(&api, "team-a", 1, "web");
    apply_pod(&api, "team-a", 2, "job");
    apply_pod(&api, "team-b", 3, "web");
    let agent = start(&scene, &api);
    let expect = |what: &str, ways: [&str; 3]| {
        let now = || [heard(web), heard(job), heard(foreign)];
        poll(SECONDS, || (now() == ways).then_some(()));
        assert_eq!(now(), ways, "{what}");
    };
    expect("without policy", ["direct"; 3]);

    let of_web = json!({"workloadSelector": {"matchLabels": {"app": "web"}}});
    api.apply(TUNNELS, "team-a", "web", tunnel(3130, of_web.clone()));
    wait_until_programmed(&api, "team-a", "web");
    expect("by label", ["web", "direct", "direct"]);

    api.apply(TUNNELS, "team-a", "own", tunnel(3129, json!({})));
    wait_until_programmed(&api, "team-a", "own");
    expect("of the namespace", ["web", "team-a", "direct"]);

    api.apply(TUNNELS, ROOT, "all", tunnel(3131, json!({})));
    wait_until_programmed(&api, ROOT, "all");
    expect("of the root", ["web", "team-a", "root"]);

    api.apply(TUNNELS, ROOT, "web", tunnel(3132, of_web));
    wait_until_programmed(&api, ROOT, "web");
    expect("of the root by label", ["web", "team-a", "root web"]);

    // Who selects the pods of another namespace selects none.
    let other = json!({"workloadSelector": {"namespaces": ["team-b"]}});
    api.apply(TUNNELS, "team-a", "greedy", tunnel(3129, other));
    wait_for("it is refused", SECONDS, || {
        condition(&api, "team-a", "greedy", "Accepted").starts_with(
            "False Invalid: \
            spec.workloadSelector.namespaces[0]: a Tunnel is for the pods of its own namespace",
        )
    });
    expect("of nobody", ["web", "team-a", "root web"]);

    // Labels of pods that run may change.
    apply_pod(&api, "team-a", 2, "web");
    expect("by its new label", ["web", "web", "root web"]);
    apply_pod(&api, "team-a", 1, "job");
    expect("by its old label no more", ["team-a", "web", "root web"]);
    drop(agent);
}

fn slice(endpoints: &[(Ipv4Addr, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, ready)| json!({"addresses": [address], "conditions": {"ready": ready}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"labels": {"kubernetes.io/service-name": "proxy"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "proxy", "port": 3128, "protocol": "TCP"}],
    })
}

#[test]
fn a_proxy_that_is_a_service_is_at_those_of_its_pods_that_are_ready() {
    let scene = Scene::new("kube-service");
    let node = Node::new(&scene.world);
    let api = ApiServer::start(&scene);
    let first = proxy(&scene, proxy_v4(), "first");
    let _second = proxy(&scene, (DNS_V4, 3128), "second");
    let _service = proxy(&scene, (INTERNAL_V4, 3128), "service");
    let pod = node.start(1);
    apply_pod(&api, "team-a", 1, "web");
    let mut by_name = tunnel(0, json!({}));
    by_name["spec"]["proxy"] = json!({"host": "proxy.egress.svc"});
    api.apply(TUNNELS, ROOT, "all", by_name);
    let agent = start(&scene, &api);
    wait_for("nobody tells the port", SECONDS, || {
        condition(&api, ROOT, "all", "Accepted").contains("spec.proxy.port")
    });

    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "spec": {"clusterIP": INTERNAL_V4,
                 "ports": [{"name": "proxy", "port": 3128, "protocol": "TCP"}]},
    });
    api.apply(
        SLICES,
        "egress",
        "proxy-a",
        slice(&[(PROXY_V4, true), (DNS_V4, false)]),
    );
    api.apply(SERVICES, "egress", "proxy", service);
    wait_until_programmed(&api, ROOT, "all");
    wait_for("the first", SECONDS, || heard(&pod) == "first");
    // So that it stays.
    first.set_answer(Answer::opened([Step::Echo]));
    let program = pod.program("rounds");
    let held = program.args([OTHER_V4.to_string(), PORT.to_string(), "1".into()]);
    let held = held.start();
    let echoes = |count: usize| {
        wait_for("it is answered", SECONDS, || {
            held.stdout().lines().count() >= count
        });
        let told = held.stdout();
        assert!(
            told.lines().all(|line| line == r#"{"echoed": 1}"#),
            "{told}"
        );
    };
    echoes(1);

    first.set_answer(Answer::opened([Step::Send("first".into()), Step::Finish]));
    let endpoints = |first: bool, second: bool| {
        let slice = slice(&[(PROXY_V4, first), (DNS_V4, second)]);
        api.apply(SLICES, "egress", "proxy-a", slice);
    };
    endpoints(false, true);
    wait_for("the second", SECONDS, || heard(&pod) == "second");
    for _ in 0..4 {
        assert_eq!(heard(&pod), "second");
    }
    held.signal(Signal::SIGUSR1);
    echoes(2);
    // None is ready: where the Service is.
    endpoints(false, false);
    wait_for("the Service", SECONDS, || heard(&pod) == "service");
    assert_eq!(heard(&pod), "service");
    endpoints(true, true);
    for word in ["first", "second"] {
        wait_for(word, SECONDS, || heard(&pod) == word);
    }
    held.signal(Signal::SIGUSR1);
    echoes(3);
    assert_eq!(proxies(&agent).len(), 1);
    scene.world.expect_no_direct_arrivals();
}
