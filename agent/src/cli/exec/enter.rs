//! The last step before the command of `exec`: in the command's own process, before it becomes
//! the command.

use std::ffi::{CString, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, getppid, initgroups, setgid, setuid};

use crate::capture::cgroup;
use crate::cli::Failure;

/// As shells have it.
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_EXECUTABLE: u8 = 126;

#[derive(clap::Args)]
pub(in crate::cli) struct Args {
    /// The cgroup to enter
    #[arg(long)]
    cgroup: PathBuf,
    /// Process id of the supervisor
    #[arg(long)]
    supervisor: i32,
    /// Its soft limit of file descriptors
    #[arg(long)]
    open_files: u64,
    /// The user to become
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// The user's group
    #[arg(long)]
    gid: Option<u32>,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(in crate::cli) fn main(args: &Args) -> Result<ExitCode, Failure> {
    cgroup::enter(&args.cgroup).map_err(exec_failure)?;
    // Programs that use select(2), or go over all numbers, are not ready for the agent's limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(exec_failure)?;
    setrlimit(Resource::RLIMIT_NOFILE, args.open_files, hard).map_err(exec_failure)?;
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    if let (Some(uid), Some(gid)) = (args.uid, args.gid) {
        become_user(Uid::from_raw(uid), Gid::from_raw(gid), &mut command).map_err(exec_failure)?;
    }
    // After the change of user, which clears it. The guard ends whatever this does not reach.
    set_pdeathsig(Signal::SIGKILL).map_err(exec_failure)?;
    if getppid().as_raw() != args.supervisor {
        // It died before it could be noticed.
        return Err(exec_failure(anyhow::anyhow!("the supervisor is gone")));
    }
    let error = command.exec();
    let status = match error.kind() {
        std::io::ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_NOT_EXECUTABLE,
    };
    let name = args.command[0].to_string_lossy();
    Err(Failure::from(anyhow::anyhow!("cannot run `{name}`: {error}")).with_status(status))
}

fn exec_failure(error: impl Into<anyhow::Error>) -> Failure {
    Failure::from(error.into()).with_status(super::EXIT_OWN_FAILURE)
}

/// Becomes the user that called sudo, so that the command has no more rights than its caller, and
/// finds that user's files.
fn become_user(uid: Uid, gid: Gid, command: &mut Command) -> anyhow::Result<()> {
    let user = User::from_uid(uid).ok().flatten();
    let name = match &user {
        Some(user) => CString::new(user.name.as_str())?,
        None => CString::default(),
    };
    if user.is_some() {
        initgroups(&name, gid).context("cannot take on the calling user's groups")?;
    } else {
        nix::unistd::setgroups(&[gid]).context("cannot take on the calling user's group")?;
    }
    setgid(gid).context("cannot become the calling user's group")?;
    setuid(uid).context("cannot become the calling user")?;
    if let Some(user) = user {
        command
            .env("HOME", &user.dir)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name);
    }
    Ok(())
}
