use tempfile::TempDir;

use super::*;
use crate::workload::Pod;

/// A directory for the hierarchy and one for `/proc`.
struct Node {
    directory: TempDir,
    workloads: Arc<Workloads>,
}

impl Node {
    fn new(subtree: &str) -> Self {
        Self::with(subtree, None)
    }

    fn with(subtree: &str, pods: Option<Arc<Pods>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (root, proc) = (
            directory.path().join("cgroup"),
            directory.path().join("proc"),
        );
        fs::create_dir(&root).unwrap();
        fs::create_dir(&proc).unwrap();
        let hierarchy = Hierarchy::at(&root, subtree);
        Self {
            workloads: Arc::new(Workloads::with(hierarchy, pods, proc, 8)),
            directory,
        }
    }

    fn path(&self, cgroup: &str) -> PathBuf {
        self.directory.path().join("cgroup").join(cgroup)
    }

    /// Makes a cgroup; its id.
    fn cgroup(&self, path: &str) -> u64 {
        fs::create_dir_all(self.path(path)).unwrap();
        fs::metadata(self.path(path)).unwrap().ino()
    }

    /// Has a process be in a cgroup, as it is shown.
    fn process(&self, pid: u32, shown: &str) {
        let directory = self.directory.path().join("proc").join(pid.to_string());
        fs::create_dir_all(&directory).unwrap();
        let text = format!("4:memory:/elsewhere\n0::{shown}\n");
        fs::write(directory.join("cgroup"), text).unwrap();
    }

    async fn cgroup_of(&self, id: u64, pid: u32) -> Option<String> {
        let workload = self.workloads.of(id, pid).await;
        workload.cgroup.as_deref().map(str::to_owned)
    }

    async fn walked(&self) -> bool {
        self.workloads.walk.lock().await.is_some()
    }
}

#[tokio::test]
async fn a_process_tells_its_cgroup() {
    let node = Node::new("/");
    let id = node.cgroup("system.slice/a.service");
    node.process(7, "/system.slice/a.service");
    let workload = node.workloads.of(id, 7).await;
    assert_eq!(workload.cgroup.as_deref(), Some("/system.slice/a.service"));
    assert_eq!(workload.unit.as_deref(), Some("a.service"));
    assert!(!node.walked().await);

    let root = fs::metadata(node.path("")).unwrap().ino();
    node.process(8, "/");
    assert_eq!(node.cgroup_of(root, 8).await.as_deref(), Some("/"));
}

#[tokio::test]
async fn a_process_that_is_gone_or_elsewhere_is_not_believed() {
    let node = Node::new("/");
    let a = node.cgroup("a.service");
    let b = node.cgroup("deep/er/b.service");
    node.process(7, "/a.service");
    assert_eq!(
        node.cgroup_of(b, 7).await.as_deref(),
        Some("/deep/er/b.service")
    );
    assert_eq!(node.cgroup_of(a, 8).await.as_deref(), Some("/a.service"));
    assert!(node.walked().await);
}

#[tokio::test]
async fn what_is_known_is_not_looked_for_again() {
    let node = Node::new("/");
    let id = node.cgroup("a.service");
    let first = node.workloads.of(id, 1).await;
    fs::remove_dir(node.path("a.service")).unwrap();
    let second = node.workloads.of(id, 1).await;
    assert!(Arc::ptr_eq(&first, &second));
}

#[tokio::test]
async fn what_is_not_there_is_forgotten_soon() {
    let node = Node::new("/");
    let id = node.cgroup("a.service");
    fs::rename(node.path("a.service"), node.directory.path().join("away")).unwrap();
    assert_eq!(node.cgroup_of(id, 1).await, None);
    fs::rename(node.directory.path().join("away"), node.path("a.service")).unwrap();
    // As if it had been long ago.
    {
        let mut table = node.workloads.table.write();
        let Some(Known::Nowhere(since, _)) = table.known.get_mut(&id) else {
            panic!("{table:?}");
        };
        *since = since.checked_sub(IGNORANCE).unwrap();
    }
    assert_eq!(node.cgroup_of(id, 1).await.as_deref(), Some("/a.service"));
}

#[tokio::test]
async fn one_walk_answers_all_that_was_asked_before() {
    let node = Node::new("/");
    let (a, b) = (node.cgroup("a.service"), node.cgroup("b.service"));
    let asked = Instant::now();
    assert!(node.workloads.walk_to(a, asked).await.is_some());
    let first = node.workloads.walk.lock().await.as_ref().unwrap().began();
    assert!(node.workloads.walk_to(b, asked).await.is_some());
    assert!(node.workloads.walk_to(u64::MAX, asked).await.is_none());
    let began = || async { node.workloads.walk.lock().await.as_ref().unwrap().began() };
    assert_eq!(began().await, first);
    let c = node.cgroup("c.service");
    assert!(node.workloads.walk_to(c, Instant::now()).await.is_some());
    assert!(began().await > first);
}

#[tokio::test]
async fn cgroups_that_are_gone_are_forgotten() {
    let node = Node::new("/");
    let (gone, kept) = (node.cgroup("gone"), node.cgroup("kept"));
    node.cgroup_of(gone, 1).await;
    node.cgroup_of(kept, 1).await;
    // Not removed: the number of a file may be used again at once, that of a cgroup is not.
    fs::rename(node.path("gone"), node.directory.path().join("away")).unwrap();
    {
        let swept = &mut node.workloads.table.write().swept;
        *swept = swept.checked_sub(SWEEP_INTERVAL).unwrap();
    }
    let other = node.cgroup("other");
    node.cgroup_of(other, 1).await;
    let table = node.workloads.table.read();
    assert!(!table.known.contains_key(&gone));
    assert!(table.known.contains_key(&kept) && table.known.contains_key(&other));
}

#[tokio::test]
async fn the_table_is_bounded_even_if_all_are_alive() {
    let node = Node::new("/");
    for number in 0..3 * node.workloads.capacity {
        let name = format!("{number}.service");
        let id = node.cgroup(&name);
        assert_eq!(node.cgroup_of(id, 1).await, Some(format!("/{name}")));
        assert!(node.workloads.table.read().known.len() <= node.workloads.capacity);
    }
}

#[tokio::test]
async fn a_part_that_is_mounted_and_a_namespace_are_seen_through() {
    // A container without a cgroup namespace: a part of the hierarchy is mounted.
    let node = Node::new("/machine.slice/box");
    let id = node.cgroup("a.service");
    node.process(7, "/machine.slice/box/a.service");
    let name = Some("/machine.slice/box/a.service");
    assert_eq!(node.cgroup_of(id, 7).await.as_deref(), name);
    assert!(!node.walked().await);
    let outside = node.cgroup("b.service");
    node.process(8, "/other/b.service");
    let name = Some("/machine.slice/box/b.service");
    assert_eq!(node.cgroup_of(outside, 8).await.as_deref(), name);

    // One with a namespace, in which the hierarchy of the node is mounted.
    let node = Node::new("/../../..");
    let (a, b) = (
        node.cgroup("system.slice/a.service"),
        node.cgroup("pods/one/b"),
    );
    node.process(7, "/../../../system.slice/a.service");
    node.process(8, "/../../one/b");
    let name = Some("/system.slice/a.service");
    assert_eq!(node.cgroup_of(a, 7).await.as_deref(), name);
    assert!(!node.walked().await);
    assert_eq!(node.cgroup_of(b, 8).await.as_deref(), Some("/pods/one/b"));
}

#[test]
fn pods_are_found_where_kubelet_puts_them() {
    for path in [
        "kubepods.slice",
        "kubepods",
        // As in kind, and wherever kubelet has a root of its own.
        "kubelet.slice/kubelet-kubepods.slice",
        "kubelet/kubepods",
        "k3s/kubepods",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy::at(directory.path(), "/");
        for other in [
            "init.scope",
            // Those of nodes inside of this one.
            "system.slice/docker-0a.scope/kubelet/kubepods",
            "docker/0a/kubelet.slice/kubelet-kubepods.slice",
        ] {
            fs::create_dir_all(directory.path().join(other)).unwrap();
        }
        assert_eq!(hierarchy.pods(), None);
        let made = directory.path().join(path);
        fs::create_dir_all(&made).unwrap();
        assert_eq!(hierarchy.pods(), Some(made.clone()));
        assert!(
            hierarchy
                .parents_of_pods()
                .contains(&made.parent().unwrap().to_owned())
        );
        // A pod's own do not matter.
        fs::create_dir_all(made.join("pod1/kubepods")).unwrap();
        assert_eq!(hierarchy.pods(), Some(made));
    }
}

#[tokio::test]
async fn what_is_named_is_found_by_the_outermost_cgroup() {
    let node = Node::new("/");
    for path in [
        "system.slice/a.service/payload",
        "system.slice/a.service-b",
        "system.slice/b.service",
        "kubepods.slice/kubepods-pod0f2c7c1e_3b54_4a38_9d2e_5b1f0a6c7d8e.slice/cri-containerd-0a1b2c3d4e5f.scope",
    ] {
        node.cgroup(path);
    }
    let root = node.workloads.hierarchy.root().to_owned();
    let found = |within: &Path, is_meant: &dyn Fn(&Workload) -> bool| -> Vec<String> {
        let found = node
            .workloads
            .outermost(within, |_, workload| is_meant(workload));
        let ids = found.iter().all(|(path, id)| is_of(path, *id));
        assert!(ids, "{found:?}");
        let paths = found
            .iter()
            .map(|(path, _)| path.strip_prefix(&root).unwrap());
        paths.map(|path| path.display().to_string()).collect()
    };
    let unit = |name: &'static str| {
        move |workload: &Workload| {
            workload
                .unit
                .as_deref()
                .is_some_and(|unit| unit.starts_with(name))
        }
    };
    assert_eq!(found(&root, &unit("a.service")), ["system.slice/a.service"]);
    let both = ["system.slice/a.service", "system.slice/b.service"];
    assert_eq!(found(&root, &|it| unit("a.")(it) || unit("b.")(it)), both);
    assert_eq!(found(&root.join("kubepods.slice"), &unit("a.")), [""; 0]);
    let pod = "kubepods.slice/kubepods-pod0f2c7c1e_3b54_4a38_9d2e_5b1f0a6c7d8e.slice";
    assert_eq!(found(&root, &|it| it.container.is_some()), [pod]);
}

#[tokio::test]
async fn a_way_out_of_the_hierarchy_is_not_followed() {
    let node = Node::new("/");
    let outside = node.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let id = fs::metadata(&outside).unwrap().ino();
    node.process(7, "/../outside");
    assert_eq!(node.cgroup_of(id, 7).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_what_the_api_server_tells_of_it() {
    const UID: &str = "0f2c7c1e-3b54-4a38-9d2e-5b1f0a6c7d8e";
    let pods = Arc::new(Pods::default());
    let node = Node::with("/", Some(Arc::clone(&pods)));
    let host = node.cgroup("system.slice/a.service");
    let container = node.cgroup(&format!("kubepods/pod{UID}/0a1b2c3d4e5f"));

    let workload = node.workloads.of(host, 1).await;
    assert!(!node.workloads.is_obscure(&workload));
    let workload = node.workloads.of(container, 1).await;
    assert!(
        node.workloads.is_obscure(&workload),
        "nobody has told of it"
    );

    let pod = |tier: &str| Pod {
        namespace: "shop".into(),
        name: "web-0".into(),
        labels: [("tier".to_owned(), tier.to_owned())].into(),
        ..Pod::default()
    };
    pods.replace([(UID.into(), pod("front"))]);
    let front = node.workloads.of(container, 1).await;
    assert!(!node.workloads.is_obscure(&front));
    assert_eq!(front.name.as_deref(), Some("web-0"));
    assert_eq!(front.labels["tier"], "front");
    assert!(front.cgroup.is_some());
    let again = node.workloads.of(container, 1).await;
    assert!(
        Arc::ptr_eq(&front, &again),
        "so that views are not made anew"
    );

    pods.replace([(UID.into(), pod("back"))]);
    assert_eq!(node.workloads.of(container, 1).await.labels["tier"], "back");
    // It was deleted by force, and its processes are still there.
    pods.replace([]);
    assert_eq!(node.workloads.of(container, 1).await.labels["tier"], "back");
}
