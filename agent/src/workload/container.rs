//! Which pod a cgroup is of, by the names that kubelet and container runtimes give to cgroups.

/// A container of a pod, or the pod itself.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Container {
    /// The pod, as its cgroup has it: its `metadata.uid`, and of a static pod the hash of its
    /// manifest (`kubernetes.io/config.hash`).
    pub pod: Box<str>,
    /// The container in it, by the id that the runtime gave it; `None`: what is directly in the
    /// pod's cgroup.
    pub id: Option<Box<str>>,
}

/// Shortest ids of containers that are believed: CRI has 64 hexadecimal digits, some runtimes fewer.
const SHORTEST_ID: usize = 12;

impl Container {
    /// The container whose cgroup is at `path`, or above it: a container may have cgroups of its
    /// own below. Of nested nodes (kind, k3d) the innermost is meant.
    ///
    /// | driver | pod | container |
    /// |---|---|---|
    /// | systemd | `kubepods-burstable-pod0a1b_2c.slice` | `cri-containerd-ID.scope`, `crio-ID.scope` |
    /// | cgroupfs | `kubepods/burstable/pod0a1b-2c` | `ID`, `crio-ID` |
    ///
    /// Kubelet's own root may stand before (`kubelet-kubepods.slice`), and the runtime's service
    /// between (`system.slice/containerd.service/kubepods-…-podUID.slice:cri-containerd:ID`, of a
    /// containerd that is not told of systemd).
    pub fn in_cgroup(path: &str) -> Option<Self> {
        let mut parts = path.rsplit('/');
        let mut below: Option<&str> = None;
        loop {
            let part = parts.next()?;
            if let Some((slice, id)) = part.split_once(".slice:") {
                let pod = of_slice(slice)?;
                let id = id.rsplit(':').next().and_then(container_id);
                return Some(Self::new(pod, id));
            }
            let of_systemd = part.strip_suffix(".slice").and_then(of_slice);
            let pod = of_systemd.or_else(|| {
                let uid = part.strip_prefix("pod").filter(|uid| is_uid(uid))?;
                // A directory of that name anywhere else is nobody's pod.
                let is_of_kubelet = |part: &str| part.contains("kubepods");
                parts.clone().any(is_of_kubelet).then(|| uid.to_owned())
            });
            if let Some(pod) = pod {
                return Some(Self::new(pod, below.and_then(container_id)));
            }
            below = Some(part);
        }
    }

    fn new(pod: String, id: Option<&str>) -> Self {
        Self {
            pod: pod.into(),
            id: id.map(Into::into),
        }
    }
}

/// The pod of `kubepods-burstable-podUID`, where dashes are levels and so stand as underscores.
fn of_slice(name: &str) -> Option<String> {
    let (above, uid) = name.rsplit_once("-pod")?;
    let is_kubelets = above.split('-').any(|level| level == "kubepods");
    (is_kubelets && is_uid(uid)).then(|| uid.replace('_', "-"))
}

/// A UUID, or the hash of a static pod's manifest.
fn is_uid(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-' || byte == b'_';
    text.len() >= 32 && text.bytes().all(is_part)
}

/// The id in `cri-containerd-ID.scope`, `crio-ID`, `ID`; none in what a runtime has beside
/// containers (`crio-conmon-ID.scope`).
fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    if name.contains("conmon") {
        return None;
    }
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    let is_id = id.len() >= SHORTEST_ID && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2c7c1e-3b54-4a38-9d2e-5b1f0a6c7d8e";
    const ID: &str = "3f4e9ab1c0de3f4e9ab1c0de3f4e9ab1c0de3f4e9ab1c0de3f4e9ab1c0de0a1b";

    #[track_caller]
    fn expect(path: &str, expected: Option<(&str, Option<&str>)>) {
        let path = path
            .replace("ID", ID)
            .replace("U_D", &UID.replace('-', "_"))
            .replace("U-D", UID);
        let found = Container::in_cgroup(&path);
        let found = found
            .as_ref()
            .map(|found| (&*found.pod, found.id.as_deref()));
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn both_drivers_and_every_runtime_are_read() {
        for path in [
            // containerd and CRI-O with systemd, every class of service.
            "/kubepods.slice/kubepods-podU_D.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_D.slice/crio-ID.scope",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/docker-ID.scope",
            // With cgroupfs.
            "/kubepods/podU-D/ID",
            "/kubepods/burstable/podU-D/ID",
            "/kubepods/besteffort/podU-D/crio-ID",
            // Below a root of kubelet's own, as kind has it; in a node that is a container.
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podU_D.slice/cri-containerd-ID.scope",
            "/system.slice/docker-ID.scope/kubelet/kubepods/burstable/podU-D/ID",
            "/docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_D.slice/cri-containerd-ID.scope",
            "/k3s/kubepods/podU-D/ID",
            // A containerd that was not told of systemd.
            "/system.slice/containerd.service/kubepods-burstable-podU_D.slice:cri-containerd:ID",
            // What a container makes below itself.
            "/kubepods.slice/kubepods-podU_D.slice/cri-containerd-ID.scope/init.scope",
            "/kubepods/podU-D/ID/system.slice/nginx.service",
            // Seen from a cgroup namespace.
            "/../../kubepods.slice/kubepods-podU_D.slice/cri-containerd-ID.scope",
        ] {
            expect(path, Some((UID, Some(ID))));
        }
    }

    #[test]
    fn what_is_in_the_pod_and_in_no_container_is_of_the_pod() {
        for path in [
            "/kubepods.slice/kubepods-podU_D.slice",
            "/kubepods/burstable/podU-D",
            "/kubepods.slice/kubepods-podU_D.slice/crio-conmon-ID.scope",
        ] {
            expect(path, Some((UID, None)));
        }
    }

    #[test]
    fn static_pods_are_called_after_their_manifests() {
        let hash = "d0c1a5b3e2f4968778695a4b3c2d1e0f";
        expect(
            &format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice/cri-containerd-ID.scope"
            ),
            Some((hash, Some(ID))),
        );
        expect(
            &format!("/kubepods/burstable/pod{hash}/ID"),
            Some((hash, Some(ID))),
        );
    }

    #[test]
    fn a_node_in_a_pod_has_pods_of_its_own() {
        let outer = "11111111-2222-3333-4444-555555555555";
        expect(
            &format!("/kubepods/pod{outer}/ID/kubelet/kubepods/burstable/podU-D/ID"),
            Some((UID, Some(ID))),
        );
    }

    #[test]
    fn nothing_else_is_taken_for_a_pod() {
        for path in [
            "/",
            "/kubepods.slice",
            "/kubepods.slice/kubepods-burstable.slice",
            "/system.slice/kubelet.service",
            "/system.slice/docker-ID.scope",
            "/user.slice/user-1000.slice/podU-D/ID",
            "/user.slice/podman-podU_D.slice/libpod-ID.scope",
            "/kubepods/podshort/ID",
            "/kubepods.slice/kubepods-pod.slice/x",
        ] {
            expect(path, None);
        }
    }
}
