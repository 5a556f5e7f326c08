//! `cargo xtask crds`

use crate::{project::Project, report, supervise::Supervisor};

/// Writes `deploy/crds`. The agent knows its types, so it is a program of the agent's package that
/// does; this one must compile before the agent can.
pub(crate) fn run() -> anyhow::Result<()> {
    let project = Project::find()?;
    let directory = project.root.join("deploy/crds");
    Supervisor::new()?.check(
        project
            .cargo("run")
            .args([
                "--locked",
                "--quiet",
                "--package",
                "underpass",
                "--example",
                "crds",
                "--",
            ])
            .arg(&directory),
    )?;
    report::result(directory.display());
    Ok(())
}
