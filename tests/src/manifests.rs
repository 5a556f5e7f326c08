//! The Kubernetes manifests of `deploy/kubernetes`, as kustomize renders them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Must as _, tools};

/// A folder below `deploy` of the repository.
pub fn deploy(folder: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().expect("the repository");
    root.join("deploy").join(folder)
}

/// What `kustomize build` makes of a folder of `deploy/kubernetes`, as text.
#[track_caller]
pub fn render(folder: &str) -> String {
    build(&deploy("kubernetes").join(folder))
}

/// What `kustomize build` makes of a directory, as text.
#[track_caller]
pub fn build(directory: &Path) -> String {
    let done = kustomize().arg("build").arg(directory).output();
    let done = done.must("start kustomize");
    assert!(
        done.status.success(),
        "{}: {}",
        directory.display(),
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).must("read what kustomize has made")
}

/// The program that set-up has unpacked.
#[track_caller]
pub fn kustomize() -> Command {
    let program = tools::find("kustomize/usr/bin/kustomize");
    Command::new(program.expect("no kustomize: `cargo xtask setup` unpacks it"))
}

/// The documents of a text.
#[track_caller]
pub fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).must("read YAML")
}

/// The one document of a kind and name.
#[track_caller]
pub fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = documents
        .iter()
        .filter(|document| document["kind"] == kind && document["metadata"]["name"] == name);
    let Some(document) = found.next() else {
        panic!("no {kind} {name}");
    };
    assert!(found.next().is_none(), "several of {kind} {name}");
    document
}
