//! `cargo xtask soak`

use clap::Args;

use crate::{
    build,
    project::Project,
    supervise::{self, Supervisor},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long to keep up the load
    #[arg(long, value_name = "N", default_value = "60")]
    minutes: f64,
}

/// Keeps an agent under mixed load in a closed world and watches what it holds. Interrupted, it
/// says what it has seen so far.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    supervise::require_root()?;
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    build::from_scratch(&project, &supervisor)?;
    let package = ["--quiet", "--locked", "--package", "underpass-tests"];
    supervisor.check(project.cargo("build").args(package).arg("--bins"))?;
    let mut soak = project.cargo("run");
    soak.args(package)
        .args(["--bin", "soak", "--"])
        .arg(arguments.minutes.to_string())
        .env("UNDERPASS_BIN", project.binary(true));
    // Not in a cgroup that ends with a signal: the signal goes to the program, which cleans up.
    supervisor.check(&soak)
}
