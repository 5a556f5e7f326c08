//! The image in a real container runtime, with what the manifests grant it and no more: what a node sees
//! of `kubectl apply` and of uninstalling.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_tests::agent::Agent;
use underpass_tests::container::{Container, seen};
use underpass_tests::manifests::{documents, find, render};
use underpass_tests::pod::Node;
use underpass_tests::servers::api_server::ApiServer;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Scene, wait_for};

const SECONDS: Duration = Duration::from_secs(30);

const ROOT: &str = "underpass-system";

/// An API server to which the overlay has been applied, for the proxy of this world.
#[track_caller]
fn cluster(scene: &Scene, manifests: &[Value]) -> ApiServer {
    let api = ApiServer::start(scene);
    let mut tunnel = find(manifests, "Tunnel", "everything").clone();
    tunnel["spec"]["proxy"]["host"] = "proxy.example".into();
    let collection = "/apis/underpass.dev/v1alpha1/tunnels";
    api.apply(collection, ROOT, "everything", tunnel);
    let mut secret = find(manifests, "Secret", "proxy-credentials").clone();
    // As the real one does when it takes it.
    let fields = secret.as_object_mut().expect("an object");
    let written = fields.remove("stringData").expect("credentials");
    for (key, value) in written.as_object().expect("credentials") {
        secret["data"][key] = STANDARD.encode(value.as_str().expect("text")).into();
    }
    api.apply("/api/v1/secrets", ROOT, "proxy-credentials", secret);
    api
}

/// The agent's container of the overlay. It captures the world's cgroup only, and is told where the API
/// server of this world is.
#[track_caller]
fn agent(scene: &Scene, manifests: &[Value], api: &ApiServer) -> Container {
    let daemon_set = find(manifests, "DaemonSet", "underpass");
    let cgroup = seen(scene.world.workload());
    let directory = scene.world.dir();
    Container::of(&scene.world, daemon_set)
        .replace(
            "--kubernetes",
            &[
                "--kubernetes",
                "--kubeconfig",
                api.kubeconfig(),
                "--cgroup",
                &cgroup,
            ],
        )
        .mount(directory, &directory.display().to_string())
}

fn squid(scene: &Scene) -> Squid {
    let options = Options {
        credentials: Some(("underpass", "change-me")),
        ..Options::default()
    };
    Squid::start_with(&scene.world, &options)
}

#[test]
fn a_pod_is_tunnelled_and_stays_refused_until_the_uninstaller_has_run() {
    let scene = Scene::new("container");
    let node = Node::new(&scene.world);
    let squid = squid(&scene);
    let pod = node.start(1);
    let manifests = documents(&render("overlays/closed-all"));
    let api = cluster(&scene, &manifests);
    let request = || {
        let curl = scene.curl("https://site.example/page").args(["-4"]);
        curl.run(pod.command("curl"))
    };

    let mut agent = Agent::by(
        agent(&scene, &manifests, &api).command(&scene.world),
        &scene.world,
    );
    let inode = pod.place().netns();
    wait_for("the pod is enrolled", SECONDS, || {
        let told = agent.admin("/status");
        let workloads = told["namespaces"]["workloads"].as_array().cloned();
        let mut workloads = workloads.into_iter().flatten();
        workloads.any(|workload| workload["inode"] == inode)
    });
    let seen = request().expect_ok();
    assert_eq!(seen.body, Nginx::GREETING);
    assert_eq!(seen.verification, 0, "the site's own certificate");
    let logged = &squid.wait_for_log(1)[0];
    assert_eq!(
        (logged.target.as_str(), logged.status, logged.user.as_str()),
        ("site.example:443", 200, "underpass")
    );
    scene.world.expect_no_direct_arrivals();

    // Nothing of it is left that the node would not have again after `kubectl delete`.
    agent.process().signal(Signal::SIGTERM);
    let status = agent.process().wait(SECONDS).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", agent.tails());
    assert_ne!(request().exit, 0, "its programs refuse");
    scene.world.expect_no_direct_arrivals();

    let manifests = documents(&render("uninstall"));
    let detach = Container::of(
        &scene.world,
        find(&manifests, "DaemonSet", "underpass-detach"),
    );
    let mut detach = detach.command(&scene.world).start();
    detach.wait_for("it has removed the programs", SECONDS, || {
        request().exit == 0
    });
    assert!(detach.stdout().contains("removed the programs pinned in"));
    assert_ne!(
        scene.world.direct_arrivals(),
        [],
        "nothing captures any more"
    );
    assert!(detach.is_running(), "{}", detach.tails());
    detach.signal(Signal::SIGTERM);
    let status = detach.wait(SECONDS).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", detach.tails());
}

/// Programs of a closed policy have to outlive the container, and what is mounted in it does not.
#[test]
fn without_the_bpf_file_system_of_the_node_it_says_so() {
    let scene = Scene::new("container-bpffs");
    let manifests = documents(&render("overlays/closed-all"));
    let api = cluster(&scene, &manifests);
    let container = agent(&scene, &manifests, &api).without("/sys/fs/bpf");
    let done = container.command(&scene.world).start().finish(SECONDS);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let said = "a closed policy needs the BPF file system";
    assert!(done.stderr.contains(said), "{done:?}");
    assert!(done.stderr.contains("on the node"), "{done:?}");
}

/// Capabilities without which it does not start, and what it asks for then: CAP_SYS_ADMIN stands for
/// two others.
const NEEDED: [(&str, &str); 2] = [
    ("CAP_NET_ADMIN", "CAP_NET_ADMIN"),
    ("CAP_SYS_ADMIN", "CAP_BPF, CAP_PERFMON"),
];

#[test]
fn with_one_capability_less_it_says_which_is_missing() {
    let scene = Scene::new("container-capabilities");
    let node = Node::new(&scene.world);
    let _squid = squid(&scene);
    let pod = node.start(1);
    let manifests = documents(&render("overlays/closed-all"));
    let api = cluster(&scene, &manifests);
    let agent = || agent(&scene, &manifests, &api);
    let all = agent().granted();
    assert_eq!(all, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]);
    let without = |name: &str| -> Vec<&str> {
        let others = all.iter().map(String::as_str);
        others.filter(|one| *one != name).collect()
    };

    for (lacking, named) in NEEDED {
        let container = agent().capabilities(&without(lacking));
        let done = container.command(&scene.world).start().finish(SECONDS);
        assert_eq!(done.status.code(), Some(1), "{lacking}: {done:?}");
        assert!(done.stderr.contains(named), "{lacking}: {done:?}");
    }

    // Without this one it starts, since there may be nothing to look into, and tells of what there is.
    let container = agent().capabilities(&without("CAP_SYS_PTRACE"));
    let mut lacking = Agent::by(container.command(&scene.world), &scene.world);
    lacking.wait_for_metric(
        "underpass_namespace_failures_total",
        &[("reason", "not_permitted")],
        1.0,
    );
    lacking
        .process()
        .wait_for_logged("the agent needs CAP_SYS_PTRACE");
    let curl = scene.curl("https://site.example/page").args(["-4"]);
    assert_ne!(curl.run(pod.command("curl")).exit, 0, "not past the tunnel");
    scene.world.expect_no_direct_arrivals();
}
