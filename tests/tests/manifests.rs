//! What is in `deploy/kubernetes`: rendered, valid to Kubernetes, and granting what the agent does at the
//! API server and no more.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::agent::underpass;
use underpass_tests::container::image;
use underpass_tests::manifests::{deploy, documents, find, render};
use underpass_tests::process::Finished;
use underpass_tests::{Must as _, World, tools};

const SECONDS: Duration = Duration::from_secs(30);

/// The oldest that has every field that we use, and the newest that the validator knows.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

/// Kinds that Kubernetes has no schema of.
const CUSTOM: [&str; 3] = ["Tunnel", "PodMonitor", "PrometheusRule"];

/// Every folder that kustomize can be asked to build.
fn folders() -> Vec<String> {
    let overlays = fs::read_dir(deploy("kubernetes/overlays")).must("list the overlays");
    let overlays = overlays.map(|entry| {
        let name = entry.must("list the overlays").file_name();
        format!("overlays/{}", name.to_string_lossy())
    });
    let mut folders: Vec<String> = overlays.collect();
    folders.sort();
    folders.extend(["base".to_owned(), "uninstall".to_owned()]);
    folders
}

#[track_caller]
fn validate(world: &World, file: &Path, version: &str) -> Finished {
    let program = tools::find("kubernetes-validate/bin/kubernetes-validate");
    let program = program.expect("no kubernetes-validate: `cargo xtask setup` installs it");
    let command = world.host().command(program);
    let command = command.args(["--strict", "--quiet", "-k", version]);
    command.arg(file).run(SECONDS)
}

#[test]
fn every_overlay_is_valid_to_kubernetes() {
    let world = World::new("manifests");
    for folder in folders() {
        let file = world.dir().join("rendered.yaml");
        let rendered = render(&folder);
        fs::write(&file, &rendered).must("write what was rendered");
        for version in KUBERNETES {
            let done = validate(&world, &file, version).expect_success();
            let said = format!("{}{}", done.stdout, done.stderr);
            let unknown: Vec<_> = said
                .lines()
                .filter(|line| {
                    !CUSTOM
                        .iter()
                        .any(|kind| line.contains(&format!("for kind {kind} ")))
                })
                .collect();
            assert!(unknown.is_empty(), "{folder}, {version}: {unknown:?}");
        }

        // It is strict, of a pod too.
        if folder == "base" {
            let wrong = rendered.replace("hostPID: true", "hostPid: true");
            assert_ne!(wrong, rendered);
            fs::write(&file, wrong).must("write a wrong manifest");
            let done = validate(&world, &file, KUBERNETES[1]);
            assert!(!done.status.success(), "{done:?}");
        }
    }
}

/// The documents for the agent itself, as it reads them.
#[test]
fn policy_in_overlays_and_examples_is_valid_to_the_agent() {
    let world = World::new("manifests-policy");
    let file = world.dir().join("policy.yaml");
    let check = |what: &str, text: &str| {
        fs::write(&file, text).must("write policy");
        let done = underpass(&world).arg("check").arg(&file).run(SECONDS);
        assert!(done.status.success(), "{what}: {done:?}");
    };
    for folder in folders() {
        let ours: Vec<String> = documents(&render(&folder))
            .iter()
            .filter(|document| {
                let version = document["apiVersion"].as_str().unwrap_or_default();
                version.starts_with("underpass.dev/") || document["kind"] == "Secret"
            })
            .map(Value::to_string)
            .collect();
        check(&folder, &ours.join("\n---\n"));
    }
}

/// What the agent does at the API server: for each resource the verbs.
const DONE: [(&str, &str, &[&str]); 11] = [
    ("", "pods", &["list", "watch"]),
    ("", "services", &["list", "watch"]),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    (
        "networking.istio.io",
        "destinationrules",
        &["list", "watch"],
    ),
    ("networking.istio.io", "serviceentries", &["list", "watch"]),
    ("networking.istio.io", "virtualservices", &["list", "watch"]),
    ("underpass.dev", "destinationrules", &["list", "watch"]),
    ("underpass.dev", "serviceentries", &["list", "watch"]),
    ("underpass.dev", "tunnels", &["list", "watch"]),
    ("underpass.dev", "tunnels/status", &["patch"]),
];

/// A permission: group, resource, verb.
type Grant = (String, String, String);

#[track_caller]
fn grants(role: &Value) -> BTreeSet<Grant> {
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list");
        list.iter()
            .map(|text| text.as_str().expect("text").to_owned())
            .collect()
    };
    let mut grants = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    let is_new = grants.insert((group.clone(), resource.clone(), verb));
                    assert!(is_new, "granted twice: {rule}");
                }
            }
        }
    }
    grants
}

/// Kind, namespace and role of every binding, all of them for the agent's service account.
#[track_caller]
fn bindings(folder: &str) -> BTreeSet<[String; 3]> {
    let rendered = documents(&render(folder));
    let bindings = rendered.iter().filter(|document| {
        let kind = document["kind"].as_str().unwrap_or_default();
        kind.ends_with("RoleBinding")
    });
    bindings
        .map(|binding| {
            assert_eq!(binding["subjects"].as_array().map(Vec::len), Some(1));
            assert_eq!(binding["subjects"][0]["kind"], "ServiceAccount");
            assert_eq!(binding["subjects"][0]["name"], "underpass");
            assert_eq!(binding["subjects"][0]["namespace"], "underpass-system");
            let (metadata, role) = (&binding["metadata"], &binding["roleRef"]["name"]);
            [&binding["kind"], &metadata["namespace"], role]
                .map(|text| text.as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

#[test]
fn what_the_agent_does_at_the_api_server_is_granted_and_nothing_more() {
    let rendered = documents(&render("base"));
    let done: BTreeSet<Grant> = DONE
        .iter()
        .flat_map(|(group, resource, verbs)| {
            verbs
                .iter()
                .map(|verb| [*group, *resource, *verb].map(str::to_owned).into())
        })
        .collect();
    assert_eq!(grants(find(&rendered, "ClusterRole", "underpass")), done);
    // Secrets and Leases: in the root namespace only.
    for (name, group, resource, verbs) in [
        ("underpass-secrets", "", "secrets", &["list", "watch"][..]),
        (
            "underpass-leases",
            "coordination.k8s.io",
            "leases",
            &["get", "list", "create", "update", "patch", "delete"][..],
        ),
    ] {
        let expected: BTreeSet<Grant> = verbs
            .iter()
            .map(|verb| [group, resource, *verb].map(str::to_owned).into())
            .collect();
        let granted = grants(find(&rendered, "ClusterRole", name));
        assert_eq!(granted, expected, "{name}");
    }
    for (folder, root) in [
        ("base", "underpass-system"),
        ("overlays/istio", "istio-system"),
    ] {
        assert_eq!(
            bindings(folder),
            BTreeSet::from([
                ["ClusterRoleBinding", "", "underpass"].map(str::to_owned),
                ["RoleBinding", root, "underpass-leases"].map(str::to_owned),
                ["RoleBinding", root, "underpass-secrets"].map(str::to_owned),
            ]),
            "{folder}"
        );
    }
    // The uninstaller asks nothing of the API.
    let uninstall = documents(&render("uninstall"));
    let pod = &find(&uninstall, "DaemonSet", "underpass-detach")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
}

/// No pod of ours is privileged, and each says what it needs.
#[test]
fn pods_have_what_they_need_and_no_more() {
    for (folder, name, capabilities) in [
        (
            "base",
            "underpass",
            &["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"][..],
        ),
        ("uninstall", "underpass-detach", &["SYS_ADMIN"][..]),
    ] {
        let rendered = documents(&render(folder));
        let pod = &find(&rendered, "DaemonSet", name)["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let security = &container["securityContext"];
        assert_eq!(security["privileged"], Value::Null, "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        let added = security["capabilities"]["add"].as_array().expect("added");
        assert_eq!(added, capabilities, "{name}");
        assert_eq!(
            security["seccompProfile"]["type"], "RuntimeDefault",
            "{name}"
        );
        // Every node, also one that is full or not well.
        assert_eq!(pod["priorityClassName"], "system-node-critical", "{name}");
        assert_eq!(pod["tolerations"][0]["operator"], "Exists", "{name}");
        let image = format!("underpass:{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(container["image"], image, "{name}");
    }
}

/// Programs that have nothing to do with ours find what a registry and a runtime look for.
#[test]
fn the_image_is_one_to_others() {
    let image = image();
    let (layout, tag) = image.rsplit_once(':').expect("a tag");
    let umoci = |arguments: &[&str]| {
        let done = Command::new("umoci")
            .args(arguments)
            .output()
            .must("start umoci");
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).must("read what umoci says")
    };
    assert_eq!(umoci(&["list", "--layout", layout]).trim(), tag);
    let told = umoci(&["stat", "--image", &image, "--json"]);
    let told: Value = serde_json::from_str(&told).must("read JSON");
    let history = told["history"].as_array().expect("a history");
    assert_eq!(history.len(), 1, "one layer: {told}");

    // The Dockerfile, for those who have an engine, says the same of how it is to be run.
    let dockerfile = fs::read_to_string(deploy("Dockerfile")).must("read the Dockerfile");
    let index = fs::read_to_string(Path::new(layout).join("index.json")).must("read the index");
    let blob = |json: &str, pointer: &str| -> String {
        let json: Value = serde_json::from_str(json).must("read JSON");
        let digest = json.pointer(pointer).and_then(Value::as_str);
        let digest = digest.expect("a digest").replace(':', "/");
        fs::read_to_string(Path::new(layout).join("blobs").join(digest)).must("read a blob")
    };
    let config = blob(&blob(&index, "/manifests/0/digest"), "/config/digest");
    let config: Value = serde_json::from_str(&config).must("read JSON");
    let config = &config["config"];
    let environment = config["Env"][0].as_str().expect("an environment");
    for line in [
        format!("USER {}", config["User"].as_str().expect("a user")),
        format!("ENV {environment}"),
        format!("ENTRYPOINT {}", config["Entrypoint"]),
    ] {
        assert!(dockerfile.lines().any(|one| one == line), "{line}");
    }
}
