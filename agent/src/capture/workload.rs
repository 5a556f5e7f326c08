//! Who made a connection: from the cgroup's id, which the programs keep with each, to its name.
//!
//! The id of a cgroup is the inode number of its directory (on 64-bit machines, which is all that
//! we run on), and the kernel gives no number twice. So what was found out once stays true, and a
//! process that is gone, or has moved since, or another one with its number, is noticed.

mod walk;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use super::cgroup::Hierarchy;
use crate::workload::{Identity, Pods, Workload};
use walk::Walk;

/// Workloads that are remembered. A node has hundreds; past this many of them, those of cgroups
/// that are gone are forgotten, and then whichever.
const CAPACITY: usize = 8192;

/// Between two looks for cgroups that are gone.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long it is believed that nothing is known about a cgroup.
const IGNORANCE: Duration = Duration::from_secs(1);

/// The workloads of this node, by cgroup.
///
/// To be asked for every connection. One from a known cgroup costs a look into a table. What is
/// not known is looked for on a thread that may block: nothing of it touches a disk, but the kernel
/// may hold its lock on all cgroups for long while others make and remove some.
#[derive(Debug)]
pub struct Workloads {
    capacity: usize,
    proc: PathBuf,
    hierarchy: Hierarchy,
    /// Where the API server tells of this node's pods.
    pods: Option<Arc<Pods>>,
    table: RwLock<Table>,
    /// The last walk through the hierarchy; one at a time.
    walk: Mutex<Option<Walk>>,
}

#[derive(Debug)]
struct Table {
    known: HashMap<u64, Known>,
    swept: Instant,
}

#[derive(Clone, Debug)]
enum Known {
    /// Where the directory is, and what that tells.
    Found(PathBuf, Identity),
    /// Nowhere, when it was looked for.
    Nowhere(Instant, Identity),
}

impl Known {
    fn identity(&self) -> &Identity {
        let (Self::Found(_, identity) | Self::Nowhere(_, identity)) = self;
        identity
    }
}

impl Workloads {
    /// Those in `hierarchy`, of which some are these pods where the node is part of a cluster.
    pub fn new(hierarchy: Hierarchy, pods: Option<Arc<Pods>>) -> Self {
        Self::with(hierarchy, pods, "/proc".into(), CAPACITY)
    }

    fn with(hierarchy: Hierarchy, pods: Option<Arc<Pods>>, proc: PathBuf, capacity: usize) -> Self {
        Self {
            capacity,
            proc,
            hierarchy,
            pods,
            table: RwLock::new(Table {
                known: HashMap::new(),
                swept: Instant::now(),
            }),
            walk: Mutex::new(None),
        }
    }

    /// The workload in the cgroup with this id; `pid` is a process that was in it. Nothing is known
    /// about a cgroup that is gone or outside of what this process sees of the hierarchy. For a pod
    /// that the API server has not told of yet some seconds are waited.
    pub async fn of(self: &Arc<Self>, cgroup_id: u64, pid: u32) -> Arc<Workload> {
        let identity = self.identity(cgroup_id, pid).await;
        let (Some(pods), Some(uid)) = (&self.pods, identity.pod_uid()) else {
            return Arc::clone(identity.workload());
        };
        let pod = pods.get(uid);
        if let Some(whole) = identity.if_still(pod.as_ref()) {
            return Arc::clone(whole);
        }
        let pod = match pod {
            Some(pod) => Some(pod),
            None => pods.find(uid).await,
        };
        let Some(pod) = pod else {
            return Arc::clone(identity.workload());
        };
        let identity = identity.of_pod(pod);
        let whole = Arc::clone(identity.workload());
        self.learnt(cgroup_id, identity);
        whole
    }

    /// Whether this is part of a pod that should be known, and is not: what policy says of it cannot
    /// be told.
    pub fn is_obscure(&self, workload: &Workload) -> bool {
        self.pods.is_some() && workload.is_unknown_pod()
    }

    /// What its cgroup tells, and what was learnt of it.
    async fn identity(self: &Arc<Self>, cgroup_id: u64, pid: u32) -> Identity {
        if let Some(identity) = self.known(cgroup_id) {
            return identity;
        }
        let asked = Instant::now();
        let this = Arc::clone(self);
        // Neither panics, and if one did, we would know nothing.
        let found = spawn_blocking(move || this.directory_of(pid, cgroup_id)).await;
        let directory = match found.unwrap_or_default() {
            Some(directory) => Some(directory),
            None => self.walk_to(cgroup_id, asked).await,
        };
        let this = Arc::clone(self);
        let remembered = spawn_blocking(move || this.remember(cgroup_id, directory)).await;
        remembered.unwrap_or_default()
    }

    /// The cgroups in `within` whose workloads are meant, with their ids; of those in one another the
    /// outermost. Reads the cgroup file system, so it blocks, and waits for nobody to tell of a pod.
    pub fn outermost(
        &self,
        within: &Path,
        is_meant: impl Fn(&Path, &Workload) -> bool,
    ) -> Vec<(PathBuf, u64)> {
        Walk::through(within).outermost(|directory| {
            let seen = Workload::in_cgroup(&self.name(directory));
            let container = seen.container.as_ref();
            let pod = container.and_then(|it| self.pods.as_ref()?.get(&it.pod));
            let workload = pod.map(|pod| seen.of_pod(&pod));
            is_meant(directory, workload.as_ref().unwrap_or(&seen))
        })
    }

    /// Is told whenever the API server tells something new of this node's pods.
    pub fn of_pods(&self) -> Option<watch::Receiver<()>> {
        self.pods.as_ref().map(|pods| pods.subscribe())
    }

    /// The path of a cgroup of which a workload was asked for, from the root of the hierarchy.
    pub fn path(&self, cgroup_id: u64) -> Option<String> {
        match self.table.read().known.get(&cgroup_id)? {
            Known::Found(directory, _) => Some(self.name(directory)),
            Known::Nowhere(..) => None,
        }
    }

    /// What is known already.
    fn known(&self, cgroup_id: u64) -> Option<Identity> {
        match self.table.read().known.get(&cgroup_id)? {
            Known::Nowhere(since, _) if since.elapsed() >= IGNORANCE => None,
            known => Some(known.identity().clone()),
        }
    }

    /// More is known of a cgroup than when it was found.
    fn learnt(&self, cgroup_id: u64, now: Identity) {
        let mut table = self.table.write();
        if let Some(Known::Found(_, identity)) = table.known.get_mut(&cgroup_id) {
            *identity = now;
        }
    }

    /// The directory of the cgroup that the process is in now, if that is the wanted one.
    fn directory_of(&self, pid: u32, cgroup_id: u64) -> Option<PathBuf> {
        let path = self.proc.join(pid.to_string()).join("cgroup");
        let cgroups = fs::read_to_string(path).ok()?;
        let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
        // Of a cgroup that was removed while a process of it was on its way out.
        let cgroup = cgroup.strip_suffix(" (deleted)").unwrap_or(cgroup);
        let below = Path::new(cgroup)
            .strip_prefix(self.hierarchy.subtree())
            .ok()?;
        // What lies outside of our cgroup namespace is shown as a way up and down again, whose
        // names above us we do not see.
        if below.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let directory = self.hierarchy.root().join(below);
        is_of(&directory, cgroup_id).then_some(directory)
    }

    /// Looks through the whole hierarchy. However many wait for that, two walks serve them all: one
    /// that begins after the question has the answer to it, even if that is no.
    async fn walk_to(&self, cgroup_id: u64, asked: Instant) -> Option<PathBuf> {
        let mut walk = self.walk.lock().await;
        if walk.as_ref().is_none_or(|walk| walk.began() < asked) {
            let root = self.hierarchy.root().to_owned();
            *walk = spawn_blocking(move || Walk::through(&root)).await.ok();
        }
        let directory = walk.as_ref()?.directory(cgroup_id)?;
        Some(directory.to_owned())
    }

    fn remember(&self, cgroup_id: u64, directory: Option<PathBuf>) -> Identity {
        let known = match directory {
            Some(directory) => {
                let seen = Workload::in_cgroup(&self.name(&directory));
                Known::Found(directory, Identity::new(seen))
            }
            None => Known::Nowhere(Instant::now(), Identity::default()),
        };
        let identity = known.identity().clone();
        self.make_room();
        self.table.write().known.insert(cgroup_id, known);
        identity
    }

    /// Forgets cgroups that are gone, from time to time and when the table is full. Nobody who only
    /// reads waits for that.
    fn make_room(&self) {
        let candidates: Vec<_> = {
            let mut table = self.table.write();
            let full = table.known.len() >= self.capacity;
            if !full && table.swept.elapsed() < SWEEP_INTERVAL {
                return;
            }
            table.swept = Instant::now();
            let known = table.known.iter();
            known.map(|(id, known)| (*id, known.clone())).collect()
        };
        let gone = candidates.iter().filter(|(id, known)| match known {
            Known::Found(directory, _) => !is_of(directory, *id),
            Known::Nowhere(since, _) => since.elapsed() >= IGNORANCE,
        });
        let gone: Vec<u64> = gone.map(|(id, _)| *id).collect();
        let mut table = self.table.write();
        for id in gone {
            table.known.remove(&id);
        }
        // All alive: a quarter, so that this does not come with every new one.
        if table.known.len() >= self.capacity {
            let some = table.known.keys().copied().take(self.capacity / 4);
            let some: Vec<u64> = some.collect();
            for id in some {
                table.known.remove(&id);
            }
        }
    }

    /// The path of a cgroup from the root of the hierarchy, of which a part may be mounted.
    fn name(&self, directory: &Path) -> String {
        let below = directory
            .strip_prefix(self.hierarchy.root())
            .unwrap_or(directory);
        let subtree = self.hierarchy.subtree();
        // Mounted from above our cgroup namespace: as far up as we can see.
        let above = subtree
            .components()
            .any(|part| part == Component::ParentDir);
        let top = if above { Path::new("/") } else { subtree };
        let name = top.join(below).to_string_lossy().into_owned();
        match name.strip_suffix('/') {
            Some(rest) if !rest.is_empty() => rest.to_owned(),
            _ => name,
        }
    }
}

fn is_of(directory: &Path, cgroup_id: u64) -> bool {
    fs::metadata(directory).is_ok_and(|metadata| metadata.ino() == cgroup_id)
}

#[cfg(test)]
mod tests;
