//! `cargo xtask launch`, for this program's own use: what lies between it and a program it starts.

use std::{ffi::OsString, fs, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::Context as _;
use clap::Args;

use crate::supervise;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Move into this cgroup first
    #[arg(long, value_name = "DIRECTORY")]
    cgroup: Option<PathBuf>,

    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the program, inside the cgroup and with no signal held back. Returns only if it cannot.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(cgroup) = &arguments.cgroup {
        // 0 stands for the process that writes it.
        fs::write(cgroup.join("cgroup.procs"), "0")
            .with_context(|| format!("moving into the cgroup {}", cgroup.display()))?;
    }
    let (program, words) = arguments
        .command
        .split_first()
        .context("no program is named")?;
    supervise::held()
        .thread_unblock()
        .context("unblocking signals")?;
    let error = Command::new(program).args(words).exec();
    Err(error).with_context(|| format!("{} does not start", program.display()))
}
