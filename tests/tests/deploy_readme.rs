//! `deploy/README.md`: each of its commands is carried out here, in order, in a copy of `deploy`; of those
//! that need a cluster it is shown that what they name is what was rendered and applied before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use underpass_tests::agent::binary;
use underpass_tests::container::image;
use underpass_tests::manifests::{build, deploy, documents, kustomize};
use underpass_tests::{Must as _, World};

const SECONDS: Duration = Duration::from_secs(30);

/// The lines of the fenced blocks.
#[track_caller]
fn commands() -> Vec<String> {
    let text = fs::read_to_string(deploy("README.md")).must("read deploy/README.md");
    let mut inside = false;
    let commands: Vec<String> = text
        .lines()
        .filter(|line| {
            let fence = line.starts_with("```");
            inside ^= fence;
            inside && !fence && !line.is_empty()
        })
        .map(str::to_owned)
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    commands
}

/// A copy of the repository's `deploy`, and the cluster as far as it can be without one: the objects that
/// were applied.
struct Copy {
    root: PathBuf,
    path: std::ffi::OsString,
    world: World,
    applied: Vec<Value>,
}

impl Copy {
    #[track_caller]
    fn new() -> Self {
        let world = World::new("deploy-readme");
        let root = world.dir().join("repository");
        fs::create_dir(&root).must("make a directory");
        let copy = Command::new("cp")
            .arg("-r")
            .arg(deploy(""))
            .arg(&root)
            .status();
        assert!(copy.must("start cp").success());
        // What the README calls by their names.
        let programs = [binary(), PathBuf::from(kustomize().get_program())];
        let directories = programs.iter().filter_map(|program| program.parent());
        let old = std::env::var_os("PATH").unwrap_or_default();
        let path = directories
            .map(Path::to_owned)
            .chain(std::env::split_paths(&old));
        Self {
            path: std::env::join_paths(path).must("join paths"),
            root,
            world,
            applied: Vec::new(),
        }
    }

    /// Carries out a command; one that nothing here knows is an error.
    #[track_caller]
    fn run(&mut self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        match &words[..] {
            // Else there were no image to unpack.
            ["cargo", "xtask", "image"] => assert!(!image().is_empty()),
            ["skopeo", "copy", source, target] => self.copy_image(source, target),
            ["cp", ..] | ["(cd", ..] | ["underpass", ..] => self.shell(command),
            ["kubectl", "apply", "-k", folder] => self.apply(folder),
            ["kubectl", "delete", "-k", folder] => {
                for object in self.render(folder) {
                    let found = self.applied.iter().any(|one| is_same(one, &object));
                    assert!(found, "{command}: {} was never applied", name(&object));
                    self.applied.retain(|one| !is_same(one, &object));
                }
            }
            ["kubectl", "wait", "--for=condition=Established", definition] => {
                let (_, of) = definition.split_once('/').expect("crd/NAME");
                self.applied("CustomResourceDefinition", of);
            }
            ["kubectl", "-n", namespace, "rollout", "status", set]
            | ["kubectl", "-n", namespace, "logs", set]
            | [
                "kubectl",
                "-n",
                namespace,
                "exec",
                set,
                "--",
                "underpass",
                "status",
            ] => {
                let (kind, name) = set.split_once('/').expect("KIND/NAME");
                assert_eq!(kind, "daemonset");
                assert_eq!(
                    self.applied("DaemonSet", name)["metadata"]["namespace"],
                    **namespace
                );
            }
            ["kubectl", "-n", namespace, "delete", "daemonset", name] => {
                let gone = self.applied("DaemonSet", name).clone();
                assert_eq!(gone["metadata"]["namespace"], **namespace);
            }
            // `container.rs` has this request, in a pod and through the image's agent.
            ["kubectl", "run", _, image, _, _, _, "--", "curl", ..] => {
                assert!(image.starts_with("--image="));
            }
            _ => panic!("nobody knows what comes of `{command}`"),
        }
    }

    #[track_caller]
    fn shell(&self, command: &str) {
        let shell = self.world.host().command("sh").env("PATH", &self.path);
        let script = format!("cd '{}' && {command}", self.root.display());
        shell.args(["-c", &script]).run(SECONDS).expect_success();
    }

    /// What is to be copied is there, and what the nodes are told to pull is where it goes.
    #[track_caller]
    fn copy_image(&self, source: &str, target: &str) {
        let made = image();
        let (layout, tag) = made.rsplit_once(':').expect("a tag");
        let folder = Path::new(layout).file_name().expect("a folder");
        assert_eq!(source, format!("oci:target/{}:{tag}", folder.display()));
        let edits = commands();
        let told = target.strip_prefix("docker://").expect("a registry");
        for folder in ["base", "uninstall"] {
            let edit = format!(
                "(cd deploy/kubernetes/{folder} && kustomize edit set image underpass={told})"
            );
            assert!(edits.contains(&edit), "no {edit}");
        }
    }

    #[track_caller]
    fn render(&self, folder: &str) -> Vec<Value> {
        documents(&build(&self.root.join(folder)))
    }

    /// A kind must be there before its objects, and a namespace before what is in it.
    #[track_caller]
    fn apply(&mut self, folder: &str) {
        let rendered = self.render(folder);
        for object in &rendered {
            let has = |kind: &str, name: &str, among: &[Value]| {
                let mut among = among.iter();
                among.any(|one| one["kind"] == kind && one["metadata"]["name"] == name)
            };
            if object["apiVersion"] == "underpass.dev/v1alpha1" {
                let kind = object["kind"].as_str().expect("a kind").to_lowercase();
                let definition = format!("{kind}s.underpass.dev");
                let there = has("CustomResourceDefinition", &definition, &self.applied);
                assert!(there, "{folder}: {} before its kind", name(object));
            }
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                let there = has("Namespace", namespace, &self.applied)
                    || has("Namespace", namespace, &rendered);
                assert!(there, "{folder}: no namespace for {}", name(object));
            }
            if object["kind"] == "DaemonSet" {
                let image = &object["spec"]["template"]["spec"]["containers"][0]["image"];
                let image = image.as_str().expect("an image");
                assert!(image.starts_with("registry.corp.example/"), "{image}");
            }
        }
        for object in rendered {
            self.applied.retain(|one| !is_same(one, &object));
            self.applied.push(object);
        }
    }

    #[track_caller]
    fn applied(&self, kind: &str, of: &str) -> &Value {
        let mut all = self.applied.iter();
        let found = all.find(|one| one["kind"] == kind && one["metadata"]["name"] == of);
        found.unwrap_or_else(|| panic!("no {kind} {of} was applied"))
    }
}

fn is_same(one: &Value, other: &Value) -> bool {
    name(one) == name(other)
}

/// Kind, namespace and name.
fn name(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!(
        "{} {}/{}",
        object["kind"], metadata["namespace"], metadata["name"]
    )
}

#[test]
fn every_command_is_carried_out() {
    let mut copy = Copy::new();
    for command in commands() {
        copy.run(&command);
    }
    let left: Vec<String> = copy.applied.iter().map(name).collect();
    assert!(left.is_empty(), "uninstalling leaves {left:?}");
}

/// The folders of its table; links are looked after with those of all documents.
#[test]
fn what_its_table_names_is_there() {
    let text = fs::read_to_string(deploy("README.md")).must("read deploy/README.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split_once("` |").map(|(cell, _)| cell));
    let named: Vec<&str> = cells.flat_map(|cell| cell.split("`, `")).collect();
    assert!(named.len() > 5, "{named:?}");
    for path in named {
        assert!(deploy(path).exists(), "{path}");
    }
}

/// The unit for hosts: systemd understands it, and it grants what the DaemonSet grants.
#[test]
fn the_unit_is_one_to_systemd_and_grants_the_same() {
    let world = World::new("deploy-unit");
    let unit = fs::read_to_string(deploy("systemd/underpass.service")).must("read the unit");
    let file = world.dir().join("underpass.service");
    let here = unit.replace("/usr/local/bin/underpass", &binary().display().to_string());
    fs::write(&file, here).must("write the unit");
    let analyze = |arguments: &[&str]| {
        let command = world.host().command("systemd-analyze").args(arguments);
        let done = command.arg(&file).run(SECONDS).expect_success();
        format!("{}{}", done.stdout, done.stderr)
    };
    let said = analyze(&["verify", "--man=no"]);
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("underpass"))
        .collect();
    assert!(ours.is_empty(), "{said}");
    // The exposure that it may have, of 100, most of which is for what an agent of a node is.
    analyze(&["security", "--offline=true", "--threshold=60", "--no-pager"]);

    let granted = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let granted: Vec<&str> = granted.expect("capabilities").split(' ').collect();
    let rendered = documents(&underpass_tests::manifests::render("base"));
    let set = underpass_tests::manifests::find(&rendered, "DaemonSet", "underpass");
    let security = &set["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    let added = security["capabilities"]["add"].as_array().expect("added");
    let added: Vec<String> = added
        .iter()
        .map(|name| format!("CAP_{}", name.as_str().expect("a name")))
        .collect();
    assert_eq!(granted, added);
}
