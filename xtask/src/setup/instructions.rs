//! Gets what counts instructions, which is not part of the set-up: only one benchmark needs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use underpass_ebpf_builder::linker;

use super::{Session, apt, packages::Package, system};
use crate::{project::Project, supervise::Supervisor};

/// It runs the programs, and counts.
const VALGRIND: &[Package] = &[Package::new(&["valgrind"], "counts instructions")];

/// It starts valgrind, and reads what that has counted.
const RUNNER: &str = "gungraun-runner";

/// Installs what is missing, and returns the runner.
pub(crate) fn instruction_counter(
    project: &Project,
    supervisor: &Supervisor,
) -> anyhow::Result<PathBuf> {
    let session = Session {
        project,
        supervisor: Some(supervisor),
    };
    session.step("valgrind", || valgrind(&session))?;
    let tools = linker::tools_dir(&project.target_dir);
    session.step(RUNNER, || runner(&session, &tools))?;
    Ok(in_tools(&tools))
}

fn valgrind(session: &Session<'_>) -> anyhow::Result<String> {
    if system::find(Path::new("valgrind")).is_some() {
        return Ok("already there".to_owned());
    }
    if !system::runs_debian() {
        bail!("instructions are counted by valgrind, which is missing: install it yourself");
    }
    apt::install(session, VALGRIND).context("instructions are counted by valgrind")
}

/// The runner has to have the version of the library.
fn runner(session: &Session<'_>, tools: &Path) -> anyhow::Result<String> {
    let lock = session.project.root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("reading {}", lock.display()))?;
    let version =
        locked(&lock, RUNNER).with_context(|| format!("there is no {RUNNER} in Cargo.lock"))?;
    if says(&in_tools(tools)).is_some_and(|said| said.trim() == format!("{RUNNER} {version}")) {
        return Ok(format!("already there ({version})"));
    }
    let mut cargo = session.project.cargo("install");
    cargo
        .args([&format!("{RUNNER}@{version}"), "--locked", "--force"])
        .arg("--root")
        .arg(tools);
    session.run(&mut cargo)?;
    Ok(format!("{} ({version})", session.outcome("built")))
}

fn in_tools(tools: &Path) -> PathBuf {
    tools.join("bin").join(RUNNER)
}

/// What a runner says when asked for its version, if there is one.
fn says(runner: &Path) -> Option<String> {
    let mut command = Command::new(runner);
    let output = command.arg("--version").stdin(Stdio::null()).output();
    String::from_utf8(output.ok()?.stdout).ok()
}

/// The version of a package, from Cargo.lock.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, version) = lock.split_once(&format!("\nname = \"{package}\"\nversion = \""))?;
    version.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_runner_is_that_of_the_library() {
        let lock = include_str!("../../../Cargo.lock");
        let version = locked(lock, RUNNER);
        assert!(version.is_some());
        assert_eq!(version, locked(lock, "gungraun"));
        assert_eq!(locked(lock, "no-such-package"), None);
    }
}
