//! What is in `deploy/kubernetes`: rendered, and valid to Kubernetes and to the agent.

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
