//! What of a node of a cluster is captured: its pods, and of what is on its own network only what policy
//! names. So a node comes up, and back, whatever becomes of the agent.

use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::addr::{OTHER_V4, PROXY_V4, SITE_V4, proxy_v4};
use underpass_tests::agent::{Agent, node as underpass_on_node};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::curl::Seen;
use underpass_tests::pod::{HostPod, Node, Pod, uid};
use underpass_tests::process::Cmd;
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Scene, wait_for};

const TUNNELS: &str = "/apis/underpass.dev/v1alpha1/tunnels";
const PODS: &str = "/api/v1/pods";
const ENTRIES: &str = "/apis/underpass.dev/v1alpha1/serviceentries";
const ROOT: &str = "underpass-system";
const SECONDS: Duration = Duration::from_secs(30);

/// The address of the API server, which belongs to nobody's policy.
const API: &str = "https://192.0.2.20:6443/version";

/// A pod of a file, as kubelet runs the network and the API server of a node: its cgroup is called after
/// this.
const STATIC: &str = "d0c1a5b3e2f4968778695a4b3c2d1e0f";

/// Through the world's proxy on this port, closed.
fn tunnel(port: u16, selector: Value) -> Value {
    let mut spec = json!({"targetHost": "ORIGINAL_DST", "proxy": {"host": PROXY_V4, "port": port}});
    if !selector.is_null() {
        spec["workloadSelector"] = selector;
    }
    json!({"apiVersion": "underpass.dev/v1alpha1", "kind": "Tunnel", "spec": spec})
}

/// A Pod of this node, which its cgroup calls `uid`.
fn pod(uid: &str, labels: &Value) -> Value {
    let annotations = json!({"kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"annotations": annotations, "labels": labels},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "c"}]},
    })
}

/// A request that does not mind whose certificate it sees.
#[track_caller]
fn ask(scene: &Scene, url: &str, program: Cmd) -> Seen {
    scene.curl(url).args(["-4", "--insecure"]).run(program)
}

/// Units of a host.
struct Host<'a> {
    scene: &'a Scene,
    kubelet: Cgroup,
    backup: Cgroup,
    _slice: Cgroup,
}

impl<'a> Host<'a> {
    fn new(scene: &'a Scene) -> Self {
        let slice = scene.world.root().child("system.slice");
        Self {
            scene,
            kubelet: slice.child("kubelet.service"),
            backup: slice.child("backup@1.service"),
            _slice: slice,
        }
    }

    fn curl(&self, unit: &Cgroup) -> Cmd {
        self.scene.world.host().command("curl").in_cgroup(unit)
    }
}

#[track_caller]
fn launch(scene: &Scene, api: &ApiServer) -> Agent {
    let mut agent = Agent::launch_on_node(
        scene,
        api.kubeconfig(),
        &["--never-capture", "site.example:80"],
    );
    agent.wait_until_ready();
    agent
}

#[track_caller]
fn wait_until_enrolled(agent: &Agent, pod: &Pod) {
    let inode = pod.place().netns();
    wait_for("the pod is enrolled", SECONDS, || {
        let told = agent.admin("/status");
        let workloads = told["namespaces"]["workloads"].as_array().cloned();
        let mut workloads = workloads.into_iter().flatten();
        workloads.any(|workload| workload["inode"] == inode)
    });
}

/// What each datagram of the program to UDP port 443 came to.
#[track_caller]
fn quic(program: Cmd) -> String {
    let program = program.args([OTHER_V4.to_string(), "443".to_owned(), "1".to_owned()]);
    program.run(SECONDS).stdout
}

#[test]
fn pods_are_captured_and_nothing_else_of_the_node_by_default() {
    let scene = Scene::new("scope");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let (node, host) = (Node::of_cluster(&scene.world), Host::new(&scene));
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, Value::Null));
    let agent = launch(&scene, &api);
    let (ours, theirs) = (node.start(1), node.start_on_host(STATIC));
    wait_until_enrolled(&agent, &ours);
    let site = "https://site.example/";

    ask(&scene, site, ours.command("curl")).expect_ok();
    assert_eq!(
        proxy.request_lines(1),
        ["CONNECT 203.0.113.10:443 HTTP/1.1"]
    );
    scene.world.expect_no_direct_arrivals();
    for program in [host.curl(&host.kubelet), theirs.command("curl")] {
        ask(&scene, site, program).expect_ok();
    }
    assert_eq!(
        scene.world.arrivals_at(SITE_V4).len(),
        2,
        "both went direct"
    );
    assert_eq!(proxy.requests().len(), 1);
    let skipped = "underpass_capture_skipped_total";
    let spared = [("reason", "host_network")];
    agent.wait_for_metric(skipped, &spared, 1.0);

    // What no tunnel takes is refused where a tunnel would be, and there only.
    assert_eq!(quic(ours.program("udp")), "unconnected EPERM\n");
    assert_eq!(quic(theirs.program("udp")), "unconnected sent\n");

    // The API server, and what the command line names, are never captured, neither for pods.
    ask(&scene, API, ours.command("curl"));
    assert_eq!(proxy.requests().len(), 1);
    ask(&scene, "http://site.example/", ours.command("curl")).expect_ok();
    assert_eq!(scene.world.arrivals_at(SITE_V4).len(), 3);
    assert_eq!(proxy.requests().len(), 1);
}

/// Queries as well, over UDP and TCP, where the agent answers those of pods.
#[test]
fn queries_of_the_node_stay_where_they_are() {
    let scene = Scene::new("scope-dns");
    let api = ApiServer::start(&scene);
    let node = Node::of_cluster(&scene.world);
    let mut served = tunnel(3128, Value::Null);
    served["spec"]["dns"] = json!("Serve");
    api.apply(TUNNELS, ROOT, "all", served);
    let entry = json!({
        "apiVersion": "underpass.dev/v1alpha1", "kind": "ServiceEntry",
        "spec": {"hosts": ["db.test.example"]},
    });
    api.apply(ENTRIES, ROOT, "db", entry);
    let agent = launch(&scene, &api);
    let (ours, theirs) = (node.start(1), node.start_on_host(STATIC));
    wait_until_enrolled(&agent, &ours);
    let ask = |program: Cmd, way: &str| {
        let dig = program.args(["+short", "+time=5", "+tries=1", way]);
        let dig = dig.args(["db.test.example", "A", "@192.0.2.53"]);
        dig.run(SECONDS).expect_success().stdout.trim().to_owned()
    };
    for way in ["+notcp", "+tcp"] {
        let said = ask(ours.command("dig"), way);
        assert!(said.starts_with("240.240."), "{way}: {said}");
        assert_eq!(ask(theirs.command("dig"), way), "", "{way}");
    }
    let queries = "underpass_dns_queries_total";
    let came = ["answered", "forwarded", "failed", "refused", "stranger"]
        .map(|result| agent.metrics().sum(queries, &[("result", result)]));
    assert_eq!(came, [2.0, 0.0, 0.0, 0.0, 0.0].map(Some));
    let redirected = agent
        .metrics()
        .sum("underpass_capture_redirected_total", &[]);
    assert_eq!(redirected, Some(1.0), "that of the pod over TCP");
}

/// Whom rules name is captured wherever it is, and goes by those rules alone.
#[test]
fn policy_names_what_it_captures_on_the_network_of_the_node() {
    let scene = Scene::new("scope-named");
    let api = ApiServer::start(&scene);
    let proxies = [3128, 3129, 3130].map(|port| {
        let address = (PROXY_V4, port).into();
        FakeProxy::start(scene.world.inet(), address, Answer::tunnel())
    });
    let [all, resolver, backup] = &proxies;
    let (node, host) = (Node::of_cluster(&scene.world), Host::new(&scene));
    api.apply(
        PODS,
        "kube-system",
        "resolver",
        pod(STATIC, &json!({"app": "resolver"})),
    );
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, Value::Null));
    let named = json!({"namespaces": ["kube-system"], "matchLabels": {"app": "resolver"}});
    api.apply(TUNNELS, ROOT, "resolver", tunnel(3129, named));
    let named = json!({"units": ["backup@*.service"]});
    api.apply(TUNNELS, ROOT, "backup", tunnel(3130, named));
    let mut agent = launch(&scene, &api);
    let theirs = node.start_on_host(STATIC);
    let other = node.start_on_host(&uid(9));
    let site = "https://site.example/";
    let captured = |expected: [usize; 3]| {
        let seen = [all, resolver, backup].map(|proxy| proxy.requests().len());
        assert_eq!(seen, expected);
    };

    wait_for("the pod that is named is captured", SECONDS, || {
        ask(&scene, site, theirs.command("curl")).expect_ok();
        !resolver.requests().is_empty()
    });
    let before = scene.world.arrivals_at(SITE_V4).len();
    ask(&scene, site, host.curl(&host.backup)).expect_ok();
    captured([0, resolver.requests().len(), 1]);
    assert_eq!(
        scene.world.arrivals_at(SITE_V4).len(),
        before,
        "all were tunnelled"
    );
    for program in [host.curl(&host.kubelet), other.command("curl")] {
        ask(&scene, site, program).expect_ok();
    }
    captured([0, resolver.requests().len(), 1]);
    assert_eq!(scene.world.arrivals_at(SITE_V4).len(), before + 2);
    assert_eq!(
        agent.admin("/status")["named_cgroups"],
        json!(["/sys/fs/cgroup/system.slice/backup@1.service"])
    );

    // A unit that comes later, and one more process of the pod, are found as well.
    let later = scene.world.root().child("backup@2.service");
    wait_for("the unit is captured", SECONDS, || {
        ask(&scene, site, host.curl(&later)).expect_ok();
        backup.requests().len() > 1
    });

    // Whoever is named depends on the agent, and nobody else.
    agent.process().kill();
    for program in [
        theirs.command("curl"),
        host.curl(&host.backup),
        host.curl(&later),
    ] {
        assert_ne!(ask(&scene, site, program).exit, 0, "refused");
    }
    for program in [host.curl(&host.kubelet), other.command("curl")] {
        ask(&scene, site, program).expect_ok();
    }

    // What is not named any more is not captured any more, whoever had it captured.
    api.delete(TUNNELS, ROOT, "resolver");
    let agent = launch(&scene, &api);
    ask(&scene, site, theirs.command("curl")).expect_ok();
    captured([0, resolver.requests().len(), backup.requests().len()]);
    api.delete(TUNNELS, ROOT, "backup");
    wait_for("nothing is named", SECONDS, || {
        agent.admin("/status")["named_cgroups"] == json!([])
    });
    let seen = backup.requests().len();
    ask(&scene, site, host.curl(&host.backup)).expect_ok();
    assert_eq!(backup.requests().len(), seen);
}

/// A closed policy, and an agent that does not come up.
#[test]
fn a_node_without_its_agent_comes_up_and_pods_stay_refused() {
    let scene = Scene::new("scope-reboot");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let host = Host::new(&scene);
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, Value::Null));
    let site = "https://site.example/";
    let needs = |program: &dyn Fn() -> Cmd| {
        // The API server's own answer does not matter, but that it is the one.
        assert_eq!(ask(&scene, API, program()).status, 401);
        // The registry.
        ask(&scene, "http://site.example/", program()).expect_ok();
    };
    let node = Node::of_cluster(&scene.world);
    let (ours, theirs) = (node.start(1), node.start_on_host(STATIC));
    let mut agent = launch(&scene, &api);
    wait_until_enrolled(&agent, &ours);
    ask(&scene, site, ours.command("curl")).expect_ok();
    agent.process().kill();
    drop(agent);

    // It cannot come back: where it looks for the API server there is none.
    let kubeconfig = std::fs::read_to_string(api.kubeconfig()).expect("a kubeconfig");
    let elsewhere = scene.world.dir().join("elsewhere");
    std::fs::write(&elsewhere, kubeconfig.replace(":6443", ":6445")).expect("a kubeconfig");
    let elsewhere = elsewhere.to_str().expect("a path of text");
    let broken = Agent::launch_on_node(&scene, elsewhere, &[]);
    // Kubelet makes others anew meanwhile.
    let (new, also_new) = (node.start(2), node.start_on_host(&uid(9)));
    for pod in [&ours, &new] {
        assert_ne!(ask(&scene, site, pod.command("curl")).exit, 0, "refused");
        needs(&|| pod.command("curl"));
    }
    assert_eq!(proxy.requests().len(), 1);
    for program in [
        &(|| theirs.command("curl")) as &dyn Fn() -> Cmd,
        &|| also_new.command("curl"),
        &|| host.curl(&host.kubelet),
    ] {
        ask(&scene, site, program()).expect_ok();
        needs(program);
    }
    let quic = |pod: &HostPod| quic(pod.program("udp"));
    assert_eq!([quic(&theirs), quic(&also_new)], ["unconnected sent\n"; 2]);

    // After a reboot nothing is pinned, and cgroups are others. What is broken still is.
    drop((broken, ours, new, theirs, also_new, node));
    let pins = scene
        .world
        .host()
        .command("rm")
        .args(["-r", "/sys/fs/bpf/underpass"]);
    pins.run(SECONDS).expect_success();
    let _broken = Agent::launch_on_node(&scene, elsewhere, &[]);
    needs(&|| host.curl(&host.kubelet));
    let node = Node::of_cluster(&scene.world);
    let theirs = node.start_on_host(STATIC);
    needs(&|| theirs.command("curl"));
    ask(&scene, site, theirs.command("curl")).expect_ok();
}

/// Kubelet makes the cgroup of pods when it starts, which may be after the agent, and anew when it
/// starts with other settings.
#[test]
fn the_cgroup_of_pods_may_come_late_and_come_anew() {
    let scene = Scene::new("scope-late");
    let api = ApiServer::start(&scene);
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    api.apply(TUNNELS, ROOT, "all", tunnel(3128, Value::Null));
    let mut agent = Agent::launch_on_node(&scene, api.kubeconfig(), &[]);
    let waits = "there is no cgroup of pods in /sys/fs/cgroup yet";
    let mut why = String::new();
    let mut agent_waits = |agent: &Agent| {
        wait_for("it waits for the cgroup of pods", SECONDS, || {
            let (place, ready) = (scene.world.host(), underpass_tests::agent::READY);
            let asked = underpass_tests::http::get(place, ready, "/healthz/ready");
            why = asked.map(|answer| answer.body).unwrap_or_default();
            why.contains(waits)
        });
        assert!(agent.tails().contains("waiting for the cgroup of pods"));
    };
    agent_waits(&agent);
    let mut count = 0;
    for _ in 0..2 {
        let node = Node::of_cluster(&scene.world);
        let pod = node.start(1);
        agent.wait_until_ready();
        wait_until_enrolled(&agent, &pod);
        ask(&scene, "https://site.example/", pod.command("curl")).expect_ok();
        count += 1;
        assert_eq!(proxy.request_lines(count).len(), count);
        drop((pod, node));
        agent_waits(&agent);
    }
    scene.world.expect_no_direct_arrivals();

    // With the other driver it is elsewhere.
    let kubelet = scene.world.root().child("kubelet");
    let kubepods = kubelet.child("kubepods");
    agent.wait_until_ready();
    let told = agent.admin("/status");
    assert_eq!(told["cgroup"], "/sys/fs/cgroup/kubelet/kubepods", "{told}");
    drop((kubepods, kubelet));
}

/// What a rule says to whom, without an agent.
#[test]
fn explain_tells_what_is_on_the_network_of_the_node() {
    let scene = Scene::new("scope-explain");
    let file = scene.world.dir().join("policy.yaml");
    let write = |selector: &str| {
        let text = format!(
            "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: t}}\n\
             spec: {{{selector} proxy: {{host: 192.0.2.20, port: 3128}}}}\n"
        );
        std::fs::write(&file, text).expect("a policy");
    };
    let explain = |more: &[&str]| -> Value {
        let program = underpass_on_node(&scene.world);
        let program = program.args(["explain", "203.0.113.11:443", "--output", "json"]);
        let program = program.arg("--policy").arg(&file).args(more);
        let told = program.run(SECONDS).expect_success().stdout;
        let told: Value = serde_json::from_str(&told).expect("JSON");
        told[0].clone()
    };
    write("");
    assert_eq!(explain(&["--kubernetes"])["decision"], "tunnel");
    let told = explain(&["--kubernetes", "--host-network"]);
    assert_eq!(told["decision"], "direct", "{told:#}");
    assert!(
        told.to_string().contains("on the node's own network"),
        "{told:#}"
    );
    write("workloadSelector: {units: [backup.service]},");
    let unit = ["--kubernetes", "--host-network", "--unit", "backup.service"];
    assert_eq!(explain(&unit)["decision"], "tunnel");
}
