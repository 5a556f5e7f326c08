//! Who a connection comes from, in the words that policy knows.

use std::collections::BTreeMap;

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
    /// The namespace of the pod.
    pub namespace: Option<Box<str>>,
    /// The service account of the pod.
    pub service_account: Option<Box<str>>,
    /// The labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// The name of the pod.
    pub name: Option<Box<str>>,
}

impl Workload {
    /// What the cgroup at `path`, counted from the root of the hierarchy, tells.
    pub fn in_cgroup(path: &str) -> Self {
        Self {
            cgroup: Some(path.into()),
            unit: unit(path).map(Into::into),
            ..Self::default()
        }
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
