//! Programs that outlive the agent.
//!
//! Under a closed policy the programs stay when the agent is gone, and refuse what it would have
//! tunnelled, since the listener with its mark is gone too. A link stays as long as it is pinned
//! in the BPF file system: each agent has a directory there for each cgroup that it attached to, named
//! after the one that is its key, with one file per link.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use procfs::process::Process;

use super::CaptureError;
use super::bpf::{detach_link, open_pin};
use super::claim::{Claim, unique};

/// Below the mount point of the BPF file system.
const DIRECTORY: &str = "underpass";

/// Where it is on every distribution that mounts it.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// The directory of this agent's pins on one cgroup.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    _claim: Claim,
}

impl Pins {
    /// Makes a directory for pins of the agent with this key, a cgroup.
    pub(super) fn create(key: &Path) -> Result<Self, CaptureError> {
        let base = mounted()?.join(DIRECTORY);
        let unique = unique().map_err(|error| failed(&base, error))?;
        // No dot: this file system keeps names with dots for itself.
        let name = format!("{}-{unique}", cgroup_id(key)?);
        let directory = base.join(name);
        fs::create_dir_all(&directory).map_err(|error| failed(&directory, error))?;
        let claim = Claim::take(&directory)
            .map_err(|error| failed(&directory, error))?
            .ok_or_else(|| failed(&directory, io::ErrorKind::AlreadyExists))?;
        Ok(Self {
            directory,
            _claim: claim,
        })
    }

    /// The file for a link's pin.
    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// Takes the programs of other agents with the same key off their hooks, dead or alive.
    /// Returns on how many cgroups there were some.
    pub(super) fn supersede(key: &Path, own: &[&Self]) -> Result<usize, CaptureError> {
        let prefix = format!("{}-", cgroup_id(key)?);
        let mut superseded = 0;
        for directory in directories() {
            let is_own = own.iter().any(|own| own.directory == directory);
            let is_of_key = directory
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
            if is_of_key && !is_own {
                release(&directory)?;
                superseded += 1;
            }
        }
        Ok(superseded)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Only where nothing is pinned any more; else this fails, as it should.
        let _ = remove_directory(&self.directory);
    }
}

/// What [`leftovers`] finds.
#[derive(Debug)]
pub struct PinDirectory {
    /// The directory.
    pub path: PathBuf,
    /// Whether its agent is running.
    pub alive: bool,
}

/// The pins of all agents.
pub fn leftovers() -> Vec<PinDirectory> {
    directories()
        .into_iter()
        .map(|path| PinDirectory {
            alive: matches!(Claim::take(&path), Ok(None)),
            path,
        })
        .collect()
}

/// Takes the links pinned in `directory` off their hooks and removes the pins.
///
/// If their agent is running, only its programs that decide go at once: nothing new is redirected to
/// it, and nothing refused by its policy. The others stay for as long as it has them open, for the
/// connections that it has, and for the one that has passed `connect` at this moment and not yet got
/// its entry.
///
/// # Errors
/// A pin cannot be opened, detached or removed.
pub fn release(directory: &Path) -> Result<(), CaptureError> {
    let entries = fs::read_dir(directory).map_err(|error| failed(directory, error))?;
    for pin in entries.flatten().map(|entry| entry.path()) {
        let decides = pin.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("connect") || name.starts_with("refuse")
        });
        if decides {
            let link = open_pin(&pin).map_err(|error| failed(&pin, error))?;
            match detach_link(link.as_fd()) {
                // ENOLINK: its cgroup died before.
                Err(error) if error.raw_os_error() != Some(nix::libc::ENOLINK) => {
                    return Err(failed(&pin, error));
                }
                _ => {}
            }
        }
        fs::remove_file(&pin).map_err(|error| failed(&pin, error))?;
    }
    remove_directory(directory).map_err(|error| failed(directory, error))
}

/// Removes an agent's directory, and the one for all agents after the last.
fn remove_directory(directory: &Path) -> io::Result<()> {
    fs::remove_dir(directory)?;
    if let Some(base) = directory.parent() {
        // Fails while others are there.
        let _ = fs::remove_dir(base);
    }
    Ok(())
}

fn directories() -> Vec<PathBuf> {
    let Some(mount) = mount_point() else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(mount.join(DIRECTORY)) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// The mount point of the BPF file system; mounted now if nobody has yet.
fn mounted() -> Result<PathBuf, CaptureError> {
    if let Some(mount) = mount_point() {
        return Ok(mount);
    }
    if !is_of_node() {
        // What is mounted here ends with us, and takes the pins along.
        let reason = "on the node, since this is a mount namespace of our own";
        return Err(CaptureError::NoBpffs(io::Error::other(reason)));
    }
    mount(
        Some("bpf"),
        MOUNT_POINT,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|errno| CaptureError::NoBpffs(errno.into()))?;
    Ok(MOUNT_POINT.into())
}

/// Whether what this process mounts is there for all, as far as can be told: with the pid namespace of
/// the node the first process is the node's, and the second, which is the kernel's and can be seen where
/// the first may not, is in the same mount namespace.
fn is_of_node() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    match (namespace("1").or_else(|| namespace("2")), namespace("self")) {
        (Some(first), Some(own)) => first == own,
        _ => true,
    }
}

fn mount_point() -> Option<PathBuf> {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    let mut points: Vec<PathBuf> = mounts
        .ok()?
        .0
        .into_iter()
        .filter(|mount| mount.fs_type == "bpf")
        .map(|mount| mount.mount_point)
        .collect();
    points.sort_by_key(|point| point != Path::new(MOUNT_POINT));
    points.into_iter().next()
}

/// The kernel's id of a cgroup is the inode number of its directory.
fn cgroup_id(cgroup: &Path) -> Result<u64, CaptureError> {
    let metadata = fs::metadata(cgroup).map_err(|source| CaptureError::Cgroup {
        path: cgroup.to_owned(),
        action: "read its id",
        source,
    })?;
    Ok(metadata.ino())
}

fn failed(path: &Path, error: impl Into<io::Error>) -> CaptureError {
    CaptureError::Pin {
        path: path.to_owned(),
        source: error.into(),
    }
}
