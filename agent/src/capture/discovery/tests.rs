use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// A cgroup with one child, and a `/proc`: processes 7 and 8 are in one namespace, 9 in another.
struct Scene {
    directory: TempDir,
    discovery: Discovery,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = directory.path().join("cgroup");
        fs::create_dir_all(cgroup.join("pod")).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "7\n").unwrap();
        fs::write(cgroup.join("pod/cgroup.procs"), "8\n9\n0\n10\n").unwrap();
        let proc = directory.path().join("proc");
        for (process, namespace) in [(7, "a"), (8, "a"), (9, "b"), (11, "c")] {
            let namespace = directory.path().join(namespace);
            fs::write(&namespace, "").unwrap();
            let ns = proc.join(process.to_string()).join("ns");
            fs::create_dir_all(&ns).unwrap();
            std::os::unix::fs::symlink(namespace, ns.join("net")).unwrap();
        }
        let mut discovery = Discovery::new().unwrap();
        discovery.proc = proc;
        Self {
            directory,
            discovery,
        }
    }

    fn inode(&self, namespace: &str) -> u64 {
        let path = self.directory.path().join(namespace);
        fs::metadata(path).unwrap().ino()
    }

    fn look(&self, newcomers: &[u32]) -> Sight {
        let cgroup = self.directory.path().join("cgroup");
        self.discovery.look(&[cgroup], newcomers)
    }

    fn seen(&self, newcomers: &[u32]) -> Vec<u64> {
        let sight = self.look(newcomers);
        let mut seen: Vec<u64> = sight.namespaces.keys().map(|id| id.inode()).collect();
        seen.sort_unstable();
        seen
    }
}

#[tokio::test]
async fn each_namespace_is_seen_once_and_who_has_ended_is_not() {
    let scene = Scene::new();
    let mut wanted = vec![scene.inode("a"), scene.inode("b")];
    wanted.sort_unstable();
    assert_eq!(scene.seen(&[]), wanted);
    // A thread that was met by a hook, and one that has ended since.
    wanted.push(scene.inode("c"));
    wanted.sort_unstable();
    assert_eq!(scene.seen(&[11, 12]), wanted);

    let sight = scene.look(&[]);
    assert_eq!((sight.strangers, sight.hidden), (1, 0));
    let mut residents = sight.namespaces.iter();
    assert!(residents.all(|(id, resident)| scene.discovery.is_in(resident.thread, *id)));
}

#[tokio::test]
async fn it_is_told_of_processes_and_cgroups_and_of_nothing_else() {
    let scene = Scene::new();
    let _ = scene.look(&[]);
    let pod = scene.directory.path().join("cgroup/pod");
    let told = || timeout(Duration::from_millis(100), scene.discovery.changed());
    fs::write(pod.join("memory.max"), "1").unwrap();
    assert!(told().await.is_err());
    fs::write(pod.join("cgroup.procs"), "8\n").unwrap();
    scene.discovery.changed().await.unwrap();
    fs::create_dir(pod.join("container")).unwrap();
    scene.discovery.changed().await.unwrap();
    // It was made after the look, so nothing is told of it before the next one.
    let _ = scene.look(&[]);
    fs::write(pod.join("container/cgroup.procs"), "9\n").unwrap();
    scene.discovery.changed().await.unwrap();
}
