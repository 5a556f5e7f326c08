//! The cgroup v2 hierarchy, and the cgroups that are ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use procfs::process::Process;

use super::CaptureError;
use super::claim::Claim;

/// Marks a cgroup directory as made by us, so that [`leftovers`] finds those of an agent that was
/// killed, whatever their names. Whoever may write to the cgroup may write it, and end it as well.
const MARK: &str = "user.underpass";

/// How the names of canaries' cgroups begin.
pub(super) const CANARY_PREFIX: &str = "underpass-canary-";

/// How the names of `exec`'s cgroups begin, unless the user gave another.
pub const EXEC_PREFIX: &str = "underpass-exec-";

/// How long killed processes may take to leave a cgroup.
const EMPTY_DEADLINE: Duration = Duration::from_secs(5);

/// Where cgroup v2 is, as this process sees it.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
    own: PathBuf,
    subtree: PathBuf,
}

impl Hierarchy {
    /// Finds the mount point and this process's place in it. In the hybrid layout of many
    /// distributions it is not at /sys/fs/cgroup.
    ///
    /// # Errors
    /// No cgroup v2 hierarchy is mounted, or /proc cannot be read.
    pub fn find() -> Result<Self, CaptureError> {
        let unreadable = |what| move |source| CaptureError::Proc { what, source };
        let process = Process::myself().map_err(unreadable("this process"))?;
        let mount = process
            .mountinfo()
            .map_err(unreadable("the mounts"))?
            .0
            .into_iter()
            .find(|mount| mount.fs_type == "cgroup2")
            .ok_or(CaptureError::NoCgroup2)?;
        let own = process
            .cgroups()
            .map_err(unreadable("this process's cgroup"))?
            .0
            .into_iter()
            .find(|cgroup| cgroup.hierarchy == 0)
            .ok_or(CaptureError::NoCgroup2)?;
        // Where a part of the hierarchy is mounted, as in containers without a cgroup namespace.
        let own = Path::new(&own.pathname);
        let below = own
            .strip_prefix(&mount.root)
            .or_else(|_| own.strip_prefix("/"))
            .unwrap_or(own);
        Ok(Self {
            own: mount.mount_point.join(below),
            mount: mount.mount_point,
            subtree: mount.root.into(),
        })
    }

    /// The hierarchy at `mount`, which need not be one.
    #[cfg(test)]
    pub(super) fn at(mount: &Path, subtree: &str) -> Self {
        Self {
            mount: mount.to_owned(),
            own: mount.to_owned(),
            subtree: subtree.into(),
        }
    }

    /// The root of the hierarchy.
    pub fn root(&self) -> &Path {
        &self.mount
    }

    /// What is mounted there, as a path in the hierarchy, seen from our cgroup namespace: `/`
    /// unless it is a part, or comes from outside of the namespace (`/../..`).
    pub fn subtree(&self) -> &Path {
        &self.subtree
    }

    /// The cgroup below which kubelet has all pods of this node, as soon as it has made it: `kubepods`,
    /// or with systemd `kubepods.slice`, in the root or in a cgroup of kubelet's own, as in kind
    /// (`kubelet/kubepods`, `kubelet.slice/kubelet-kubepods.slice`). Those further down are of nodes
    /// inside of this one.
    pub fn pods(&self) -> Option<PathBuf> {
        let mut first = children(&self.mount);
        first.sort();
        let mut second: Vec<PathBuf> = first.iter().flat_map(|above| children(above)).collect();
        second.sort();
        first.into_iter().chain(second).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.strip_suffix(".slice").unwrap_or(&name);
            name == "kubepods" || name.ends_with("-kubepods")
        })
    }

    /// The cgroups in which that may be made: the root, and those in it.
    pub fn parents_of_pods(&self) -> Vec<PathBuf> {
        let mut parents = children(&self.mount);
        parents.push(self.mount.clone());
        parents
    }

    /// The cgroup that this process is in.
    pub fn own(&self) -> &Path {
        &self.own
    }

    /// The cgroup at `path`; one that is not absolute is meant from the root of the hierarchy.
    ///
    /// # Errors
    /// There is no such directory, or it is not of cgroup v2.
    pub fn cgroup(&self, path: &Path) -> Result<PathBuf, CaptureError> {
        let path = self.mount.join(path);
        let stat = statfs(&path).map_err(|errno| CaptureError::Cgroup {
            path: path.clone(),
            action: "find it",
            source: errno.into(),
        })?;
        if stat.filesystem_type() != CGROUP2_SUPER_MAGIC || !path.is_dir() {
            return Err(CaptureError::NotACgroup {
                path,
                mount: self.mount.clone(),
            });
        }
        Ok(path)
    }
}

/// A cgroup that this process made. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub struct OwnedCgroup {
    path: PathBuf,
    _claim: Option<Claim>,
}

impl OwnedCgroup {
    /// Makes the cgroup `name` below `parent`.
    ///
    /// # Errors
    /// It exists already, or the parent does not let us.
    pub fn create(parent: &Path, name: &str) -> Result<Self, CaptureError> {
        let path = parent.join(name);
        let failed = |action| {
            let path = path.clone();
            move |source| CaptureError::Cgroup {
                path,
                action,
                source,
            }
        };
        fs::create_dir(&path).map_err(failed("make it"))?;
        // Claimed before it is marked: a mark without a claim means that its maker is gone.
        let claim = Claim::take(&path);
        let cgroup = Self {
            path: path.clone(),
            _claim: claim.map_err(failed("claim it"))?,
        };
        xattr::set(&path, MARK, b"1").map_err(failed("mark it as ours"))?;
        Ok(cgroup)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedCgroup {
    fn drop(&mut self) {
        if let Err(error) = end(&self.path) {
            tracing::warn!(%error, "a cgroup stays behind; `underpass detach` removes it");
        }
    }
}

/// Moves the calling process into the cgroup at `path`.
///
/// # Errors
/// As writing `cgroup.procs`.
pub fn enter(path: &Path) -> Result<(), CaptureError> {
    fs::write(path.join("cgroup.procs"), "0").map_err(|source| CaptureError::Cgroup {
        path: path.to_owned(),
        action: "enter it",
        source,
    })
}

/// Ends every process in the cgroup at `path` and below, and removes it with all below it. One
/// that is gone already is fine.
///
/// # Errors
/// A process does not end within seconds, or a directory cannot be removed.
pub fn end(path: &Path) -> Result<(), CaptureError> {
    let failed = |action| {
        move |source| CaptureError::Cgroup {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let deadline = Instant::now() + EMPTY_DEADLINE;
    loop {
        kill_all(path);
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            // The killed are still on their way out.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(failed("remove it")(error)),
        }
    }
}

/// Cgroups below `root` that bear our mark, or a name that only we give, and whose maker is gone. The
/// name is for those whose maker was killed between making and marking them.
pub fn leftovers(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let named = directory.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with(CANARY_PREFIX) || name.starts_with(EXEC_PREFIX)
        });
        let is_ours = named || matches!(xattr::get(&directory, MARK), Ok(Some(_)));
        if is_ours && matches!(Claim::take(&directory), Ok(Some(_))) {
            found.push(directory);
            continue;
        }
        pending.extend(children(&directory));
    }
    found
}

fn kill_all(path: &Path) {
    // Since 5.14 the kernel does it in one; before, whoever forks meanwhile is met by the next
    // round of the caller's loop.
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let listed = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|line| line.parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for child in children(path) {
        kill_all(&child);
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
