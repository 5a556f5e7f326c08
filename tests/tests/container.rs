//! The image in a real container runtime, with what the manifests grant it and no more: what a node sees
//! of `kubectl apply` and of uninstalling.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_tests::agent::Agent;
use underpass_tests::container::{Container, seen};
use underpass_tests::manifests::{documents, find, render};
use underpass_tests::pod::Node;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene, wait_for};

const SECONDS: Duration = Duration::from_secs(30);

/// The policy of the overlay, for the proxy of this world, as files: no cluster is here to be asked.
#[track_caller]
fn write_policy(scene: &Scene, manifests: &[Value]) {
    let directory = scene.world.dir().join("policy");
    fs::create_dir_all(&directory).must("make a directory");
    for (kind, name) in [("Tunnel", "everything"), ("Secret", "proxy-credentials")] {
        let text = find(manifests, kind, name).to_string();
        let text = text.replace("proxy.corp.example", "proxy.example");
        fs::write(directory.join(format!("{kind}.yaml")), text).must("write policy");
    }
}

/// The agent's container of the overlay, which captures the world's cgroup only.
#[track_caller]
fn agent(scene: &Scene) -> Container {
    let manifests = documents(&render("overlays/closed-all"));
    write_policy(scene, &manifests);
    let daemon_set = find(&manifests, "DaemonSet", "underpass");
    let cgroup = seen(scene.world.workload());
    Container::of(&scene.world, daemon_set)
        .replace(
            "--kubernetes",
            &["--policy", "/etc/underpass", "--cgroup", &cgroup],
        )
        .mount(&scene.world.dir().join("policy"), "/etc/underpass")
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
    let request = || {
        let curl = scene.curl("https://site.example/page").args(["-4"]);
        curl.run(pod.command("curl"))
    };

    let mut agent = Agent::by(agent(&scene).command(&scene.world), &scene.world);
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
    let all = agent(&scene).granted();
    assert_eq!(all, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]);
    let without = |name: &str| -> Vec<&str> {
        let others = all.iter().map(String::as_str);
        others.filter(|one| *one != name).collect()
    };

    for (lacking, named) in NEEDED {
        let container = agent(&scene).capabilities(&without(lacking));
        let done = container.command(&scene.world).start().finish(SECONDS);
        assert_eq!(done.status.code(), Some(1), "{lacking}: {done:?}");
        assert!(done.stderr.contains(named), "{lacking}: {done:?}");
    }

    // Without this one it starts, since there may be nothing to look into, and tells of what there is.
    let container = agent(&scene).capabilities(&without("CAP_SYS_PTRACE"));
    let mut agent = Agent::by(container.command(&scene.world), &scene.world);
    agent.wait_for_metric(
        "underpass_namespace_failures_total",
        &[("reason", "not_permitted")],
        1.0,
    );
    let said = agent.process().stderr();
    assert!(said.contains("the agent needs CAP_SYS_PTRACE"), "{said}");
    let curl = scene.curl("https://site.example/page").args(["-4"]);
    assert_ne!(curl.run(pod.command("curl")).exit, 0, "not past the tunnel");
    scene.world.expect_no_direct_arrivals();
}
