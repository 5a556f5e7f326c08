//! The one place with `unsafe`: what a child process does between fork and exec.
#![expect(unsafe_code, reason = "CommandExt::pre_exec is unsafe by nature")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{setsid, write};

/// Where a child process shall find itself when its program starts.
#[derive(Default)]
pub(crate) struct Entry {
    /// Network and mount namespace.
    pub(crate) namespaces: Option<(Arc<OwnedFd>, Arc<OwnedFd>)>,
    /// An open `cgroup.procs`.
    pub(crate) cgroup_procs: Option<File>,
    /// Whether it leads a session of its own, out of reach of the terminal's Ctrl-C.
    pub(crate) new_session: bool,
}

/// Makes `command` start its program inside `entry`.
///
/// `ip netns exec` is no substitute: it remounts `/sys`, which hides the cgroup tree.
pub(crate) fn enter(command: &mut Command, entry: Entry) {
    let enter = move || -> io::Result<()> {
        // The namespace first: an agent that looks into the cgroup meanwhile would find the one that
        // the tests are in, and enrol it for a moment.
        if let Some((net, mnt)) = &entry.namespaces {
            setns(net.as_ref(), CloneFlags::CLONE_NEWNET)?;
            setns(mnt.as_ref(), CloneFlags::CLONE_NEWNS)?;
        }
        // From then on the janitor finds this process whatever happens.
        if let Some(procs) = &entry.cgroup_procs {
            write(procs, b"0")?;
        }
        if entry.new_session {
            setsid()?;
        }
        // Whoever runs the tests in the background has some of these ignored, and a program that
        // starts so keeps them: a shell cannot even trap them.
        for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: sets no handler, only the default.
            unsafe { signal(ignored, SigHandler::SigDfl) }?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in a forked child of a process with many threads, so it must not
    // allocate or take locks. It makes bare system calls on descriptors that were opened before
    // the fork; their errors carry an errno and no heap value.
    unsafe { command.pre_exec(enter) };
}
