//! `cargo xtask bench`

use std::path::PathBuf;

use clap::Args;

use crate::{
    build,
    project::Project,
    setup,
    supervise::{self, Supervisor},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How often each measurement is made; medians count
    #[arg(long, value_name = "N", default_value = "5")]
    reps: usize,
    /// How long one measurement takes
    #[arg(long, value_name = "N", default_value = "2")]
    seconds: f64,
    /// Only these ways from the client to the target: explicit,underpass,redsocks,…
    #[arg(long, value_name = "NAME,…")]
    paths: Option<String>,
    /// Only these measurements: idle,single,connections,tls,requests,bulk,growth-1,…,connect,
    /// programs,slow,tunnels,policies,namespaces
    #[arg(long, value_name = "NAME,…")]
    modes: Option<String>,
    /// Where bench.json and bench.svg go [default: bench in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Count the instructions of inspection, CONNECT and policy instead; needs no root
    #[arg(long, conflicts_with_all = ["reps", "seconds", "paths", "modes", "out"])]
    instructions: bool,
}

/// Measures the agent beside its peers in a closed world.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.instructions {
        return instructions();
    }
    supervise::require_root()?;
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    build::from_scratch(&project, &supervisor)?;
    let package = [
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "underpass-tests",
    ];
    supervisor.check(project.cargo("build").args(package).arg("--bins"))?;
    let out = arguments.out.clone();
    let mut bench = project.cargo("run");
    bench
        .args(package)
        .args(["--bin", "bench", "--"])
        .arg(out.unwrap_or_else(|| project.target_dir.join("bench")))
        .arg(format!("reps={}", arguments.reps))
        .arg(format!("seconds={}", arguments.seconds))
        .env("UNDERPASS_BIN", project.binary(true));
    for (key, value) in [("paths", &arguments.paths), ("modes", &arguments.modes)] {
        if let Some(value) = value {
            bench.arg(format!("{key}={value}"));
        }
    }
    // Not in a cgroup that ends with a signal: the signal goes to the program, which cleans up.
    supervisor.check(&bench)
}

/// Counts the instructions of what every connection passes.
fn instructions() -> anyhow::Result<()> {
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    let runner = setup::instruction_counter(&project, &supervisor)?;
    let mut bench = project.cargo("bench");
    bench
        .args(["--locked", "--package", "underpass"])
        .args(["--bench", "instructions"])
        .env("GUNGRAUN_RUNNER", runner);
    supervisor.check(&bench)
}
