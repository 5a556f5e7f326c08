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
    supervisor.check(&command(project, "build", release))
}

/// Builds the agent so that it needs no libraries, in the place of the other. Only the program itself
/// is compiled and linked anew: whether the C library is linked statically is decided there.
pub(crate) fn linked_statically(
    project: &Project,
    supervisor: &Supervisor,
    release: bool,
) -> anyhow::Result<()> {
    let mut command = command(project, "rustc", release);
    command.args([
        "--bin",
        "underpass",
        "--",
        "-C",
        "target-feature=+crt-static",
    ]);
    supervisor.check(&command)
}

fn command(project: &Project, subcommand: &str, release: bool) -> Command {
    let mut command = project.cargo(subcommand);
    command
        .args(["--locked", "--package", "underpass"])
        .env_remove("AYA_BUILD_SKIP");
    if release {
        command.arg("--release");
    }
    command
}
