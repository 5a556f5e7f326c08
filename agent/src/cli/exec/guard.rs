//! A process of its own that ends the command when the supervisor is gone, however it went.
//!
//! It inherits the programs' links, so that nothing of the command is let out between the
//! supervisor's death and the command's: the listener is gone by then, and connections are
//! refused.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::setsid;

use crate::capture::cgroup;
use crate::cli::Failure;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// The cgroup to end
    cgroup: PathBuf,
}

/// The guard's whole life: waits for the end of standard input, which the supervisor holds open.
pub(in crate::cli) fn main(args: &Args) -> Result<ExitCode, Failure> {
    // Neither the terminal's signals nor anybody's but SIGKILL may end it before its time.
    setsid()?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)?;
    let _ = io::stdin().read(&mut [0u8; 1]);
    cgroup::end(&args.cgroup)?;
    Ok(ExitCode::SUCCESS)
}

/// The supervisor's end of a running guard.
pub(super) struct Guard {
    process: Child,
}

impl Guard {
    /// Starts a guard over `cgroup`. To be called after the programs are attached.
    pub(super) fn start(cgroup: &Path) -> anyhow::Result<Self> {
        let links = inheritable_links().context("cannot hand the eBPF links to the guard")?;
        let process = Command::new("/proc/self/exe")
            .arg("exec-guard")
            .arg(cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the guard")?;
        drop(links);
        Ok(Self { process })
    }

    /// Has the guard end what is left in the cgroup and remove it.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait().context("the guard is lost")?;
        anyhow::ensure!(status.success(), "the guard failed: {status}");
        Ok(())
    }
}

/// Copies of this process's eBPF link descriptors that a child inherits. aya does not lend the
/// originals, so /proc says which they are.
fn inheritable_links() -> io::Result<Vec<OwnedFd>> {
    let mut copies = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let is_link = fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str() == "anon_inode:bpf_link");
        let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if is_link {
            copies.push(duplicate(fd)?);
        }
    }
    Ok(copies)
}

/// A copy of a descriptor that is not closed on exec.
#[expect(unsafe_code, reason = "the descriptor's number comes from /proc")]
fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: /proc has just listed it as open, and the links stay open for the supervisor's
    // whole life.
    let link = unsafe { BorrowedFd::borrow_raw(fd) };
    let copy = nix::fcntl::fcntl(link, nix::fcntl::FcntlArg::F_DUPFD(link.as_raw_fd()))?;
    // SAFETY: fcntl has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
