//! Packages of PyPI, in environments of their own: pip cannot be used outside of one on Debian.

use std::{path::Path, process::Command};

use super::Session;

/// Makes an environment and a command that installs there what a file beside this one pins, and nothing
/// else.
pub(super) fn in_environment(
    session: &Session<'_>,
    environment: &Path,
    requirements: &str,
) -> anyhow::Result<Command> {
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(environment);
    session.run(&mut make)?;
    let directory = session.project.root.join("xtask/src/setup");
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.args(["--disable-pip-version-check", "install", "--quiet"])
        .args(["--no-cache-dir", "--no-deps", "--only-binary=:all:"])
        .args(["--require-hashes", "--requirement"])
        .arg(directory.join(requirements));
    Ok(pip)
}
