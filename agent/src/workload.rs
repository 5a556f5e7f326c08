//! Who a connection comes from, in the words that policy knows.

mod container;
mod pods;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use container::Container;
pub use pods::{Owner, Pod, Pods};

/// The identity of a workload, as far as it is known. What is not known matches no rule that asks
/// for it.
///
/// All of it is taken from the kernel, systemd and Kubernetes, nothing from the workload itself:
/// a process cannot choose its cgroup without the right to move itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Workload {
    /// The cgroup, as a path from the root of the cgroup v2 hierarchy:
    /// `/system.slice/backup.service`.
    pub cgroup: Option<Box<str>>,
    /// The systemd unit, of the system or of a user: `backup.service`, `session-3.scope`.
    pub unit: Option<Box<str>>,
    /// The container of a pod that the cgroup is of.
    pub container: Option<Container>,
    /// The namespace of the pod.
    pub namespace: Option<Box<str>>,
    /// The service account of the pod.
    pub service_account: Option<Box<str>>,
    /// The labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// The name of the pod.
    pub name: Option<Box<str>>,
    /// What has made the pod, and makes it again.
    pub owner: Option<Owner>,
    /// Whether it is on the network of the node itself, where that is told apart: in a cluster only
    /// rules that name workloads are about it.
    pub host_network: bool,
}

impl Workload {
    /// What the cgroup at `path`, counted from the root of the hierarchy, tells.
    pub fn in_cgroup(path: &str) -> Self {
        Self {
            cgroup: Some(path.into()),
            unit: unit(path).map(Into::into),
            container: Container::in_cgroup(path),
            ..Self::default()
        }
    }

    /// The same, of which the API server tells that it is part of this pod.
    #[must_use]
    pub fn of_pod(&self, pod: &Pod) -> Self {
        Self {
            namespace: Some(pod.namespace.clone()),
            service_account: pod.service_account.clone(),
            labels: pod.labels.clone(),
            name: Some(pod.name.clone()),
            owner: pod.owner.clone(),
            ..self.clone()
        }
    }

    /// The container that it is, by the id that its runtime gave it.
    pub fn container_id(&self) -> Option<&str> {
        self.container.as_ref()?.id.as_deref()
    }

    /// Whether it belongs to a pod of which nothing but its cgroup is known.
    pub fn is_unknown_pod(&self) -> bool {
        self.container.is_some() && self.namespace.is_none()
    }
}

/// A workload, and what of it is the node's and the cluster's to tell.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// What its cgroup tells.
    seen: Arc<Workload>,
    /// What the API server tells besides, and the whole.
    known: Option<(Arc<Pod>, Arc<Workload>)>,
}

impl Identity {
    /// Of what a cgroup tells.
    pub fn new(seen: Workload) -> Self {
        Self {
            seen: Arc::new(seen),
            known: None,
        }
    }

    /// The pod that it is of, by the name that its cgroup has for it.
    pub fn pod_uid(&self) -> Option<&str> {
        Some(&self.seen.container.as_ref()?.pod)
    }

    /// All that is known, if it is known what the pod is. Who is gone from the API stays who he was
    /// as long as his processes are there.
    pub fn if_still(&self, pod: Option<&Arc<Pod>>) -> Option<&Arc<Workload>> {
        let (known, whole) = self.known.as_ref()?;
        pod.is_none_or(|pod| Arc::ptr_eq(pod, known))
            .then_some(whole)
    }

    /// The same, of this pod as it is now.
    #[must_use]
    pub fn of_pod(&self, pod: Arc<Pod>) -> Self {
        let whole = Arc::new(self.seen.of_pod(&pod));
        Self {
            seen: Arc::clone(&self.seen),
            known: Some((pod, whole)),
        }
    }

    /// All that is known.
    pub fn workload(&self) -> &Arc<Workload> {
        self.known.as_ref().map_or(&self.seen, |(_, whole)| whole)
    }
}

/// The innermost service or scope. That of a user is below `user@UID.service`, which runs it; and
/// what a unit makes below itself, as containers do, is still that unit.
fn unit(path: &str) -> Option<&str> {
    path.rsplit('/')
        // Systemd puts this before names that the kernel could take for files of its own.
        .map(|part| part.strip_prefix('_').unwrap_or(part))
        .find(|part| {
            [".service", ".scope"]
                .iter()
                .any(|kind| part.strip_suffix(kind).is_some_and(|name| !name.is_empty()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_service_or_scope() {
        for (path, unit) in [
            ("/system.slice/backup.service", Some("backup.service")),
            (
                "/system.slice/backup.service/payload",
                Some("backup.service"),
            ),
            (
                "/system.slice/docker-0a1b.scope/init",
                Some("docker-0a1b.scope"),
            ),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                Some("getty@tty1.service"),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                Some("session-3.scope"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service",
                Some("sync.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                Some("init.scope"),
            ),
            ("/system.slice/_memory.service", Some("memory.service")),
            ("/system.slice", None),
            ("/machines/.service/one", None),
            ("/", None),
        ] {
            let workload = Workload::in_cgroup(path);
            assert_eq!(workload.unit.as_deref(), unit, "{path}");
            assert_eq!(workload.cgroup.as_deref(), Some(path));
        }
    }
}
