//! A cgroup v2 subtree of our own: whatever runs in it ends with it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    report,
    supervise::{self, Supervisor},
};

/// How long killed processes may take to disappear.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A subtree named after this process; dropping it kills what is in it and removes it.
#[derive(Debug)]
pub(crate) struct Subtree {
    path: PathBuf,
}

impl Subtree {
    /// Makes the subtree `PREFIX-PID` in the cgroup this process is in, after removing those of
    /// processes that are gone.
    pub(crate) fn create(prefix: &str) -> anyhow::Result<Self> {
        let parent = own_directory()?;
        sweep(&parent, prefix)?;
        let path = parent.join(format!("{prefix}-{}", process::id()));
        fs::create_dir(&path).with_context(|| {
            format!(
                "making the cgroup {} (needs root and a writable hierarchy)",
                path.display()
            )
        })?;
        Ok(Self { path })
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a command that starts servers, agents and workloads, and leaves none of those behind,
    /// however it ends.
    pub(crate) fn run(self, supervisor: &Supervisor, command: &Command) -> anyhow::Result<()> {
        let status = supervisor.run_in_cgroup(command, self.path(), || {
            if let Err(error) = self.kill() {
                report::progress(format_args!("warning: {error:#}"));
            }
        })?;
        supervise::succeeded(command, status)
    }

    /// Kills everything in the subtree.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        kill_all(&self.path)
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path) {
            report::progress(format_args!("warning: {error:#}"));
        }
    }
}

/// The directory of the cgroup v2 this process is in.
fn own_directory() -> anyhow::Result<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let cgroup = fs::read_to_string("/proc/self/cgroup")?;
    let own =
        own_path(&cgroup).context("this process is in no cgroup v2 (see /proc/self/cgroup)")?;
    directory(&mountinfo, own).with_context(|| {
        format!(
            "the cgroup v2 hierarchy with {own} is not mounted: mount -t cgroup2 none DIRECTORY"
        )
    })
}

/// The path of a process in the v2 hierarchy, from its `/proc/PID/cgroup`.
fn own_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Where the cgroup with the path `own` is mounted, from `/proc/PID/mountinfo`.
fn directory(mountinfo: &str, own: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        // proc(5): ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS [TAG…] - TYPE SOURCE OPTIONS
        let (mount, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(&point).join(below))
    })
}

/// A field of mountinfo: space, tab, newline and backslash are written in octal.
fn unescape(field: &str) -> String {
    field
        .replace(r"\040", " ")
        .replace(r"\011", "\t")
        .replace(r"\012", "\n")
        .replace(r"\134", r"\")
}

/// Removes the subtrees that processes left in `parent` when they were killed.
fn sweep(parent: &Path, prefix: &str) -> anyhow::Result<()> {
    for child in children(parent)? {
        let name = child.file_name().unwrap_or_default().to_string_lossy();
        let Some(pid) = owner(&name, prefix) else {
            continue;
        };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            report::progress(format_args!(
                "removing {}, left by a dead process",
                child.display()
            ));
            clear(&child)?;
        }
    }
    Ok(())
}

/// The process that a subtree is named after.
fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()
}

/// Kills everything in a subtree and removes it.
fn clear(path: &Path) -> anyhow::Result<()> {
    kill_all(path)?;
    let start = Instant::now();
    loop {
        match remove(path) {
            // A process leaves its cgroup some time after it was killed.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < DEADLINE =>
            {
                thread::sleep(POLL);
            }
            result => {
                return result.with_context(|| format!("removing the cgroup {}", path.display()));
            }
        }
    }
}

fn kill_all(path: &Path) -> anyhow::Result<()> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Ok(()) => Ok(()),
        // Kernels before 5.14.
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_each(path),
        Err(error) => Err(error).with_context(|| format!("killing what is in {}", path.display())),
    }
}

/// Kills one process after the other until none is left, since they may fork meanwhile.
fn kill_each(path: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let processes = processes(path).with_context(|| format!("reading {}", path.display()))?;
        if processes.is_empty() {
            return Ok(());
        }
        if start.elapsed() > DEADLINE {
            bail!(
                "processes {processes:?} in {} survive being killed",
                path.display()
            );
        }
        for process in processes {
            // It may have gone by itself.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        thread::sleep(POLL);
    }
}

/// The processes in a subtree.
fn processes(path: &Path) -> io::Result<Vec<i32>> {
    let list = match fs::read_to_string(path.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list?,
    };
    // A process outside our pid namespace is listed as 0, which kill(2) takes for ourselves.
    let mut all: Vec<i32> = list
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|&process| process > 0)
        .collect();
    for child in children(path)? {
        all.extend(processes(&child)?);
    }
    Ok(all)
}

fn remove(path: &Path) -> io::Result<()> {
    for child in children(path)? {
        remove(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The cgroups directly in a cgroup; none if it is gone.
fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests;
