//! `cargo xtask demo`

use crate::{
    build,
    cgroup::Subtree,
    project::Project,
    supervise::{self, Supervisor},
};

/// Sets up, builds, and shows the main job in a closed world that leaves nothing behind.
pub(crate) fn run() -> anyhow::Result<()> {
    supervise::require_root()?;
    let project = Project::find()?;
    let supervisor = Supervisor::new()?;
    build::from_scratch(&project, &supervisor)?;
    let package = ["--quiet", "--locked", "--package", "underpass-tests"];
    supervisor.check(project.cargo("build").args(package).args(["--bin", "demo"]))?;
    let mut demo = project.cargo("run");
    demo.args(package)
        .args(["--bin", "demo"])
        .env("UNDERPASS_BIN", project.binary(true));
    Subtree::create("underpass-demo")?.run(&supervisor, &demo)
}
