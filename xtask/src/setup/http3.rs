//! Gets a client of HTTP/3, which Debian has none of that falls back to TCP as browsers do: curl as a
//! Python package.

use std::{fs, path::Path};

use anyhow::Context as _;
use underpass_ebpf_builder::linker;

use super::{Session, pip, word};
use crate::{report, supervise};

/// What pip is to fetch; the only place with the versions and the hashes.
const REQUIREMENTS: &str = include_str!("curl-requirements.txt");
const REQUIREMENTS_FILE: &str = "curl-requirements.txt";

pub(super) fn install(session: &Session<'_>) -> anyhow::Result<String> {
    let tools = linker::tools_dir(&session.project.target_dir);
    let packages = tools.join("http3-client");
    // Written last, so that nothing half fetched passes for it.
    let mark = packages.join("requirements.txt");
    if fs::read_to_string(&mark).is_ok_and(|had| had == REQUIREMENTS) {
        return Ok("already there".to_owned());
    }
    match fetch(session, &tools, &packages, &mark) {
        Ok(()) => Ok(session.outcome("installed").to_owned()),
        Err(error) if error.is::<supervise::Stopped>() => Err(error),
        Err(error) => {
            // All else works without it, the demo for one.
            report::progress(format_args!("warning: {error:#}"));
            Ok("not installed: a test with HTTP/3 will fail".to_owned())
        }
    }
}

/// By way of a virtual environment, for pip cannot be used outside of one on Debian. The interpreter
/// is the one that runs the tests' scripts.
fn fetch(session: &Session<'_>, tools: &Path, packages: &Path, mark: &Path) -> anyhow::Result<()> {
    let environment = tools.join("http3-environment");
    let mut pip = pip::in_environment(session, &environment, REQUIREMENTS_FILE)?;
    pip.args(["--upgrade", "--target"]).arg(packages);
    session.run(&mut pip)?;
    let requirements = session
        .project
        .root
        .join("xtask/src/setup")
        .join(REQUIREMENTS_FILE);
    session.change(
        &format!("cp {} {}", word(&requirements), word(mark)),
        || fs::write(mark, REQUIREMENTS).with_context(|| format!("writing {}", mark.display())),
    )?;
    session.change(&format!("rm -r {}", word(&environment)), || {
        fs::remove_dir_all(&environment)
            .with_context(|| format!("removing {}", environment.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_has_a_version_and_a_hash() {
        let starts = REQUIREMENTS.lines().filter(|line| line.contains("=="));
        assert!(starts.clone().any(|line| line.starts_with("curl_cffi==")));
        for start in starts {
            assert!(start.ends_with(" \\"), "{start}");
        }
    }
}
