//! `cargo xtask build`

use std::process::Command;

use clap::Args;
use underpass_ebpf_builder::Toolchain;

use crate::{project::Project, report, setup, supervise::Supervisor};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Build with optimizations, into target/release
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let project = Project::find()?;
    agent(&project, &Supervisor::new()?, arguments.release)?;
    report::result(project.binary(arguments.release).display());
    Ok(())
}

/// Sets up, and builds the agent as users get it: what a verb needs that shows the agent at work.
pub(crate) fn from_scratch(project: &Project, supervisor: &Supervisor) -> anyhow::Result<()> {
    report::timed("setup", || {
        setup::install(project, supervisor).map(|()| "done")
    })?;
    report::timed("build", || {
        agent(project, supervisor, true).map(|()| "done")
    })
}

/// Builds the agent; fails where it would be built without its eBPF programs.
pub(crate) fn agent(
    project: &Project,
    supervisor: &Supervisor,
    release: bool,
) -> anyhow::Result<()> {
    let toolchain = Toolchain::find(&project.target_dir)?;
    report::progress(format_args!("eBPF programs: {toolchain}"));
    supervisor.check(&command(project, release))
}

fn command(project: &Project, release: bool) -> Command {
    let mut command = project.cargo("build");
    command
        .args(["--locked", "--package", "underpass"])
        .env_remove("AYA_BUILD_SKIP");
    if release {
        command.arg("--release");
    }
    command
}
