//! `cargo xtask image`: the agent as a container image, made without a container engine.
//!
//! The image is a layout of files as the OCI image specification has it, which skopeo, podman,
//! containerd and docker read. In it are the agent and the certificates of public authorities, and
//! nothing else: no shell, no libraries.
//!
//! The agent is linked statically to the C library of this machine, so it needs none in the image.
//! The other ways are worse: rustup has no musl for us without fetching it, and musl's allocator is
//! slow where many threads relay; libraries copied from the machine would be a part of a distribution
//! that nobody updates. Static glibc does without what it loads at run time: it knows users and names
//! from files and DNS only, of which the agent asks neither (its resolver is its own).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use underpass_ebpf_builder::Toolchain;

use crate::{build, program, project::Project, report, supervise::Supervisor};

use layer::Layer;
use layout::Layout;

mod layer;
mod layout;

/// Where the program is in the image; `deploy/systemd` has it in the same place.
const PROGRAM: &str = "usr/local/bin/underpass";

/// Where programs on this machine and in the image look for the certificates of authorities.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Take the agent as it was built without optimizations, which is quicker and larger
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let project = Project::find()?;
    make(&project, &Supervisor::new()?, !arguments.debug)
}

/// Where the image is.
pub(crate) fn directory(project: &Project) -> PathBuf {
    project.target_dir.join("image")
}

/// Builds the agent for it, which leaves the ordinary one as well, and writes the image.
pub(crate) fn make(
    project: &Project,
    supervisor: &Supervisor,
    release: bool,
) -> anyhow::Result<()> {
    let program = build(project, supervisor, release)?;
    let directory = directory(project);
    let unfinished = project.target_dir.join("image.unfinished");
    remove(&unfinished)?;
    let certificates = Path::new("/").join(CERTIFICATES);
    let certificates = fs::read(&certificates).with_context(|| {
        format!(
            "no certificates of authorities at {}",
            certificates.display()
        )
    })?;
    let layer = Layer::new([
        (CERTIFICATES, 0o644, &certificates[..]),
        (PROGRAM, 0o755, &program[..]),
    ])?;
    let layout = Layout::create(&unfinished)?;
    let image = layout.image(&layer)?;
    remove(&directory)?;
    fs::rename(&unfinished, &directory)
        .with_context(|| format!("renaming {}", unfinished.display()))?;
    report::result(format_args!(
        "{} {} ({:.1} MB, {:.1} MB unpacked)",
        directory.display(),
        image.digest,
        megabytes(image.size),
        megabytes(program.len() + certificates.len()),
    ));
    Ok(())
}

/// The agent, linked statically. All but the last step is what the ordinary build has done.
fn build(project: &Project, supervisor: &Supervisor, release: bool) -> anyhow::Result<Vec<u8>> {
    let toolchain = Toolchain::find(&project.target_dir)?;
    report::progress(format_args!("eBPF programs: {toolchain}"));
    let linked = build::linked_statically(project, supervisor, release)
        .and_then(|()| take(project, release));
    // Cargo has put it where the ordinary one is: that one comes back, whatever happened.
    build::agent(project, supervisor, release)?;
    linked
}

fn take(project: &Project, release: bool) -> anyhow::Result<Vec<u8>> {
    let binary = project.binary(release);
    let libraries = program::libraries(&binary)?;
    if !libraries.is_empty() {
        bail!("{} is not static: it needs {libraries:?}", binary.display());
    }
    program::stripped(&binary, &project.target_dir.join("image.stripped"))
}

fn remove(directory: &PathBuf) -> anyhow::Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
