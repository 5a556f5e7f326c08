//! `cargo xtask test`

use std::{fmt, process::Command, time::Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::{
    cgroup::Subtree,
    fuzz, image, kernels,
    project::Project,
    report::{self, Seconds},
    setup,
    supervise::{self, Supervisor},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Run only this stage (may be given several times); `e2e` and `kernels` build first
    #[arg(long, value_name = "STAGE")]
    only: Vec<Stage>,

    /// Passed to the end-to-end test binaries: names of tests, --nocapture, …
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// The stages, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// What building and testing need is installed
    Setup,
    /// All sources are formatted
    Fmt,
    /// No lint speaks up
    Clippy,
    /// The fuzz targets compile
    Fuzz,
    /// The documentation builds and its links lead somewhere
    Doc,
    /// Unit and property tests
    Unit,
    /// Those of them that need root: the kernel takes the eBPF programs
    Kernel,
    /// The agent as users get it, and its image
    Build,
    /// End-to-end tests with the agent that was built
    E2e,
    /// The agent that was built, on other kernels
    Kernels,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Fuzz => "fuzz",
            Self::Doc => "doc",
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Build => "build",
            Self::E2e => "e2e",
            Self::Kernels => "kernels",
        })
    }
}

impl Stage {
    fn needs_agent(self) -> bool {
        matches!(self, Self::Build | Self::E2e | Self::Kernels)
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let start = Instant::now();
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    let mut built = false;
    for &stage in Stage::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(&stage) {
            continue;
        }
        report::progress(format_args!("[{stage}]"));
        report::timed(&stage.to_string(), || {
            if stage.needs_agent() && !built {
                image::make(&project, &supervisor, true)?;
                built = true;
            }
            run_stage(stage, &project, &supervisor, &arguments.filter).map(|()| "passed")
        })
        .with_context(|| format!("stage {stage} failed"))?;
    }
    report::progress(format_args!("in {} altogether", Seconds(start.elapsed())));
    if arguments.only.is_empty() && arguments.filter.is_empty() {
        report::result("all checks passed");
    } else {
        report::result("the checks asked for passed");
    }
    Ok(())
}

fn run_stage(
    stage: Stage,
    project: &Project,
    supervisor: &Supervisor,
    filter: &[String],
) -> anyhow::Result<()> {
    match stage {
        Stage::Setup => setup::install(project, supervisor),
        Stage::Fmt => supervisor.check(project.cargo("fmt").args(["--all", "--check"])),
        Stage::Clippy => {
            supervisor.check(workspace(project, "clippy").args([
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))?;
            // The agent without what can be left out. Its tests are the same.
            supervisor.check(project.cargo("clippy").args([
                "--locked",
                "--package",
                "underpass",
                "--no-default-features",
                "--",
                "-D",
                "warnings",
            ]))
        }
        Stage::Fuzz => fuzz::check(project, supervisor),
        Stage::Doc => supervisor.check(
            workspace(project, "doc")
                .arg("--no-deps")
                .env("RUSTDOCFLAGS", "-D rustdoc::broken_intra_doc_links"),
        ),
        Stage::Unit => supervisor.check(project.cargo("test").arg("--locked")),
        Stage::Kernel => {
            supervise::require_root()?;
            let mut test = project.cargo("test");
            // Of the same packages as the stage before: with others, features would differ, and all be
            // compiled anew.
            test.args(["--locked", "--lib", "--", "--ignored"]);
            Subtree::create("underpass-tests")?.run(supervisor, &test)
        }
        // What these need has been built, once for all.
        Stage::Build => Ok(()),
        Stage::E2e => end_to_end(project, supervisor, filter),
        Stage::Kernels => kernels::all(project, supervisor),
    }
}

/// A cargo command for every package that compiles for this machine.
fn workspace(project: &Project, subcommand: &str) -> Command {
    let mut command = project.cargo(subcommand);
    command.args(["--locked", "--workspace", "--exclude", "underpass-ebpf"]);
    command
}

fn end_to_end(project: &Project, supervisor: &Supervisor, filter: &[String]) -> anyhow::Result<()> {
    supervise::require_root()?;
    let package = ["--locked", "--package", "underpass-tests"];
    supervisor.check(project.cargo("test").args(package).arg("--no-run"))?;
    let mut test = project.cargo("test");
    // All that fails is told in one run: these tests take minutes.
    test.args(package)
        .args(["--no-fail-fast", "--"])
        .args(filter)
        .env("UNDERPASS_BIN", project.binary(true))
        .env("UNDERPASS_IMAGE", image::directory(project));
    Subtree::create("underpass-tests")?.run(supervisor, &test)?;
    if !setup::has_api_server(project) {
        report::progress(
            "SKIPPED: tests of policy from a cluster, against the API server of Kubernetes",
        );
        return Ok(());
    }
    // The same with the API server of Kubernetes in place of the fake. Not the one for figures: most of
    // its time goes into creating the objects.
    let mut again = project.cargo("test");
    again
        .args(package)
        .args(["--no-fail-fast", "--test", "kubernetes*", "--"])
        .args(["--skip", "five_thousand_services"])
        .args(filter)
        .env("UNDERPASS_BIN", project.binary(true))
        .env("UNDERPASS_KUBE", "real");
    Subtree::create("underpass-tests")?.run(supervisor, &again)
}
