//! What a Pod tells of a workload.

use k8s_openapi::api::core::v1::Pod as Object;
use kube::api::DynamicObject;

use crate::workload::{Owner, Pod};

/// The annotation of a pod that kubelet has from a file and the API server only mirrors: its cgroup is
/// named after what this says, and not after the uid of the mirror.
const STATIC: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What the pod's cgroup calls it, and what is known of it.
pub(super) fn pod(object: DynamicObject) -> Option<(Box<str>, Pod)> {
    let Object { metadata, spec, .. } = object.try_parse().ok()?;
    let spec = spec?;
    let annotations = metadata.annotations.unwrap_or_default();
    let of_file = annotations
        .get(STATIC)
        .filter(|_| annotations.contains_key(MIRROR));
    let uid = match of_file {
        Some(hash) => hash.as_str().into(),
        None => metadata.uid?.into(),
    };
    let labels = metadata.labels.unwrap_or_default();
    let owners = metadata.owner_references.unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.controller == Some(true));
    let pod = Pod {
        namespace: metadata.namespace?.into(),
        name: metadata.name?.into(),
        owner: owner.map(|owner| Owner::of(&owner.kind, &owner.name, &labels)),
        service_account: spec.service_account_name.map(Into::into),
        labels,
    };
    Some((uid, pod))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value) -> (Box<str>, Pod) {
        pod(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_tells_who_its_processes_are() {
        let (uid, pod) = read(json!({
            "metadata": {
                "name": "web-5d8c7f9b4-x", "namespace": "shop", "uid": "u-1",
                "labels": {"app": "web", "pod-template-hash": "5d8c7f9b4"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                                     "name": "web-5d8c7f9b4", "uid": "r"}],
            },
            "spec": {"serviceAccountName": "web", "containers": [], "nodeName": "node-1"},
        }));
        assert_eq!(&*uid, "u-1");
        assert_eq!((&*pod.namespace, &*pod.name), ("shop", "web-5d8c7f9b4-x"));
        let owner = pod.owner.unwrap();
        assert_eq!((&*owner.kind, &*owner.name), ("Deployment", "web"));
        assert_eq!(pod.service_account.as_deref(), Some("web"));
    }

    #[test]
    fn a_pod_of_a_file_is_known_by_what_kubelet_calls_it() {
        let (uid, _) = read(json!({
            "metadata": {"name": "proxy-node-1", "namespace": "kube-system", "uid": "mirror",
                         "annotations": {STATIC: "abc", MIRROR: "abc"}},
            "spec": {"hostNetwork": true, "containers": []},
        }));
        assert_eq!(&*uid, "abc");
    }
}
