//! `cargo xtask setup`

use std::{path::Path, process::Command, time::Instant};

use clap::Args;
use underpass_ebpf_builder::Toolchain;

use crate::{
    project::Project,
    report::{self, Seconds},
    supervise::{self, Supervisor},
};

mod apt;
mod envoy;
mod http3;
mod instructions;
mod kubernetes;
mod linker;
mod packages;
mod pip;
mod services;
mod system;
mod unpacked;
mod validate;

pub(crate) use instructions::instruction_counter;
pub(crate) use kubernetes::has_api_server;
use packages::PACKAGES;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print the commands instead of running them; changes nothing
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let project = Project::find()?;
    if arguments.print {
        return print(&project);
    }
    install(&project, &Supervisor::new()?)
}

/// Installs what is missing, and makes sure that the eBPF programs can be compiled.
pub(crate) fn install(project: &Project, supervisor: &Supervisor) -> anyhow::Result<()> {
    let start = Instant::now();
    let session = Session {
        project,
        supervisor: Some(supervisor),
    };
    steps(&session)?;
    let toolchain = Toolchain::find(&project.target_dir)?;
    report::progress(format_args!("eBPF programs: {toolchain}"));
    report::progress(format_args!(
        "set-up complete ({})",
        Seconds(start.elapsed())
    ));
    Ok(())
}

fn print(project: &Project) -> anyhow::Result<()> {
    steps(&Session {
        project,
        supervisor: None,
    })
}

fn steps(session: &Session<'_>) -> anyhow::Result<()> {
    let debian = system::runs_debian();
    if debian {
        session.step("packages", || apt::install(session, PACKAGES))?;
    } else {
        session.step("programs", || Ok(system::missing_programs()))?;
    }
    session.step("bpf-linker", || linker::install(session, debian))?;
    session.step("envoy", || envoy::install(session))?;
    session.step("kubernetes-validate", || validate::install(session))?;
    session.step("client of HTTP/3", || http3::install(session))?;
    if debian {
        session.step("unpacked packages", || unpacked::install(session))?;
        session.step("API server of Kubernetes", || kubernetes::install(session))?;
    }
    Ok(())
}

/// One run of the set-up, which carries its commands out or prints them.
struct Session<'a> {
    project: &'a Project,
    /// None: print only.
    supervisor: Option<&'a Supervisor>,
}

impl Session<'_> {
    fn prints_only(&self) -> bool {
        self.supervisor.is_none()
    }

    /// What to call the outcome of commands: `done`, unless they were only printed.
    fn outcome(&self, done: &'static str) -> &'static str {
        if self.prints_only() {
            "missing, the commands above get it"
        } else {
            done
        }
    }

    /// One part of the set-up; its outcome is a few words.
    fn step(
        &self,
        name: &str,
        part: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        if self.prints_only() {
            report::result(format_args!("# {name}"));
            report::result(format_args!("#   {}", part()?));
            Ok(())
        } else {
            report::timed(name, part)
        }
    }

    /// Runs a command, which must succeed, or prints it.
    fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let Some(supervisor) = self.supervisor else {
            report::result(supervise::line(command));
            return Ok(());
        };
        report::progress(format_args!("+ {}", supervise::line(command)));
        supervisor.check(command)
    }

    /// Changes a file by a function of this program, or prints the command that does the same.
    fn change(
        &self,
        same_as: &str,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.prints_only() {
            report::result(same_as);
            return Ok(());
        }
        report::progress(format_args!("+ {same_as}"));
        change()
    }
}

/// A path as it stands in a printed command.
fn word(path: &Path) -> String {
    supervise::quoted(&path.to_string_lossy())
}
