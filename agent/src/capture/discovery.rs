//! Which network namespaces the processes of cgroups live in.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InotifyEvent};

use super::CaptureError;
use super::inotify::Inotify;
use super::netns::NetnsId;
use super::sandbox;

/// What is told of a cgroup: cgroups made and removed below it, processes that somebody moves
/// (`cgroup.procs` is written), the first process and the end of the last (`cgroup.events`).
const WATCHED: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Looks through cgroups and all below them, and is told when it is time to look again.
#[derive(Debug)]
pub struct Discovery {
    proc: PathBuf,
    inotify: Inotify,
    blind: AtomicBool,
}

/// Sandboxes, by the cgroups that they are in, and what kind they are.
pub type Sandboxes = BTreeMap<PathBuf, &'static str>;

/// What one look found.
#[derive(Debug, Default)]
pub struct Sight {
    /// The namespaces, each with somebody who lives in it.
    pub namespaces: HashMap<NetnsId, Resident>,
    /// Processes that are of another pid namespace, so that nothing can be learnt of them.
    pub strangers: usize,
    /// Processes whose namespace we may not know, for want of `CAP_SYS_PTRACE` or of their user's
    /// rights.
    pub hidden: usize,
    /// Processes in which others run whose connections cannot be captured.
    pub sandboxes: Sandboxes,
}

/// Somebody in a namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resident {
    /// A thread; a process is its first one.
    pub thread: u32,
    /// The directory of its cgroup; `None` where it was met by a hook.
    pub cgroup: Option<PathBuf>,
}

impl Discovery {
    /// Of no cgroup yet. To be called on a tokio runtime.
    ///
    /// # Errors
    /// There is no inotify instance to be had (`fs.inotify.max_user_instances`).
    pub fn new() -> Result<Self, CaptureError> {
        let inotify = Inotify::new().map_err(CaptureError::Inotify)?;
        Ok(Self {
            proc: "/proc".into(),
            inotify,
            blind: AtomicBool::new(false),
        })
    }

    /// Waits until processes or cgroups have come or gone since it was last asked. May be wrong.
    ///
    /// # Errors
    /// As `epoll(7)`.
    pub async fn changed(&self) -> io::Result<()> {
        while !self.inotify.events().await?.iter().any(matter) {}
        Ok(())
    }

    /// One look into these cgroups and all below them, which also takes these threads into account:
    /// each is of a namespace that was not known when it was there. Reads `/proc` and the cgroup file
    /// system, so it blocks.
    pub fn look(&self, cgroups: &[PathBuf], newcomers: &[u32]) -> Sight {
        let mut sight = Sight::default();
        let mut pending = cgroups.to_vec();
        while let Some(directory) = pending.pop() {
            // Watched before it is read: what comes later is told.
            self.watch(&directory);
            self.look_into(&directory, &mut sight);
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            pending.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        for thread in newcomers {
            self.note(*thread, None, &mut sight);
        }
        sight
    }

    /// Whether this thread is in this namespace now.
    pub fn is_in(&self, thread: u32, namespace: NetnsId) -> bool {
        NetnsId::of(&self.proc, thread).is_ok_and(|is| is == namespace)
    }

    fn look_into(&self, directory: &Path, sight: &mut Sight) {
        // It may be gone; those of a threaded cgroup are listed further up.
        let Ok(listed) = fs::read_to_string(directory.join("cgroup.procs")) else {
            return;
        };
        for process in listed.lines().filter_map(|line| line.parse().ok()) {
            match process {
                0 => sight.strangers += 1,
                process => {
                    self.note(process, Some(directory), sight);
                    let kind = sandbox::kind(&self.proc, process);
                    let kind = kind.map(|kind| (directory.to_owned(), kind));
                    sight.sandboxes.extend(kind);
                }
            }
        }
    }

    fn note(&self, thread: u32, cgroup: Option<&Path>, sight: &mut Sight) {
        match NetnsId::of(&self.proc, thread) {
            Ok(id) => {
                sight.namespaces.entry(id).or_insert_with(|| Resident {
                    thread,
                    cgroup: cgroup.map(Path::to_owned),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => sight.hidden += 1,
            // It has ended.
            Err(_) => {}
        }
    }

    /// Is told of what changes in this cgroup, from now on.
    pub fn watch(&self, directory: &Path) {
        let Err(errno) = self.inotify.watch(directory, WATCHED) else {
            return;
        };
        // Gone since it was listed.
        if errno == Errno::ENOENT || self.blind.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            error = %errno,
            cgroup = %directory.display(),
            "cannot watch every cgroup (fs.inotify.max_user_watches?): network namespaces of new \
             workloads are found only when they first connect, or after seconds"
        );
    }
}

/// Whether it is about who lives where, rather than any other file of a cgroup.
fn matter(event: &InotifyEvent) -> bool {
    let about_processes = || {
        let name = event.name.as_deref().unwrap_or_default();
        name == "cgroup.procs" || name == "cgroup.events"
    };
    let always = AddWatchFlags::IN_ISDIR | AddWatchFlags::IN_Q_OVERFLOW;
    event.mask.intersects(always) || about_processes()
}

#[cfg(test)]
mod tests;
