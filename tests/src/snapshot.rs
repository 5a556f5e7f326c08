//! What agents could leave behind, so that before and after can be compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kernel_objects::{self, Object};
use crate::{Must as _, World, poll};

/// How long the kernel and the servers may take to let go of what is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// What there is at one moment. Everything but the BPF objects is the world's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Programs, maps and links of the whole machine.
    objects: BTreeSet<Object>,
    /// Files in the BPF file system that the agent sees.
    pins: BTreeSet<String>,
    /// Cgroups of the world.
    cgroups: BTreeSet<PathBuf>,
    /// Processes in them.
    processes: BTreeSet<u32>,
    /// Network namespaces of those processes.
    namespaces: BTreeSet<PathBuf>,
    /// Descriptors of this process.
    descriptors: usize,
}

impl Snapshot {
    /// Looks around.
    #[track_caller]
    pub fn take(world: &World) -> Self {
        let find = world.host().command("find");
        let find = find.args(["/sys/fs/bpf", "-mindepth", "1"]);
        let pins = find.run(Duration::from_secs(10)).expect_success().stdout;
        let mut snapshot = Self {
            objects: kernel_objects::all().must("list BPF objects"),
            pins: pins.lines().map(str::to_owned).collect(),
            cgroups: BTreeSet::new(),
            processes: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            descriptors: descriptors(),
        };
        for cgroup in [world.workload(), world.services()] {
            snapshot.walk(cgroup.path());
        }
        snapshot
    }

    /// Waits until everything is as it was; panics with what is not.
    ///
    /// Of the BPF objects, only those that came since count that are there already now and that no
    /// process has open: others make some all the time, and ours have no process any more.
    #[track_caller]
    pub fn expect_same_again(&self, world: &World) {
        let mut now = Self::take(world);
        let mut came: BTreeSet<Object> = now.objects.difference(&self.objects).copied().collect();
        let before = Self {
            objects: BTreeSet::new(),
            ..self.clone()
        };
        let same = poll(PATIENCE, || {
            now = Self::take(world);
            let held = kernel_objects::held();
            came.retain(|object| now.objects.contains(object) && !held.contains(object));
            now.objects.clone_from(&came);
            (now == before).then_some(())
        });
        assert!(same.is_some(), "now {now:#?}, not as before: {before:#?}");
    }

    fn walk(&mut self, cgroup: &Path) {
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in listed.lines().filter_map(|line| line.parse().ok()) {
            self.processes.insert(pid);
            let namespace = fs::read_link(format!("/proc/{pid}/ns/net"));
            self.namespaces.extend(namespace);
        }
        for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.walk(&entry.path());
            }
        }
        self.cgroups.insert(cgroup.to_owned());
    }
}

fn descriptors() -> usize {
    let listed = fs::read_dir("/proc/self/fd").must("list descriptors");
    listed.count()
}
