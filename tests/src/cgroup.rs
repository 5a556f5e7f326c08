//! Control groups of a test, below the test process's own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;

use crate::{Must as _, poll};

/// A cgroup (version 2) that ends with all its processes and children when dropped.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A fresh one, `underpass-test-PID-N`, below the cgroup of this process.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let own = own_cgroup().must("find this process's cgroup v2");
        Self::make(own.join(format!("underpass-test-{}-{number}", process::id())))
    }

    /// A child of this one. It is to end before this one does.
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.path.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path from the root of the hierarchy, as policy names it: `/system.slice/backup.service`.
    pub fn name(&self) -> String {
        let (root, mount) = hierarchy().must("find the cgroup v2 hierarchy");
        let below = self.path.strip_prefix(mount).must("a cgroup is mounted");
        root.join(below).display().to_string()
    }

    /// The kernel's id of it: the inode of its directory.
    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).must(self.path.display()).ino()
    }

    /// The processes directly in it.
    pub fn processes(&self) -> Vec<u32> {
        let procs = fs::read_to_string(self.path.join("cgroup.procs")).must("read cgroup.procs");
        procs.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn make(path: PathBuf) -> Self {
        fs::create_dir(&path).must(format_args!("make the cgroup {}", path.display()));
        Self { path }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = poll(Duration::from_secs(5), || {
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
            remove_tree(&self.path);
            (!self.path.exists()).then_some(())
        });
        if removed.is_none() && !std::thread::panicking() {
            panic!("the cgroup {} cannot be removed", self.path.display());
        }
    }
}

/// The directory of the cgroup v2 this process is in, wherever that hierarchy is mounted.
pub fn own_cgroup() -> anyhow::Result<PathBuf> {
    let (root, mount) = hierarchy()?;
    let memberships = fs::read_to_string("/proc/self/cgroup")?;
    let own = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .context("/proc/self/cgroup has no entry for cgroup v2")?;
    let below = Path::new(own).strip_prefix(&root).with_context(|| {
        format!(
            "cgroup {own} is outside the mounted part {}",
            root.display()
        )
    })?;
    Ok(mount.join(below))
}

/// The mounted part of the cgroup v2 hierarchy and where it is mounted.
pub(crate) fn hierarchy() -> anyhow::Result<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            // proc(5): optional fields end with "-"; the file system type follows.
            let (place, source) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(3);
            let found = (place.next()?.into(), place.next()?.into());
            (source.split(' ').next() == Some("cgroup2")).then_some(found)
        })
        .context("no cgroup v2 hierarchy in /proc/self/mountinfo: mount one (type cgroup2)")
}

fn remove_tree(path: &Path) {
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&child.path());
    }
    let _ = fs::remove_dir(path);
}
